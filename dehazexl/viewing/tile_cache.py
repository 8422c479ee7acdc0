"""What the network has said so far about the levels of a picture, and what that makes of their pixels."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from dehazexl.image.grid import TILE, TileGrid, Window
from dehazexl.viewing.display import upsample_window

PIXEL_BYTES = 3 * 2
"""Of a dehazed pixel in half precision."""

Cell = tuple[int, int]
"""Row and column of a tile."""


class TileCache:
    """Dehazed tiles of a picture's levels, and what was changed of a coarse one; for any thread.

    Parameters
    ----------
    shapes
        Of the levels, finest first, ``(y, x, ...)``.
    coarse
        Number of the first level that has no tiles: it is dehazed whole, and those after it are shown by that.
    cache
        Bytes of tiles that are kept; those that were not wanted for longest are dropped.

    Attributes
    ----------
    overview : ndarray or None
        Gain and offset of each color of a coarse level, ``(2, 3, y, x)``, once they are known.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], coarse: int, cache: int) -> None:
        self.shapes, self.coarse = shapes, coarse
        self._cache = cache
        self.cut(TILE, 0)
        self.overview: NDArray[np.float32] | None = None
        self._tiles: OrderedDict[tuple[int, int, int], NDArray[np.float16]] = OrderedDict()
        self._lock = Lock()

    def cut(self, tile: int, overlap: int) -> None:
        """Cut the levels into tiles of a side, which overlap, in pixels, once the network is known that says which."""
        self.grids = [TileGrid(shape[0], shape[1], overlap, tile) for shape in self.shapes]
        self.most = max(1, self._cache // (tile**2 * PIXEL_BYTES))

    def __len__(self) -> int:
        """Count the tiles that are kept."""
        return len(self._tiles)

    def wanted(self, level: int, window: Window) -> list[Cell]:
        """List the tiles of a window, nearest its middle first, as many as can be kept."""
        grid = self.grids[level]
        middle = [(window.y0 + window.y1) / 2 / grid.stride - 0.5, (window.x0 + window.x1) / 2 / grid.stride - 0.5]
        cells = sorted(grid.tiles_touching(window).cells(), key=lambda cell: math.dist(cell, middle))
        return cells[: self.most]

    def missing(self, level: int, window: Window) -> list[Cell]:
        """List those of the wanted tiles that are not there; those that are will be dropped last."""
        wanted = self.wanted(level, window)
        with self._lock:
            there = {cell for cell in wanted if (level, *cell) in self._tiles}
            for cell in there:
                self._tiles.move_to_end((level, *cell))
        return [cell for cell in wanted if cell not in there]

    def keep(self, level: int, tiles: Mapping[Cell, NDArray[np.float16]]) -> None:
        """Keep dehazed tiles ``(tile, tile, 3)`` of a level."""
        with self._lock:
            self._tiles.update({(level, *cell): tile for cell, tile in tiles.items()})
            while len(self._tiles) > self.most:
                self._tiles.popitem(last=False)

    def forget(self) -> None:
        """Drop all."""
        with self._lock:
            self.overview, self._tiles = None, OrderedDict()

    def clear(self, level: int, window: Window, hazy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Dehaze a window of a level as well as is known: by its tiles, where there are any; else by the overview.

        Parameters
        ----------
        level, window
            What is dehazed.
        hazy
            Its colors ``(y, x, 3)``, on the scale of the network.

        Returns
        -------
        ndarray
            The same, dehazed; `hazy` itself before anything is known.
        """
        grid = self.grids[level]
        cells = [*grid.tiles_touching(window).cells()] if level < self.coarse else []
        with self._lock:
            there = {cell: answer for cell in cells if (answer := self._tiles.get((level, *cell))) is not None}
        if not there:
            return self._guess(level, window, hazy)
        total = np.zeros(hazy.shape, np.float32)
        share = np.zeros((*hazy.shape[:2], 1), np.float32)
        for (row, col), answer in there.items():
            tile = grid.tile(row, col)
            part = tile.intersection(window)
            weight = grid.blend_weight(row, col)[part.to_slices(tile)][..., None]
            total[part.to_slices(window)] += weight * answer[part.to_slices(tile)]
            share[part.to_slices(window)] += weight
        if share.size and share.min() > 0.999:
            return total
        return np.asarray(total + (1 - share) * self._guess(level, window, hazy), np.float32)

    def _guess(self, level: int, window: Window, hazy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the overview's change to a window of another level."""
        overview = self.overview
        if overview is None:
            return hazy
        clear = np.empty_like(hazy)
        for color in range(3):
            gain, offset = (upsample_window(side[color], window, self.shapes[level]) for side in overview)
            np.multiply(gain, hazy[..., color], out=clear[..., color])
            clear[..., color] += offset
        return clear
