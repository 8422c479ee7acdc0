"""Time and peak memory of `dehazexl explain`, as measured by the operating system.

    python benchmarks/explain.py [--sizes 1024 2048 4096 8192] [--weights compact] [--baseline dehazed] [--steps 2]
    python benchmarks/explain.py --table     # prints what was measured for docs/explain.md

A window of 256 x 256 pixels in the middle of a square image is explained on the CPU. Each point of the path costs the
same, so few are enough: the seconds of one are those between two notes of the progress on disk. ``seconds_more`` are
those of everything else: the baseline, both ends, and the files. Limits: 4096 x 4096 within 4 GB, 8192 x 8192 within
8 GB. Sizes that are in ``results/explain.json`` with the same settings are not measured again (``--again`` does).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from machine import RESULTS, machine, save_result
from memory import make

LIMITS = {4096: 4.0, 8192: 8.0}
"""Gigabytes of resident memory at most, by the side of the image."""

WINDOW = 256
"""Side of the window in pixels."""

EVERY = 0.05
"""Seconds between two looks at the progress."""


def explain(source: Path, out: Path, side: int, weights: str, steps: int, baseline: str) -> dict[str, Any]:
    """Explain a window in the middle of an image; return its row of the table."""
    first = (side - WINDOW) // 2
    window = f"{first}:{first + WINDOW},{first}:{first + WINDOW}"
    options = ["--weights", weights, "--steps", str(steps), "--baseline", baseline, "--no-curves", "--device", "cpu"]
    words = ["explain", str(source), "--window", window, "--out", str(out), *options]
    start, moments = time.perf_counter(), [0.0]
    process = subprocess.Popen([sys.executable, "-m", "dehazexl", *words])
    state = out.with_name(f".{out.name}.part") / "attribution" / "state.json"
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        with suppress(FileNotFoundError):  # not yet, or no more
            done = json.loads(state.read_text())["steps"]
            moments += [time.perf_counter()] * (done + 1 - len(moments))
        time.sleep(EVERY)
    if status:
        raise SystemExit("dehazexl explain failed")
    seconds = time.perf_counter() - start
    point = (moments[-1] - moments[1]) / (steps - 1)
    peak, limit = usage.ru_maxrss * 1024 / 1e9, LIMITS.get(side)
    return {
        "peak_rss_gb": round(peak, 3),
        "limit_gb": limit,
        "within": None if limit is None else peak <= limit,
        "seconds_a_point": round(point, 1),
        "seconds_more": round(seconds - steps * point, 1),
    }


def measured() -> list[dict[str, Any]]:
    """Return the rows of the table so far."""
    path = RESULTS / "explain.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    yield "| image | weights, baseline | peak memory | limit | a point | 100 points | baseline, ends, files |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        limit = "" if row["limit_gb"] is None else f"{row['limit_gb']:g} GB"
        point, more, side = row["seconds_a_point"], row["seconds_more"], row["side"]
        yield (
            f"| {side} x {side} | `{row['weights']}`, `{row['baseline']}` | {row['peak_rss_gb']:.2f} GB | {limit} "
            f"| {point:.0f} s | {100 * point / 3600:.1f} h | {more:.0f} s |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1024, 2048, 4096, 8192], help="sides in pixels")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--baseline", default="dehazed", choices=["blur", "black", "dehazed"])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    parser.add_argument("--table", action="store_true", help="print what was measured as Markdown, and measure nothing")
    args = parser.parse_args()
    if args.table:
        print("\n".join(table(measured())))
        return
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    rows = measured()
    for side in args.sizes:
        key = {"side": side, "weights": Path(args.weights).stem, "baseline": args.baseline, "steps": args.steps}
        same = [row for row in rows if key.items() <= row.items()]
        if same and not args.again:
            continue
        with tempfile.TemporaryDirectory(dir=".") as folder:
            source = Path(folder) / "hazy.tif"
            make(source, side, side)
            found = explain(source, Path(folder) / "maps", side, args.weights, args.steps, args.baseline)
        rows = [row for row in rows if row not in same] + [key | found | {"threads": machine()["threads"]}]
        # Saved after each run, because runs are long.
        save_result("explain", runs=sorted(rows, key=lambda row: (row["weights"], row["baseline"], row["side"])))


if __name__ == "__main__":
    main()
