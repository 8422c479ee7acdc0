"""Whole runs of `dehazexl run` on uint8 Zarrs of growing size: time, memory over all processes, and disk.

Sizes that are in ``results/scale.json`` are not run again; a run that was stopped goes on. Writes that file,
``docs/scale.png`` and the table of ``docs/scale.md``.

python benchmarks/scale.py [--sizes 4096 8192 16384 32768] [--weights compact] [--workers N] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from machine import RESULTS, machine, save_result

from dehazexl.cli.leftovers import size as bytes_of
from dehazexl.engine.estimate import total_memory
from dehazexl.io.unfinished import Unfinished

SIZES = (4096, 8192, 16384, 32768)
STAGES = ("start", "encode", "fuse", "decode", "finish")
BLOCK, EVERY, EVERY_DISK = 1024, 0.2, 5.0
PAUSE = 60
"""Seconds between two looks beyond which the run was paused (SIGSTOP), which does not count."""
DOCS = Path(__file__).parent.parent / "docs"
MARKS = "<!-- measured by benchmarks/scale.py -->\n", "<!-- to here -->"


def make(path: Path, side: int) -> None:
    """Write a square Zarr ``(y, x, 3)`` of smooth colors and noise, block by block."""
    if path.exists():
        return
    part, rng = path.with_name(f"{path.name}.making"), np.random.default_rng(0)
    texture = rng.integers(0, 60, (BLOCK, BLOCK, 3), np.uint8)
    array = zarr.create_array(
        part, shape=(side, side, 3), chunks=(BLOCK // 2, BLOCK // 2, 3), dtype="uint8", overwrite=True
    )
    for top in range(0, side, BLOCK):
        for left in range(0, side, BLOCK):
            y, x = np.ogrid[top : min(side, top + BLOCK), left : min(side, left + BLOCK)]
            smooth = 60 + 50 * (np.sin(y / 3000) * np.cos(x / 2000) + 1)
            array[y[0, 0] : y[-1, 0] + 1, x[0, 0] : x[0, -1] + 1] = (
                texture[: len(y), : x.shape[1]] + smooth.astype(np.uint8)[..., None]
            )
    part.rename(path)


class Watch:
    """Memory of a process and all below it, disk of the unfinished output, and seconds of each stage.

    Attributes
    ----------
    notes
        File of what was seen, from which a later watch of the same run goes on.
    memory, processes, disk
        The largest sum of resident bytes, number of processes, and bytes in the folder of the unfinished output.
    seconds
        Seconds of each stage.
    """

    def __init__(self, process: subprocess.Popen[Any], output: Path, notes: Path) -> None:
        self.notes = notes
        before = json.loads(notes.read_text()) if notes.exists() else {}
        self.memory, self.processes, self.disk = (before.get(name, 0) for name in ("memory", "processes", "disk"))
        self.seconds: dict[str, float] = defaultdict(float, before.get("seconds", {}))
        self._root, self._unfinished, self._looked = psutil.Process(process.pid), Unfinished(output), 0.0
        self._stage = "start"

    def look(self, seconds: float) -> None:
        """Look once; `seconds` have passed since the last look."""
        found = []
        for each in [self._root, *self._root.children(recursive=True)]:
            try:
                found.append(each.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        self.memory, self.processes = max(self.memory, sum(found)), max(self.processes, len(found))
        if (progress := self._unfinished.progress) is not None:
            self._stage = progress.stage
        self.seconds[self._stage] += seconds
        if time.monotonic() - self._looked > EVERY_DISK and self._unfinished.folder.exists():
            self.disk, self._looked = max(self.disk, bytes_of(self._unfinished.folder)), time.monotonic()
            noted = {"memory": self.memory, "processes": self.processes, "disk": self.disk, "seconds": self.seconds}
            self.notes.write_text(json.dumps(noted))


def measure(folder: Path, side: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run the command line once on an image of a size."""
    source, target = folder / f"scale-{side}.zarr", folder / f"scale-{side}-clear.ome.zarr"
    make(source, side)
    notes = folder / f"scale-{side}.json"  # of a run that was stopped
    options = ["--weights", args.weights, "--dtype", args.dtype, "--device", args.device, "--overwrite"]
    options += [] if notes.exists() else ["--fresh"]
    options += ["--workers", str(args.workers)] if args.workers else []
    last = time.perf_counter()
    command = [sys.executable, "-m", "dehazexl", "run", str(source), str(target), *options]
    with subprocess.Popen(command) as process:
        watch = Watch(process, target, notes)
        while process.poll() is None:
            now = time.perf_counter()
            watch.look(now - last if now - last < PAUSE else 0)
            last = now
            time.sleep(EVERY)
        seconds = sum(watch.seconds.values())
    if process.returncode:
        raise SystemExit(f"dehazexl run failed at {side} x {side}")
    row = {
        **setting(side, args),
        "seconds": round(seconds, 1),
        "mpixel_per_s": round(side * side / 1e6 / seconds, 3),
        "stages": {stage: round(watch.seconds[stage], 1) for stage in STAGES},
        "peak_rss_gb": round(watch.memory / 1e9, 3),
        "processes": watch.processes,
        "input_gb": round(bytes_of(source) / 1e9, 3),
        "output_gb": round(bytes_of(target) / 1e9, 3),
        "part_gb": round(watch.disk / 1e9, 3),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round((total_memory() or 0) / 1e9, 1),
        **{name: value for name, value in machine().items() if name in ("date", "processor", "gpu", "torch")},
    }
    notes.unlink(missing_ok=True)
    for path in (source, target):
        shutil.rmtree(path)
    return row


