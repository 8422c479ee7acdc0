"""Search for the border of one value around an image."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

from dehazexl.image.border import Border
from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import Window
from dehazexl.image.image import colors
from dehazexl.image.nodata import nodata_as_dtype

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray

    from dehazexl.image.image import Image

ENOUGH = 1024  # pixels along the longer side of the level in which borders are searched, at least
CELLS = 2048  # cells along the longer side of the map of a border, at most
BLOCK = 64  # cells along a side of a block that is read at once, at least
MOST = 2**32  # pixels that are read at most: a border without overviews that is larger is not found
LEAST = 0.004
"""Share of the image that a border covers at least; less is a few dark or saturated pixels at the edge."""


def find_border(image: Image) -> Image:
    """Return the image with the border of one value that touches its edges, and a line about it, if there is one.

    Only black, white and the usual marks of missing data count, and only where no metadata declares them. A level of
    about `ENOUGH` pixels is searched, the finest one if there are no overviews: some pixels at its edges; if one has
    such a value, the blocks at its edges; then those that the border extends into. What was found is kept for the next
    time.
    """
    key = image.levels[0].name, len(image.levels), image.rgb, image.nodata, image.bits
    with _lock:
        known = _found.get(key, _UNKNOWN)
    border = _search(image) if known is _UNKNOWN else known
    with _lock:
        _found[key] = border
    if border is None:
        return image
    note = (
        f"a border of {border.value:g} around the image ({border.share:.0%}) is left as it is and does not count; "
        "--border keep treats it as part of the image"
    )
    return replace(image, border=border, notes=(*image.notes, note))


_UNKNOWN = object()
_found: LRUCache[Any, Any] = LRUCache(16)
_lock = threading.Lock()


def _search(image: Image) -> Border | None:
    """Return the border of an image, the largest of several."""
    search = _Search(image, next((a for a in reversed(image.levels) if max(a.shape[:2]) >= ENOUGH), image.levels[0]))
    seen = search.at_edges()
    values = [value for value in _candidates(image) if (seen == value).all(axis=1).any()]
    found = [border for value in values if (border := search.border(value)) is not None]
    return max(found, key=lambda border: border.share, default=None)


def _candidates(image: Image) -> list[float]:
    """Return the values of borders: black, white, and the usual marks of missing data."""
    dtype = image.levels[0].dtype
    values = {0.0, 65535.0, -9999.0}
    values |= {1.0, 255.0} if dtype.kind == "f" else {float(np.iinfo(dtype).max), float(np.iinfo(dtype).min)}
    values |= set() if image.bits is None else {2.0**image.bits - 1}
    held = {nodata_as_dtype(value, dtype) for value in values} - {nodata_as_dtype(image.nodata, dtype)}
    return sorted(value for value in held if value is not None)


@dataclass(frozen=True)
class _Search:
    """Search for borders in a level of an image. Holes of the file have its fill value, and are not read."""

    image: Image
    level: da.Array

    @cached_property
    def pixels(self) -> ChunkCache:
        return ChunkCache.of(self.level)

    def at_edges(self) -> NDArray[Any]:
        """Return the colors ``(n, 3)`` of the corners, and of pixels between them along the edges."""
        height, width, _ = self.level.shape
        rows, cols = (sorted({(size - 1) * step // 4 for step in range(5)}) for size in (height, width))
        places = [(y, x) for y in rows for x in cols if y in (0, height - 1) or x in (0, width - 1)]
        found = [self._read(Window(y, y + 1, x, x + 1)) for y, x in places]
        return np.concatenate(found).reshape(-1, 3)

    def border(self, value: float) -> Border | None:
        """Return the border of a value; None if there is none, or it is too small to be one."""
        height, width, _ = self.level.shape
        side = math.ceil(max(height, width) / CELLS)
        down, across = (max(BLOCK, math.ceil(sizes[0] / side)) for sizes in self.level.chunks[:2])
        cells = np.zeros((math.ceil(height / side), math.ceil(width / side)), bool)
        unread = np.ones((math.ceil(cells.shape[0] / down), math.ceil(cells.shape[1] / across)), bool)
        wanted = _frame(*unread.shape)
        room = MOST
        while (blocks := unread & wanted).any():
            for row, col in np.argwhere(blocks) * (down, across):
                block = Window(row, row + down, col, col + across)
                full = self._full_cells(block, side, value)
                cells[block.to_slices(_ORIGIN)] = full
                room -= full.size * side**2
                if room < 0:
                    return None
            unread &= ~blocks
            runs = _from_edges(cells)
            if not _is_frame(runs, self.image, value):
                return None
            wanted = _each(np.logical_or, _widened(runs), down, across)
        share = float(runs.mean())
        if not LEAST <= share <= 0.98:
            return None
        return Border(value, share, (side / height, side / width), _widened(runs))

    def _full_cells(self, block: Window, side: int, value: float) -> NDArray[np.bool_]:
        """Return the cells of `side` pixels of a block of cells: True where all their pixels have a value."""
        height, width, _ = self.level.shape
        y0, y1, x0, x1 = (side * edge for edge in (block.y0, block.y1, block.x0, block.x1))
        window = Window(y0, y1, x0, x1).intersection(Window(0, height, 0, width))
        same = (self._read(window) == value).all(axis=-1)
        if same.shape != (window.height, window.width):  # a hole
            return np.full((math.ceil(window.height / side), math.ceil(window.width / side)), same.item())
        return _each(np.logical_and, same, side, side)

    def _read(self, window: Window) -> NDArray[Any]:
        """Return the colors ``(y, x, 3)`` of a window, or the one color ``(1, 1, 3)`` of a hole."""
        hole = self.level is self.image.levels[0] and self.image.is_missing(window)
        return colors(self.image.fill(1, 1) if hole else self.pixels.read(window), self.image)


_ORIGIN = Window(0, 0, 0, 0)


def _frame(rows: int, cols: int) -> NDArray[np.bool_]:
    """Return the blocks ``(rows, cols)`` at the edges."""
    frame = np.ones((rows, cols), bool)
    frame[1:-1, 1:-1] = False
    return frame


def _each(combine: np.ufunc, mask: NDArray[np.bool_], down: int, across: int) -> NDArray[np.bool_]:
    """Combine each rectangle of `down` x `across` elements of a mask into one, smaller ones at the end."""
    for axis, side in ((0, down), (1, across)):
        mask = combine.reduceat(mask, np.arange(0, mask.shape[axis], side), axis=axis) if side > 1 else mask
    return mask


def _from_edges(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the cells that straight runs from an edge reach."""
    runs = np.zeros_like(cells)
    for axis in (0, 1):
        for direction in (1, -1):
            part = (slice(None, None, direction),) if axis == 0 else (slice(None), slice(None, None, direction))
            runs[part] |= np.logical_and.accumulate(cells[part], axis=axis)
    return runs


def _is_frame(runs: NDArray[np.bool_], image: Image, value: float) -> bool:
    """Return whether runs of a value are a border.

    In a photograph they may be sky, and white ones in any image without georeference: there only bars along two sides
    count, and what covers all four corners.
    """
    is_photo = image.path is not None and image.path.suffix.lower() in (".png", ".jpg", ".jpeg")
    if image.geo is not None or not (is_photo or value > 0):
        return True
    sides = sum(bool(side.all()) for side in (runs[0], runs[-1], runs[:, 0], runs[:, -1]))
    return sides >= 2 or bool(runs[[0, 0, -1, -1], [0, -1, 0, -1]].all())


def _widened(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the cells and their neighbors, in which a border ends."""
    padded = np.pad(cells, 1)
    out = np.zeros_like(cells)
    height, width = cells.shape
    for dy in range(3):
        for dx in range(3):
            out |= padded[dy : dy + height, dx : dx + width]
    return out
