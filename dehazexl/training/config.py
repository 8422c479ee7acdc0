"""Hyperparameters of a training run, and its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Data types of the computation during training; weights and the last layer stay in float32."""


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of a training run.

    Attributes
    ----------
    steps
        Number of steps of the run, over which the learning rate falls to zero along a cosine.
    tiles
        Number of tiles of 256 x 256 pixels in a batch.
    crop
        Side of the largest crops, in tiles: 1 to 8 (2048 pixels).
    accumulate
        Number of batches in a step, whose gradients are accumulated.
    part
        Number of tiles computed at once, whose activations are recomputed in the backward pass to save memory
        (gradient checkpointing). None computes the whole batch at once and keeps all activations.
    precision
        ``float32``, or the data type of autocast, ``bfloat16`` or ``float16``.
    procedural
        Share of crops from procedural instead of real images, 0 to 1.
    lr, warmup, decay, clip
        Peak learning rate of AdamW, number of steps until it is reached, weight decay, and largest norm of the
        gradient.
    ema
        Decay of the moving average of the weights that is validated and saved.
    fft, psnr, transmission, smooth, airlight, seam, edges, tone
        Weights of the losses in addition to L1: the Fourier transform of the error, the logarithm of the squared error,
        the logarithm of the transmission, its slopes, the airlight, jumps of the error at tile borders, slopes of the
        error, and the tone (values of the file or linear light) in which the haze was added.
    seed
        Seed of weights, crops and haze.
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
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if not 1 <= self.crop <= 8:
            raise ValueError(f"crop must be 1 to 8 tiles, not {self.crop}")
        if not 0 <= self.procedural <= 1:
            raise ValueError(f"procedural must be between 0 and 1, not {self.procedural}")
        if (self.part is not None and self.part < 1) or self.accumulate < 1:
            raise ValueError(f"part and accumulate must be at least 1, not {self.part} and {self.accumulate}")


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine that falls to zero."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    return recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps)))
