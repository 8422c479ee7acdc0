"""Procedural clear images: unlimited, license-free training data in addition to real images.

The dead leaves model, of shapes that occlude each other and whose sizes follow a power law, has the statistics of
natural images with edges at all scales (Lee, Mumford and Huang, Occlusion models for natural images, 2001).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAVES = 300
"""Number of shapes in an image of 256 x 256 pixels; proportional to the area."""


def procedural(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Draw a clear image of a random kind.

    Parameters
    ----------
    height, width
        Size in pixels.
    seed
        Seed of the random numbers; the same seed gives the same image.

    Returns
    -------
    ndarray
        ``(height, width, 3)``, uint8.
    """
    random = np.random.default_rng(seed)
    kind = list(KINDS)[int(random.integers(len(KINDS)))]
    return KINDS[kind](height, width, random)


def leaves(height: int, width: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw dead leaves: overlapping ellipses and rectangles, each with a color and a texture."""
    pixels = _ground(height, width, random)
    grain = noise(height, width, random.uniform(6, 40), 4, random) - 0.5
    count = min(4000, LEAVES * height * width // 256**2 + 20)
    # Radii r with density r^-3, the largest first, so that small shapes are not all hidden.
    least, most = random.uniform(2, 6), 0.35 * min(height, width) + 8
    radii = np.sort(1 / np.sqrt(random.uniform(most**-2, least**-2, count)))[::-1]
    for radius in radii:
        _leaf(pixels, grain, float(radius), random)
    return _finish(pixels, random)


def _leaf(pixels: NDArray[np.float32], grain: NDArray[np.float32], radius: float, random: np.random.Generator) -> None:
    """Draw one shape at a random place."""
    height, width, _ = pixels.shape
    cy, cx, long = random.uniform(0, height), random.uniform(0, width), random.uniform(1, 2.5)
    reach = int(radius * long) + 1
    y0, y1 = max(0, int(cy) - reach), min(height, int(cy) + reach + 1)
    x0, x1 = max(0, int(cx) - reach), min(width, int(cx) + reach + 1)
    angle = random.uniform(0, np.pi)
    y, x = np.ogrid[y0 - cy : y1 - cy, x0 - cx : x1 - cx]
    u = (x * np.cos(angle) + y * np.sin(angle)) / long
    v = y * np.cos(angle) - x * np.sin(angle)
    distance = np.hypot(u, v) if random.random() < 0.6 else np.maximum(abs(u), abs(v))
    # Edges are antialiased over a pixel, and the shape is lit from one side.
    cover = np.clip(radius - distance + 0.5, 0, 1)[..., None].astype(np.float32)
    light = 1 + random.uniform(-0.3, 0.3) * (u + v) / (2 * radius) + random.uniform(0, 0.9) * grain[y0:y1, x0:x1]
    inside = _color(random) * light[..., None].astype(np.float32)
    pixels[y0:y1, x0:x1] += cover * (inside - pixels[y0:y1, x0:x1])


def sky(height: int, width: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a gradient of sky over hills: a bright, smooth area without haze."""
    pixels = leaves(height, width, random).astype(np.float32) / 255
    horizon = height * random.uniform(0.2, 0.7)
    ridge = (noise(height, width, width / random.uniform(1, 4), 4, random)[0] - 0.5) * height * 0.3 + horizon
    y = np.arange(height, dtype=np.float32)[:, None]
    top = np.array([random.uniform(0.2, 0.6), random.uniform(0.4, 0.75), random.uniform(0.7, 1)], np.float32)
    bottom = top + (random.uniform(0.75, 0.98) - top) * np.float32(random.uniform(0.3, 1))
    gradient = top + (bottom - top) * np.clip(y / max(horizon, 1), 0, 1)[..., None]
    above = np.clip(ridge[None] - y + 0.5, 0, 1)[..., None].astype(np.float32)
    return _finish(pixels * (1 - above) + gradient * above, random)


def flat(height: int, width: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw ground of one color with a faint texture: sand, snow, water, concrete."""
    return _finish(_ground(height, width, random), random)


def noise(height: int, width: int, cell: float, octaves: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise ``(y, x)`` from 0 to 1: octaves of random grids, each half the cell and the strength of the last."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        step = max(cell / 2**octave, 1)
        grid = random.random((math.ceil(height / step) + 2, math.ceil(width / step) + 2)).astype(np.float32)
        total += _stretched(_stretched(grid, height, step).T, width, step).T * 0.5**octave
    low, high = total.min(), total.max()
    return np.asarray((total - low) / max(high - low, 1e-6))


def _stretched(grid: NDArray[np.float32], length: int, step: float) -> NDArray[np.float32]:
    """Interpolate a grid along its first axis, with a slope that does not jump."""
    place = np.arange(length, dtype=np.float32) / step
    index = place.astype(int)
    share = place - index
    share = (share * share * (3 - 2 * share))[:, None]
    return np.asarray(grid[index] * (1 - share) + grid[index + 1] * share)


def _ground(height: int, width: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return a single color with multi-octave texture, ``(height, width, 3)`` from 0 to about 1."""
    texture = noise(height, width, random.uniform(30, 300), 5, random) - 0.5
    ground: NDArray[np.float32] = _color(random) * (1 + np.float32(random.uniform(0.1, 0.8)) * texture[..., None])
    return ground


def _color(random: np.random.Generator) -> NDArray[np.float32]:
    """Draw a color ``(3,)`` of a natural surface: mostly dark, earthy or green, rarely saturated."""
    level = random.beta(1.6, 2.6)
    hue = np.array([random.normal(1.05, 0.14), random.normal(1.0, 0.1), random.normal(0.85, 0.16)])
    if random.random() < 0.03:
        hue = random.uniform(0.3, 1.6, 3)  # paint, flowers, cars
    return np.clip(level * hue, 0.01, 1).astype(np.float32)


def _finish(pixels: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.uint8]:
    """Add slight noise and round to 8 bits."""
    pixels = pixels + random.normal(0, random.uniform(0, 0.012), pixels.shape).astype(np.float32)
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


Kind = Callable[[int, int, np.random.Generator], "NDArray[np.uint8]"]

KINDS: dict[str, Kind] = {"leaves": leaves, "sky": sky, "flat": flat}
"""Kinds of images: functions from height, width and random generator to ``(height, width, 3)`` uint8."""
