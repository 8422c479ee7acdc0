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


FAINT = 1e-3
"""Mean squared error (of 30 dB) about which the loss turns from its logarithm to the error itself."""


def losses(batch: Batch, gain: Tensor, shift: Tensor, recipe: Recipe, *, scattering: bool = True) -> Tensor:
    """Compute the loss of what the network answered to a batch: gain and shift ``(n, 3, h, w)``.

    The answer is clamped near [0, 1], or what dense haze hides would rule the rest; and of each picture the logarithm
    of the squared error counts, too, as in its PSNR, or dense haze would rule thin haze.

    By Koschmieder's law the gain is one over the transmission t, and the shift is (1 - gain) times the airlight, whose
    error counts by 1 - t: as much as there is haze to show it. Both are left out where they are not known, or where
    the head does not follow that law (`scattering` is False).
    """
    out = (gain * batch.hazy + shift).clamp(-0.1, 1.1)
    error = out - batch.clear
    spectrum = torch.view_as_real(torch.fft.rfft2(error, norm="ortho")).abs().mean()
    noise = (error.square().mean((1, 2, 3)) / FAINT).log1p().mean()
    loss = error.abs().mean() + recipe.fft * spectrum + recipe.psnr * noise + recipe.seam * seam(error)
    if batch.transmission is None or batch.airlight is None or not scattering:
        return loss
    density = gain.clamp(min=0.05).log() + batch.transmission.clamp(min=0.05).log()
    # The shift's error over 1 - gain is the airlight's; where that is next to nothing, so must be the shift's.
    wrong = (shift + (gain - 1) * batch.airlight) / (gain - 1).clamp(min=0.05)
    colour = ((1 - batch.transmission) * wrong.abs()).mean()
    return loss + recipe.transmission * density.abs().mean() + recipe.smooth * slope(density) + recipe.airlight * colour


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


def slope(error: Tensor) -> Tensor:
    """Slope of an error ``(n, 3, h, w)``, for each 4 pixels: down plus across, of means over cells of three sizes.

    In dense haze the eye sees each step of the transmission many times enlarged: between the head's cells of 4 pixels,
    and of what is larger, bands and the lattice of tiles, between cells of 16 and 64.
    """
    total = error.new_zeros(())
    for side in (4, 16, 64):
        cells = F.avg_pool2d(error, side, ceil_mode=True, count_include_pad=False)
        for axis in (2, 3):
            if cells.shape[axis] > 1:
                total = total + 4 / side * cells.diff(dim=axis).abs().mean()
    return total
