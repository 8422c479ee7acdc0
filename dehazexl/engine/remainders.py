"""Parts of decoded tiles that lie in other windows than those they were decoded for."""

from __future__ import annotations

import threading

from cachetools import LRUCache
from torch import Tensor

from dehazexl.image.grid import Window

Cell = tuple[int, int]


class Remainders:
    """Cache of the parts of decoded tiles that other windows need, so that no tile is decoded more than once.

    It lies in host memory, as does the cache of feature maps: a GPU's memory is free again after a pass.

    Parameters
    ----------
    size
        Maximum number of bytes; the least recently used parts are dropped.

    Attributes
    ----------
    lock : threading.RLock
        Held while a window is decoded.
    """

    def __init__(self, size: int) -> None:
        self.lock = threading.RLock()
        self._parts: LRUCache[Cell, list[tuple[Window, Tensor]]] = LRUCache(size, getsizeof=_bytes)

    @property
    def nbytes(self) -> int:
        """Size of the cache in bytes."""
        return int(self._parts.currsize)

    def put(self, cell: Cell, tile: Window, weighted: Tensor, window: Window, image: Window) -> None:
        """Store the part of a tile that lies in the image but outside a window.

        Parameters
        ----------
        cell
            Row and column of the tile.
        tile, window, image
            Pixels of the tile, of the window that it was decoded for, and of the whole image.
        weighted
            Pixels of the tile times its blend weight ``(3, side, side)``.
        """
        parts = []
        for part in tile.intersection(image).split(window)[1]:
            inside = part.to_slices(tile)
            parts.append((part, weighted[:, inside[0], inside[1]].to("cpu", copy=True)))
        if parts and _bytes(parts) <= self._parts.maxsize:
            self._parts[cell] = parts

    def get(self, cell: Cell, part: Window) -> Tensor | None:
        """Return weighted pixels ``(3, height, width)`` of a part of a tile, or None if they are not stored."""
        for kept, weighted in self._parts.get(cell, ()):
            if kept.intersection(part) == part:
                inside = part.to_slices(kept)
                return weighted[:, inside[0], inside[1]]
        return None


def _bytes(parts: list[tuple[Window, Tensor]]) -> int:
    return sum(weighted.nbytes for _, weighted in parts)
