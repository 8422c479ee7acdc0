"""Scores of weights and of the dark channel prior on held-out images with reproducible haze of four kinds.

The same haze is added in file values and in linear light.

    python benchmarks/weights/evaluate.py DATA/valid --weights compact

Prints the results and saves them as ``benchmarks/results/evaluation.json``. The last entry compares an image of
4096 x 4096 pixels dehazed as a whole with its pieces of 1024 x 1024 pixels dehazed separately. See
`dehazexl.evaluation.paired` for the protocol.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import save_result

from dehazexl import load_model
from dehazexl.evaluation.paired import (
    BRIGHTNESS,
    THICKNESS,
    NetworkDehazer,
    dark_channel_prior,
    evaluate,
    seam_ratio,
    synthesize_cases,
)
from dehazexl.training.augment import center_crop
from dehazexl.training.datasets import find_clear
from dehazexl.training.rgb_files import read_rgb

OVERLAPS = (32, 0)
"""Overlaps of the tiles in pixels."""
LARGE, PIECES = 4096, (1024, 256)
"""Sides in pixels of the image that is dehazed as a whole, and of the pieces that are dehazed separately. The smallest
pieces are single tiles, which show the result without global context."""


def whole_and_in_pieces(dehaze, image) -> dict[str, dict[str, float]]:
    """Return the PSNR of a large image dehazed as a whole and in pieces, for each kind of haze.

    The image is continued by reflection to the required size.
    """
    beyond = [(0, max(0, LARGE - size)) for size in image.shape[:2]]
    clear = np.pad(image, [*beyond, (0, 0)], mode="symmetric")[:LARGE, :LARGE]
    results = {}
    for case in synthesize_cases([("large", clear)], LARGE, ("patches", "ridges")):
        ways = {"hazy": case.hazy, "whole": dehaze(case.hazy)}
        ways |= {f"pieces of {side}": in_pieces(dehaze, case.hazy, side) for side in PIECES}
        results[case.kind] = {way: round(psnr(out, case.clear), 2) for way, out in ways.items()}
    return results


def in_pieces(dehaze, hazy, side: int):
    """Dehaze the pieces of an image separately."""
    out = np.empty_like(hazy)
    for y in range(0, len(hazy), side):
        for x in range(0, hazy.shape[1], side):
            place = slice(y, y + side), slice(x, x + side)
            out[place] = dehaze(hazy[place])
    return out


def mean_scores(cases, model) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean scores of network, dark channel prior and input, for all cases, each kind and each source."""
    # Overlaps are evaluated separately, because the seam ratio depends on the positions of tile borders.
    dehazers = {overlap: {f"overlap {overlap}": NetworkDehazer(model, overlap)} for overlap in OVERLAPS}
    dehazers[0] = {"dark channel prior": dark_channel_prior, **dehazers[0]}
    rows = [
        {"kinds": ("all", case.kind, case.name.partition("-")[0]), "method": method, **values}
        for overlap, methods in dehazers.items()
        for case, method, _, values in evaluate(cases, methods, overlap)
        if overlap == 0 or method != "hazy input"
    ]
    table = defaultdict(dict)
    for kind in dict.fromkeys(kind for row in rows for kind in row["kinds"]):
        for method in dict.fromkeys(row["method"] for row in rows):
            some = [row for row in rows if row["method"] == method and kind in row["kinds"]]
            means = {name: np.mean([row[name] for row in some]) for name in ("psnr", "ssim", "ciede2000", "seam")}
            table[kind][method] = {name: round(float(mean), 3) for name, mean in means.items() if np.isfinite(mean)}
    return table


def psnr(out, clear) -> float:
    """Return the PSNR in decibels."""
    return -10 * float(np.log10(max(np.mean((np.clip(out, 0, 1) - clear) ** 2), 1e-10)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--keep", default="evaluation", help="name of the JSON file in benchmarks/results")
    args = parser.parse_args()
    model = load_model(args.weights, device="cpu", dtype="float32")
    images = [(source.name, read_rgb(source.clear)) for source in find_clear([args.folder])]
    cases = {light: list(synthesize_cases(images, linear=light == "linear")) for light in ("values", "linear")}
    tables = {light: mean_scores(some, model) for light, some in cases.items()}
    # The true change has no seams, so its ratio is the contribution of the images themselves.
    without_seams = {
        light: {
            f"overlap {overlap}": round(
                float(np.mean([seam_ratio(c.clear - c.hazy, overlap, model.spec.tile) for c in some])), 3
            )
            for overlap in OVERLAPS
        }
        for light, some in cases.items()
    }
    # A clear image should be unchanged.
    middles = {name: center_crop(image, 512, 512)[0].permute(1, 2, 0).numpy() for name, image in images}
    stays = {
        method: {name: round(psnr(run(clear), clear), 2) for name, clear in middles.items()}
        for method, run in (("network", NetworkDehazer(model)), ("dark channel prior", dark_channel_prior))
    }
    largest = max(images, key=lambda named: named[1].size)[1]
    save_result(
        args.keep,
        weights=Path(args.weights).name,
        pictures=len(images),
        cases={light: len(some) for light, some in cases.items()},
        thickness=THICKNESS,
        airlight=BRIGHTNESS,
        scores=tables["values"],
        scores_in_linear_light=tables["linear"],
        seam_ratio_of_the_truth=without_seams["values"],
        seam_ratio_of_the_truth_in_linear_light=without_seams["linear"],
        clear_picture_stays_psnr={method: round(float(np.mean(list(of.values()))), 2) for method, of in stays.items()},
        of_each_picture=stays,
        in_one_go_and_in_pieces=whole_and_in_pieces(NetworkDehazer(model), largest),
    )


if __name__ == "__main__":
    main()
