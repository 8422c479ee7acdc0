"""A clear aerial picture that needs no download: fields, a river, roads, a village and woods, drawn from a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

CROPS = (
    (96, 122, 62),
    (74, 104, 52),
    (121, 137, 78),
    (186, 168, 118),
    (201, 186, 139),
    (139, 112, 84),
    (166, 140, 108),
    (106, 128, 70),
    (88, 96, 58),
    (158, 152, 92),
)
"""Colors of fields: young and ripe crops, soil, meadows."""

WATER, SAND, ROAD, TRACK = (52, 72, 74), (160, 146, 118), (112, 111, 109), (172, 156, 128)
ROOFS = ((150, 82, 62), (132, 66, 52), (168, 104, 78), (104, 100, 98), (142, 138, 132), (96, 72, 62))
TREES = ((46, 68, 38), (54, 78, 42), (62, 86, 48), (70, 88, 46), (44, 62, 42))


@dataclass
class Canvas:
    """A picture being drawn: pixels ``(y, x, 3)`` on the scale 0 to 255, and where there is nothing to build on."""

    pixels: Plane
    taken: NDArray[np.bool_]
    random: np.random.Generator

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.taken.shape[0], self.taken.shape[1]

    def cover(self, share: Plane, color: tuple[float, ...] | Plane) -> None:
        """Lay a color over the picture where `share` ``(y, x)`` says, from 0 to 1."""
        self.pixels += share[..., None] * (np.asarray(color, np.float32) - self.pixels)


def aerial(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Draw a picture of farmland from above.

    Parameters
    ----------
    height, width
        Size in pixels, of some 0.4 m each.
    seed
        The same seed draws the same picture.

    Returns
    -------
    ndarray
        ``(y, x, 3)``, uint8.
    """
    random = np.random.default_rng(seed)
    canvas = Canvas(np.zeros((height, width, 3), np.float32), np.zeros((height, width), bool), random)
    hedges = draw_fields(canvas)
    river = draw_river(canvas)
    roads = draw_roads(canvas)
    village = draw_village(canvas, roads)
    draw_trees(canvas, hedges, river, village)
    hills = noise(height, width, 900, 3, random)
    light = 0.94 + 0.12 * hills[..., None]
    grain = random.normal(0, 2.2, (height, width, 1)).astype(np.float32)
    # Air and lens leave colors less bright than paint.
    muted = canvas.pixels + 0.18 * (canvas.pixels.mean(2, keepdims=True) - canvas.pixels)
    return np.clip(muted * light + grain, 0, 255).astype(np.uint8)


def noise(height: int, width: int, cell: float, octaves: int, random: np.random.Generator) -> Plane:
    """Smooth noise ``(y, x)`` from 0 to 1: octaves of random grids, each half the cell and the strength of the last."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        step = max(cell / 2**octave, 1)
        grid = random.random((math.ceil(height / step) + 2, math.ceil(width / step) + 2)).astype(np.float32)
        total += _stretched(_stretched(grid, height, step).T, width, step).T * 0.5**octave
    low, high = total.min(), total.max()
    return np.asarray((total - low) / max(high - low, 1e-6))


def _stretched(grid: Plane, length: int, step: float) -> Plane:
    """Interpolate a grid along its first axis, with a slope that does not jump."""
    place = np.arange(length, dtype=np.float32) / step
    index = place.astype(int)
    share = place - index
    share = (share * share * (3 - 2 * share))[:, None]
    return np.asarray(grid[index] * (1 - share) + grid[index + 1] * share)


def edge(distance: Plane, width: float, soft: float = 1.5) -> Plane:
    """Turn a distance in pixels into a share: 1 within `width`, 0 beyond, soft between."""
    return np.clip((width - np.abs(distance)) / soft + 0.5, 0, 1)


def draw_fields(canvas: Canvas) -> Plane:
    """Cover the land with fields in rows; return the distance to their borders in pixels."""
    (height, width), random = canvas.shape, canvas.random
    y, x = np.mgrid[:height, :width].astype(np.float32)
    bend = (noise(height, width, 700, 2, random) - 0.5) * 60
    angle = random.uniform(0.15, 0.45)
    u, v = x * math.cos(angle) + y * math.sin(angle) + bend, y * math.cos(angle) - x * math.sin(angle) + bend
    rows = _edges(float(v.min()), float(v.max()), 190, 380, random)
    row = np.searchsorted(rows, v) - 1
    border = np.minimum(v - rows[row], rows[row + 1] - v)
    fine = noise(height, width, 12, 3, random) - 0.5
    patchy = noise(height, width, 160, 4, random) - 0.5
    for i in range(len(rows) - 1):
        here = row == i
        if not here.any():
            continue
        columns = _edges(float(u[here].min()), float(u[here].max()), 160, 620, random)
        column = np.searchsorted(columns, u[here]) - 1
        border[here] = np.minimum(border[here], np.minimum(u[here] - columns[column], columns[column + 1] - u[here]))
        canvas.pixels[here] = _crops(u[here], v[here], column, len(columns), fine[here], patchy[here], random)
    canvas.cover(edge(border, 2.5) * 0.5, (98, 108, 66))
    return border


def _edges(low: float, high: float, least: float, most: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Cut ``low..high`` into pieces of random length; the first and the last edge lie outside."""
    edges = [low - random.uniform(1, least)]
    while edges[-1] <= high:
        edges.append(edges[-1] + random.uniform(least, most))
    return np.array(edges, np.float32)


