"""Batches: crops of clear pictures with haze put on them as they come, or crops of pairs, each the same at any time."""

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
from dehazexl.training.augment import beside, calmed, center_crop, to_tensor
from dehazexl.training.datasets import Dataset

if TYPE_CHECKING:
    from dehazexl.training.config import Recipe

SMALL = 1
"""Of ten batches this many hold crops of one tile: the step then sees the most pictures."""

PARTIAL = 0.25
"""Of the batches this share ends within its last tiles, as most pictures do: they are then continued by reflection."""

HAZE = Synthesis()
"""How the haze of crops is drawn."""

CALM = 0.06
"""Of the crops this share are as smooth as calm water or sky, where the faintest lattice of tiles is seen."""

BESIDE = 0.2
"""Of the crops this share are of two pictures side by side: what lies in one picture need not be of one place."""

FARTHEST = 512
"""Crops pretend to lie up to this many tokens (16384 pixels) from the corner of a larger picture."""


@dataclass(frozen=True)
class Batch:
    """Crops of one size.

    Attributes
    ----------
    clear, hazy
        Truth and what the network sees, ``(n, 3, h, w)`` in [0, 1].
    optical, airlight, tone
        Of the haze, see `synthesis.batched.HazyBatch`; None where it was not made here.
    offset
        Where the crops pretend to lie in a larger picture, in tokens.
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
    def joined(cls, crops: Sequence[Batch], offset: tuple[int, int]) -> Batch:
        """Join batches of crops of one size; what made the haze is known only where it is of all."""

        def known(parts: list[Tensor | None]) -> Tensor | None:
            there = [part for part in parts if part is not None]
            return torch.cat(there) if len(there) == len(parts) else None

        return cls(
            torch.cat([c.clear for c in crops]),
            torch.cat([c.hazy for c in crops]),
            known([c.optical for c in crops]),
            known([c.airlight for c in crops]),
            known([c.tone for c in crops]),
            offset,
        )


def make_step(data: Dataset, step: int, recipe: Recipe, rank: int = 0, ranks: int = 1, tile: int = TILE) -> list[Batch]:
    """Make the batches of a step, as many as gradients are accumulated over: the same whenever they are made.

    `tile` is the side of the network's tiles in pixels.

    Of several processes each makes its own crops of the step; all draw the same size and offset, so that together
    they make one large step.
    """
    random = np.random.default_rng((recipe.seed, step))
    rows, cols = draw_grid(random, recipe.crop)
    cut = random.integers(tile - TOKEN, size=2) if random.random() < PARTIAL else (0, 0)
    h, w = rows * tile - int(cut[0]), cols * tile - int(cut[1])
    far = random.random() < 0.5
    offset = (int(random.integers(FARTHEST)), int(random.integers(FARTHEST))) if far else (0, 0)
    count = max(1, recipe.tiles // (rows * cols))
    batches = []
    for part in range(recipe.accumulate):
        first = (part * ranks + rank) * count
        crops = [make_crop(data, h, w, step, first + i, recipe) for i in range(count)]
        batches.append(Batch.joined(crops, offset))
    return batches


def draw_grid(random: np.random.Generator, largest: int) -> tuple[int, int]:
    """Draw the rows and columns of a crop, in tiles, each at most `largest`."""
    if random.integers(10) < SMALL:
        return 1, 1
    return int(random.integers(1, largest + 1)), int(random.integers(1, largest + 1))


def make_crop(data: Dataset, h: int, w: int, step: int, index: int, recipe: Recipe) -> Batch:
    """Make crop number `index` of a step: a batch of one, ``h x w`` pixels."""
    # From 1 on: (seed, step, 0) would draw the very numbers of the step itself, and a crop's width choose its picture.
    random = np.random.default_rng((recipe.seed, step, index + 1))
    if random.random() < recipe.procedural:
        clear, hazy = to_tensor(procedural(h, w, int(random.integers(2**31)))), None
    else:
        clear, hazy = data.crop(h, w, random)
    if hazy is not None:
        return Batch(clear, hazy)
    if random.random() < BESIDE:
        clear = beside(clear, data.crop(h, w, random)[0], random)
    if random.random() < CALM:
        clear = calmed(clear, random)
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    made = synthesize(clear, torch.zeros(1, dtype=torch.bool), generator, HAZE)
    return Batch(made.clear, made.hazy, made.optical, made.airlight, made.tone)


def steps(
    data: Dataset,
    first: int,
    recipe: Recipe,
    rank: int = 0,
    ranks: int = 1,
    workers: int | None = None,
    tile: int = TILE,
) -> Iterator[list[Batch]]:
    """Yield what `make_step` makes, from step `first` on; threads make the next while one is in use.

    Parameters
    ----------
    data, first, recipe, rank, ranks, tile
        See `make_step`.
    workers
        Threads, and steps made ahead; None takes half the processors, at most eight, shared by the machine's processes.
    """
    # torchrun says how many processes share this machine.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = workers or max(1, min(8, (os.cpu_count() or 1) // 2) // here)
    with ThreadPoolExecutor(workers) as pool:
        ahead = range(first, min(first + workers, recipe.steps))
        coming = deque(pool.submit(make_step, data, s, recipe, rank, ranks, tile) for s in ahead)
        for step in range(first, recipe.steps):
            batches = coming.popleft().result()
            if step + workers < recipe.steps:
                coming.append(pool.submit(make_step, data, step + workers, recipe, rank, ranks, tile))
            yield batches


def validation_set(data: Dataset, size: int = 512, most: int = 64) -> list[Batch]:
    """Return the middle of each picture: as the pair has it, or with haze of every kind in turn, seeded.

    Of more than `most` pictures those that are evenly spread.
    """
    cases = []
    chosen = sorted({round(place) for place in np.linspace(0, len(data) - 1, min(most, len(data)))})
    for turn, i in enumerate(chosen):
        clear = center_crop(data.clear[i], size, size)
        if data.hazy is not None:
            cases.append(Batch(clear, center_crop(data.hazy[i], size, size)))
            continue
        kind = list(KINDS)[turn % len(KINDS)]
        generator = torch.Generator().manual_seed(1000 + turn)
        made = add_haze(clear, generator, [kind], thickness=(0.9, 2.0), clear_share=0)
        cases.append(Batch(clear, made.pixels, -made.transmission.log(), made.airlight, torch.zeros(1, 1, 1, 1)))
    return cases
