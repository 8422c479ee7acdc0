"""Megapixels per second of whole jobs with each network, and of one forward pass of the official spec.

    python benchmarks/speed.py

A job dehazes 2048 x 2048 pixels in memory with the default overlap of the network; a forward pass takes 1024 x 1024
pixels at once. The official code took 0.39 s per tile of 256 x 256 at best on two cores, 0.17 Mpixel/s, and 2.1 GB.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from machine import save_result

from dehazexl import DehazeXL, dehaze
from dehazexl.model import SPECS

JOB, FORWARD = 2048, 1024
"""Sides of the images in pixels."""
REPEATS = 3


def megapixels(side: int, work: Callable[[], object]) -> float:
    """Return the megapixels per second of a job."""
    start = time.perf_counter()
    work()
    return side**2 / 1e6 / (time.perf_counter() - start)


def network(name: str) -> DehazeXL:
    """Create a network with random weights."""
    torch.manual_seed(0)
    return DehazeXL(SPECS[name]).eval().requires_grad_(False)


def measure() -> dict[str, float]:
    """Return the median rates; repeats alternate between jobs, so that all see the same load of the machine."""
    pixels = torch.rand(JOB, JOB, 3).mul(255).byte().numpy()
    x = torch.rand(1, 3, FORWARD, FORWARD)
    models = {name: network(name) for name in ("official", "compact", "fast")}

    def forward() -> object:
        with torch.inference_mode():
            return models["official"](x)

    work = {"official, one forward": (FORWARD, forward)}
    for name, model in models.items():
        work[name] = (JOB, lambda model=model: dehaze(pixels, model).compute())
    for _, each in work.values():
        each()
    rates = {name: [] for name in work}
    for _ in range(REPEATS):
        for name, (side, each) in work.items():
            rates[name].append(megapixels(side, each))
    return {name: statistics.median(some) for name, some in rates.items()}


if __name__ == "__main__":
    rates = measure()
    plain = rates["official, one forward"]
    save_result(
        "speed",
        job=JOB,
        forward=FORWARD,
        repeats=REPEATS,
        megapixels_per_s={name: round(rate, 3) for name, rate in rates.items()},
        over_one_official_forward={name: round(rate / plain, 2) for name, rate in rates.items()},
    )
