"""The first pass: encode all tiles."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dehazexl.engine.job import Job, computing
from dehazexl.engine.tiles import Tiles
from dehazexl.engine.tokens import TokenStore
from dehazexl.image.grid import SIDE, TOKEN, Window
from dehazexl.model.spec import Spec

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode(job: Job, store: TokenStore) -> Iterator[int]:
    """Encode all tiles that are not in the store.

    Yields
    ------
    int
        Number of tiles done since the last step, computed or found in the store.
    """
    blocks = list(job.grid.blocks(job.grid.block))
    missing = [block for block in blocks if not store.done(block)]
    if found := job.grid.count - sum(block.height * block.width for block in missing):
        yield found
    for block, tiles in _read_ahead(job, missing):
        tokens, valid, cells = [], [], list(block.cells())
        for part, (maps, valid_pixels) in job.memory.each(len(cells), partial(_encode_batch, job, tiles, cells)):
            if job.caches_features:
                kept = [m.cpu() for m in maps]
                job.feature_cache.update((cell, [m[i] for m in kept]) for i, cell in enumerate(cells[part]))
            tokens.append(_to_numpy(maps[-1], job))
            valid.append(valid_tokens(valid_pixels, job.model.spec))
            yield part.stop - part.start
        shape = (block.height, block.width, SIDE * SIDE)
        store.put(block, np.concatenate(tokens).reshape(*shape, -1), np.concatenate(valid).reshape(shape))


def _encode_batch(
    job: Job, tiles: Tiles, cells: list[tuple[int, int]], part: slice
) -> tuple[list[Tensor], NDArray[np.bool_]]:
    """Return the feature maps of tiles, see `DehazeXL.encode`, and the validity of their pixels."""
    x, valid = tiles.stack(job, cells[part])
    with computing():
        return job.model.encode(x.clamp(0, 1)), valid


def _read_ahead(job: Job, blocks: list[Window]) -> Iterator[tuple[Window, Tiles]]:
    """Yield blocks with their pixels, reading the next block in a thread."""
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(Tiles.read, job, block) for block in blocks[:1]]
        for block, following in zip(blocks, [*blocks[1:], None], strict=False):
            tiles = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(Tiles.read, job, following))
            yield block, tiles


def _to_numpy(tokens: Tensor, job: Job) -> NDArray[Any]:
    """Convert tokens ``(n, 8, 8, c)`` to the form of token stores, ``(n, 64, c)``."""
    return tokens.flatten(1, 2).float().cpu().numpy().astype(job.token_dtype)


def valid_tokens(valid: NDArray[np.bool_], spec: Spec) -> NDArray[np.bool_]:
    """Return which tokens ``(n, 64)`` have a valid pixel, from the validity of tiles ``(n, side, side)``."""
    inner = valid[:, spec.halo : spec.halo + spec.tile, spec.halo : spec.halo + spec.tile]
    side = spec.scale * TOKEN
    return inner.reshape(-1, SIDE, side, SIDE, side).any((2, 4)).reshape(-1, SIDE * SIDE)
