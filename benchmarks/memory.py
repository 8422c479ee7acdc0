"""Peak memory of `dehazexl run` on large images, as measured by the operating system.

python benchmarks/memory.py [--sizes 4096x16384 16384x16384] [--weights compact]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from machine import save_result

from dehazexl.image.grid import SIDE, TileGrid
from dehazexl.model.weights import load_model

TILE = 512


def make(path: Path, height: int, width: int) -> None:
    """Write a tiled uint8 RGB TIFF of smooth colors and noise, tile by tile."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 60, (TILE, TILE, 3), np.uint8)

    def tiles() -> Any:
        for y in range(0, height, TILE):
            for x in range(0, width, TILE):
                yield texture + np.uint8(60 + 100 * (np.sin(y / 3000) * np.cos(x / 2000) + 1) / 2)

    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        tif.write(tiles(), shape=(height, width, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb")


def run(*words: str) -> tuple[float, float]:
    """Run a command of `dehazexl`; return peak resident memory in GB, as measured by the kernel, and seconds."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "dehazexl", *words])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"dehazexl {words[0]} failed")
    return usage.ru_maxrss * 1024 / 1e9, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["4096x16384", "16384x16384"], help="HEIGHTxWIDTH")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    rows = []
    spec = load_model(args.weights, device="cpu").spec
    token = spec.channels * (4 if args.dtype == "float32" else 2)
    for size in args.sizes:
        height, width = map(int, size.split("x"))
        with tempfile.TemporaryDirectory(dir=".") as folder:
            source = Path(folder) / "hazy.tif"
            make(source, height, width)
            options = ["--weights", args.weights, "--device", "cpu", "--dtype", args.dtype]
            peak, seconds = run("run", str(source), str(Path(folder) / "clear.ome.zarr"), *options)
        tiles = TileGrid(height, width, spec.overlap, spec.tile).count
        rows.append(
            {
                "height": height,
                "width": width,
                "tiles": tiles,
                "dtype": args.dtype,
                "tokens_gb": round(tiles * SIDE**2 * token / 1e9, 3),
                "peak_rss_gb": round(peak, 3),
                "seconds": round(seconds, 1),
            }
        )
        # Saved after each run, because runs are long.
        save_result("memory", runs=rows)


if __name__ == "__main__":
    main()
