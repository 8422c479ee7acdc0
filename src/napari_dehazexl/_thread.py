"""A save in a thread of its own, so that the window lives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari.qt.threading import GeneratorWorker, create_worker

from dehazexl.viewing.errors import expected

if TYPE_CHECKING:
    from napari_dehazexl._save import Progress, Steps


@dataclass(frozen=True)
class SaveResult:
    """How a save ended: complete, stopped (neither), or with an error."""

    complete: bool = False
    error: Exception | None = None


class Saving(GeneratorWorker):  # type: ignore[misc]
    """A worker that ends its steps when it is to quit: napari's leave them where they are, a file half written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.quitting = threading.Event()

    def quit(self) -> None:
        """Ask the steps to stop; napari does so when it closes."""
        self.quitting.set()


def in_thread(make: Callable[[Callable[[], bool]], Steps], cancelled: Callable[[], bool]) -> Saving:
    """Return a worker, not started yet, that goes through the steps of a save.

    Parameters
    ----------
    make
        Returns the steps; is given what tells them to stop.
    cancelled
        Whether the user wants no more of it.

    Returns
    -------
    Saving
        It yields each `Progress`, and returns an `SaveResult`.
    """

    def work() -> Generator[Progress, None, SaveResult]:
        try:
            return SaveResult((yield from make(lambda: cancelled() or worker.quitting.is_set())))
        except Exception as error:
            expected(error, "saving")
            return SaveResult(error=error)

    worker: Saving = create_worker(work, _worker_class=Saving)
    return worker
