"""Evaluation with reference images: scores of networks, the hazy input and a classical baseline.

Protocol: full resolution, RGB, data range 1, float64; PSNR over all pixels and colors; SSIM of scikit-image with
its defaults (7 x 7 windows), over colors; CIEDE2000 of scikit-image, mean over pixels; mean over images.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from dehazexl.image.grid import TILE, TileGrid
from dehazexl.synthesis.haze import add_haze
from dehazexl.training.augment import center_crop

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.model import DehazeXL
    from dehazexl.training.datasets import Dataset
    from dehazexl.training.rgb_files import RgbImage as Pixels

    FloatImage = NDArray[np.floating]
    Dehazer = Callable[[FloatImage], FloatImage]
    Scores = dict[str, float]

T = TypeVar("T")

KINDS = ("veil", "patches", "depth", "ridges")
"""Kinds of synthetic haze, keys of `synthesis.haze.KINDS`."""
THICKNESS = (1.5, 2.7)
"""Range of the optical thickness of synthetic haze where it is thickest."""
BRIGHTNESS = (0.85, 1.0)
"""Range of the airlight of synthetic haze."""
STRIP = 512
"""Number of rows scored at once, which limits the memory for large images."""
PERFECT = 100.0
"""Upper limit of PSNR in decibels, which keeps means finite."""
MARGIN = 3
"""Pixels from the center of an SSIM window to its border."""


@dataclass(frozen=True)
class Case:
    """An image with and without haze.

    Attributes
    ----------
    name, kind
        Name of the image, and kind of the haze.
    clear, hazy
        ``(h, w, 3)`` in [0, 1].
    light
        Whether the haze was added to the ``"values"`` of the file or in ``"linear"`` light; empty if unknown.
    """

    name: str
    kind: str
    clear: FloatImage
    hazy: FloatImage
    light: str = ""


def synthesize_cases(
    images: Iterable[tuple[str, Pixels]],
    size: int = 512,
    kinds: Sequence[str] = KINDS,
    seed: int = 7,
    linear: bool = False,
    echo: Callable[[str], object] | None = None,
) -> Iterator[Case]:
    """Add reproducible haze of each kind to the center of each image.

    Parameters
    ----------
    images
        Names and pixels ``(h, w, 3)``, uint8.
    size
        Side of the center crop in pixels.
    kinds
        Kinds of haze.
    seed
        Seed of the haze.
    linear
        Add the same haze in linear light, see `haze.add_haze`.
    echo
        Called with a message for each image that cannot be read; None raises its error.

    Yields
    ------
    Case
        One for each image and kind.
    """
    light = "linear" if linear else "values"
    for i, (name, image) in enumerate(images):
        clear = _read(name, echo, partial(center_crop, image, size, size))
        if clear is None:
            continue
        for j, kind in enumerate(kinds):
            generator = torch.Generator().manual_seed(seed * 10_000 + i * 100 + j)
            made = add_haze(clear, generator, [kind], THICKNESS, BRIGHTNESS, clear_share=0, camera=False, linear=linear)
            # Rounded as in an 8-bit file.
            stored = (made.pixels * 255).round() / 255
            yield Case(name, kind, clear[0].permute(1, 2, 0).numpy(), stored[0].permute(1, 2, 0).numpy(), light)


def scores(case: Case, out: FloatImage, overlap: int = 0, tile: int = TILE) -> dict[str, float]:
    """Compare a dehazed image with the clear one.

    Parameters
    ----------
    case
        The hazy and the clear image.
    out
        The dehazed image ``(h, w, 3)``.
    overlap, tile
        Overlap and side of the tiles in pixels.

    Returns
    -------
    dict
        ``psnr`` in decibels, ``ssim`` (NaN below 7 pixels), ``ciede2000`` (mean color difference; 1 is just
        noticeable) and ``seam``, see `seam_ratio`.
    """
    from skimage.color import deltaE_ciede2000, rgb2lab

    def error(clear: FloatImage, out: FloatImage) -> float:
        return float(np.mean((clear - out) ** 2))

    def color(clear: FloatImage, out: FloatImage) -> float:
        return float(deltaE_ciede2000(rgb2lab(clear), rgb2lab(out)).mean())

    squared = mean_over_strips(error, case.clear, out)
    return {
        # The order of the arguments matters: min(PERFECT, nan) would be the best score, this is NaN.
        "psnr": min(-10 * math.log10(squared), PERFECT) if squared else PERFECT,
        "ssim": mean_over_strips(similarity, case.clear, out, MARGIN) if min(out.shape[:2]) > 2 * MARGIN else math.nan,
        "ciede2000": mean_over_strips(color, case.clear, out),
        "seam": seam_ratio(np.clip(out, 0, 1) - case.hazy, overlap, tile),
    }


def mean_over_strips(
    score: Callable[[FloatImage, FloatImage], float], clear: FloatImage, out: FloatImage, margin: int = 0
) -> float:
    """Return the mean over rows of a score of two images ``(h, w, 3)``, computed in strips.

    Parameters
    ----------
    score
        Function of two strips in float64. It gets `margin` additional rows on each side, which it does not score.
    clear, out
        The images. `out` is clipped to [0, 1].
    margin
        Number of rows at both ends of the images that are not scored.
    """
    last, total = len(clear) - margin, 0.0
    for y in range(margin, last, STRIP):
        stop = min(y + STRIP, last)
        one, other = (image[y - margin : stop + margin].astype(np.float64) for image in (clear, out))
        total += score(one, np.clip(other, 0, 1)) * (stop - y)
    return total / (last - margin)


def similarity(clear: FloatImage, out: FloatImage) -> float:
    """Return the SSIM of two images ``(h, w, 3)`` in [0, 1]."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(clear, out, data_range=1, channel_axis=2))


