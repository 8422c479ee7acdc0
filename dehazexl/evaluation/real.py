"""Evaluation on real haze without reference images: remaining haze and side effects of its removal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dehazexl.evaluation.fade import fog_density
from dehazexl.evaluation.paired import STRIP, overlap_and_tile, seam_ratio
from dehazexl.image.grid import TILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from dehazexl.evaluation.paired import Dehazer, FloatImage, Scores

SCORES = ("fade", "cast", "clipped", "lightness", "noise", "seam")
"""Names of the scores, see `real_scores`."""


def real_scores(hazy: FloatImage, out: FloatImage, overlap: int = 0, tile: int = TILE) -> Scores:
    """Score a dehazed image in comparison with the hazy one.

    Parameters
    ----------
    hazy, out
        sRGB values ``(h, w, 3)`` in [0, 1]; `out` is clipped to that range.
    overlap, tile
        Overlap and side of the tiles in pixels.

    Returns
    -------
    dict
        ``fade``: perceived fog density, see `fade.fog_density`. ``cast``: distance of the mean color from neutral in
        CIELAB, see `mean_lab`. ``clipped``: share of newly clipped pixels, see `clipped_share`. ``lightness``: mean L*
        of CIELAB, 0 to 100. ``noise``: noise of `out` over that of `hazy`, see `noise_level`. ``seam``: see
        `paired.seam_ratio`. Undefined scores are NaN; all are if `out` has values that are not finite.
    """
    if not np.isfinite(out).all():
        return dict.fromkeys(SCORES, math.nan)
    out = np.clip(out, 0, 1)
    stored = to_uint8(out)
    lightness, a, b = mean_lab(stored)
    input_noise = noise_level(hazy)
    return {
        "fade": fog_density(stored),
        "cast": math.hypot(a, b),
        "clipped": clipped_share(to_uint8(hazy), stored),
        "lightness": lightness,
        "noise": noise_level(out) / input_noise if input_noise else math.nan,
        "seam": seam_ratio(out - hazy, overlap, tile),
    }


def to_uint8(image: FloatImage) -> NDArray[np.uint8]:
    """Convert an image in [0, 1] to 8 bits."""
    return np.rint(image * 255).astype(np.uint8)


def mean_lab(pixels: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Return the means of L*, a* and b* (CIELAB, D65) of an image ``(h, w, 3)``."""
    from skimage.color import rgb2lab

    total = sum(rgb2lab(pixels[y : y + STRIP]).sum(axis=(0, 1)) for y in range(0, len(pixels), STRIP))
    lightness, a, b = np.asarray(total / (pixels.shape[0] * pixels.shape[1])).tolist()
    return lightness, a, b


def clipped_share(hazy: NDArray[np.uint8], out: NDArray[np.uint8]) -> float:
    """Return the share of pixels with a color that is 0 or 255 in `out` but not in `hazy`, both ``(h, w, 3)``."""
    newly = ((out == 0) | (out == 255)) & (hazy > 0) & (hazy < 255)
    return float(newly.any(axis=2).mean())


def noise_level(image: FloatImage) -> float:
    """Estimate the standard deviation of white noise in the mean of the colors of an image ``(h, w, 3)``.

    The filter of Immerkaer (Fast noise variance estimation, 1996) suppresses planes and straight edges, and the median
    of its magnitude is robust to most other structures.

    Returns
    -------
    float
        NaN for images of less than 3 x 3 pixels; 0 if half of the pixels have no detail.
    """
    from scipy.ndimage import correlate1d

    detail = image.mean(axis=2, dtype=np.float64)
    for axis in (0, 1):
        detail = correlate1d(detail, [1, -2, 1], axis=axis)
    inner = np.abs(detail[1:-1, 1:-1])
    # The weights, the outer product of [1, -2, 1] with itself, have a norm of 6; 0.6745 is the median of |N(0, 1)|.
    level = float(np.median(inner)) / (6 * 0.6745) if inner.size else math.nan
    return 0.0 if level < 1e-6 else level  # below the precision of rounding


def shrink(pixels: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Downsample an image ``(h, w, 3)`` so that its longer side is at most `size` pixels."""
    from PIL import Image

    longer = max(pixels.shape[:2])
    if size is None or longer <= size:
        return pixels
    height, width = (max(1, round(side * size / longer)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def evaluate_real(
    images: Iterable[tuple[str, NDArray[np.uint8]]], dehazers: dict[str, Dehazer], overlap: int = 0
) -> Iterator[tuple[str, str, FloatImage, Scores]]:
    """Score the hazy input and the output of each dehazer for each image.

    Parameters
    ----------
    images
        Names and pixels ``(h, w, 3)``.
    dehazers
        Functions from hazy to dehazed images ``(h, w, 3)``, by name.
    overlap
        Overlap of tiles in pixels that `seam_ratio` assumes for dehazers other than networks.

    Yields
    ------
    name : str
        Name of the image.
    method : str
        Name of the dehazer, or "hazy input".
    out : ndarray
        The dehazed image ``(h, w, 3)``.
    scores : dict
        The result of `real_scores`.
    """
    for name, pixels in images:
        hazy = pixels / np.float32(255)
        for method, run in {"hazy input": lambda hazy: hazy, **dehazers}.items():
            out = run(hazy)
            yield name, method, out, real_scores(hazy, out, *overlap_and_tile(run, overlap))
