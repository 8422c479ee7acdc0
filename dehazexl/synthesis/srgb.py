"""Transfer functions of sRGB (IEC 61966-2-1) between file values and linear light."""

from __future__ import annotations

import torch
from torch import Tensor


def to_linear(x: Tensor) -> Tensor:
    """Convert sRGB values in [0, 1] to linear light in [0, 1]; `from_linear` is the inverse."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def from_linear(y: Tensor) -> Tensor:
    """Convert linear light to sRGB values; the inverse of `to_linear`."""
    return torch.where(y <= 0.0031308, y * 12.92, 1.055 * y.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)
