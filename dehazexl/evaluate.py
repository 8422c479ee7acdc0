"""Evaluation: how good are weights, beside the hazy input and a classical dehazer.

Protocol: full resolution, RGB, data range 1, float64; PSNR over all pixels and colours; SSIM of scikit-image with
its defaults (7 x 7 windows), over colours; the mean of the pictures' scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dehazexl.data import center_crop
from dehazexl.grid import TILE
from dehazexl.haze import synthesise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.model import DehazeXL

    Picture = NDArray[np.floating]
    Dehazer = Callable[[Picture], Picture]

KINDS = ("veil", "patches", "depth", "ridges")
THICKNESS = (1.5, 2.7)
"""Optical thickness of the evaluation's haze where it is thickest."""
BRIGHTNESS = (0.85, 1.0)
"""Of its airlight."""


@dataclass(frozen=True)
class Case:
    """A picture with and without haze.

    Attributes
    ----------
    name, kind
        Of the picture, and of the haze on it.
    clear, hazy
        ``(h, w, 3)`` in [0, 1].
    """

    name: str
    kind: str
    clear: Picture
    hazy: Picture


def synthesised(
    pictures: Sequence[tuple[str, NDArray[np.uint8]]], size: int = 512, kinds: Sequence[str] = KINDS, seed: int = 7
) -> Iterator[Case]:
    """Put each kind of haze, seeded, on the middle ``size x size`` pixels of each picture ``(h, w, 3)``."""
    for i, (name, picture) in enumerate(pictures):
        clear = center_crop(picture, size, size)
        for j, kind in enumerate(kinds):
            generator = torch.Generator().manual_seed(seed * 10_000 + i * 100 + j)
            hazy = synthesise(clear, generator, [kind], THICKNESS, BRIGHTNESS, clear_share=0, camera=False).pixels
            # As a file of 8 bits would hold it.
            stored = (hazy * 255).round() / 255
            yield Case(name, kind, clear[0].permute(1, 2, 0).numpy(), stored[0].permute(1, 2, 0).numpy())


def scores(case: Case, out: Picture) -> dict[str, float]:
    """Compare a dehazed picture ``(h, w, 3)`` with the truth: ``psnr`` in decibels, ``ssim``, ``seam``."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    clear, out = case.clear.astype(np.float64), np.clip(out, 0, 1).astype(np.float64)
    return {
        "psnr": float(peak_signal_noise_ratio(clear, out, data_range=1)),
        "ssim": float(structural_similarity(clear, out, data_range=1, channel_axis=2)),
        "seam": seam_ratio(out - case.hazy),
    }


def seam_ratio(change: Picture, step: int = TILE) -> float:
    """Tell how much a change ``(h, w, 3)`` jumps at tile borders.

    Mean absolute difference of the change across tile borders, over the same between neighbours inside tiles: 1 is
    seamless. NaN where there is no border or no change.
    """
    across, inside = [], []
    for axis in (0, 1):
        jumps = np.abs(np.diff(change, axis=axis)).mean(axis=(1 - axis, 2))
        border = np.arange(1, len(jumps) + 1) % step == 0
        across.append(jumps[border])
        inside.append(jumps[~border])
    borders, others = np.concatenate(across), np.concatenate(inside)
    return float(borders.mean() / others.mean()) if borders.size and others.mean() > 0 else float("nan")


def by_network(model: DehazeXL, overlap: int = 32) -> Dehazer:
    """Return a dehazer that streams a picture through a network."""
    from dehazexl.pipeline import dehaze

    def run(hazy: Picture) -> Picture:
        return np.asarray(dehaze(hazy.astype(np.float32), model, overlap=overlap, value_range=(0, 1)))

    return run


def dark_channel_prior(hazy: Picture, omega: float = 0.95, radius: int = 7, floor: float = 0.1) -> Picture:
    """Dehaze with the dark channel prior, refined by a guided filter: the classical baseline.

    He, Sun and Tang: Single image haze removal using dark channel prior (2011); Guided image filtering (2013).

    Parameters
    ----------
    hazy
        ``(h, w, 3)`` in [0, 1].
    omega
        Share of the haze that is removed.
    radius
        Of the dark channel's neighbourhood, in pixels; the guided filter's is four times as large.
    floor
        Least transmission.
    """
    from scipy.ndimage import minimum_filter

    size = 2 * radius + 1
    dark = minimum_filter(hazy.min(axis=2), size)
    brightest = np.argsort(dark, axis=None)[-max(1, dark.size // 1000) :]
    airlight = hazy.reshape(-1, 3)[brightest].mean(0)
    rough = 1 - omega * minimum_filter((hazy / airlight).min(axis=2), size)
    transmission = np.maximum(guided_filter(hazy.mean(axis=2), rough, 4 * radius), floor)[..., None]
    return (hazy - airlight) / transmission + airlight


def guided_filter(guide: Picture, values: Picture, radius: int, epsilon: float = 1e-3) -> Picture:
    """Smooth values ``(h, w)`` along the edges of a guide ``(h, w)``, by local linear models."""
    from scipy.ndimage import uniform_filter

    def mean(x: Picture) -> Picture:
        return np.asarray(uniform_filter(x, 2 * radius + 1))

    slope = (mean(guide * values) - mean(guide) * mean(values)) / (mean(guide**2) - mean(guide) ** 2 + epsilon)
    return mean(slope) * guide + mean(mean(values) - slope * mean(guide))


def evaluate(cases: Sequence[Case], dehazers: dict[str, Dehazer]) -> Iterator[dict[str, str | float]]:
    """Yield one row of scores for each case and dehazer, and for the hazy input."""
    for case in cases:
        for name, run in {"hazy input": lambda hazy: hazy, **dehazers}.items():
            yield {"picture": case.name, "kind": case.kind, "method": name, **scores(case, run(case.hazy))}
