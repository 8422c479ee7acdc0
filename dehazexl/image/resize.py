"""Resizing of images, for networks that were trained at one image size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.image import Image, valid_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 1024  # pixels along a side of the chunks of the resized image


def resized(image: Image, height: int, width: int) -> Image:
    """Resize an image in memory by bilinear interpolation, with antialiasing where it shrinks.

    Parameters
    ----------
    image
        The image, which is read completely.
    height, width
        New size in pixels.

    Returns
    -------
    Image
        The resized image without overviews, with updated pixel size and georeference. Pixels without data do not
        contribute; where they make up more than half of the weight, the nearest pixel of the input is taken.

    Raises
    ------
    ValueError
        If a side is shorter than one pixel.
    """
    import dask.array as da

    if min(height, width) < 1:
        raise ValueError(f"an image cannot be resized to {width} x {height} pixels: use at least 1x1")
    pixels = np.asarray(image.levels[0].compute())
    fy, fx = pixels.shape[0] / height, pixels.shape[1] / width
    level = da.from_array(
        _resize_valid(pixels, valid_mask(pixels, image), height, width), chunks=(BLOCK, BLOCK, -1), name=False
    )
    return replace(
        image,
        levels=(level,),
        scale=(image.scale[0] * fy, image.scale[1] * fx),
        translate=(
            image.translate[0] + image.scale[0] * (fy - 1) / 2,
            image.translate[1] + image.scale[1] * (fx - 1) / 2,
        ),
        geo=image.geo.scaled(fy, fx) if image.geo else None,
        fingerprint=f"{image.fingerprint}[{width}x{height}]",
    )


def _resize_valid(pixels: NDArray[Any], valid: NDArray[np.bool_], height: int, width: int) -> NDArray[Any]:
    """Resize ``(y, x, c)`` from the valid pixels only."""
    weight = _resize_bilinear(valid[..., None].astype(np.float32), height, width)
    total = _resize_bilinear(np.where(valid[..., None], pixels, 0).astype(np.float32), height, width)
    mean = total / np.maximum(weight, 1e-6)
    rows = ((np.arange(height) + 0.5) * pixels.shape[0] / height).astype(int)
    cols = ((np.arange(width) + 0.5) * pixels.shape[1] / width).astype(int)
    if pixels.dtype.kind != "f":
        info = np.iinfo(pixels.dtype)
        mean = np.clip(np.rint(mean), info.min, info.max)
    return np.where(weight >= 0.5, mean.astype(pixels.dtype), pixels[rows[:, None], cols])


def _resize_bilinear(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize ``(y, x, c)`` one channel at a time, which limits the memory of temporary copies."""
    import torch
    from torch.nn import functional as F

    channels = [
        F.interpolate(
            torch.from_numpy(np.ascontiguousarray(values[None, None, ..., channel])),
            size=(height, width),
            mode="bilinear",
            antialias=True,
        )[0, 0].numpy()
        for channel in range(values.shape[2])
    ]
    return np.stack(channels, axis=-1)
