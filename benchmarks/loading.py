"""Cost of loading in a training: steps per second with batches prepared on the fly and in advance.

    python benchmarks/loading.py DATA/train --steps 30

Prints the results and saves them as ``benchmarks/results/loading.json``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from machine import save_result

from dehazexl.model import SPECS
from dehazexl.training.batches import iterate_batches, make_step
from dehazexl.training.checkpoint import State
from dehazexl.training.config import Recipe
from dehazexl.training.datasets import open_datasets
from dehazexl.training.loop import train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--spec", default="compact")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--procedural", type=float, default=0.2)
    args = parser.parse_args()
    data, _ = open_datasets([args.folder])
    recipe = Recipe(steps=args.steps, precision=args.precision, procedural=args.procedural)
    state = State.start(SPECS[args.spec], recipe, torch.device("cpu"))
    made = [make_step(data, i, recipe) for i in range(args.steps)]
    train_step(state, made[0], 1e-4, recipe)  # warm-up

    started = time.perf_counter()
    for batches in made:
        train_step(state, batches, 1e-4, recipe)
    without = time.perf_counter() - started

    started, waited, coming = time.perf_counter(), 0.0, iterate_batches(data, 0, recipe)
    for _ in range(args.steps):
        asked = time.perf_counter()
        batches = next(coming)
        waited += time.perf_counter() - asked
        train_step(state, batches, 1e-4, recipe)
    loading = time.perf_counter() - started
    save_result(
        "loading",
        spec=args.spec,
        precision=args.precision,
        pictures=len(data),
        megapixels=round(sum(p.shape[0] * p.shape[1] for p in data.clear) / 1e6, 1),
        files=sorted({path.suffix for path in args.folder.rglob("*.*")}),
        procedural=args.procedural,
        tiles_a_step=recipe.tiles,
        steps=args.steps,
        steps_per_second_without_loading=round(args.steps / without, 3),
        steps_per_second_with_loading=round(args.steps / loading, 3),
        loaders_share=round(1 - without / loading, 3),
        waited_share=round(waited / loading, 3),
    )


if __name__ == "__main__":
    main()
