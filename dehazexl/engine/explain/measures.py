"""Numbers of an attribution map: where it lies, and how far from the window it reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.grid import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRIP = 256
"""Rows of a map that are converted to float64 at once."""


def squares(values: NDArray[np.float32], rows: Sequence[int], cols: Sequence[int]) -> NDArray[np.float64]:
    """Sum a map ``(y, x)`` over rectangles that start at these rows and columns, the first at 0.

    Returns
    -------
    ndarray
        ``(len(rows), len(cols))``, of the same sum as the map.
    """
    ends = [*rows[1:], len(values)]
    strips = [
        sum(
            (values[y : min(y + STRIP, stop)].sum(0, dtype=np.float64) for y in range(start, stop, STRIP)),
            np.zeros(values.shape[1]),
        )
        for start, stop in zip(rows, ends, strict=True)
    ]
    return np.asarray(np.add.reduceat(np.stack(strips), np.asarray(cols), axis=1))


def share_outside(values: NDArray[np.float32], window: Window) -> float:
    """Return the share of the absolute values of a map ``(y, x)`` outside a window; NaN if all are 0."""
    inner = window.intersection(Window(0, values.shape[0], 0, values.shape[1]))
    inside = absolute_sum(values[inner.y0 : inner.y1, inner.x0 : inner.x1])
    total = absolute_sum(values)
    return 1 - inside / total if total else float("nan")


def radius(values: NDArray[np.float32], window: Window, share: float) -> float:
    """Return the distance from a window within which a share of the absolute values of a map ``(y, x)`` lies.

    Parameters
    ----------
    values
        The map.
    window
        Pixels of the map; the distance of those inside is 0.
    share
        Between 0 and 1.

    Returns
    -------
    float
        Whole pixels; NaN if the map is 0 everywhere.
    """
    down = _distance(values.shape[0], window.y0, window.y1)
    across = _distance(values.shape[1], window.x0, window.x1)
    sums = np.zeros(int(np.hypot(down.max(), across.max())) + 2)
    for y in range(0, len(values), STRIP):
        rings = np.ceil(np.hypot(down[y : y + STRIP, None], across)).astype(np.int64)
        weights = np.abs(values[y : y + STRIP]).ravel()
        sums += np.bincount(rings.ravel(), weights, minlength=len(sums))
    if not sums.any():
        return float("nan")
    reached = np.cumsum(sums)
    return float(np.searchsorted(reached, share * reached[-1]))


def gini(values: NDArray[Any]) -> float:
    """Return the Gini coefficient of the absolute values of a map: 0 if all are equal, near 1 if one has it all.

    The diffusion index of Gu and Dong (Interpreting super-resolution networks with local attribution maps, CVPR 2021)
    is 100 times one minus it. NaN if all values are 0.
    """
    ordered = np.sort(np.abs(values).ravel().astype(np.float64))
    if not ordered.sum():
        return float("nan")
    rank = np.arange(1, len(ordered) + 1)
    return float((2 * rank - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))


def area(shares: Sequence[float], values: Sequence[float]) -> float:
    """Return the area under a curve by the trapezoidal rule."""
    x, y = np.asarray(shares), np.asarray(values)
    return float((y[1:] + y[:-1]) / 2 @ np.diff(x))


def absolute_sum(values: NDArray[np.float32]) -> float:
    """Return the sum of the absolute values of a map ``(y, x)``."""
    return sum(float(np.abs(values[y : y + STRIP]).sum(dtype=np.float64)) for y in range(0, len(values), STRIP))


def _distance(size: int, start: int, stop: int) -> NDArray[np.int64]:
    """Return the distance of places along an axis from ``start..stop - 1``."""
    place = np.arange(size)
    return np.maximum(np.maximum(start - place, place - stop + 1), 0)
