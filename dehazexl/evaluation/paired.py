"""Evaluation: how good are weights, beside the hazy input and a classical dehazer.

Protocol: full resolution, RGB, data range 1, float64; PSNR over all pixels and colors; SSIM of scikit-image with
its defaults (7 x 7 windows), over colors; CIEDE2000 of scikit-image, mean over pixels; the mean of the pictures'
scores.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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

    Picture = NDArray[np.floating]
    Dehazer = Callable[[Picture], Picture]
    Scores = dict[str, float]

KINDS = ("veil", "patches", "depth", "ridges")
THICKNESS = (1.5, 2.7)
"""Optical thickness of the evaluation's haze where it is thickest."""
BRIGHTNESS = (0.85, 1.0)
"""Of its airlight."""
STRIP = 512
"""Rows that are scored at once, so that large pictures need little more memory than their pixels."""
PERFECT = 100.0
"""Decibels: PSNR counts no higher, so that means stay finite."""
MARGIN = 3
"""Pixels from the middle of a window of SSIM to its border."""


@dataclass(frozen=True)
class Case:
    """A picture with and without haze.

    Attributes
    ----------
    name, kind
        Of the picture, and of the haze on it.
    clear, hazy
        ``(h, w, 3)`` in [0, 1].
    light
        What the haze was put on, ``"values"`` of the file or ``"linear"`` light; empty where it is not known.
    """

    name: str
    kind: str
    clear: Picture
    hazy: Picture
    light: str = ""


def synthesized(
    pictures: Iterable[tuple[str, Pixels]],
    size: int = 512,
    kinds: Sequence[str] = KINDS,
    seed: int = 7,
    linear: bool = False,
) -> Iterator[Case]:
    """Put each kind of haze, seeded, on the middle ``size x size`` pixels of each picture ``(h, w, 3)``.

    `linear` puts the same haze on linear light, see `haze.add_haze`.
    """
    light = "linear" if linear else "values"
    for i, (name, picture) in enumerate(pictures):
        clear = center_crop(picture, size, size)
        for j, kind in enumerate(kinds):
            generator = torch.Generator().manual_seed(seed * 10_000 + i * 100 + j)
            made = add_haze(clear, generator, [kind], THICKNESS, BRIGHTNESS, clear_share=0, camera=False, linear=linear)
            # As a file of 8 bits would hold it.
            stored = (made.pixels * 255).round() / 255
            yield Case(name, kind, clear[0].permute(1, 2, 0).numpy(), stored[0].permute(1, 2, 0).numpy(), light)


def scores(case: Case, out: Picture, overlap: int = 0, tile: int = TILE) -> dict[str, float]:
    """Compare a dehazed picture ``(h, w, 3)`` with the truth.

    Returns ``psnr`` in decibels, ``ssim`` (NaN under 7 pixels), ``ciede2000`` (mean color difference; 1 is just
    noticeable) and ``seam``, see `seam_ratio`.
    """
    from skimage.color import deltaE_ciede2000, rgb2lab

    def error(clear: Picture, out: Picture) -> float:
        return float(np.mean((clear - out) ** 2))

    def color(clear: Picture, out: Picture) -> float:
        return float(deltaE_ciede2000(rgb2lab(clear), rgb2lab(out)).mean())

    squared = by_strips(error, case.clear, out)
    return {
        # In this order, so that NaN stays NaN: the other way round it would be the best score.
        "psnr": min(-10 * math.log10(squared), PERFECT) if squared else PERFECT,
        "ssim": by_strips(similarity, case.clear, out, MARGIN) if min(out.shape[:2]) > 2 * MARGIN else math.nan,
        "ciede2000": by_strips(color, case.clear, out),
        "seam": seam_ratio(np.clip(out, 0, 1) - case.hazy, overlap, tile),
    }


def by_strips(score: Callable[[Picture, Picture], float], clear: Picture, out: Picture, margin: int = 0) -> float:
    """Return the mean over rows of a score of two pictures ``(h, w, 3)``, `out` clipped to [0, 1], in float64.

    `score` is given `margin` rows more on each side of a strip, and does not count them; neither are those at the
    ends of the pictures.
    """
    last, total = len(clear) - margin, 0.0
    for y in range(margin, last, STRIP):
        stop = min(y + STRIP, last)
        one, other = (picture[y - margin : stop + margin].astype(np.float64) for picture in (clear, out))
        total += score(one, np.clip(other, 0, 1)) * (stop - y)
    return total / (last - margin)


