"""Before and after by real events: the key that shows the original while it is held, and the line that is dragged."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from window import *  # noqa: F403
from window import camera, click, dock

from napari_dehazexl._state import session_of_layer


@pytest.fixture
def scene() -> np.ndarray:
    """A small picture."""
    y, x = np.mgrid[:300, :400]
    return np.stack([y % 256, x % 256, (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.fixture
def compared(make_napari_viewer, weights, scene, qtbot) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """A viewer, the widget, and the canvas with the original and with the dehazed layer at rest."""
    viewer = make_napari_viewer(show=True)
    viewer.add_image(scene, rgb=True, name="scene")
    widget = dock(viewer, weights, qtbot)
    qtbot.wait(500)
    width = widget.native.width()
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    session = session_of_layer(dehazed)
    qtbot.waitUntil(lambda: session.exact and dehazed.data[0].renderer.fresh, timeout=240_000)
    qtbot.waitUntil(widget.thumbnails.isVisible, timeout=5_000)
    dehazed.visible = False
    qtbot.wait(500)
    assert widget.native.width() == width, "thumbnails make the widget wider, and the image moves"
    hazy = shown(viewer)
    dehazed.visible = True
    qtbot.waitUntil(lambda: not same(viewer, hazy), timeout=60_000)
    qtbot.wait(500)
    return viewer, widget, hazy, shown(viewer)


def shown(viewer: Any) -> np.ndarray:
    """Return the pixels of the canvas."""
    return viewer.screenshot(flash=False)[..., :3].astype(int)


def same(viewer: Any, pixels: np.ndarray) -> bool:
    """Whether the canvas shows pixels."""
    return bool(np.abs(shown(viewer) - pixels).mean() < 0.5)


def canvas_of(viewer: Any) -> Any:
    """Return the widget of Qt that is the canvas."""
    return viewer.window._qt_viewer.canvas.native


def test_a_key_shows_the_original_while_it_is_held(compared, qtbot) -> None:
    from qtpy.QtCore import Qt

    viewer, widget, hazy, clear = compared
    # After a click the focus is on the button; it does not matter where it is, but where text is entered.
    for focused in (canvas_of(viewer), widget.dehaze.native, widget.divide.native):
        qtbot.keyPress(focused, Qt.Key.Key_H)
        assert same(viewer, hazy)
        qtbot.keyRelease(focused, Qt.Key.Key_H)
        assert same(viewer, clear)
    viewer.layers["scene"].visible = False
    qtbot.keyPress(canvas_of(viewer), Qt.Key.Key_H)
    assert same(viewer, hazy), "a hidden original is not shown"
    qtbot.keyRelease(canvas_of(viewer), Qt.Key.Key_H)
    assert same(viewer, clear) and not viewer.layers["scene"].visible
    widget.limits.native.clear()
    qtbot.keyPress(widget.limits.native, Qt.Key.Key_H)
    assert same(viewer, clear) and widget.limits.value == "h"


def test_another_window_ends_the_key(compared, qtbot) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QDialog

    viewer, _, hazy, clear = compared
    with qtbot.waitActive(viewer.window._qt_window):
        viewer.window._qt_window.activateWindow()
    qtbot.keyPress(canvas_of(viewer), Qt.Key.Key_H)
    assert same(viewer, hazy)
    other = QDialog()  # which gets the release of the key
    qtbot.addWidget(other)
    with qtbot.waitActive(other):
        other.show()
        other.activateWindow()
    qtbot.waitUntil(lambda: same(viewer, clear), timeout=5_000)
    qtbot.keyRelease(canvas_of(viewer), Qt.Key.Key_H)
    assert viewer.layers["scene dehazed"].opacity == 1
    qtbot.keyPress(canvas_of(viewer), Qt.Key.Key_H)
    assert same(viewer, hazy)
    qtbot.keyRelease(canvas_of(viewer), Qt.Key.Key_H)
    assert same(viewer, clear)


def drag(viewer: Any, qtbot: Any, start: int, end: int) -> None:
    """Press the mouse at a column of the canvas, move it to another one, and release it."""
    from qtpy.QtCore import QPoint, Qt

    canvas, left = canvas_of(viewer), Qt.MouseButton.LeftButton
    row = canvas.height() // 2
    qtbot.mouseMove(canvas, QPoint(start, row))
    qtbot.mousePress(canvas, left, pos=QPoint(start, row))
    for column in np.linspace(start, end, 6).astype(int):
        moved(canvas, QPoint(int(column), row))
        qtbot.wait(20)  # napari takes a move each 5 ms
    qtbot.mouseRelease(canvas, left, pos=QPoint(end, row))
    qtbot.wait(50)


def moved(canvas: Any, place: Any) -> None:
    """Move the mouse with its left button down, which no function of Qt's own tests does."""
    from qtpy.QtCore import QEvent, QPointF, Qt
    from qtpy.QtGui import QMouseEvent
    from qtpy.QtWidgets import QApplication

    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    at, on_screen = QPointF(place), QPointF(canvas.mapToGlobal(place))
    QApplication.sendEvent(canvas, QMouseEvent(QEvent.Type.MouseMove, at, on_screen, left, left, none))


def test_the_line_is_dragged(compared, qtbot) -> None:
    viewer, widget, hazy, clear = compared
    width = canvas_of(viewer).width()
    click(widget.divide)
    center, zoom = camera(viewer).center, camera(viewer).zoom
    drag(viewer, qtbot, width // 2, width // 4)
    assert camera(viewer).center == center, "the image was moved, too"
    both, line = shown(viewer), hazy.shape[1] // 4
    assert np.abs(both - hazy)[:, : line - 5].mean() < 0.5
    assert np.abs(both - clear)[:, line + 5 :].mean() < 0.5 < np.abs(hazy - clear)[:, line + 5 :].mean()
    drag(viewer, qtbot, width // 2, width // 2 + 50)  # not at the line
    assert camera(viewer).center != center and camera(viewer).zoom == zoom
    camera(viewer).center = center
    drag(viewer, qtbot, width // 4, -200)  # beyond the edge
    assert np.abs(shown(viewer) - clear)[:, 10:].mean() < 0.5
    drag(viewer, qtbot, 2, width // 2)
    both, line = shown(viewer), hazy.shape[1] // 2
    assert np.abs(both - hazy)[:, : line - 5].mean() < 0.5, "the line cannot be brought back"
    click(widget.divide)
    drag(viewer, qtbot, width // 2, width // 4)
    assert camera(viewer).center != center, "the line is still there"


def test_a_line_that_is_out_of_view_comes_back(compared, qtbot) -> None:
    viewer, widget, _, _ = compared
    click(widget.divide)
    camera(viewer).center = (0, 150, 1000)
    click(widget.divide)
    click(widget.divide)
    assert widget._divider.place == 1000
    viewer.layers.remove(viewer.layers["scene dehazed"])
    qtbot.waitUntil(lambda: not widget.divide.value, timeout=5_000)
    assert widget._divider.place is None, "a line with nothing to compare"
