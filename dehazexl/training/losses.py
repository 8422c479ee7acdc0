"""What training makes small."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dehazexl.image.grid import TILE
from dehazexl.model.haze import THICKEST

if TYPE_CHECKING:
    from dehazexl.model.haze import Haze
    from dehazexl.model.heads import Affine
    from dehazexl.synthesis.batched import HazyBatch
    from dehazexl.training.batches import Batch
    from dehazexl.training.config import Recipe


FAINT = 1e-3
"""Mean squared error (of 30 dB) about which the loss turns from its logarithm to the error itself."""


def losses(batch: Batch, change: Affine, recipe: Recipe, *, scattering: bool = True) -> Tensor:
    """Compute the loss of what a network answered to a batch.

    The answer is clamped near [0, 1], or what dense haze hides would rule the rest; and of each picture the logarithm
    of the squared error counts, too, as in its PSNR, or dense haze would rule thin haze. What is known of the haze
    counts as `haze_losses` says, with the head ``field``, or `scattering_losses`, with a head that follows the
    scattering model (`scattering`) and haze that was put on the values of the file.
    """
    out = (change.gain * batch.hazy + change.bias).clamp(-0.1, 1.1)
    error = out - batch.clear
    noise = (error.square().mean((1, 2, 3)) / FAINT).log1p().mean()
    loss = error.abs().mean() + recipe.psnr * noise
    if change.haze is not None:
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        loss = loss + recipe.edges * edges
        return loss if batch.optical is None else loss + haze_losses(batch, change.haze, recipe)
    spectrum = torch.view_as_real(torch.fft.rfft2(error, norm="ortho")).abs().mean()
    loss = loss + recipe.fft * spectrum + recipe.seam * seam(error)
    return loss + scattering_losses(batch, change, recipe) if scattering and batch.optical is not None else loss


def scattering_losses(batch: Batch, change: Affine, recipe: Recipe) -> Tensor:
    """Compute the loss of gain and offset by the scattering model, of the images whose haze lies on the file's values.

    The gain is one over the transmission t, and the offset is (1 - gain) times the airlight, whose error counts by
    1 - t: as much as there is haze to show it.
    """
    assert batch.optical is not None and batch.airlight is not None and batch.tone is not None
    known = 1 - batch.tone
    density = known * (change.gain.clamp(min=0.05).log() - batch.optical.clamp(max=THICKEST))
    # The offset's error over 1 - gain is the airlight's; where that is next to nothing, so must be the offset's.
    wrong = (change.bias + (change.gain - 1) * batch.airlight) / (change.gain - 1).clamp(min=0.05)
    color = (known * (1 - torch.exp(-batch.optical)) * wrong.abs()).mean()
    return recipe.transmission * density.abs().mean() + recipe.smooth * slope(density) + recipe.airlight * color


def haze_losses(batch: Batch | HazyBatch, haze: Haze, recipe: Recipe) -> Tensor:
    """Compute the loss of the haze that the head ``field`` found.

    The error of the optical thickness of each color, and its slopes; that of the airlight and of the tone, which count
    as much as there is haze to show them.
    """
    assert batch.optical is not None and batch.airlight is not None and batch.tone is not None
    optical = haze.exponents * haze.thickness - batch.optical
    # Beyond what can be recovered, thicker is as right.
    optical = torch.where(batch.optical >= THICKEST, (haze.exponents * haze.thickness - THICKEST).clamp(max=0), optical)
    hidden = (1 - torch.exp(-batch.optical)).mean((1, 2, 3), keepdim=True)
    color = (hidden * (haze.airlight - batch.airlight).abs()).mean()
    # A choice between two: its probability goes wrong by the logarithm, and so never gets stuck.
    tone = F.binary_cross_entropy(haze.tone.clamp(1e-6, 1 - 1e-6), batch.tone, hidden)
    return (
        recipe.transmission * optical.abs().mean()
        + recipe.smooth * slope(optical)
        + recipe.airlight * color
        + recipe.tone * tone
    )


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
