"""Computation of the blocks of a lazy image: each once, in order, several at a time."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    import dask.array as da

Block = tuple[int, int, NDArray[Any]]  # row and column of the first pixel, pixels (y, x, c)


def computed(
    array: da.Array, at_once: int, wanted: Callable[[int, int, int, int], bool] | None = None
) -> Generator[Block, None, None]:
    """Compute the blocks of an image in row-major order, several ahead of the consumer.

    Parameters
    ----------
    array
        The image ``(y, x, c)``, with all channels in one block. Each block is computed once.
    at_once
        Number of blocks computed at the same time, in addition to the one that was yielded last.
    wanted
        Called with row, column, height and width of each block; returns whether to compute it. None computes all.

    Yields
    ------
    Block
        Row and column of the first pixel, and pixels. Closing the generator waits for the running blocks and
        cancels the others.
    """
    from dask.base import optimize

    # Optimize once for all blocks; otherwise each would traverse the whole graph, seconds per block for large images.
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
