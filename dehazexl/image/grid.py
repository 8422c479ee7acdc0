"""Geometry of tiles: how an image is split into tiles and reassembled. Integers only; no torch, no dask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TILE = 256
"""Side of a tile in pixels: the encoder's input size."""

TOKEN = 32
"""Side, in pixels, of the square that one token represents."""

SIDE = TILE // TOKEN
"""Tokens along a side of a tile, which has 8 x 8 of them."""

OVERLAP = 32
"""Default overlap, in pixels, of the tiles of networks that decode each tile separately."""

BLOCK = 2048
"""Side in pixels, without overlap, of the blocks of tiles that are read, encoded and recorded together."""

MAX_OVERLAP = TILE // 2
"""Largest overlap in pixels; with more, a pixel would lie in more than two tiles along an axis."""


@dataclass(frozen=True)
class Window:
    """A rectangle of rows ``y0..y1 - 1`` and columns ``x0..x1 - 1``, in units of pixels or of tiles.

    A window of pixels may extend beyond the image.

    Attributes
    ----------
    y0, y1
        First row, and last row plus 1.
    x0, x1
        First column, and last column plus 1.
    """

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.x1 - self.x0

    @property
    def count(self) -> int:
        """Number of pixels or tiles."""
        return self.height * self.width

    def expand(self, margin: int) -> Window:
        """Return the window with `margin` more pixels on each side."""
        return Window(self.y0 - margin, self.y1 + margin, self.x0 - margin, self.x1 + margin)

    def moved(self, rows: int, cols: int) -> Window:
        """Return the window that begins some rows and columns later."""
        return Window(self.y0 + rows, self.y1 + rows, self.x0 + cols, self.x1 + cols)

    def intersection(self, other: Window) -> Window:
        """Return the intersection with another window; its height or width is negative if they are apart."""
        return Window(max(self.y0, other.y0), min(self.y1, other.y1), max(self.x0, other.x0), min(self.x1, other.x1))

    def split(self, other: Window) -> tuple[Window, list[Window]]:
        """Split the window into its intersection with another one and the remainder.

        Returns
        -------
        Window
            The intersection, possibly empty.
        list of Window
            Up to four disjoint windows that cover the rest of this window.
        """
        y0, x0 = min(max(self.y0, other.y0), self.y1), min(max(self.x0, other.x0), self.x1)
        both = Window(y0, max(y0, min(self.y1, other.y1)), x0, max(x0, min(self.x1, other.x1)))
        remainder = [
            Window(self.y0, both.y0, self.x0, self.x1),
            Window(both.y1, self.y1, self.x0, self.x1),
            Window(both.y0, both.y1, self.x0, both.x0),
            Window(both.y0, both.y1, both.x1, self.x1),
        ]
        return both, [window for window in remainder if window.height and window.width]

    def cells(self) -> Iterator[tuple[int, int]]:
        """Yield the row and column of each unit cell in row-major order."""
        for y in range(self.y0, self.y1):
            for x in range(self.x0, self.x1):
                yield y, x

    def to_slices(self, other: Window) -> tuple[slice, slice]:
        """Return the slices that select this window from an array that covers `other`."""
        return slice(self.y0 - other.y0, self.y1 - other.y0), slice(self.x0 - other.x0, self.x1 - other.x0)


