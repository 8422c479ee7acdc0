"""A job on the workers of a dask cluster.

Each stage is cut into tasks of many tiles. A task is small: it names its tiles and the `Recipe` of the job. The worker
reads the image, computes with its own copy of the network, and writes whole chunks of tokens or pixels, which no other
task writes; so a task may be repeated, and one that is done finds that out by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

from dehazexl.engine.cluster_fuse import fuse
from dehazexl.engine.decode import decode, decode_with_haze
from dehazexl.engine.encode import encode
from dehazexl.engine.recipe import Recipe, forget_steps
from dehazexl.engine.run import Stage
from dehazexl.engine.tasks import Tasks
from dehazexl.image.grid import TileGrid, Window

if TYPE_CHECKING:
    from dehazexl.engine.maps import MapStore
    from dehazexl.io.level0 import Level0, Level0Blocks

TILES = 256
"""Tiles of a task at most, but for one larger block."""

SHARES = 4
"""Tasks of a stage for each thread of the workers, at least, where blocks suffice: then none waits long for another."""


class Cluster(Tasks):
    """A job on the workers of a dask cluster; see `Tasks`."""

    def stages(self) -> Iterator[Stage]:
        """Yield the stages that come before decoding, see `engine.run.stages`."""
        yield Stage("encode", self.job.grid.count, self._encode())
        yield Stage("fuse", self.job.grid.count * len(self.job.model.context.layers), fuse(self))

    def _encode(self) -> Iterator[int]:
        """Encode the tiles that are not in the store; yield the number of tiles of each part."""
        if self.store.fused():
            yield self.job.grid.count
            return
        blocks = list(self.job.grid.blocks(self.job.grid.block))
        for _, tiles in self.each(encode_blocks, self.grouped(blocks, [block.count for block in blocks])):
            yield tiles

    def fill(
        self,
        level0: Level0,
        on_progress: Callable[[int], object] = lambda _: None,
        window: Window | None = None,
        maps: MapStore | None = None,
    ) -> Generator[int, None, None]:
        """Decode the blocks of an image that are missing, see `io.level0.Fill`.

        Parameters
        ----------
        level0
            The finest level of the output.
        on_progress
            Called with the number of tiles of each part that is decoded.
        window
            Pixels of the job's image that the output shows; None for all.
        maps
            Maps of the output, to be written as well.
        """
        blocks, (height, width) = level0.blocks, level0.levels.sizes[0]
        y, x = (0, 0) if window is None else (window.y0, window.x0)
        missing = list(blocks.missing())
        if before := height * width - sum(block.count for block in missing):
            yield before
        groups = self.grouped(missing, [self.job.grid.tiles_touching(block.moved(y, x)).count for block in missing])
        for number, tiles in self.each(decode_blocks, [(blocks, (y, x), group, maps) for group in groups]):
            on_progress(tiles)
            yield sum(block.count for block in groups[number])

    def grouped(self, blocks: Sequence[Window], tiles: Sequence[int]) -> list[list[Window]]:
        """Group consecutive blocks to tasks of at most `TILES` tiles, and fewer where there are few."""
        threads = sum(worker["nthreads"] for worker in self.workers())
        most = min(TILES, sum(tiles) // max(1, SHARES * threads))
        groups: list[list[Window]] = []
        size = 0
        for block, count in zip(blocks, tiles, strict=True):
            if not groups or size + count > most:
                groups.append([])
                size = 0
            groups[-1].append(block)
            size += count
        return groups


def encode_blocks(recipe: Recipe, blocks: Sequence[Window]) -> int:
    """Encode blocks of tiles that are not in the store; return the number of tiles."""
    for _ in encode(recipe.job(), recipe.store, blocks):
        recipe.check()
    return sum(block.count for block in blocks)


def decode_blocks(recipe: Recipe, work: tuple[Level0Blocks, tuple[int, int], Sequence[Window], MapStore | None]) -> int:
    """Decode blocks of pixels that are missing, and write them; return the number of tiles that begin in them.

    The tuple in `work` is the place of the output's first pixel in the image.
    """
    forget_steps()
    level0, origin, blocks, maps = work
    for block in blocks:
        if not level0.done(block):
            place = block.moved(*origin)
            if maps is None:
                pixels = decode(recipe.job(), recipe.store, place, recipe.check)
            else:
                pixels, haze = decode_with_haze(recipe.job(), recipe.store, place, recipe.check)
            recipe.check()
            if maps is not None:  # before the block is marked as done
                maps.put(recipe.job(), block, haze)
            level0.write(block, pixels)
    height, width = level0.levels.sizes[0]
    output = Window(0, height, 0, width).moved(*origin)
    return sum(_beginning(recipe.grid, block.moved(*origin), output) for block in blocks)


def _beginning(grid: TileGrid, window: Window, output: Window) -> int:
    """Return the number of tiles whose first pixel of the output lies in a window; in all windows, each tile once."""
    corners = [grid.tile(*cell).intersection(output) for cell in grid.tiles_touching(window).cells()]
    return sum(window.y0 <= corner.y0 and window.x0 <= corner.x0 for corner in corners)
