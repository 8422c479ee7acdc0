"""Pictures of another size, for networks that know theirs only at one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.image import Image, valid_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 1024  # pixels: side of the blocks of the resized picture


def resized(image: Image, height: int, width: int) -> Image:
    """Resize a picture in memory, bilinear and smoothed where it shrinks.

    Parameters
    ----------
    image
        The picture; it is read whole.
    height, width
        Its new size in pixels.

    Returns
    -------
    Image
        The picture without overviews, its pixel size and georeference changed accordingly. Pixels without data
        are not mixed into their neighbors; where they prevail, the nearest old pixel stands.

    Raises
    ------
    ValueError
        If a side is less than one pixel.
    """
    import dask.array as da

    if min(height, width) < 1:
        raise ValueError(f"a picture cannot be resized to {width} x {height} pixels: give at least 1x1")
    pixels = np.asarray(image.levels[0].compute())
    fy, fx = pixels.shape[0] / height, pixels.shape[1] / width
    level = da.from_array(
        _interpolated(pixels, valid_mask(pixels, image), height, width), chunks=(BLOCK, BLOCK, -1), name=False
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


def _interpolated(pixels: NDArray[Any], valid: NDArray[np.bool_], height: int, width: int) -> NDArray[Any]:
    """Resize ``(y, x, c)`` by the valid pixels alone."""
    share = _bilinear(valid[..., None].astype(np.float32), height, width)
    total = _bilinear(np.where(valid[..., None], pixels, 0).astype(np.float32), height, width)
    mean = total / np.maximum(share, 1e-6)
    rows = ((np.arange(height) + 0.5) * pixels.shape[0] / height).astype(int)
    cols = ((np.arange(width) + 0.5) * pixels.shape[1] / width).astype(int)
    if pixels.dtype.kind != "f":
        limits = np.iinfo(pixels.dtype)
        mean = np.clip(np.rint(mean), limits.min, limits.max)
    return np.where(share >= 0.5, mean.astype(pixels.dtype), pixels[rows[:, None], cols])


def _bilinear(values: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resize ``(y, x, c)``, a channel at a time so that little is held twice."""
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
