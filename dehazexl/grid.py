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

MAX_OVERLAP = TILE // 2
"""With more, a pixel would lie in more than two tiles along an axis."""


@dataclass(frozen=True)
class Window:
    """The rectangle of rows ``y0..y1 - 1`` and columns ``x0..x1 - 1``; it may reach beyond the picture."""

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

    def grown(self, margin: int) -> Window:
        """Return the window with `margin` more pixels on each side."""
        return Window(self.y0 - margin, self.y1 + margin, self.x0 - margin, self.x1 + margin)

    def meet(self, other: Window) -> Window:
        """Return what lies in both."""
        return Window(max(self.y0, other.y0), min(self.y1, other.y1), max(self.x0, other.x0), min(self.x1, other.x1))

    def within(self, other: Window) -> tuple[slice, slice]:
        """Return the slices that cut this window out of an array that holds `other`."""
        return slice(self.y0 - other.y0, self.y1 - other.y0), slice(self.x0 - other.x0, self.x1 - other.x0)


@dataclass(frozen=True)
class TileGrid:
    """A picture of `height` x `width` pixels cut into tiles that overlap by `overlap` pixels.

    The first tile starts at (0, 0); the last reaches the picture's end or beyond it, where the picture is
    continued by reflection. Tiles are numbered row by row.
    """

    height: int
    width: int
    overlap: int = 0

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1:
            raise ValueError(f"a picture needs at least one pixel, not {self.height} x {self.width}")
        if not 0 <= self.overlap <= MAX_OVERLAP:
            raise ValueError(f"overlap is between 0 and {MAX_OVERLAP} pixels, not {self.overlap}")

    @property
    def stride(self) -> int:
        """Pixels from one tile to the next."""
        return TILE - self.overlap

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return max(1, math.ceil((self.height - self.overlap) / self.stride))

    @property
    def cols(self) -> int:
        """Tiles from left to right."""
        return max(1, math.ceil((self.width - self.overlap) / self.stride))

    @property
    def tiles(self) -> int:
        """Tiles in all."""
        return self.rows * self.cols

    @property
    def picture(self) -> Window:
        """The whole picture."""
        return Window(0, self.height, 0, self.width)

    def tile_window(self, tile: int) -> Window:
        """Return the pixels of a tile; `tiles_in` is the inverse."""
        row, col = divmod(tile, self.cols)
        y, x = row * self.stride, col * self.stride
        return Window(y, y + TILE, x, x + TILE)

    def tiles_in(self, window: Window) -> list[int]:
        """Return the tiles that share a pixel with `window`."""
        rows = _touched(window.y0, window.y1, self.stride, self.rows)
        cols = _touched(window.x0, window.x1, self.stride, self.cols)
        return [row * self.cols + col for row in rows for col in cols]

    def cover(self, tiles: list[int]) -> Window:
        """Return the smallest window that holds all of `tiles`."""
        windows = [self.tile_window(tile) for tile in tiles]
        return Window(
            min(w.y0 for w in windows),
            max(w.y1 for w in windows),
            min(w.x0 for w in windows),
            max(w.x1 for w in windows),
        )

    def blocks(self, side: int = 8) -> Iterator[list[int]]:
        """Group all tiles, each once, into squares of at most `side` x `side`: what is read at once."""
        for row in range(0, self.rows, side):
            for col in range(0, self.cols, side):
                yield [
                    r * self.cols + c
                    for r in range(row, min(row + side, self.rows))
                    for c in range(col, min(col + side, self.cols))
                ]

    def weights(self, tile: int) -> NDArray[np.float32]:
        """Return a tile's share ``(256, 256)`` in each of its pixels; the shares of all tiles sum to one."""
        row, col = divmod(tile, self.cols)
        down = feather(self.overlap, row > 0, row < self.rows - 1)
        across = feather(self.overlap, col > 0, col < self.cols - 1)
        return down[:, None] * across[None, :]

    def token_rows_cols(self, tile: int) -> tuple[int, int]:
        """Return row and column of a tile's first token in the grid of all tokens."""
        row, col = divmod(tile, self.cols)
        return row * (TILE // TOKEN), col * (TILE // TOKEN)


def _touched(start: int, stop: int, stride: int, count: int) -> range:
    """Return the tiles along one axis that share a pixel with ``start..stop - 1``."""
    return range(max(0, (start - TILE) // stride + 1), min(count, (stop - 1) // stride + 1))


def feather(overlap: int, before: bool, after: bool) -> NDArray[np.float32]:
    """Return a tile's share ``(256,)`` along one axis: linear ramps where it has a neighbour."""
    share = np.ones(TILE, np.float32)
    ramp = (np.arange(overlap, dtype=np.float32) + 0.5) / max(overlap, 1)
    if before:
        share[:overlap] *= ramp
    if after:
        share[TILE - overlap :] *= ramp[::-1]
    return share


def reflect(index: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Mirror indices outside ``0..size - 1`` back into it, as often as needed.

    The border is not repeated, as in numpy's ``mode="reflect"``.
    """
    if size == 1:
        return np.zeros_like(index)
    index = index % (2 * size - 2)
    return np.minimum(index, 2 * size - 2 - index)
