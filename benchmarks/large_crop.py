"""Peak memory of one training step on a crop of 2048 x 2048 pixels with gradient checkpointing.

python benchmarks/large_crop.py [--part 4] [--spec compact]

Prints the results and saves them as ``benchmarks/results/large_crop.json``.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from machine import save_result

from dehazexl.model import SPECS
from dehazexl.synthesis.haze import add_haze
from dehazexl.training.batches import Batch
from dehazexl.training.checkpoint import State
from dehazexl.training.config import Recipe
from dehazexl.training.loop import train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=int, default=4)
    parser.add_argument("--spec", default="compact")
    args = parser.parse_args()
    recipe = Recipe(crop=8, tiles=64, part=args.part, precision="bfloat16")
    clear = torch.rand(1, 3, 2048, 2048)
    haze = add_haze(clear, torch.Generator().manual_seed(0))
    batch = Batch(clear, haze.pixels, -haze.transmission.log(), haze.airlight, torch.zeros(1, 1, 1, 1))
    state = State.start(SPECS[args.spec], recipe, torch.device("cpu"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    loss = train_step(state, [batch], 1e-4, recipe)
    save_result(
        "large_crop",
        spec=args.spec,
        part=args.part,
        precision=recipe.precision,
        loss=round(loss, 4),
        seconds=round(time.perf_counter() - started, 1),
        peak_gb_before_the_step=round(before, 2),
        peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    )


if __name__ == "__main__":
    main()
