"""Drive the plugin in a real napari window and write the pictures of README and docs.

    xvfb-run -a -s "-screen 0 1600x1000x24" python docs/screenshots.py

Writes the pictures of ``docs/start.md``, one for each of its steps: ``start-open.jpg``, ``start-dehaze.jpg``,
``napari.jpg`` (the original left of the line; also that of README), ``start-adjust.jpg`` and ``start-save.jpg``. With
``--all DIR`` it goes on, in both themes, and writes a PNG of each step into a folder, to be looked at.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from PIL import Image
from qtpy.QtWidgets import QApplication, QFileDialog

DOCS = Path(__file__).parent


def spin(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Let the window live for some seconds, or until something is so."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not until():
        QApplication.processEvents()
        time.sleep(0.005)


def main() -> None:
    """Play in the dark theme, or in both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, default=None, metavar="DIR")
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 800), metavar=("WIDTH", "HEIGHT"))
    args = parser.parse_args()
    for theme in ("dark",) if args.all is None else ("light", "dark"):
        viewer = napari.Viewer(show=True)
        viewer.theme = theme
        viewer.window.resize(*args.size)
        with tempfile.TemporaryDirectory() as scratch:
            play(viewer, theme, args.all, Path(scratch))
            viewer.close()


def play(viewer: Any, theme: str, folder: Path | None, scratch: Path) -> None:
    """Go through what a user does."""
    scenes = Play(viewer, theme, folder)
    scenes.look()
    scenes.save(scratch)
    if folder is not None:
        scenes.draw()
        scenes.mistake()


class Play:
    """A window, and a picture of it after each step."""

    def __init__(self, viewer: Any, theme: str, folder: Path | None) -> None:
        self.viewer, self.theme, self.folder = viewer, theme, folder
        (self.layer,) = viewer.open_sample("napari-dehazexl", "scene")
        _, self.widget = viewer.window.add_plugin_dock_widget("napari-dehazexl", "Dehaze")

    def shot(self, name: str, page: str = "") -> None:
        """Take a picture of the whole window; also for a page of the documentation, by the name of its file there."""
        spin(0.5)
        picture = Image.fromarray(self.viewer.screenshot(canvas_only=False, flash=False)[..., :3])
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            picture.save(self.folder / f"{self.theme}-{name}.png")
        if page and self.theme == "dark":
            picture.save(DOCS / f"{page}.jpg", quality=88)

    def press(self, button: str) -> None:
        """Click a button of the widget."""
        getattr(self.widget, button).native.click()

    def wait(self) -> None:
        """Wait until what is on show is dehazed."""
        spin(0.5)
        states = [each.metadata.get("dehazexl") for each in self.viewer.layers]
        lives = [state.session for state in states if state is not None and state.session is not None]
        spin(120, lambda: all(live.wait(0.001) for live in lives))

    def look(self) -> None:
        """Open, dehaze, compare, zoom, move the slider, preview."""
        self.press("defaults")
        self.viewer.reset_view()
        spin(10, lambda: "GB" in self.widget.estimate.value)
        self.shot("01-opened", "start-open")
        self.press("dehaze")
        self.shot("02-at-work")
        self.wait()
        self.shot("03-dehazed", "start-dehaze")
        self.press("divide")
        self.shot("03-divided", "napari")
        self.press("divide")
        camera(self.viewer).zoom = 2
        self.wait()
        self.shot("04-zoomed")
        self.widget.thumbnails.buttons[1].click()
        self.shot("05-strength", "start-adjust")
        if self.folder is not None:
            self.press("preview")
            self.wait()
            self.shot("06-preview")
            self.viewer.layers.remove(self.viewer.layers["hazy meadow preview"])
        self.widget.strength.value = 1
        self.viewer.reset_view()

    def save(self, folder: Path) -> None:
        """Save, cancel, and go on to the end if each step is to be looked at."""
        answer = str(folder / "clear.ome.zarr"), ""
        QFileDialog.getSaveFileName = lambda *_: answer  # what a user would type
        self.press("save_as")
        spin(60, lambda: self.widget.bar.value > 20)
        self.shot("07-saving", "start-save")
        self.press("cancel")
        spin(60, lambda: not self.widget.bar.visible)
        if self.folder is None:
            return
        self.shot("08-cancelled")
        self.press("dehaze")
        self.press("save_as")
        spin(1)
        spin(120, lambda: not self.widget.bar.visible)
        self.shot("09-saved")
        self.press("undo")
        self.shot("10-undone")

    def draw(self) -> None:
        """Dehaze a rectangle."""
        self.viewer.reset_view()
        corners = np.array([[300, 400], [300, 1200], [900, 1200], [900, 400]])
        self.press("draw")
        shapes = self.widget.region.value
        shapes.add_rectangles([corners])
        shapes.mode = "pan_zoom"
        self.press("dehaze")
        self.wait()
        self.shot("11-region")
        self.widget.region.value = None
        self.viewer.layers.remove(shapes)

    def mistake(self) -> None:
        """Choose a mask, which is no image; and unfold the settings."""
        self.viewer.add_image(self.layer.data[..., 0] > 128, name="mask")
        self.press("dehaze")
        self.shot("12-mask")
        self.widget.fold.expand(animate=False)
        self.shot("13-settings")


def camera(viewer: Any) -> Any:
    """Return the camera, which napari 0.9 moved."""
    return (viewer.scene if hasattr(viewer, "scene") else viewer).camera


if __name__ == "__main__":
    main()
