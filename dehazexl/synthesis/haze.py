"""Haze synthesis: clear pictures in, hazy pictures and the transmission and airlight that made them out.

The atmospheric scattering model (Koschmieder 1924; Narasimhan and Nayar 2002), for each pixel and color::

    hazy = clear * t + airlight * (1 - t),     t = exp(-thickness)

What varies is the field of thickness. The law holds for light; it is applied to light (`scatter_light`), or, as is
usual, to the values of a file as if they were light (`scatter`). Haze is drawn from a seeded `torch.Generator`, so that
the same seed makes the same haze on the same device.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from dehazexl.synthesis.srgb import from_linear, to_linear


@dataclass(frozen=True)
class Level:
    """How dense a preset's haze is.

    Attributes
    ----------
    thickness
        Range of the optical thickness where the haze is thickest.
    brightness
        Range of the airlight.
    kinds
        Names out of `KINDS`.
    """

    thickness: tuple[float, float]
    brightness: tuple[float, float] = (0.8, 1.0)
    kinds: tuple[str, ...] = ("patches", "veil")


LEVELS = {1: Level((0.2, 0.5)), 2: Level((0.5, 0.9)), 3: Level((0.9, 1.5)), 4: Level((1.5, 2.4))}
"""Presets after the four levels of rising density of 8KDehaze (``cloud_L1`` to ``cloud_L4``).

The figures are ours: the data set's authors do not publish theirs.
"""

WAVELENGTHS = (0.66, 0.56, 0.48)
"""Centers of the red, green and blue bands of common satellites, in micrometers."""


@dataclass(frozen=True)
class Hazy:
    """A batch of hazy pictures and what made them.

    Attributes
    ----------
    pixels
        ``(n, 3, h, w)`` in [0, 1].
    transmission
        ``(n, 3, h, w)`` in (0, 1]; 1 where there is no haze.
    airlight
        ``(n, 3, 1, 1)`` in [0, 1].
    """

    pixels: Tensor
    transmission: Tensor
    airlight: Tensor


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number between `low` and `high`."""
    return low + (high - low) * torch.rand((), generator=generator, device=generator.device).item()


def noise(h: int, w: int, cell: float, octaves: int, generator: Generator) -> Tensor:
    """Smooth noise: octaves of random grids, each half the cell size and half the amplitude of the one before.

    Returns ``(h, w)``, stretched to [0, 1].
    """
    total = torch.zeros(h, w, device=generator.device)
    for octave in range(octaves):
        size = [max(2, math.ceil(n * 2**octave / cell)) + 2 for n in (h, w)]
        grid = torch.randn([1, 1, *size], generator=generator, device=generator.device)
        field = F.interpolate(grid, size=(h, w), mode="bicubic", align_corners=True)[0, 0]
        total += field * 0.5**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low).clamp(min=1e-6)


def ramp(h: int, w: int, generator: Generator) -> Tensor:
    """Return a linear ramp ``(h, w)`` from 0 to 1 in a random direction."""
    angle = uniform(0, 2 * math.pi, generator)
    y = torch.linspace(-1, 1, h, device=generator.device)[:, None]
    x = torch.linspace(-1, 1, w, device=generator.device)[None, :]
    reach = abs(math.sin(angle)) + abs(math.cos(angle))
    return ((1 + (y * math.sin(angle) + x * math.cos(angle)) / reach) / 2).clamp(0, 1)


def veil(h: int, w: int, generator: Generator) -> Tensor:
    """Make an even veil with a slight drift. ``(h, w)`` in [0, 1]."""
    drift = noise(h, w, max(h, w), 1, generator)
    return 1 - uniform(0, 0.25, generator) * drift


def patches(h: int, w: int, generator: Generator) -> Tensor:
    """Make clouds of haze with clear air between. ``(h, w)`` in [0, 1]."""
    field = noise(h, w, uniform(0.3, 1.2, generator) * max(h, w), 5, generator)
    edge, width = uniform(0.2, 0.6, generator), uniform(0.2, 0.5, generator)
    return torch.clamp((field - edge) / width, 0, 1) ** uniform(0.8, 1.5, generator)


def ridges(h: int, w: int, generator: Generator) -> Tensor:
    """Make streaks, as of smoke or fog in valleys. ``(h, w)`` in [0, 1]."""
    field = noise(h, w, uniform(0.4, 1.2, generator) * max(h, w), 4, generator)
    streaks = (1 - (2 * field - 1).abs()).clamp(0, 1)
    return streaks ** uniform(1, 3, generator)


def depth(h: int, w: int, generator: Generator) -> Tensor:
    """Make haze that thickens with distance along a ramp. ``(h, w)`` in [0, 1]."""
    bumps = noise(h, w, 0.5 * max(h, w), 3, generator)
    field = ramp(h, w, generator) ** uniform(0.7, 2, generator) + uniform(0, 0.4, generator) * (bumps - 0.5)
    return field.clamp(0, 1)


