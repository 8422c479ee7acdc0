"""Synthetic haze for batches of clear images, drawn on their device without synchronization.

Random numbers are drawn for all images of the batch at once, so that a GPU runs few, large kernels. The model is that
of `dehazexl.synthesis.haze`, extended by the tone in which the haze is added, see `dehazexl.model.haze`::

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
    """Distribution of random haze. Shares are probabilities from 0 to 1.

    Attributes
    ----------
    thickness
        Range of the optical thickness where the haze is thickest, drawn uniformly in the opacity 1 - t.
    dense
        Share of haze drawn from the upper part of that range, from an optical thickness of 1.5.
    brightness
        Range of the airlight.
    clear
        Share of images without haze.
    linear
        Share of haze that is added in linear light.
    tinted
        Share of airlights with a strong color, like dust, smoke or blue distance.
    local
        Share of airlights that vary over the image.
    dark
        Share of images that are darkened first, as in poor light.
    pale
        Share of images with pale rectangles that are not haze: roofs, snow.
    collar
        Share of images with a border of one value, black, white or gray, as around a georeferenced scene.
    soften, grade, noise, jpeg
        Shares of images that are blurred where haze is thick, recolored, made noisy, and compressed.
    """

    thickness: tuple[float, float] = (0.05, 2.8)
    dense: float = 0.5
    brightness: tuple[float, float] = (0.7, 1.0)
    clear: float = 0.13
    linear: float = 0.5
    tinted: float = 0.15
    local: float = 0.2
    dark: float = 0.08
    pale: float = 0.1
    collar: float = 0.06
    soften: float = 0.3
    grade: float = 0.2
    noise: float = 0.3
    jpeg: float = 0.2


@dataclass(frozen=True)
class HazyBatch:
    """Clear images with synthetic haze and its parameters.

    Attributes
    ----------
    clear, hazy
        ``(n, 3, h, w)`` in [0, 1].
    optical
        Optical thickness of each color ``(n, 3, h, w)``, at least 0.
    airlight
        ``(n, 3, 1, 1)`` in [0, 1], in values of the file.
    tone
        ``(n, 1, 1, 1)``: 1 if the haze was added in linear light, else 0.
    """

    clear: Tensor
    hazy: Tensor
    optical: Tensor
    airlight: Tensor
    tone: Tensor


def synthesize(clear: Tensor, upright: Tensor, generator: Generator, settings: Synthesis | None = None) -> HazyBatch:
    """Add haze of random kind and density to each of the clear images.

    Parameters
    ----------
    clear
        ``(n, 3, h, w)`` in [0, 1].
    upright
        ``(n,)``, bool: whether the top of the image is up. Distance then mostly increases upwards.
    generator
        Random generator on the device of the images.
    settings
        Distribution of the haze.

    Returns
    -------
    HazyBatch
        On the same device.
    """
    settings = settings or Synthesis()
    draw = Draw(len(clear), generator)
    clear = torch.where(draw.chance(settings.dark), clear ** draw.uniform(1.4, 2.6), clear)
    clear = add_pale_rectangles(clear, draw, settings.pale)
    optical = draw_thickness(clear, upright, draw, settings) * draw_exponents(draw)
    without_haze = draw.chance(settings.clear)
    optical = torch.where(without_haze, 0.0, optical)
    airlight = draw_airlight(clear, draw, settings)
    _, _, h, w = clear.shape
    around = airlight * (1 + (draw.noise(h, w, draw.uniform(0.5, 1.5), 1) - 0.5) * draw.uniform(0, 0.2))
    around = torch.where(draw.chance(settings.local), around.clamp(0, 1), airlight)
    tone = draw.chance(settings.linear).float()
    t = torch.exp(-optical)
    blurred = soften(clear, 1 - t, draw, settings.soften)
    straight = blurred * t + around * (1 - t)
    linear = from_linear(to_linear(blurred) * t + to_linear(around) * (1 - t))
    # Images without haze are degraded as well, and so is their target: noise must not be a sign of haze.
    hazy = degrade(torch.where(without_haze, clear, torch.where(tone > 0, linear, straight)), draw, settings)
    clear = torch.where(without_haze, hazy, clear)
    inside, value = draw_collar(h, w, draw, settings.collar)
    clear, hazy = (torch.where(inside, image, value) for image in (clear, hazy))
    return HazyBatch(clear, hazy, torch.where(inside, optical, 0.0), airlight, tone)


class Draw:
    """Random numbers for each of `n` images on the device of a generator.

    Parameters
    ----------
    n
        Number of images.
    generator
        Random generator.
    """

    def __init__(self, n: int, generator: Generator) -> None:
        self.n, self.generator, self.device = n, generator, generator.device

    def uniform(self, low: float | Tensor, high: float | Tensor, channels: int = 1) -> Tensor:
        """Draw uniform numbers ``(n, channels, 1, 1)`` between `low` and `high`."""
        x = torch.rand(self.n, channels, 1, 1, generator=self.generator, device=self.device)
        return low + (high - low) * x

    def chance(self, share: float) -> Tensor:
        """Draw booleans ``(n, 1, 1, 1)`` that are true with probability `share`."""
        return self.uniform(0, 1) < share

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers ``(n, *shape)``."""
        return torch.randn(self.n, *shape, generator=self.generator, device=self.device)

    def noise(self, h: int, w: int, cell: Tensor, octaves: int, reduced: int = 4) -> Tensor:
        """Draw smooth noise ``(n, 1, h, w)``, stretched to [0, 1].

        The noise is a sum of octaves of random grids, each with half the cell size and half the amplitude of the one
        before.

        Parameters
        ----------
        h, w
            Size in pixels.
        cell
            Side of the cells of the first octave over the longer side of the image, ``(n, 1, 1, 1)``, at least 0.3.
        octaves
            Number of octaves.
        reduced
            The noise is drawn at 1 / `reduced` of the size and interpolated.
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


def draw_thickness(clear: Tensor, upright: Tensor, draw: Draw, settings: Synthesis) -> Tensor:
    """Draw the optical thickness ``(n, 1, h, w)`` of haze of a random kind for each image, sometimes with a thin veil.

    The kinds are veils, patches with clear air between them, streaks, depth along a ramp, depth in layers with sharp
    borders, fog at many scales, and depth that follows objects in the image.
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
        slope * (1 - draw.uniform(0.1, 0.7) * foreground_mask(clear, draw)),
    ]
    kind = (draw.uniform(0, len(kinds)).floor().clamp(max=len(kinds) - 1)).long()
    field = torch.gather(torch.cat(kinds, dim=1), 1, kind.expand(n, 1, h, w))
    thinnest, thickest = (1 - math.exp(-each) for each in settings.thickness)
    opacity = draw.uniform(torch.where(draw.chance(settings.dense), 1 - math.exp(-1.5), thinnest), thickest)
    field = field * -torch.log1p(-opacity)
    return field + draw.chance(0.3) * draw.uniform(0, 0.3)


