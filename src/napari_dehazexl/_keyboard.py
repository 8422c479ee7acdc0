"""The form without a mouse: names of controls, the order of Tab, a frame around the focus; and the mouse wheel."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPen
from qtpy.QtWidgets import (
    QAbstractButton,
    QAbstractSlider,
    QAbstractSpinBox,
    QApplication,
    QComboBox,
    QLabel,
    QPushButton,
    QWidget,
)

BLUE = "#3d8fd1"
"""Color of links and of the focus: it stands out in both themes, also for people who cannot tell red from green."""


def controls_in(widget: QWidget) -> list[QWidget]:
    """List the controls in a widget that Tab can reach, in the order in which they are laid out."""
    layout: Any = widget.layout()
    items = [] if layout is None else [layout.itemAt(number) for number in range(layout.count())]
    inside = [control for item in items if item.widget() is not None for control in controls_in(item.widget())]
    if inside:
        return inside
    return [widget] if widget.focusPolicy() & Qt.FocusPolicy.TabFocus else []


def reach_by_keyboard(form: QWidget) -> None:
    """Let Tab reach all controls of a form from top to bottom, and Enter press its buttons."""
    controls = controls_in(form)
    for before, after in pairwise(controls):
        QWidget.setTabOrder(before, after)
    for control in controls:
        if isinstance(control, QPushButton):
            control.setAutoDefault(True)
    FocusFrame(form)


def name_controls(field: QWidget, label: QLabel) -> None:
    """Let a label name the controls of a field, for screen readers, and its underlined letter lead to the first."""
    controls = controls_in(field)
    for control in controls[:1]:
        label.setBuddy(control)
    for control in controls:
        if not isinstance(control, QAbstractButton):
            control.setAccessibleName(label.text().replace("&", ""))


class FocusFrame(QWidget):
    """A frame around the control of a form that has the focus, which napari's themes do not show."""

    def __init__(self, form: QWidget) -> None:
        super().__init__(form)
        self._form = form
        self._control: QWidget | None = None
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.hide()
        application = QApplication.instance()
        assert isinstance(application, QApplication)
        application.focusChanged.connect(self._follow)

    def _follow(self, before: QWidget | None, now: QWidget | None) -> None:
        """Move to the control that has the focus."""
        if self._control is not None:
            self._control.removeEventFilter(self)
        self._control = now if now is not None and self._form.isAncestorOf(now) else None
        self.hide()
        if self._control is not None:
            self._control.installEventFilter(self)
            self.setParent(self._control.parentWidget())  # they move together
            self.setGeometry(self._control.geometry())
            self.raise_()
            self.show()

    def eventFilter(self, watched: Any, event: Any) -> bool:
        """Follow the place and size of the control."""
        if event.type() in (QEvent.Type.Move, QEvent.Type.Resize):
            self.setGeometry(watched.geometry())
        return False

    def paintEvent(self, event: QPaintEvent | None) -> None:
        """Draw the frame."""
        painter = QPainter(self)
        painter.setPen(QPen(QColor(BLUE), 2))
        painter.drawRect(self.rect().adjusted(1, 1, -1, -1))


def ignore_wheel(form: QWidget) -> None:
    """Let the mouse wheel change a value only after a click on it: it scrolls, and changes are remembered."""

    class Filter(QObject):
        def eventFilter(self, watched: Any, event: Any) -> bool:
            turned = event.type() == QEvent.Type.Wheel and not watched.hasFocus()
            if turned:
                event.ignore()
            return bool(turned)

    guard = Filter(form)
    for kind in (QAbstractSlider, QAbstractSpinBox, QComboBox):
        for each in form.findChildren(kind):
            each.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
            each.installEventFilter(guard)
