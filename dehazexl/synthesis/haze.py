"""Haze synthesis: hazy images with known transmission and airlight from clear images.

The atmospheric scattering model (Koschmieder 1924; Narasimhan and Nayar 2002), for each pixel and color::

    hazy = clear * t + airlight * (1 - t),     t = exp(-thickness)

Kinds of haze differ in the field of thickness. The law holds for light; it is applied to linear light
(`scatter_light`), or, as is common, to the values of a file as if they were light (`scatter`). Haze is drawn from a
`torch.Generator`: the same seed gives the same haze on the same device.
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
    """Preset of haze density.

    Attributes
    ----------
    thickness
        Range of the optical thickness where the haze is thickest.
    brightness
        Range of the airlight.
    kinds
        Kinds of haze, keys of `KINDS`.
    """

    thickness: tuple[float, float]
    brightness: tuple[float, float] = (0.8, 1.0)
    kinds: tuple[str, ...] = ("patches", "veil")


LEVELS = {1: Level((0.2, 0.5)), 2: Level((0.5, 0.9)), 3: Level((0.9, 1.5)), 4: Level((1.5, 2.4))}
"""Presets modeled on the four density levels of 8KDehaze (``cloud_L1`` to ``cloud_L4``).

The numbers are chosen here; those of the data set are not published.
"""

WAVELENGTHS = (0.66, 0.56, 0.48)
"""Centers of the red, green and blue bands of common satellites, in micrometers."""


@dataclass(frozen=True)
class Hazy:
    """Hazy images with the parameters of their haze.

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
    """Draw a uniform number between `low` and `high`."""
    return low + (high - low) * torch.rand((), generator=generator, device=generator.device).item()


def noise(h: int, w: int, cell: float, octaves: int, generator: Generator) -> Tensor:
    """Draw smooth noise as a sum of octaves of random grids.

    Each octave has half the cell size and half the amplitude of the one before.

    Parameters
    ----------
    h, w
        Size in pixels.
    cell
        Side of the cells of the first octave in pixels.
    octaves
        Number of octaves.
    generator
        Random generator.

    Returns
    -------
    Tensor
        ``(h, w)``, stretched to [0, 1].
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
    """Draw a nearly uniform veil ``(h, w)`` in [0, 1]."""
    drift = noise(h, w, max(h, w), 1, generator)
    return 1 - uniform(0, 0.25, generator) * drift


def patches(h: int, w: int, generator: Generator) -> Tensor:
    """Draw patches of haze with clear air between them, ``(h, w)`` in [0, 1]."""
    field = noise(h, w, uniform(0.3, 1.2, generator) * max(h, w), 5, generator)
    edge, width = uniform(0.2, 0.6, generator), uniform(0.2, 0.5, generator)
    return torch.clamp((field - edge) / width, 0, 1) ** uniform(0.8, 1.5, generator)


def ridges(h: int, w: int, generator: Generator) -> Tensor:
    """Draw streaks ``(h, w)`` in [0, 1], like smoke or fog in valleys."""
    field = noise(h, w, uniform(0.4, 1.2, generator) * max(h, w), 4, generator)
    streaks = (1 - (2 * field - 1).abs()).clamp(0, 1)
    return streaks ** uniform(1, 3, generator)


def depth(h: int, w: int, generator: Generator) -> Tensor:
    """Draw haze ``(h, w)`` in [0, 1] that thickens with distance along a ramp."""
    bumps = noise(h, w, 0.5 * max(h, w), 3, generator)
    field = ramp(h, w, generator) ** uniform(0.7, 2, generator) + uniform(0, 0.4, generator) * (bumps - 0.5)
    return field.clamp(0, 1)


def layers(h: int, w: int, generator: Generator) -> Tensor:
    """Draw depth ``(h, w)`` in [0, 1] in layers with sharp wavy borders, like ranges of hills."""
    count = int(uniform(2, 5.99, generator))
    field = (ramp(h, w, generator) + uniform(0.1, 0.5, generator) * noise(h, w, 0.4 * max(h, w), 5, generator)).clamp(
        0, 0.999
    )
    return torch.floor(field * count) / max(count - 1, 1) * 0.85 + 0.15 * field


def fog(h: int, w: int, generator: Generator) -> Tensor:
    """Draw fog ``(h, w)`` in [0, 1] that covers the image and varies at many scales."""
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

SatelliteCloudGenerator (Czerkawski et al., Remote Sensing 2023), with which 8KDehaze was made, also draws clouds and
fog as noise of many octaves.
"""