def setting(side: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return what tells one run from another."""
    return {
        "side": side,
        "weights": args.weights,
        "dtype": args.dtype,
        "device": args.device,
        "workers": args.workers,
    }


def finished() -> list[dict[str, Any]]:
    """Return the runs that were measured before."""
    path = RESULTS / "scale.json"
    return list(json.loads(path.read_text())["runs"]) if path.exists() else []


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw time by stage, and memory and disk, over the number of pixels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pixels = [row["side"] ** 2 / 1e6 for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for stage in STAGES:
        left.plot(pixels, [max(row["stages"][stage], 0.1) for row in rows], "o-", label=stage)
    left.plot(pixels, [row["seconds"] for row in rows], "ko--", label="all")
    left.set(ylabel="seconds", title=f"{rows[0]['weights']}, {rows[0]['cores']} cores")
    for name, label in (("peak_rss_gb", "memory"), ("part_gb", "unfinished work"), ("output_gb", "output")):
        right.plot(pixels, [row[name] for row in rows], "o-", label=label)
    right.axhline(2, color="gray", linestyle=":")
    right.set(ylabel="GB", title="memory over all processes, and disk")
    for axes in (left, right):
        axes.set(xlabel="megapixels", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table of Markdown; sizes that were not run say so."""
    lines = [
        "| image | weights | seconds | Mpixel/s | encode, fuse, decode, finish (s) | memory (GB) | unfinished work (GB)"
        " | output (GB) | measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for side in sorted({*SIZES, *(row["side"] for row in rows)}):
        found = [row for row in rows if row["side"] == side]
        for row in found:
            stages = ", ".join(f"{row['stages'][stage]:,.0f}" for stage in STAGES[1:])
            workers = f", {row['workers']} workers" if row["workers"] else ""
            lines.append(
                f"| {side} x {side} | {row['weights']}, {row['dtype']}{workers} | {row['seconds']:,.0f} | "
                f"{row['mpixel_per_s']:.2f} | {stages} | {row['peak_rss_gb']:.2f} | {row['part_gb']:.2f} | "
                f"{row['output_gb']:.2f} | {row['date']}, {row['cores']} cores |"
            )
        if not found:
            lines.append(f"| {side} x {side} | | | | | | | | **not measured yet** |")
    return "\n".join(lines) + "\n"


def report(rows: list[dict[str, Any]]) -> None:
    """Save the runs, and write what is drawn from them."""
    save_result("scale", runs=rows)
    first = setting(rows[0]["side"], argparse.Namespace(**rows[0]))
    same = [row for row in rows if setting(first["side"], argparse.Namespace(**row)) == first]
    plot(sorted(same, key=lambda row: row["side"]), DOCS / "scale.png")
    page = DOCS / "scale.md"
    if page.exists():
        before, _, rest = page.read_text().partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        page.write_text(f"{before}{MARKS[0]}\n{table(rows)}\n{end}{after}")


def main() -> None:
    """Measure the sizes that are not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="workers of a dask cluster; 0 for none")
    parser.add_argument("--folder", type=Path, default=Path())
    args = parser.parse_args()
    rows = finished()
    for side in args.sizes:
        wanted = setting(side, args)
        if not any(wanted.items() <= row.items() for row in rows):
            rows.append(measure(args.folder, side, args))
            report(rows)  # after each run, because runs are long
    if rows:
        report(rows)


if __name__ == "__main__":
    main()
