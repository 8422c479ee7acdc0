"""The last stage of a session: a view that is left alone becomes what its file will hold, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from dehazexl.image.grid import TileGrid, Window
from dehazexl.viewing.full_size import BLOCK, Cell, FullSizeBlocks

if TYPE_CHECKING:
    from dehazexl.image.image import Image
    from dehazexl.viewing.level import LevelRun


class Refinement:
    """The refinement of an image to full size.

    Parameters
    ----------
    image
        The image of the levels.
    around
        The image that takes part: `image`, or one that it is a region of.
    region
        Rows and columns of `image` in `around`.
    most
        Tiles of `around` in full size, at most; a larger image is not refined.
    kept
        Bytes of blocks to keep.

    Attributes
    ----------
    blocks : FullSizeBlocks
        What is refined by now.
    run : LevelRun or None
        The run of `around` in full size, once it has begun.
    """

    def __init__(self, image: Image, around: Image, region: Window | None, most: int, kept: int) -> None:
        origin = (0, 0) if region is None or around is image else (region.y0, region.x0)
        self.around, self.most = around, most
        self.blocks = FullSizeBlocks(image, origin, kept)
        self.run: LevelRun | None = None
        self._computing: tuple[Cell, Generator[bool, None, None]] | None = None

    def possible(self, overlap: int, tile: int) -> bool:
        """Return whether the image is small enough."""
        height, width = self.around.levels[0].shape[:2]
        return TileGrid(height, width, overlap, tile).count <= self.most

    def next(self, level: int, window: Window) -> Cell | None:
        """Return the next block of a window of a level, from its center; None if there is none."""
        middle = (window.y0 + window.y1) / 2 / BLOCK - 0.5, (window.x0 + window.x1) / 2 / BLOCK - 0.5
        missing = self.blocks.missing(level, window)
        return min(missing, key=lambda cell: math.dist(cell[1:], middle), default=None)

    def advance(self, cell: Cell, begin: Callable[[], LevelRun]) -> bool:
        """Compute the next batch that a block needs; return whether the block is complete.

        `begin` returns the run of the image that takes part, called at the first time.
        """
        # In local names: `forget`, in another thread, may drop the attributes at any time.
        run = self.run
        if run is None:
            run = self.run = begin()
        if not run.ready:
            run.advance()
            return False
        computing = self._computing
        if computing is None or computing[0] != cell:
            computing = self._computing = cell, self.blocks.computed(cell, run, lambda _: None)
        if next(computing[1], None) is not None:
            return False
        self._computing = None
        return True

    def forget(self) -> None:
        """Drop the run and all blocks."""
        self.run, self._computing = None, None
        self.blocks.forget()

    @property
    def progress(self) -> str:
        """How far the run is, such as ``, 30% encoding``; empty before it has begun, and when it is ready."""
        run = self.run
        return "" if run is None or run.ready or not run.total else f", {run.done / run.total:.0%} {run.stage}"
