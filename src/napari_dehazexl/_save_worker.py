"""A save in a thread of its own, so that the window stays responsive."""

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
    """End of a save: complete, with an error, or stopped (neither)."""

    complete: bool = False
    error: Exception | None = None


class Named:
    """A function by the name that napari shows when its window is closed while the function runs."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __str__(self) -> str:
        return self.name


class Saving(GeneratorWorker):  # type: ignore[misc]
    """A worker that lets its steps stop when it quits; those of napari would leave a file half written."""

    def __init__(self, named: Named, *args: Any, **kwargs: Any) -> None:
        super().__init__(named.function, *args, **kwargs)
        self.quitting = threading.Event()

    def quit(self) -> None:
        """Ask the steps to stop. napari calls it when it closes."""
        self.quitting.set()


def in_thread(make: Callable[[Callable[[], bool]], Steps], cancelled: Callable[[], bool], title: str) -> Saving:
    """Return a worker, not started yet, that takes the steps of a save.

    Parameters
    ----------
    make
        Returns the steps, given a function that returns whether to stop.
    cancelled
        Returns whether the user has cancelled the save.
    title
        What is done, in words for the user.

    Returns
    -------
    Saving
        It yields each `Progress` and returns a `SaveResult`.
    """

    def work() -> Generator[Progress, None, SaveResult]:
        try:
            return SaveResult((yield from make(lambda: cancelled() or worker.quitting.is_set())))
        except Exception as error:
            expected(error, "saving")
            return SaveResult(error=error)

    worker: Saving = create_worker(Named(title, work), _worker_class=Saving)
    return worker
