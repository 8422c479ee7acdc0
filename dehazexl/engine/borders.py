"""Search for the border of one value around an image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.border import Border
from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import Window
from dehazexl.image.nodata import nodata_as_dtype

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray

    from dehazexl.image.image import Image

ENOUGH = 1024  # pixels along the longer side of the level in which borders are searched, at least
CELLS = 2048  # cells along the longer side of the map of a border, at most
LEAST = 0.004
"""Share of the image that a border covers at least; less is a few dark or saturated pixels at the edge."""
ROWS = 1024  # rows that are read at once


def find_border(image: Image) -> Image:
    """Return the image with the border of one value that touches its edges, and a line about it, if there is one.

    Only black, white and the usual marks of missing data count, and only where no metadata declares them. A level of
    about `ENOUGH` pixels is read if a pixel at the edge has such a value, the finest one if there are no overviews.
    """
    level = next((a for a in reversed(image.levels) if max(a.shape[:2]) >= ENOUGH), image.levels[0])
    colors = _at_edges(level, image)
    values = [value for value in _candidates(image) if (colors == value).all(axis=1).any()]
    found = [border for value in values if (border := _border(level, image, value)) is not None]
    if not found:
        return image
    border = max(found, key=lambda border: border.share)
    note = (
        f"a border of {border.value:g} around the image ({border.share:.0%}) is left as it is and does not count; "
        "--border keep treats it as part of the image"
    )
    return replace(image, border=border, notes=(*image.notes, note))


def _candidates(image: Image) -> list[float]:
    """Return the values of borders: black, white, and the usual marks of missing data."""
    dtype = image.levels[0].dtype
    if dtype.kind == "f":
        values = {0.0, 1.0, 255.0, 65535.0, -9999.0}
    else:
        info = np.iinfo(dtype)
        values = {0.0, float(info.max), float(info.min), 65535.0, -9999.0}
        values = {value for value in values if info.min <= value <= info.max}
        values |= set() if image.bits is None else {2.0**image.bits - 1}
    return sorted(values - {nodata_as_dtype(image.nodata, dtype)})


def _at_edges(level: da.Array, image: Image) -> NDArray[Any]:
    """Return the colors ``(n, 3)`` of the corners, and of pixels between them along the edges."""
    height, width, _ = level.shape
    rows, cols = (sorted({(size - 1) * step // 4 for step in range(5)}) for size in (height, width))
    places = [(y, x) for y in rows for x in cols if y in (0, height - 1) or x in (0, width - 1)]
    pixels = ChunkCache(level)
    found = [pixels.read(Window(y, y + 1, x, x + 1))[0, 0] for y, x in places]
    return np.stack(found)[:, list(image.rgb)]


def _border(level: da.Array, image: Image, value: float) -> Border | None:
    """Return the border of a value, or None if it is too small to be one."""
    height, width, _ = level.shape
    side = math.ceil(max(height, width) / CELLS)
    cells = np.concatenate(list(_full_cells(level, image, value, side)))
    runs = np.zeros_like(cells)
    for axis in (0, 1):
        for direction in (1, -1):
            part = (slice(None, None, direction),) if axis == 0 else (slice(None), slice(None, None, direction))
            runs[part] |= np.logical_and.accumulate(cells[part], axis=axis)
    share = float(runs.mean())
    if share < LEAST or share > 0.98 or not _is_frame(runs, image):
        return None
    return Border(value, share, (side / height, side / width), _widened(runs))


def _is_frame(runs: NDArray[np.bool_], image: Image) -> bool:
    """Return whether runs of a value are a border: in a photograph, only bars along two sides; else it may be sky."""
    sides = sum(bool(side.all()) for side in (runs[0], runs[-1], runs[:, 0], runs[:, -1]))
    is_photo = image.path is not None and image.path.suffix.lower() in (".png", ".jpg", ".jpeg") and image.geo is None
    return sides >= 2 if is_photo else True


def _full_cells(level: da.Array, image: Image, value: float, side: int) -> Iterator[NDArray[np.bool_]]:
    """Yield rows of cells of `side` pixels: True where all their pixels have a value."""
    height, width, _ = level.shape
    rows = max(side, ROWS // side * side)
    for top in range(0, height, rows):
        block = np.asarray(level[top : top + rows][..., list(dict.fromkeys(image.rgb))].compute())
        same = (block == value).all(axis=-1)
        down, across = -(-same.shape[0] // side) * side, -(-width // side) * side
        same = np.pad(same, ((0, down - same.shape[0]), (0, across - width)), constant_values=True)
        full: NDArray[np.bool_] = np.asarray(same.reshape(down // side, side, across // side, side).all(axis=(1, 3)))
        yield full


def _widened(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the cells and their neighbors, in which a border ends."""
    padded = np.pad(cells, 1)
    out = np.zeros_like(cells)
    height, width = cells.shape
    for dy in range(3):
        for dx in range(3):
            out |= padded[dy : dy + height, dx : dx + width]
    return out
