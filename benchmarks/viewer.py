"""Waiting times of a user with an image of 16384 x 16384 pixels in the viewer.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/viewer.py [--minutes 8]

Prints the results and saves them as ``benchmarks/results/viewer.json``. The window is 1600 x 1000 pixels and contains
the Dehaze widget. A block is the longest time between two ticks of a timer of 5 ms in the main thread. For comparison,
the times of napari alone are measured: for adding an image of 64 x 64 pixels, and for zooming and panning in the hazy
layer only.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import napari
import numpy as np
from machine import save_result
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from dehazexl.image.grid import Window
from napari_dehazexl import dehaze_layer


class Beat:
    """Timer that measures the longest time between two ticks."""

    def __init__(self) -> None:
        self.timer = QTimer()
        self.timer.timeout.connect(self.beat)
        self.timer.start(5)
        self.restart()

    def restart(self) -> None:
        """Restart the measurement."""
        self.longest, self.last = 0.0, time.perf_counter()

    def beat(self) -> None:
        """Update the longest time; called at each tick."""
        now = time.perf_counter()
        self.longest, self.last = max(self.longest, now - self.last), now


def spin(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Process events for some seconds, or until a condition is true."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not until():
        QApplication.processEvents()
        time.sleep(0.002)


def open_window() -> napari.Viewer:
    """Open a viewer with the Dehaze widget."""
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1600, 1000)
    viewer.window.add_plugin_dock_widget("napari-dehazexl", "Dehaze")
    spin(8)
    return viewer


def get_camera(viewer: napari.Viewer):
    """Return the camera, in old and new versions of napari."""
    return (viewer.scene if hasattr(viewer, "scene") else viewer).camera


def measure_source(viewer: napari.Viewer, beat: Beat) -> dict[str, float]:
    """Open the image, and measure napari without the plugin."""
    started = time.perf_counter()
    viewer.open_sample("napari-dehazexl", "large")
    viewer.reset_view()
    spin(0.05)
    assert viewer.screenshot(flash=False)[..., :3].std() > 5
    figures = {"seconds_to_source_pixels": round(time.perf_counter() - started, 2)}
    spin(1)

    camera = get_camera(viewer)
    y, x = camera.center[-2:]
    beat.restart()
    camera.center, camera.zoom = (y / 2, x / 2), 1
    spin(2)
    figures["longest_block_zooming_in_without_us"] = round(beat.longest, 3)
    figures["longest_block_panning_without_us"] = round(pan(camera, beat), 3)
    viewer.reset_view()
    spin(2)

    started = time.perf_counter()
    viewer.add_image(np.zeros((64, 64, 3), np.uint8))
    figures["seconds_to_add_any_layer"] = round(time.perf_counter() - started, 3)
    viewer.layers.pop()
    spin(1)
    return figures


def measure_overviews(viewer: napari.Viewer, beat: Beat) -> dict[str, float]:
    """Add the dehazed layer, and measure the time to its overviews."""
    started = time.perf_counter()
    dehazed = dehaze_layer(viewer.layers[0], viewer=viewer)
    figures = {"seconds_to_add_the_layer": round(time.perf_counter() - started, 3)}
    beat.restart()
    live = dehazed.metadata["dehazexl"].session
    loaded = live.renewed
    spin(60, lambda: live.renewed > loaded and is_drawn(dehazed))
    figures["seconds_to_dehazed_overview"] = round(time.perf_counter() - started, 2)
    spin(60, lambda: live.status != "dehazing the overview" and is_drawn(dehazed))
    figures["seconds_to_the_larger_overview"] = round(time.perf_counter() - started, 2)
    spin(1)
    figures["longest_block_until_both_overviews"] = round(beat.longest, 3)
    return figures


def measure_interaction(viewer: napari.Viewer, beat: Beat) -> dict[str, float]:
    """Zoom in and pan in the dehazed layer."""
    camera, dehazed = get_camera(viewer), viewer.layers[-1]
    beat.restart()
    started = time.perf_counter()
    camera.zoom = 1
    spin(10, lambda: dehazed.data_level == 0 and is_drawn(dehazed))
    figures = {"seconds_to_sharp_view_from_the_overview": round(time.perf_counter() - started, 2)}
    spin(2)
    figures["longest_block_zooming_in"] = round(beat.longest, 3)
    figures["longest_block_panning"] = round(pan(camera, beat), 3)
    return figures


def measure_tiles(viewer: napari.Viewer, beat: Beat, minutes: float) -> dict[str, float | str]:
    """Wait for the tiles of the view at full resolution."""
    live = viewer.layers[-1].metadata["dehazexl-live"]
    beat.restart()
    started = time.perf_counter()
    spin(60 * minutes, lambda: live.wait(0.001))
    exact = time.perf_counter() - started if live.wait(0.001) else None
    spin(1)
    return {
        "seconds_to_the_networks_own_view": round(exact, 1) if exact else f"more than {60 * minutes:.0f}",
        "longest_block_while_tiles_come": round(beat.longest, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="longest time to wait for tiles at full resolution")
    args = parser.parse_args()
    viewer = open_window()
    beat = Beat()
    figures = measure_source(viewer, beat) | measure_overviews(viewer, beat) | measure_interaction(viewer, beat)
    figures |= measure_tiles(viewer, beat, args.minutes)
    save_result(
        "viewer",
        picture="16384 x 16384, lazy, with levels",
        view=[int(side) for side in viewer.screenshot(flash=False).shape[:2]],
        **figures,
        peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    )
    viewer.close()


def pan(camera, beat: Beat) -> float:
    """Pan by 110 pixels five times per second; return the longest block in seconds."""
    beat.restart()
    y, x = camera.center[-2:]
    for step in range(1, 21):
        camera.center = (y + 50 * step, x + 100 * step)
        spin(0.2)
    return beat.longest


def is_drawn(layer: napari.layers.Image) -> bool:
    """Return whether the canvas shows everything that is rendered of a layer; reads no pixels."""
    renderer = layer.data[0].renderer
    frame = renderer._view if layer.data_level < renderer.session.coarse else renderer._whole
    drawn = np.asarray(layer._slice.image.view)
    y, x = (int(edge) for edge in layer.corner_pixels[0, :2])
    window = Window(y, y + drawn.shape[0], x, x + drawn.shape[1])
    return (
        renderer.fresh
        and frame is not None
        and frame.level == layer.data_level
        and np.array_equal(drawn, frame.pixels[window.to_slices(frame.window)])
    )


if __name__ == "__main__":
    main()
