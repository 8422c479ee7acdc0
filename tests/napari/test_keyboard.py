"""The widget by the keyboard alone: every control has a name, is reached by Tab, and shows that it has the focus."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from window import *  # noqa: F403
from window import dock

from napari_dehazexl._state import session_of_layer


@pytest.fixture
def viewer(make_napari_viewer) -> Any:
    """A viewer with a small image."""
    viewer = make_napari_viewer(show=True)
    y, x = np.mgrid[:300, :400]
    viewer.add_image(np.stack([y % 256, x % 256, (x + y) % 256], axis=-1).astype(np.uint8), rgb=True, name="scene")
    return viewer


@pytest.fixture
def form(viewer, weights, qtbot) -> Any:
    """The widget, in a window that has the focus."""
    widget = dock(viewer, weights, qtbot)
    widget.thumbnails.setVisible(True)
    with qtbot.waitActive(widget.native.window()):
        widget.native.window().activateWindow()
    return widget


def name_of(control: Any) -> str:
    """Return the name that a screen reader reads; that of a combo box is its label's, of which Qt on Linux knows."""
    from qtpy.QtGui import QAccessible

    return control.accessibleName() or str(QAccessible.queryAccessibleInterface(control).text(QAccessible.Text.Name))


def tabbed(form: Any, qtbot: Any) -> list[Any]:
    """Press Tab from the input to the last control, and list those that had the focus."""
    from qtpy.QtCore import Qt
    from qtpy.QtWidgets import QApplication

    form.input.native.setFocus()
    found = []
    while form.fields.native.isAncestorOf(control := QApplication.focusWidget()):
        assert control not in found, "Tab goes in circles"
        found.append(control)
        qtbot.keyClick(control, Qt.Key.Key_Tab)
    return found


FIRST = ["Input", "Region", "Draw", "Strength", "Strength", "Strength 0.25", "Strength 0.50", "Strength 0.75",
         "Strength 1.00", "Dehaze", "Save as...", "Preview view", "Undo", "Cancel", "Compare before | after",
         "More settings"]  # fmt: skip

MORE = ["Preset", "Protect", "Weights", "Select file", "Device", "Precision", "Overlap, pixels", "Black, white",
        "From contrast", "Context", "Cache, MB", "Explain region", "Restore defaults", "Copy as script",
        "Copy as command"]  # fmt: skip


def test_tab_reaches_every_control_from_top_to_bottom(form, qtbot) -> None:
    from qtpy.QtCore import QPoint, Qt
    from qtpy.QtWidgets import QApplication

    controls = tabbed(form, qtbot)
    assert [name_of(each) for each in controls] == FIRST, "also what is folded away, or in another order"
    form.fold.expand(animate=False)
    qtbot.wait(100)
    controls = tabbed(form, qtbot)
    assert [name_of(each) for each in controls] == FIRST + MORE
    places = [each.mapTo(form.fields.native, QPoint(0, each.height() // 2)) for each in controls]
    rows = [(place.y() // 12, place.x()) for place in places]
    assert rows == sorted(rows), "not as they are seen"
    form.input.native.setFocus()
    qtbot.keyClick(form.input.native, Qt.Key.Key_Backtab)
    assert QApplication.focusWidget() is form.intro.native, "the link to the help"


def test_an_image_is_dehazed_by_keys_alone(form, viewer, qtbot) -> None:
    from qtpy.QtCore import Qt

    buttons = {name_of(each): each for each in tabbed(form, qtbot)}
    qtbot.keyClick(buttons["Dehaze"], Qt.Key.Key_Return)
    session = session_of_layer(viewer.layers["scene dehazed"])
    slider = next(each for each in tabbed(form, qtbot) if name_of(each) == "Strength")
    slider.setFocus()
    qtbot.keyClick(slider, Qt.Key.Key_Home)
    assert session.strength == form.strength.value == 0
    qtbot.keyClick(slider, Qt.Key.Key_Right)
    assert session.strength == pytest.approx(0.05)
    qtbot.keyClick(slider, Qt.Key.Key_PageUp)
    assert session.strength == pytest.approx(0.3)
    qtbot.keyClick(buttons["Strength 0.75"], Qt.Key.Key_Space)
    assert session.strength == 0.75
    qtbot.keyClick(buttons["Compare before | after"], Qt.Key.Key_Space)
    assert form.divide.value
    qtbot.keyClick(buttons["More settings"], Qt.Key.Key_Space)
    assert form.fold.isExpanded() and form.overlap.native.isVisible()
    qtbot.keyClick(form.overlap.native, Qt.Key.Key_Down)
    assert form.overlap.value == 0
    qtbot.keyClick(buttons["Undo"], Qt.Key.Key_Space)
    assert [layer.name for layer in viewer.layers] == ["scene"]


def test_underlined_letters_lead_to_controls(form, viewer, qtbot) -> None:
    from qtpy.QtCore import Qt
    from qtpy.QtGui import QKeySequence
    from qtpy.QtWidgets import QAbstractButton, QApplication, QLabel

    window = form.native.window()
    texts = [each.text() for each in form.fields.native.findChildren(QAbstractButton)]
    labels = [each for each in form.fields.native.findChildren(QLabel) if each.buddy() is not None]
    letters = [QKeySequence.mnemonic(text).toString() for text in (*texts, *(each.text() for each in labels))]
    used = [letter for letter in letters if letter]
    menus = {QKeySequence.mnemonic(action.text()).toString() for action in window.menuBar().actions()}
    assert len(used) > 10 and len({*used}) == len(used) and not {*used} & menus
    assert QApplication.focusWidget() is not form.input.native
    qtbot.keyClick(window, Qt.Key.Key_I, Qt.KeyboardModifier.AltModifier)
    assert QApplication.focusWidget() is form.input.native
    qtbot.keyClick(window, Qt.Key.Key_D, Qt.KeyboardModifier.AltModifier)
    qtbot.waitUntil(lambda: "scene dehazed" in viewer.layers, timeout=5_000)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_focus_is_seen(form, viewer, qtbot, theme) -> None:
    from qtpy.QtGui import QColor

    from napari_dehazexl._keyboard import BLUE

    viewer.theme = theme
    form.fold.expand(animate=False)
    qtbot.wait(300)
    blue = np.array(QColor(BLUE).getRgb()[:3])

    def framed(control: Any) -> int:
        """Return the number of pixels in the color of the frame around a control."""
        corner = control.mapTo(form.fields.native, control.rect().topLeft())
        pixels = pixels_of(form.fields.native.grab())  # also what has been scrolled out of view
        part = pixels[max(0, corner.y() - 4) : corner.y() + control.height() + 4]
        part = part[:, max(0, corner.x() - 4) : corner.x() + control.width() + 4]
        return int((np.abs(part - blue).max(axis=-1) < 10).sum())

    for control in tabbed(form, qtbot):
        form.intro.native.setFocus()
        before = framed(control)
        control.setFocus()
        qtbot.wait(20)
        assert framed(control) - before > control.width(), name_of(control)


def pixels_of(pixmap: Any) -> np.ndarray:
    """Return the colors ``(y, x, 3)`` of a pixmap."""
    from qtpy.QtGui import QImage

    image = pixmap.toImage().convertToFormat(QImage.Format.Format_RGB32)
    values = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine() // 4, 4)
    return values[:, : image.width(), 2::-1].astype(int)
