"""How long a user waits for a picture of 16384 x 16384 pixels in the viewer, on this machine.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/viewer.py [--minutes 8]

Prints a table and keeps it as ``benchmarks/results/viewer.json``. The window is 1600 x 1000; the longest block is the
longest time between two beats of a timer of 5 ms in the window's thread, without opening the file and adding the layer.
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
    spin(2)
    beat = Beat()
    started = time.perf_counter()
    (layer,) = viewer.open_sample("napari-dehazexl", "large")
    viewer.reset_view()
    spin(0.05)
    assert viewer.screenshot(flash=False)[..., :3].std() > 5
    source = time.perf_counter() - started
    spin(1)

    beat.restart()
    started = time.perf_counter()
    dehazed = dehaze_layer(layer, viewer=viewer)
    added = time.perf_counter() - started
    live = dehazed.metadata["dehazexl-live"]
    first = layer_pixels(dehazed)
    spin(60, lambda: not np.array_equal(layer_pixels(dehazed), first))
    overview = time.perf_counter() - started
    spin(1)
    at_rest = beat.longest

    beat.restart()
    camera = (viewer.scene if hasattr(viewer, "scene") else viewer).camera
    started = time.perf_counter()
    camera.zoom = 1
    spin(0.01)
    viewer.screenshot(flash=False)
    zoomed = time.perf_counter() - started
    beat.restart()
    spin(60 * args.minutes, lambda: live.wait(0.001))
    exact = time.perf_counter() - started if live.wait(0.001) else None
    keep(
        "viewer",
        picture="16384 x 16384, lazy, with levels",
        view=[int(side) for side in viewer.screenshot(flash=False).shape[:2]],
        seconds_to_source_pixels=round(source, 2),
        seconds_to_add_the_layer=round(added, 2),
        seconds_to_dehazed_overview=round(overview, 2),
        seconds_to_sharp_view_from_the_overview=round(zoomed, 2),
        seconds_to_the_networks_own_view=round(exact, 1) if exact else f"more than {60 * args.minutes:.0f}",
        longest_block_until_overview=round(at_rest, 3),
        longest_block_zoomed_in=round(beat.longest, 3),
        peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    )
    viewer.close()


def layer_pixels(layer: napari.layers.Image) -> np.ndarray:
    """Return what is drawn of a layer."""
    return np.asarray(layer._slice.image.view)


if __name__ == "__main__":
    main()