def wavelength_law(t_blue: Tensor) -> Tensor:
    """Compute the transmission of red, green and blue from that of the blue band.

    ``t_j = exp((l_blue / l_j)^g ln t_blue)``, where g depends on the density of the haze: thin haze scatters blue most,
    thick haze is neutral (RS-Haze: Song et al., IEEE TIP 2023).

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
    """Apply the scattering model; `invert_scatter` is the inverse.

    Parameters
    ----------
    clear
        ``(..., 3, h, w)`` in [0, 1].
    transmission
        Same shape, in (0, 1].
    airlight
        ``(..., 3, 1, 1)`` in [0, 1].

    Returns
    -------
    Tensor
        Hazy image of the shape of `clear`, in [0, 1].
    """
    return clear * transmission + airlight * (1 - transmission)


def scatter_light(clear: Tensor, transmission: Tensor, airlight: Tensor) -> Tensor:
    """Apply the scattering model to the linear light of sRGB values; see `scatter` for parameters and result.

    Values with a transmission of 1 are unchanged.
    """
    hazy = from_linear(scatter(to_linear(clear), transmission, to_linear(airlight)))
    return torch.where(transmission < 1, hazy, clear)


def invert_scatter(hazy: Tensor, transmission: Tensor, airlight: Tensor) -> Tensor:
    """Solve the scattering model for the clear image; the inverse of `scatter`, with the same parameters."""
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
    """Add haze of a random kind to each of the clear images.

    Parameters
    ----------
    clear
        ``(n, 3, h, w)`` in [0, 1].
    generator
        Random generator on the device of the images.
    kinds
        Kinds of haze to draw from, keys of `KINDS`.
    thickness
        Range of the optical thickness where the haze is thickest: t = exp(-thickness) there.
    brightness
        Range of the airlight.
    clear_share
        Share of images without haze, from which a network learns to leave clear images unchanged.
    tinted_share
        Share of airlights with a strong color: brown like dust and smoke, or blue.
    camera
        Simulate air and camera on hazy images: blur where haze is thick, gains, gamma, noise and JPEG. Images without
        haze are unchanged.
    linear
        Add the haze in linear light (see `scatter_light`) instead of file values. The random numbers are the same.

    Returns
    -------
    Hazy
        Hazy images, transmission and airlight.
    """
    made = [
        add_haze_to_image(image, generator, kinds, thickness, brightness, clear_share, tinted_share, camera, linear)
        for image in clear
    ]
    pixels, transmission, airlight = (torch.stack(parts) for parts in zip(*made, strict=True))
    return Hazy(pixels, transmission, airlight)


def add_haze_to_image(
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
    """Add haze to one image ``(3, h, w)``, or leave it clear; see `add_haze`.

    Returns
    -------
    pixels, transmission : Tensor
        ``(3, h, w)``.
    airlight : Tensor
        ``(3, 1, 1)``.
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
    """Draw the transmission ``(3, h, w)`` of a random kind of haze, sometimes with a thin veil, neutral or bluish."""
    kind = kinds[int(uniform(0, len(kinds) - 1e-6, generator))]
    # Uniform in the visible opacity, 1 - t, rather than in the thickness.
    opacity = uniform(1 - math.exp(-thickness[0]), 1 - math.exp(-thickness[1]), generator)
    field = KINDS[kind](h, w, generator) * -math.log(1 - opacity)
    if uniform(0, 1, generator) < 0.3:
        field = field + uniform(0, 0.3, generator) * min(1.0, thickness[1])
    t = torch.exp(-field)
    return wavelength_law(t) if uniform(0, 1, generator) < 0.4 else t.expand(3, h, w)


def draw_airlight(image: Tensor, generator: Generator, brightness: tuple[float, float]) -> Tensor:
    """Draw an airlight ``(3, 1, 1)``: bright, nearly gray, sometimes tinted by the scene ``(3, h, w)``."""
    level = uniform(*brightness, generator)
    color = 1 + (torch.rand(3, generator=generator, device=generator.device) - 0.5) * uniform(0, 0.14, generator)
    if uniform(0, 1, generator) < 0.2:
        mean = image.mean((1, 2))
        color = color * (0.8 + 0.2 * mean / mean.mean().clamp(min=1e-3))
    return (level * color).clamp(0.3, 1)[:, None, None]


def draw_tint(generator: Generator) -> Tensor:
    """Draw factors ``(3, 1, 1)`` of the airlight: brownish, like dust and smoke, or bluish."""
    strength = uniform(0.05, 0.45, generator)
    factors = torch.tensor([1, 1 - 0.45 * strength, 1 - strength], device=generator.device)
    return (factors if uniform(0, 1, generator) < 0.75 else factors.flip(0))[:, None, None]


def soften(clear: Tensor, transmission: Tensor, generator: Generator) -> Tensor:
    """Blur 30 % of the images ``(3, h, w)`` where haze is thick, to model forward scattering."""
    if uniform(0, 1, generator) > 0.3 or min(clear.shape[1:]) < 3:
        return clear
    reach = 1 if uniform(0, 1, generator) < 0.7 else 2
    blurred = F.avg_pool2d(F.pad(clear[None], (reach,) * 4, mode="reflect"), 2 * reach + 1, stride=1)[0]
    share = (1 - transmission) * uniform(0.2, 0.8, generator)
    return clear + share * (blurred - clear)


def degrade(hazy: Tensor, generator: Generator) -> Tensor:
    """Simulate a camera on an image ``(3, h, w)``: color gains and gamma, noise, JPEG, each with some probability.

    Follows RIDCP (Wu et al., CVPR 2023). The result is clipped to [0, 1].
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
        hazy = compress_jpeg(hazy, int(uniform(40, 96, generator)))
    return hazy


def compress_jpeg(image: Tensor, quality: int) -> Tensor:
    """Encode and decode an image ``(3, h, w)`` in [0, 1] as JPEG with a quality from 1 to 100."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).to(image) / 255
