"""Geometry: how a picture is cut into tiles, and put together again. Integers only; no torch, no dask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TILE = 256
"""Side of a tile in pixels: the encoder's input size."""

TOKEN = 32
"""Side, in pixels, of the square that one token stands for."""

SIDE = TILE // TOKEN
"""Tokens along a side of a tile: it has 8 x 8."""

OVERLAP = 32
"""Pixels by which the tiles of networks overlap that decode each by itself, unless another number is asked for."""

BLOCK = 2048
"""Side in pixels, without overlap, of the squares of tiles that are read, encoded and recorded together."""

MAX_OVERLAP = TILE // 2
"""With more, a pixel would lie in more than two tiles along an axis."""


@dataclass(frozen=True)
class Window:
    """The rectangle of rows ``y0..y1 - 1`` and columns ``x0..x1 - 1``, of pixels or of tiles.

    A window of pixels may reach beyond the picture.
    """

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Columns."""
        return self.x1 - self.x0

    def expand(self, margin: int) -> Window:
        """Return the window with `margin` more pixels on each side."""
        return Window(self.y0 - margin, self.y1 + margin, self.x0 - margin, self.x1 + margin)

    def intersection(self, other: Window) -> Window:
        """Return what lies in both."""
        return Window(max(self.y0, other.y0), min(self.y1, other.y1), max(self.x0, other.x0), min(self.x1, other.x1))

    def split(self, other: Window) -> tuple[Window, list[Window]]:
        """Return what lies in both, maybe nothing, and the up to four windows of this one that lie beside it."""
        y0, x0 = min(max(self.y0, other.y0), self.y1), min(max(self.x0, other.x0), self.x1)
        both = Window(y0, max(y0, min(self.y1, other.y1)), x0, max(x0, min(self.x1, other.x1)))
        beside = [
            Window(self.y0, both.y0, self.x0, self.x1),
            Window(both.y1, self.y1, self.x0, self.x1),
            Window(both.y0, both.y1, self.x0, both.x0),
            Window(both.y0, both.y1, both.x1, self.x1),
        ]
        return both, [window for window in beside if window.height and window.width]

    def cells(self) -> Iterator[tuple[int, int]]:
        """Yield the row and column of each unit, row by row."""
        for y in range(self.y0, self.y1):
            for x in range(self.x0, self.x1):
                yield y, x

    def to_slices(self, other: Window) -> tuple[slice, slice]:
        """Return the slices that cut this window out of an array that holds `other`."""
        return slice(self.y0 - other.y0, self.y1 - other.y0), slice(self.x0 - other.x0, self.x1 - other.x0)


@dataclass(frozen=True)
class TileGrid:
    """A picture of `height` x `width` pixels cut into tiles of `side` x `side` that overlap by `overlap` pixels.

    The first tile starts at (0, 0); the last reaches the picture's end or beyond it, where the picture is
    continued by reflection. A rectangle of tiles is a `Window` whose unit is the tile.
    """

    height: int
    width: int
    overlap: int = 0
    side: int = TILE

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"a picture needs at least one pixel, not {self.height} x {self.width}")
        if not isinstance(self.overlap, (int, np.integer)) or not 0 <= self.overlap <= MAX_OVERLAP:
            raise ValueError(f"overlap must be between 0 and {MAX_OVERLAP} pixels, not {self.overlap}")

    @property
    def stride(self) -> int:
        """Pixels from one tile to the next."""
        return self.side - self.overlap

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return max(1, math.ceil((self.height - self.overlap) / self.stride))

    @property
    def cols(self) -> int:
        """Tiles from left to right."""
        return max(1, math.ceil((self.width - self.overlap) / self.stride))

    @property
    def count(self) -> int:
        """Number of tiles."""
        return self.rows * self.cols

    @property
    def block(self) -> int:
        """Side, in tiles, of the squares that are read, encoded and recorded together: about 2048 pixels."""
        return max(1, BLOCK // self.side)

    @property
    def tiles(self) -> Window:
        """All tiles."""
        return Window(0, self.rows, 0, self.cols)

    def tile_window(self, tiles: Window) -> Window:
        """Return the pixels that a rectangle of tiles covers; without overlap `tiles_touching` is the inverse."""
        return Window(
            tiles.y0 * self.stride,
            (tiles.y1 - 1) * self.stride + self.side,
            tiles.x0 * self.stride,
            (tiles.x1 - 1) * self.stride + self.side,
        )

    def tile(self, row: int, col: int) -> Window:
        """Return the pixels of a tile."""
        return self.tile_window(Window(row, row + 1, col, col + 1))

    def tiles_touching(self, pixels: Window) -> Window:
        """Return the tiles that share a pixel with a rectangle of pixels, neighbors that overlap it, too."""
        y0, y1 = _touched(pixels.y0, pixels.y1, self.side, self.stride, self.rows)
        x0, x1 = _touched(pixels.x0, pixels.x1, self.side, self.stride, self.cols)
        return Window(y0, y1, x0, x1)

    def blocks(self, side: int) -> Iterator[Window]:
        """Cut all tiles, each once, into squares of at most `side` x `side` tiles: what is read at once."""
        for y in range(0, self.rows, side):
            for x in range(0, self.cols, side):
                yield Window(y, min(y + side, self.rows), x, min(x + side, self.cols))

    def blend_weight(self, row: int, col: int) -> NDArray[np.float32]:
        """Return a tile's share ``(side, side)`` in each of its pixels; the shares of all tiles sum to one."""
        down = blend_ramp(self.overlap, row > 0, row < self.rows - 1, self.side)
        across = blend_ramp(self.overlap, col > 0, col < self.cols - 1, self.side)
        return down[:, None] * across[None, :]


def check_overlap(overlap: int | None) -> int | None:
    """Return an overlap that tiles can have, or None, which leaves the choice to the network.

    Raises
    ------
    ValueError
        If it is out of range.
    """
    if overlap is not None:
        TileGrid(1, 1, overlap)
    return overlap


def _touched(start: int, stop: int, tile: int, stride: int, count: int) -> tuple[int, int]:
    """Return the first of the tiles along one axis that share a pixel with ``start..stop - 1``, and the last plus 1."""
    return max(0, (start - tile) // stride + 1), min(count, (stop - 1) // stride + 1)


def blend_ramp(overlap: int, before: bool, after: bool, tile: int = TILE) -> NDArray[np.float32]:
    """Return a tile's share ``(tile,)`` along one axis: it rises and falls as a squared sine where it has a neighbor.

    Two that overlap sum to one. Unlike linear ramps they begin and end flat, so that the eye finds no kink there.
    """
    share = np.ones(tile, np.float32)
    ramp = np.sin(np.pi / 2 * (np.arange(overlap, dtype=np.float32) + 0.5) / max(overlap, 1)) ** 2
    if before:
        share[:overlap] *= ramp
    if after:
        share[tile - overlap :] *= ramp[::-1]
    return share


def reflect(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Mirror indices outside ``0..size - 1`` back into it, as often as needed.

    The border is not repeated, as in numpy's ``mode="reflect"``.
    """
    if size == 1:
        return np.zeros_like(index)
    index = index % (2 * size - 2)
    return np.minimum(index, 2 * size - 2 - index)
