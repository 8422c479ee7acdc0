"""Attention to pooled keys against exact attention: difference of fused tokens and of pixels, and time.

python benchmarks/pooled.py TOKENS [--pooled 1 2 4 8]

The image is the bundled photograph, repeated and mirrored, under haze that does not repeat: 8192 x 8192 pixels. Its
tokens, four times, are the 65,536 tokens of an image of 16384 x 16384 pixels with the bundled weights. TOKENS is a
folder, in which an interrupted encoding goes on. Pixels are those of windows around corners of blocks, where four
blocks meet that see different keys exactly.
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
from dehazexl.image.grid import BLOCK, SIDE, Window
from dehazexl.model.weights import load_model
from dehazexl.synthesis.large_scene import large_scene

PART = 8192
"""Pixels: side of the part of the image whose tokens are repeated."""

HALF = 512
"""Pixels from the middle of a window to its sides."""


def fused(job: Job, tokens: np.ndarray, valid: np.ndarray) -> tuple[TokenStore, float, float]:
    """Return a store of fused tokens, and seconds of the clock and of the processor."""
    store = open_tokens(job)
    store.put(job.grid.tiles, tokens, valid)
    wall, processor = time.perf_counter(), time.process_time()
    for _ in fuse(job, store):
        pass
    return store, time.perf_counter() - wall, time.process_time() - processor


def windows() -> list[Window]:
    """Return windows around four corners of blocks."""
    corners = range(BLOCK, PART, 2 * BLOCK)
    return [Window(y - HALF, y + HALF, x - HALF, x + HALF) for y in corners for x in corners]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokens", type=Path, metavar="TOKENS")
    parser.add_argument("--pooled", type=int, nargs="+", default=[1, 2, 4, 8])
    args = parser.parse_args()
    scene = large_scene()
    image = replace(scene, levels=(scene.levels[0].astype(np.float32),))  # so that the output is not rounded
    model = load_model("compact", device="cpu")
    part = prepare(image.cropped(Window(0, PART, 0, PART)), model, value_range=(0, 255))
    encoded = open_tokens(part, args.tokens)
    for _ in encode(part, encoded):
        pass
    tokens, valid = (np.tile(each, (2, 2, *[1] * (each.ndim - 2))) for each in encoded.get(part.grid.tiles))
    job = prepare(image, model, value_range=(0, 255))
    assert job.grid.tiles == Window(0, tokens.shape[0], 0, tokens.shape[1])
    store, wall, processor = fused(job, tokens, valid)
    width = job.model.spec.widths[-1]
    features = store.get_fused(job.grid.tiles)[..., :width]
    pixels = [decode(job, store, window) for window in windows()]
    rows = [{"context": "all", "seconds": round(wall, 2), "cpu_seconds": round(processor, 2)}]
    for side in args.pooled:
        other = replace(job, pooled=side)
        store, wall, processor = fused(other, tokens, valid)
        difference = np.abs(store.get_fused(job.grid.tiles)[..., :width] - features)
        found = [decode(other, store, window) for window in windows()]
        errors = np.stack([np.abs(a.astype(float) - b) for a, b in zip(found, pixels, strict=True)])
        rows.append(
            {
                "context": f"pooled:{side}",
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
        fused_std=float(f"{features.std():.3g}"),
        windows=len(pixels),
        contexts=rows,
    )


if __name__ == "__main__":
    main()
