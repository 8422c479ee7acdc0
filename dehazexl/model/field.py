"""Head ``field``: one field of haze over the whole image, one airlight, removed pixel by pixel.

The atmospheric scattering model (Koschmieder, 1924) with few numbers: an optical thickness L for each place, and for
the whole image the color of the air, how the thickness differs between colors, and the light in which haze adds up::

    f(hazy_c) = f(clear_c) exp(-e_c L) + f(A_c) (1 - exp(-e_c L)),    f(x) = ((x + a) / (1 + a))^q

``f`` lies between the identity (a = 0, q = 1: haze put on the values of the file) and the electro-optical transfer
function of sRGB (a = 0.055, q = 2.4, IEC 61966-2-1: haze put on light, before the camera's tone curve).

All tokens vote on the numbers of the whole image. The low frequencies of the field come from the tokens, as one number
for each 16 x 16 pixels, and are interpolated over the whole grid of tiles by a quadratic B-spline, so that tiles meet
without a step. The decoder adds what is finer, which fades out at the borders of its tile, and lets the field follow
the edges of the image by a local linear model of the colors (He, Sun and Tang, Guided image filtering, 2013).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dehazexl.image.grid import SIDE, TILE, TOKEN

CELLS = 2
"""Cells of the field along the side of a token."""

CELL = TOKEN // CELLS
"""Side of a cell, in pixels as the network sees them."""

WINDOW = CELLS + 2
"""Side of what a token keeps of the field: its own cells and one around them."""

STRIDE = 4
"""Side of what the decoder's correction has one number for, in pixels as the network sees them."""

FADE = 4
"""Numbers of the decoder's correction that fade out at a tile's border."""

VALUES = 6
"""Numbers of the whole image: logits of the airlight (3), logarithms of the exponents of red and blue, the tone."""

KEPT = WINDOW**2 + VALUES
"""Channels that a fused token keeps beside its features."""

CORRECTION = 4
"""Channels of the decoder's answer: the correction, and its slopes by red, green and blue."""

THICKEST = 3.0
"""Optical thickness, at most: beyond it the image holds nothing to be recovered."""

VOTERS = 4
"""Ways to weigh the tokens when they vote."""

SHARPNESS = 40.0
"""How much more tokens weigh in the first way, the brighter their darkest color: by a factor of e for each 1/40."""

