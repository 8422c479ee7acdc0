"""Progress bars on the console, and handling of Ctrl-C between batches."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(stage: str, total: int, keep: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, with tiles per second and the remaining time.

    Parameters
    ----------
    stage
        Name of the stage.
    total
        Number of tiles.
    keep
        Keep the bar on the screen when the stage is complete.

    Yields
    ------
    callable
        Function of the number of tiles completed since the last call, for any thread. After Ctrl-C it raises
        KeyboardInterrupt in each calling thread, which stops all of them.
    """
    from tqdm import tqdm

    # In a log file, such as that of a cluster job, a line every half minute is enough.
    interval = 0.1 if sys.stderr.isatty() else 30
    lock = threading.Lock()
    # The handler is installed before the bar is visible.
    with (
        interruptible() as interrupted,
        tqdm(total=total, desc=f"{stage:6}", unit="tile", leave=keep, mininterval=interval) as shown,
    ):

        def on_progress(done: int) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            with lock:
                shown.update(done)

        yield on_progress


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, for worker threads, which do not receive KeyboardInterrupt."""
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
