"""A row of thumbnails of the dehazed image, each with another strength, to click on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QSize, Qt
from qtpy.QtGui import QIcon, QImage, QPixmap
from qtpy.QtWidgets import QHBoxLayout, QSizePolicy, QToolButton, QWidget

if TYPE_CHECKING:
    from dehazexl.viewing.session import DehazeSession

STRENGTHS = (0.25, 0.5, 0.75, 1.0)

SIDE = 56
"""Pixels: longest side of a thumbnail. Four of them are no wider than the other rows: the canvas would move."""


class StrengthRow(QWidget):
    """Thumbnails with several strengths.

    Parameters
    ----------
    chosen
        Called with the strength of the thumbnail that is clicked.
    """

    def __init__(self, chosen: Callable[[float], object]) -> None:
        super().__init__()
        self.shown: tuple[Any, int] | None = None
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.buttons = []
        for strength in STRENGTHS:
            button = QToolButton()
            button.setText(f"{strength:.2f}")
            button.setToolTip(f"Strength {strength:.2f}")
            button.setAccessibleName(button.toolTip())
            button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextUnderIcon)
            button.setIconSize(QSize(SIDE, SIDE * 3 // 4))
            button.clicked.connect(partial(self._clicked, chosen, strength))
            layout.addWidget(button)
            self.buttons.append(button)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.setVisible(False)

    def show_of(self, session: DehazeSession | None) -> None:
        """Show thumbnails of a session, if they have changed; none for None."""
        self.setVisible(session is not None)
        now = None if session is None else (id(session), session.renewed)
        if session is None or session.lost or now == self.shown:
            return
        self.shown = now
        with suppress(OSError, ValueError):  # of a file that is gone, which the layer shows
            for button, strength in zip(self.buttons, STRENGTHS, strict=True):
                button.setIcon(_icon(session.sample(strength, SIDE)))

    def _clicked(self, chosen: Callable[[float], object], strength: float, checked: bool = False) -> None:
        chosen(strength)


def _icon(pixels: np.ndarray) -> QIcon:
    """Return an icon of pixels ``(y, x, 3 or 4)``, uint8 or 0 to 1."""
    colors = pixels[..., :3]
    if colors.dtype != np.uint8:
        colors = (colors * 255).astype(np.uint8)
    colors = np.ascontiguousarray(colors)
    height, width = colors.shape[:2]
    image = QImage(colors.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888)
    pixmap = QPixmap.fromImage(image.copy())
    how = Qt.AspectRatioMode.KeepAspectRatio, Qt.TransformationMode.SmoothTransformation
    return QIcon(pixmap.scaled(SIDE, SIDE, *how))
