"""Haze on batches of clear images, drawn on their device without waiting for it.

Every number is drawn for each image of the batch at once, so that a GPU gets few, large kernels. The model is that of
`dehazexl.synthesis.haze`, with the light in which haze adds up, see `dehazexl.model.field`::

    hazy = g(f(clear) t + f(airlight) (1 - t)),    t_c = exp(-e_c thickness)

where f is the identity or the electro-optical transfer function of sRGB and g its inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dehazexl.synthesis.srgb import from_linear, to_linear

WAVELENGTHS = (0.66, 0.56, 0.48)
"""Centers of the red, green and blue bands of common satellites, in micrometers."""


@dataclass(frozen=True)
class Synthesis:
    """How haze is drawn; each share is a probability from 0 to 1.

    Attributes
    ----------
    thickness
        Range of the optical thickness where the haze is thickest; drawn evenly in what it hides, 1 - t.
    dense
        Share of the haze that is drawn from the upper part of that range, from an optical thickness of 1.
    brightness
        Range of the airlight.
    clear
        Share of the images that stay clear.
    linear
        Share of the haze that is put on linear light.
    tinted
        Share of the airlights with a strong color, as of dust, smoke or blue distance.
    local
        Share of the airlights that differ from place to place.
    dark
        Share of the images that are darkened first, as in poor light.
    pale
        Share of the images that get pale rectangles which are no haze: roofs, snow, borders of scans.
    soften, grade, noise, jpeg
        Shares of the images that are blurred where haze is thick, recolored, made noisy, compressed.
    """

    thickness: tuple[float, float] = (0.05, 2.8)
    dense: float = 0.4
    brightness: tuple[float, float] = (0.65, 1.0)
    clear: float = 0.13
    linear: float = 0.5
    tinted: float = 0.15
    local: float = 0.2
    dark: float = 0.08
    pale: float = 0.1
    soften: float = 0.3
    grade: float = 0.2
    noise: float = 0.3
    jpeg: float = 0.2


@dataclass(frozen=True)
class HazyBatch:
    """Clear images with haze on them.

    Attributes
    ----------
    clear, hazy
        ``(n, 3, h, w)`` in [0, 1].
    optical
        Optical thickness of each color ``(n, 3, h, w)``, 0 and more.
    airlight
        ``(n, 3, 1, 1)``, values of the file.
    tone
        ``(n, 1, 1, 1)``: 1 where the haze was put on linear light, else 0.
    """

    clear: Tensor
    hazy: Tensor
    optical: Tensor
    airlight: Tensor
    tone: Tensor


def synthesize(clear: Tensor, upright: Tensor, generator: Generator, how: Synthesis | None = None) -> HazyBatch:
    """Put haze on clear images, of another kind and density on each.

    Parameters
    ----------
    clear
        ``(n, 3, h, w)`` in [0, 1].
    upright
        ``(n,)``, bool: images whose top is up and far away, as a share of them is treated.
    generator
        Source of randomness, on the images' device.
    how
        How haze is drawn.
    """
    how = how or Synthesis()
    draw = Draw(len(clear), generator)
    clear = torch.where(draw.chance(how.dark), clear ** draw.uniform(1.4, 2.6), clear)
    clear = with_pale(clear, draw, how.pale)
    optical = draw_thickness(clear, upright, draw, how) * draw_exponents(draw)
    hidden = draw.chance(how.clear)
    optical = torch.where(hidden, 0.0, optical)
    airlight = draw_airlight(clear, draw, how)
    _, _, h, w = clear.shape
    around = airlight * (1 + (draw.noise(h, w, draw.uniform(0.5, 1.5), 1) - 0.5) * draw.uniform(0, 0.2))
    around = torch.where(draw.chance(how.local), around.clamp(0, 1), airlight)
    tone = draw.chance(how.linear).float()
    t = torch.exp(-optical)
    blurred = soften(clear, 1 - t, draw, how.soften)
    straight = blurred * t + around * (1 - t)
    linear = from_linear(to_linear(blurred) * t + to_linear(around) * (1 - t))
    # Images without haze are degraded, too, and so is their truth: noise must not give haze away.
    hazy = degrade(torch.where(hidden, clear, torch.where(tone > 0, linear, straight)), draw, how)
    return HazyBatch(torch.where(hidden, hazy, clear), hazy, optical, airlight, tone)


class Draw:
    """Random numbers for each of `n` images, on the device of a generator."""

    def __init__(self, n: int, generator: Generator) -> None:
        self.n, self.generator, self.device = n, generator, generator.device

    def uniform(self, low: float | Tensor, high: float | Tensor, channels: int = 1) -> Tensor:
        """Draw numbers ``(n, channels, 1, 1)`` between two."""
        x = torch.rand(self.n, channels, 1, 1, generator=self.generator, device=self.device)
        return low + (high - low) * x

    def chance(self, share: float) -> Tensor:
        """Draw ``(n, 1, 1, 1)``, bool, true with a probability."""
        return self.uniform(0, 1) < share

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers ``(n, *shape)``."""
        return torch.randn(self.n, *shape, generator=self.generator, device=self.device)

    def noise(self, h: int, w: int, cell: Tensor, octaves: int, reduced: int = 4) -> Tensor:
        """Draw smooth noise ``(n, 1, h, w)``, stretched to [0, 1].

        Octaves of random grids, each of half the cell and half the amplitude of the one before. `cell` is the side of
        the first one's cells over the longer side of the image, ``(n, 1, 1, 1)``, 0.3 and more. It is drawn at
        1 / `reduced` of the size.
        """
        rows, cols = max(2, h // reduced), max(2, w // reduced)
        longest = max(rows, cols)
        y = torch.arange(rows, device=self.device).view(1, -1, 1) / longest
        x = torch.arange(cols, device=self.device).view(1, 1, -1) / longest
        total = torch.zeros(self.n, 1, rows, cols, device=self.device)
        for octave in range(octaves):
            cells = 2**octave / cell[:, 0]  # along the longer side
            size = math.ceil(2**octave / 0.3) + 4
            place = torch.stack(torch.broadcast_tensors(x * cells, y * cells), dim=-1) + 1.5
            grid = self.normal(1, size, size)
            total += F.grid_sample(grid, place * 2 / (size - 1) - 1, "bicubic", align_corners=True) * 0.5**octave
        low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
        total = (total - low) / (high - low).clamp(min=1e-6)
        return F.interpolate(total, size=(h, w), mode="bilinear") if reduced > 1 else total


def draw_thickness(clear: Tensor, upright: Tensor, draw: Draw, how: Synthesis) -> Tensor:
    """Draw the optical thickness ``(n, 1, h, w)`` of haze: a kind for each image, sometimes over a thin veil.

    Veils, patches with clear air between, streaks, depth along a ramp, depth in layers with sharp borders, fog at many
    scales, and depth that follows the things in the image.
    """
    n, _, h, w = clear.shape
    rough, calm = draw.noise(h, w, draw.uniform(0.3, 1.2), 5), draw.noise(h, w, draw.uniform(0.8, 1.5), 1)
    slant = ramp(h, w, upright.view(-1, 1, 1, 1), draw)
    edge, width = draw.uniform(0.2, 0.6), draw.uniform(0.2, 0.5)
    count = draw.uniform(2, 5.99).floor()
    stepped = (slant + draw.uniform(0.1, 0.5) * rough).clamp(0, 0.999)
    least = draw.uniform(0.3, 0.7)
    slope = (slant ** draw.uniform(0.7, 2) + draw.uniform(0, 0.4) * (rough - 0.5)).clamp(0, 1)
    kinds = [
        1 - draw.uniform(0, 0.25) * calm,
        ((rough - edge) / width).clamp(0, 1) ** draw.uniform(0.8, 1.5),
        (1 - (2 * rough - 1).abs()).clamp(0, 1) ** draw.uniform(1, 3),
        slope,
        torch.floor(stepped * count) / (count - 1) * 0.85 + 0.15 * stepped,
        least + (1 - least) * rough,
        slope * (1 - draw.uniform(0.1, 0.7) * things(clear, draw)),
    ]
    kind = (draw.uniform(0, len(kinds)).floor().clamp(max=len(kinds) - 1)).long()
    field = torch.gather(torch.cat(kinds, dim=1), 1, kind.expand(n, 1, h, w))
    thinnest, thickest = (1 - math.exp(-each) for each in how.thickness)
    seen = draw.uniform(torch.where(draw.chance(how.dense), 1 - math.exp(-1), thinnest), thickest)
    field = field * -torch.log1p(-seen)
    return field + draw.chance(0.3) * draw.uniform(0, 0.3)


def ramp(h: int, w: int, upright: Tensor, draw: Draw) -> Tensor:
    """Return linear ramps ``(n, 1, h, w)`` from 0 to 1: of most upright images up, else in a random direction."""
    up = -math.pi / 2 + draw.uniform(-0.2, 0.2)
    angle = torch.where(upright & draw.chance(0.7), up, draw.uniform(0, 2 * math.pi))
    y = torch.linspace(-1, 1, h, device=draw.device).view(1, 1, -1, 1)
    x = torch.linspace(-1, 1, w, device=draw.device).view(1, 1, 1, -1)
    reach = angle.sin().abs() + angle.cos().abs()
    return ((1 + (y * angle.sin() + x * angle.cos()) / reach) / 2).clamp(0, 1)


def things(clear: Tensor, draw: Draw) -> Tensor:
    """Tell things from their ground, by brightness: a soft mask ``(n, 1, h, w)`` with the image's edges."""
    gray = F.avg_pool2d(clear.mean(1, keepdim=True), 5, stride=1, padding=2, count_include_pad=False)
    middle = gray.mean((2, 3), keepdim=True) + draw.uniform(-0.15, 0.15)
    sign = torch.where(draw.chance(0.5), 1.0, -1.0)
    return torch.sigmoid(sign * (gray - middle) * draw.uniform(6, 30))


def draw_exponents(draw: Draw) -> Tensor:
    """Draw how thick haze is in each color over green ``(n, 3, 1, 1)``: neutral, or by a power of the wavelength."""
    ratio = torch.tensor([WAVELENGTHS[1] / each for each in WAVELENGTHS], device=draw.device).view(1, 3, 1, 1)
    power = torch.where(draw.chance(0.5), draw.uniform(0, 0.15), draw.uniform(0, 1.8))
    return ratio**power


def draw_airlight(clear: Tensor, draw: Draw, how: Synthesis) -> Tensor:
    """Draw airlights ``(n, 3, 1, 1)``: bright, nearly gray, sometimes tinted by the scene or as by dust or distance."""
    color = 1 + (draw.uniform(0, 1, 3) - 0.5) * draw.uniform(0, 0.14)
    mean = clear.mean((2, 3), keepdim=True)
    scene = 0.8 + 0.2 * mean / mean.mean(1, keepdim=True).clamp(min=1e-3)
    color = color * torch.where(draw.chance(0.2), scene, 1.0)
    strength = draw.uniform(0.05, 0.45)
    dust = torch.cat([torch.ones_like(strength), 1 - 0.45 * strength, 1 - strength], dim=1)
    tint = torch.where(draw.chance(0.7), dust, dust.flip(1))
    color = color * torch.where(draw.chance(how.tinted), tint, 1.0)
    # Most haze is bright: the square root of an even draw.
    low, high = how.brightness
    return ((low + (high - low) * draw.uniform(0, 1).sqrt()) * color).clamp(0.25, 1)


def with_pale(clear: Tensor, draw: Draw, share: float) -> Tensor:
    """Put pale rectangles into some images ``(n, 3, h, w)``."""
    h, w = clear.shape[2:]
    y = torch.arange(h, device=draw.device).view(1, 1, -1, 1)
    x = torch.arange(w, device=draw.device).view(1, 1, 1, -1)
    some = draw.chance(share)
    for _ in range(3):
        height, width = (torch.exp(draw.uniform(math.log(12), math.log(400))) for _ in range(2))
        top, left = draw.uniform(-height / 2, h), draw.uniform(-width / 2, w)
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width) & some & draw.chance(0.7)
        color = draw.uniform(0.5, 1.05) * draw.uniform(0.95, 1.0, 3)
        texture = draw.normal(1, h, w) * draw.uniform(0, 0.03)
        clear = torch.where(inside, (color + texture).clamp(0, 1), clear)
    return clear


