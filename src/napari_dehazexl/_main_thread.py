"""Calls from other threads into the window's own, the only one that may touch it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, partial
from typing import Any

_creating = threading.Lock()


def call_later(function: Callable[..., Any], *args: Any) -> None:
    """Call a function from the window's event loop, from whatever thread; at once if there is no application.

    Never directly: the window's thread may be in the midst of painting.
    """
    from qtpy.QtCore import QCoreApplication

    if QCoreApplication.instance() is None:
        function(*args)
        return
    with _creating:
        caller = _caller()
    caller.called.emit(partial(function, *args))


@cache
def _caller() -> Any:
    """Return the object that makes the calls. It lives in the window's thread, for as long as the process.

    superqt's ``ensure_main_thread`` makes an object for each call. If the calling thread is the last to hold it, Qt
    crashes; three threads that call often need seconds for that.
    """
    from qtpy.QtCore import QCoreApplication, QObject, Qt, Signal  # type: ignore[attr-defined]

    class Caller(QObject):
        called = Signal(object)

        def __init__(self) -> None:
            super().__init__()
            application = QCoreApplication.instance()
            assert application is not None
            self.moveToThread(application.thread())
            self.called.connect(self.call, Qt.ConnectionType.QueuedConnection)

        def call(self, function: Callable[[], Any]) -> None:
            function()

    return Caller()
