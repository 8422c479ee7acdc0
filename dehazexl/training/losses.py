"""Losses of the training."""

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
"""Mean squared error (30 dB) at which the loss changes from proportional to logarithmic."""


def losses(batch: Batch, change: Affine, recipe: Recipe, *, scattering: bool = True) -> Tensor:
    """Compute the loss of the output of a network for a batch.

    The output is clamped near [0, 1]; otherwise regions hidden by dense haze would dominate. For each image the
    logarithm of the squared error is added, as in PSNR; otherwise images with dense haze would dominate.

    Parameters
    ----------
    batch
        Target, input and, if known, parameters of the haze. With these, `haze_losses` is added for the head ``field``,
        and `scattering_losses` for heads that follow the scattering model.
    change
        Output of the network: gain and offset ``(n, 3, h, w)``.
    recipe
        Weights of the losses.
    scattering
        Whether the head follows the scattering model.

    Returns
    -------
    Tensor
        Scalar loss.
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
    """Compute the loss of gain and offset under the scattering model, for images whose haze was added to file values.

    In the model the gain is 1 / t with the transmission t, and the offset is (1 - gain) times the airlight. The error
    of the airlight is weighted by 1 - t, the amount of haze that shows it.

    Parameters
    ----------
    batch
        Batch with the parameters of its haze.
    change
        Output of the network: gain and offset ``(n, 3, h, w)``.
    recipe
        Weights of the losses.
    """
    assert batch.optical is not None and batch.airlight is not None and batch.tone is not None
    on_values = 1 - batch.tone
    density = on_values * (change.gain.clamp(min=0.05).log() - batch.optical.clamp(max=THICKEST))
    # The error of the airlight is the error of the offset over 1 - gain; the clamp covers gains near 1.
    airlight_error = (change.bias + (change.gain - 1) * batch.airlight) / (change.gain - 1).clamp(min=0.05)
    color = (on_values * (1 - torch.exp(-batch.optical)) * airlight_error.abs()).mean()
    return recipe.transmission * density.abs().mean() + recipe.smooth * slope(density) + recipe.airlight * color


def haze_losses(batch: Batch | HazyBatch, haze: Haze, recipe: Recipe) -> Tensor:
    """Compute the loss of the haze predicted by the head ``field``.

    It consists of the error of the optical thickness of each color, the slopes of that error, and the errors of
    airlight and tone, which are weighted by the amount of haze that shows them.

    Parameters
    ----------
    batch
        Batch with the parameters of its haze.
    haze
        Haze predicted by the network.
    recipe
        Weights of the losses.
    """
    assert batch.optical is not None and batch.airlight is not None and batch.tone is not None
    optical = haze.exponents * haze.thickness - batch.optical
    # Beyond the thickest recoverable haze, any larger thickness is correct as well.
    optical = torch.where(batch.optical >= THICKEST, (haze.exponents * haze.thickness - THICKEST).clamp(max=0), optical)
    hidden = (1 - torch.exp(-batch.optical)).mean((1, 2, 3), keepdim=True)
    color = (hidden * (haze.airlight - batch.airlight).abs()).mean()
    # A binary choice: cross-entropy has a gradient even where the probability is near 0 or 1.
    tone = F.binary_cross_entropy(haze.tone.clamp(1e-6, 1 - 1e-6), batch.tone, hidden)
    return (
        recipe.transmission * optical.abs().mean()
        + recipe.smooth * slope(optical)
        + recipe.airlight * color
        + recipe.tone * tone
    )


def seam(error: Tensor) -> Tensor:
    """Return the mean jump of the error ``(n, 3, h, w)`` around tile borders; 0 for images of one tile.

    The jumps are those of pixels and of means over cells of 4 and 16 pixels, of which two on each side of a border are
    taken. With the jump across the border alone, a network learns to leave the pixels at the border hazy, which is as
    visible as a seam.
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
    """Return the mean slope of an error ``(n, 3, h, w)`` per 4 pixels, down plus across, at three scales.

    Dehazing dense haze amplifies each step of the transmission many times: steps between the cells of 4 pixels of the
    head, and larger patterns such as bands and the grid of tiles, which cells of 16 and 64 pixels capture.
    """
    total = error.new_zeros(())
    for side in (4, 16, 64):
        cells = F.avg_pool2d(error, side, ceil_mode=True, count_include_pad=False)
        for axis in (2, 3):
            if cells.shape[axis] > 1:
                total = total + 4 / side * cells.diff(dim=axis).abs().mean()
    return total
