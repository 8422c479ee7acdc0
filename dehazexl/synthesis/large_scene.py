"""A hazy image larger than memory: its pixels are computed where they are read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from dehazexl.io.open import open_image
from dehazexl.synthesis.sample import clear_sample

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.image.image import Image

PIECE = 1024
"""Pixels: side of the part of the photograph that is repeated, mirrored."""

LARGE = 16384
"""Pixels: side of the image."""

CHUNK = 512
"""Pixels: side of a block that is computed at once; a viewer waits for all blocks in view."""


def large_scene() -> Image:
    """Return a lazy hazy image of 16384 x 16384 pixels with its overviews.

    The photograph repeats every 2048 pixels; the haze over it does not.
    """
    piece = clear_sample()[-PIECE:, :PIECE]  # no sky
    levels = []
    for step in (2**number for number in range(9)):
        side, chunk = LARGE // step, min(CHUNK, LARGE // step)
        blocks = da.zeros((side, side, 3), chunks=(chunk, chunk, 3), dtype=np.uint8)
        levels.append(blocks.map_blocks(_block, piece=piece, step=step, dtype=np.uint8, name=f"meadow-{step}"))
    return replace(open_image(levels[0]), levels=tuple(levels), name="hazy meadow, large")


def _block(block: NDArray[np.uint8], piece: NDArray[np.uint8], step: int, block_info: Any = None) -> NDArray[np.uint8]:
    """Make a block ``(y, x, 3)`` of every `step`-th pixel of the image."""
    (y0, y1), (x0, x1), _ = block_info[0]["array-location"]
    y, x = np.arange(y0, y1) * step, np.arange(x0, x1) * step
    folded = [PIECE - 1 - np.abs(place % (2 * PIECE) - PIECE + 0.5).astype(int) for place in (y, x)]
    clear = piece[folded[0][:, None], folded[1]].astype(np.float32)
    waves = sum(_waves(y, x, a, b) for a, b in ((3100, 2300), (1400, 900)))
    t = np.exp(-0.55 - 0.28 * waves)[..., None]
    airlight = np.array([222, 226, 230], np.float32)
    clear -= airlight
    clear *= t
    clear += airlight
    return np.asarray(np.rint(clear, out=clear), np.uint8)


def _waves(y: NDArray[np.int_], x: NDArray[np.int_], a: float, b: float) -> NDArray[np.float32]:
    """Compute ``sin(y / a + 2 sin(x / b)) cos(x / a - cos(y / b))``, as products of what depends on y or x alone."""

    def product(rows: list[Any], cols: list[Any]) -> NDArray[np.float32]:
        return np.stack(rows, axis=1).astype(np.float32) @ np.stack(cols).astype(np.float32)

    bent, lean = 2 * np.sin(x / b), np.cos(y / b)
    one = product([np.sin(y / a), np.cos(y / a)], [np.cos(bent), np.sin(bent)])
    other = product([np.cos(lean), np.sin(lean)], [np.cos(x / a), np.sin(x / a)])
    return np.asarray(one * other)
