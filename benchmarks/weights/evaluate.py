"""Score weights on held-out pictures with seeded haze of four kinds, beside the dark channel prior.

    python benchmarks/weights/evaluate.py DATA/valid --weights compact

Prints a table and keeps it as ``benchmarks/results/evaluation.json``; see `dehazexl.evaluate` for the protocol.
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
from dehazexl.data import find_pictures, read_rgb
from dehazexl.evaluate import BRIGHTNESS, KINDS, THICKNESS, by_network, dark_channel_prior, evaluate, synthesised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="compact")
    args = parser.parse_args()
    model = load_model(args.weights, device="cpu", dtype="float32")
    pictures = [(path.stem, read_rgb(path)) for path in find_pictures([args.folder])[0]]
    # Each overlap by itself: the seam ratio has to know where tile borders are.
    dehazers = {
        32: {"overlap 32": by_network(model, 32)},
        0: {"dark channel prior": dark_channel_prior, "overlap 0": by_network(model, 0)},
    }
    rows = [
        {"kind": case.kind, "method": method, **values}
        for overlap, methods in dehazers.items()
        for case, method, _, values in evaluate(synthesised(pictures), methods, overlap)
        if overlap == 0 or method != "hazy input"
    ]
    table = defaultdict(dict)
    for kind in ("all", *KINDS):
        for method in dict.fromkeys(row["method"] for row in rows):
            some = [row for row in rows if row["method"] == method and kind in ("all", row["kind"])]
            means = {name: np.mean([row[name] for row in some]) for name in ("psnr", "ssim", "ciede2000", "seam")}
            table[kind][method] = {name: round(float(mean), 3) for name, mean in means.items() if np.isfinite(mean)}
    # A clear picture should stay as it is.
    stays = []
    for _, picture in pictures:
        clear = picture[:512, :512] / np.float32(255)
        error = np.mean((np.clip(by_network(model)(clear), 0, 1) - clear) ** 2)
        stays.append(-10 * np.log10(max(float(error), 1e-10)))
    keep(
        "evaluation",
        weights=str(args.weights),
        pictures=len(pictures),
        cases=len(pictures) * len(KINDS),
        thickness=THICKNESS,
        airlight=BRIGHTNESS,
        scores=table,
        clear_picture_stays_psnr=round(float(np.mean(stays)), 2),
    )


if __name__ == "__main__":
    main()
