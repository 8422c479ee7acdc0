"""`dehazexl run --workers` against the plain run: seconds, overhead, equality, and workers that are killed.

Workers share the cores; each is compared with a plain run of as many threads, whose bits are to be the same. The
overhead is that over the plain run on all cores.

python benchmarks/cluster.py [--size 8192x8192] [--workers 1 2] [--every 20]
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zarr
from dask.system import CPU_COUNT
from machine import save_result

from dehazexl import to_zarr

BLOCK = 2048


def make(path: Path, height: int, width: int) -> None:
    """Write a uint8 Zarr of smooth colors and noise."""
    texture = np.random.default_rng(0).integers(0, 60, (height, width, 1), np.uint8)
    y, x = np.ogrid[:height, :width]
    smooth = 60 + 100 * (np.sin(y / 3000) * np.cos(x / 2000) + 1) / 2
    to_zarr(texture + smooth.astype(np.uint8)[..., None] + np.arange(0, 30, 10, np.uint8), path)


def run(source: Path, target: Path, threads: int, every: float | None, *options: str) -> dict[str, Any]:
    """Run the command line with so many threads a process, and kill a worker every so many seconds.

    Returns
    -------
    dict
        Options, threads, seconds of the process, seconds from opening the image to the last byte, and killed workers.
    """
    command = [sys.executable, "-m", "dehazexl", "run", str(source), str(target), "--device", "cpu", *options]
    killed, start = 0, time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        while process.poll() is None:
            try:
                process.wait(every)
            except subprocess.TimeoutExpired:
                killed += kill_worker(process.pid)
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        raise SystemExit("dehazexl run failed")
    work = re.search(r"in ([\d.]+) s", said)
    assert work is not None
    return {
        "options": list(options),
        "threads": threads,
        "seconds": round(time.perf_counter() - start, 1),
        "seconds_without_start": float(work[1]),
        "killed": killed,
    }


def kill_worker(pid: int) -> int:
    """Kill one of the worker processes of a run; return how many were killed."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:
            continue
    if not found:
        return 0
    os.kill(random.choice(found), signal.SIGKILL)
    return 1


def equal(one: Path, other: Path) -> bool:
    """Compare the finest levels of two OME-Zarrs."""
    a, b = (zarr.open_group(path, mode="r")["0"] for path in (one, other))
    starts = [(y, x) for y in range(0, a.shape[1], BLOCK) for x in range(0, a.shape[2], BLOCK)]
    return all(
        np.array_equal(a[:, y : y + BLOCK, x : x + BLOCK], b[:, y : y + BLOCK, x : x + BLOCK]) for y, x in starts
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="8192x8192", help="HEIGHTxWIDTH")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--every", type=float, default=20, help="seconds between two kills of a worker; 0: no kills")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    random.seed(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder, common = Path(name), ["--weights", args.weights, "--dtype", args.dtype]
        make(folder / "in.zarr", height, width)
        alone: dict[int, dict[str, Any]] = {}
        kills = [(workers, None) for workers in args.workers]
        kills += [(args.workers[-1], args.every)] if args.every else []
        for number, (workers, every) in enumerate(kills):
            threads = max(1, CPU_COUNT // workers)  # bits depend on it
            plain = folder / f"plain-{threads}.zarr"
            if threads not in alone:
                alone[threads] = run(folder / "in.zarr", plain, threads, None, *common)
                rows.append(alone[threads])
            target = folder / f"out{number}.zarr"
            row = run(folder / "in.zarr", target, threads, every, *common, "--workers", str(workers))
            overhead = row["seconds_without_start"] / alone[max(alone)]["seconds_without_start"] - 1
            rows.append({**row, "overhead": round(overhead, 3), "equal": equal(target, plain)})
            # Saved after each run, because runs are long.
            save_result("cluster", height=height, width=width, every=args.every, runs=rows)


if __name__ == "__main__":
    main()
