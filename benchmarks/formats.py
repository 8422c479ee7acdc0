"""Opening and reading of a COG (JPEG, deflate, zstd, JPEG with a mask) before and after GDAL became its reader.

    git worktree add ../before b63535a
    python benchmarks/formats.py --before ../before --side 16384

Each file is opened, then each of its chunks is read once, in 1, 2 and 4 threads; every measurement is a process of its
own, with the package of one checkout. Measurements that are in the result already are not repeated (``--again`` does),
so a benchmark that was stopped goes on. Prints a table and saves it as ``benchmarks/results/formats.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
KINDS: dict[str, dict[str, Any]] = {
    "jpeg": {"compress": "JPEG", "quality": 85},
    "deflate": {"compress": "DEFLATE", "predictor": 2},
    "zstd": {"compress": "ZSTD", "predictor": 2},
    "jpeg-mask": {"compress": "JPEG", "quality": 85},
}
ROWS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="checkout of the package that is compared with this one")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--folder", type=Path, default=Path(".run/formats"), help="folder of the files that are read")
    parser.add_argument("--again", action="store_true", help="repeat the measurements")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "THREADS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), int(args.measure[1]))))
        return
    sys.path.insert(0, str(HERE))
    from machine import RESULTS, save_result

    stored = RESULTS / "formats.json"
    cases = json.loads(stored.read_text())["cases"] if stored.exists() else {}
    checkouts = {"after": HERE.parent} | ({"before": args.before.resolve()} if args.before else {})
    for kind in args.kinds:
        path = args.folder / f"{args.side}-{kind}.tif"
        if not path.exists():
            make(path, args.side, kind)
        for name, checkout in checkouts.items():
            for threads in args.threads:
                case = cases.setdefault(f"{args.side} {kind} {threads}", {})
                if args.again or name not in case:
                    case[name] = run(checkout, path, threads)
                    save_result("formats", cases=cases)
    print(table(cases))


def make(path: Path, side: int, kind: str) -> None:
    """Write a COG of a scene with texture, by way of a plain TIFF, in strips."""
    import rasterio
    import rasterio.shutil
    from rasterio.windows import Window

    path.parent.mkdir(parents=True, exist_ok=True)
    plain, part = path.with_suffix(".plain"), path.with_suffix(".part")
    options = {"width": side, "height": side, "count": 3, "dtype": "uint8", "photometric": "RGB", "tiled": True}
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5.6e6)}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True, GDAL_NUM_THREADS="ALL_CPUS"):
        with rasterio.open(plain, "w", driver="GTiff", compress="lzw", BIGTIFF="YES", **options, **place) as file:
            for y, strip in strips(side):
                window = Window(0, y, side, strip.shape[1])
                file.write(strip, window=window)
                if kind == "jpeg-mask":
                    file.write_mask(np.add.outer(np.arange(y, y + len(strip[0])), np.arange(side)) > side // 3, window)
        rasterio.shutil.copy(plain, part, driver="COG", BIGTIFF="YES", **KINDS[kind])
    plain.unlink()
    part.rename(path)


def strips(side: int) -> Iterator[tuple[int, Any]]:
    """Yield rows of the scene: waves, and noise that is the same in every strip."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 6, (3, ROWS, side)).astype(np.float32)
    x = np.arange(side, dtype=np.float32)
    for y in range(0, side, ROWS):
        rows = np.arange(y, min(y + ROWS, side), dtype=np.float32)[:, None]
        wave = [110 + 50 * np.sin(x / (90 + 40 * c)) * np.cos(rows / (130 - 20 * c)) for c in range(3)]
        yield y, np.clip(np.stack(wave) + noise[:, : len(rows)], 0, 255).astype(np.uint8)


def run(checkout: Path, path: Path, threads: int) -> dict[str, Any]:
    """Measure in a process with the package of a checkout."""
    environment = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--measure", str(path), str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    result: dict[str, Any] = json.loads(done.stdout)
    assert Path(result.pop("package")).is_relative_to(checkout), result
    return result


def measure(path: Path, threads: int) -> dict[str, Any]:
    """Open a file and read its chunks; times in seconds, peaks of memory in MB above that before."""
    import dask
    import rasterio

    import dehazexl
    from dehazexl.io.open import open_image

    open_image(np.zeros((8, 8, 3), np.uint8))  # imports what opening imports
    with rasterio.Env():  # half a second, once in a process
        pass
    before, started = reset_peak(), time.perf_counter()
    image = open_image(path)
    opened = time.perf_counter() - started
    level, at_opening = image.levels[0], peak() - before
    (level,) = dask.optimize(level)
    blocks = [level.blocks[row, col] for row in range(level.numblocks[0]) for col in range(level.numblocks[1])]
    before, started = reset_peak(), time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(lambda block: int(block.compute(scheduler="synchronous")[::64, ::64].sum()), blocks))
    seconds = time.perf_counter() - started
    return {
        "package": str(Path(dehazexl.__file__)), "checksum": total, "levels": len(image.levels),
        "bands": level.shape[2], "open_seconds": round(opened, 3), "open_mb": round(at_opening, 1),
        "pass_seconds": round(seconds, 2), "pass_mb": round(peak() - before, 1),
        "megapixels_per_second": round(level.shape[0] * level.shape[1] / seconds / 1e6, 1),
    }  # fmt: skip


def reset_peak() -> float:
    """Reset the measurement of peak memory; return the memory in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak() -> float:
    """Return the peak memory in MB since it was reset."""
    return status("VmHWM")


def status(name: str) -> float:
    """Return a line of the state of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def table(cases: dict[str, Any]) -> str:
    """Format the cases, before and after side by side."""
    names = ("open_seconds", "open_mb", "pass_seconds", "pass_mb", "megapixels_per_second")
    lines = [
        f"{'side kind threads':24}" + "".join(f"{name.replace('megapixels_per_second', 'MP/s'):>20}" for name in names)
    ]
    for case, found in cases.items():
        cells = [" -> ".join(str(found.get(when, {}).get(name, "-")) for when in ("before", "after")) for name in names]
        lines.append(f"{case:24}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
