"""Score weights on held-out pictures with seeded haze of four kinds, beside the dark channel prior.

Haze is put on the values of the files, and then, the same, on linear light.

    python benchmarks/weights/evaluate.py DATA/valid --weights compact

Prints a table and keeps it as ``benchmarks/results/evaluation.json``; the last entry compares a picture of 4096 x 4096
pixels dehazed in one go with its 1024 x 1024 pieces dehazed one by one. See `dehazexl.evaluation.paired` for the
protocol.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import keep

from dehazexl import load_model
from dehazexl.evaluation.paired import (
    BRIGHTNESS,
    THICKNESS,
    ByNetwork,
    dark_channel_prior,
    evaluate,
    seam_ratio,
    synthesized,
)
from dehazexl.training.augment import center_crop
from dehazexl.training.datasets import find_clear
from dehazexl.training.rgb_files import read_rgb

OVERLAPS = (32, 0)
"""Of the tiles, in pixels."""
LARGE, PIECES = 4096, (1024, 256)
"""Pixels: side of the picture that is dehazed in one go, and of the pieces that are dehazed one by one: the smallest
are single tiles, which show what the network does without the global context."""


def whole_and_in_pieces(dehaze, picture) -> dict[str, dict[str, float]]:
    """Compare a large picture dehazed in one go with its pieces dehazed one by one: PSNR of each kind of haze.

    The picture is mirrored at its borders until it is large enough.
    """
    beyond = [(0, max(0, LARGE - size)) for size in picture.shape[:2]]
    clear = np.pad(picture, [*beyond, (0, 0)], mode="symmetric")[:LARGE, :LARGE]
    answers = {}
    for case in synthesized([("large", clear)], LARGE, ("patches", "ridges")):
        ways = {"hazy": case.hazy, "whole": dehaze(case.hazy)}
        ways |= {f"pieces of {side}": in_pieces(dehaze, case.hazy, side) for side in PIECES}
        answers[case.kind] = {way: round(psnr(out, case.clear), 2) for way, out in ways.items()}
    return answers


def in_pieces(dehaze, hazy, side: int):
    """Dehaze a picture piece by piece, each as if it were all there is."""
    out = np.empty_like(hazy)
    for y in range(0, len(hazy), side):
        for x in range(0, hazy.shape[1], side):
            place = slice(y, y + side), slice(x, x + side)
            out[place] = dehaze(hazy[place])
    return out


def scored(cases, model) -> dict[str, dict[str, dict[str, float]]]:
    """Score the network, the dark channel prior and the input: means of all cases, of each kind, and each source."""
    # Each overlap by itself: the seam ratio has to know where tile borders are.
    dehazers = {overlap: {f"overlap {overlap}": ByNetwork(model, overlap)} for overlap in OVERLAPS}
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
    return -10 * float(np.log10(max(np.mean((np.clip(out, 0, 1) - clear) ** 2), 1e-10)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--keep", default="evaluation", help="name of the JSON in benchmarks/results")
    args = parser.parse_args()
    model = load_model(args.weights, device="cpu", dtype="float32")
    pictures = [(source.name, read_rgb(source.clear)) for source in find_clear([args.folder])]
    cases = {light: list(synthesized(pictures, linear=light == "linear")) for light in ("values", "linear")}
    tables = {light: scored(some, model) for light, some in cases.items()}
    # The true change has no seams: what it scores at the same places is what the pictures themselves bring.
    without_seams = {
        light: {
            f"overlap {overlap}": round(
                float(np.mean([seam_ratio(c.clear - c.hazy, overlap, model.spec.tile) for c in some])), 3
            )
            for overlap in OVERLAPS
        }
        for light, some in cases.items()
    }
    # A clear picture should stay as it is.
    middles = {name: center_crop(picture, 512, 512)[0].permute(1, 2, 0).numpy() for name, picture in pictures}
    stays = {
        method: {name: round(psnr(run(clear), clear), 2) for name, clear in middles.items()}
        for method, run in (("network", ByNetwork(model)), ("dark channel prior", dark_channel_prior))
    }
    largest = max(pictures, key=lambda named: named[1].size)[1]
    keep(
        args.keep,
        weights=Path(args.weights).name,
        pictures=len(pictures),
        cases={light: len(some) for light, some in cases.items()},
        thickness=THICKNESS,
        airlight=BRIGHTNESS,
        scores=tables["values"],
        scores_in_linear_light=tables["linear"],
        seam_ratio_of_the_truth=without_seams["values"],
        seam_ratio_of_the_truth_in_linear_light=without_seams["linear"],
        clear_picture_stays_psnr={method: round(float(np.mean(list(of.values()))), 2) for method, of in stays.items()},
        of_each_picture=stays,
        in_one_go_and_in_pieces=whole_and_in_pieces(ByNetwork(model), largest),
    )


if __name__ == "__main__":
    main()
