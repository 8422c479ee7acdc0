"""FADE: how foggy an image looks, without a clear image to compare it with.

L. K. Choi, J. You and A. C. Bovik: Referenceless Prediction of Perceptual Fog Density and Perceptual Image Defogging,
IEEE Transactions on Image Processing 24 (11), 2015, pages 3888-3901.

Twelve features of each patch of 8 x 8 pixels are compared with their statistics in 500 foggy and 500 fog-free
photographs. The statistics, in ``fade.json``, are those of the authors' FADE release (Laboratory for Image and Video
Engineering, The University of Texas at Austin, http://live.ece.utexas.edu/research/fog/FADE_release.zip), whose notice
is in ``fade-LICENSE.txt``. The code is our own, and computes what the release does.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

PATCH = 8
"""Side of a patch, in pixels."""

SMALLEST = 2 * PATCH
"""Side of the smallest image with a score, in pixels: the filter of the contrast needs as many."""

GRAY = np.linalg.inv([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.106, 1.703]])[0]
"""Weights of red, green and blue in the gray image: luminance of NTSC."""

SIGMA = 3.25
"""Of the filter of the contrast, in pixels."""

SATURATION = 0.1
"""Contrast that brings half the response, over the highest in the image."""

NOISE = {
    "gray": 255 * 9.225496406318721e-4,
    "blue-yellow": 255 * 8.969246659629488e-4,
    "red-green": 255 * 2.069284034165411e-4,
}
"""Responses to contrast that count as noise."""

FLAT = -1e-14
"""What stands for a normalized value where all around is of one value; see `normalized`."""


def fog_density(pixels: NDArray[np.uint8]) -> float:
    """Return the perceived density of fog in an image, 0 and more: the smaller, the clearer.

    Parameters
    ----------
    pixels
        ``(h, w, 3)``. Rows and columns beyond a multiple of 8 are left out.

    Returns
    -------
    float
        NaN for images of less than 16 x 16 pixels, and where no patch has a texture to be judged by. Within 1e-6 of
        the release's, except for areas of one color: they are left out here, while the release, by its rounding
        errors, counts them at 38 of the 256 levels of gray.
    """
    height, width = (size - size % PATCH for size in pixels.shape[:2])
    if min(height, width) < SMALLEST:
        return math.nan
    found = np.log1p(np.stack(list(features(pixels[:height, :width])), axis=-1)).reshape(-1, 12)
    foggy, clear = (distances(found, *statistics(kind)) for kind in ("foggy", "fog-free"))
    known = np.isfinite(clear) & np.isfinite(foggy)
    return float(clear[known].mean() / (foggy[known].mean() + 1)) if known.any() else math.nan


@lru_cache
def statistics(kind: str) -> tuple[Array, Array]:
    """Return mean ``(12,)`` and covariance ``(12, 12)`` of the features of photographs, "foggy" or "fog-free"."""
    found = json.loads(files(__package__).joinpath("fade.json").read_text())[kind]
    return np.array(found["mean"]), np.array(found["covariance"])


def features(pixels: NDArray[np.uint8]) -> Iterator[Array]:
    """Yield the twelve features of an image ``(h, w, 3)``, of each of its patches ``(h / 8, w / 8)``."""
    colors = pixels.astype(np.float64)
    red, green, blue = np.moveaxis(colors, 2, 0)
    gray = np.floor(colors @ GRAY + 0.5)
    normal, deviation, mean = normalized(gray)
    with np.errstate(divide="ignore", invalid="ignore"):
        variation = deviation / mean  # no number in black, which leaves its patch out
    yield variance(patches(normal))
    # Neighbors from top to bottom; the first row's is the last.
    pairs = patches(normal * np.roll(normal, 1, axis=0))
    yield variance(np.where(pairs >= 0, pairs, np.nan))
    yield variance(np.where(pairs <= 0, pairs, np.nan))
    yield patches(deviation).mean(axis=-1)
    yield patches(variation).mean(axis=-1)
    opposed = {"blue-yellow": (red + green) / 2 - blue, "red-green": red - green}
    yield patches(contrast_energy(colors @ [0.299, 0.587, 0.114], NOISE["gray"])).mean(axis=-1)
    for name, channel in opposed.items():
        yield patches(contrast_energy(channel, NOISE[name])).mean(axis=-1)
    yield entropy(patches(gray).astype(np.intp))
    darkest, brightest = colors.min(axis=2), colors.max(axis=2)
    yield patches(darkest).mean(axis=-1) / 255
    yield patches((brightest - darkest) / np.maximum(brightest, 1)).mean(axis=-1)
    cells = [patches(channel) for channel in opposed.values()]
    spread = sum(cell.var(axis=-1, ddof=1) for cell in cells)
    yield np.sqrt(spread) + 0.3 * np.sqrt(sum(cell.mean(axis=-1) ** 2 for cell in cells))


def normalized(gray: Array) -> tuple[Array, Array, Array]:
    """Subtract the local mean from a gray image ``(h, w)`` of whole numbers, and divide by the local deviation plus 1.

    Returns this, the deviation and the mean, over Gaussian windows of 7 x 7 pixels.
    """
    from scipy.ndimage import correlate1d, maximum_filter, minimum_filter

    window = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    window /= window.sum()

    def local(x: Array) -> Array:
        return np.asarray(correlate1d(correlate1d(x, window, axis=0, mode="nearest"), window, axis=1, mode="nearest"))

    mean = local(gray)
    deviation = np.sqrt(np.abs(local(gray * gray) - mean * mean))
    normal = (gray - mean) / (deviation + 1)
    # What is 0 but for rounding errors, which black has none of. The release's have one sign at 217 levels of 256: a
    # patch that is flat throughout then has no pairs of opposite signs, no feature of them, and is left out.
    flat = minimum_filter(gray, 7, mode="nearest") == maximum_filter(gray, 7, mode="nearest")
    normal[flat] = np.where(gray[flat] > 0, FLAT, 0)
    return normal, deviation, mean


def contrast_energy(channel: Array, noise: float) -> Array:
    """Return the response to contrast in a channel ``(h, w)``, at about 20 pixels, as Groen et al. (2013) have it."""
    from scipy.ndimage import convolve1d

    x = np.arange(-3 * SIGMA, 3 * SIGMA + 0.5)
    kernel = (x**2 / SIGMA**4 - 1 / SIGMA**2) * np.exp(-0.5 * (x / SIGMA) ** 2)
    kernel -= kernel.mean()
    kernel /= np.sum(0.5 * x**2 * kernel)
    half = len(x) // 2
    # Beyond the borders stands what is next to them, as it is, not mirrored.
    rows = np.concatenate([channel[:half], channel, channel[-half:]])
    around = np.concatenate([rows[:, :half], rows, rows[:, -half:]], axis=1)
    inside = slice(half, -half), slice(half, -half)
    contrast = np.hypot(convolve1d(around, kernel, axis=0)[inside], convolve1d(around, kernel, axis=1)[inside])
    highest = contrast.max()
    if highest == 0:
        return np.zeros_like(channel)
    return np.maximum(contrast * highest / (contrast + highest * SATURATION) - noise, 0)


def patches(x: NDArray[Any]) -> NDArray[Any]:
    """Cut ``(h, w)`` into patches ``(h / 8, w / 8, 64)``."""
    height, width = x.shape
    cut = x.reshape(height // PATCH, PATCH, width // PATCH, PATCH).swapaxes(1, 2)
    return cut.reshape(height // PATCH, width // PATCH, PATCH * PATCH)


def variance(x: Array) -> Array:
    """Return the variance along the last axis of what is a number: 0 of one, NaN of none."""
    known = np.isfinite(x)
    count = known.sum(axis=-1)
    mean = np.where(known, x, 0).sum(axis=-1) / np.maximum(count, 1)
    squared = np.where(known, (x - mean[..., None]) ** 2, 0).sum(axis=-1)
    return np.where(count > 0, squared / np.maximum(count - 1, 1), np.nan)


def entropy(x: NDArray[np.intp]) -> Array:
    """Return the entropy of the values in patches ``(rows, columns, n)``, 0 to 255, in bits."""
    rows, columns, size = x.shape
    found = np.empty((rows, columns))
    for i, row in enumerate(x):  # the counts of all rows at once would be several times the image
        bins = row + 256 * np.arange(columns)[:, None]
        share = np.bincount(bins.ravel(), minlength=256 * columns).reshape(columns, 256) / size
        found[i] = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
    return found


def distances(found: Array, mean: Array, covariance: Array) -> Array:
    """Return the distance of each patch's features ``(n, 12)`` from statistics ``(12,)``, ``(12, 12)``.

    That of Mahalanobis, by the mean of the covariance and the patch's own: the variance of its twelve features at
    each place of the matrix, so that its inverse is known by the formula of Sherman and Morrison.
    """
    away = found - mean
    own = variance(found)
    inverse = np.linalg.inv(covariance)
    solved = away @ inverse
    squared = (solved * away).sum(axis=1) - own * solved.sum(axis=1) ** 2 / (1 + own * inverse.sum())
    return np.sqrt(2 * np.maximum(squared, 0))
