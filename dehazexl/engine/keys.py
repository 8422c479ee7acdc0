"""Keys and values of all tokens in a store: as they are, or pooled where they are far from the tiles that attend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dehazexl.image.grid import Window
from dehazexl.model.fusing import join_keys_values

if TYPE_CHECKING:
    from dehazexl.engine.job import Job
    from dehazexl.engine.tokens import TokenStore


class TokensWithKeys(Protocol):
    """Tokens whose keys and values lie in a store, see `dehazexl.engine.fuse.StreamedTokens`."""

    job: Job
    store: TokenStore

    @property
    def groups(self) -> list[list[Window]]:
        """Blocks that are read together."""

    def read_keys(self, group: list[Window], name: str) -> tuple[Tensor, Tensor]:
        """Return the keys and values ``(1, heads, tokens, channels)`` of a group of blocks, on the device."""

    def split_keys(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Split ``(tokens, 2 * width)`` into keys and values ``(1, heads, tokens, channels)`` on the device."""


class StoredKeys:
    """Keys and values of all tokens, on the device if they fit, else read block by block each time.

    Parameters
    ----------
    tokens, name
        The tokens, and the name of keys and values in their store.
    further
        Further keys and values.
    fit
        Whether all that are attended to at once fit on the device.
    """

    def __init__(self, tokens: TokensWithKeys, name: str, further: tuple[Tensor, Tensor] | None, fit: bool) -> None:
        self.tokens, self.name, self.further, self.fit = tokens, name, further, fit

    def __reduce__(self) -> tuple[type[StoredKeys], tuple[Any, ...]]:
        return type(self), (self.tokens, self.name, self.further, self.fit)

    @cached_property
    def _all(self) -> tuple[Tensor, Tensor]:
        return join_keys_values(self._blocks())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self._all]) if self.fit else self._blocks()

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for group in self.tokens.groups:
            keys, values = self.tokens.read_keys(group, self.name)
            if keys.shape[2]:
                yield keys, values
        if self.further is not None:
            yield self.further


class PooledKeys(StoredKeys):
    """Keys and values that are pooled where they are far away; as they are, they are read block by block each time.

    A block of tiles sees its own keys and those of the up to eight blocks around it as they are. The keys of a square
    of any other block become their mean, as do their values, and count as often as there are keys in the square that
    have data: the logarithm of this number is added to the scores.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._blocks()

    def seen_from(self, block: Window) -> KeysSeen:
        """Return keys and values for the queries of a block."""
        return KeysSeen(self, block)

    def seen(self, block: Window) -> Iterator[tuple[Tensor, ...]]:
        """Yield keys, values and logarithms of counts for the queries of a block, all at once if the far ones fit."""
        grid = self.tokens.job.grid
        near = block.expand(grid.block).intersection(grid.tiles)  # whole blocks
        keys, values = self.tokens.read_keys([near], self.name)
        if self.further is not None:
            keys, values = join_keys_values([(keys, values), self.further])
        once = keys.new_zeros(1, 1, 1, keys.shape[2])
        if not self.fit:
            yield keys, values, once
            far = (self._pool(other) for other in grid.blocks(grid.block) if not _within(other, near))
            yield from (pooled for pooled in far if pooled[2].isfinite().any())
            return
        far_keys, far_values, log_counts = self._far
        rows, cols = (slice(a // grid.block, -(-b // grid.block)) for a, b in ((near.y0, near.y1), (near.x0, near.x1)))
        log_counts = log_counts.clone()
        log_counts.view(-(-grid.rows // grid.block), -(-grid.cols // grid.block), -1)[rows, cols] = -torch.inf
        both = join_keys_values([(keys, values), (far_keys, far_values)])
        yield *both, torch.cat([once, log_counts], dim=-1)

    @cached_property
    def _far(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled keys and values of all blocks, and the logarithms of their counts."""
        grid = self.tokens.job.grid
        keys, values, log_counts = zip(*map(self._pool, grid.blocks(grid.block)), strict=True)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2), torch.cat(log_counts, dim=-1)

    def _pool(self, block: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Pool the keys and values of a block; equally many for all blocks, some of which may count zero times."""
        found, valid = self.tokens.store.get(block, self.name)
        n = isqrt(found.shape[2])
        grids = np.concatenate([found, valid[..., None]], axis=-1, dtype=np.float32)
        x = torch.from_numpy(grids).unflatten(2, (n, n)).permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2)  # (c, y, x)
        side = n * self.tokens.job.grid.block
        square = min(self.tokens.job.pooled, side)
        x = F.pad(x, (0, side - x.shape[2], 0, side - x.shape[1]))  # invalid keys and values are zeros as well
        sums = F.avg_pool2d(x[None], square, ceil_mode=True, divisor_override=1)[0].flatten(1).T
        counts = sums[:, -1:]
        keys, values = self.tokens.split_keys(sums[:, :-1] / counts.clamp(min=1))
        return keys, values, counts.log().view(1, 1, 1, -1).to(keys)


@dataclass(frozen=True)
class KeysSeen:
    """Keys and values for the queries of a block, see `PooledKeys.seen`; to be gone through any number of times."""

    keys: PooledKeys
    block: Window

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self.keys.seen(self.block)


def _within(part: Window, window: Window) -> bool:
    """Return whether a window lies in another one."""
    return part.intersection(window) == part
