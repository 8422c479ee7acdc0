"""A job: one image to be dehazed, with everything that its passes share."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dehazexl.engine.memory import TilesAtOnce
from dehazexl.engine.remainders import Remainders
from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import TileGrid
from dehazexl.image.image import Image
from dehazexl.image.value_scale import ValueScale
from dehazexl.model import DehazeXL
from dehazexl.model.spec import MAPS

# One network computes at a time: two would only share the same cores, or the memory of the same device.
_network = threading.Lock()
_forked = threading.Event()
_computed = threading.Event()


def _after_fork() -> None:
    """Remember in a child that torch's threads, and whoever held the lock, stayed in the parent."""
    if _computed.is_set():
        _forked.set()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def computing(gradients: bool = False) -> Iterator[None]:
    """Compute alone, and without gradients unless they are asked for.

    Raises
    ------
    RuntimeError
        If this process was forked from one in which a network had computed: it would wait for threads that it lacks.
    """
    if _forked.is_set():
        raise RuntimeError(
            "this process was forked after a network had computed, and would hang: start it by spawn instead, e.g. "
            "multiprocessing.get_context('spawn')"
        )
    _computed.set()
    with _network, torch.inference_mode(not gradients), torch.set_grad_enabled(gradients):
        yield


@dataclass(frozen=True)
class Job:
    """An image to be dehazed, and how.

    Attributes
    ----------
    image, grid, model
        The image, its tiles, and the network in eval mode.
    value_range
        Values of the image that the network sees as 0 and 1.
    memory
        Policy for the number of tiles computed at once.
    strength
        0 returns the input, 1 the output of the network.
    keep
        Bytes of feature maps and of parts of decoded tiles that may be kept, each. An image whose feature maps fit is
        encoded once; larger images are encoded again while decoding.
    pooled
        Side of the squares, in keys, over which the keys of tiles far away are pooled; 0 for exact attention.
    """

    image: Image
    grid: TileGrid
    model: DehazeXL
    value_range: tuple[float, float]
    memory: TilesAtOnce
    strength: float = 1.0
    keep: int = 512 * 2**20
    pooled: int = 0

    @cached_property
    def pixels(self) -> ChunkCache:
        """The finest level, to be read in windows."""
        return ChunkCache.of(self.image.levels[0])

    @cached_property
    def feature_cache(self) -> dict[tuple[int, int], list[Tensor]]:
        """Feature maps ``(h, w, c)`` of encoded tiles by row and column, if the image is small."""
        return {}

    @cached_property
    def remainders(self) -> Remainders:
        """Parts of decoded tiles that lie in other windows than those they were decoded for."""
        return Remainders(self.keep)

    @property
    def caches_features(self) -> bool:
        """Whether the feature maps of all tiles fit in the memory allowed for them."""
        spec = self.model.spec
        maps = list(zip(spec.widths, MAPS, strict=True))
        if spec.head_stride == 4:
            maps.append((3 + len(spec.inputs), MAPS[0]))  # the input channels, see `DehazeXL.encode`
        numbers = sum(channels * side**2 for channels, side in maps)
        return self.grid.count * numbers * self.model.dtype.itemsize <= self.keep

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is merely cached, for other processes."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def scale(self) -> ValueScale:
        """Map between the image's values and those that the network sees."""
        return ValueScale(*self.value_range)

    @property
    def channels(self) -> int:
        """Channels of a token."""
        return self.model.channels

    @property
    def token_dtype(self) -> type[np.floating[Any]]:
        """Precision in which tokens are kept: float16 where the network computes in half, of either kind."""
        return np.float16 if self.model.dtype.itemsize == 2 else np.float32