SATURATED = 0.98
"""Tokens that are brighter throughout say nothing of haze: borders of scans, clouds, blown-out highlights."""


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

    def removal(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return gain and bias ``(n, 3, h, w)`` that take the haze from ``x`` ``(n, 3, h, w)``: gain * x + bias."""
        transmission = torch.exp(-self.exponents * self.thickness.clamp(max=THICKEST)).clamp(min=0.03)
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
    # Not quite the identity at 0, where the slope would be no number.
    tone = tone.clamp(min=1e-2)
    a, q = 0.055 * tone, 1 + 1.4 * tone
    black = (a / (1 + a)) ** q
    return a, q, black, q * black / a


class Field(nn.Module):
    """What fused tokens say of the haze: their cells of the field, and their votes on the whole image's numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.coarse = nn.Linear(width, CELLS**2)
        self.score = nn.Linear(width, VOTERS)
        self.elect = nn.Sequential(nn.Linear(VOTERS * (width + 3), width), nn.GELU(), nn.Linear(width, VALUES))

    def initialize(self) -> None:
        """Start with a thin haze, and an airlight a little brighter than the haziest places."""
        nn.init.normal_(self.coarse.weight, std=0.02)
        nn.init.constant_(self.coarse.bias, -1.0)
        nn.init.zeros_(self.score.weight)
        last = self.elect[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.0, 0.0])

    def normalized(self, fused: Tensor) -> Tensor:
        """Normalize fused tokens ``(..., c)``, in float32."""
        weight, bias = self.norm.weight.float(), self.norm.bias.float()
        return F.layer_norm(fused.float(), self.norm.normalized_shape, weight, bias)

    def cells(self, fused: Tensor) -> Tensor:
        """Return the cells ``(n, 2 h, 2 w)`` of grids of fused tokens ``(n, h, w, c)``, float32."""
        n, h, w, _ = fused.shape
        cells = linear(self.coarse, self.normalized(fused)).view(n, h, w, CELLS, CELLS)
        return cells.transpose(2, 3).reshape(n, h * CELLS, w * CELLS)

    def scores(self, fused: Tensor, colors: Tensor) -> Tensor:
        """Return logarithms of the weights ``(n, tokens, VOTERS)`` of tokens ``(n, tokens, c)`` with mean colors."""
        darkest = colors.float().amin(-1, keepdim=True)
        hazy = SHARPNESS * darkest * (darkest < SATURATED)
        return linear(self.score, self.normalized(fused)) + F.pad(hazy, (0, VOTERS - 1))

    def opinions(self, weights: Tensor, fused: Tensor, colors: Tensor) -> Tensor:
        """Sum what tokens ``(n, tokens, c)`` say by weights ``(n, tokens, VOTERS)``: ``(n, VOTERS, c + 3)``."""
        said = torch.cat([self.normalized(fused), torch.logit(colors.float().clamp(0.02, 0.98))], dim=-1)
        return weights.transpose(1, 2) @ said

    def elected(self, opinions: Tensor) -> Tensor:
        """Return the numbers of the whole image ``(n, VALUES)``, float32, from all opinions ``(n, VOTERS, c + 3)``."""
        first, _, last = self.elect
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        values = linear(last, F.gelu(linear(first, opinions.flatten(1))))
        return torch.cat([values[:, :3] + opinions[:, 0, -3:], values[:, 3:]], dim=1)


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer in float32."""
    return F.linear(x.float(), layer.weight.float(), layer.bias.float())


def windows(cells: Tensor, overlap: float = 0) -> Tensor:
    """Give each token its cells and one around them; `join` is the inverse, for the tokens of one tile.

    Parameters
    ----------
    cells
        Of grids of tiles ``(n, 16 rows, 16 cols)``.
    overlap
        Of the tiles, in cells: what lies beyond a tile's border is taken from its neighbor, where the neighbor has it.

    Returns
    -------
    Tensor
        ``(n, 8 rows, 8 cols, WINDOW * WINDOW)``; beyond the image its outermost cells are repeated.
    """
    side = SIDE * CELLS
    tiles = cells.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (n, rows, 16, cols, 16)
    tiles = bordered(bordered(tiles, 1, overlap), 3, overlap)  # (n, rows, 18, cols, 18)
    own = tiles.unfold(2, WINDOW, CELLS).unfold(4, WINDOW, CELLS)  # (n, rows, 8, cols, 8, WINDOW, WINDOW)
    return own.reshape(len(cells), cells.shape[1] // CELLS, cells.shape[2] // CELLS, WINDOW**2)


def bordered(tiles: Tensor, axis: int, overlap: float) -> Tensor:
    """Add a cell of its neighbors to both ends of each tile.

    Parameters
    ----------
    tiles
        Tiles along `axis`, their cells along the axis after it.
    axis, overlap
        See `windows`.
    """
    count, side = tiles.shape[axis : axis + 2]

    def between(tiles: Tensor, place: float) -> Tensor:
        low = min(int(place), side - 2)
        return torch.lerp(tiles.narrow(axis + 1, low, 1), tiles.narrow(axis + 1, low + 1, 1), place - low)

    before = [tiles.narrow(axis, 0, 1).narrow(axis + 1, 0, 1)]
    after = [tiles.narrow(axis, count - 1, 1).narrow(axis + 1, side - 1, 1)]
    if count > 1:
        before.append(between(tiles.narrow(axis, 0, count - 1), side - 1 - overlap))
        after.insert(0, between(tiles.narrow(axis, 1, count - 1), overlap))
    return torch.cat([torch.cat(before, axis), tiles, torch.cat(after, axis)], axis + 1)


def join(windows: Tensor) -> Tensor:
    """Put the windows of tiles' tokens ``(n, 8, 8, WINDOW * WINDOW)`` together: ``(n, 18, 18)`` cells."""
    cells = torch.arange(SIDE * CELLS + 2, device=windows.device)
    token = ((cells - 1).div(CELLS, rounding_mode="floor")).clamp(0, SIDE - 1)
    place = cells - CELLS * token
    own = windows.unflatten(-1, (WINDOW, WINDOW))
    return own[:, token[:, None], token, place[:, None], place]


