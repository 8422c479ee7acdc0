"""Memory policy of all passes: fewer tiles at once when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


FUSE_TILES, FUSE_SHARE = 256, 64
"""Tiles whose tokens are fused at once: the maximum, and the number per tile of a batch."""

SHARE = 1 / 8
"""Share of a memory that the tokens of an image may take, and that keys and values may take: beyond it they stay on
disk, and pass through memory in blocks."""


def budget(device: torch.device) -> int:
    """Return the bytes of a device's memory that tokens, or keys and values, may take."""
    import psutil
    import torch  # imported late: a viewer starts without it

    if device.type == "cuda":
        return int(SHARE * torch.cuda.get_device_properties(device).total_memory)
    return int(SHARE * psutil.virtual_memory().total)


class TilesAtOnce:
    """Number of tiles computed at once; it is halved permanently whenever memory runs out.

    Parameters
    ----------
    batch
        Initial number of tiles.

    Attributes
    ----------
    batch : int
        Tiles that are encoded or decoded at once.
    fuse : int
        Tiles whose tokens are fused at once.
    note : str
        Message for the user after memory ran out, else empty.
    """

    def __init__(self, batch: int) -> None:
        self.batch, self.fuse, self.note = batch, min(FUSE_TILES, FUSE_SHARE * batch), ""

    def each(
        self, count: int, compute: Callable[[slice], T], what: Literal["batch", "fuse"] = "batch"
    ) -> Iterator[tuple[slice, T]]:
        """Compute `count` tiles in parts; a part that does not fit in memory is computed again in halves.

        Parameters
        ----------
        count
            Total number of tiles.
        compute
            Called with a slice of the tiles; it must have no side effects when it fails.
        what
            Which number of tiles applies.

        Yields
        ------
        slice, result
            Slice and result of each part, in order.

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
            # Outside the handler: the exception no longer references the tensors of the failed part.
            self._halve(what, part.stop - part.start)

    def _halve(self, what: str, failed: int) -> None:
        """Compute at most half of the tiles that failed; threads that fail at the same time halve once."""
        import torch  # imported late: a viewer starts without it

        fewer = min(getattr(self, what), max(1, failed // 2))
        setattr(self, what, fewer)
        self.note = f"memory ran out: {fewer} tiles are computed at once from now on"
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def short_of_memory(error: Exception) -> bool:
    """Return whether an error means that the memory of a GPU or of the host ran out, on any system."""
    words = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in words)
