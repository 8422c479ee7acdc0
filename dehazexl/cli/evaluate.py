"""What `dehazexl evaluate` does: weights, the hazy input and the dark channel prior, scored beside each other."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.evaluation.paired import KINDS, ByNetwork, Case, dark_channel_prior, evaluate, paired, synthesized
from dehazexl.image.grid import OVERLAP, check_overlap
from dehazexl.training.datasets import check_output_folder, open_for_evaluation

if TYPE_CHECKING:
    from PIL.Image import Image

    from dehazexl.evaluation.paired import Dehazer, Picture, Scores
    from dehazexl.model import DehazeXL

    Row = dict[str, str | float]

SIZE = 512
"""Side of the middle of clear pictures, in pixels."""
SHOWN = 6
"""Cases on the contact sheet, spread over all."""
SIDE = 256
"""Side of a picture on it, in pixels."""
LINE = 16
"""Height of a label on it, in pixels."""
LIGHTS = {"values": "on the values of the file", "linear": "on linear light", "both": "on both"}
"""What haze may be put on."""
METRICS = {"psnr": ".2f", "ssim": ".3f", "ciede2000": ".2f", "seam": ".2f", "seconds": ".2f", "memory_mb": ".0f"}
"""Scores in the table, and their formats."""
PROTOCOL = (
    "full resolution, RGB, data range 1; psnr in dB, at most 100; ssim 7 x 7; ciede2000 mean; seam 1 is seamless; "
    "seconds a picture; memory_mb the most that was held meanwhile (on a GPU: of its memory)"
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
) -> str:
    """Score weights on folders of pictures, and return the table of means and the protocol.

    Parameters
    ----------
    folders
        Pairs, which are scored whole; 8KDehaze, of which those are that training holds out; or clear pictures, on the
        middle of which four kinds of haze are synthesized with a fixed seed. See `training.datasets.open_datasets`.
    weights, load
        Weights files by name, and what turns one into a network.
    overlap
        Of the networks' tiles, in pixels.
    size
        Side of the middle of clear pictures, in pixels.
    out
        Folder that gets ``scores.csv`` (a row for each picture and method, written as they come), ``summary.csv``
        (means by method, light and kind of haze) and ``sheet.png``, which are replaced.
    hold_out
        Patterns of the pictures to score, see `training.datasets.open_for_evaluation`.
    light
        Out of `LIGHTS`; None is both. Of clear pictures alone.

    Raises
    ------
    ValueError
        If scikit-image is missing, the overlap is not 0 to 128, or there is no such light; see
        `training.datasets.open_datasets` for what else.
    """
    from tqdm import tqdm

    check_skimage()
    check_overlap(overlap)
    if light is not None and light not in LIGHTS:
        raise ValueError(f"--light is one of {', '.join(LIGHTS)}, not {light!r}")
    if out is not None:
        check_output_folder(out, folders)
    cases, count, what = open_cases(folders, size, hold_out, light)
    dehazers: dict[str, Dehazer] = {"dark channel prior": dark_channel_prior}
    dehazers |= {name: ByNetwork(load(path), overlap) for name, path in weights.items()}
    shown = {int(i) for i in np.linspace(0, count - 1, min(SHOWN, count))} if out is not None else set()
    rows: list[Row] = []
    sheet: list[list[tuple[str, Image]]] = []
    methods = 1 + len(dehazers)
    interval = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=count * methods, desc="evaluate", unit="picture", mininterval=interval) as bar:
        for i, (case, method, picture, values) in enumerate(
            evaluate(cases, dehazers, OVERLAP if overlap is None else overlap)
        ):
            rows.append({"picture": case.name, "light": case.light, "haze": case.kind, "method": method, **values})
            if out is not None:
                append_row(out / "scores.csv", rows[-1], new=i == 0)
            if i // methods in shown:
                if i % methods == 0:
                    whose = f"{case.name} {case.kind} {case.light}".rstrip()
                    sheet.append([(f"{whose}: clear", thumbnail(case.clear))])
                sheet[-1].insert(-1, (label(method, values), thumbnail(picture)))
            bar.update()
    if out is not None:
        for i, row in enumerate(by_kind(rows)):
            append_row(out / "summary.csv", row, new=i == 0)
        draw_sheet(sheet).save(out / "sheet.png")
    return f"{tables(rows)}\n{what}; {PROTOCOL}"


def open_cases(
    folders: Sequence[Path], size: int, hold_out: Sequence[str] = (), light: str | None = None
) -> tuple[Iterable[Case], int, str]:
    """Return what to evaluate on, one by one, how many they are, and a line that says what they are."""
    data = open_for_evaluation(folders, hold_out)
    if data.hazy is not None:
        if light is not None:
            raise ValueError(f"--light {light} is for clear pictures: those of {folders[0]} have their haze already")
        return paired(data), len(data), f"means of {len(data)} pairs"
    light = light or "both"
    lights = ("values", "linear") if light == "both" else (light,)
    pictures = list(zip(data.names, data.clear, strict=True))
    cases = chain.from_iterable(synthesized(pictures, size, linear=name == "linear") for name in lights)
    what = (
        f"means of {len(data)} pictures, their middle {size} x {size}, with {len(KINDS)} kinds of synthesized haze, "
        f"{LIGHTS[light]}"
    )
    return cases, len(pictures) * len(KINDS) * len(lights), what


def check_skimage() -> None:
    """Raise ValueError with the remedy if scikit-image is missing."""
    try:
        import skimage  # noqa: F401
    except ImportError:
        raise ValueError("scores need scikit-image: pip install napari-dehazexl[evaluate]") from None


def means(rows: Sequence[Row], metrics: Iterable[str] = METRICS) -> list[Row]:
    """Return the mean of each score for each method; of memory the highest.

    Seam ratios are of the pictures that have tile borders, noise is of those that have any. Any other score that is
    missing makes its mean missing, or a method that fails on hard pictures would look the better for it.
    """
    found: list[Row] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own: Row = {"method": method}
        for name in metrics:
            values = np.array([row[name] for row in rows if row["method"] == method], float)
            values = values[np.isfinite(values)] if name in ("seam", "noise") else values
            own[name] = float(values.max() if name == "memory_mb" else values.mean()) if values.size else float("nan")
        found.append(own)
    return found


def by_light(rows: Sequence[Row]) -> dict[str, Sequence[Row]]:
    """Return the rows of each light, and those of both if there are two."""
    lights = list(dict.fromkeys(str(row["light"]) for row in rows))
    groups: dict[str, Sequence[Row]] = {light: [row for row in rows if row["light"] == light] for light in lights}
    return groups | {"both": rows} if len(lights) > 1 else groups


def by_kind(rows: Sequence[Row]) -> list[Row]:
    """Return the means over all pictures of each light, and over those of each kind of haze if there are several."""
    kinds = list(dict.fromkeys(row["haze"] for row in rows))
    return [
        {"light": light, "haze": kind, **row}
        for light, group in by_light(rows).items()
        for kind in (["all", *kinds] if len(kinds) > 1 else ["all"])
        for row in means([row for row in group if kind in ("all", row["haze"])])
    ]


def tables(rows: Sequence[Row]) -> str:
    """Lay the means of each light out as text, and those of both, under their names if there are several."""
    groups = by_light(rows)
    if len(groups) == 1:
        return table(means(rows))
    return "\n\n".join(f"haze {LIGHTS[light]}\n{table(means(own))}" for light, own in groups.items())


def table(found: Sequence[Row], metrics: dict[str, str] = METRICS, labels: Sequence[str] = ("method",)) -> str:
    """Lay scores out as text, after what says whose they are; a dash stands for what is not a number."""
    widths = [max(len(str(row[name])) for row in found) for name in labels]
    lines = ["  ".join(" " * width for width in widths) + "".join(f"{name:>11}" for name in metrics)]
    for row in found:
        cells = [format(float(row[name]), form).replace("nan", "-") for name, form in metrics.items()]
        names = "  ".join(f"{row[name]:<{width}}" for name, width in zip(labels, widths, strict=True))
        lines.append(names + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def append_row(path: Path, row: Row, new: bool) -> None:
    """Append a row to a CSV file, so that a run that is stopped leaves what it has; or begin the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if new else "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def label(method: str, values: Scores) -> str:
    """Name a picture on the contact sheet."""
    return f"{method}  {values['psnr']:.1f} dB"


def thumbnail(picture: Picture) -> Image:
    """Shrink a picture ``(h, w, 3)`` in [0, 1] to fit into the contact sheet."""
    from PIL import Image

    step = max(1, min(picture.shape[:2]) // (4 * SIDE))  # of a large picture a part of the pixels does
    pixels: Any = np.rint(np.clip(np.nan_to_num(picture[::step, ::step]), 0, 1) * 255).astype(np.uint8)
    small = Image.fromarray(pixels)
    small.thumbnail((SIDE - 4, SIDE))
    return small


def draw_sheet(rows: Sequence[Sequence[tuple[str, Image]]]) -> Image:
    """Draw a contact sheet: a row a case, with the hazy input, what each method made of it, and the truth."""
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (max(map(len, rows)) * SIDE, len(rows) * (SIDE + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (text, small) in enumerate(row):
            sheet.paste(small, (x * SIDE, y * (SIDE + LINE) + LINE))
            # The font that is always there knows little more than ASCII.
            plain = text.encode("ascii", "replace").decode()
            draw.text((x * SIDE + 2, y * (SIDE + LINE) + 2), plain[-40:], fill="black")
    return sheet
