"""Windows of a lazy image, assembled from chunks in a cache."""

from __future__ import annotations

import math
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from dehazexl.image.grid import TILE, Window, reflect

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray

CACHE = 64 * 2**20
"""Bytes of chunks in the cache: neighboring windows share chunks."""

CACHE_ROW = 2**30
"""Bytes at most where chunks are as wide as strips: all windows of a row share those."""

REACH = 2048 + 5 * TILE
"""Pixels: side of the largest window that a pass reads, a block and the tiles that overlap it."""


class ChunkCache:
    """Reads windows of a lazy array ``(y, x, c)`` whose chunks hold all of c. Safe to use from any thread.

    dask computes whole chunks, and tiles straddle them: without the cache each chunk would be read and decompressed up
    to four times.
    """

    def __init__(self, array: da.Array) -> None:
        self.array = array
        # The start of each chunk along an axis, and the end of the last.
        self._edges = [np.cumsum([0, *sizes]) for sizes in array.chunks[:2]]
        self._chunk = lru_cache(maxsize=_count_kept(array))(_Chunk)
        self._finding = Lock()  # two threads that miss a chunk at once share it

    @classmethod
    def of(cls, array: da.Array) -> ChunkCache:
        """Return the cache of an array: all readers of that very array in this process share one."""
        with _sharing:
            pixels = _shared.get(id(array))
            if pixels is None:
                pixels = _shared[id(array)] = cls(array)
            return pixels

    def forget(self) -> None:
        """Drop all chunks."""
        self._chunk.cache_clear()

    def __reduce__(self) -> tuple[type[ChunkCache], tuple[da.Array]]:
        return ChunkCache, (self.array,)

    def read(self, window: Window) -> NDArray[Any]:
        """Return a window ``(y, x, c)``. The image is continued by reflection."""
        ys = reflect(np.arange(window.y0, window.y1), self.array.shape[0])
        xs = reflect(np.arange(window.x0, window.x1), self.array.shape[1])
        inner = Window(int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1)
        pixels = self._assemble(inner)
        if inner == window:
            return pixels
        return pixels[(ys - inner.y0)[:, None], xs - inner.x0]

    def chunks(self, window: Window) -> list[Window]:
        """List the chunks that a window touches; an empty list if they do not fit into the cache."""
        height, width = self.array.shape[:2]
        inner = window.intersection(Window(0, height, 0, width))
        rows, cols = self._touched(0, inner.y0, inner.y1), self._touched(1, inner.x0, inner.x1)
        fit = len(rows) * len(cols) <= (self._chunk.cache_info().maxsize or 0)
        return [self._place(row, col) for col in cols for row in rows] if fit else []

    def load(self, chunk: Window) -> None:
        """Read a chunk into the cache."""
        (row,), (col,) = self._touched(0, chunk.y0, chunk.y1), self._touched(1, chunk.x0, chunk.x1)
        self._find(row, col).read(self.array)

    def _find(self, row: int, col: int) -> _Chunk:
        with self._finding:
            return self._chunk(row, col)

    def _place(self, row: int, col: int) -> Window:
        (y0, y1), (x0, x1) = self._edges[0][row : row + 2], self._edges[1][col : col + 2]
        return Window(int(y0), int(y1), int(x0), int(x1))

    def _assemble(self, window: Window) -> NDArray[Any]:
        """Assemble a window within the image from chunks."""
        out = np.empty((window.height, window.width, self.array.shape[2]), self.array.dtype)
        # Columns first: the next window to the right starts with the chunks that were used last.
        for col in self._touched(1, window.x0, window.x1):
            for row in self._touched(0, window.y0, window.y1):
                chunk = self._place(row, col)
                part = chunk.intersection(window)
                out[part.to_slices(window)] = self._find(row, col).read(self.array)[part.to_slices(chunk)]
        return out

    def _touched(self, axis: int, start: int, stop: int) -> range:
        """Return the chunks along an axis that share a pixel with ``start..stop - 1``."""
        edges = self._edges[axis]
        return range(int(np.searchsorted(edges, start, "right")) - 1, int(np.searchsorted(edges, stop, "left")))


# By the id of the array, which is unique while a `ChunkCache` holds it. Names are not.
_shared: WeakValueDictionary[int, ChunkCache] = WeakValueDictionary()
_sharing = Lock()


def _count_kept(array: da.Array) -> int:
    """Return the number of chunks to cache: windows from left to right read each once. At least two."""
    tall, wide = max(array.chunks[0]), max(array.chunks[1])
    largest = tall * wide * array.shape[2] * array.dtype.itemsize
    shared = (math.ceil(REACH / tall) + 1) * math.ceil(REACH / wide)
    return max(2, CACHE // largest, min(shared, CACHE_ROW // largest))


class _Chunk:
    """A chunk that is read once, however many threads request it at the same time."""

    def __init__(self, row: int, col: int) -> None:
        self._place = row, col
        self._lock = Lock()
        self._pixels: NDArray[Any] | None = None

    def read(self, array: da.Array) -> NDArray[Any]:
        """Return the pixels ``(y, x, c)`` of the chunk."""
        with self._lock:
            if self._pixels is None:
                # The callers run in parallel already: each with a pool of its own would be too much.
                self._pixels = np.asarray(array.blocks[self._place].compute(scheduler="synchronous"))
            return self._pixels
