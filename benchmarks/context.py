"""What the global context brings: scores of a network whose tiles see all, some or none of the other tiles.

    python benchmarks/context.py IMAGES [--weights compact] [--size 2048] [--cases 2] [--count N]
    python benchmarks/context.py --table     # prints the measured tables for docs/explain.md

Synthetic haze is put on large clear images that are held out from the training of the weights: those of whole sources,
see `weights/pack.py`, which also says how the veil of some is removed first. Each image gets some of the kinds of haze,
in turn in the values of the file and in linear light.
All tiles are encoded once for each case; then their tokens are fused as asked:

    all          the tokens of all tiles, as the network does
    alone        those of each tile for itself
    neighbors    those of the tile and of the up to eight around it
    half         those of the left or of the right half of the image
    shuffled     those of all tiles, at the places of other tiles
    no overview  all, without the image shrunk to one tile (networks with an overview)

The context includes all numbers of the whole image that tokens vote on, such as its airlight, and the overview, which
shows the part that is fused. Scores are those of `dehazexl evaluate`; ``hazy`` are those of the input. A score of an
image is its mean over the cases. Means over images come with 95 % confidence intervals by bootstrap (10 000 resamples),
as do the differences from ``all``, image by image. Images of one source show neighboring places, so ``by source`` has
the intervals of a bootstrap that draws sources first, then images of each. All is given for the cases of either light,
too.

Each image adds a line to ``results/context-WEIGHTS.jsonl``, from which the same command goes on after it was stopped;
the summary of all weights is ``results/context.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from machine import RESULTS, save_result
from PIL import Image as Pillow
from weights.pack import HELD_OUT, TEST, VALID, VEILED, remove_veil

from dehazexl.engine.decode import decode
from dehazexl.engine.dehaze import open_tokens, prepare
from dehazexl.engine.encode import encode
from dehazexl.evaluation.paired import Case, scores, synthesize_cases
from dehazexl.image.grid import SIDE, Window
from dehazexl.io.open import open_image
from dehazexl.model.fusing import TokenTensor, fuse
from dehazexl.model.network import grid_to_tiles, tiles_to_grid
from dehazexl.model.weights import load_model
from dehazexl.synthesis.haze import KINDS

if TYPE_CHECKING:
    from dehazexl.engine.job import Job
    from dehazexl.model import DehazeXL

LARGEST_ENLARGEMENT = 2.0
"""Smaller images than the crops are enlarged (Lanczos), by this factor at most; it is recorded."""

SMALLEST = 1536
"""Pixels: least side of a crop."""

ALL_KINDS = tuple(KINDS)
"""Kinds of haze."""

LIGHTS = ("values", "linear")
"""Where haze is added, see `dehazexl.evaluation.paired.Case`."""

TITLES = {"psnr": "PSNR, dB", "ssim": "SSIM", "ciede2000": "color error, ΔE", "seam": "seam ratio"}
DIGITS = (2, 4, 2, 3)
"""Scores in the tables, and their decimals."""

RESAMPLES = 10_000

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
    tokens = torch.from_numpy(encoded.get(job.grid.tiles)[0]).to(model.device, model.dtype).unflatten(2, (SIDE, SIDE))
    found = {"hazy": scores(case, case.hazy, job.grid.overlap, job.grid.side)}
    del found["hazy"]["seam"]  # of no change
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


def held_out(folder: Path) -> list[Path]:
    """Return the images that are held out from the training of all weights, the largest first."""
    files = [file for source in (*VALID, *TEST) for file in (folder / "more" / source).iterdir()]
    files += [file for pattern in HELD_OUT for file in folder.glob(pattern)]
    sides = {file: min(open_image(file).levels[0].shape[:2]) for file in files}
    large = [file for file in files if sides[file] * LARGEST_ENLARGEMENT >= SMALLEST]
    return sorted(large, key=lambda file: (-sides[file], file))


def crop(file: Path, size: int) -> tuple[np.ndarray, float]:
    """Return the center ``(side, side, 3)`` of an image, of at most `size` pixels, and its enlargement."""
    image = open_image(file)
    pixels = np.ascontiguousarray(image.levels[0][..., list(image.rgb)].compute())
    if file.parent.name in VEILED:
        pixels = remove_veil(pixels)
    factor = min(max(1.0, size / min(pixels.shape[:2])), LARGEST_ENLARGEMENT)
    if factor > 1:
        height, width = (round(side * factor) for side in pixels.shape[:2])
        pixels = np.asarray(Pillow.fromarray(pixels).resize((width, height), Pillow.Resampling.LANCZOS))
    side = min(size, *pixels.shape[:2])
    y, x = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return np.ascontiguousarray(pixels[y : y + side, x : x + side]), factor


def cases(name: str, clear: np.ndarray, number: int, count: int) -> Iterator[Case]:
    """Yield an image with some kinds of haze; each kind is as frequent as the others, in both lights."""
    for each in range(count):
        turn = number * count + each
        kind, linear = ALL_KINDS[turn % len(ALL_KINDS)], bool((turn + turn // len(ALL_KINDS)) % 2)
        yield from synthesize_cases([(name, clear)], len(clear), [kind], seed=7 + turn, linear=linear)


def score_image(model: DehazeXL, file: Path, number: int, size: int, count: int) -> dict[str, Any]:
    """Return the scores of the cases of an image."""
    started = time.perf_counter()
    clear, factor = crop(file, size)
    found = [
        {"kind": case.kind, "light": case.light, "scores": score_case(model, case)}
        for case in cases(file.name, clear, number, count)
    ]
    name = f"{file.parent.name}/{file.name}"
    row: dict[str, Any] = {"image": name, "side": len(clear), "enlarged": round(factor, 3), "cases": found}
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def mean_scores(row: dict[str, Any], light: str = "") -> dict[str, dict[str, float]]:
    """Return the scores of an image, each the mean over its cases, or over those of one light; empty without any."""
    found = [case["scores"] for case in row["cases"] if light in ("", case["light"])]
    contexts = found[0] if found else {}
    return {
        context: {each: float(np.mean([scores[context][each] for scores in found])) for each in first}
        for context, first in contexts.items()
    }


def interval(values: np.ndarray, drawn: np.ndarray) -> list[float]:
    """Return the mean of one value an image, and its 95 % confidence interval by resamples ``(n, images)``."""
    low, high = np.nanpercentile(np.nanmean(values[drawn], axis=1), (2.5, 97.5))
    return [round(float(value), 4) for value in (np.nanmean(values), low, high)]


def by_source(sources: list[str]) -> np.ndarray:
    """Return resamples of images ``(n, images)``: sources are drawn, then as many images of each as it has."""
    random, names = np.random.default_rng(0), sorted(set(sources))
    places = {name: np.flatnonzero(np.array(sources) == name) for name in names}
    drawn = np.empty((RESAMPLES, len(sources)), int)
    for row in drawn:
        picked = [random.choice(places[name], len(places[name])) for name in random.choice(names, len(names))]
        row[:] = np.resize(np.concatenate(picked), len(sources))
    return drawn


def summarize(rows: list[dict[str, Any]], light: str = "") -> dict[str, dict[str, list[float]]]:
    """Return means and intervals of each score of each context, and of the differences from ``all``."""
    found = [(row["image"], scores) for row in rows if (scores := mean_scores(row, light))]
    if not found:
        return {}
    names = list(found[0][1])
    images = np.random.default_rng(0).integers(len(found), size=(RESAMPLES, len(found)))
    sources = by_source([image.partition("/")[0] for image, _ in found])
    table = {
        name: {each: np.array([scores[name][each] for _, scores in found]) for each in found[0][1][name]}
        for name in names
    }
    summary: dict[str, dict[str, list[float]]] = {}
    for name in names:
        summary[name] = {each: interval(values, images) for each, values in table[name].items()}
        if name == "all":
            continue
        for each in table[name]:
            difference = table[name][each] - table["all"][each]
            summary[name][f"{each} minus all"] = interval(difference, images)
            summary[name][f"{each} minus all, by source"] = interval(difference, sources)
    return summary


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of images that are done; a last line that was not written to its end is left out."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def save(settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Replace the part of the results that belongs to some weights."""
    weights = measured()
    weights[settings["weights"]] = {
        "settings": settings,
        "images": len(rows),
        "sources": len({row["image"].partition("/")[0] for row in rows}),
        "enlarged": sum(row["enlarged"] > 1 for row in rows),
        "summary": summarize(rows),
        "lights": {light: summarize(rows, light) for light in LIGHTS},
    }
    save_result("context", weights=weights)