def ramp(h: int, w: int, upright: Tensor, draw: Draw) -> Tensor:
    """Return linear ramps ``(n, 1, h, w)`` from 0 to 1, upwards for most upright images, else in a random direction."""
    up = -math.pi / 2 + draw.uniform(-0.2, 0.2)
    angle = torch.where(upright & draw.chance(0.7), up, draw.uniform(0, 2 * math.pi))
    y = torch.linspace(-1, 1, h, device=draw.device).view(1, 1, -1, 1)
    x = torch.linspace(-1, 1, w, device=draw.device).view(1, 1, 1, -1)
    reach = angle.sin().abs() + angle.cos().abs()
    return ((1 + (y * angle.sin() + x * angle.cos()) / reach) / 2).clamp(0, 1)


def foreground_mask(clear: Tensor, draw: Draw) -> Tensor:
    """Return a soft mask ``(n, 1, h, w)`` that separates objects from the background by brightness."""
    gray = F.avg_pool2d(clear.mean(1, keepdim=True), 5, stride=1, padding=2, count_include_pad=False)
    middle = gray.mean((2, 3), keepdim=True) + draw.uniform(-0.15, 0.15)
    sign = torch.where(draw.chance(0.5), 1.0, -1.0)
    return torch.sigmoid(sign * (gray - middle) * draw.uniform(6, 30))


def draw_exponents(draw: Draw) -> Tensor:
    """Draw the optical thickness of each color over that of green ``(n, 3, 1, 1)``, a power of the wavelength."""
    ratio = torch.tensor([WAVELENGTHS[1] / each for each in WAVELENGTHS], device=draw.device).view(1, 3, 1, 1)
    power = torch.where(draw.chance(0.5), draw.uniform(0, 0.15), draw.uniform(0, 1.8))
    return ratio**power


def draw_airlight(clear: Tensor, draw: Draw, settings: Synthesis) -> Tensor:
    """Draw airlights ``(n, 3, 1, 1)``: bright, nearly gray, sometimes tinted by the scene, by dust or by distance."""
    color = 1 + (draw.uniform(0, 1, 3) - 0.5) * draw.uniform(0, 0.14)
    mean = clear.mean((2, 3), keepdim=True)
    scene = 0.8 + 0.2 * mean / mean.mean(1, keepdim=True).clamp(min=1e-3)
    color = color * torch.where(draw.chance(0.2), scene, 1.0)
    strength = draw.uniform(0.05, 0.45)
    dust = torch.cat([torch.ones_like(strength), 1 - 0.45 * strength, 1 - strength], dim=1)
    tint = torch.where(draw.chance(0.7), dust, dust.flip(1))
    color = color * torch.where(draw.chance(settings.tinted), tint, 1.0)
    # Most haze is bright: the square root of a uniform number.
    low, high = settings.brightness
    return ((low + (high - low) * draw.uniform(0, 1).sqrt()) * color).clamp(0.25, 1)


