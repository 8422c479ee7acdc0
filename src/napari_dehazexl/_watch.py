"""Keeps dehazed layers up to date in a viewer, and closes their session with the last of them."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from napari_dehazexl._accuracy import show_accuracy
from napari_dehazexl._levels import set_levels
from napari_dehazexl._main_thread import call_later
from napari_dehazexl._messages import report
from napari_dehazexl._state import session_of_layer

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.viewing.session import DehazeSession

INTERVAL = 100
"""Milliseconds between two refreshes, at least."""

REST = 4
"""Pause after a refresh, in times of its duration: the window has other things to do."""

_watches: set[Watch] = set()  # those at work: napari and psygnal hold only weak references to what they call


def refresh(layer: napari.layers.Image, thumbnail: bool = False) -> None:
    """Refresh the pixels of a layer, and its thumbnail if asked to, but neither extent nor highlight."""
    if thumbnail and hasattr(layer, "_reset_thumbnail_level_data"):  # since 0.9 napari caches that level
        layer._reset_thumbnail_level_data()
    layer.refresh(extent=False, thumbnail=thumbnail, highlight=False)


def replace_levels(layer: napari.layers.Image, levels: list[Any], compute: Callable[[], Any] | None = None) -> None:
    """Replace the levels of a multiscale layer by others, more or fewer; `compute` is that of `FullSizeData`."""
    if not hasattr(layer, "_reset_data_level"):  # before 0.9 napari keeps the index of the level, even if there is none
        levels = levels + levels[-1:] * (len(layer.data) - len(levels))
    set_levels(layer, levels, compute)


class Watch:
    """Refreshes the layers of a session, shows its messages, and ends it when the last of its layers is removed.

    It holds neither the viewer nor the session: both may go. A `ViewerModel` has no window; there it only ends the
    session.

    Parameters
    ----------
    viewer
        The viewer that the layers are in.
    session
        The work behind the layers. They may be inserted later.
    """

    def __init__(self, viewer: Any, session: DehazeSession) -> None:
        viewer = getattr(viewer, "__wrapped__", viewer)  # plugins are handed a proxy, which nobody else holds
        self.layers, self.session = weakref.ref(viewer.layers), weakref.ref(session)
        self.viewer = weakref.ref(viewer)
        self.thumbnail = False
        viewer.layers.events.removed.connect(self.removed)
        _watches.add(self)
        weakref.finalize(session, self.stop)
        if hasattr(viewer, "window"):
            self.render(viewer, session)

    def render(self, viewer: Any, session: DehazeSession) -> None:
        """Follow the session's signals, until the window is closed."""
        from qtpy.QtWidgets import QApplication
        from superqt.utils import qthrottled

        window = viewer.window._qt_window
        # The window owns the timer: whatever thread drops the session does not drop that.
        self.refresh_soon = qthrottled(self.refresh, timeout=INTERVAL, leading=False, parent=window)
        self.mark_soon = qthrottled(self.mark, timeout=3 * INTERVAL, leading=False, parent=window)
        session.progressed.connect(self.progressed)
        viewer.layers.events.connect(self._progressed)  # such as visibility
        session.warned.connect(self.warn)
        session.failed.connect(self.fail)
        viewer.layers.events.inserted.connect(self.inserted)
        application = QApplication.instance()
        assert application is not None
        for end in (window.destroyed, application.aboutToQuit):
            end.connect(self.end)

    def shown(self) -> list[napari.layers.Image]:
        """List the layers of the session: the one that was made for it, and duplicates."""
        layers, session = self.layers() or (), self.session()
        return [layer for layer in layers if session is not None and session_of_layer(layer) is session]

    def inserted(self, event: Any) -> None:
        """Follow what is painted of a new layer of the session."""
        self.follow(event.value)

    def follow(self, layer: Any) -> None:
        """Follow what is painted of a layer, if it is one of the session."""
        if layer not in self.shown():
            return
        renderer = getattr(layer.data[0], "renderer", None)
        if renderer is not None:
            renderer.painted.connect(self.painted)
            self.painted(True)  # perhaps it was painted just before

    def painted(self, whole: bool) -> None:
        """Refresh the layers soon; called in the thread that paints."""
        call_later(self._painted, whole)

    def _painted(self, whole: bool) -> None:
        if self in _watches:
            self.thumbnail = self.thumbnail or whole
            self.refresh_soon()

    def refresh(self) -> None:
        """Show what was painted since the last time, less often the slower the window is."""
        started = time.perf_counter()
        thumbnail, self.thumbnail = self.thumbnail, False
        for layer in self.shown():
            refresh(layer, thumbnail)
        self.refresh_soon.setTimeout(max(INTERVAL, int(1000 * REST * (time.perf_counter() - started))))

    def progressed(self) -> None:
        """Show soon whether the view is approximate; called in the thread that computes."""
        call_later(self._progressed)

    def _progressed(self, event: Any = None) -> None:
        if self in _watches:
            self.mark_soon()

    def mark(self) -> None:
        """Show on the canvas whether the view is approximate."""
        if (viewer := self.viewer()) is not None and self in _watches:
            show_accuracy(viewer)

    def unmark(self) -> None:
        """Let the canvas show what holds for the layers that are left."""
        if (viewer := self.viewer()) is not None and hasattr(viewer, "window"):
            show_accuracy(viewer)

    def warn(self, note: str) -> None:
        """Show a note of the session; called in the thread that computes."""
        call_later(self._warn, note)

    def _warn(self, note: str) -> None:
        from napari.utils.notifications import show_warning

        for layer in self.shown()[:1]:
            show_warning(f"{layer.name}: {note}")

    def fail(self, error: Exception) -> None:
        """Show what has ended the session; called in the thread that computes or reads."""
        call_later(self._fail, error)

    def _fail(self, error: Exception) -> None:
        from napari.utils.notifications import show_error

        from dehazexl.engine.memory import short_of_memory

        session, present, layers = self.session(), self.layers(), self.shown()
        if session is None or present is None or not layers:  # gone, or they read from a file by now
            return
        if session.lost and not short_of_memory(error):
            report(session.image, error)
        else:
            show_error(f"{layers[0].name}: {error or 'out of memory'}")
        if not session.lost and not session.loaded:
            for layer in layers:  # without a network they would show the hazy image for ever
                present.remove(layer)

    def removed(self, event: Any = None) -> None:
        """End the session when its last layer is gone."""
        if self in _watches and not self.shown():
            self.end()
            if hasattr(self, "refresh_soon"):
                self.refresh_soon.deleteLater()
                self.mark_soon.deleteLater()
                self.unmark()

    def stop(self) -> None:
        """Refresh no more."""
        _watches.discard(self)
        if hasattr(self, "refresh_soon"):
            self.refresh_soon.cancel()
            self.mark_soon.cancel()

    def end(self, event: Any = None) -> None:
        """Close the session and drop its results; its thread ends within a batch of tiles."""
        self.stop()
        session = self.session()
        if session is not None:
            session.close()
            session.forget()