@lru_cache
def spline(cells: int, ratio: int, device: torch.device) -> Tensor:
    """Return the matrix ``(ratio * cells, cells + 2)`` that interpolates cells with one more at each end.

    Quadratic B-spline: smooth with its slope, and of what lies next to a place alone.
    """
    place = (torch.arange(ratio, dtype=torch.float64) + 0.5) / ratio - 0.5  # within a cell, from its middle
    weights = torch.stack([(0.5 - place) ** 2 / 2, 0.75 - place**2, (0.5 + place) ** 2 / 2], dim=1)
    matrix = torch.zeros(cells, ratio, cells + 2, dtype=torch.float64)
    for cell in range(cells):
        matrix[cell, :, cell : cell + 3] = weights
    return matrix.flatten(0, 1).float().to(device)


@lru_cache
def fade(device: torch.device) -> Tensor:
    """Return the weight ``(64, 64)`` of the decoder's correction: 1 inside a tile, less towards its border."""
    side = TILE // STRIDE
    place = torch.arange(side, dtype=torch.float32) + 0.5
    rise = torch.sin(torch.pi / 2 * (torch.minimum(place, side - place) / FADE).clamp(max=1)) ** 2
    return (rise[:, None] * rise).to(device)


def upsample(cells: Tensor, ratio: int) -> Tensor:
    """Interpolate cells ``(n, h + 2, w + 2)`` to ``(n, ratio h, ratio w)``, see `spline`."""
    with torch.inference_mode(False):  # what is kept serves training, too
        down, across = (spline(size - 2, ratio, cells.device) for size in cells.shape[1:])
    return down @ cells @ across.T


def thickness(cells: Tensor, correction: Tensor, colors: Tensor) -> Tensor:
    """Return the thickness of tiles' haze.

    Parameters
    ----------
    cells
        Of tiles, with one around them ``(n, 18, 18)``.
    correction
        The decoder's answer ``(n, CORRECTION, 64, 64)``.
    colors
        Pixels of the tiles ``(n, 3, side, side)``, float32.

    Returns
    -------
    Tensor
        ``(n, 1, side, side)``.
    """
    side = colors.shape[-1]
    ratio = CELL // STRIDE
    with torch.inference_mode(False):
        inside = fade(correction.device)
    added, slopes = (correction * inside).split([1, CORRECTION - 1], dim=1)
    # What the cells can say is left to them: a tile by itself cannot know it.
    low = F.pad(F.avg_pool2d(added, ratio), (1, 1, 1, 1), mode="replicate")
    added = added - upsample(low[:, 0], ratio)[:, None]
    scale = side // added.shape[-1]
    detail = colors - enlarge(F.avg_pool2d(colors, scale), side)
    logits = upsample(cells, side // (SIDE * CELLS))[:, None] + enlarge(added, side)
    return F.softplus(logits + (enlarge(slopes, side) * detail).sum(1, keepdim=True))


def enlarge(x: Tensor, size: int) -> Tensor:
    """Interpolate ``(n, c, h, w)`` linearly to ``(n, c, size, size)``."""
    return F.interpolate(x, size=(size, size), mode="bilinear")


def haze_of(thickness: Tensor, values: Tensor) -> Haze:
    """Put the haze of images together from its thickness ``(n, 1, h, w)`` and the numbers ``(n, VALUES)``."""
    airlight, red, blue, tone = values.float()[:, :, None, None].split([3, 1, 1, 1], dim=1)
    exponents = torch.cat([red, torch.zeros_like(red), blue], dim=1).clamp(-1, 1).exp()
    return Haze(thickness, torch.sigmoid(airlight), exponents, torch.sigmoid(tone))
