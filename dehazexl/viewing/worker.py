"""A thread that works step by step, and can be ended between two steps."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Generator

_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """A thread that takes the steps of a generator. It ends after the last step, or when it is closed.

    Parameters
    ----------
    steps
        Yields after each step whether there is more to do; if not, the next step is taken after `wake`.
    name
        Name of the thread.
    """

    def __init__(self, steps: Generator[bool, None, None], name: str) -> None:
        self._steps = steps
        self._closed, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; everything that the steps need must exist by now."""
        _workers.add(self)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread is alive, at work or waiting, and not closed."""
        return self._thread.is_alive() and not self._closed.is_set()

    def wake(self) -> None:
        """Have the next step taken."""
        self._woken.set()

    def close(self) -> None:
        """End the thread after the step under way."""
        self._closed.set()
        self._woken.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended; return at once in that thread itself."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                # Before the step: a `wake` during the step is for the next one.
                self._woken.clear()
                busy = next(self._steps, None)
                if busy is None:
                    return
                if not busy and not self._closed.is_set():
                    self._woken.wait()
        finally:
            self._steps.close()


def _end_all() -> None:
    """End all threads: one that computes during shutdown would crash Python."""
    for worker in (workers := list(_workers)):
        worker.close()
    for worker in workers:
        worker.join(10)


atexit.register(_end_all)
