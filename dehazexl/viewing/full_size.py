"""Blocks of the levels of an image as its file will have them: means of the pixels dehazed in full size.

The levels are first dehazed as images of their own, which takes a second for an image of any size. The network sees
other pixels there than in full size, and a saved file looks slightly different.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.grid import Window
from dehazexl.image.image import Image, colors, valid_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.viewing.level import LevelRun

BLOCK = 256
"""Pixels: side of a block of a level."""

STEP = 1024
"""Pixels: side of the windows of full size that are dehazed one after the other, about."""

Cell = tuple[int, int, int]
"""Level, row and column of a block."""


class FullSizeBlocks:
    """Blocks of dehazed levels, safe to use from any thread.

    Parameters
    ----------
    image
        The image of the levels.
    origin
        Row and column of its first pixel in the larger image that takes part, if it is a region of one.
    kept
        Bytes of blocks to keep. Those that were last wanted longest ago are dropped first.
    """

    def __init__(self, image: Image, origin: tuple[int, int], kept: int) -> None:
        self.image, self.origin = image, origin
        self.most = max(1, kept // (BLOCK**2 * 3 * 2))
        self.factors = [_factor(image.levels[0].shape, level.shape) for level in image.levels]
        self._blocks: OrderedDict[Cell, NDArray[np.float16]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._blocks)

    def touching(self, level: int, window: Window) -> list[Cell]:
        """List the blocks of a window of a level; none if its pixels are no means of whole squares of pixels."""
        if self.factors[level] is None:
            return []
        height, width = self.image.levels[level].shape[:2]
        inside = window.intersection(Window(0, height, 0, width))
        rows = range(inside.y0 // BLOCK, -(-inside.y1 // BLOCK))
        return [(level, row, col) for row in rows for col in range(inside.x0 // BLOCK, -(-inside.x1 // BLOCK))]

    def missing(self, level: int, window: Window) -> list[Cell]:
        """List the blocks of a window that are not there yet; none if they cannot all be kept."""
        cells = self.touching(level, window)
        with self._lock:
            for cell in cells:
                if cell in self._blocks:
                    self._blocks.move_to_end(cell)
            missing = [cell for cell in cells if cell not in self._blocks]
        return missing if len(cells) <= self.most else []

    def complete(self, level: int, window: Window) -> bool:
        """Return whether all of a window is there."""
        cells = self.touching(level, window)
        return bool(cells) and all(cell in self._blocks for cell in cells)

    def put(self, cell: Cell, pixels: NDArray[np.float16]) -> None:
        """Keep a block ``(y, x, 3)``."""
        with self._lock:
            self._blocks[cell] = pixels
            while len(self._blocks) > self.most:
                self._blocks.popitem(last=False)

    def forget(self) -> None:
        """Drop all blocks."""
        with self._lock:
            self._blocks.clear()

    def paste(self, level: int, window: Window, clear: NDArray[np.float32]) -> NDArray[np.float32]:
        """Replace what is there of a window in its dehazed colors ``(y, x, 3)``, on the unit scale."""
        pasted = clear
        for cell in self.touching(level, window):
            block = self._blocks.get(cell)
            if block is None:
                continue
            if pasted is clear:
                pasted = clear.copy()
            place = self.place(cell)
            shared = place.intersection(window)
            pasted[shared.to_slices(window)] = block[shared.to_slices(place)]
        return pasted

    def place(self, cell: Cell) -> Window:
        """Return the window of a block in its level."""
        level, row, col = cell
        height, width = self.image.levels[level].shape[:2]
        y, x = row * BLOCK, col * BLOCK
        return Window(y, min(y + BLOCK, height), x, min(x + BLOCK, width))

    def computed(self, cell: Cell, run: LevelRun, check: Callable[[int], object]) -> Generator[bool, None, None]:
        """Compute a block from the tokens of the whole image, and keep it; yield after each part."""
        factor, place = self.factors[cell[0]], self.place(cell)
        assert factor is not None
        block = np.zeros((place.height, place.width, 3), np.float16)
        side = max(1, STEP // factor)
        for y in range(place.y0, place.y1, side):
            for x in range(place.x0, place.x1, side):
                part = Window(y, min(y + side, place.y1), x, min(x + side, place.x1))
                block[part.to_slices(place)] = self._mean(part, factor, run, check)
                yield True
        self.put(cell, block)

    def _mean(self, part: Window, factor: int, run: LevelRun, check: Callable[[int], object]) -> NDArray[Any]:
        """Return the means of squares of dehazed pixels, on the unit scale."""
        from dehazexl.engine.decode import decode

        height, width = self.image.levels[0].shape[:2]
        fine = Window(
            part.y0 * factor, min(part.y1 * factor, height), part.x0 * factor, min(part.x1 * factor, width)
        ).moved(*self.origin)
        pixels = decode(run.job, run.store, fine, check)
        unit = run.job.scale.to_unit(colors(pixels, run.job.image))
        valid = valid_mask(pixels, run.job.image)[..., None].astype(np.float32)
        weights = _sums(valid, factor)
        means = _sums(np.where(valid > 0, unit, 0), factor) / np.maximum(weights, 1)
        return np.asarray(np.where(weights > 0, means, unit[::factor, ::factor]))


def _factor(fine: tuple[int, ...], coarse: tuple[int, ...]) -> int | None:
    """Return the side of the squares of pixels that became pixels of a coarser level, or None."""
    factor = round(fine[0] / coarse[0])
    fits = all(-(-fine[axis] // factor) == coarse[axis] for axis in (0, 1))
    return factor if fits else None


def _sums(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Return the sums of squares of values ``(y, x, c)``; the last ones may be of fewer."""
    rows = np.add.reduceat(values, np.arange(0, values.shape[0], factor), axis=0)
    return np.asarray(np.add.reduceat(rows, np.arange(0, values.shape[1], factor), axis=1))
