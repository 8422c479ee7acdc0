"""Implementation of `dehazexl evaluate`: scores of weights, the hazy input and the dark channel prior."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.evaluation.paired import (
    KINDS,
    Case,
    NetworkDehazer,
    dark_channel_prior,
    evaluate,
    pair_cases,
    synthesize_cases,
)
from dehazexl.image.grid import OVERLAP, check_overlap
from dehazexl.training.datasets import check_output_folder, open_for_evaluation

if TYPE_CHECKING:
    from PIL.Image import Image

    from dehazexl.evaluation.paired import Dehazer, FloatImage, Scores
    from dehazexl.model import DehazeXL

    Row = dict[str, str | float]

SIZE = 512
"""Side of the center crop of clear images in pixels."""
SHOWN = 6
"""Largest number of cases on the contact sheet, evenly spaced."""
SIDE = 256
"""Side of an image on the contact sheet in pixels."""
LINE = 16
"""Height of a label on the contact sheet in pixels."""
LIGHTS = {"values": "on the values of the file", "linear": "on linear light", "both": "on both"}
"""Descriptions of the values of ``--light``."""
METRICS = {"psnr": ".2f", "ssim": ".3f", "ciede2000": ".2f", "seam": ".2f", "seconds": ".2f", "memory_mb": ".0f"}
"""Formats of the scores in the table."""
PROTOCOL = (
    "full resolution, RGB, data range 1; psnr in dB, at most 100; ssim 7 x 7; ciede2000 mean; seam 1 is seamless; "
    "seconds per image; memory_mb peak memory (of the GPU if there is one)"
)


def score(
    folders: Sequence[Path],
    weights: dict[str, Path],
    load: Callable[[Path], DehazeXL],
    overlap: int | None = None,
    size: int = SIZE,
    out: Path | None = None,
    hold_out: Sequence[str] = (),
    light: str | None = None,
    echo: Callable[[str], object] | None = None,
) -> str:
    """Score weights on folders of images.

    Parameters
    ----------
    folders
        Pairs, which are scored at full size; 8KDehaze, of which the held-out pairs are scored; or clear images, to
        whose center four kinds of haze are added with a fixed seed. See `training.datasets.open_datasets`.
    weights, load
        Weights files by name, and a function that loads one.
    overlap
        Overlap of the tiles of the networks in pixels.
    size
        Side of the center crop of clear images in pixels.
    out
        Folder for ``scores.csv`` (a row for each image and method, written immediately), ``summary.csv``
        (means by method, light and kind of haze) and ``sheet.png``. Existing files are replaced.
    hold_out
        Patterns of the images to score, see `training.datasets.open_for_evaluation`.
    light
        A key of `LIGHTS`, for clear images only; None means both.
    echo
        Called with a message for each image that cannot be read, and is left out; None raises its error.

    Returns
    -------
    str
        Table of the means, and the protocol.

    Raises
    ------
    ValueError
        If scikit-image is missing, the overlap is not 0 to 128, or `light` is unknown; see also
        `training.datasets.open_datasets`.
    """
    from tqdm import tqdm

    check_skimage()
    check_overlap(overlap)
    if light is not None and light not in LIGHTS:
        raise ValueError(f"--light must be one of {', '.join(LIGHTS)}, not {light!r}")
    if out is not None:
        check_output_folder(out, folders)
    cases, count, description = open_cases(folders, size, hold_out, light, echo)
    dehazers: dict[str, Dehazer] = {"dark channel prior": dark_channel_prior}
    dehazers |= {name: NetworkDehazer(load(path), overlap) for name, path in weights.items()}
    shown = {int(i) for i in np.linspace(0, count - 1, min(SHOWN, count))} if out is not None else set()
    rows: list[Row] = []
    sheet: list[list[tuple[str, Image]]] = []
    methods = 1 + len(dehazers)
    interval = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=count * methods, desc="evaluate", unit="image", mininterval=interval) as bar:
        for i, (case, method, image, values) in enumerate(
            evaluate(cases, dehazers, OVERLAP if overlap is None else overlap)
        ):
            rows.append({"picture": case.name, "light": case.light, "haze": case.kind, "method": method, **values})
            if out is not None:
                append_row(out / "scores.csv", rows[-1], new=i == 0)
            if i // methods in shown:
                if i % methods == 0:
                    title = f"{case.name} {case.kind} {case.light}".rstrip()
                    sheet.append([(f"{title}: clear", thumbnail(case.clear))])
                sheet[-1].insert(-1, (label(method, values), thumbnail(image)))
            bar.update()
    if not rows:
        raise ValueError(f"none of the images in {', '.join(map(str, folders))} can be read: see above")
    if out is not None:
        for i, row in enumerate(by_kind(rows)):
            append_row(out / "summary.csv", row, new=i == 0)
        draw_sheet(sheet).save(out / "sheet.png")
    return f"{tables(rows)}\n{description}; {PROTOCOL}"


def open_cases(
    folders: Sequence[Path],
    size: int,
    hold_out: Sequence[str] = (),
    light: str | None = None,
    echo: Callable[[str], object] | None = None,
) -> tuple[Iterable[Case], int, str]:
    """Open the cases to evaluate; see `score` for the parameters.

    Returns
    -------
    cases : iterable of Case
        Read or synthesized one at a time.
    count : int
        Number of cases.
    description : str
        Text for the table.
    """
    data = open_for_evaluation(folders, hold_out, echo)
    if data.hazy is not None:
        if light is not None:
            raise ValueError(f"--light {light} is for clear images: {folders[0]} contains pairs")
        return pair_cases(data, echo), len(data), f"means of {len(data)} pairs"
    light = light or "both"
    lights = ("values", "linear") if light == "both" else (light,)
    images = list(zip(data.names, data.clear, strict=True))
    cases = chain.from_iterable(synthesize_cases(images, size, linear=name == "linear", echo=echo) for name in lights)
    description = (
        f"means of {len(data)} images, center {size} x {size}, "
        f"with {len(KINDS)} kinds of synthetic haze, {LIGHTS[light]}"
    )
    return cases, len(images) * len(KINDS) * len(lights), description


def check_skimage() -> None:
    """Raise ValueError with the remedy if scikit-image is missing."""
    try:
        import skimage  # noqa: F401
    except ImportError:
        raise ValueError("scores need scikit-image: pip install napari-dehazexl[evaluate]") from None


def means(rows: Sequence[Row], metrics: Iterable[str] = METRICS) -> list[Row]:
    """Return the mean of each score for each method, and the maximum of memory.

    Means of the seam ratio and of noise are taken over the images for which these are defined. Any other missing score
    makes its mean NaN; otherwise a method that fails on difficult images would get a better mean.
    """
    averages: list[Row] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        average: Row = {"method": method}
        for name in metrics:
            values = np.array([row[name] for row in rows if row["method"] == method], float)
            values = values[np.isfinite(values)] if name in ("seam", "noise") else values
            average[name] = (
                float(values.max() if name == "memory_mb" else values.mean()) if values.size else float("nan")
            )
        averages.append(average)
    return averages


def by_light(rows: Sequence[Row]) -> dict[str, Sequence[Row]]:
    """Group rows by light, with a group "both" if there are two."""
    lights = list(dict.fromkeys(str(row["light"]) for row in rows))
    groups: dict[str, Sequence[Row]] = {light: [row for row in rows if row["light"] == light] for light in lights}
    return groups | {"both": rows} if len(lights) > 1 else groups


def by_kind(rows: Sequence[Row]) -> list[Row]:
    """Return the means for each light and, if there are several, for each kind of haze."""
    kinds = list(dict.fromkeys(row["haze"] for row in rows))
    return [
        {"light": light, "haze": kind, **row}
        for light, group in by_light(rows).items()
        for kind in (["all", *kinds] if len(kinds) > 1 else ["all"])
        for row in means([row for row in group if kind in ("all", row["haze"])])
    ]


def tables(rows: Sequence[Row]) -> str:
    """Format the means of each light as text tables, with headings if there are several."""
    groups = by_light(rows)
    if len(groups) == 1:
        return table(means(rows))
    return "\n\n".join(f"haze {LIGHTS[light]}\n{table(means(group))}" for light, group in groups.items())


def table(rows: Sequence[Row], metrics: dict[str, str] = METRICS, labels: Sequence[str] = ("method",)) -> str:
    """Format rows of scores as a text table that starts with the columns `labels`; NaN is shown as a dash."""
    widths = [max(len(str(row[name])) for row in rows) for name in labels]
    lines = ["  ".join(" " * width for width in widths) + "".join(f"{name:>11}" for name in metrics)]
    for row in rows:
        cells = [format(float(row[name]), form).replace("nan", "-") for name, form in metrics.items()]
        names = "  ".join(f"{row[name]:<{width}}" for name, width in zip(labels, widths, strict=True))
        lines.append(names + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def append_row(path: Path, row: Row, new: bool) -> None:
    """Append a row to a CSV file, so that an interrupted run keeps its scores; `new` replaces the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if new else "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def label(method: str, values: Scores) -> str:
    """Return the label of an image on the contact sheet."""
    return f"{method}  {values['psnr']:.1f} dB"


def thumbnail(image: FloatImage) -> Image:
    """Shrink an image ``(h, w, 3)`` in [0, 1] to fit on the contact sheet."""
    from PIL import Image

    step = max(1, min(image.shape[:2]) // (4 * SIDE))  # subsample large images first
    pixels: Any = np.rint(np.clip(np.nan_to_num(image[::step, ::step]), 0, 1) * 255).astype(np.uint8)
    small = Image.fromarray(pixels)
    small.thumbnail((SIDE - 4, SIDE))
    return small


def draw_sheet(rows: Sequence[Sequence[tuple[str, Image]]]) -> Image:
    """Draw a contact sheet with a row for each case: hazy input, output of each method, and clear image."""
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (max(map(len, rows)) * SIDE, len(rows) * (SIDE + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (text, small) in enumerate(row):
            sheet.paste(small, (x * SIDE, y * (SIDE + LINE) + LINE))
            # The built-in font supports little more than ASCII.
            plain = text.encode("ascii", "replace").decode()
            draw.text((x * SIDE + 2, y * (SIDE + LINE) + 2), plain[-40:], fill="black")
    return sheet