def measured() -> dict[str, Any]:
    """Return the summaries so far, by weights."""
    path = RESULTS / "context.json"
    return json.loads(path.read_text())["weights"] if path.exists() else {}


def tables(weights: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of tables in Markdown: all scores of each context, and its loss of PSNR in either light."""
    for name, found in weights.items():
        summary, lights = found["summary"], found["lights"]
        yield f"**{name}**, {found['images']} images of {found['sources']} sources ({found['enlarged']} enlarged):"
        yield ""
        yield f"| context | {' | '.join(TITLES.values())} |"
        yield "|---|" + "---|" * len(TITLES)
        for context, values in summary.items():
            cells = [written(values.get(each), digits) for each, digits in zip(TITLES, DIGITS, strict=True)]
            yield f"| {context} | {' | '.join(cells)} |"
        yield ""
        columns = ["both lights", *(f"haze in {light}" for light in lights), "both, by source"]
        yield f"| PSNR minus that of *all*, dB | {' | '.join(columns)} |"
        yield "|---|" + "---|" * (2 + len(lights))
        for context in summary:
            if context == "all":
                continue
            parts = [summary, *lights.values()]
            cells = [written(part.get(context, {}).get("psnr minus all"), 2) for part in parts]
            cells.append(written(summary[context].get("psnr minus all, by source"), 2))
            yield f"| {context} | {' | '.join(cells)} |"
        yield ""


def written(values: list[float] | None, digits: int) -> str:
    """Write a mean and its interval."""
    if values is None:
        return ""
    mean, low, high = (f"{value:.{digits}f}".replace("-", "−") for value in values)
    return f"{mean} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="?", help="folder of clear images, as for weights/pack.py")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", type=int, default=2048, help="side of the crops in pixels, at most")
    parser.add_argument("--cases", type=int, default=2, help="kinds of haze for each image")
    parser.add_argument("--count", type=int, help="number of images, the largest first; all by default")
    parser.add_argument("--table", action="store_true", help="print what was measured as Markdown, and measure nothing")
    args = parser.parse_args()
    if args.table:
        print("\n".join(tables(measured())))
        return
    if args.images is None:
        parser.error("give the folder of images")
    measure(args)


def measure(args: argparse.Namespace) -> None:
    """Score the images that are not done yet, and save the summary."""
    model = load_model(args.weights, args.device, "float32")
    settings = {"weights": Path(args.weights).stem, "size": args.size, "cases": args.cases}
    RESULTS.mkdir(exist_ok=True)
    lines = RESULTS / f"context-{settings['weights']}.jsonl"
    done = [row for row in read_rows(lines) if row["settings"] == settings]
    seen = {row["image"] for row in done}
    for number, file in enumerate(held_out(args.images)[: args.count]):
        if f"{file.parent.name}/{file.name}" in seen:
            continue
        row = {**score_image(model, file, number, args.size, args.cases), "settings": settings}
        done.append(row)
        with lines.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(f"{len(done)}: {row['image']}, {row['seconds']:.0f} s", flush=True)
    save(settings, done)


if __name__ == "__main__":
    main()
