"""Bars on the console for long work, and Ctrl-C that is obeyed at the next batch."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(stage: str, total: int, keep: bool = True) -> Iterator[Callable[[int], None]]:
    """Show how far a stage is, with tiles a second and the time left, on stderr.

    Parameters
    ----------
    stage
        Its name.
    total
        Tiles that it consists of.
    keep
        Leave the full bar standing.

    Yields
    ------
    callable
        To be called with the tiles done since the last call, from any thread. After Ctrl-C it raises
        KeyboardInterrupt in each thread that calls it, so that none works on for nobody.
    """
    from tqdm import tqdm

    # Where no one watches, as in the log of a cluster job, a line every half minute is enough.
    interval = 0.1 if sys.stderr.isatty() else 30
    lock = threading.Lock()
    # Ctrl-C is taken care of before the bar shows.
    with (
        interruptible() as interrupted,
        tqdm(total=total, desc=f"{stage:6}", unit="tile", leave=keep, mininterval=interval) as shown,
    ):

        def tell(done: int) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            with lock:
                shown.update(done)

        yield tell


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C sets, for threads, which do not get the KeyboardInterrupt of the main one."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def stop(signum: int, frame: object) -> None:
        event.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
