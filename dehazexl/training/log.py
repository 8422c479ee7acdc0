"""The log of a training: a CSV file that a kill at any moment leaves readable, and its curves."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from dehazexl.io.disk import atomic_write

COLUMNS = ["step", "seconds", "waited", "loss", "lr", "skipped", "psnr", "ssim"]
"""Of ``log.csv``, in order."""


def log(path: Path, report: dict[str, float]) -> None:
    """Append a line to the CSV log."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(report)


def read_log(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV log, none if there is no such file; a row that was cut short by a kill is left out."""
    if not path.exists():
        return []
    text = path.read_text(errors="replace").replace("\0", "")
    return [row for row in csv.DictReader(io.StringIO(text)) if whole(row)]


def whole(row: dict[str, str]) -> bool:
    """Tell whether a row of the log holds numbers, as many as it should."""
    try:
        return len([float(row[name]) for name in COLUMNS if row[name]]) >= COLUMNS.index("psnr")
    except (KeyError, TypeError, ValueError):
        return False


def forget_after(path: Path, step: int) -> None:
    """Drop what a log says of steps that the checkpoint does not know of: they are made again."""
    if not path.exists():
        return
    kept = [row for row in read_log(path) if int(row["step"]) <= step]
    with atomic_write(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)


def plot(folder: Path) -> Path:
    """Draw a run's log: loss, smoothed over steps, and the scores of its validations, as ``plot.png``.

    Raises
    ------
    ImportError
        Without matplotlib, which ``pip install napari-dehazexl[train]`` brings.
    """
    from matplotlib.figure import Figure

    rows = read_log(folder / "log.csv")
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses_ = [(int(row["step"]), float(row["loss"])) for row in rows]
    size = max(1, len(losses_) // 50)
    groups = [losses_[i : i + size] for i in range(0, len(losses_), size)]
    means = [[value for _, value in group if math.isfinite(value)] for group in groups]
    left.plot([group[-1][0] for group in groups], [sum(m) / len(m) if m else math.nan for m in means])
    left.set(xlabel="step", ylabel=f"loss, mean of {size} steps")
    for axes, name, style in ((right, "psnr", "o-C0"), (right.twinx(), "ssim", "s--C1")):
        scored = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        axes.plot([at for at, _ in scored], [value for _, value in scored], style, markersize=3)
        axes.set_ylabel(f"{name.upper()} of the validation" + (", dB" if name == "psnr" else ""), color=style[-2:])
    right.set_xlabel("step")
    figure.savefig(folder / "plot.png", dpi=100)
    return folder / "plot.png"
