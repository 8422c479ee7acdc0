"""Saves of the widget, one at a time, with one bar over all stages."""

from __future__ import annotations

import threading
from collections.abc import Callable
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
    from napari_dehazexl._request import DehazeRequest
    from napari_dehazexl._settings import Settings

TICK = 300
"""Milliseconds between two changes of the bar."""


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

    def start(self, request: DehazeRequest, path: Path, model: ModelInfo | None, saved: Callable[[], None]) -> None:
        """Start a save; a file at the path is replaced. `saved` is called when it is complete."""
        self._cancelled, self.latest, self._device = threading.Event(), None, request.choices.device
        self._clock = Clock(complete=not tokens_of(path).exists())
        title = f"saving {path.name} (closing stops it; saving it again continues)"
        self.worker = in_thread(partial(request.steps, path), self._cancelled.is_set, title)
        self.worker.yielded.connect(self._while_here(self._show))
        self.worker.returned.connect(self._while_here(partial(self._returned, request, path, model, saved)))
        self.worker.finished.connect(self._while_here(self._end))
        self._activity = activity(total=100, desc=f"saving {path.name}")
        self.bar.value, self.bar.label, self.bar.visible = 0, "starting", True
        self._timer.start()
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
        self.bar.value = max(self.bar.value, int(100 * share))
        self.bar.native.setFormat(f"%p%  {text}")
        memory = in_use(self._device)
        self.viewer.status = f"Saving: {self.bar.value} %, {text}{memory and '; '}{memory}"
        self._activity.update(self.bar.value - self._activity.n)

    def _returned(
        self, request: DehazeRequest, path: Path, model: ModelInfo | None, saved: Callable[[], None], result: SaveResult
    ) -> None:
        """Let the layers of the same request read from the file; or show the error, and how to continue."""
        if result.complete:
            if (seconds := self._clock.seconds()) is not None and model is not None:
                self.settings.measured(request.network, seconds / request.count_tiles(model), replace=True)
            for layer, session in dehazed_layers(self.viewer):
                if request.fits(session) and session.strength == request.choices.strength:
                    read_from_file(layer, path)
            show_info(f"{path.name} is complete")
            saved()
            return
        kept = tokens_of(path)
        rest = f"; saving it again with the same settings continues from {kept}" if kept.exists() else ""
        if result.error is None:
            show_info(f"{path.name} was stopped{rest}")
        else:
            show_error(f"{path.name}: {result.error or type(result.error).__name__}{rest}")

    def _end(self) -> None:
        self._timer.stop()
        self._activity.close()
        self.worker = None
        self.bar.visible = False
        self.viewer.status = "Ready"
