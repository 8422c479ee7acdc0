"""One memory policy for all passes: fewer tiles at once where memory runs short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class TilesAtOnce:
    """How many tiles are computed at once: halved, for good, whenever memory runs out.

    Parameters
    ----------
    batch
        Tiles to begin with.

    Attributes
    ----------
    batch : int
        Tiles that are computed at once from now on.
    note : str
        What the user should know, once memory ran short; empty before.
    """

    def __init__(self, batch: int) -> None:
        self.batch, self.note = batch, ""

    def each(
        self, count: int, compute: Callable[[slice], T], share: int = 1, most: int | None = None
    ) -> Iterator[tuple[slice, T]]:
        """Compute `count` tiles part by part; a part that does not fit in memory is computed again in halves.

        Parameters
        ----------
        count
            Tiles in all.
        compute
            Called with the slice of some tiles; it must leave nothing behind where it fails.
        share
            Tiles of a part for each tile of a batch.
        most
            Tiles of a part at most; None for no limit.

        Yields
        ------
        slice, result
            Of each part, in order.

        Raises
        ------
        MemoryError, RuntimeError
            If a batch of one tile does not fit.
        """
        start = 0
        while start < count:
            size = self.batch * share if most is None else min(most, self.batch * share)
            part = slice(start, min(count, start + size))
            try:
                result = compute(part)
            except Exception as error:
                if not short_of_memory(error) or self.batch == 1:
                    raise
                self._halve()
                continue
            yield part, result
            start = part.stop

    def _halve(self) -> None:
        self.batch = max(1, self.batch // 2)
        self.note = f"memory was short: {self.batch} tiles are computed at once from now on"
        import torch  # not before: a viewer starts without it

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def short_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory ran out: a GPU's, or the processor's, on any system."""
    words = ("out of memory", "allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in words)
