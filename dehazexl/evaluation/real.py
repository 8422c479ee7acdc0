"""Scores of images with real haze, of which no clear one exists: how much haze is left, and what its removal cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dehazexl.evaluation.fade import fog_density
from dehazexl.evaluation.paired import STRIP, seam_ratio, tiles_of
from dehazexl.image.grid import TILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from dehazexl.evaluation.paired import Dehazer, Picture, Scores

SCORES = ("fade", "cast", "clipped", "lightness", "noise", "seam")
"""Names of the scores, see `real_scores`."""


def real_scores(hazy: Picture, out: Picture, overlap: int = 0, tile: int = TILE) -> Scores:
    """Score a dehazed image beside the hazy one.

    Parameters
    ----------
    hazy, out
        ``(h, w, 3)`` in [0, 1], values of sRGB; what lies beyond in `out` is clipped.
    overlap, tile
        Of the tiles, and their side, in pixels.

    Returns
    -------
    dict
        ``fade``: perceived density of fog, see `fade.fog_density`. ``cast``: distance of the mean color from neutral,
        see `lab_cast`. ``clipped``: share of the pixels with a color that is newly at 0 or 255, see `clipped_share`.
        ``lightness``: mean L* of CIELAB, 0 to 100. ``noise``: noise of `out` over that of `hazy`, see `noise_level`.
        ``seam``: see `paired.seam_ratio`. A score that does not exist is NaN, and all are if `out` holds what is no
        number.
    """
    if not np.isfinite(out).all():
        return dict.fromkeys(SCORES, math.nan)
    out = np.clip(out, 0, 1)
    stored = in_8_bits(out)
    lightness, a, b = mean_lab(stored)
    before = noise_level(hazy)
    return {
        "fade": fog_density(stored),
        "cast": math.hypot(a, b),
        "clipped": clipped_share(in_8_bits(hazy), stored),
        "lightness": lightness,
        "noise": noise_level(out) / before if before else math.nan,
        "seam": seam_ratio(out - hazy, overlap, tile),
    }


def in_8_bits(picture: Picture) -> NDArray[np.uint8]:
    """Round an image in [0, 1] to what a file of 8 bits holds."""
    return np.rint(picture * 255).astype(np.uint8)


def mean_lab(pixels: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Return the means of L*, a* and b* (CIELAB, D65) of an image ``(h, w, 3)``."""
    from skimage.color import rgb2lab

    total = sum(rgb2lab(pixels[y : y + STRIP]).sum(axis=(0, 1)) for y in range(0, len(pixels), STRIP))
    lightness, a, b = np.asarray(total / (pixels.shape[0] * pixels.shape[1])).tolist()
    return lightness, a, b


def clipped_share(hazy: NDArray[np.uint8], out: NDArray[np.uint8]) -> float:
    """Return the share of pixels with a color that is 0 or 255 in `out` and is neither in `hazy`, ``(h, w, 3)``."""
    newly = ((out == 0) | (out == 255)) & (hazy > 0) & (hazy < 255)
    return float(newly.any(axis=2).mean())


def noise_level(picture: Picture) -> float:
    """Estimate the standard deviation of white noise in the mean of the colors of an image ``(h, w, 3)``.

    The filter of Immerkaer (Fast noise variance estimation, 1996), which leaves planes and straight edges out, and the
    median of its magnitude, which leaves out most of the others. NaN for images of less than 3 x 3 pixels. Where half
    of the pixels have no detail at all, it is 0.
    """
    from scipy.ndimage import correlate1d

    detail = picture.mean(axis=2, dtype=np.float64)
    for axis in (0, 1):
        detail = correlate1d(detail, [1, -2, 1], axis=axis)
    inner = np.abs(detail[1:-1, 1:-1])
    # Its weights, the outer product of [1, -2, 1] with itself, have a norm of 6; 0.6745 is the median of |N(0, 1)|.
    level = float(np.median(inner)) / (6 * 0.6745) if inner.size else math.nan
    return 0.0 if level < 1e-6 else level  # what rounding leaves is no noise


def shrunk(pixels: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Shrink an image ``(h, w, 3)`` whose longer side is more than `size`, until it is `size`, smoothed."""
    from PIL import Image

    longer = max(pixels.shape[:2])
    if size is None or longer <= size:
        return pixels
    height, width = (max(1, round(side * size / longer)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def evaluate_real(
    images: Iterable[tuple[str, NDArray[np.uint8]]], dehazers: dict[str, Dehazer], overlap: int = 0
) -> Iterator[tuple[str, str, Picture, Scores]]:
    """Score each image ``(h, w, 3)`` as it is, and what each dehazer makes of it.

    Yields
    ------
    str, str, Picture, dict
        Name of the image, method, what it made of the image ``(h, w, 3)``, and its `real_scores`.
    """
    for name, pixels in images:
        hazy = pixels / np.float32(255)
        for method, run in {"hazy input": lambda hazy: hazy, **dehazers}.items():
            out = run(hazy)
            yield name, method, out, real_scores(hazy, out, *tiles_of(run, overlap))
