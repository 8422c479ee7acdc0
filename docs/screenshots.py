"""Drive the plugin in a real napari window and write the pictures of README and docs.

    xvfb-run -a -s "-screen 0 1600x1000x24" python docs/screenshots.py

Writes ``docs/napari.jpg`` (the viewer at rest, the original left of the line) and into ``--all DIR`` one PNG for each
step, in both themes, to be looked at.
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
    """Play in both themes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", type=Path, default=None, metavar="DIR")
    parser.add_argument("--size", type=int, nargs=2, default=(1280, 800), metavar=("WIDTH", "HEIGHT"))
    args = parser.parse_args()
    for theme in ("light", "dark"):
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
    if folder is not None:
        scenes.draw()
        scenes.save(scratch)
        scenes.mistake()


class Play:
    """A window, and a picture of it after each step."""

    def __init__(self, viewer: Any, theme: str, folder: Path | None) -> None:
        self.viewer, self.theme, self.folder = viewer, theme, folder
        (self.layer,) = viewer.open_sample("napari-dehazexl", "scene")
        _, self.widget = viewer.window.add_plugin_dock_widget("napari-dehazexl", "Dehaze")

    def shot(self, name: str) -> Image.Image:
        """Take a picture of the whole window."""
        spin(0.5)
        picture = Image.fromarray(self.viewer.screenshot(canvas_only=False, flash=False)[..., :3])
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            picture.save(self.folder / f"{self.theme}-{name}.png")
        return picture

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
        """Dehaze, zoom, move the slider, preview."""
        self.press("defaults")
        self.viewer.reset_view()
        spin(10, lambda: "GB" in self.widget.estimate.value)
        self.shot("01-opened")
        self.press("dehaze")
        self.shot("02-at-work")
        self.wait()
        self.shot("03-dehazed")
        self.press("divide")
        divided = self.shot("03-divided")
        if self.theme == "dark":
            divided.save(DOCS / "napari.jpg", quality=88)
        self.press("divide")
        camera(self.viewer).zoom = 2
        self.wait()
        self.shot("04-zoomed")
        self.widget.strength.value = 0.4
        self.shot("05-strength")
        self.press("preview")
        self.wait()
        self.shot("06-preview")
        self.viewer.layers.remove(self.viewer.layers["hazy meadow preview"])
        self.widget.strength.value = 1

    def draw(self) -> None:
        """Dehaze a rectangle."""
        self.viewer.reset_view()
        self.viewer.layers.remove(self.viewer.layers["hazy meadow dehazed"])
        corners = np.array([[300, 400], [300, 1200], [900, 1200], [900, 400]])
        self.press("draw")
        shapes = self.widget.region.value
        shapes.add_rectangles([corners])
        shapes.mode = "pan_zoom"
        self.press("dehaze")
        self.wait()
        self.shot("07-region")
        self.widget.region.value = None
        self.viewer.layers.remove(shapes)

    def save(self, folder: Path) -> None:
        """Save, cancel, go on to the end."""
        answer = str(folder / "clear.ome.zarr"), ""
        QFileDialog.getSaveFileName = lambda *_: answer  # what a user would type
        self.press("save_as")
        spin(60, lambda: self.widget.bar.value > 20)
        self.shot("08-saving")
        self.press("cancel")
        spin(60, lambda: not self.widget.bar.visible)
        self.shot("09-cancelled")
        self.press("dehaze")
        self.press("save_as")
        spin(1)
        spin(120, lambda: not self.widget.bar.visible)
        self.shot("10-saved")

    def mistake(self) -> None:
        """Choose a mask, which is no image; and unfold the settings."""
        self.viewer.add_image(self.layer.data[..., 0] > 128, name="mask")
        self.press("dehaze")
        self.shot("11-mask")
        self.widget.fold.expand(animate=False)
        self.shot("12-settings")


def camera(viewer: Any) -> Any:
    """Return the camera, which napari 0.9 moved."""
    return (viewer.scene if hasattr(viewer, "scene") else viewer).camera


if __name__ == "__main__":
    main()
