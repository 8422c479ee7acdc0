"""Image pyramid: overviews are computed from blocks as they arrive, and all levels are emitted as tiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dehazexl.image.nodata import next_valid_value, nodata_as_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

TILE = 512  # pixels along a side of a TIFF tile and of a Zarr chunk


class Tile(NamedTuple):
    """A complete tile of one level, cropped to the end of the level.

    Attributes
    ----------
    level
        0 for the image at full size, 1 for its first overview and so on.
    row, col
        Position in units of tiles.
    pixels
        ``(y, x, c)``.
    """

    level: int
    row: int
    col: int
    pixels: NDArray[Any]


@dataclass(frozen=True)
class Levels:
    """Sizes of an image and its overviews, each half the size of the one before, rounded up.

    Attributes
    ----------
    height, width
        Size of the image in pixels.
    """

    height: int
    width: int

    @property
    def tile(self) -> int:
        """Side of a tile in pixels: 512, or less if the image is smaller (TIFF requires multiples of 16)."""
        return min(TILE, -(-max(self.height, self.width) // 16) * 16)

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each level in pixels, finest first; the last level fits into one tile."""
        sizes = [(self.height, self.width)]
        while max(sizes[-1]) > TILE:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        return tuple(sizes)

    def tiles_touching(self, y: int, x: int, height: int, width: int) -> Iterator[tuple[int, int]]:
        """Yield row and column of each tile that shares a pixel with a block at row `y`, column `x`."""
        for row in range(y // self.tile, -(-(y + height) // self.tile)):
            for col in range(x // self.tile, -(-(x + width) // self.tile)):
                yield row, col

    def grid(self, level: int) -> tuple[int, int]:
        """Return the number of rows and columns of tiles in a level."""
        height, width = self.sizes[level]
        return -(-height // self.tile), -(-width // self.tile)


class Assembler:
    """Assembles the tiles of one level from blocks of any size.

    Every pixel is passed once, in any order. Only incomplete tiles are kept in memory: for blocks in row-major order,
    less than one row of tiles.

    Parameters
    ----------
    levels, level
        Sizes of the levels, and the level of the blocks.
    """

    def __init__(self, levels: Levels, level: int = 0) -> None:
        self.levels, self.level = levels, level
        self._incomplete: dict[tuple[int, int], tuple[NDArray[Any], int]] = {}

    def paste(self, y: int, x: int, block: NDArray[Any]) -> Iterator[Tile]:
        """Insert a block ``(y, x, c)`` at row `y`, column `x` and yield the tiles it completes."""
        for row, col in self.levels.tiles_touching(y, x, *block.shape[:2]):
            pixels = self._completed(row, col, y, x, block)
            if pixels is not None:
                yield Tile(self.level, row, col, pixels)

    def _completed(self, row: int, col: int, y: int, x: int, block: NDArray[Any]) -> NDArray[Any] | None:
        """Return the pixels of a tile if the block completes it, as a view if the block contains the whole tile."""
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
        pixels, missing = self._incomplete.pop((row, col), (empty, area))
        pixels[y0 - top : y1 - top, x0 - left : x1 - left] = part
        missing -= part.shape[0] * part.shape[1]
        if missing == 0:
            return pixels
        self._incomplete[row, col] = pixels, missing
        return None


class Pyramid:
    """Assembles tiles from blocks and downsamples each complete tile into the next coarser level.

    Parameters
    ----------
    levels
        Sizes of the levels.
    nodata
        Value that marks pixels without data, which are left out of means, as NaN always is.
    alpha
        Channel that weights the mean of the other channels, or None.
    """

    def __init__(self, levels: Levels, nodata: float | None = None, alpha: int | None = None) -> None:
        self.nodata = nodata
        self.alpha = alpha
        self._levels = [Assembler(levels, level) for level in range(len(levels.sizes))]

    def paste(self, y: int, x: int, block: NDArray[Any], level: int = 0) -> Iterator[Tile]:
        """Insert a block ``(y, x, c)`` at row `y`, column `x` (pixels of `level`) and yield the tiles it completes."""
        half = self._levels[0].levels.tile // 2
        for tile in self._levels[level].paste(y, x, block):
            yield tile
            if level + 1 < len(self._levels):
                halved = halve(tile.pixels, self.nodata, self.alpha)
                yield from self.paste(tile.row * half, tile.col * half, halved, level + 1)


def halve(pixels: NDArray[Any], nodata: float | None = None, alpha: int | None = None) -> NDArray[Any]:
    """Downsample by the mean of every 2 x 2 pixels.

    Parameters
    ----------
    pixels
        ``(y, x, c)``, integer or floating point.
    nodata
        Value left out of the mean, in each channel; where all four pixels have it, the mean has it. NaN and
        infinities are left out as well.
    alpha
        Channel that weights the other channels, so that colors of transparent pixels do not contribute.

    Returns
    -------
    ndarray
        Array of the same dtype. Odd sizes are rounded up; the last row or column is then a mean of fewer pixels.
    """
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    wide = np.float64 if pixels.dtype.itemsize > 2 else np.float32
    values = pixels.astype(wide)
    mark = nodata_as_dtype(nodata, pixels.dtype)
    weights = _weights(pixels, values, mark, alpha)
    if weights is None:
        return _avoid_nodata(_to_dtype(_sum_2x2(values) / 4, pixels.dtype), np.True_, mark, alpha)
    total = _sum_2x2(weights)
    weighted = _sum_2x2(np.where(weights > 0, values, 0) * weights)
    mean = np.divide(weighted, total, out=pixels[::2, ::2].astype(wide), where=total > 0)
    return _avoid_nodata(_to_dtype(mean, pixels.dtype), total > 0, mark, alpha)


def _weights(pixels: NDArray[Any], values: NDArray[Any], mark: float | None, alpha: int | None) -> NDArray[Any] | None:
    """Return the weight of each value, or None if all weights are equal."""
    valid = np.isfinite(values)
    if mark is not None:
        valid &= pixels != mark
    weights: NDArray[Any] = valid.astype(values.dtype)
    if alpha is not None:
        colors = [c for c in range(pixels.shape[2]) if c != alpha]
        weights[..., colors] *= values[..., alpha, None]
        weights[..., alpha] = 1
    return None if (weights == 1).all() else weights


def _sum_2x2(values: NDArray[Any]) -> NDArray[Any]:
    total: NDArray[Any] = values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]
    return total


def _to_dtype(mean: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.rint(mean).astype(dtype) if dtype.kind in "iu" else mean.astype(dtype)


def _avoid_nodata(
    mean: NDArray[Any], valid: NDArray[np.bool_] | np.bool_, mark: float | None, alpha: int | None
) -> NDArray[Any]:
    """Move means of valid pixels that equal the nodata value to the next valid value; alpha is left unchanged."""
    if mark is not None:
        clash = valid & (mean == mark)
        if alpha is not None:
            clash[..., alpha] = False
        mean[clash] = next_valid_value(mark, mean.dtype)
    return mean