def seam_ratio(change: FloatImage, overlap: int = 0, tile: int = TILE) -> float:
    """Measure the visibility of tile borders in the change made to an image.

    Parameters
    ----------
    change
        Difference of output and input ``(h, w, 3)``.
    overlap, tile
        Overlap and side of the tiles in pixels.

    Returns
    -------
    float
        Mean absolute difference of the change between neighboring pixels across tile borders, over that elsewhere: 1
        is seamless. NaN if there are no borders or no change.
    """
    across, inside = [], []
    height, width, _ = change.shape
    grid = TileGrid(height, width, overlap, tile)
    for axis, count in ((0, grid.rows), (1, grid.cols)):
        jumps = np.abs(np.diff(change, axis=axis)).mean(axis=(1 - axis, 2), dtype=np.float64)
        # A tile starts at each multiple of the stride; the previous one ends `overlap` pixels later.
        starts = np.arange(1, count) * grid.stride
        border = np.zeros(len(jumps), bool)
        border[np.concatenate([starts, starts + overlap]) - 1] = True
        across.append(jumps[border])
        inside.append(jumps[~border])
    borders, others = np.concatenate(across), np.concatenate(inside)
    return float(borders.mean() / others.mean()) if borders.size and others.size and others.mean() > 0 else math.nan


@dataclass(frozen=True)
class NetworkDehazer:
    """Dehazer that applies a network tile by tile.

    Attributes
    ----------
    model
        The network.
    overlap
        Overlap of the tiles in pixels; by default that of the network.
    """

    model: DehazeXL
    overlap: int | None = None

    def __call__(self, hazy: FloatImage) -> FloatImage:
        """Dehaze an image ``(h, w, 3)`` in [0, 1]."""
        from dehazexl.engine.dehaze import dehaze

        return np.asarray(dehaze(hazy.astype(np.float32), self.model, overlap=self.overlap, value_range=(0, 1)))

    @property
    def tiles(self) -> tuple[int, int]:
        """Overlap and side of the tiles in pixels."""
        return self.model.head.overlap if self.overlap is None else self.overlap, self.model.spec.tile


def overlap_and_tile(dehazer: Dehazer, overlap: int) -> tuple[int, int]:
    """Return overlap and side of the tiles of a dehazer in pixels; without tiles, `overlap` and 256."""
    return dehazer.tiles if isinstance(dehazer, NetworkDehazer) else (overlap, TILE)


