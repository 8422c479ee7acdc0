"""Stages of a run, from the pixels of an image to its fused tokens."""

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
        Number of tiles; fusing counts each tile once per layer.
    steps
        Iterator that does the work; yields the number of tiles done since the last step.
    """

    name: str
    total: int
    steps: Iterator[int]


class Cancelled(Exception):
    """Raised when a run is cancelled."""


class Cancel:
    """Cancellation of a run, for any thread.

    Parameters
    ----------
    wanted
        Called after each batch, in several threads; returns True to cancel.
    """

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self._wanted = wanted

    def check(self, _: int = 0) -> None:
        """Raise `Cancelled` if the run is cancelled."""
        if self._wanted():
            raise Cancelled


def stages(job: Job, store: TokenStore, cancel: Cancel | None = None) -> Iterator[Stage]:
    """Yield the stages that come before decoding; iterate over the steps of each before the next.

    The run may be left or cancelled after any step; the store then contains the finished part.
    """
    for name, work, times in (("encode", encode, 1), ("fuse", fuse, len(job.model.context.layers))):
        yield Stage(name, job.grid.count * times, _cancelable(work(job, store), cancel))


def _cancelable(steps: Iterator[int], cancel: Cancel | None) -> Iterator[int]:
    """Yield from `steps` until the run is cancelled."""
    if cancel is not None:
        cancel.check()
    for done in steps:
        if cancel is not None:
            cancel.check()
        yield done
