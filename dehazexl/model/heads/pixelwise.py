"""Heads that change each pixel by itself: the official network's residual, and gain with bias."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dehazexl.model.heads.base import Affine, Head, convolution, enlarge

if TYPE_CHECKING:
    from dehazexl.model.spec import Spec


class Residual(Head):
    """Out = x + r in normalized pixels, the official network's head."""

    outputs = 3

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, bias=False)

    def forward(self, features: Tensor, carried: Tensor, inputs: Tensor, tiles: Tensor) -> Affine:
        """See `Head.forward`."""
        residual = enlarge(convolution(self.output, features))
        return self.denormalized(torch.ones_like(residual), residual)


class Gain(Head):
    """Out = x + K x + B in normalized pixels."""

    outputs = 6

    def forward(self, features: Tensor, carried: Tensor, inputs: Tensor, tiles: Tensor) -> Affine:
        """See `Head.forward`."""
        k, bias = enlarge(convolution(self.output, features)).chunk(2, dim=1)
        return self.denormalized(1 + k, bias)