@dataclass(frozen=True)
class TileGrid:
    """Grid of overlapping square tiles over an image.

    The first tile starts at (0, 0). The last one ends at the end of the image or beyond it, where the image is
    continued by reflection. A rectangle of tiles is a `Window` whose unit is the tile.

    Attributes
    ----------
    height, width
        Size of the image in pixels.
    overlap
        Pixels that neighboring tiles share along an axis, 0 to 128.
    side
        Side of a tile in pixels.

    Raises
    ------
    ValueError
        If the image is empty, or the overlap is out of range.
    """

    height: int
    width: int
    overlap: int = 0
    side: int = TILE

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"an image needs at least one pixel, not {self.height} x {self.width}")
        if not isinstance(self.overlap, (int, np.integer)) or not 0 <= self.overlap <= MAX_OVERLAP:
            raise ValueError(f"overlap must be between 0 and {MAX_OVERLAP} pixels, not {self.overlap}")

    @property
    def stride(self) -> int:
        """Pixels from the start of one tile to the start of the next."""
        return self.side - self.overlap

    @property
    def rows(self) -> int:
        """Number of tiles from top to bottom."""
        return max(1, math.ceil((self.height - self.overlap) / self.stride))

    @property
    def cols(self) -> int:
        """Number of tiles from left to right."""
        return max(1, math.ceil((self.width - self.overlap) / self.stride))

    @property
    def count(self) -> int:
        """Number of tiles."""
        return self.rows * self.cols

    @property
    def block(self) -> int:
        """Side, in tiles, of the blocks that are read, encoded and recorded together: about 2048 pixels."""
        return max(1, BLOCK // self.side)

    @property
    def tiles(self) -> Window:
        """Window of all tiles."""
        return Window(0, self.rows, 0, self.cols)

    def tile_window(self, tiles: Window) -> Window:
        """Return the pixels that a window of tiles covers; without overlap, `tiles_touching` is the inverse."""
        return Window(
            tiles.y0 * self.stride,
            (tiles.y1 - 1) * self.stride + self.side,
            tiles.x0 * self.stride,
            (tiles.x1 - 1) * self.stride + self.side,
        )

    def tile(self, row: int, col: int) -> Window:
        """Return the window of pixels of one tile."""
        return self.tile_window(Window(row, row + 1, col, col + 1))

    def tiles_touching(self, pixels: Window) -> Window:
        """Return the window of tiles that share a pixel with a window of pixels, including overlapping neighbors."""
        y0, y1 = _touching_range(pixels.y0, pixels.y1, self.side, self.stride, self.rows)
        x0, x1 = _touching_range(pixels.x0, pixels.x1, self.side, self.stride, self.cols)
        return Window(y0, y1, x0, x1)

    def blocks(self, side: int) -> Iterator[Window]:
        """Yield blocks of at most `side` x `side` tiles that together cover each tile once, in row-major order."""
        for y in range(0, self.rows, side):
            for x in range(0, self.cols, side):
                yield Window(y, min(y + side, self.rows), x, min(x + side, self.cols))

    def blend_weight(self, row: int, col: int) -> NDArray[np.float32]:
        """Return the blending weights ``(side, side)`` of a tile; the weights of all tiles sum to one in each pixel."""
        down = blend_ramp(self.overlap, row > 0, row < self.rows - 1, self.side)
        across = blend_ramp(self.overlap, col > 0, col < self.cols - 1, self.side)
        return down[:, None] * across[None, :]


def check_overlap(overlap: int | None) -> int | None:
    """Validate the overlap of tiles, in pixels; None leaves the choice to the network.

    Raises
    ------
    ValueError
        If the overlap is not between 0 and 128 pixels.
    """
    if overlap is not None:
        TileGrid(1, 1, overlap)
    return overlap


def _touching_range(start: int, stop: int, tile: int, stride: int, count: int) -> tuple[int, int]:
    """Return start and stop of the tiles along one axis that share a pixel with ``start..stop - 1``."""
    return max(0, (start - tile) // stride + 1), min(count, (stop - 1) // stride + 1)


def blend_ramp(overlap: int, before: bool, after: bool, tile: int = TILE) -> NDArray[np.float32]:
    """Return the blending weights ``(tile,)`` of a tile along one axis.

    The weights rise and fall as a squared sine where the tile has a neighbor. The weights of two overlapping tiles sum
    to one. Unlike linear ramps, these ramps begin and end flat, so no kink is visible there.

    Parameters
    ----------
    overlap
        Pixels that the tile shares with each neighbor.
    before, after
        Whether the tile has a neighbor at its start and at its end.
    tile
        Side of the tile in pixels.
    """
    weight = np.ones(tile, np.float32)
    ramp = np.sin(np.pi / 2 * (np.arange(overlap, dtype=np.float32) + 0.5) / max(overlap, 1)) ** 2
    if before:
        weight[:overlap] *= ramp
    if after:
        weight[tile - overlap :] *= ramp[::-1]
    return weight


def reflect(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Reflect indices outside ``0..size - 1`` back into the range, as often as needed.

    The border is not repeated, as in ``numpy.pad`` with ``mode="reflect"``.
    """
    if size == 1:
        return np.zeros_like(index)
    index = index % (2 * size - 2)
    return np.minimum(index, 2 * size - 2 - index)
