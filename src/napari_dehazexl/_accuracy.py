"""A word on the canvas while the dehazed layer in view is not yet what a file will hold."""

from __future__ import annotations

from typing import Any

from napari_dehazexl._selection import dehazed_layers

REFINING, ZOOM = "approximate", "approximate: zoom in, or save, for full detail"


def show_accuracy(viewer: Any) -> None:
    """Show whether the topmost visible dehazed layer is approximate. A text of somebody else is left alone."""
    shown = [session for layer, session in dehazed_layers(viewer) if layer.visible]
    text = ""
    if shown and not shown[-1].exact:
        text = REFINING if shown[-1].settles else ZOOM
    overlay = viewer.canvas.overlays.text if hasattr(viewer, "canvas") else viewer.text_overlay
    if overlay.text in ("", REFINING, ZOOM) and overlay.text != text:
        overlay.text = text
        overlay.visible = bool(text)