def layers(h: int, w: int, generator: Generator) -> Tensor:
    """Make depth in layers with sharp wavy borders, as of ranges of hills. ``(h, w)`` in [0, 1]."""
    count = int(uniform(2, 5.99, generator))
    field = (ramp(h, w, generator) + uniform(0.1, 0.5, generator) * noise(h, w, 0.4 * max(h, w), 5, generator)).clamp(
        0, 0.999
    )
    return torch.floor(field * count) / max(count - 1, 1) * 0.85 + 0.15 * field


def fog(h: int, w: int, generator: Generator) -> Tensor:
    """Make haze that is everywhere, thicker here and thinner there, at many scales. ``(h, w)`` in [0, 1]."""
    least = uniform(0.3, 0.7, generator)
    return least + (1 - least) * noise(h, w, uniform(0.3, 1.2, generator) * max(h, w), 5, generator)


Field = Callable[[int, int, Generator], Tensor]

KINDS: dict[str, Field] = {
    "veil": veil,
    "patches": patches,
    "ridges": ridges,
    "depth": depth,
    "layers": layers,
    "fog": fog,
}
"""Kinds of haze: functions from height, width and generator to a relative thickness ``(h, w)`` in [0, 1].

Noise of many octaves, with clear air between or not, is how SatelliteCloudGenerator makes clouds and fog (Czerkawski
et al., Remote Sensing 2023); 8KDehaze was made with it.
"""


def wavelength_law(t_blue: Tensor) -> Tensor:
    """Spread the transmission of the blue band to red, green and blue.

    ``t_j = exp((l_blue / l_j)^g ln t_blue)``, with g from the haze's density: thin haze scatters blue most, thick
    haze is neutral (RS-Haze: Song et al., IEEE TIP 2023).

    Parameters
    ----------
    t_blue
        ``(h, w)`` in (0, 1].

    Returns
    -------
    Tensor
        ``(3, h, w)`` in (0, 1].
    """
    x = 1 - t_blue
    g = (-21.547 * x**3 + 41.224 * x**2 - 27.465 * x + 6.537).clamp(0, 4)
    return torch.stack([torch.exp((WAVELENGTHS[2] / length) ** g * torch.log(t_blue)) for length in WAVELENGTHS])


def scatter(clear: Tensor, transmission: Tensor, airlight: Tensor) -> Tensor:
    """Apply the scattering model; `clear_sight` is the inverse."""
    return clear * transmission + airlight * (1 - transmission)


def scatter_light(clear: Tensor, transmission: Tensor, airlight: Tensor) -> Tensor:
    """Apply the scattering model to the linear light of sRGB values, and return values; those without haze stay."""
    hazy = from_linear(scatter(to_linear(clear), transmission, to_linear(airlight)))
    return torch.where(transmission < 1, hazy, clear)


def clear_sight(hazy: Tensor, transmission: Tensor, airlight: Tensor) -> Tensor:
    """Solve the scattering model for the clear picture; the inverse of `scatter`."""
    return (hazy - airlight) / transmission + airlight


def add_haze(
    clear: Tensor,
    generator: Generator,
    kinds: Sequence[str] = tuple(KINDS),
    thickness: tuple[float, float] = (0.1, 2.8),
    brightness: tuple[float, float] = (0.75, 1.0),
    clear_share: float = 0.2,
    tinted_share: float = 0.0,
    camera: bool = True,
    linear: bool = False,
) -> Hazy:
    """Put haze on clear pictures, of another kind on each.

    Parameters
    ----------
    clear
        ``(n, 3, h, w)`` in [0, 1].
    generator
        Source of randomness, on the pictures' device.
    kinds
        Names out of `KINDS` to draw from.
    thickness
        Range of the optical thickness where the haze is thickest: t = exp(-thickness) there.
    brightness
        Range of the airlight.
    clear_share
        Share of pictures left without haze, so that a network learns to leave clear pictures alone.
    tinted_share
        Share of the airlights that have a strong color: brown as of dust and smoke, or blue.
    camera
        Add to hazy pictures what air and camera add besides haze: blur where it is thick, gains, gamma, noise, JPEG.
        Those without haze stay as they are.
    linear
        Put the haze on linear light (see `scatter_light`), not on the values. What is drawn stays the same.

    Returns
    -------
    Hazy
        Pictures, transmission and airlight.
    """
    made = [
        put_haze(picture, generator, kinds, thickness, brightness, clear_share, tinted_share, camera, linear)
        for picture in clear
    ]
    pixels, transmission, airlight = (torch.stack(parts) for parts in zip(*made, strict=True))
    return Hazy(pixels, transmission, airlight)


