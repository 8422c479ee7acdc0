"""Keeps a dehazed layer up to date in its window, and ends its work with it."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

from napari_dehazexl._reader import tell_unreadable
from napari_dehazexl._state import state_of

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.viewing.renderer import Renderer
    from dehazexl.viewing.session import DehazeSession

INTERVAL = 100  # milliseconds between looks at what has become better
AFTER_ERROR = 10_000  # milliseconds: an error that stays is not to be reported at each look

_watches: set[Watch] = set()  # those at work: napari and Qt hold only weak references to what they call


def refresh(layer: napari.layers.Image, thumbnail: bool = False) -> None:
    """Show a layer's pixels anew, and its thumbnail if asked to; its extent and highlight are as they were."""
    if thumbnail and hasattr(layer, "_reset_thumbnail_level_data"):  # since 0.9 napari keeps the level that it shows
        layer._reset_thumbnail_level_data()
    layer.refresh(extent=False, thumbnail=thumbnail, highlight=False)


def replace_levels(layer: napari.layers.Image, levels: list[Any]) -> None:
    """Give a multiscale layer other levels, more or fewer."""
    if not hasattr(layer, "_reset_data_level"):  # before 0.9 napari shows the number that it showed, there or not
        levels = levels + levels[-1:] * (len(layer.data) - len(levels))
    layer.data = levels


class Watch:
    """Shows what has become better in a dehazed picture, says once what went wrong, and ends the work with its layers.

    It looks now and then, in the window's own thread, so that the thread that computes never touches the window. It
    holds neither the window nor the picture: both may go.
    """

    def __init__(self, viewer: Any, live: DehazeSession) -> None:
        viewer = getattr(viewer, "__wrapped__", viewer)  # plugins are handed a proxy, which nobody else holds
        self.layers, self.live = weakref.ref(viewer.layers), weakref.ref(live)
        self.seen: weakref.WeakKeyDictionary[Renderer, tuple[int, int]] = weakref.WeakKeyDictionary()
        self.notes = 0
        self.error: Exception | None = None
        viewer.layers.events.removed.connect(self.removed)
        _watches.add(self)
        if hasattr(viewer, "window"):
            self.render(viewer.window._qt_window)
        else:  # a ViewerModel; the timer must not go in whatever thread drops the picture, nothing else minds
            weakref.finalize(live, _watches.discard, self)

    def render(self, window: Any) -> None:
        """Look now and then, until the window is closed."""
        from qtpy.QtCore import QTimer
        from qtpy.QtWidgets import QApplication

        self.timer = QTimer()
        self.timer.setSingleShot(True)
        self.timer.timeout.connect(self.look)
        self.timer.start(INTERVAL)
        application = QApplication.instance()
        assert application is not None
        for end in (window.destroyed, application.aboutToQuit):
            end.connect(self.end)

    def shown(self) -> list[napari.layers.Image]:
        """List the layers that show the picture: its own, and duplicates."""
        layers, live = self.layers() or (), self.live()
        return [layer for layer in layers if live is not None and state_of(layer).session is live]

    def look(self) -> None:
        """Show what is new, and look again: the slower the window, the later."""
        started = time.perf_counter()
        try:
            again = self.update()
        except Exception:
            self.timer.start(AFTER_ERROR)  # it is not to be the last look
            raise
        if again:
            self.timer.start(max(INTERVAL, int(4000 * (time.perf_counter() - started))))

    def update(self) -> bool:
        """Show what is new, and tell whether there will be more."""
        live, layers = self.live(), self.shown()
        if live is None or not layers:  # gone, or reads from a file by now
            _watches.discard(self)
            return False
        for layer in layers:
            self.renew(layer)
        self.tell(live, layers[0].name)
        present = self.layers()
        if present is not None and live.error is not None and not live.lost and not live.loaded:
            for layer in layers:  # without a network they would show the hazy picture for ever
                present.remove(layer)
            return False
        return True

    def renew(self, layer: napari.layers.Image) -> None:
        """Show what was painted of a layer since the last look, and have it painted better if it can be."""
        painter: Renderer | None = getattr(layer.data[0], "painter", None)
        if painter is None:
            return
        painter.paint()
        now, before = (painter.version, painter.renewed), self.seen.get(painter, (0, -1))
        if now != before:
            self.seen[painter] = now
            refresh(layer, thumbnail=now[1] != before[1])

    def tell(self, live: DehazeSession, name: str) -> None:
        """Report what the user should know, each thing once."""
        from napari.utils.notifications import show_error, show_warning

        from dehazexl.engine.memory import short_of_memory

        for note in live.notes[self.notes :]:
            show_warning(f"{name}: {note}")
        self.notes = len(live.notes)
        if live.error is None or live.error is self.error:
            return
        self.error = live.error
        if live.lost and not short_of_memory(live.error):
            tell_unreadable(live.image, live.error)
        else:
            show_error(f"{name}: {live.error or 'out of memory'}")

    def removed(self, event: Any = None) -> None:
        """End the work when its last layer is gone."""
        if not self.shown():
            self.end()

    def end(self, event: Any = None) -> None:
        """End the work and drop what was computed; the thread is gone within a batch of tiles."""
        _watches.discard(self)
        if hasattr(self, "timer"):
            self.timer.stop()
        live = self.live()
        if live is not None:
            live.close()
            live.forget()
