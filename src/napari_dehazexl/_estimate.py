"""How many tiles, how much memory and about how long: what is said before anything is run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dehazexl.image.grid import TILE, TOKEN, TileGrid

if TYPE_CHECKING:
    from dehazexl.viewing.model_info import ModelInfo
    from napari_dehazexl._save import Progress

BASE = 350e6
"""Bytes for the network at work, whatever the picture's size."""

PIXEL = 110
"""Bytes for a pixel of 8-bit RGB under way: read, dehazed, written, and its tile's feature maps."""

UNDER_WAY = 2 * 2048**2
"""Pixels under way at most: two blocks. Saves of 0.3 to 268 megapixels took what these numbers say, within 30 %."""

CPU = 0.1
"""Seconds that a tile takes on a CPU with the bundled weights' widths: a rough figure, until a save was measured."""

WIDTH = 256
"""Channels of a token of the bundled weights; the time grows with its square."""


def estimated(grid: TileGrid, network: ModelInfo, measured: float | None) -> str:
    """Say what it takes to dehaze all of a picture.

    Parameters
    ----------
    grid
        How it is cut.
    network
        What is known of the network.
    measured
        Seconds that a tile took in an earlier save, or None.
    """
    count = grid.count
    tiles = "1 tile" if count == 1 else f"{count} tiles"
    return f"{tiles}, about {memory(grid, network) / 1e9:.1f} GB of memory, {_time(grid, network, measured)}"


def memory(grid: TileGrid, network: ModelInfo) -> float:
    """Return the bytes that a save takes: the network, pixels under way, tokens, their keys and values in a layer."""
    numbers = grid.count * (TILE // TOKEN) ** 2 * network.channels
    tokens = numbers * network.itemsize * (1 + 2 / network.pool**2)
    return BASE + PIXEL * min(grid.height * grid.width, UNDER_WAY) + tokens


def _time(grid: TileGrid, network: ModelInfo, measured: float | None) -> str:
    tiles = grid.count
    if measured is not None:
        return f"about {duration(tiles * measured)}"
    if not network.on_cpu:
        return "time known after the first save on this device"
    return f"roughly {duration(tiles * CPU * (network.channels / WIDTH) ** 2)} on a CPU"


def duration(seconds: float) -> str:
    """Write a time for people."""
    if seconds < 100:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


class Clock:
    """Measures a save without the loading of the weights; one that goes on after what is there tells nothing."""

    def __init__(self, anew: bool) -> None:
        self._anew = anew
        self._started: float | None = None

    def see(self, progress: Progress) -> None:
        """Begin to count at the first tiles."""
        if self._started is None and progress.stage == "encoding":
            self._started = time.perf_counter()

    def seconds(self) -> float | None:
        """Return the seconds since then, or None."""
        return time.perf_counter() - self._started if self._anew and self._started is not None else None
