"""Figures of an explanation, drawn with Pillow: the map beside image and output, and the curves of tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dehazexl.image import diverging
from dehazexl.image.grid import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.engine.explain.curves import Curve

GAP, TEXT = 12, 14
"""Pixels between panels, and height of the text."""

BAR = 200
"""Pixels: width of the bar that explains the colors."""

PLOT = 320
"""Pixels: side of a plot of curves."""

FINE = 2
"""Factor by which plots are drawn larger, then shrunk, which smooths their lines."""

BLACK, GRAY, PALE = (0, 0, 0), (110, 110, 110), (190, 190, 190)
LINE = tuple(int(value) for value in diverging.colors(1.0))


def heat_map(
    hazy: NDArray[np.uint8], clear: NDArray[np.uint8], values: NDArray[np.floating], window: Window, percentile: float
) -> Image.Image:
    """Draw image, output and map beside each other, with the window framed and the scale printed.

    Parameters
    ----------
    hazy, clear
        ``(y, x, 3)``.
    values
        The map ``(y, x)``, signed.
    window
        The window, in pixels of these arrays.
    percentile
        Of the absolute values; those beyond have the color of the end.
    """
    limit = float(np.percentile(np.abs(values), percentile)) or float(np.abs(values).max()) or 1.0
    height, width = values.shape
    panels = {"image": hazy, "output": clear, "attribution": diverging.colors(values / limit)}
    size = max(len(panels) * (width + GAP) + GAP, 3 * BAR), height + 2 * GAP + 4 * TEXT
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for i, (name, pixels) in enumerate(panels.items()):
        x, y = GAP + i * (width + GAP), GAP + TEXT
        draw.text((x, GAP // 2), name, BLACK, font)
        sheet.paste(Image.fromarray(pixels), (x, y))
        frame = (x + window.x0 - 2, y + window.y0 - 2, x + window.x1 + 1, y + window.y1 + 1)
        draw.rectangle(frame, outline="white", width=2)
        draw.rectangle((frame[0] - 1, frame[1] - 1, frame[2] + 1, frame[3] + 1), outline="black")
    x, y = size[0] - GAP - BAR, height + GAP + TEXT + TEXT // 2
    sheet.paste(Image.fromarray(np.tile(diverging.table(BAR), (TEXT, 1, 1))), (x, y))
    for place, text, anchor in ((0, f"{-limit:.2g}", "la"), (BAR // 2, "0", "ma"), (BAR, f"+{limit:.2g}", "ra")):
        draw.text((x + place, y + TEXT + 2), text, BLACK, font, anchor=anchor)
    draw.text((x - GAP, y), f"per pixel, to percentile {percentile:g}", BLACK, font, anchor="ra")
    return sheet


def plot_curves(curves: Mapping[str, Curve]) -> Image.Image:
    """Draw the curves of tiles by attribution over those of random orders, side by side."""
    sheets = [_plot(name, curve) for name, curve in curves.items()]
    whole = Image.new("RGB", (sum(sheet.width for sheet in sheets), sheets[0].height), "white")
    for i, sheet in enumerate(sheets):
        whole.paste(sheet, (i * sheet.width, 0))
    return whole


def _plot(name: str, curve: Curve) -> Image.Image:
    """Draw one plot: shares of tiles from left to right, responses upwards from that to the baseline."""
    side, text = FINE * PLOT, FINE * TEXT
    left, top = 6 * text, 2 * text
    sheet = Image.new("RGB", (side + left + 2 * text, side + top + 3 * text), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(text)
    responses = np.array([curve.ordered, *curve.random])
    low, high = min(0.0, float(responses.min())), max(1.0, float(responses.max()))

    def place(share: float, response: float) -> tuple[float, float]:
        return left + side * share, top + side * (high - response) / (high - low)

    def line(values: Sequence[float], color: tuple[int, ...], width: int) -> None:
        points = [place(share, value) for share, value in zip(curve.shares, values, strict=True)]
        draw.line(points, color, FINE * width, joint="curve")

    draw.rectangle((*place(0, high), *place(1, low)), outline=GRAY, width=FINE)
    for value, name_of_end in ((0, "baseline "), (0.5, ""), (1, "image ")):
        x, y = place(value, value)
        draw.text((x, top + side + text // 4), f"{value:g}", BLACK, font, anchor="ma")
        draw.text((left - text // 3, y), f"{name_of_end}{value:g}", BLACK, font, anchor="rm")
        draw.line((left - text // 4, y, left, y), GRAY, FINE)
    for random in curve.random:
        line(random, PALE, 1)
    line(curve.ordered, LINE, 3)
    chance = sum(curve.random_areas) / len(curve.random_areas)
    title = f"{name}: area {curve.area:.2f}, at random {chance:.2f}"
    draw.text((left, text // 4), title, BLACK, font)
    order = "share of tiles, the largest first (gray: at random)"
    draw.text((left + side / 2, top + side + 3 * text // 2), order, BLACK, font, anchor="ma")
    return sheet.resize((sheet.width // FINE, sheet.height // FINE), Image.Resampling.LANCZOS)
