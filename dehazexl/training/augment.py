"""Crops of pictures: at random, or of the middle; as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dehazexl.training.rgb_files import Picture


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Turn ``(h, w, 3)`` uint8 into ``(1, 3, h, w)`` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


@dataclass(frozen=True)
class View:
    """A way to look at a picture: rows and columns of it, turned or not, brought to a size, flipped."""

    rows: slice
    cols: slice
    turned: bool
    size: tuple[int, int]
    flips: tuple[int, ...]

    def cut(self, picture: Picture) -> Tensor:
        """Return ``(1, 3, h, w)`` in [0, 1]; nothing but the rows and columns is read."""
        pixels = picture[self.rows, self.cols]
        crop = to_tensor(pixels.transpose(1, 0, 2) if self.turned else pixels)
        shrunk = crop.shape[2] > self.size[0]
        return F.interpolate(crop, size=self.size, mode="bilinear", antialias=shrunk).flip(self.flips)


def draw_view(shape: Sequence[int], h: int, w: int, random: np.random.Generator) -> View:
    """Draw a view of ``h x w`` pixels of a picture of some shape ``(y, x, ...)``."""
    turned = random.random() < 0.5
    height, width = (shape[1], shape[0]) if turned else (shape[0], shape[1])
    # Shrinking up to four times makes coarser ground resolutions; small pictures may be enlarged.
    largest = min(height / h, width / w)
    zoom = min(largest, float(np.exp(random.uniform(np.log(min(0.8, largest)), np.log(min(4.0, max(0.8, largest)))))))
    ch, cw = min(height, max(1, round(h * zoom))), min(width, max(1, round(w * zoom)))
    y, x = int(random.integers(height - ch + 1)), int(random.integers(width - cw + 1))
    flips = tuple(axis for axis in (3, 2) if random.random() < 0.5)
    across, along = slice(y, y + ch), slice(x, x + cw)
    return View(along if turned else across, across if turned else along, turned, (h, w), flips)


def random_crop(pictures: Sequence[Picture], h: int, w: int, random: np.random.Generator) -> Tensor:
    """Cut a random crop from a random picture, at a random scale, turned, flipped and slightly recolored.

    Returns ``(1, 3, h, w)`` in [0, 1].
    """
    picture = pictures[int(random.integers(len(pictures)))]
    return recolor(draw_view(picture.shape, h, w, random).cut(picture), random)


def recolor(crop: Tensor, random: np.random.Generator) -> Tensor:
    """Vary exposure, contrast and white balance of ``(1, 3, h, w)`` in [0, 1], of every other crop.

    Slightly: how bright pictures usually are helps to tell a thick haze from a pale scene.
    """
    if random.random() < 0.5:
        return crop
    gains = torch.from_numpy(random.uniform(0.95, 1.05, (1, 3, 1, 1)).astype(np.float32))
    return (crop ** float(random.uniform(0.85, 1.2)) * gains * float(random.uniform(0.92, 1.06))).clamp(0, 1)


def calmed(crop: Tensor, random: np.random.Generator) -> Tensor:
    """Keep the largest shapes of ``(1, 3, h, w)`` in [0, 1] alone, with slight noise: calm water, a clear sky."""
    few = F.interpolate(crop, size=tuple(random.integers(1, 6, size=2)), mode="bilinear", antialias=True)
    smooth = F.interpolate(few, size=crop.shape[2:], mode="bicubic")
    noise = random.normal(0, random.uniform(0, 0.02), crop.shape).astype(np.float32)
    return (smooth + torch.from_numpy(noise)).clamp(0, 1)


def beside(crop: Tensor, other: Tensor, random: np.random.Generator) -> Tensor:
    """Replace one side of ``(1, 3, h, w)`` by that of another crop of its size, up to a border along an axis."""
    axis = int(random.integers(2, 4))
    border = round(random.uniform(0.2, 0.8) * crop.shape[axis])
    near, far = crop.narrow(axis, 0, border), other.narrow(axis, border, crop.shape[axis] - border)
    return torch.cat([near, far], dim=axis)


def center_crop(picture: Picture, h: int, w: int) -> Tensor:
    """Cut the middle of a picture ``(height, width, 3)``: at most ``(1, 3, h, w)`` in [0, 1]."""
    height, width, _ = picture.shape
    y, x = max(0, (height - h) // 2), max(0, (width - w) // 2)
    return to_tensor(picture[y : y + h, x : x + w])