def _crops(
    u: Plane,
    v: Plane,
    field: NDArray[np.int64],
    count: int,
    fine: Plane,
    patchy: Plane,
    random: np.random.Generator,
) -> Plane:
    """Colors ``(pixels, 3)`` of fields, each with its own crop, rows and patches."""
    colors = np.array(CROPS, np.float32)[random.integers(len(CROPS), size=count)] + random.normal(0, 5, (count, 3))
    across = random.random(count) < 0.5
    period, strength = random.uniform(5, 14, count), random.uniform(1, 7, count)
    along = np.where(across[field], u, v)
    rows = np.sin(2 * np.pi * along / period[field]) * strength[field]
    # Tractors leave a pair of tracks every so many rows.
    wheels = (np.abs(along % 62 - 31) < 1.3) * random.uniform(0, 16, count)[field]
    rough = random.uniform(8, 24, count)[field]
    shade = rows - wheels + fine * rough + patchy * random.uniform(15, 55, count)[field]
    return np.asarray(colors[field] + shade[:, None] * np.array([1.0, 0.95, 0.8]), np.float32)


def draw_river(canvas: Canvas) -> Plane:
    """Let a river wind through the picture from top to bottom; return the distance to its bank in pixels."""
    (height, width), random = canvas.shape, canvas.random
    y = np.arange(height, dtype=np.float32)
    start, lean = random.uniform(0.18, 0.3) * width, random.uniform(-0.06, 0.1) * width
    middle = start + lean * y / height + 0.06 * width * np.sin(y / height * random.uniform(5, 8) + random.uniform(0, 6))
    slope = np.hypot(1, np.gradient(middle)) if height > 1 else np.ones(1)
    ragged = (noise(height, width, 60, 3, random) - 0.5) * 14
    broad = 34 + 14 * np.sin(y / 230 + random.uniform(0, 6))
    distance = (np.abs(np.arange(width)[None] - middle[:, None]) / slope[:, None] - broad[:, None] + ragged).astype(
        np.float32
    )
    canvas.cover(np.clip((9 - distance) / 8, 0, 1) * 0.8, SAND)
    depth = np.clip(-distance / 22, 0, 1)[..., None]
    ripple = (noise(height, width, 6, 2, random) - 0.5)[..., None] * 5
    water = np.array([86, 98, 84], np.float32) * (1 - depth) + np.array(WATER, np.float32) * depth + ripple
    canvas.cover(np.clip(0.5 - distance / 2, 0, 1), water)
    canvas.taken |= distance < 12
    return distance


def draw_roads(canvas: Canvas) -> list[tuple[float, float, float]]:
    """Draw a country road, a lane across it and tracks; return the lines (a, b, c), where a x + b y = c."""
    (height, width), random = canvas.shape, canvas.random
    y, x = np.mgrid[:height, :width].astype(np.float32)
    sway = (noise(height, width, 1100, 1, random) - 0.5) * 70
    angle = random.uniform(1.25, 1.45)
    place = (random.uniform(0.56, 0.66) * width, random.uniform(0.4, 0.6) * height)
    lines = []
    for turn, broad in ((0.0, 9.0), (math.pi / 2 + 0.1, 6.0)):
        a, b = math.cos(angle + turn), math.sin(angle + turn)
        c = a * place[0] + b * place[1]
        distance, along = a * x + b * y - c + sway, b * x - a * y
        canvas.cover(edge(distance, broad + 5, 6) * 0.6, (128, 132, 88))
        worn = (noise(height, width, 40, 3, random) - 0.5)[..., None] * 12
        canvas.cover(edge(distance, broad), np.array(ROAD, np.float32) + worn)
        canvas.cover(edge(distance, 0.8, 1) * (along % 28 < 12) * 0.8, (214, 212, 204))
        canvas.taken |= np.abs(distance) < broad + 4
        lines.append((a, b, c))
    for _ in range(3):
        a, b = math.cos(turn := random.uniform(0, math.pi)), math.sin(turn)
        distance = a * (x - random.uniform(0, width)) + b * (y - random.uniform(0, height)) + sway * 1.5
        rut = edge(np.abs(distance) - 2.6, 1.3)
        canvas.cover(rut * 0.7 * ~canvas.taken, TRACK)
    return lines


