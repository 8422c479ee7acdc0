"""Random and central crops of images as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dehazexl.training.rgb_files import RgbImage


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert ``(h, w, 3)`` uint8 to ``(1, 3, h, w)`` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


@dataclass(frozen=True)
class View:
    """Geometry of a random crop, which can be applied to both images of a pair.

    Attributes
    ----------
    rows, cols
        The part of the image that is read.
    transposed
        Whether rows and columns are swapped.
    size
        Height and width of the crop after resizing, in pixels.
    flips
        Axes of ``(n, c, y, x)`` that are reversed.
    """

    rows: slice
    cols: slice
    transposed: bool
    size: tuple[int, int]
    flips: tuple[int, ...]

    def crop(self, image: RgbImage) -> Tensor:
        """Return the crop ``(1, 3, h, w)`` in [0, 1]; only its rows and columns are read."""
        pixels = image[self.rows, self.cols]
        crop = to_tensor(pixels.transpose(1, 0, 2) if self.transposed else pixels)
        shrunk = crop.shape[2] > self.size[0]
        return F.interpolate(crop, size=self.size, mode="bilinear", antialias=shrunk).flip(self.flips)


def draw_view(shape: Sequence[int], h: int, w: int, random: np.random.Generator) -> View:
    """Draw a random view of an image.

    Parameters
    ----------
    shape
        Shape ``(y, x, ...)`` of the image.
    h, w
        Size of the crop in pixels.
    random
        Random generator.
    """
    transposed = random.random() < 0.5
    height, width = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
    # Shrinking by up to 4 simulates coarser ground resolutions; small images may be enlarged.
    largest = min(height / h, width / w)
    zoom = min(largest, float(np.exp(random.uniform(np.log(min(0.8, largest)), np.log(min(4.0, max(0.8, largest)))))))
    ch, cw = min(height, max(1, round(h * zoom))), min(width, max(1, round(w * zoom)))
    y, x = int(random.integers(height - ch + 1)), int(random.integers(width - cw + 1))
    flips = tuple(axis for axis in (3, 2) if random.random() < 0.5)
    across, along = slice(y, y + ch), slice(x, x + cw)
    return View(along if transposed else across, across if transposed else along, transposed, (h, w), flips)


def random_crop(images: Sequence[RgbImage], h: int, w: int, random: np.random.Generator) -> Tensor:
    """Crop a random image at a random place and scale, randomly transposed, flipped and slightly recolored.

    Parameters
    ----------
    images
        Images ``(y, x, 3)``, uint8.
    h, w
        Size of the crop in pixels.
    random
        Random generator.

    Returns
    -------
    Tensor
        ``(1, 3, h, w)`` in [0, 1].
    """
    image = images[int(random.integers(len(images)))]
    return recolor(draw_view(image.shape, h, w, random).crop(image), random)


def recolor(crop: Tensor, random: np.random.Generator) -> Tensor:
    """Slightly vary exposure, contrast and white balance of half of the crops ``(1, 3, h, w)`` in [0, 1].

    The variation is small because the usual brightness of images helps to distinguish thick haze from a pale scene.
    """
    if random.random() < 0.5:
        return crop
    gains = torch.from_numpy(random.uniform(0.95, 1.05, (1, 3, 1, 1)).astype(np.float32))
    return (crop ** float(random.uniform(0.85, 1.2)) * gains * float(random.uniform(0.92, 1.06))).clamp(0, 1)


def smoothed(crop: Tensor, random: np.random.Generator) -> Tensor:
    """Smooth a crop ``(1, 3, h, w)`` in [0, 1] to its largest shapes, with slight noise, like calm water or sky."""
    coarse = F.interpolate(crop, size=tuple(random.integers(1, 6, size=2)), mode="bilinear", antialias=True)
    smooth = F.interpolate(coarse, size=crop.shape[2:], mode="bicubic")
    noise = random.normal(0, random.uniform(0, 0.02), crop.shape).astype(np.float32)
    return (smooth + torch.from_numpy(noise)).clamp(0, 1)


def join_crops(crop: Tensor, other: Tensor, random: np.random.Generator) -> Tensor:
    """Join two crops ``(1, 3, h, w)`` of one size at a random border along a random axis."""
    axis = int(random.integers(2, 4))
    border = round(random.uniform(0.2, 0.8) * crop.shape[axis])
    first, second = crop.narrow(axis, 0, border), other.narrow(axis, border, crop.shape[axis] - border)
    return torch.cat([first, second], dim=axis)


def center_crop(image: RgbImage, h: int, w: int) -> Tensor:
    """Return the center of an image ``(height, width, 3)``, at most ``(1, 3, h, w)``, in [0, 1]."""
    height, width, _ = image.shape
    y, x = max(0, (height - h) // 2), max(0, (width - w) // 2)
    return to_tensor(image[y : y + h, x : x + w])
