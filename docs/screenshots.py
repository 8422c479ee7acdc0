"""Drive the plugin in a real napari window and write the pictures of README and docs.

    xvfb-run -a -s "-screen 0 1600x1000x24" python docs/screenshots.py

Writes ``docs/napari.jpg`` (the viewer at rest after Dehaze, half of it hazy) and into ``--all DIR`` one PNG for each
step, in both themes, to be looked at.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from PIL import Image
from qtpy.QtWidgets import QApplication

DOCS = Path(__file__).parent


def spin(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Let the window live for some seconds, or until something is so."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not until():
        QApplication.processEvents()
        time.sleep(0.005)


def main() -> None:
    """Play in both themes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, default=None, metavar="DIR")
    args = parser.parse_args()
    for theme in ("light", "dark"):
        viewer = napari.Viewer(show=True)
        viewer.theme = theme
        viewer.window.resize(1280, 800)
        play(viewer, theme, args.all)
        viewer.close()


def play(viewer: Any, theme: str, folder: Path | None) -> None:
    """Go through what a user does, with a picture of each step."""

    def shot(name: str) -> Image.Image:
        spin(0.5)
        picture = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)[..., :3])
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{theme}-{name}.png")
        return picture

    (layer,) = viewer.open_sample("napari-dehazexl", "scene")
    _, widget = viewer.window.add_plugin_dock_widget("napari-dehazexl", "Dehaze")
    widget.defaults.native.click()
    viewer.reset_view()
    spin(10, lambda: len(widget.device.choices) > 1)
    shot("1-opened")
    widget.dehaze.native.click()
    live = viewer.layers[-1].metadata["dehazexl-live"]
    hazy = shot("2-at-work")
    spin(120, lambda: live.wait(0.001))
    clear = shot("3-dehazed")
    half = hazy.copy()
    middle = 360 + (clear.width - 360 - 420) // 2
    half.paste(clear.crop((middle, 0, clear.width, clear.height)), (middle, 0))
    if theme == "dark":
        half.save(DOCS / "napari.jpg", quality=88)
    (viewer.scene if hasattr(viewer, "scene") else viewer).camera.zoom = 2
    spin(0.5)
    spin(120, lambda: live.wait(0.001))
    shot("4-zoomed")
    widget.strength.value = 0.4
    shot("5-strength")
    widget.preview.native.click()
    spin(60, lambda: viewer.layers[-1].metadata["dehazexl-live"].wait(0.001))
    shot("6-preview")
    grey = viewer.add_image(layer.data[..., 0], name="grey")
    widget.input.value = grey
    widget.dehaze.native.click()
    shot("7-not-rgb")


if __name__ == "__main__":
    main()
