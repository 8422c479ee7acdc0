"""How to train: what a run is told, and its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What the network computes in while training; its weights stay in float32, and so does its last layer."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    steps
        Steps of the whole run; the learning rate falls to zero along a cosine by the last.
    tiles
        Tiles of 256 x 256 pixels in a batch.
    crop
        Side of the largest crops, in tiles: 1 to 8 (2048 pixels).
    accumulate
        Batches of a step, whose gradients are summed.
    part
        Tiles computed at once; their activations are then computed again in the backward pass, so that large crops
        fit (gradient checkpointing). None computes the batch at once and keeps all.
    precision
        ``float32``, or what to compute in where it is safe (autocast): ``bfloat16`` or ``float16``.
    procedural
        Share of the crops that are procedural pictures instead of real ones, 0 to 1.
    lr, warmup, decay, clip
        Peak learning rate of AdamW, steps until it is reached, weight decay, largest norm of the gradient.
    ema
        Decay of the moving average of the weights that is validated and saved.
    fft, psnr, transmission, smooth, airlight, seam, edges, tone
        Weights of the losses beside L1: on the Fourier transform, on the logarithm of the squared error, on that of the
        transmission, on its slopes, on the airlight, on what differs around tile borders, on the slopes of the error,
        on the light in which haze adds up.
    seed
        Of weights, crops and haze.
    """

    steps: int = 3000
    tiles: int = 8
    crop: int = 3
    accumulate: int = 1
    part: int | None = None
    precision: str = "float32"
    procedural: float = 0.0
    lr: float = 6e-4
    warmup: int = 100
    decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.995
    fft: float = 0.05
    psnr: float = 0.08
    transmission: float = 0.1
    smooth: float = 1.0
    airlight: float = 1.0
    seam: float = 3.0
    edges: float = 0.3
    tone: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if not 1 <= self.crop <= 8:
            raise ValueError(f"crop is 1 to 8 tiles, not {self.crop}")
        if not 0 <= self.procedural <= 1:
            raise ValueError(f"procedural is a share from 0 to 1, not {self.procedural}")
        if (self.part is not None and self.part < 1) or self.accumulate < 1:
            raise ValueError(f"part and accumulate are at least 1, not {self.part} and {self.accumulate}")


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    return recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps)))
