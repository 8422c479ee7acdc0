"""The second pass: fuse the tokens of all tiles, some tiles' queries at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dehazexl.engine.job import Job, computing
from dehazexl.engine.keys import PooledKeys, StoredKeys
from dehazexl.engine.memory import FUSE_TILES, budget
from dehazexl.engine.tokens import FUSED, TOKENS, TokenStore
from dehazexl.image.grid import SIDE, TileGrid, Window
from dehazexl.model.fusing import KeysValues
from dehazexl.model.network import grid_to_tiles, tiles_to_grid
from dehazexl.model.tokens import Tokens, Votes
from dehazexl.model.windows import Local

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


def fuse(job: Job, store: TokenStore) -> Iterator[int]:
    """Let the tokens of all tiles attend to each other: exactly, or to pooled keys of those far away (`Job.pooled`).

    Keys and values, and the features after each layer, are stored. An interrupted run goes on with the tiles that it
    lacks; the result is the same to the bit. Tiles without data are left out.

    Yields
    ------
    int
        Tiles done since the last; each tile is done once a layer. 0 after other parts of the work.

    Raises
    ------
    OSError
        If stored tokens were damaged after they were encoded.
    """
    if store.fused():
        yield job.grid.count * len(job.model.context.layers)
        return
    steps = job.model.fuse_grid(StreamedTokens(job, store)) if has_data(store) else fuse_nothing(job, store)
    while True:
        # Leave inference mode at each yield; otherwise it would stay on in the caller.
        with computing():
            done = next(steps, None)
        if done is None:
            break
        yield done
    store.finish()


def has_data(store: TokenStore) -> bool:
    """Return whether any token has data."""
    return any(store.get(block)[1].any() for block in store.grid.blocks(store.grid.block))


def fuse_nothing(job: Job, store: TokenStore) -> Iterator[int]:
    """Store fused tokens of an image without data, which nothing depends on."""
    for block in job.grid.blocks(job.grid.block):
        store.put(block, *store.get(block), FUSED)
        yield block.height * block.width * len(job.model.context.layers)


class StreamedTokens:
    """All tokens of an image in a store, taken to the network's device some tiles at a time.

    See `dehazexl.model.fusing.TokenGrid`. What is computed from each token, or the tokens near it, is not stored but
    computed when they are read.

    Parameters
    ----------
    job, store
        The image, and its tokens. They are kept; the features after each layer have names of their own.
    """

    origin = (0, 0)

    def __init__(self, job: Job, store: TokenStore) -> None:
        self.job, self.store = job, store
        self.width = job.model.spec.widths[-1]
        self.shape = (1, job.grid.rows * SIDE, job.grid.cols * SIDE)
        self.overlap = job.grid.overlap / job.model.spec.scale
        self.layer = 0
        self._embed: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self._local: Local | None = None
        self._layers = max(1, len(job.model.context.layers))

    @property
    def groups(self) -> list[list[Window]]:
        """Blocks that are read together; one at a time if each has keys of its own."""
        grid = self.job.grid
        return [[block] for block in grid.blocks(grid.block)] if self.job.pooled else list(_groups(grid))

    def bands(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See `TokenGrid.bands`: rows of tiles."""
        for row in range(self.job.grid.rows):
            tokens, valid = self.store.get(Window(row, row + 1, 0, self.job.grid.cols))
            extra = torch.from_numpy(tokens[..., self.width :])
            yield as_grid(extra), as_grid(torch.from_numpy(valid[..., None]))[..., 0]

    def embed(self, compute: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """See `TokenGrid.embed`."""
        self._embed = compute

    def convolve(self, layer: Local) -> None:
        """See `TokenGrid.convolve`."""
        self._local = layer

    def keys_values(
        self, compute: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], further: tuple[Tensor, Tensor] | None
    ) -> Generator[int, None, KeysValues]:
        """See `TokenGrid.keys_values`."""
        if self.layer < self._finished:
            return []
        yield from self.each(StreamedTokens.keys_of, compute)
        kind = PooledKeys if self.job.pooled else StoredKeys
        return kind(self, f"keys{self.layer}", further, self.keys_fit)

    def keys_of(
        self, group: list[Window], compute: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    ) -> Generator[int, None, None]:
        """Store keys and values of a group of blocks; yield 0 after each part."""
        pool, name = self.job.model.spec.context_pool, f"keys{self.layer}"
        if not all(self.store.done(block, name) for block in group):
            features, valid = self._read(group)
            squares = valid.reshape(-1, SIDE // pool, pool, SIDE // pool, pool).any((2, 4)).reshape(len(valid), -1)
            found = np.zeros((*squares.shape, 2 * self.width), self._keys_dtype)
            if squares.any():
                found[squares] = np.concatenate(list(self._keys(compute, features, valid)))
            self._put(group, name, found, squares)
        yield 0

    def update(
        self, compute: Callable[[KeysValues, Tensor], Tensor], keys_values: KeysValues
    ) -> Generator[int, None, None]:
        """See `TokenGrid.update`."""
        if self.layer < self._finished:
            yield self.job.grid.count
        else:
            yield from self.each(StreamedTokens.update_of, (compute, keys_values))
        self.store.drop(f"keys{self.layer}", *([self._name(self.layer)] if self.layer else []))
        self.layer, self._local = self.layer + 1, None

    def update_of(
        self, group: list[Window], compute: tuple[Callable[[KeysValues, Tensor], Tensor], KeysValues]
    ) -> Generator[int, None, None]:
        """Store the features of a group of blocks after the layer; yield the number of tiles of each part."""
        attend, keys_values = compute
        if isinstance(keys_values, PooledKeys):
            keys_values = keys_values.seen_from(*group)
        after, count = self._name(self.layer + 1), sum(block.count for block in group)
        if not all(self.store.done(block, after) for block in group):
            features, valid = self._read(group)
            out = np.zeros((count, SIDE**2, self.width), self.job.token_dtype)
            data = np.flatnonzero(valid.any(1))
            own = features[torch.from_numpy(data).to(features.device)]
            for part, result in self.job.memory.each(
                len(own), lambda part: attend(keys_values, _stack(own[part])), "fuse"
            ):
                out[data[part]] = _to_numpy(result.view(-1, SIDE**2, self.width))
                yield part.stop - part.start
                count -= part.stop - part.start
            self._put(group, after, out, valid)
        yield count

    def remember(self, compute: Callable[[], Tensor]) -> Tensor:
        """See `TokenGrid.remember`."""
        name, place = f"overview{self.layer + 1}", Window(0, 1, 0, 1)
        if not self.store.done(place, name):
            found = _to_numpy(compute().view(1, 1, SIDE**2, self.width))
            self.store.put(place, found, np.ones(found.shape[:3], bool), name)
        found, _ = self.store.get(place, name)
        return self._on_device(torch.from_numpy(found)).view(1, SIDE, SIDE, self.width)

    def vote(self, compute: Callable[[Tokens], Votes]) -> Generator[int, None, list[Votes]]:
        """See `TokenGrid.vote`."""
        votes = yield from self.each(StreamedTokens.votes_of, compute)
        return [part for parts in votes for part in parts]

    def votes_of(self, group: list[Window], compute: Callable[[Tokens], Votes]) -> Generator[int, None, list[Votes]]:
        """Return the votes of a group of blocks; yield 0 after each part."""
        votes = []
        features, valid = self._read(group)
        extra = torch.cat([_by_tile(self.store.get(block)[0][..., self.width :]) for block in group])
        data = np.flatnonzero(valid.any(1))

        def compute_part(part: slice) -> Votes:
            which = torch.from_numpy(data[part])
            own, carried = features[which.to(features.device)], self._on_device(extra[which])
            return compute(Tokens(_stack(own), _stack(carried), self._valid(valid[data[part]])))

        for _, result in self.job.memory.each(len(data), compute_part, "fuse"):
            votes.append(result)
            yield 0
        return votes

    def carry(self, compute: Callable[[Tokens], Tensor]) -> Generator[int, None, None]:
        """See `TokenGrid.carry`."""
        yield from self.each(StreamedTokens.carry_of, compute)

    def carry_of(self, group: list[Window], compute: Callable[[Tokens], Tensor]) -> Generator[int, None, None]:
        """Store the fused tokens of a group of blocks, each with the tiles around it; yield 0 after each."""
        for block in group:
            if not self.store.done(block, FUSED):
                around = block.expand(1).intersection(self.job.grid.tiles)
                features, valid = self.store.get(around, self._name(self.layer))
                tokens, _ = self.store.get(around)
                grids = (self._on_device(as_grid(torch.from_numpy(x))) for x in (features, tokens[..., self.width :]))
                rows, cols = block.to_slices(around)
                fused = np.zeros((*features.shape[:3], self.job.channels), self.job.token_dtype)
                fused[..., : self.width] = features
                if valid[rows, cols].any():
                    carried = _to_numpy(grid_to_tiles(compute(Tokens(*grids))))
                    fused[..., self.width : self.width + carried.shape[-1]] = carried.reshape(*fused.shape[:3], -1)
                self.store.put(block, fused[rows, cols], valid[rows, cols], FUSED)
            yield 0

    def each(self, work: Work[T], compute: Any) -> Generator[int, None, list[T]]:
        """Call a method such as `keys_of` for each group of blocks; yield as it does, and return what it returns."""
        results = []
        for group in self.groups:
            results.append((yield from work(self, group, compute)))
        return results

    def complete(self, name: str) -> bool:
        """Return whether values are stored for all tiles, and undamaged."""
        return self.store.complete(name)

    @cached_property
    def _finished(self) -> int:
        """Number of layers that a run before this one got to the end of."""
        return next((n for n in range(self._layers, 0, -1) if self._is_finished(n)), 0)

    def read_keys(self, group: list[Window], name: str) -> tuple[Tensor, Tensor]:
        """Return the keys and values ``(1, heads, tokens, channels)`` of a group of blocks, on the device."""
        parts = [values[valid] for values, valid in (self.store.get(block, name) for block in group)]
        return self.split_keys(torch.from_numpy(np.concatenate(parts)))

    def split_keys(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Split ``(tokens, 2 * width)`` into keys and values ``(1, heads, tokens, channels)`` on the device."""
        heads = self.job.model.spec.context_heads
        parts = self._on_device(found).view(1, -1, 2, heads, self.width // heads)
        keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return keys, values

    @property
    def keys_fit(self) -> bool:
        """Whether keys and values of all tokens, or the pooled ones, may lie on the device at once."""
        grid, pool = self.job.grid, self.job.model.spec.context_pool
        count = grid.count * (SIDE // pool) ** 2
        if self.job.pooled:
            squares = -(-grid.block * SIDE // pool // self.job.pooled)  # along the side of a block
            count = len(self.groups) * squares**2
        return count * 2 * self.width * self.job.model.dtype.itemsize <= budget(self.job.model.device)

    def _keys(
        self, compute: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], features: Tensor, valid: NDArray[Any]
    ) -> Iterator[NDArray[Any]]:
        """Yield keys and values ``(tokens, 2 * width)`` of tiles, those of the squares that have data."""

        def compute_part(part: slice) -> Tensor:
            keys, values = compute(_stack(features[part]), self._valid(valid[part]))
            return torch.stack([keys, values], dim=1)[0].permute(2, 0, 1, 3).flatten(1)

        for _, found in self.job.memory.each(len(features), compute_part, "fuse"):
            yield _to_numpy(found)

    def _read(self, group: list[Window]) -> tuple[Tensor, NDArray[np.bool_]]:
        """Return features ``(tiles, 8, 8, c)`` of blocks on the device, and validity ``(tiles, 64)``."""
        features, valid = zip(*map(self._read_block, group), strict=True)
        return torch.cat(features), np.concatenate(valid)

    def _read_block(self, block: Window) -> tuple[Tensor, NDArray[np.bool_]]:
        """Read, embed and convolve the features of a block."""
        margin = 0 if self._local is None else self._local.conv.kernel_size[0] // 2
        grid, (rows, cols) = self.job.grid, block.to_slices(Window(0, 0, 0, 0))
        ys = torch.arange(rows.start * SIDE - margin, rows.stop * SIDE + margin).clamp(0, grid.rows * SIDE - 1)
        xs = torch.arange(cols.start * SIDE - margin, cols.stop * SIDE + margin).clamp(0, grid.cols * SIDE - 1)
        around = Window(int(ys[0]) // SIDE, int(ys[-1]) // SIDE + 1, int(xs[0]) // SIDE, int(xs[-1]) // SIDE + 1)
        tokens, valid = self.store.get(around, self._name(self.layer))
        x = as_grid(torch.from_numpy(tokens[..., : self.width]))
        if margin:  # borders repeat
            x = x[:, ys - SIDE * around.y0][:, :, xs - SIDE * around.x0]
        x = self._on_device(x)
        if self.layer == 0:
            assert self._embed is not None
            x = self._embed(x, *torch.meshgrid(ys.to(x.device), xs.to(x.device), indexing="ij"))
        data = torch.from_numpy(valid.any(-1))
        if not data.all():
            there = data[ys // SIDE - around.y0][:, xs // SIDE - around.x0]
            x = torch.where(there[None, ..., None].to(x.device), x, 0)
        if self._local is not None:
            x = self._local.inside(x)
        rows, cols = block.to_slices(around)
        return grid_to_tiles(x), valid[rows, cols].reshape(-1, SIDE**2)

    def _put(self, group: list[Window], name: str, values: NDArray[Any], valid: NDArray[Any]) -> None:
        """Store values ``(tiles, n, c)`` and validity ``(tiles, n)`` of a group of blocks."""
        start = 0
        for block in group:
            stop, shape = start + block.height * block.width, (block.height, block.width)
            own, marks = values[start:stop], valid[start:stop]
            self.store.put(block, own.reshape(*shape, *own.shape[1:]), marks.reshape(*shape, -1), name)
            start = stop

    def _name(self, layer: int) -> str:
        """Return the name of the features after some layers."""
        if layer == self._layers and not self.job.model.head.votes:
            return FUSED
        return f"features{layer}" if layer else TOKENS

    def _is_finished(self, layer: int) -> bool:
        """Return whether a run before this one got as far as to the end of a layer."""
        overviews = range(1, layer + 1) if self.job.model.spec.overview else ()
        remembered = all(self.store.done(Window(0, 1, 0, 1), f"overview{n}") for n in overviews)
        return remembered and self.complete(self._name(layer))

    def _valid(self, valid: NDArray[np.bool_]) -> Tensor | None:
        """Return the validity of tiles ``(tiles, 64)``, one above the other ``(1, 8 tiles, 8)``; None for all."""
        return None if valid.all() else torch.from_numpy(valid).view(1, -1, SIDE).to(self.job.model.device)

    def _on_device(self, tokens: Tensor) -> Tensor:
        """Bring tokens to the network's device and precision."""
        return tokens.to(self.job.model.device, self.job.model.dtype)

    @property
    def _keys_dtype(self) -> type[np.floating[Any]]:
        """Precision in which keys and values are stored: that of the network, or one that contains it."""
        return np.float16 if self.job.model.dtype == torch.float16 else np.float32


Work = Callable[[StreamedTokens, list[Window], Any], Generator[int, None, T]]
"""A method of `StreamedTokens` that does a part of the work for a group of blocks."""


def _groups(grid: TileGrid) -> Iterator[list[Window]]:
    """Yield consecutive blocks that are read together: as many as fit `FUSE_TILES`, at least one."""
    group: list[Window] = []
    count = 0
    for block in grid.blocks(grid.block):
        tiles = block.height * block.width
        if group and count + tiles > FUSE_TILES:
            yield group
            group, count = [], 0
        group.append(block)
        count += tiles
    yield group


def as_grid(tokens: Tensor) -> Tensor:
    """Arrange the tokens of a rectangle of tiles ``(rows, cols, 64, c)`` as a grid ``(1, 8 rows, 8 cols, c)``."""
    rows, cols, _, channels = tokens.shape
    return tiles_to_grid(tokens.reshape(-1, SIDE, SIDE, channels), rows, cols)


def _by_tile(tokens: NDArray[Any]) -> Tensor:
    """Return the tokens of a rectangle of tiles ``(rows, cols, 64, c)`` as ``(tiles, 8, 8, c)``."""
    return torch.from_numpy(tokens).reshape(-1, SIDE, SIDE, tokens.shape[-1])


def _stack(tiles: Tensor) -> Tensor:
    """Arrange tiles ``(tiles, 8, 8, c)`` one above the other ``(1, 8 tiles, 8, c)``."""
    return tiles.flatten(0, 1)[None]


def _to_numpy(values: Tensor) -> NDArray[Any]:
    """Convert values to an array; numpy has no bfloat16."""
    return (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()