def put_haze(
    clear: Tensor,
    generator: Generator,
    kinds: Sequence[str],
    thickness: tuple[float, float],
    brightness: tuple[float, float],
    clear_share: float,
    tinted_share: float,
    camera: bool,
    linear: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Put haze on one picture ``(3, h, w)``, or leave it clear; see `add_haze`.

    Returns pixels and transmission ``(3, h, w)``, and airlight ``(3, 1, 1)``.
    """
    hazy = uniform(0, 1, generator) >= clear_share
    _, h, w = clear.shape
    t = draw_transmission(h, w, generator, kinds, thickness if hazy else (0.0, 0.0))
    airlight = draw_airlight(clear, generator, brightness)
    if tinted_share and uniform(0, 1, generator) < tinted_share:
        airlight = airlight * draw_tint(generator)
    law = scatter_light if linear else scatter
    if not (camera and hazy):
        return law(clear, t, airlight), t, airlight
    return degrade(law(soften(clear, t, generator), t, airlight), generator), t, airlight


def draw_transmission(
    h: int, w: int, generator: Generator, kinds: Sequence[str], thickness: tuple[float, float]
) -> Tensor:
    """Draw a transmission ``(3, h, w)``: a kind of haze, sometimes over a thin veil, neutral or bluish."""
    kind = kinds[int(uniform(0, len(kinds) - 1e-6, generator))]
    # Uniform in what the eye sees, 1 - t, rather than in the thickness.
    seen = uniform(1 - math.exp(-thickness[0]), 1 - math.exp(-thickness[1]), generator)
    field = KINDS[kind](h, w, generator) * -math.log(1 - seen)
    if uniform(0, 1, generator) < 0.3:
        field = field + uniform(0, 0.3, generator) * min(1.0, thickness[1])
    t = torch.exp(-field)
    return wavelength_law(t) if uniform(0, 1, generator) < 0.4 else t.expand(3, h, w)


def draw_airlight(picture: Tensor, generator: Generator, brightness: tuple[float, float]) -> Tensor:
    """Draw an airlight ``(3, 1, 1)``: bright, nearly gray, sometimes tinted by the scene ``(3, h, w)``."""
    level = uniform(*brightness, generator)
    color = 1 + (torch.rand(3, generator=generator, device=generator.device) - 0.5) * uniform(0, 0.14, generator)
    if uniform(0, 1, generator) < 0.2:
        mean = picture.mean((1, 2))
        color = color * (0.8 + 0.2 * mean / mean.mean().clamp(min=1e-3))
    return (level * color).clamp(0.3, 1)[:, None, None]


def draw_tint(generator: Generator) -> Tensor:
    """Draw factors ``(3, 1, 1)`` on the airlight: brownish, as of dust and smoke, or bluish."""
    strength = uniform(0.05, 0.45, generator)
    factors = torch.tensor([1, 1 - 0.45 * strength, 1 - strength], device=generator.device)
    return (factors if uniform(0, 1, generator) < 0.75 else factors.flip(0))[:, None, None]


def soften(clear: Tensor, transmission: Tensor, generator: Generator) -> Tensor:
    """Blur one picture ``(3, h, w)`` of three where haze is thick, more or less: light is scattered forward, too."""
    if uniform(0, 1, generator) > 0.3 or min(clear.shape[1:]) < 3:
        return clear
    reach = 1 if uniform(0, 1, generator) < 0.7 else 2
    blurred = F.avg_pool2d(F.pad(clear[None], (reach,) * 4, mode="reflect"), 2 * reach + 1, stride=1)[0]
    share = (1 - transmission) * uniform(0.2, 0.8, generator)
    return clear + share * (blurred - clear)


def degrade(hazy: Tensor, generator: Generator) -> Tensor:
    """Add what a camera adds to ``(3, h, w)``: gains of its colors, another gamma, noise, JPEG, each sometimes.

    As RIDCP does (Wu et al., CVPR 2023). Clips to [0, 1].
    """
    hazy = hazy.clamp(0, 1)
    if uniform(0, 1, generator) < 0.2:
        gains = 1 + 0.06 * (torch.rand(3, 1, 1, generator=generator, device=generator.device) - 0.5)
        hazy = (hazy * gains) ** uniform(0.92, 1.08, generator)
    if uniform(0, 1, generator) < 0.3:
        sigma = uniform(0, 0.01, generator)
        hazy = hazy + sigma * torch.randn(hazy.shape, generator=generator, device=generator.device)
    hazy = hazy.clamp(0, 1)
    if uniform(0, 1, generator) < 0.2:
        hazy = through_jpeg(hazy, int(uniform(40, 96, generator)))
    return hazy


def through_jpeg(picture: Tensor, quality: int) -> Tensor:
    """Encode a picture ``(3, h, w)`` in [0, 1] as JPEG of a quality from 1 to 100, and decode it again."""
    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).to(picture) / 255
