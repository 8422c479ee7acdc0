"""Reproducible batches: crops of clear images with synthetic haze, or crops of pairs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dehazexl.image.grid import TILE, TOKEN
from dehazexl.synthesis.batched import Synthesis, synthesize
from dehazexl.synthesis.haze import KINDS, add_haze
from dehazexl.synthesis.procedural import procedural
from dehazexl.training.augment import center_crop, join_crops, smoothed, to_tensor
from dehazexl.training.datasets import Dataset

if TYPE_CHECKING:
    from dehazexl.training.config import Recipe

SINGLE_TILE_TENTHS = 1
"""Number of batches in ten that consist of crops of one tile, which show the most images in a step."""

PARTIAL_SHARE = 0.25
"""Share of the batches that end within their last tiles and are continued by reflection, as most images are."""

HAZE = Synthesis()
"""Distribution of the haze on crops."""

SMOOTH_SHARE = 0.06
"""Share of the crops that are as smooth as calm water or sky, where even a faint pattern of tiles is visible."""

JOINED_SHARE = 0.2
"""Share of the crops that are joined from two images, because an image can show different scenes."""

MAX_OFFSET = 512
"""Largest random offset of a crop from the corner of a larger image, in tokens (16384 pixels)."""


@dataclass(frozen=True)
class Batch:
    """Crops of one size.

    Attributes
    ----------
    clear, hazy
        Target and input of the network, ``(n, 3, h, w)`` in [0, 1].
    optical, airlight, tone
        Parameters of the haze, see `synthesis.batched.HazyBatch`; None if the haze is not synthetic.
    offset
        Position ``(y, x)`` of the crops in a larger image, in tokens.
    """

    clear: Tensor
    hazy: Tensor
    optical: Tensor | None = None
    airlight: Tensor | None = None
    tone: Tensor | None = None
    offset: tuple[int, int] = (0, 0)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        parts = self.optical, self.airlight, self.tone
        optical, airlight, tone = (None if part is None else part.to(device) for part in parts)
        return Batch(self.clear.to(device), self.hazy.to(device), optical, airlight, tone, self.offset)

    @classmethod
    def concatenate(cls, crops: Sequence[Batch], offset: tuple[int, int]) -> Batch:
        """Concatenate batches of crops of one size; parameters of the haze are None unless all crops have them."""

        def concatenate_known(parts: list[Tensor | None]) -> Tensor | None:
            known = [part for part in parts if part is not None]
            return torch.cat(known) if len(known) == len(parts) else None

        return cls(
            torch.cat([c.clear for c in crops]),
            torch.cat([c.hazy for c in crops]),
            concatenate_known([c.optical for c in crops]),
            concatenate_known([c.airlight for c in crops]),
            concatenate_known([c.tone for c in crops]),
            offset,
        )


def make_step(data: Dataset, step: int, recipe: Recipe, rank: int = 0, ranks: int = 1, tile: int = TILE) -> list[Batch]:
    """Make the batches of a step, reproducibly.

    Parameters
    ----------
    data
        Images.
    step
        Number of the step, which seeds the random numbers together with the seed of the recipe.
    recipe
        Sizes and number of the batches.
    rank, ranks
        Index of this process and number of processes. Each process makes its own crops of the step; all of them draw
        the same size and offset.
    tile
        Side of the tiles of the network in pixels.

    Returns
    -------
    list of Batch
        As many as gradients are accumulated over.
    """
    random = np.random.default_rng((recipe.seed, step))
    rows, cols = draw_grid(random, recipe.crop)
    trim = random.integers(tile - TOKEN, size=2) if random.random() < PARTIAL_SHARE else (0, 0)
    h, w = rows * tile - int(trim[0]), cols * tile - int(trim[1])
    shifted = random.random() < 0.5
    offset = (int(random.integers(MAX_OFFSET)), int(random.integers(MAX_OFFSET))) if shifted else (0, 0)
    count = max(1, recipe.tiles // (rows * cols))
    batches = []
    for part in range(recipe.accumulate):
        first = (part * ranks + rank) * count
        crops = [make_crop(data, h, w, step, first + i, recipe) for i in range(count)]
        batches.append(Batch.concatenate(crops, offset))
    return batches


def draw_grid(random: np.random.Generator, largest: int) -> tuple[int, int]:
    """Draw the number of rows and columns of a crop, in tiles, each at most `largest`."""
    if random.integers(10) < SINGLE_TILE_TENTHS:
        return 1, 1
    return int(random.integers(1, largest + 1)), int(random.integers(1, largest + 1))


def make_crop(data: Dataset, h: int, w: int, step: int, index: int, recipe: Recipe) -> Batch:
    """Make crop number `index` of a step as a batch of one image of ``h x w`` pixels."""
    # Counted from 1: (seed, step, 0) gives the random numbers of the step itself, so the width would select the image.
    random = np.random.default_rng((recipe.seed, step, index + 1))
    if random.random() < recipe.procedural:
        clear, hazy = to_tensor(procedural(h, w, int(random.integers(2**31)))), None
    else:
        clear, hazy = data.crop(h, w, random)
    if hazy is not None:
        return Batch(clear, hazy)
    if random.random() < JOINED_SHARE:
        clear = join_crops(clear, data.crop(h, w, random)[0], random)
    if random.random() < SMOOTH_SHARE:
        clear = smoothed(clear, random)
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    batch = synthesize(clear, torch.zeros(1, dtype=torch.bool), generator, HAZE)
    return Batch(batch.clear, batch.hazy, batch.optical, batch.airlight, batch.tone)


def iterate_batches(
    data: Dataset,
    first: int,
    recipe: Recipe,
    rank: int = 0,
    ranks: int = 1,
    workers: int | None = None,
    tile: int = TILE,
) -> Iterator[list[Batch]]:
    """Yield the batches of each step from step `first` on, prepared by threads.

    Parameters
    ----------
    data, recipe, rank, ranks, tile
        See `make_step`.
    first
        Number of the first step.
    workers
        Number of threads and of steps prepared ahead. By default half the processors, at most eight, divided among
        the processes of the machine.
    """
    # Set by torchrun: number of processes on this machine.
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = workers or max(1, min(8, (os.cpu_count() or 1) // 2) // local_processes)
    with ThreadPoolExecutor(workers) as pool:
        ahead = range(first, min(first + workers, recipe.steps))
        pending = deque(pool.submit(make_step, data, s, recipe, rank, ranks, tile) for s in ahead)
        for step in range(first, recipe.steps):
            batches = pending.popleft().result()
            if step + workers < recipe.steps:
                pending.append(pool.submit(make_step, data, step + workers, recipe, rank, ranks, tile))
            yield batches


def validation_set(data: Dataset, size: int = 512, most: int = 64) -> list[Batch]:
    """Return the center of each image as a batch of one: from a pair, or with reproducible haze of each kind in turn.

    Parameters
    ----------
    data
        Images to validate on.
    size
        Side of the crops in pixels.
    most
        Largest number of images; of more, evenly spaced ones are used.
    """
    cases = []
    indices = sorted({round(place) for place in np.linspace(0, len(data) - 1, min(most, len(data)))})
    for turn, i in enumerate(indices):
        clear = center_crop(data.clear[i], size, size)
        if data.hazy is not None:
            cases.append(Batch(clear, center_crop(data.hazy[i], size, size)))
            continue
        kind = list(KINDS)[turn % len(KINDS)]
        generator = torch.Generator().manual_seed(1000 + turn)
        haze = add_haze(clear, generator, [kind], thickness=(0.9, 2.0), clear_share=0)
        cases.append(Batch(clear, haze.pixels, -haze.transmission.log(), haze.airlight, torch.zeros(1, 1, 1, 1)))
    return cases
