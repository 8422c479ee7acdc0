"""One level of an image, dehazed batch by batch: encoded and fused as a whole, then decoded where it is viewed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from dehazexl.image.grid import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.engine.job import Job
    from dehazexl.engine.memory import TilesAtOnce
    from dehazexl.engine.tokens import TokenStore
    from dehazexl.image.image import Image
    from dehazexl.model import DehazeXL

MAPS = 128 * 2**20
"""Bytes of feature maps in the cache of a level."""

FAR = 60000
"""Colors beyond it are clipped: tiles are kept in half precision. It lies far outside the value range."""


STAGES = {"encode": "encoding", "fuse": "fusing"}
"""Names of the stages of a run while they are under way."""


@dataclass(eq=False)
class LevelRun:
    """The dehazing of one level.

    Attributes
    ----------
    job, store
        The level as an image of its own, and its tokens.
    stage, done, total
        The stage before decoding that is under way, its finished tiles and their total.
    ready
        Whether tiles can be decoded.
    seconds
        Seconds per tile of each pass, as last measured.
    """

    job: Job
    store: TokenStore
    stage: str = "encoding"
    done: int = 0
    total: int = 0
    ready: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._steps = self._prepared()

    @classmethod
    def begin(
        cls,
        image: Image,
        level: int,
        model: DehazeXL,
        overlap: int | None,
        value_range: tuple[float, float],
        memory: TilesAtOnce | None,
    ) -> LevelRun:
        """Prepare to dehaze a level of an image; `memory`, if given, is shared with other levels."""
        from dehazexl.engine.borders import find_border
        from dehazexl.engine.dehaze import open_tokens, prepare

        # One border for all levels: in a coarse one it is blurred.
        alone = replace(find_border(image), levels=(image.levels[level],))
        job = prepare(alone, model, overlap, value_range=value_range, batch=memory or "auto", border="keep")
        job = replace(job, keep=MAPS)
        return cls(job, open_tokens(job))

    def advance(self) -> None:
        """Encode or fuse the next batch."""
        started, before = time.perf_counter(), self.done
        self.ready = next(self._steps, None) is None
        if self.stage == "encoding" and self.done > before:
            self.seconds["encode"] = (time.perf_counter() - started) / (self.done - before)

    def interrupt(self) -> None:
        """Close the pass under way, with its threads that read ahead; `advance` continues it."""
        if not self.ready:
            self._steps.close()
            self._steps = self._prepared()

    def decode(self, cells: list[tuple[int, int]]) -> dict[tuple[int, int], NDArray[np.float16]]:
        """Dehaze the first of some tiles, and those of its batch.

        Returns
        -------
        dict
            Tiles ``(tile, tile, 3)`` by row and column, on the unit scale but not clipped to it.
        """
        from dehazexl.engine.decode import decode_tiles
        from dehazexl.engine.tiles import Tiles

        side = max(1, math.isqrt(self.job.memory.batch))
        row, col = (n // side * side for n in cells[0])
        tiles = Window(row, row + side, col, col + side).intersection(self.job.grid.tiles)
        started = time.perf_counter()
        clear: dict[tuple[int, int], NDArray[np.float16]] = {}
        for batch in decode_tiles(self.job, self.store, Tiles.read(self.job, tiles), list(tiles.cells())):
            colors = batch.clear.clamp(-FAR, FAR).permute(0, 2, 3, 1).cpu().numpy().astype(np.float16)
            clear.update(zip(batch.cells, colors, strict=True))
        self.seconds["decode"] = (time.perf_counter() - started) / len(clear)
        return {cell: tile for cell, tile in clear.items() if cell in cells}

    def predict_affine(self, stopped: Callable[[], bool]) -> NDArray[np.float32] | None:
        """Return gain and bias of every pixel of the level, ``(2, 3, y, x)``, or None if `stopped` returns True."""
        import torch

        from dehazexl.engine.decode import add, decode_tiles
        from dehazexl.engine.tiles import Tiles

        grid = self.job.grid
        whole = Window(0, grid.height, 0, grid.width)
        total = torch.zeros(6, grid.height, grid.width)
        for row in range(grid.rows):
            if stopped():
                return None
            started, tiles = time.perf_counter(), Window(row, row + 1, 0, grid.cols)
            for batch in decode_tiles(self.job, self.store, Tiles.read(self.job, tiles), list(tiles.cells())):
                both = torch.cat([batch.affine.gain, batch.affine.bias], dim=1).cpu()
                for _, tile, weighted in batch.weighted(grid, both):
                    add(weighted, tile, total, whole)
            self.seconds["decode"] = (time.perf_counter() - started) / grid.cols
        return np.asarray(total.view(2, 3, grid.height, grid.width))

    def _prepared(self) -> Generator[bool, None, None]:
        """Encode and fuse the level; yield after each batch."""
        from dehazexl.engine.run import stages

        for stage in stages(self.job, self.store):
            self.stage, self.done, self.total = STAGES[stage.name], 0, stage.total
            for some in stage.steps:
                self.done += some
                yield True
