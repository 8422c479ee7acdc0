"""What training makes small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dehazexl.grid import TILE

if TYPE_CHECKING:
    from dehazexl.batches import Batch
    from dehazexl.recipe import Recipe


def losses(batch: Batch, gain: Tensor, shift: Tensor, recipe: Recipe) -> Tensor:
    """Compute the loss of what the network answered to a batch: gain and shift ``(n, 3, h, w)``.

    The answer is clamped near [0, 1], or what dense haze hides would rule the rest. By Koschmieder's law the gain
    is one over the transmission t, and the shift is (1 - gain) times the airlight, whose error counts by 1 - t: as
    much as there is haze to show it. Both are left out where they are not known.
    """
    out = (gain * batch.hazy + shift).clamp(-0.1, 1.1)
    error = out - batch.clear
    loss = error.abs().mean()
    spectrum = torch.view_as_real(torch.fft.rfft2(error, norm="ortho")).abs().mean()
    loss = loss + recipe.fft * spectrum + recipe.seam * seam(error)
    if batch.transmission is None or batch.airlight is None:
        return loss
    density = gain.clamp(min=0.05).log() + batch.transmission.clamp(min=0.05).log()
    # In dense haze the eye sees each step between the head's cells, many times enlarged.
    cells = F.avg_pool2d(density, 4)
    jumps = cells.diff(dim=2).abs().mean() + cells.diff(dim=3).abs().mean()
    colour = ((shift + (gain - 1) * batch.airlight) / gain.clamp(min=1)).abs().mean()
    return loss + recipe.transmission * density.abs().mean() + recipe.smooth * jumps + recipe.airlight * colour


def seam(error: Tensor) -> Tensor:
    """Mean jump of the error ``(n, 3, h, w)`` around tile borders; 0 for pictures of one tile.

    Of pixels and of means over cells of 4 and 16 pixels, the two on each side of a border: with the border's jump
    alone, a network learns to leave the border's pixels hazy, which is as visible as a seam.
    """
    jumps = [
        cells.narrow(axis, at // side - 2, 4).diff(dim=axis).abs().mean()
        for side in (1, 4, 16)
        for cells in (F.avg_pool2d(error, side),)
        for axis in (2, 3)
        for at in range(TILE, error.shape[axis], TILE)
    ]
    return torch.stack(jumps).mean() if jumps else error.new_zeros(())
