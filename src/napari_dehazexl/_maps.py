"""Layers of maps of the haze of a dehazed layer: its transmission, its color, and how much of it is removed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dehazexl.viewing.mapping import MapSession
from napari_dehazexl._layer import PLACE, session_of
from napari_dehazexl._levels import UNSAVED_MAP, FullSizeData
from napari_dehazexl._main_thread import call_later
from napari_dehazexl._state import KEY, LayerState, state_of
from napari_dehazexl._watch import INTERVAL, refresh

if TYPE_CHECKING:
    import napari.layers
    import numpy as np

SHOWN: dict[str, dict[str, Any]] = {
    "transmission": {"contrast_limits": (0, 1), "colormap": "viridis"},
    "airlight": {"contrast_limits": (0, 1), "rgb": True},
    "removed": {"contrast_limits": (0, 100), "colormap": "magma"},
}
"""How each map is shown."""

TITLES = {"removed": "haze removed, %"}
"""What layers are called by, if not by the name of the map."""

_displays: set[MapDisplay] = set()  # those at work: napari and psygnal hold only weak references to what they call


def map_layer(
    layer: napari.layers.Image, maps: Iterable[str] | None = None, *, viewer: Any = None
) -> list[napari.layers.Image]:
    """Map the haze of a dehazed layer.

    Parameters
    ----------
    layer
        A layer of `dehaze_layer`.
    maps
        Names of maps: ``"transmission"``, ``"airlight"`` and ``"removed"``, see `dehazexl.engine.maps`. None takes
        those that the weights give.
    viewer
        The viewer to add the layers to, above the dehazed one; the last one is visible. None takes the current viewer
        if it shows the dehazed layer. Without a viewer, as in a script, the layers are only returned.

    Returns
    -------
    list of napari.layers.Image
        A lazy multiscale layer for each map, placed like the dehazed one. ``transmission`` is the mean over the bands,
        0 to 1, and ``removed`` a percentage, which follows the strength; ``airlight`` is a color. They are transparent
        where there is no data, show the overview's map first, then that of the level in view, and get no more once
        the dehazed layer is removed. ``layer.metadata["dehazexl"].maps`` is the
        `dehazexl.viewing.mapping.MapSession` behind all: ``wait()`` for it, or ``close()`` it.

    Raises
    ------
    ValueError
        If the layer was not dehazed, or a map is unknown or not given by the weights.
    """
    import napari

    layer = getattr(layer, "__wrapped__", layer)  # plugins may be handed a proxy
    session = MapSession(session_of(layer), maps)
    viewer = viewer if viewer is not None else napari.current_viewer()
    shown = viewer is not None and layer in viewer.layers
    added = [_layer_of(session, layer, name) for name in session.names]
    for each in added:
        each.visible = each is added[-1] or not shown
    if shown:
        display = MapDisplay(session, viewer)
        for number, each in enumerate(added, viewer.layers.index(layer) + 1):
            viewer.layers.insert(number, each)
        display.update()  # perhaps a block was there before
    return added


def show_maps(viewer: Any, layer: napari.layers.Image) -> None:
    """Show the maps of a dehazed layer: those that are there, which go on, or else new ones."""
    session = session_of(layer)
    there = [(each, state_of(each).maps) for each in viewer.layers]
    own = [(each, maps) for each, maps in there if maps is not None and maps.session is session]
    for _, maps in own:
        maps.restart()
    last = own[-1][0] if own else map_layer(layer, viewer=viewer)[-1]
    last.visible = True
    viewer.layers.selection.active = last


def _layer_of(session: MapSession, source: napari.layers.Image, name: str) -> napari.layers.Image:
    """Return the layer of a map, which is not in a viewer yet."""
    from napari.layers import Image as ImageLayer

    placed = {attribute: getattr(source, attribute) for attribute in PLACE}
    title = f"{source.name.replace(' dehazed', '', 1)} {TITLES.get(name, name)}"
    return ImageLayer(
        FullSizeData(list(session.levels(name)), _refused), multiscale=True, cache=False, interpolation2d="nearest",
        name=title, metadata={KEY: LayerState(maps=session)}, **SHOWN[name], **placed,
    )  # fmt: skip


def _refused() -> np.ndarray:
    raise OSError(UNSAVED_MAP)


class MapDisplay:
    """Refreshes the layers of some maps in a viewer as they are computed, and ends the work with the last of them.

    Parameters
    ----------
    session
        The work behind the layers. They may be inserted later.
    viewer
        The viewer.
    """

    def __init__(self, session: MapSession, viewer: Any) -> None:
        viewer = getattr(viewer, "__wrapped__", viewer)
        self.session, self.layers = weakref.ref(session), weakref.ref(viewer.layers)
        self.refresh_soon: Any = None
        viewer.layers.events.removed.connect(self.removed)
        weakref.finalize(session, self.stop)
        _displays.add(self)
        if hasattr(viewer, "window"):
            self.follow(viewer, session)

    def follow(self, viewer: Any, session: MapSession) -> None:
        """Follow the session's signals, until the window is closed."""
        from qtpy.QtWidgets import QApplication
        from superqt.utils import qthrottled

        window = viewer.window._qt_window
        self.refresh_soon = qthrottled(self.refresh, timeout=INTERVAL, leading=False, parent=window)
        session.updated.connect(self.updated)
        session.failed.connect(self.failed)
        application = QApplication.instance()
        assert application is not None
        for end in (window.destroyed, application.aboutToQuit):
            end.connect(self.end)

    def shown(self) -> list[napari.layers.Image]:
        """List the layers of the session."""
        layers, session = self.layers() or (), self.session()
        return [layer for layer in layers if session is not None and state_of(layer).maps is session]

    def updated(self) -> None:
        """Refresh the layers soon; called in the thread that computes."""
        call_later(self.update)

    def update(self) -> None:
        """Refresh the layers soon."""
        if self in _displays and self.refresh_soon is not None:
            self.refresh_soon()

    def refresh(self) -> None:
        """Show what is there by now."""
        for layer in self.shown():
            refresh(layer, thumbnail=True)

    def failed(self, error: Exception) -> None:
        """Show what has ended the work; called in the thread that computes."""
        call_later(self._fail, error)

    def _fail(self, error: Exception) -> None:
        from napari.utils.notifications import show_error

        for layer in self.shown()[:1]:
            show_error(f"{layer.name}: {error or 'out of memory'}")

    def removed(self, event: Any = None) -> None:
        """End the work when its last layer is gone."""
        if self in _displays and not self.shown():
            self.end()

    def stop(self) -> None:
        """Refresh no more."""
        _displays.discard(self)
        if self.refresh_soon is not None:
            self.refresh_soon.cancel()

    def end(self, event: Any = None) -> None:
        """Stop within a block."""
        self.stop()
        session = self.session()
        if session is not None:
            session.close()
