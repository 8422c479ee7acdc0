"""Time and peak memory of `dehazexl explain`, as measured by the operating system.

python benchmarks/explain.py [--sizes 4096x4096 8192x8192] [--weights compact] [--steps 2]

Each point of the path costs the same, so few are enough: the seconds of one are those of a run with `--steps` points
minus those of a run with half as many, by the number of points between. Limits: 4096 x 4096 within 4 GB, 8192 x 8192
within 8 GB.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from machine import save_result
from memory import make, run

LIMITS = {(4096, 4096): 4.0, (8192, 8192): 8.0}
"""Gigabytes of resident memory at most, by height and width."""

WINDOW = 256
"""Side of the window in pixels, in the middle of the image."""


def explain(
    source: Path, out: Path, height: int, width: int, weights: str, steps: int, baseline: str
) -> tuple[float, float]:
    """Explain a window in the middle of an image; return peak memory and seconds, see `memory.run`."""
    y, x = (height - WINDOW) // 2, (width - WINDOW) // 2
    window = f"{y}:{y + WINDOW},{x}:{x + WINDOW}"
    options = ["--weights", weights, "--steps", str(steps), "--baseline", baseline, "--no-curves", "--device", "cpu"]
    return run("explain", str(source), "--window", window, "--out", str(out), *options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["4096x4096", "8192x8192"], help="HEIGHTxWIDTH")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--baseline", default="blur", choices=["blur", "black", "dehazed"])
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    fewer, rows = max(2, args.steps // 2), []
    if args.steps <= fewer:
        parser.error("--steps must be at least 3")
    for size in args.sizes:
        height, width = map(int, size.split("x"))
        with tempfile.TemporaryDirectory(dir=".") as folder:
            source = Path(folder) / "hazy.tif"
            make(source, height, width)
            peaks, seconds = zip(
                *(
                    explain(source, Path(folder) / f"maps{steps}", height, width, args.weights, steps, args.baseline)
                    for steps in (fewer, args.steps)
                ),
                strict=True,
            )
        limit = LIMITS.get((height, width))
        rows.append(
            {
                "height": height,
                "width": width,
                "weights": args.weights,
                "baseline": args.baseline,
                "peak_rss_gb": round(max(peaks), 3),
                "limit_gb": limit,
                "within": None if limit is None else max(peaks) <= limit,
                "seconds_a_point": round((seconds[1] - seconds[0]) / (args.steps - fewer), 1),
                "seconds_before": round(seconds[0] - fewer * (seconds[1] - seconds[0]) / (args.steps - fewer), 1),
            }
        )
        # Saved after each run, because runs are long.
        save_result("explain", runs=rows)


if __name__ == "__main__":
    main()
