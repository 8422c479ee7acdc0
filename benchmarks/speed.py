"""Seconds a tile: the streamed passes beside one plain forward of the same weights, in the same run.

    python benchmarks/speed.py

The official code took 0.39 s a tile at its best on two cores, and 2.1 GB.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from machine import keep

from dehazexl import DehazeXL, dehaze
from dehazexl.model import SPECS

SIDE = 1024
REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(name: str) -> dict[str, float]:
    torch.manual_seed(0)
    model = DehazeXL(SPECS[name]).eval().requires_grad_(False)
    picture = torch.rand(SIDE, SIDE, 3).numpy()
    x = torch.from_numpy(picture).permute(2, 0, 1)[None]
    tiles = (SIDE // 256) ** 2

    def forward() -> object:
        with torch.inference_mode():
            return model(x)

    def streamed() -> object:
        return dehaze(picture, model, overlap=0, value_range=(0, 1)).compute()

    forward(), streamed()
    # Alternating, so that both meet the same moods of the machine.
    times = [(seconds(forward), seconds(streamed)) for _ in range(REPEATS)]
    plain, stream = (statistics.median(t) / tiles for t in zip(*times, strict=True))
    return {
        "forward_s_per_tile": round(plain, 4),
        "streamed_s_per_tile": round(stream, 4),
        "streamed_tiles_per_s": round(1 / stream, 2),
        "streamed_over_forward": round(stream / plain, 3),
    }


if __name__ == "__main__":
    keep("speed", side=SIDE, repeats=REPEATS, **{name: measure(name) for name in ("official", "compact")})
