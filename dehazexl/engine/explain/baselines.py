"""Baselines: what an image is compared with when its attribution is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dehazexl.engine.decode import decode
from dehazexl.engine.job import Job
from dehazexl.engine.run import Stage, stages
from dehazexl.engine.tiles import Tiles
from dehazexl.engine.tokens import MemoryTokens
from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import Window, reflect
from dehazexl.image.image import Image, colors, valid_mask
from dehazexl.image.value_scale import to_dtype
from dehazexl.io.open import open_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.engine.explain.response import Baseline

NAMES = ("dehazed", "black", "blur")
"""Baselines that need no file."""

SIGMA = 32.0
"""Standard deviation of the baseline ``blur``, in pixels: a token of the networks without a scale."""

LARGEST_SIGMA = 512.0
"""Largest standard deviation of a blur in pixels: three times as many are read around each block of tiles."""


def black(read: Tiles) -> NDArray[np.float32]:
    """Return the baseline that is black everywhere, see `response.Baseline`."""
    return np.zeros_like(read.rgb)


def of_image(job: Job, image: Image) -> Baseline:
    """Return the baseline that another image shows, such as one without haze.

    Where it has no data, it is like the image itself, so that nothing is attributed there.

    Raises
    ------
    ValueError
        If its size or data type is not that of the image.
    """
    own, other = job.image.levels[0], image.levels[0]
    if other.shape[:2] != own.shape[:2]:
        found, expected = (f"{shape[1]} x {shape[0]}" for shape in (other.shape, own.shape))
        raise ValueError(f"the baseline {image.name} has {found} pixels, the image {expected}: give one of its size")
    if other.dtype != own.dtype:
        raise ValueError(f"the baseline {image.name} is {other.dtype}, the image {own.dtype}: convert one of them")
    pixels = ChunkCache(other)

    def baseline(read: Tiles) -> NDArray[np.float32]:
        raw = pixels.read(read.window)
        if image.guard is not None:
            image.guard()
        return np.where(valid_mask(raw, image)[..., None], job.scale.to_unit(colors(raw, image)), read.rgb)

    return baseline


def of_array(job: Job, array: NDArray[Any]) -> Baseline:
    """Return the baseline of an array ``(y, x, 3)`` of the image's colors, in the values of the image."""

    def baseline(read: Tiles) -> NDArray[np.float32]:
        rows = reflect(np.arange(read.window.y0, read.window.y1), array.shape[0])
        cols = reflect(np.arange(read.window.x0, read.window.x1), array.shape[1])
        return job.scale.to_unit(array[rows[:, None], cols])

    return baseline


def open_baseline(job: Job, source: str | Path) -> Baseline:
    """Return the baseline of an image file with the bands of the image; see `of_image`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    try:
        image = open_image(source, bands=[band + 1 for band in job.image.rgb])
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the baseline is none of {', '.join(NAMES)}, and as an image, {error}: name one of these, or a file"
        ) from None
    return of_image(job, image)


def smoothed(job: Job, baseline: Baseline, share: float, sigma: float) -> Baseline:
    """Return a point of the path on which the difference between baseline and image fades in from coarse to fine.

    Parameters
    ----------
    job, baseline
        The image and the baseline.
    share
        Share of the difference, above 0.
    sigma
        Standard deviation of the Gaussian that smooths the difference, in pixels, above 0.
    """
    margin = _reach(sigma)

    def point(read: Tiles) -> NDArray[np.float32]:
        wide = Tiles.read(job, read.tiles, margin)
        difference = np.where(wide.valid[..., None], wide.rgb - baseline(wide), np.float32(0))
        smooth = share * _smoothed(torch.from_numpy(difference).permute(2, 0, 1), sigma, margin)
        smooth += torch.from_numpy(baseline(read)).permute(2, 0, 1)
        return smooth.permute(1, 2, 0).numpy()

    return point


def dehazed_stages(job: Job, array: NDArray[Any]) -> Iterator[Stage]:
    """Yield the stages that dehaze the image into `array` ``(y, x, 3)``."""
    own = replace(job, strength=1.0)  # with caches of its own, which end with it
    store = MemoryTokens(own.grid, own.channels, own.token_dtype)
    yield from stages(own, store)

    def dehaze(window: Window) -> NDArray[Any]:
        return colors(decode(own, store, window), own.image)

    yield Stage("decode", len(_windows(job)), _filled(job, array, dehaze))


def blurred_stages(job: Job, array: NDArray[Any], sigma: float) -> Iterator[Stage]:
    """Yield the stage that blurs the image into `array` ``(y, x, 3)``."""
    yield Stage("blur", len(_windows(job)), _filled(job, array, lambda window: _blurred(job, window, sigma)))


def _filled(job: Job, array: NDArray[Any], compute: Callable[[Window], NDArray[Any]]) -> Iterator[int]:
    """Fill an array block by block."""
    for window in _windows(job):
        array[window.y0 : window.y1, window.x0 : window.x1] = compute(window)
        yield 1


def _windows(job: Job) -> list[Window]:
    """Return windows of pixels that cover the image once, of about a block of tiles each."""
    side, grid = job.grid.block * job.grid.stride, job.grid
    return [
        Window(y, min(y + side, grid.height), x, min(x + side, grid.width))
        for y in range(0, grid.height, side)
        for x in range(0, grid.width, side)
    ]


def _blurred(job: Job, window: Window, sigma: float) -> NDArray[Any]:
    """Blur a window with a Gaussian; pixels without data do not contribute."""
    margin = _reach(sigma)
    raw = job.pixels.read(window.expand(margin))
    valid = valid_mask(raw, job.image)
    rgb = np.where(valid[..., None], colors(raw, job.image).astype(np.float32), 0)
    stacked = torch.from_numpy(np.concatenate([rgb, valid[..., None].astype(np.float32)], axis=2)).permute(2, 0, 1)
    total = _smoothed(stacked, sigma, margin).permute(1, 2, 0).numpy()
    return to_dtype(total[..., :3] / np.maximum(total[..., 3:], 1e-6), raw.dtype)


def _reach(sigma: float) -> int:
    """Return the radius in pixels of a Gaussian of this standard deviation."""
    return int(np.ceil(3 * sigma))


def _smoothed(x: Tensor, sigma: float, margin: int) -> Tensor:
    """Smooth ``(c, h, w)`` with a Gaussian; the result is smaller by the margin on each side."""
    return _gaussian(_gaussian(x, sigma, margin).mT, sigma, margin).mT


def _gaussian(x: Tensor, sigma: float, margin: int) -> Tensor:
    """Convolve ``(c, h, w)`` along the last axis, which loses the margin at both ends."""
    place = torch.arange(-margin, margin + 1, dtype=torch.float64)
    kernel = torch.exp(-(place**2) / (2 * sigma**2))
    return F.conv1d(x.flatten(0, 1)[:, None], (kernel / kernel.sum()).float().view(1, 1, -1)).view(*x.shape[:2], -1)
