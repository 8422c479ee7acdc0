"""An estimate of tiles, memory and time, before anything is computed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dehazexl.image.grid import TILE, TOKEN, TileGrid
from dehazexl.viewing.meter import duration

if TYPE_CHECKING:
    from dehazexl.viewing.model_info import ModelInfo
    from napari_dehazexl._save import Progress

BASE = 350e6
"""Bytes of the running network, independent of the size of the image."""

PIXEL = 110
"""Bytes per pixel of 8-bit RGB under way: read, dehazed, written, and the feature maps of its tile."""

UNDER_WAY = 2 * 2048**2
"""Pixels under way at most: two blocks. The estimate was within 30 % for saves of 0.3 to 268 megapixels."""

CPU = 0.1
"""Seconds per tile on a CPU with the bundled weights: a rough figure until a save was measured."""

WIDTH = 256
"""Channels of a token of the bundled weights; the time grows with their square."""


def estimated(grid: TileGrid, network: ModelInfo, measured: float | None) -> str:
    """Return a line with the number of tiles, the memory and the time that dehazing takes.

    Parameters
    ----------
    grid
        The tiles of the image.
    network
        Properties of the network.
    measured
        Seconds per tile of an earlier save, or None.
    """
    count = grid.count
    tiles = "1 tile" if count == 1 else f"{count} tiles"
    return f"{tiles}, about {memory(grid, network) / 1e9:.1f} GB of memory, {_time(grid, network, measured)}"


def memory(grid: TileGrid, network: ModelInfo) -> float:
    """Return the bytes of a save: network, pixels under way, tokens, keys and values of one layer of the context."""
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


class Clock:
    """Measures the time of a save without loading the weights.

    Parameters
    ----------
    complete
        Whether the save starts from the beginning: the time of one that is resumed says nothing.
    """

    def __init__(self, complete: bool) -> None:
        self._complete = complete
        self._started: float | None = None

    def see(self, progress: Progress) -> None:
        """Start the clock at the first tiles."""
        if self._started is None and progress.stage == "encoding":
            self._started = time.perf_counter()

    def seconds(self) -> float | None:
        """Return the seconds since the first tiles, or None."""
        return time.perf_counter() - self._started if self._complete and self._started is not None else None
