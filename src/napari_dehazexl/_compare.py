"""Before and after: a line over the canvas that can be dragged, and a key that shows the original while it is held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from napari_dehazexl._state import is_result, original_of, state_of

KEY = "H"
"""The key that shows the original while it is held."""

NEAR = 10
"""Pixels of the screen around the line that can be grabbed."""

LINE = "#ffb000"


def results_in(viewer: Any) -> list[Any]:
    """List the visible dehazed layers."""
    return [each for each in viewer.layers if each.visible and is_result(each) and state_of(each).about is None]


def show_original_on_key(viewer: Any) -> None:
    """Let a key show the original while it is held, wherever the focus is in the window but in a field of text."""
    from qtpy.QtGui import QGuiApplication

    held: list[Original] = []

    def release(*_: Any) -> None:
        while held:
            held.pop().release()

    def hold(viewer: Any) -> Iterator[None]:
        held.append(Original(viewer))
        yield
        release()

    viewer.bind_key(KEY, hold, overwrite=True)
    application = QGuiApplication.instance()
    assert application is not None
    application.focusWindowChanged.connect(release)  # type: ignore[attr-defined]  # another one is told of the release


class Original:
    """The original, shown in place of the visible dehazed layers until it is released."""

    def __init__(self, viewer: Any) -> None:
        self._before = [(layer, "opacity", layer.opacity) for layer in results_in(viewer)]
        for layer, *_ in self._before[:]:
            original = original_of(layer)
            if original is not None and not original.visible:
                self._before.append((original, "visible", False))
                original.visible = True
            layer.opacity = 0

    def release(self) -> None:
        """Show the dehazed layers again."""
        for layer, name, value in self._before:
            setattr(layer, name, value)


class Divider:
    """A vertical line over the canvas of a viewer, left of which dehazed layers are cut away.

    Attributes
    ----------
    place : float or None
        Column of the line in the world, None while it is not shown.
    """

    def __init__(self, viewer: Any) -> None:
        self.viewer = viewer
        self.place: float | None = None
        self._cuts: dict[Any, Any] = {}
        self._line: Any = None

    def show(self) -> None:
        """Show the line in the middle of the view, with the original left of it.

        Raises
        ------
        ValueError
            If this version of napari has no canvas that can be cut.
        """
        self.place = float(_camera(self.viewer).center[-1])
        try:
            self._draw()
        except (AttributeError, ImportError) as error:
            self.place = None
            raise ValueError(f"this version of napari cannot show both at once: hold the key {KEY} instead") from error
        self.viewer.mouse_drag_callbacks.append(self._drag)
        self.viewer.layers.events.connect(self._changed)
        for layer in results_in(self.viewer):
            source = state_of(layer).source
            if source is not None and (original := source()) is not None:
                original.visible = True

    def hide(self) -> None:
        """Show the dehazed layers in full again."""
        if self.place is None:
            return
        self.place = None
        self.viewer.mouse_drag_callbacks.remove(self._drag)
        self.viewer.layers.events.disconnect(self._changed)
        for node, cut in self._cuts.items():
            node.detach(cut)
            node.update()
        self._cuts = {}
        self._line.parent = None
        self._line = None

    def move(self, place: float) -> None:
        """Move the line to a column of the world, or to the edge of the view: beyond, nobody could drag it back."""
        camera, canvas = _camera(self.viewer), self.viewer.window._qt_viewer.canvas
        half, middle = (canvas.size[1] - NEAR) / 2 / camera.zoom, float(camera.center[-1])
        self.place = min(max(place, middle - half), middle + half)
        self._draw()

    def _changed(self, event: Any = None) -> None:
        """Cut layers that were added or shown meanwhile."""
        if self.place is not None:
            self._draw()

    def _draw(self) -> None:
        """Draw the line, and cut what lies left of it."""
        from vispy.scene.visuals import Line
        from vispy.visuals.filters.clipping_planes import PlanesClipper

        canvas = self.viewer.window._qt_viewer.canvas
        for layer in results_in(self.viewer):
            node = canvas.layer_to_visual[layer].node
            if node not in self._cuts:
                self._cuts[node] = PlanesClipper(coord_system="scene")
                node.attach(self._cuts[node])
            self._cuts[node].clipping_planes = np.array([[[self.place, 0, 0], [1, 0, 0]]], float)
            node.update()
        if self._line is None:
            self._line = Line(color=LINE, width=2, parent=canvas.view.scene)
            self._line.order = 10**6
            self._line.set_gl_state("translucent", depth_test=False)
        low, high = self._rows()
        self._line.set_data(np.array([[self.place, low], [self.place, high]], float))

    def _rows(self) -> tuple[float, float]:
        """Return the rows of the world between which the line is drawn: far beyond all layers."""
        extent = self.viewer.layers.extent.world[:, -2]
        side = float(extent[1] - extent[0])
        return float(extent[0]) - side, float(extent[1]) + side

    def _drag(self, viewer: Any, event: Any) -> Iterator[None]:
        """Move the line with the mouse, if it was grabbed."""
        camera = _camera(viewer)
        if self.place is None or abs(event.position[-1] - self.place) * camera.zoom > NEAR:
            return
        pan, camera.mouse_pan = camera.mouse_pan, False
        yield
        while event.type == "mouse_move":
            self.move(float(event.position[-1]))
            yield
        camera.mouse_pan = pan


def _camera(viewer: Any) -> Any:
    """Return the camera, which napari 0.9 moved."""
    return (viewer.scene if hasattr(viewer, "scene") else viewer).camera
