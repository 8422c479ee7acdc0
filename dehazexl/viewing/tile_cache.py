"""Output of the network for the levels of an image, as far as there is any, and its application to hazy pixels."""

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
"""Bytes of a dehazed pixel in half precision."""

Cell = tuple[int, int]
"""Row and column of a tile."""


class TileCache:
    """Dehazed tiles of the levels of an image, and gain and bias of an overview. Safe to use from any thread.

    Parameters
    ----------
    shapes
        Shapes of the levels, finest first, ``(y, x, ...)``.
    coarse
        Index of the first level without tiles. It and coarser levels are dehazed by the overview.
    cache
        Bytes of tiles. The tiles that were last wanted longest ago are dropped first.

    Attributes
    ----------
    overview : ndarray or None
        Gain and bias of each color of a coarse level, ``(2, 3, y, x)``, once they are known.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], coarse: int, cache: int) -> None:
        self.shapes, self.coarse = shapes, coarse
        self._cache = cache
        self.cut(TILE, 0)
        self.overview: NDArray[np.float32] | None = None
        self._tiles: OrderedDict[tuple[int, int, int], NDArray[np.float16]] = OrderedDict()
        self._lock = Lock()

    def cut(self, tile: int, overlap: int) -> None:
        """Set the side and the overlap of the tiles, in pixels, once the network is loaded."""
        self.grids = [TileGrid(shape[0], shape[1], overlap, tile) for shape in self.shapes]
        self.most = max(1, self._cache // (tile**2 * PIXEL_BYTES))

    def __len__(self) -> int:
        """Return the number of tiles in the cache."""
        return len(self._tiles)

    def wanted(self, level: int, window: Window) -> list[Cell]:
        """List the tiles of a window, from its center outwards, as many as fit into the cache."""
        grid = self.grids[level]
        middle = [(window.y0 + window.y1) / 2 / grid.stride - 0.5, (window.x0 + window.x1) / 2 / grid.stride - 0.5]
        cells = sorted(grid.tiles_touching(window).cells(), key=lambda cell: math.dist(cell, middle))
        return cells[: self.most]

    def missing(self, level: int, window: Window) -> list[Cell]:
        """List the wanted tiles that are not in the cache. Those that are will be dropped last."""
        wanted = self.wanted(level, window)
        with self._lock:
            there = {cell for cell in wanted if (level, *cell) in self._tiles}
            for cell in there:
                self._tiles.move_to_end((level, *cell))
        return [cell for cell in wanted if cell not in there]

    def keep(self, level: int, tiles: Mapping[Cell, NDArray[np.float16]]) -> None:
        """Add dehazed tiles ``(tile, tile, 3)`` of a level."""
        with self._lock:
            self._tiles.update({(level, *cell): tile for cell, tile in tiles.items()})
            while len(self._tiles) > self.most:
                self._tiles.popitem(last=False)

    def forget(self) -> None:
        """Drop the tiles and the overview."""
        with self._lock:
            self.overview, self._tiles = None, OrderedDict()

    def dehaze(self, level: int, window: Window, hazy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Dehaze a window of a level by its tiles, where there are any, and by the overview elsewhere.

        Parameters
        ----------
        level, window
            The window.
        hazy
            Its colors ``(y, x, 3)``, on the unit scale.

        Returns
        -------
        ndarray
            The dehazed colors; `hazy` itself as long as there is neither.
        """
        grid = self.grids[level]
        cells = [*grid.tiles_touching(window).cells()] if level < self.coarse else []
        with self._lock:
            there = {cell: tile for cell in cells if (tile := self._tiles.get((level, *cell))) is not None}
        if not there:
            return self._by_overview(level, window, hazy)
        total = np.zeros(hazy.shape, np.float32)
        weights = np.zeros((*hazy.shape[:2], 1), np.float32)
        for (row, col), tile in there.items():
            place = grid.tile(row, col)
            part = place.intersection(window)
            weight = grid.blend_weight(row, col)[part.to_slices(place)][..., None]
            total[part.to_slices(window)] += weight * tile[part.to_slices(place)]
            weights[part.to_slices(window)] += weight
        if weights.size and weights.min() > 0.999:
            return total
        return np.asarray(total + (1 - weights) * self._by_overview(level, window, hazy), np.float32)

    def _by_overview(self, level: int, window: Window, hazy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the gain and bias of the overview to a window of any level."""
        overview = self.overview
        if overview is None:
            return hazy
        clear = np.empty_like(hazy)
        for color in range(3):
            gain, bias = (upsample_window(side[color], window, self.shapes[level]) for side in overview)
            np.multiply(gain, hazy[..., color], out=clear[..., color])
            clear[..., color] += bias
        return clear
