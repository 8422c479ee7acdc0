"""Sample data: hazy pictures that need no download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    LayerData = tuple[Any, dict[str, Any], str]

PIECE = 1024
"""Pixels: side of the picture that the large one repeats, mirrored."""

LARGE = 16384
"""Pixels: side of the large picture."""


def scene() -> list[LayerData]:
    """Make a hazy picture of farmland, 1500 x 2000 pixels. A second or two."""
    from dehazexl.commands.demo import with_haze
    from dehazexl.scene import aerial

    return [(with_haze(aerial(1500, 2000, 3), 3), {"name": "hazy farmland", "rgb": True}, "image")]


def large_scene() -> list[LayerData]:
    """Make a lazy hazy picture of farmland, 16384 x 16384 pixels; its pixels are made when they are looked at.

    The land repeats every 2048 pixels; the haze over it does not.
    """
    import dask.array as da
    import numpy as np

    from dehazexl.scene import aerial

    piece = aerial(PIECE, PIECE, 1)
    levels = []
    for step in (2**number for number in range(9)):
        side, chunk = LARGE // step, min(1024, LARGE // step)
        blocks = da.zeros((side, side, 3), chunks=(chunk, chunk, 3), dtype=np.uint8)
        levels.append(blocks.map_blocks(_block, piece=piece, step=step, dtype=np.uint8, name=f"farmland-{step}"))
    return [(levels, {"name": "hazy farmland, large", "rgb": True, "multiscale": True, "cache": False}, "image")]


def _block(block: NDArray[np.uint8], piece: NDArray[np.uint8], step: int, block_info: Any = None) -> NDArray[np.uint8]:
    """Make a block ``(y, x, 3)`` of every `step`-th pixel of the large picture."""
    import numpy as np

    (y0, y1), (x0, x1), _ = block_info[0]["array-location"]
    y, x = np.arange(y0, y1) * step, np.arange(x0, x1) * step
    folded = [PIECE - 1 - np.abs(place % (2 * PIECE) - PIECE + 0.5).astype(int) for place in (y, x)]
    clear = piece[folded[0][:, None], folded[1]].astype(np.float32)
    waves = sum(
        np.sin(y[:, None] / a + np.sin(x / b) * 2) * np.cos(x / a - np.cos(y[:, None] / b))
        for a, b in ((3100, 2300), (1400, 900))
    )
    t = np.exp(-0.55 - 0.28 * waves)[..., None].astype(np.float32)
    return np.asarray(np.rint(clear * t + np.array([222, 226, 230], np.float32) * (1 - t)), np.uint8)
