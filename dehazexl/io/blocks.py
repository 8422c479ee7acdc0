"""Blocks of a lazy image: each computed once, in order, a few at a time."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    import dask.array as da

Block = tuple[int, int, NDArray[Any]]  # row and column of its first pixel, pixels (y, x, c)


def computed(
    array: da.Array, at_once: int, wanted: Callable[[int, int, int, int], bool] | None = None
) -> Generator[Block, None, None]:
    """Compute the blocks of an image in row-major order, a few ahead of the one that is asked for.

    Parameters
    ----------
    array
        The image ``(y, x, c)``, all channels in one block. Each block is computed once.
    at_once
        Blocks under way at the same time, besides the one that was handed out.
    wanted
        Tells of a block's row, column, height and width whether it is to be computed; None computes all.

    Yields
    ------
    Block
        Row, column and pixels. Closing the generator waits for the blocks under way and computes no other.
    """
    from dask.base import optimize

    # Once for all blocks: else each would go through the whole graph, seconds a block for large pictures.
    (array,) = optimize(array)
    pool = ThreadPoolExecutor(at_once)
    waiting: deque[tuple[int, int, Future[Any]]] = deque()
    try:
        for y, x, block in _lazy(array):
            if wanted is not None and not wanted(y, x, *block.shape[:2]):
                continue
            waiting.append((y, x, pool.submit(block.compute)))
            if len(waiting) > at_once:
                y, x, future = waiting.popleft()
                yield y, x, future.result()
        while waiting:
            y, x, future = waiting.popleft()
            yield y, x, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _lazy(array: da.Array) -> Iterator[tuple[int, int, da.Array]]:
    rows, cols, _ = array.chunks
    y = 0
    for i, height in enumerate(rows):
        x = 0
        for j, width in enumerate(cols):
            yield y, x, array.blocks[i, j]
            x += width
        y += height
