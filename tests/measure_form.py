"""Open the widget in a window of a size and print as JSON where its controls and texts are, in pixels of Qt.

Run by a test as a program of its own, since Qt reads ``QT_SCALE_FACTOR`` when it starts:
``python measure_form.py WIDTH HEIGHT FOLDER``, with a folder for settings.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import QPoint, QSettings
from qtpy.QtGui import QFontMetrics
from qtpy.QtWidgets import QAbstractButton, QApplication, QComboBox, QLabel, QWidget

import napari_dehazexl._settings
from napari_dehazexl._keyboard import controls_in

ARROW = 30
"""Pixels of a combo box that are not for its text."""


def spin(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Let the window live for some seconds, or until something is so."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and not until():
        QApplication.processEvents()
        time.sleep(0.01)


def measured(form: Any) -> list[dict[str, Any]]:
    """Return place, size and text of every control and label of the form that is shown."""
    root = form.fields.native
    labels = [each for each in root.findChildren(QLabel) if each.isVisible() and each.text()]
    parts = dict.fromkeys([*controls_in(root), *labels])
    return [described(each, root, form) for each in parts if each.isVisible()]


def described(part: QWidget, root: QWidget, form: Any) -> dict[str, Any]:
    """Return where a control lies in the form, how wide its text is, and whether scrolling shows all of it."""
    corner, text, wide = part.mapTo(root, QPoint(0, 0)), "", 0
    if isinstance(part, QComboBox):
        text = part.currentText()
        wide = QFontMetrics(part.font()).horizontalAdvance(text) + ARROW
    elif isinstance(part, QAbstractButton):
        text, wide = part.text(), part.minimumSizeHint().width()
    elif isinstance(part, QLabel):
        text = part.text()
        wide = 0 if part.wordWrap() else part.sizeHint().width()
    area = root.parentWidget().parentWidget()  # type: ignore[union-attr]
    area.ensureWidgetVisible(part, 0, 0)  # type: ignore[union-attr]
    seen = part.visibleRegion().boundingRect().size() == part.size()
    tall = part.heightForWidth(part.width()) if isinstance(part, QLabel) and part.wordWrap() else 0
    return {
        "text": text, "kind": type(part).__name__, "x": corner.x(), "y": corner.y(), "width": part.width(),
        "height": part.height(), "wide": wide, "tall": tall, "seen": seen,
    }  # fmt: skip


def main() -> None:
    """Measure the form, folded and unfolded."""
    width, height, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    settings = str(folder / "dehaze.ini")
    napari_dehazexl._settings.open_settings = lambda: QSettings(settings, QSettings.Format.IniFormat)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(width, height)
    y, x = np.mgrid[:300, :400]
    viewer.add_image(np.stack([y % 256, x % 256, (x + y) % 256], axis=-1).astype(np.uint8), name="scene", rgb=True)
    _, form = viewer.window.add_plugin_dock_widget("napari-dehazexl", "Dehaze")
    spin(120, lambda: "GB" in form.estimate.value)
    form.thumbnails.setVisible(True)
    form.bar.visible = True
    form.status.value = "scene dehazed: 12 of 30 tiles in view; 12.1 of 128 GB of memory in use"
    spin(1)
    window = viewer.window._qt_window
    folded = measured(form)
    form.fold.expand(animate=False)
    spin(1)
    found = {
        "scale": window.devicePixelRatioF(), "window": [window.width(), window.height()],
        "form": form.fields.native.width(), "area": form.fields.native.parentWidget().width(),
        "folded": folded, "unfolded": measured(form),
    }  # fmt: skip
    print(json.dumps(found))
    viewer.close()


if __name__ == "__main__":
    main()
