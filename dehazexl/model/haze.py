"""The haze of an image, and its removal: the atmospheric scattering model (Koschmieder, 1924) with few numbers.

An optical thickness L for each place, and for the whole image the color of the air, how the thickness differs between
colors, and the light in which haze adds up::

    f(hazy_c) = f(clear_c) exp(-e_c L) + f(A_c) (1 - exp(-e_c L)),    f(x) = ((x + a) / (1 + a))^q

``f`` lies between the identity (a = 0, q = 1: haze put on the values of the file) and the electro-optical transfer
function of sRGB (a = 0.055, q = 2.4, IEC 61966-2-1: haze put on light, before the camera's tone curve).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

THICKEST = 3.0
"""Largest optical thickness of green that is removed; beyond it, nothing can be recovered."""

FLOOR = 0.03
"""Lowest transmission of any color that is removed."""


class Haze(NamedTuple):
    """The haze of images.

    Attributes
    ----------
    thickness
        Optical thickness of green ``(n, 1, h, w)``, 0 and more.
    airlight
        ``(n, 3, 1, 1)`` in [0, 1].
    exponents
        Thickness of each color over that of green ``(n, 3, 1, 1)``.
    tone
        ``(n, 1, 1, 1)``: 0 where haze adds up in the values of the file, 1 where it does in light.
    """

    thickness: Tensor
    airlight: Tensor
    exponents: Tensor
    tone: Tensor

    @property
    def transmission(self) -> Tensor:
        """Share of the light of each color that the haze let through ``(n, 3, h, w)``, of what is removed."""
        return torch.exp(-self.exponents * self.thickness.clamp(max=THICKEST)).clamp(min=FLOOR)

    def removal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain and bias ``(n, 3, h, w)`` that remove the haze from ``x`` ``(n, 3, h, w)``: gain * x + bias."""
        transmission = self.transmission
        air = to_light(self.airlight, self.tone)
        clear = from_light(air + (to_light(x, self.tone) - air) / transmission, self.tone)
        # Where a pixel is as bright as the air, the secant from the air to it is the tangent.
        distance = x - self.airlight
        near = distance.abs() < 1e-4
        gain = torch.where(near, 1 / transmission, (clear - self.airlight) / torch.where(near, 1.0, distance))
        return gain, self.airlight * (1 - gain)


def to_light(x: Tensor, tone: Tensor) -> Tensor:
    """Go from values of the file to those in which haze adds up; `from_light` is the inverse.

    Parameters
    ----------
    x
        ``(n, c, h, w)``; negative values continue the curve by its tangent at 0.
    tone
        ``(n, 1, 1, 1)``, see `Haze`.
    """
    a, q, black, slope = _curve(tone)
    return torch.where(x > 0, ((x.clamp(min=0) + a) / (1 + a)) ** q, black + slope * x)


def from_light(y: Tensor, tone: Tensor) -> Tensor:
    """Go back to the values of the file, see `to_light`."""
    a, q, black, slope = _curve(tone)
    return torch.where(y > black, (1 + a) * torch.maximum(y, black) ** (1 / q) - a, (y - black) / slope)


def _curve(tone: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return offset and exponent of the curve, its value and its slope at 0."""
    # Not quite the identity at 0, where the slope would be NaN.
    tone = tone.clamp(min=1e-2)
    a, q = 0.055 * tone, 1 + 1.4 * tone
    black = (a / (1 + a)) ** q
    return a, q, black, q * black / a