def draw_village(canvas: Canvas, roads: list[tuple[float, float, float]]) -> Plane:
    """Build houses with gardens along the roads, dense near their crossing; return how near it is, from 0 to 1."""
    width, random = canvas.shape[1], canvas.random
    (a, b, c), (d, e, f) = roads
    center = np.array([c * e - b * f, a * f - c * d]) / (a * e - b * d)
    rows, cols = np.ogrid[: canvas.shape[0], :width]
    nearness = np.exp(-((cols - center[0]) ** 2 + (rows - center[1]) ** 2) / (2 * (0.14 * width) ** 2))
    for _ in range(900):
        x, y = center + random.normal(0, 0.13 * width, 2)
        near = min((abs(p * x + q * y - r), math.atan2(-p, q)) for p, q, r in roads)
        if near[0] > random.exponential(90) + 24:
            continue
        long, short = random.uniform(15, 30), random.uniform(11, 16)
        _house(canvas, x, y, long, short, near[1] + random.choice([0, math.pi / 2]) + random.normal(0, 0.04))
    return np.asarray(nearness, np.float32)


def _house(canvas: Canvas, x: float, y: float, long: float, short: float, angle: float) -> None:
    """Draw a house with a garden, a shadow and a roof of two sides, if its place is free."""
    random, reach = canvas.random, int(long + 26)
    top, left = int(y) - reach, int(x) - reach
    if min(top, left) < 0 or top + 2 * reach > canvas.shape[0] or left + 2 * reach > canvas.shape[1]:
        return
    window = slice(top, top + 2 * reach), slice(left, left + 2 * reach)
    rows, cols = np.mgrid[window].astype(np.float32)
    u = (cols - x) * math.cos(angle) + (rows - y) * math.sin(angle)
    v = (rows - y) * math.cos(angle) - (cols - x) * math.sin(angle)
    if canvas.taken[window][(np.abs(u) < long + 5) & (np.abs(v) < short + 5)].any():
        return
    part = Canvas(canvas.pixels[window], canvas.taken[window], random)
    lawn = np.array([106, 120, 76], np.float32) + random.normal(0, 5, 3)
    speckle = random.normal(0, 6, (*u.shape, 1)).astype(np.float32)
    part.cover(edge(u, long + 4, 3) * edge(v, short + 6, 3) * 0.85, (lawn + speckle).astype(np.float32))
    lift = 6.0
    part.cover(
        edge(u - lift * math.cos(angle - 0.8), long) * edge(v + lift * math.sin(angle - 0.8), short) * 0.6, (30, 34, 36)
    )
    roof = np.array(ROOFS[random.integers(len(ROOFS))], np.float32) + random.normal(0, 7, 3)
    sunny = np.where(v * math.cos(angle + 0.8) < 0, 1.14, 0.8)[..., None] * (1 + 0.04 * np.sin(u * 1.6))[..., None]
    part.cover(edge(u, long - 4, 1.2) * edge(v, short - 3, 1.2), roof * sunny)
    part.taken |= (np.abs(u) < long + 4) & (np.abs(v) < short + 5)


def draw_trees(canvas: Canvas, hedges: Plane, river: Plane, village: Plane) -> None:
    """Plant woods, hedges along some borders of fields, trees at the water and between the houses."""
    (height, width), random = canvas.shape, canvas.random
    woods = np.clip((noise(height, width, 620, 4, random) - 0.62 - 0.35 * village) * 12, 0, 1)
    lines = edge(hedges, 5, 4) * (noise(height, width, 420, 2, random) > 0.52)
    banks = np.clip(1 - np.abs(river - 22) / 18, 0, 1) * (noise(height, width, 120, 2, random) > 0.45)
    chance = np.maximum(np.maximum(woods * 0.020, lines * 0.012), np.maximum(banks * 0.006, 0.00003 + 0.0008 * village))
    canvas.cover(woods * 0.75 * ~canvas.taken, (44, 58, 36))
    rows, cols = np.nonzero((random.random((height, width)) < chance) & ~canvas.taken)
    for y, x in zip(rows, cols, strict=True):
        _tree(canvas, int(y), int(x), random.uniform(4, 10))


def _tree(canvas: Canvas, y: int, x: int, radius: float) -> None:
    """Draw a crown, lit from the upper left, and its shadow."""
    random, reach = canvas.random, int(radius * 2.2) + 2
    top, left = max(y - reach, 0), max(x - reach, 0)
    window = slice(top, y + reach), slice(left, x + reach)
    part = Canvas(canvas.pixels[window], canvas.taken[window], random)
    rows, cols = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    dy, dx = (rows - y).astype(np.float32), (cols - x).astype(np.float32)
    far = np.hypot(dy - radius * 0.6, dx - radius * 0.6)
    part.cover(edge(far, radius, 2.5) * 0.5, (26, 32, 28))
    lobes = 1 + 0.14 * np.sin(np.arctan2(dy, dx) * random.integers(4, 8) + random.uniform(0, 6))
    crown = edge(np.hypot(dy, dx) * lobes, radius, 2)
    lit = 1 - 0.32 * (dy + dx) / radius
    leaves = random.normal(1, 0.10, crown.shape)
    color = np.array(TREES[random.integers(len(TREES))], np.float32) * random.uniform(0.9, 1.2)
    part.cover(crown, (color * (lit * leaves)[..., None]).astype(np.float32))
