"""An area that scrolls where a window is too low for the form."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QEvent, QSize, Qt
from qtpy.QtWidgets import QFrame, QScrollArea, QWidget


class Scroll(QScrollArea):
    """Shows a widget in its whole width, and scrolls down.

    Parameters
    ----------
    content
        The widget.
    """

    def __init__(self, content: QWidget) -> None:
        super().__init__()
        self._content = content
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setStyleSheet("QScrollArea { padding: 0px; }")  # napari's own would hide a pixel at each side
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setWidgetResizable(True)
        self.setFocusPolicy(Qt.FocusPolicy.NoFocus)  # the keys are for the controls
        self.setWidget(content)

    def minimumSizeHint(self) -> QSize:
        """Return the width of the widget and of the bar."""
        return QSize(self._content.minimumSizeHint().width() + self._bar(), 0)

    def sizeHint(self) -> QSize:
        """Return the size that shows all of the widget."""
        return self._content.sizeHint() + QSize(self._bar(), 0)

    def eventFilter(self, watched: Any, event: Any) -> bool:
        """Follow the size of the widget."""
        if event.type() == QEvent.Type.LayoutRequest:
            self.updateGeometry()
        return bool(super().eventFilter(watched, event))

    def _bar(self) -> int:
        """Return the width of the bar, also while it is not there: nothing moves when it comes."""
        bar = self.verticalScrollBar()
        return 0 if bar is None else bar.sizeHint().width()
