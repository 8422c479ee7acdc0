"""The finest level of an image while it is written: tiles in a Zarr array, and marks of the finished tiles.

A tile is marked after its pixels are on the disk, so writing that was interrupted at any moment resumes with the tiles
that are not marked.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dehazexl.io.blocks import computed
from dehazexl.io.disk import synchronize
from dehazexl.io.pyramid import Assembler, Levels, Tile

if TYPE_CHECKING:
    from collections.abc import Generator

    import dask.array as da
    import zarr
    from numpy.typing import NDArray

    from dehazexl.io.blocks import Block

BLOCK = 2048
"""Side in pixels of the blocks that are read, and of the chunks of marks."""


class Level0:
    """The finest level of an image while it is written.

    Parameters
    ----------
    array
        Pixels ``(c, y, x)``, in chunks of a tile.
    marks
        Path of the array of marks; it is created if it does not exist.
    levels
        Sizes of the levels.
    """

    def __init__(self, array: zarr.Array[Any], marks: Path, levels: Levels) -> None:
        self.array, self.levels = array, levels
        self._marks, self._done = _open_marks(marks, levels)

    def done(self, y: int, x: int, height: int, width: int) -> bool:
        """Return whether all tiles that a block touches are done."""
        return all(self._done[cell] for cell in self.levels.tiles_touching(y, x, height, width))

    def fill(self, pixels: da.Array, at_once: int) -> Generator[int, None, None]:
        """Compute and write the blocks of an image ``(y, x, c)`` that touch an unfinished tile.

        Each chunk is written once and as a whole.

        Yields
        ------
        int
            Number of pixels of the blocks that were finished before, then of each block.
        """
        blocks = computed(pixels, at_once, lambda *block: not self.done(*block))
        assembler, before = Assembler(self.levels), self._pixels_done(pixels)
        if before:
            yield before
        try:
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                for y, x, block in blocks:
                    tiles = list(assembler.paste(y, x, block))
                    list(pool.map(partial(put, self.array, self.levels.tile), tiles))
                    self._mark(tiles)
                    yield block.shape[0] * block.shape[1]
        finally:
            blocks.close()

    def read(self) -> Generator[Block, None, None]:
        """Yield the blocks of the image in row-major order, ``(y, x, c)`` each."""
        _, height, width = self.array.shape
        for y in range(0, height, BLOCK):
            for x in range(0, width, BLOCK):
                yield y, x, np.moveaxis(np.asarray(self.array[:, y : y + BLOCK, x : x + BLOCK]), 0, 2)

    def _pixels_done(self, pixels: da.Array) -> int:
        rows, cols, _ = pixels.chunks
        tops, lefts = np.cumsum([0, *rows]), np.cumsum([0, *cols])
        return sum(
            height * width
            for y, height in zip(tops, rows, strict=False)
            for x, width in zip(lefts, cols, strict=False)
            if self.done(int(y), int(x), height, width)
        )

    def _mark(self, tiles: list[Tile]) -> None:
        """Mark tiles as done."""
        if not tiles:
            return
        for tile in tiles:
            self._done[tile.row, tile.col] = True
        rows, cols = [tile.row for tile in tiles], [tile.col for tile in tiles]
        place = slice(min(rows), max(rows) + 1), slice(min(cols), max(cols) + 1)
        self._marks[place] = self._done[place]


def _open_marks(path: Path, levels: Levels) -> tuple[zarr.Array[Any], NDArray[np.bool_]]:
    """Open and read the array of marks, or create it where there is none that can be read."""
    import zarr

    try:
        marks = zarr.open_array(path, mode="r+")
        return marks, np.asarray(marks[:])
    except (OSError, ValueError):
        side, shape = max(1, BLOCK // levels.tile), levels.grid(0)
        marks = zarr.create_array(
            path, shape=shape, chunks=(side, side), dtype=bool, fill_value=False, compressors=None, overwrite=True
        )
        return marks, np.zeros(shape, bool)


def share_done(marks: Path) -> float:
    """Return the share of the tiles that are marked; 0 if there are no marks that can be read."""
    import zarr

    try:
        return float(np.asarray(zarr.open_array(marks, mode="r")[:]).mean())
    except (OSError, ValueError):
        return 0.0


def put(array: zarr.Array[Any], side: int, tile: Tile) -> None:
    """Write a tile into an array ``(c, y, x)`` of tiles on a local disk; it is on the disk when this returns."""
    height, width = tile.pixels.shape[:2]
    y, x = tile.row * side, tile.col * side
    array[:, y : y + height, x : x + width] = np.moveaxis(tile.pixels, 2, 0)
    root: str = cast("Any", array.store).root
    chunk = Path(root) / array.path / array.metadata.encode_chunk_key((0, tile.row, tile.col))
    # A chunk of the fill value has no file.
    with suppress(FileNotFoundError):
        synchronize(chunk)
