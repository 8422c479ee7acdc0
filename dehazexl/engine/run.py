"""A run: one image, from its pixels to its fused tokens, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from dehazexl.engine.encode import encode
from dehazexl.engine.fuse import fuse

if TYPE_CHECKING:
    from dehazexl.engine.job import Job
    from dehazexl.engine.tokens import TokenStore


class Stage(NamedTuple):
    """A stage of a run.

    Attributes
    ----------
    name
        ``"encode"`` or ``"fuse"``.
    total
        Tiles that it consists of.
    steps
        Yields the tiles done since the last step; the work is done as it is asked.
    """

    name: str
    total: int
    steps: Iterator[int]


class Cancelled(Exception):
    """A run was cancelled."""


class Cancel:
    """Whether a run is to end, for any thread.

    Parameters
    ----------
    wanted
        Asked after each batch, from several threads.
    """

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted

    def check(self, _: int = 0) -> None:
        """Raise `Cancelled` if the run is to end."""
        if self._wanted():
            raise Cancelled


def stages(job: Job, store: TokenStore, cancel: Cancel | None = None) -> Iterator[Stage]:
    """Yield the stages before any pixel can be decoded; each has to be worked through before the next.

    After each step the run may be left, or cancelled; the store then holds what was done.
    """
    for name, work, times in (("encode", encode, 1), ("fuse", fuse, len(job.model.context.layers))):
        yield Stage(name, job.grid.count * times, _cancelable(work(job, store), cancel))


def _cancelable(steps: Iterator[int], cancel: Cancel | None) -> Iterator[int]:
    """Yield from steps until the run is cancelled."""
    for done in steps:
        if cancel is not None:
            cancel.check()
        yield done