def dark_channel_prior(
    hazy: FloatImage, omega: float = 0.95, window: int = 15, radius: int = 40, floor: float = 0.1
) -> FloatImage:
    """Dehaze an image with the dark channel prior, refined by a guided filter, as a classical baseline.

    He, Sun and Tang: Single image haze removal using dark channel prior (2011); Guided image filtering (2013). The
    airlight is the mean color of the brightest pixels among the 0.1 % with the brightest dark channel.

    Parameters
    ----------
    hazy
        ``(h, w, 3)`` in [0, 1].
    omega
        Share of the haze that is removed.
    window
        Side of the window of the dark channel in pixels.
    radius
        Radius of the guided filter in pixels.
    floor
        Lower limit of the transmission.

    Returns
    -------
    ndarray
        ``(h, w, 3)``, not clipped.
    """
    from scipy.ndimage import minimum_filter

    gray = hazy.mean(axis=2)
    dark = minimum_filter(hazy.min(axis=2), window)
    haziest = np.argsort(dark, axis=None)[-max(1, dark.size // 1000) :]
    brightness = gray.ravel()[haziest]
    brightest = haziest[brightness >= brightness.max() - 1e-6]  # with 8 bits, several can be equal
    airlight = np.maximum(hazy.reshape(-1, 3)[brightest].mean(0), 1e-3)  # not 0, for black images
    rough = 1 - omega * minimum_filter((hazy / airlight).min(axis=2), window)
    transmission = np.maximum(guided_filter(gray, rough, radius), floor)[..., None]
    return (hazy - airlight) / transmission + airlight


def guided_filter(guide: FloatImage, values: FloatImage, radius: int, epsilon: float = 1e-3) -> FloatImage:
    """Smooth an image along the edges of another one by local linear models (He, Sun and Tang, 2013).

    Parameters
    ----------
    guide, values
        The image with the edges, and the image to smooth, ``(h, w)``.
    radius
        Radius of the windows in pixels.
    epsilon
        Variance of the guide below which it is considered smooth.
    """
    from scipy.ndimage import uniform_filter

    def mean(x: FloatImage) -> FloatImage:
        return np.asarray(uniform_filter(x, 2 * radius + 1))

    slope = (mean(guide * values) - mean(guide) * mean(values)) / (mean(guide**2) - mean(guide) ** 2 + epsilon)
    return mean(slope) * guide + mean(mean(values) - slope * mean(guide))


def evaluate(
    cases: Iterable[Case], dehazers: dict[str, Dehazer], overlap: int = 0
) -> Iterator[tuple[Case, str, FloatImage, Scores]]:
    """Score the hazy input and the output of each dehazer for each case.

    Parameters
    ----------
    cases
        Images with and without haze.
    dehazers
        Functions from hazy to dehazed images ``(h, w, 3)``, by name.
    overlap
        Overlap of tiles in pixels that `seam_ratio` assumes for dehazers other than networks.

    Yields
    ------
    case : Case
        The case.
    method : str
        Name of the dehazer, or "hazy input".
    out : ndarray
        The dehazed image ``(h, w, 3)``.
    scores : dict
        The result of `scores`, ``seconds``, and ``memory_mb``, see `peak_memory`.
    """
    for case in cases:
        for name, run in {"hazy input": lambda hazy: hazy, **dehazers}.items():
            reset_peak_memory()
            started = time.perf_counter()
            out = run(case.hazy)
            seconds, memory = time.perf_counter() - started, peak_memory()
            yield (
                case,
                name,
                out,
                {**scores(case, out, *overlap_and_tile(run, overlap)), "seconds": seconds, "memory_mb": memory},
            )


def reset_peak_memory() -> None:
    """Reset the measurement of peak memory, where the system supports it (Linux, CUDA)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Return the peak memory in MB since `reset_peak_memory`: of the GPU if torch uses one, else of the process.

    On macOS, which cannot reset it, the peak since the start of the process; NaN on Windows.
    """
    if torch.cuda.is_available() and (used := torch.cuda.max_memory_allocated()):
        return used / 1e6
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def pair_cases(data: Dataset, echo: Callable[[str], object] | None = None) -> Iterator[Case]:
    """Yield a case for each pair at full size; its kind is the folder of the hazy image, such as ``cloud_L1``.

    `echo` is called with a message for each pair that cannot be read; None raises its error.
    """
    assert data.hazy is not None
    for name, *pair in zip(data.names, data.clear, data.hazy, strict=True):
        pixels = _read(name, echo, partial(_in_unit, pair))
        if pixels is not None:
            yield Case(name, name.rpartition("/")[0], pixels[0], pixels[1])


def _in_unit(images: Sequence[Pixels]) -> list[FloatImage]:
    """Read 8-bit images in [0, 1]."""
    return [image[:, :] / np.float32(255) for image in images]


def _read(name: str, echo: Callable[[str], object] | None, read: Callable[[], T]) -> T | None:
    """Return what a function reads; None if it fails, after echoing the reason."""
    try:
        return read()
    except (ValueError, OSError) as error:
        if echo is None:
            raise
        echo(f"{name}: {error}")
        return None
