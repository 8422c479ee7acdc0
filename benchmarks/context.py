"""What the global context brings: scores of a network whose tiles see all, some or none of the other tiles.

    python benchmarks/context.py IMAGES... [--weights compact] [--size 2048] [--count 30]

Synthetic haze of each kind, in file values and in linear light, is put on large clear images, which have to be held
out from the training of the weights. All tiles are encoded once for each; then their tokens are fused as asked:

    all          the tokens of all tiles, as the network does
    alone        those of each tile for itself
    neighbors    those of the tile and of the up to eight around it
    half         those of the left or of the right half of the image
    shuffled     those of all tiles, at the places of other tiles
    no overview  all, without the image shrunk to one tile (networks with an overview)

The context includes all numbers of the whole image that tokens vote on, such as its airlight. Scores are those of
`dehazexl evaluate`. A score of an image is its mean over the kinds of haze; means over images come with 95 % confidence
intervals by bootstrap (10 000 resamples of images), as do the differences from ``all``, image by image.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from machine import save_result
from PIL import Image as Pillow

from dehazexl.engine.decode import decode
from dehazexl.engine.dehaze import open_tokens, prepare
from dehazexl.engine.encode import encode
from dehazexl.evaluation.paired import KINDS, Case, scores, synthesize_cases
from dehazexl.image.grid import SIDE, Window
from dehazexl.io.open import open_image
from dehazexl.model.fusing import TokenTensor, fuse
from dehazexl.model.network import grid_to_tiles, tiles_to_grid
from dehazexl.model.weights import load_model

if TYPE_CHECKING:
    from dehazexl.engine.job import Job
    from dehazexl.model import DehazeXL

LARGEST_ENLARGEMENT = 2.0
"""Smaller images than the crops are enlarged (Lanczos), by this factor at most; it is recorded."""

RESAMPLES = 10_000
SCORES = ("psnr", "ssim", "ciede2000", "seam")

Tokens = torch.Tensor
"""Tokens of tiles ``(rows, cols, 8, 8, channels)``."""


def fuse_part(job: Job, tokens: Tokens, part: Window, overview: bool = True) -> Tokens:
    """Fuse the tokens of a rectangle of tiles, at their places in the image."""
    model, own = job.model, tokens[part.y0 : part.y1, part.x0 : part.x1]
    rows, cols = own.shape[:2]
    joined = tiles_to_grid(own.flatten(0, 1), rows, cols)
    grid = TokenTensor(joined, model.spec.widths[-1], (part.y0 * SIDE, part.x0 * SIDE))
    grid.overlap = job.grid.overlap / model.spec.scale
    for _ in fuse(model.context, model.head, grid, model.encode_overview if overview and model.spec.overview else None):
        pass
    return grid_to_tiles(grid.tokens()).unflatten(0, (rows, cols))


def fuse_all(job: Job, tokens: Tokens) -> Tokens:
    return fuse_part(job, tokens, job.grid.tiles)


def fuse_alone(job: Job, tokens: Tokens) -> Tokens:
    return fuse_around(job, tokens, 0)


def fuse_neighbors(job: Job, tokens: Tokens) -> Tokens:
    return fuse_around(job, tokens, 1)


def fuse_around(job: Job, tokens: Tokens, reach: int) -> Tokens:
    """Fuse each tile with those at most `reach` tiles away."""
    fused = torch.empty_like(tokens)
    for row, col in job.grid.tiles.cells():
        part = Window(row, row + 1, col, col + 1).expand(reach).intersection(job.grid.tiles)
        fused[row, col] = fuse_part(job, tokens, part)[row - part.y0, col - part.x0]
    return fused


def fuse_halves(job: Job, tokens: Tokens) -> Tokens:
    middle = -(-job.grid.cols // 2)
    edges = [(0, middle), (middle, job.grid.cols)]
    return torch.cat([fuse_part(job, tokens, Window(0, job.grid.rows, a, b)) for a, b in edges if a < b], dim=1)


def fuse_shuffled(job: Job, tokens: Tokens) -> Tokens:
    order = torch.from_numpy(np.random.default_rng(0).permutation(job.grid.count))
    fused = fuse_all(job, tokens.flatten(0, 1)[order].view_as(tokens)).flatten(0, 1)
    return fused[order.argsort()].view_as(tokens)


def fuse_without_overview(job: Job, tokens: Tokens) -> Tokens:
    return fuse_part(job, tokens, job.grid.tiles, overview=False)


CONTEXTS: dict[str, Callable[[Job, Tokens], Tokens]] = {
    "all": fuse_all,
    "alone": fuse_alone,
    "neighbors": fuse_neighbors,
    "half": fuse_halves,
    "shuffled": fuse_shuffled,
    "no overview": fuse_without_overview,
}


def score_case(model: DehazeXL, case: Case) -> dict[str, dict[str, float]]:
    """Score one hazy image with each context."""
    job = prepare(case.hazy, model, value_range=(0, 1))
    encoded = open_tokens(job)
    for _ in encode(job, encoded):
        pass
    tokens = torch.from_numpy(encoded.tokens()[0]).to(model.device, model.dtype).unflatten(2, (SIDE, SIDE))
    found = {}
    for name, context in CONTEXTS.items():
        if name == "no overview" and not model.spec.overview:
            continue
        with torch.inference_mode():
            fused = context(job, tokens)
        store = open_tokens(job)
        store.put_fused(fused.flatten(2, 3).float().cpu().numpy().astype(job.token_dtype))
        out = decode(job, store, Window(0, job.grid.height, 0, job.grid.width))
        found[name] = scores(case, out, job.grid.overlap, job.grid.side)
    return found


def crops(sources: list[Path], size: int, count: int) -> Iterator[tuple[str, np.ndarray, float]]:
    """Yield name, center crop ``(size, size, 3)`` and enlargement of clear images, the largest first."""
    files = sorted(
        {file for source in sources for file in (source.rglob("*") if source.is_dir() else [source]) if file.is_file()}
    )
    files = [file for file in files if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif", ".tiff")]
    shapes = {file: open_image(file).levels[0].shape for file in files}
    large = [file for file in files if min(shapes[file][:2]) * LARGEST_ENLARGEMENT >= size]
    large.sort(key=lambda file: -min(shapes[file][:2]))
    for file in large[:count]:
        image = open_image(file)
        pixels = np.ascontiguousarray(image.levels[0][..., list(image.rgb)].compute())
        factor = max(1.0, size / min(pixels.shape[:2]))
        if factor > 1:
            width, height = (max(size, round(side * factor)) for side in (pixels.shape[1], pixels.shape[0]))
            pixels = np.asarray(Pillow.fromarray(pixels).resize((width, height), Pillow.Resampling.LANCZOS))
        y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
        yield f"{file.parent.name}/{file.name}", np.ascontiguousarray(pixels[y : y + size, x : x + size]), factor


def interval(values: np.ndarray) -> list[float]:
    """Return the mean of one value an image, and its 95 % confidence interval by bootstrap."""
    values = values[np.isfinite(values)]
    if not len(values):
        return []
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[drawn].mean(1), (2.5, 97.5))
    return [round(float(value), 4) for value in (values.mean(), low, high)]


def summarize(rows: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Return means and intervals of each score of each context, and of the differences from ``all``."""
    names = list(rows[0]["scores"])
    table = {name: {each: np.array([row["scores"][name][each] for row in rows]) for each in SCORES} for name in names}
    return {
        name: {each: interval(table[name][each]) for each in SCORES}
        | {f"{each} minus all": interval(table[name][each] - table["all"][each]) for each in SCORES if name != "all"}
        for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, help="clear images, or folders of them")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=2048, help="side of the crops in pixels")
    parser.add_argument("--count", type=int, default=30, help="number of images")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    args = parser.parse_args()
    model = load_model(args.weights, args.device, "float32")
    rows: list[dict] = []
    for number, (name, clear, factor) in enumerate(crops(args.images, args.size, args.count)):
        found = [
            score_case(model, case)
            for linear in (False, True)
            for case in synthesize_cases([(name, clear)], args.size, args.kinds, seed=7 + number, linear=linear)
        ]
        means = {
            context: {each: float(np.mean([case[context][each] for case in found])) for each in SCORES}
            for context in found[0]
        }
        rows.append({"image": name, "enlarged": round(factor, 3), "scores": means})
        settings = {"weights": args.weights, "size": args.size, "kinds": args.kinds}
        # Saved after each image, because runs are long.
        save_result("context", settings=settings, images=len(rows), summary=summarize(rows), rows=rows)


if __name__ == "__main__":
    main()
