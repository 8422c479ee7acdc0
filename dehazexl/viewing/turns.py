"""Whose turn it is to compute: what was looked at last, then saves, then what makes a view at rest better."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

PAUSE = 0.02
"""Seconds between two questions whether it is one's turn."""


class Looked(Protocol):
    """Something that is looked at."""

    @property
    def hurried(self) -> bool:
        """Whether somebody waits for it."""


_saves: list[object] = []  # those under way
_first: weakref.ref[Looked] | None = None


def look(session: Looked) -> None:
    """Let a session go first from now on."""
    global _first
    _first = weakref.ref(session)


def is_turn(session: Looked | None = None) -> bool:
    """Return whether a session, or work that nobody looks at, may compute now."""
    first = None if _first is None else _first()
    return first is None or first is session or not first.hurried


@contextmanager
def saving() -> Iterator[None]:
    """Let views at rest wait for a save."""
    _saves.append(own := object())
    try:
        yield
    finally:
        _saves.remove(own)


def may_refine() -> bool:
    """Return whether a view at rest may be made better: nothing is saved."""
    return not _saves


def wait_for_turn(stopped: Callable[[], bool]) -> bool:
    """Wait until work that nobody looks at may go on; return whether it is stopped."""
    while not (ended := stopped()) and not is_turn():
        time.sleep(PAUSE)
    return ended
