"""Heads: how the decoder's parameters become pixels.

Every head is affine in the pixels, ``out = gain * x + offset``; it only says what gain and offset are. So the
change made to a picture can be blended, interpolated or weakened apart from its detail.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TRANSMISSION_FLOOR = 0.05
"""Least transmission: below it the picture holds nothing to be recovered."""


def residual(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Out = x + r, the official network's head. `parameters` is r ``(n, 3, h, w)``."""
    return torch.ones_like(parameters), parameters


def gain(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Out = x + K x + B. `parameters` is K and B ``(n, 6, h, w)``."""
    k, b = parameters.chunk(2, dim=1)
    return 1 + k, b


def scattering(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Out = (x - A) / t + A, the atmospheric scattering model solved for the scene.

    Koschmieder's law, I = J t + A (1 - t). `parameters` is the logits of t and A ``(n, 6, h, w)``, for each
    color: haze scatters short waves more.
    """
    t, airlight = torch.sigmoid(parameters).chunk(2, dim=1)
    factor = 1 / (TRANSMISSION_FLOOR + (1 - TRANSMISSION_FLOOR) * t)
    return factor, airlight * (1 - factor)


Head = Callable[[Tensor], tuple[Tensor, Tensor]]

HEADS: dict[str, tuple[int, Head]] = {"residual": (3, residual), "gain": (6, gain), "scattering": (6, scattering)}
"""Head by name: the number of parameters per pixel, and the function from them to gain and offset. The head ``field``
has a module of its own."""
