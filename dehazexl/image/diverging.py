"""A diverging colormap for signed values: blue below zero, white at zero, orange above.

Both arms are straight lines in Oklab (Ottosson, A perceptual color space for image processing, 2020), from white to
colors of the same lightness and chroma. So equal differences of values look equally large, in either direction, and the
two signs differ in blue against yellow, which color-blind people tell apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

WHITE, DARK, CHROMA = 0.97, 0.5, 0.115
"""Lightness at zero and at the ends, and chroma at the ends."""

BLUE, ORANGE = 262.0, 52.0
"""Hues of the ends in degrees."""

_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def colors(values: ArrayLike) -> NDArray[np.uint8]:
    """Return colors ``(..., 3)`` in sRGB of values in [-1, 1]; those beyond get the color of the end."""
    size = np.clip(np.nan_to_num(np.asarray(values, np.float64)), -1, 1)[..., None]
    hue = np.radians(np.where(size < 0, BLUE, ORANGE))
    length = np.abs(size)
    lab = np.concatenate(
        [
            WHITE + (DARK - WHITE) * length,
            CHROMA * length * np.cos(hue),
            CHROMA * length * np.sin(hue),
        ],
        axis=-1,
    )
    light = np.clip((lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T, 0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def table(count: int = 255) -> NDArray[np.uint8]:
    """Return the colors ``(count, 3)`` of evenly spaced values from -1 to 1."""
    return colors(np.linspace(-1, 1, count))