def add_pale_rectangles(clear: Tensor, draw: Draw, share: float) -> Tensor:
    """Add pale rectangles to some of the images ``(n, 3, h, w)``."""
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


def draw_collar(h: int, w: int, draw: Draw, share: float) -> tuple[Tensor, Tensor]:
    """Draw borders of one value around images, each side of which is cut off along a slanted line.

    Returns
    -------
    inside : Tensor
        ``(n, 1, h, w)``, bool: where the image is; everywhere for all but `share` of the images.
    value : Tensor
        Value of the border ``(n, 1, 1, 1)``.
    """
    y = torch.linspace(0, 1, h, device=draw.device).view(1, 1, -1, 1)
    x = torch.linspace(0, 1, w, device=draw.device).view(1, 1, 1, -1)
    inside = ~draw.chance(share)
    within = torch.ones_like(inside)
    for across, along in ((y, x), (1 - y, x), (x, y), (1 - x, y)):
        depth = draw.chance(0.5) * draw.uniform(0.02, 0.4)
        within = within & (across >= depth + draw.uniform(-0.3, 0.3) * (along - 0.5) * (depth > 0))
    gray = torch.where(draw.chance(0.5), draw.uniform(0, 1), 1.0)
    value = torch.where(draw.chance(0.5), 0.0, gray)
    return inside | within, (value * 255).round() / 255


def soften(clear: Tensor, density: Tensor, draw: Draw, share: float) -> Tensor:
    """Blur some of the images ``(n, 3, h, w)`` where haze is thick, to model forward scattering."""
    near, far = (F.avg_pool2d(clear, side, 1, side // 2, count_include_pad=False) for side in (3, 5))
    blurred = torch.where(draw.chance(0.7), near, far)
    return clear + draw.chance(share) * density * draw.uniform(0.2, 0.8) * (blurred - clear)


def degrade(hazy: Tensor, draw: Draw, settings: Synthesis) -> Tensor:
    """Simulate a camera on some of the images: color gains, gamma, noise and JPEG (RIDCP, CVPR 2023)."""
    graded = (hazy * draw.uniform(0.97, 1.03, 3)).clamp(0, 1) ** draw.uniform(0.92, 1.08)
    hazy = torch.where(draw.chance(settings.grade), graded, hazy.clamp(0, 1))
    sigma = draw.chance(settings.noise) * draw.uniform(0, 0.012)
    hazy = (hazy + sigma * draw.normal(*hazy.shape[1:])).clamp(0, 1)
    compressed = jpeg(hazy, draw.uniform(40, 96))
    hazy = torch.where(draw.chance(settings.jpeg), compressed, hazy)
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
    """Simulate JPEG compression on the device of the images.

    Blocks of 8 x 8 values of luminance and, at half the size, of chrominance are quantized, both with the table of
    luminance.

    Parameters
    ----------
    x
        ``(n, 3, h, w)`` in [0, 1].
    quality
        ``(n, 1, 1, 1)``, 1 to 100.

    Returns
    -------
    Tensor
        ``(n, 3, h, w)`` in [0, 1].
    """
    h, w = x.shape[2:]
    pad = F.pad(x, (0, -w % 16, 0, -h % 16), mode="replicate")
    red, green, blue = (pad * 255).split(1, dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = F.avg_pool2d(torch.cat([(blue - luma) * 0.564, (red - luma) * 0.713], dim=1), 2)
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    table = (torch.tensor(LUMINANCE, device=x.device) * scale).clamp(min=1)  # (n, 1, 8, 8)
    luma = quantize_dct(luma - 128, table) + 128
    cb, cr = F.interpolate(quantize_dct(chroma, table), scale_factor=2, mode="bilinear").split(1, dim=1)
    out = torch.cat([luma + cr / 0.713, luma - cr * 0.714 - cb * 0.344, luma + cb / 0.564], dim=1)
    return (out[..., :h, :w] / 255).clamp(0, 1)


def quantize_dct(x: Tensor, table: Tensor) -> Tensor:
    """Round the cosine transforms of 8 x 8 blocks of ``(n, c, h, w)`` to multiples of a table ``(n, 1, 8, 8)``."""
    k = torch.arange(8, device=x.device, dtype=torch.float32)
    basis = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    blocks = x.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (n, c, rows, cols, 8, 8)
    steps = table[:, :, None, None]
    spectrum = torch.round(basis @ blocks @ basis.T / steps) * steps
    return (basis.T @ spectrum @ basis).transpose(3, 4).reshape(x.shape)
