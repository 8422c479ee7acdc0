"""The second pass: fuse the tokens of all tiles, some tiles' queries at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from dehazexl.engine.job import Job, computing
from dehazexl.engine.tokens import TokenStore
from dehazexl.image.grid import SIDE
from dehazexl.model.network import grid_to_tiles, tiles_to_grid
from dehazexl.model.tokens import Tokens
from dehazexl.model.windows import Local, repeat_edges

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


def fuse(job: Job, store: TokenStore) -> Iterator[int]:
    """Let the tokens of all tiles attend to each other, exactly.

    The device holds the keys and values of one layer and the tokens of some tiles, at most of a row of tiles.

    Yields
    ------
    int
        Tiles done since the last; each tile is done once a layer. 0 after other parts of the work.
    """
    if store.fused():
        yield job.grid.count * len(job.model.context.layers)
        return
    array, valid = store.tokens()
    steps = job.model.fuse_grid(StreamedTokens(job, array, valid))
    while True:
        # Leave inference mode at each yield; otherwise it would stay on in the caller.
        with computing():
            done = next(steps, None)
        if done is None:
            break
        yield done
    store.put_fused(array)


class StreamedTokens:
    """All tokens of an image in the processor's memory, taken to the network's device some tiles at a time.

    See `dehazexl.model.fusing.TokenGrid`.

    Parameters
    ----------
    job
        The image.
    array
        Its tokens ``(rows, cols, 64, channels)`` by tile, to be overwritten.
    valid
        Tokens with data ``(rows, cols, 64)``; without any, all count.
    """

    origin = (0, 0)

    def __init__(self, job: Job, array: NDArray[Any], valid: NDArray[Any]) -> None:
        self.job = job
        tokens = torch.from_numpy(array).view(-1, SIDE, SIDE, job.channels)
        width = job.model.spec.widths[-1]
        self.features, self.extra = tokens.split([width, job.channels - width], -1)
        self.valid = torch.from_numpy(valid).view(-1, SIDE, SIDE)
        if not self.valid.any():
            self.valid = torch.ones_like(self.valid)
        self.shape = (1, job.grid.rows * SIDE, job.grid.cols * SIDE)
        self.overlap = job.grid.overlap / job.model.spec.scale

    def map(self, compute: Callable[[Tokens], T]) -> Generator[int, None, list[T]]:
        """See `TokenGrid.map`."""
        results = []
        for chunk, result in self._each(compute):
            results.append(result)
            yield chunk.stop - chunk.start
        return results

    def update(self, compute: Callable[[Tokens], Tensor]) -> Generator[int, None, None]:
        """See `TokenGrid.update`."""
        for chunk, result in self._each(compute):
            self.features[chunk] = result.view(-1, *self.features.shape[1:]).to(self.features)
            yield chunk.stop - chunk.start

    def convolve(self, layer: Local) -> Iterator[int]:
        """See `TokenGrid.convolve`: in place, a row of tiles at a time."""
        margin = layer.conv.kernel_size[0] // 2
        cols = self.job.grid.cols
        rows = self.features.view(self.job.grid.rows, cols, *self.features.shape[1:])
        above = None  # the last tokens of the row above, as they were before
        for row in range(len(rows)):
            here = tiles_to_grid(rows[row], 1, cols)
            last = row + 1 == len(rows)
            below = here[:, -1:].expand(-1, margin, -1, -1) if last else tiles_to_grid(rows[row + 1], 1, cols)
            above = here[:, :1].expand(-1, margin, -1, -1) if above is None else above
            convolved = convolve_row(self.job, layer, above, here, below[:, :margin])
            above = here[:, -margin:].clone()
            rows[row] = convolved.to(self.features)
            yield 0

    def join(self, parts: list[Tensor]) -> Tensor:
        """See `TokenGrid.join`; in the processor's memory."""
        tiles = torch.cat([part.cpu() for part in parts], dim=1).view(-1, SIDE, SIDE, parts[0].shape[-1])
        return tiles_to_grid(tiles, self.job.grid.rows, self.job.grid.cols)

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """See `TokenGrid.whole`."""
        rows, cols = self.job.grid.rows, self.job.grid.cols
        valid = None if self.valid.all() else tiles_to_grid(self.valid[..., None], rows, cols)[..., 0]
        return tiles_to_grid(self.extra, rows, cols), valid

    def put(self, extra: Tensor) -> None:
        """See `TokenGrid.put`."""
        count = extra.shape[-1]
        self.extra[..., :count] = grid_to_tiles(extra).to(self.extra)
        self.extra[..., count:] = 0

    def _each(self, compute: Callable[[Tokens], T]) -> Iterator[tuple[slice, T]]:
        """Compute all tiles, some at a time."""
        return self.job.memory.each(self.job.grid.count, lambda chunk: compute(self._part(chunk)), "fuse")

    def _part(self, chunk: slice) -> Tokens:
        """Return consecutive tiles, see `as_tokens`."""
        return as_tokens(self.job, self.features[chunk], self.extra[chunk], self.valid[chunk], chunk.start)


def as_tokens(job: Job, features: Tensor, extra: Tensor, valid: Tensor, first: int) -> Tokens:
    """Return consecutive tiles as a grid, one above the other ``(1, 8 tiles, 8, c)``, on the network's device.

    Parameters
    ----------
    job
        The image.
    features, extra, valid
        ``(tiles, 8, 8, c)``, ``(tiles, 8, 8, k)`` and ``(tiles, 8, 8)``.
    first
        Number of the first tile, in row-major order.
    """
    features, extra = (on_device(job, each.flatten(0, 1)[None]) for each in (features, extra))
    tiles = torch.arange(first, first + len(valid), device=features.device)
    inside = torch.arange(SIDE, device=features.device)
    rows = ((tiles // job.grid.cols * SIDE)[:, None] + inside).view(-1, 1).expand(-1, SIDE)
    cols = ((tiles % job.grid.cols * SIDE)[:, None, None] + inside).expand(-1, SIDE, -1).reshape(-1, SIDE)
    valid = valid.to(features.device).view(1, -1, SIDE)
    return Tokens(features, extra, rows, cols, None if bool(valid.all()) else valid)


def on_device(job: Job, tokens: Tensor) -> Tensor:
    """Bring tokens to the network's device and precision."""
    return tokens.to(job.model.device, job.model.dtype)


def convolve_row(job: Job, layer: Local, above: Tensor, here: Tensor, below: Tensor) -> Tensor:
    """Convolve a row of tiles ``(1, 8, w, c)``, given the margins of tokens above and below; return its tiles."""
    margin = layer.conv.kernel_size[0] // 2
    wide = repeat_edges(on_device(job, torch.cat([above, here, below], dim=1)), margin)[:, margin:-margin]
    return grid_to_tiles(layer.inside(wide))
