"""Attention to pooled keys against exact attention: difference of fused tokens and of pixels, and time.

python benchmarks/pooled.py TOKENS [--pooled 2 16] [--rows 32]

The image is the bundled photograph, repeated and mirrored, under haze that does not repeat, in 32 x 32 tiles of the
bundled weights, which are 65,536 tokens. To save time, fewer rows of tiles may be encoded, whose tokens then repeat.
TOKENS is a folder, in which an interrupted encoding goes on. Pixels are those of windows around borders between blocks,
which see different keys exactly.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import save_result

from dehazexl.engine.decode import decode
from dehazexl.engine.dehaze import open_tokens, prepare
from dehazexl.engine.encode import encode
from dehazexl.engine.fuse import fuse
from dehazexl.engine.job import Job
from dehazexl.engine.tokens import TokenStore
from dehazexl.image.grid import SIDE, Window
from dehazexl.model.weights import load_model
from dehazexl.synthesis.large_scene import large_scene

TILES = 32
"""Tiles along a side of the image."""

HALF = 256
"""Pixels from the middle of a window to its sides."""


def fused(job: Job, tokens: np.ndarray, valid: np.ndarray) -> tuple[TokenStore, float, float]:
    """Return a store of fused tokens, and seconds of the clock and of the processor."""
    store = open_tokens(job)
    store.put(job.grid.tiles, tokens, valid)
    wall, processor = time.perf_counter(), time.process_time()
    for _ in fuse(job, store):
        pass
    return store, time.perf_counter() - wall, time.process_time() - processor


def windows(job: Job) -> list[Window]:
    """Return windows around the borders between the blocks of the first row."""
    block = job.grid.block * job.grid.stride
    return [Window(0, 2 * HALF, x - HALF, x + HALF) for x in range(block, job.grid.width - HALF, block)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokens", type=Path, metavar="TOKENS")
    parser.add_argument("--pooled", type=int, nargs="+", default=[2, 16])
    parser.add_argument("--rows", type=int, default=TILES, help="a divisor of 32")
    args = parser.parse_args()
    model, scene = load_model("compact", device="cpu"), large_scene()
    side = (TILES - 1) * (model.spec.tile - model.spec.overlap) + model.spec.tile
    image = replace(scene, levels=(scene.levels[0].astype(np.float32),))  # so that the output is not rounded
    job = prepare(image.cropped(Window(0, side, 0, side)), model, model.spec.overlap, value_range=(0, 255))
    encoded = open_tokens(job, args.tokens)
    first = Window(0, args.rows, 0, TILES)
    for _ in encode(job, encoded):
        if encoded.done(first):
            break
    tokens, valid = (np.concatenate([each] * (TILES // args.rows)) for each in encoded.get(first))
    store, wall, processor = fused(job, tokens, valid)
    width = job.model.spec.widths[-1]
    features = store.get_fused(job.grid.tiles)[..., :width].astype(np.float32)
    pixels = [decode(job, store, window) for window in windows(job)]
    rows = [{"context": "all", "seconds": round(wall, 2), "cpu_seconds": round(processor, 2)}]
    for square in args.pooled:
        other = replace(job, pooled=square)
        store, wall, processor = fused(other, tokens, valid)
        difference = np.abs(store.get_fused(job.grid.tiles)[..., :width] - features)
        found = [decode(other, store, window) for window in windows(job)]
        errors = np.stack([np.abs(a.astype(float) - b) for a, b in zip(found, pixels, strict=True)])
        rows.append(
            {
                "context": f"pooled:{square}",
                "seconds": round(wall, 2),
                "cpu_seconds": round(processor, 2),
                "fused_max": float(f"{difference.max():.3g}"),
                "fused_mean": float(f"{difference.mean():.3g}"),
                "psnr_db": round(20 * np.log10(255 / np.sqrt(np.square(errors).mean())), 1),
                "pixels_max_of_255": float(f"{errors.max():.3g}"),
            }
        )
    save_result(
        "pooled",
        weights="compact",
        height=job.grid.height,
        width=job.grid.width,
        tokens=job.grid.count * SIDE**2,
        keys=job.grid.count * (SIDE // job.model.spec.context_pool) ** 2,
        tiles_of_a_block=job.grid.block**2,
        fused_std=float(f"{features.std():.3g}"),
        rows_of_tiles_encoded=args.rows,
        windows=len(pixels),
        contexts=rows,
    )


if __name__ == "__main__":
    main()
