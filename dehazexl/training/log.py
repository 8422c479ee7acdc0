"""Log of a training run: a CSV file that stays readable after an interruption, and its plot."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from dehazexl.io.disk import atomic_write

COLUMNS = ["step", "seconds", "waited", "loss", "lr", "skipped", "psnr", "ssim"]
"""Columns of ``log.csv`` in order."""


def append_report(path: Path, report: dict[str, float]) -> None:
    """Append a row to the CSV log, creating the file if needed."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(report)


def read_log(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of a CSV log; an empty list if the file does not exist."""
    if not path.exists():
        return []
    text = path.read_text(errors="replace").replace("\0", "")
    return [row for row in csv.DictReader(io.StringIO(text)) if is_complete(row)]


def is_complete(row: dict[str, str]) -> bool:
    """Return whether a row has all its numbers; an interruption can truncate the last one."""
    try:
        return len([float(row[name]) for name in COLUMNS if row[name]]) >= COLUMNS.index("psnr")
    except (KeyError, TypeError, ValueError):
        return False


def drop_after(path: Path, step: int) -> None:
    """Drop rows after a step: the steps after the checkpoint are repeated."""
    if not path.exists():
        return
    kept = [row for row in read_log(path) if int(row["step"]) <= step]
    with atomic_write(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)


def plot(folder: Path) -> Path:
    """Plot the log of a run to ``plot.png``: the loss, averaged over groups of steps, and the validation scores.

    Returns
    -------
    Path
        The plot.

    Raises
    ------
    ImportError
        If matplotlib is not installed; it is part of ``pip install napari-dehazexl[train]``.
    """
    from matplotlib.figure import Figure

    rows = read_log(folder / "log.csv")
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = [(int(row["step"]), float(row["loss"])) for row in rows]
    size = max(1, len(losses) // 50)
    groups = [losses[i : i + size] for i in range(0, len(losses), size)]
    means = [[value for _, value in group if math.isfinite(value)] for group in groups]
    left.plot([group[-1][0] for group in groups], [sum(m) / len(m) if m else math.nan for m in means])
    left.set(xlabel="step", ylabel=f"loss, mean of {size} steps")
    for axes, name, style in ((right, "psnr", "o-C0"), (right.twinx(), "ssim", "s--C1")):
        scored = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        axes.plot([step for step, _ in scored], [value for _, value in scored], style, markersize=3)
        axes.set_ylabel(f"{name.upper()} of the validation" + (", dB" if name == "psnr" else ""), color=style[-2:])
    right.set_xlabel("step")
    figure.savefig(folder / "plot.png", dpi=100)
    return folder / "plot.png"
