"""FADE, the perceived fog density of an image, computed without a clear reference image.

L. K. Choi, J. You and A. C. Bovik: Referenceless Prediction of Perceptual Fog Density and Perceptual Image Defogging,
IEEE Transactions on Image Processing 24 (11), 2015, pages 3888-3901.

Twelve features of each patch of 8 x 8 pixels are compared with their statistics in 500 foggy and 500 fog-free
photographs. The statistics, in ``fade.json``, are those of the authors' FADE release (Laboratory for Image and Video
Engineering, The University of Texas at Austin, http://live.ece.utexas.edu/research/fog/FADE_release.zip), whose notice
is in ``fade-LICENSE.txt``. The code is an independent implementation with the results of the release.
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
"""Side of a patch in pixels."""

SMALLEST = 2 * PATCH
"""Side in pixels of the smallest image with a score, as required by the contrast filter."""

GRAY = np.linalg.inv([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.106, 1.703]])[0]
"""Weights of red, green and blue in the gray image: the luminance of NTSC."""

SIGMA = 3.25
"""Standard deviation of the contrast filter in pixels."""

SATURATION = 0.1
"""Contrast with half the response, relative to the highest contrast in the image."""

NOISE = {
    "gray": 255 * 9.225496406318721e-4,
    "blue-yellow": 255 * 8.969246659629488e-4,
    "red-green": 255 * 2.069284034165411e-4,
}
"""Contrast responses up to which a response is considered noise."""

FLAT = -1e-14
"""Substitute for a normalized value in a constant neighborhood, see `normalized`."""


def fog_density(pixels: NDArray[np.uint8]) -> float:
    """Return the perceived fog density of an image: at least 0, smaller for clearer images.

    Parameters
    ----------
    pixels
        ``(h, w, 3)``. Rows and columns beyond a multiple of 8 are ignored.

    Returns
    -------
    float
        NaN for images of less than 16 x 16 pixels and for images without texture. Equal to the result of the release
        within 1e-6, except for areas of one color: they are ignored here, while the release, through rounding errors,
        includes them at 38 of the 256 levels of gray.
    """
    height, width = (size - size % PATCH for size in pixels.shape[:2])
    if min(height, width) < SMALLEST:
        return math.nan
    values = np.log1p(np.stack(list(features(pixels[:height, :width])), axis=-1)).reshape(-1, 12)
    foggy, clear = (distances(values, *statistics(kind)) for kind in ("foggy", "fog-free"))
    valid = np.isfinite(clear) & np.isfinite(foggy)
    return float(clear[valid].mean() / (foggy[valid].mean() + 1)) if valid.any() else math.nan


@lru_cache
def statistics(kind: str) -> tuple[Array, Array]:
    """Return mean ``(12,)`` and covariance ``(12, 12)`` of the features of "foggy" or "fog-free" photographs."""
    stored = json.loads(files(__package__).joinpath("fade.json").read_text())[kind]
    return np.array(stored["mean"]), np.array(stored["covariance"])


def features(pixels: NDArray[np.uint8]) -> Iterator[Array]:
    """Yield the twelve features of an image ``(h, w, 3)``, each for all patches ``(h / 8, w / 8)``."""
    colors = pixels.astype(np.float64)
    red, green, blue = np.moveaxis(colors, 2, 0)
    gray = np.floor(colors @ GRAY + 0.5)
    normal, deviation, mean = normalized(gray)
    with np.errstate(divide="ignore", invalid="ignore"):
        variation = deviation / mean  # not finite in black areas, whose patches are ignored
    yield variance(patches(normal))
    # Vertical neighbors; the neighbor of the first row is the last one.
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
    """Normalize a gray image ``(h, w)`` of integers: subtract the local mean, divide by the local deviation plus 1.

    Returns
    -------
    normal, deviation, mean : ndarray
        Normalized values, local standard deviation and local mean in Gaussian windows of 7 x 7 pixels, ``(h, w)``.
    """
    from scipy.ndimage import correlate1d, maximum_filter, minimum_filter

    window = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    window /= window.sum()

    def local(x: Array) -> Array:
        return np.asarray(correlate1d(correlate1d(x, window, axis=0, mode="nearest"), window, axis=1, mode="nearest"))

    mean = local(gray)
    deviation = np.sqrt(np.abs(local(gray * gray) - mean * mean))
    normal = (gray - mean) / (deviation + 1)
    # Constant areas are 0 up to rounding errors, which are absent in black. In the release the errors have one sign at
    # 217 of 256 levels: a constant patch then has no pairs of opposite signs and is ignored, as a feature is missing.
    flat = minimum_filter(gray, 7, mode="nearest") == maximum_filter(gray, 7, mode="nearest")
    normal[flat] = np.where(gray[flat] > 0, FLAT, 0)
    return normal, deviation, mean


def contrast_energy(channel: Array, noise: float) -> Array:
    """Return the contrast energy of a channel ``(h, w)`` at a scale of about 20 pixels (Groen et al., 2013)."""
    from scipy.ndimage import convolve1d

    x = np.arange(-3 * SIGMA, 3 * SIGMA + 0.5)
    kernel = (x**2 / SIGMA**4 - 1 / SIGMA**2) * np.exp(-0.5 * (x / SIGMA) ** 2)
    kernel -= kernel.mean()
    kernel /= np.sum(0.5 * x**2 * kernel)
    half = len(x) // 2
    # The borders are padded with copies of the adjacent blocks, not mirrored.
    rows = np.concatenate([channel[:half], channel, channel[-half:]])
    around = np.concatenate([rows[:, :half], rows, rows[:, -half:]], axis=1)
    inside = slice(half, -half), slice(half, -half)
    contrast = np.hypot(convolve1d(around, kernel, axis=0)[inside], convolve1d(around, kernel, axis=1)[inside])
    highest = contrast.max()
    if highest == 0:
        return np.zeros_like(channel)
    return np.maximum(contrast * highest / (contrast + highest * SATURATION) - noise, 0)


def patches(x: NDArray[Any]) -> NDArray[Any]:
    """Split ``(h, w)`` into patches ``(h / 8, w / 8, 64)``."""
    height, width = x.shape
    split = x.reshape(height // PATCH, PATCH, width // PATCH, PATCH).swapaxes(1, 2)
    return split.reshape(height // PATCH, width // PATCH, PATCH * PATCH)


def variance(x: Array) -> Array:
    """Return the variance of the finite values along the last axis: 0 for one value, NaN for none."""
    valid = np.isfinite(x)
    count = valid.sum(axis=-1)
    mean = np.where(valid, x, 0).sum(axis=-1) / np.maximum(count, 1)
    squared = np.where(valid, (x - mean[..., None]) ** 2, 0).sum(axis=-1)
    return np.where(count > 0, squared / np.maximum(count - 1, 1), np.nan)


def entropy(x: NDArray[np.intp]) -> Array:
    """Return the entropy in bits ``(rows, columns)`` of the values, 0 to 255, in patches ``(rows, columns, n)``."""
    rows, columns, size = x.shape
    out = np.empty((rows, columns))
    for i, row in enumerate(x):  # by row, because the counts of all rows need several times the memory of the image
        bins = row + 256 * np.arange(columns)[:, None]
        share = np.bincount(bins.ravel(), minlength=256 * columns).reshape(columns, 256) / size
        out[i] = -(share * np.log2(np.where(share > 0, share, 1))).sum(axis=1)
    return out


def distances(values: Array, mean: Array, covariance: Array) -> Array:
    """Return the Mahalanobis distance ``(n,)`` of the features of patches from statistics.

    The covariance is the mean of that of the statistics and that of the patch. The latter is a constant matrix of the
    variance of the twelve features, so the inverse follows from the Sherman-Morrison formula.

    Parameters
    ----------
    values
        Features of the patches ``(n, 12)``.
    mean, covariance
        Statistics ``(12,)`` and ``(12, 12)``.
    """
    difference = values - mean
    spread = variance(values)
    inverse = np.linalg.inv(covariance)
    solved = difference @ inverse
    squared = (solved * difference).sum(axis=1) - spread * solved.sum(axis=1) ** 2 / (1 + spread * inverse.sum())
    return np.sqrt(2 * np.maximum(squared, 0))