def soften(clear: Tensor, density: Tensor, draw: Draw, share: float) -> Tensor:
    """Blur some images ``(n, 3, h, w)`` where haze is thick: light is scattered forward, too."""
    near, far = (F.avg_pool2d(clear, side, 1, side // 2, count_include_pad=False) for side in (3, 5))
    blurred = torch.where(draw.chance(0.7), near, far)
    return clear + draw.chance(share) * density * draw.uniform(0.2, 0.8) * (blurred - clear)


def degrade(hazy: Tensor, draw: Draw, how: Synthesis) -> Tensor:
    """Add what a camera adds: gains of its colors and another gamma, noise, JPEG, each to some (RIDCP, CVPR 2023)."""
    graded = (hazy * draw.uniform(0.97, 1.03, 3)).clamp(0, 1) ** draw.uniform(0.92, 1.08)
    hazy = torch.where(draw.chance(how.grade), graded, hazy.clamp(0, 1))
    sigma = draw.chance(how.noise) * draw.uniform(0, 0.012)
    hazy = (hazy + sigma * draw.normal(*hazy.shape[1:])).clamp(0, 1)
    compressed = jpeg(hazy, draw.uniform(40, 96))
    hazy = torch.where(draw.chance(how.jpeg), compressed, hazy)
    return (hazy * 255).round() / 255


LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantization of luminance at quality 50 (ITU-T T.81, table K.1)."""


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Quantize images ``(n, 3, h, w)`` in [0, 1] as JPEG of qualities ``(n, 1, 1, 1)`` from 1 to 100 does.

    Blocks of 8 x 8 of luminance and, at half the size, of chrominance, with the first table for all: what a codec adds,
    on the device, and for a batch of qualities at once.
    """
    h, w = x.shape[2:]
    pad = F.pad(x, (0, -w % 16, 0, -h % 16), mode="replicate")
    red, green, blue = (pad * 255).split(1, dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = F.avg_pool2d(torch.cat([(blue - luma) * 0.564, (red - luma) * 0.713], dim=1), 2)
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    table = (torch.tensor(LUMINANCE, device=x.device) * scale).clamp(min=1)  # (n, 1, 8, 8)
    luma = quantized(luma - 128, table) + 128
    cb, cr = F.interpolate(quantized(chroma, table), scale_factor=2, mode="bilinear").split(1, dim=1)
    out = torch.cat([luma + cr / 0.713, luma - cr * 0.714 - cb * 0.344, luma + cb / 0.564], dim=1)
    return (out[..., :h, :w] / 255).clamp(0, 1)


def quantized(x: Tensor, table: Tensor) -> Tensor:
    """Round the cosine transforms of 8 x 8 blocks of ``(n, c, h, w)`` to multiples of a table ``(n, 1, 8, 8)``."""
    k = torch.arange(8, device=x.device, dtype=torch.float32)
    basis = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    blocks = x.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (n, c, rows, cols, 8, 8)
    steps = table[:, :, None, None]
    spectrum = torch.round(basis @ blocks @ basis.T / steps) * steps
    return (basis.T @ spectrum @ basis).transpose(3, 4).reshape(x.shape)
