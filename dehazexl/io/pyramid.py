"""Blocks in, whole tiles of every level out: the overviews are made as the blocks come."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dehazexl.image.nodata import beside, held

if TYPE_CHECKING:
    from collections.abc import Iterator

TILE = 512  # pixels: the side of a TIFF tile and of a Zarr chunk


class Tile(NamedTuple):
    """One complete tile, cut where the level ends.

    `level` is 0 for the picture itself, `row` and `col` count tiles, `pixels` is ``(y, x, c)``.
    """

    level: int
    row: int
    col: int
    pixels: NDArray[Any]


@dataclass(frozen=True)
class Levels:
    """Sizes of a picture and its overviews, each half of the one before, rounded up.

    Attributes
    ----------
    height, width
        Size of the picture in pixels.
    """

    height: int
    width: int

    @property
    def tile(self) -> int:
        """Side of a tile in pixels: 512, or less where the picture is smaller (TIFF asks for multiples of 16)."""
        return min(TILE, -(-max(self.height, self.width) // 16) * 16)

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each level, finest first; the last one fits into one tile."""
        sizes = [(self.height, self.width)]
        while max(sizes[-1]) > TILE:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        return tuple(sizes)

    def touched(self, y: int, x: int, height: int, width: int) -> Iterator[tuple[int, int]]:
        """Yield row and column of each tile that shares a pixel with a block at row `y`, column `x`."""
        for row in range(y // self.tile, -(-(y + height) // self.tile)):
            for col in range(x // self.tile, -(-(x + width) // self.tile)):
                yield row, col

    def grid(self, level: int) -> tuple[int, int]:
        """Rows and columns of tiles in a level."""
        height, width = self.sizes[level]
        return -(-height // self.tile), -(-width // self.tile)


class Assembler:
    """Cuts blocks into the tiles of one level, whatever the blocks.

    Every pixel is given once, in any order. Unfinished tiles are held, which for blocks in row-major order is less
    than one row of tiles.

    Parameters
    ----------
    levels, level
        The sizes, and the level that the blocks are of.
    """

    def __init__(self, levels: Levels, level: int = 0) -> None:
        self.levels, self.level = levels, level
        self._open: dict[tuple[int, int], tuple[NDArray[Any], int]] = {}

    def paste(self, y: int, x: int, block: NDArray[Any]) -> Iterator[Tile]:
        """Put a block ``(y, x, c)`` at row `y`, column `x` and yield the tiles that it completes."""
        for row, col in self.levels.touched(y, x, *block.shape[:2]):
            pixels = self._completed(row, col, y, x, block)
            if pixels is not None:
                yield Tile(self.level, row, col, pixels)

    def _completed(self, row: int, col: int, y: int, x: int, block: NDArray[Any]) -> NDArray[Any] | None:
        """Pixels of a tile if the block completes them; a view of the block where it holds them all."""
        tile, (height, width) = self.levels.tile, self.levels.sizes[self.level]
        top, left = row * tile, col * tile
        bottom, right = min(top + tile, height), min(left + tile, width)
        y0, y1 = max(y, top), min(y + block.shape[0], bottom)
        x0, x1 = max(x, left), min(x + block.shape[1], right)
        part = block[y0 - y : y1 - y, x0 - x : x1 - x]
        area = (bottom - top) * (right - left)
        if part.shape[0] * part.shape[1] == area:
            return part
        empty = np.empty((bottom - top, right - left, block.shape[2]), block.dtype)
        pixels, missing = self._open.pop((row, col), (empty, area))
        pixels[y0 - top : y1 - top, x0 - left : x1 - left] = part
        missing -= part.shape[0] * part.shape[1]
        if missing == 0:
            return pixels
        self._open[row, col] = pixels, missing
        return None


class Pyramid:
    """Cuts blocks into tiles and halves each finished tile into the level above.

    Parameters
    ----------
    levels
        The sizes.
    nodata
        Value that marks missing pixels: it is not mixed into its neighbors. NaN never is.
    alpha
        Channel that weighs the others' mean, or None.
    """

    def __init__(self, levels: Levels, nodata: float | None = None, alpha: int | None = None) -> None:
        self.nodata = nodata
        self.alpha = alpha
        self._levels = [Assembler(levels, level) for level in range(len(levels.sizes))]

    def paste(self, y: int, x: int, block: NDArray[Any], level: int = 0) -> Iterator[Tile]:
        """Put a block ``(y, x, c)`` at row `y`, column `x` (pixels of `level`) and yield the tiles it completes."""
        half = self._levels[0].levels.tile // 2
        for tile in self._levels[level].paste(y, x, block):
            yield tile
            if level + 1 < len(self._levels):
                halved = halve(tile.pixels, self.nodata, self.alpha)
                yield from self.paste(tile.row * half, tile.col * half, halved, level + 1)


def halve(pixels: NDArray[Any], nodata: float | None = None, alpha: int | None = None) -> NDArray[Any]:
    """Mean of every 2 x 2 pixels.

    Parameters
    ----------
    pixels
        ``(y, x, c)``, integer or floating point.
    nodata
        Value left out of the mean, in each channel; where all four have it, the mean has it. NaN and
        infinities are left out too.
    alpha
        Channel by which the other channels are weighted, so that a transparent pixel's color does not show.

    Returns
    -------
    ndarray
        Same dtype; odd sizes are rounded up, the last row or column then being a mean of fewer pixels.
    """
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    wide = np.float64 if pixels.dtype.itemsize > 2 else np.float32
    values = pixels.astype(wide)
    mark = held(nodata, pixels.dtype)
    weights = _weights(pixels, values, mark, alpha)
    if weights is None:
        return _off_nodata(_as(_sum(values) / 4, pixels.dtype), np.True_, mark, alpha)
    total = _sum(weights)
    weighed = _sum(np.where(weights > 0, values, 0) * weights)
    mean = np.divide(weighed, total, out=pixels[::2, ::2].astype(wide), where=total > 0)
    return _off_nodata(_as(mean, pixels.dtype), total > 0, mark, alpha)


def _weights(pixels: NDArray[Any], values: NDArray[Any], mark: float | None, alpha: int | None) -> NDArray[Any] | None:
    """Weight of each value, or None where all count the same."""
    valid = np.isfinite(values)
    if mark is not None:
        valid &= pixels != mark
    weights: NDArray[Any] = valid.astype(values.dtype)
    if alpha is not None:
        colors = [c for c in range(pixels.shape[2]) if c != alpha]
        weights[..., colors] *= values[..., alpha, None]
        weights[..., alpha] = 1
    return None if (weights == 1).all() else weights


def _sum(values: NDArray[Any]) -> NDArray[Any]:
    total: NDArray[Any] = values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]
    return total


def _as(mean: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.rint(mean).astype(dtype) if dtype.kind in "iu" else mean.astype(dtype)


def _off_nodata(
    mean: NDArray[Any], valid: NDArray[np.bool_] | np.bool_, mark: float | None, alpha: int | None
) -> NDArray[Any]:
    """Keep a mean of valid pixels from rounding onto the value that says there are none; alpha may be any value."""
    if mark is not None:
        clash = valid & (mean == mark)
        if alpha is not None:
            clash[..., alpha] = False
        mean[clash] = beside(mark, mean.dtype)
    return mean
