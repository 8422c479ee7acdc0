"""Detectors: one number for a window of the dehazed image, whose attribution is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dehazexl.image.grid import Window

Detector = Callable[[Tensor, Tensor], Tensor]
"""Maps colors ``(3, h, w)`` on the unit scale, float64, and the validity of pixels ``(h, w)`` to a number."""

FLAT = 1e-3
"""Difference of neighboring pixels below which `edge_strength` is smooth rather than a corner."""


def total(colors: Tensor, valid: Tensor) -> Tensor:
    """Sum over pixels and colors: the detector of the paper (arXiv 2504.09621)."""
    return torch.where(valid, colors, 0.0).sum()


def mean_variance(colors: Tensor, valid: Tensor) -> Tensor:
    """Mean plus variance over pixels and colors: the detector of the authors' code."""
    values = colors[:, valid]
    return values.mean() + values.var(correction=0)


def edge_strength(colors: Tensor, valid: Tensor) -> Tensor:
    """Sum of the gradient's magnitude over pixels and colors: how much detail the window shows."""
    down = colors[:, 1:, :-1] - colors[:, :-1, :-1]
    across = colors[:, :-1, 1:] - colors[:, :-1, :-1]
    known = valid[:-1, :-1] & valid[1:, :-1] & valid[:-1, 1:]
    magnitude = torch.sqrt(down**2 + across**2 + FLAT**2) - FLAT
    return torch.where(known, magnitude, 0.0).sum()


DETECTORS: dict[str, Detector] = {"sum": total, "mean-variance": mean_variance, "gradient": edge_strength}
"""Detectors by name."""


def check_detector(name: str, window: Window) -> Detector:
    """Return a detector by name.

    Raises
    ------
    ValueError
        If there is none of this name, or the window is too small for it.
    """
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}: choose one of {', '.join(DETECTORS)}")
    if name == "gradient" and min(window.height, window.width) < 2:
        raise ValueError(
            f"the detector 'gradient' needs a window of 2 x 2 pixels, not {window.height} x {window.width}"
        )
    return DETECTORS[name]
