"""Calls from other threads into the window's own, the only one that may touch it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def call_later(function: Callable[..., Any], *args: Any) -> None:
    """Call a function from the window's event loop, from whatever thread; at once if there is no application.

    Never directly: the window's thread may be in the midst of painting.
    """
    from qtpy.QtCore import QCoreApplication, QTimer
    from superqt.utils import ensure_main_thread

    @ensure_main_thread
    def enqueue() -> None:
        QTimer.singleShot(0, partial(function, *args))

    if QCoreApplication.instance() is None:
        function(*args)
    else:
        enqueue()