def similarity(clear: Picture, out: Picture) -> float:
    """SSIM of two pictures ``(h, w, 3)`` in [0, 1]."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(clear, out, data_range=1, channel_axis=2))


def seam_ratio(change: Picture, overlap: int = 0, tile: int = TILE) -> float:
    """Tell how much a change ``(h, w, 3)`` jumps at the borders of tiles of a side that overlap by some pixels.

    Mean absolute difference of the change across tile borders, over the same between neighbors elsewhere: 1 is
    seamless. NaN where there is no border or no change.
    """
    across, inside = [], []
    height, width, _ = change.shape
    grid = TileGrid(height, width, overlap, tile)
    for axis, count in ((0, grid.rows), (1, grid.cols)):
        jumps = np.abs(np.diff(change, axis=axis)).mean(axis=(1 - axis, 2), dtype=np.float64)
        # A tile begins at each multiple of the stride, and the one before ends `overlap` pixels further on.
        starts = np.arange(1, count) * grid.stride
        border = np.zeros(len(jumps), bool)
        border[np.concatenate([starts, starts + overlap]) - 1] = True
        across.append(jumps[border])
        inside.append(jumps[~border])
    borders, others = np.concatenate(across), np.concatenate(inside)
    return float(borders.mean() / others.mean()) if borders.size and others.size and others.mean() > 0 else math.nan


@dataclass(frozen=True)
class ByNetwork:
    """A dehazer that streams an image through a network.

    Attributes
    ----------
    model
        The network.
    overlap
        Of its tiles, in pixels; None takes what suits the network.
    """

    model: DehazeXL
    overlap: int | None = None

    def __call__(self, hazy: Picture) -> Picture:
        """Dehaze an image ``(h, w, 3)`` in [0, 1]."""
        from dehazexl.engine.dehaze import dehaze

        return np.asarray(dehaze(hazy.astype(np.float32), self.model, overlap=self.overlap, value_range=(0, 1)))

    @property
    def tiles(self) -> tuple[int, int]:
        """By how much its tiles overlap, and their side."""
        spec = self.model.spec
        return spec.overlap if self.overlap is None else self.overlap, spec.tile


def tiles_of(dehazer: Dehazer, overlap: int) -> tuple[int, int]:
    """Return by how much a dehazer's tiles overlap, and their side; of one without tiles, those of 256 pixels."""
    return dehazer.tiles if isinstance(dehazer, ByNetwork) else (overlap, TILE)


def dark_channel_prior(
    hazy: Picture, omega: float = 0.95, window: int = 15, radius: int = 40, floor: float = 0.1
) -> Picture:
    """Dehaze with the dark channel prior, refined by a guided filter: the classical baseline.

    He, Sun and Tang: Single image haze removal using dark channel prior (2011); Guided image filtering (2013). The
    airlight is the mean color of the brightest pixels among the 0.1 % that are the haziest by their dark channel.

    Parameters
    ----------
    hazy
        ``(h, w, 3)`` in [0, 1].
    omega
        Share of the haze that is removed.
    window
        Side of the dark channel's window, in pixels.
    radius
        Of the guided filter, in pixels.
    floor
        Least transmission.
    """
    from scipy.ndimage import minimum_filter

    gray = hazy.mean(axis=2)
    dark = minimum_filter(hazy.min(axis=2), window)
    haziest = np.argsort(dark, axis=None)[-max(1, dark.size // 1000) :]
    brightness = gray.ravel()[haziest]
    brightest = haziest[brightness >= brightness.max() - 1e-6]  # of 8 bits several are equally bright
    airlight = np.maximum(hazy.reshape(-1, 3)[brightest].mean(0), 1e-3)  # of a black picture, too
    rough = 1 - omega * minimum_filter((hazy / airlight).min(axis=2), window)
    transmission = np.maximum(guided_filter(gray, rough, radius), floor)[..., None]
    return (hazy - airlight) / transmission + airlight


def guided_filter(guide: Picture, values: Picture, radius: int, epsilon: float = 1e-3) -> Picture:
    """Smooth values ``(h, w)`` along the edges of a guide ``(h, w)``, by local linear models."""
    from scipy.ndimage import uniform_filter

    def mean(x: Picture) -> Picture:
        return np.asarray(uniform_filter(x, 2 * radius + 1))

    slope = (mean(guide * values) - mean(guide) * mean(values)) / (mean(guide**2) - mean(guide) ** 2 + epsilon)
    return mean(slope) * guide + mean(mean(values) - slope * mean(guide))


def evaluate(
    cases: Iterable[Case], dehazers: dict[str, Dehazer], overlap: int = 0
) -> Iterator[tuple[Case, str, Picture, Scores]]:
    """Score each case and dehazer, and the hazy input; `overlap` tells where borders are sought without a network.

    Yields
    ------
    Case, str, Picture, dict
        The case, the method, what it made of the case ``(h, w, 3)`` and its scores: those of `scores`, ``seconds``,
        and ``memory_mb``, see `peak_memory`.
    """
    for case in cases:
        for name, run in {"hazy input": lambda hazy: hazy, **dehazers}.items():
            forget_peak()
            started = time.perf_counter()
            out = run(case.hazy)
            seconds, memory = time.perf_counter() - started, peak_memory()
            yield (
                case,
                name,
                out,
                {**scores(case, out, *tiles_of(run, overlap)), "seconds": seconds, "memory_mb": memory},
            )


def forget_peak() -> None:
    """Begin to measure the highest memory anew, where the system allows it (Linux, CUDA)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Return the most memory held since `forget_peak`, in MB: the GPU's where torch uses one, else the process's.

    Where the system cannot forget (macOS), the process's highest so far; NaN where it does not tell (Windows).
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


def paired(data: Dataset) -> Iterator[Case]:
    """Yield each pair, whole; its kind is the folder of the hazy picture, such as ``cloud_L1``."""
    assert data.hazy is not None
    for name, clear, hazy in zip(data.names, data.clear, data.hazy, strict=True):
        pixels = [picture[:, :] / np.float32(255) for picture in (clear, hazy)]
        yield Case(name, name.rpartition("/")[0], pixels[0], pixels[1])
