"""How long a user waits for a picture of 16384 x 16384 pixels in the viewer, on this machine.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/viewer.py [--minutes 8]

Prints a table and keeps it as ``benchmarks/results/viewer.json``. The window is 1600 x 1000 and has the Dehaze widget;
a block is the longest time between two beats of a timer of 5 ms in the window's thread. What napari needs without us
is measured beside it: to add a picture of 64 x 64 pixels, and to zoom and pan in the hazy layer alone.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import napari
import numpy as np
from machine import keep
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from dehazexl.image.grid import Window
from napari_dehazexl import dehaze_layer


class Beat:
    """The longest time between two beats."""

    def __init__(self) -> None:
        self.timer = QTimer()
        self.timer.timeout.connect(self.beat)
        self.timer.start(5)
        self.restart()

    def restart(self) -> None:
        """Begin anew."""
        self.longest, self.last = 0.0, time.perf_counter()

    def beat(self) -> None:
        """Measure the time since the last."""
        now = time.perf_counter()
        self.longest, self.last = max(self.longest, now - self.last), now


def spin(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not until():
        QApplication.processEvents()
        time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="to wait for the network's own tiles")
    args = parser.parse_args()
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1600, 1000)
    viewer.window.add_plugin_dock_widget("napari-dehazexl", "Dehaze")
    spin(8)
    beat = Beat()
    started = time.perf_counter()
    (layer,) = viewer.open_sample("napari-dehazexl", "large")
    viewer.reset_view()
    spin(0.05)
    assert viewer.screenshot(flash=False)[..., :3].std() > 5
    source = time.perf_counter() - started
    spin(1)

    camera = (viewer.scene if hasattr(viewer, "scene") else viewer).camera
    y, x = camera.center[-2:]
    beat.restart()
    camera.center, camera.zoom = (y / 2, x / 2), 1
    spin(2)
    zooming_source = beat.longest
    panning_source = panned(camera, beat)
    viewer.reset_view()
    spin(2)

    started = time.perf_counter()
    viewer.add_image(np.zeros((64, 64, 3), np.uint8))
    any_layer = time.perf_counter() - started
    viewer.layers.pop()
    spin(1)

    started = time.perf_counter()
    dehazed = dehaze_layer(layer, viewer=viewer)
    added = time.perf_counter() - started
    beat.restart()
    live = dehazed.metadata["dehazexl"].session
    loaded = live.renewed
    spin(60, lambda: live.renewed > loaded and shown(dehazed))
    overview = time.perf_counter() - started
    spin(60, lambda: live.status != "dehazing the overview" and shown(dehazed))
    larger = time.perf_counter() - started
    spin(1)
    at_rest = beat.longest

    beat.restart()
    started = time.perf_counter()
    camera.zoom = 1
    spin(10, lambda: dehazed.data_level == 0 and shown(dehazed))
    zoomed = time.perf_counter() - started
    spin(2)
    zooming = beat.longest

    panning = panned(camera, beat)

    beat.restart()
    started = time.perf_counter()
    spin(60 * args.minutes, lambda: live.wait(0.001))
    exact = time.perf_counter() - started if live.wait(0.001) else None
    spin(1)
    keep(
        "viewer",
        picture="16384 x 16384, lazy, with levels",
        view=[int(side) for side in viewer.screenshot(flash=False).shape[:2]],
        seconds_to_source_pixels=round(source, 2),
        seconds_to_add_any_layer=round(any_layer, 3),
        seconds_to_add_the_layer=round(added, 3),
        seconds_to_dehazed_overview=round(overview, 2),
        seconds_to_the_larger_overview=round(larger, 2),
        seconds_to_sharp_view_from_the_overview=round(zoomed, 2),
        seconds_to_the_networks_own_view=round(exact, 1) if exact else f"more than {60 * args.minutes:.0f}",
        longest_block_until_both_overviews=round(at_rest, 3),
        longest_block_zooming_in=round(zooming, 3),
        longest_block_zooming_in_without_us=round(zooming_source, 3),
        longest_block_panning=round(panning, 3),
        longest_block_panning_without_us=round(panning_source, 3),
        longest_block_while_tiles_come=round(beat.longest, 3),
        peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    )
    viewer.close()


def panned(camera, beat: Beat) -> float:
    """Pan by 110 pixels five times a second; return the longest block."""
    beat.restart()
    y, x = camera.center[-2:]
    for step in range(1, 21):
        camera.center = (y + 50 * step, x + 100 * step)
        spin(0.2)
    return beat.longest


def shown(layer: napari.layers.Image) -> bool:
    """Whether a layer's painter has painted all there is by now, and that is drawn; nothing is read for it."""
    painter = layer.data[0].renderer
    frame = painter._view if layer.data_level < painter.session.coarse else painter._whole
    drawn = np.asarray(layer._slice.image.view)
    y, x = (int(edge) for edge in layer.corner_pixels[0, :2])
    window = Window(y, y + drawn.shape[0], x, x + drawn.shape[1])
    return (
        painter.fresh
        and frame is not None
        and frame.level == layer.data_level
        and np.array_equal(drawn, frame.pixels[window.to_slices(frame.window)])
    )


if __name__ == "__main__":
    main()
