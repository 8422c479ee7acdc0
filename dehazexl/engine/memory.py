"""One memory policy for all passes: fewer tiles at once where memory runs short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

T = TypeVar("T")


FUSE_TILES, FUSE_SHARE = 256, 64
"""Tiles whose tokens ask at once while fusing: at most, and for each tile of a batch."""


class TilesAtOnce:
    """How many tiles are computed at once: halved, for good, whenever memory runs out.

    Parameters
    ----------
    batch
        Tiles to begin with.

    Attributes
    ----------
    batch : int
        Tiles that are encoded or decoded at once from now on.
    fuse : int
        Tiles whose tokens are fused at once from now on.
    note : str
        What the user should know, once memory ran short; empty before.
    """

    def __init__(self, batch: int) -> None:
        self.batch, self.fuse, self.note = batch, min(FUSE_TILES, FUSE_SHARE * batch), ""

    def each(
        self, count: int, compute: Callable[[slice], T], what: Literal["batch", "fuse"] = "batch"
    ) -> Iterator[tuple[slice, T]]:
        """Compute `count` tiles part by part; a part that does not fit in memory is computed again in halves.

        Parameters
        ----------
        count
            Tiles in all.
        compute
            Called with the slice of some tiles; it must leave nothing behind where it fails.
        what
            Which of the two numbers of tiles counts.

        Yields
        ------
        slice, result
            Of each part, in order.

        Raises
        ------
        MemoryError, RuntimeError
            If one tile does not fit.
        """
        start = 0
        while start < count:
            part = slice(start, min(count, start + getattr(self, what)))
            try:
                result = compute(part)
            except Exception as error:
                if not short_of_memory(error) or part.stop - part.start == 1:
                    raise
            else:
                yield part, result
                start = part.stop
                continue
            # Out of the handler: the error no longer holds the tensors of the part that failed.
            self._halve(what, part.stop - part.start)

    def _halve(self, what: str, failed: int) -> None:
        """Compute at most half of the tiles that failed; threads that fail together halve once."""
        import torch  # not before: a viewer starts without it

        fewer = min(getattr(self, what), max(1, failed // 2))
        setattr(self, what, fewer)
        self.note = f"memory was short: {fewer} tiles are computed at once from now on"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def short_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory ran out: a GPU's, or the processor's, on any system."""
    words = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in words)
