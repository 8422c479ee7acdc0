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
from dehazexl.engine.tokens import TOKENS, TokenStore, stored
from dehazexl.image.grid import SIDE, TOKEN, Window
from dehazexl.model.spec import Spec

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode(job: Job, store: TokenStore) -> Iterator[int]:
    """Encode all tiles that have data and are not in the store.

    Yields
    ------
    int
        Number of tiles done and stored since the last step, computed or found in the store.
    """
    if store.fused():
        yield job.grid.count
        return
    for block, tokens, tiles in _read_ahead(job, store):
        if tiles is None:
            yield block.height * block.width
            continue
        cells = [cell for cell in block.cells() if tiles.has_data(job, *cell)]
        if empty := [cell for cell in block.cells() if cell not in cells]:
            _keep(store, block, tokens, empty, 0)
            yield len(empty)
        # Batches are those of an uninterrupted run, so that the result is the same to the bit.
        there = stored(tokens)
        missing = [not there[row - block.y0, col - block.x0] for row, col in cells]
        for part, found in job.memory.each(len(cells), partial(_encode_batch, job, tiles, cells, missing)):
            if found is not None:
                maps, valid = found
                if job.caches_features:
                    kept = [m.cpu() for m in maps]
                    job.feature_cache.update((cell, [m[i] for m in kept]) for i, cell in enumerate(cells[part]))
                marks = valid_tokens(valid, job.model.spec)[..., None]
                _keep(store, block, tokens, cells[part], np.concatenate([_to_numpy(maps[-1], job), marks], axis=-1))
            yield part.stop - part.start


def _keep(
    store: TokenStore, block: Window, tokens: NDArray[Any], cells: list[tuple[int, int]], values: NDArray[Any] | int
) -> None:
    """Enter tiles ``(n, 64, channels + 1)`` into those of their block, and store the rows that they lie in."""
    rows, cols = np.transpose(cells)
    tokens[rows - block.y0, cols - block.x0] = values
    touched = Window(int(rows.min()), int(rows.max()) + 1, block.x0, block.x1)
    store.write(touched, tokens[touched.to_slices(block)], TOKENS)


def _encode_batch(
    job: Job, tiles: Tiles, cells: list[tuple[int, int]], missing: list[bool], part: slice
) -> tuple[list[Tensor], NDArray[np.bool_]] | None:
    """Return the feature maps of tiles, see `DehazeXL.encode`, and the validity of their pixels; None if none lacks."""
    if not any(missing[part]):
        return None
    x, valid = tiles.stack(job, cells[part])
    with computing():
        return job.model.encode(x.clamp(0, 1)), valid


def _read_ahead(job: Job, store: TokenStore) -> Iterator[tuple[Window, NDArray[Any], Tiles | None]]:
    """Yield all blocks with their stored tokens and their pixels, reading the next block in a thread."""
    blocks = list(job.grid.blocks(job.grid.block))
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(_read, job, store, block) for block in blocks[:1]]
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            tokens, tiles = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(_read, job, store, following))
            yield block, tokens, tiles


def _read(job: Job, store: TokenStore, block: Window) -> tuple[NDArray[Any], Tiles | None]:
    """Return the stored tokens of a block, NaN where there are none, and its pixels if any are missing."""
    tokens = store.read(block, TOKENS)
    return tokens, None if stored(tokens).all() else Tiles.read(job, block)


def _to_numpy(tokens: Tensor, job: Job) -> NDArray[Any]:
    """Convert tokens ``(n, 8, 8, c)`` to the form of token stores, ``(n, 64, c)``."""
    return tokens.flatten(1, 2).float().cpu().numpy().astype(job.token_dtype)


def valid_tokens(valid: NDArray[np.bool_], spec: Spec) -> NDArray[np.bool_]:
    """Return which tokens ``(n, 64)`` have a valid pixel, from the validity of tiles ``(n, side, side)``."""
    inner = valid[:, spec.halo : spec.halo + spec.tile, spec.halo : spec.halo + spec.tile]
    side = spec.scale * TOKEN
    return inner.reshape(-1, SIDE, side, SIDE, side).any((2, 4)).reshape(-1, SIDE * SIDE)
