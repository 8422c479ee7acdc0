"""Saves of the widget, one file at a time, with one bar over all of them and their stages."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.utils import progress as activity
from napari.utils.notifications import show_error, show_info, show_warning

from dehazexl.viewing.device_memory import in_use
from dehazexl.viewing.model_info import ModelInfo
from napari_dehazexl._estimate import Clock
from napari_dehazexl._save import Progress, read_from_file, tokens_of
from napari_dehazexl._save_worker import SaveResult, Saving, in_thread
from napari_dehazexl._selection import dehazed_layers

if TYPE_CHECKING:
    from napari_dehazexl._items import SaveItem
    from napari_dehazexl._request import DehazeRequest
    from napari_dehazexl._settings import Settings

TICK = 300
"""Milliseconds between two changes of the bar."""

MOST = 5
"""Errors that are shown at the end, at most."""


class Saver:
    """Saves for a widget.

    Parameters
    ----------
    viewer
        The viewer with the layers; its status line shows the progress, too.
    bar
        The progress bar.
    settings
        Where the speed is remembered.
    """

    def __init__(self, viewer: Any, bar: Any, settings: Settings) -> None:
        from qtpy.QtCore import QTimer

        self.viewer, self.bar, self.settings = viewer, bar, settings
        self.worker: Saving | None = None
        self.latest: Progress | None = None
        self._cancelled, self._gone = threading.Event(), False
        self._timer = QTimer(bar.native)
        self._timer.setInterval(TICK)
        self._timer.timeout.connect(self._tick)

    def start(self, files: Sequence[tuple[SaveItem, Path]], model: ModelInfo | None, saved: Callable[[], None]) -> None:
        """Save images, one after the other; files at the paths are replaced. `saved` is called after each.

        An image that fails does not end the others.
        """
        self._waiting, self._count, self._done = deque(files), len(files), 0
        self._model, self._saved = model, saved
        self._failed: list[str] = []
        self._cancelled = threading.Event()
        title = f"saving {files[0][1].name}" if len(files) == 1 else f"saving {len(files)} files"
        self._activity = activity(total=100, desc=title)
        self.bar.value, self.bar.label, self.bar.visible = 0, "starting", True
        self._timer.start()
        self._next()

    def _next(self) -> None:
        """Start the save of the next image."""
        item, path = self._waiting.popleft()
        self.latest, self._item = None, item
        self._clock = Clock(complete=not tokens_of(path).exists())
        title = f"saving {path.name} (closing stops it; saving it again continues)"
        self.worker = in_thread(partial(item.steps, path), self._cancelled.is_set, title)
        self.worker.yielded.connect(self._while_here(self._show))
        self.worker.returned.connect(self._while_here(partial(self._returned, item, path)))
        self.worker.finished.connect(self._while_here(self._end))
        self.worker.start()

    def cancel(self) -> bool:
        """Stop the save within a batch of tiles; return whether there was one."""
        self._cancelled.set()
        return self.worker is not None

    def leave(self) -> None:
        """Stop the save, and show nothing more: the window is gone."""
        self._gone = True
        self._cancelled.set()

    def _while_here(self, slot: Callable[..., None]) -> Callable[..., None]:
        """Return a slot that does nothing once the window is gone."""
        return lambda *values: None if self._gone else slot(*values)

    def _show(self, progress: Progress) -> None:
        self.latest = progress
        self._clock.see(progress)
        if progress.note:
            show_warning(progress.note)

    def _tick(self) -> None:
        """Show how far the save is: tiles are counted between two steps, too."""
        latest = self.latest
        if latest is None or self._gone:
            return
        share = latest.share if latest.meter is None or latest.share == 1 else latest.meter.fraction
        text = latest.stage if latest.meter is None else str(latest.meter)
        if self._count > 1:  # the time left is that of one of them
            number = self._count - len(self._waiting)
            share, text = (number - 1 + share) / self._count, f"file {number} of {self._count}: {text}"
        self.bar.value = max(self.bar.value, int(100 * share))
        self.bar.native.setFormat(f"%p%  {text}")
        memory = in_use(self._item.request.choices.device)
        self.viewer.status = f"Saving: {self.bar.value} %, {text}{memory and '; '}{memory}"
        self._activity.update(self.bar.value - self._activity.n)

    def _returned(self, item: SaveItem, path: Path, result: SaveResult) -> None:
        """Let the layers of the same request read from the file; or keep the error, and how to continue."""
        if result.complete:
            self._done += 1
            self._measure(item.request)
            for layer, session in dehazed_layers(self.viewer):
                if item.request.fits(session) and session.strength == item.request.choices.strength:
                    read_from_file(layer, path)
            if self._count == 1:
                show_info(f"{path.name} is complete")
            self._saved()
            return
        kept = tokens_of(path)
        rest = f"; saving it again with the same settings continues from {kept}" if kept.exists() else ""
        if result.error is None:
            show_info(f"{path.name} was stopped{rest}")
        else:
            self._failed.append(f"{path.name}: {result.error or type(result.error).__name__}{rest}")

    def _measure(self, request: DehazeRequest) -> None:
        """Remember the speed of a save."""
        if self._model is not None and (seconds := self._clock.seconds()) is not None:
            self.settings.measured(request.network, seconds / request.count_tiles(self._model), replace=True)

    def _end(self) -> None:
        """Go on with the next image; after the last one, say what has failed."""
        if self._waiting and not self._cancelled.is_set():
            self._next()
            return
        self._timer.stop()
        self._activity.close()
        self.worker = None
        self.bar.visible = False
        self.viewer.status = "Ready"
        if self._count > 1:
            show_info(f"{self._done} of {self._count} files are complete")
        if self._failed:
            show_error("\n".join([*self._failed[:MOST], *(["..."] if self._failed[MOST:] else [])]))
