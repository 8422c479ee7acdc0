"""A thread that works step by step, and can be ended between two steps."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Generator

_workers: weakref.WeakSet[Worker] = weakref.WeakSet()


class Worker:
    """A thread that takes the steps of a generator; once started, it ends after the last, or when it is closed.

    Parameters
    ----------
    steps
        Yields after each step whether there is more to do; if not, the next is taken when `wake` is called.
    name
        Of the thread.
    """

    def __init__(self, steps: Generator[bool, None, None], name: str) -> None:
        self._steps = steps
        self._closed, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; what the steps need must be there by now."""
        _workers.add(self)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it is there, at work or waiting, and has not been closed."""
        return self._thread.is_alive() and not self._closed.is_set()

    def wake(self) -> None:
        """Say that there is something to do."""
        self._woken.set()

    def close(self) -> None:
        """End the work after the step under way."""
        self._closed.set()
        self._woken.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended; not from itself."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                # Before the step looks for something to do: what comes later is seen by the next one.
                self._woken.clear()
                busy = next(self._steps, None)
                if busy is None:
                    return
                if not busy and not self._closed.is_set():
                    self._woken.wait()
        finally:
            self._steps.close()


def _end_all() -> None:
    """End all threads: one that computes while Python shuts down would crash it."""
    for worker in (workers := list(_workers)):
        worker.close()
    for worker in workers:
        worker.join(10)


atexit.register(_end_all)
