"""Progress bars on the console, and handling of Ctrl-C and other signals between batches."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


def tell(text: str) -> None:
    """Print a message in one line on stderr."""
    print("dehazexl:", " ".join(text.split()), file=sys.stderr)


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
        interruptible("stopping after this batch") as interrupted,
        tqdm(total=total, desc=f"{stage:6}", unit="tile", leave=keep, mininterval=interval, delay=1e-9) as shown,
    ):
        # Shown only from here on, where its line is ended whenever a signal comes.
        shown.delay = 0
        shown.refresh()

        def on_progress(done: int) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt
            with lock:
                shown.update(done)

        yield on_progress


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end the program: Ctrl-C, `kill` and batch systems, and a terminal that closes."""


class Interruption(threading.Event):
    """Event that is set by a signal.

    Attributes
    ----------
    signum : int or None
        Number of the signal.
    """

    signum: int | None = None


@contextmanager
def interruptible(answer: str = "") -> Iterator[Interruption]:
    """Yield an event that `SIGNALS` set, for worker threads, which do not receive KeyboardInterrupt.

    The main thread receives KeyboardInterrupt, whatever the signal. The first one is answered on stderr at once.
    """
    event = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    # A signal that is ignored stays ignored, as SIGHUP is under nohup.
    before = {signum: handler for signum in SIGNALS if (handler := signal.getsignal(signum)) is not signal.SIG_IGN}

    def stop(signum: int, frame: FrameType | None) -> None:
        if answer and not event.is_set():
            # Python's own stream may be in the middle of a write; it may be closed, too.
            with suppress(OSError):
                os.write(2, f"\ndehazexl: {answer}\n".encode())
        event.signum = signum
        event.set()
        outer = before[signal.Signals(signum)]
        if callable(outer):  # that of an interruptible around this one, or Python's own
            outer(signum, frame)
        raise KeyboardInterrupt

    for signum in before:
        signal.signal(signum, stop)
    try:
        yield event
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
