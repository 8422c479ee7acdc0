"""What `dehazexl train` does: it finds the pictures, and shows the training at work."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dehazexl.data import open_datasets
from dehazexl.train import Recipe, plot, spec_from_text, train
from dehazexl.weights import OFFICIAL_MEAN, OFFICIAL_STD, choose_device, describe, load_model


def train_with_bar(
    folders: Sequence[Path],
    hold_out: Sequence[str],
    out: Path,
    spec: str,
    recipe: Recipe,
    *,
    device: str = "auto",
    init: str | None = None,
    normalise: bool = False,
    resume: bool = False,
    minutes: float = math.inf,
    every: int = 250,
) -> str:
    """Train on folders of pictures, with a bar on stderr, and return what came of it.

    With `init`, the training starts from those weights, whose spec is taken instead of `spec`. With `normalise`, the
    network sees colours less the mean and over the deviation of the official training set, as with its ``--nor``.
    Started by torchrun, each process takes its share of every step.

    Raises
    ------
    FileExistsError
        If `out` holds a training and `resume` is False.
    FileNotFoundError
        If `out` holds none and `resume` is True.
    FloatingPointError, OSError, ValueError
        See `train.train`, `data.open_datasets`.
    """
    from tqdm import tqdm

    with processes(device) as (target, rank):
        first = None if init is None else load_model(init, device="cpu", dtype="float32")
        network = spec_from_text(spec) if first is None else first.spec
        if normalise:
            network = replace(network, mean=OFFICIAL_MEAN, std=OFFICIAL_STD)
        check_folder(out, resume)
        training, held = open_datasets(folders, hold_out)
        if rank == 0:
            print(f"{len(training)} pictures to train on, {len(held)} to validate on, on {target}", file=sys.stderr)
            if resume and (changed := differences(out / "last.safetensors", recipe)):
                print(f"going on with another recipe than before: {changed}", file=sys.stderr)
        about = {"data": [str(folder) for folder in folders]}
        reports = train(
            training, held, out, network, recipe,
            device=target, init=first, resume=resume, minutes=minutes, every=every, about=about,
        )  # fmt: skip
        psnr, step, skipped = math.nan, 0, 0
        interval = 0.1 if sys.stderr.isatty() else 30
        with tqdm(total=recipe.steps, desc="train", unit="step", mininterval=interval, disable=rank > 0) as bar:
            for report in reports:
                step, skipped = int(report["step"]), int(report["skipped"])
                psnr = report.get("psnr", psnr)
                bar.n = step
                bar.set_postfix_str(f"loss {report['loss']:.4f}, {psnr:.2f} dB", refresh=False)
                bar.update(0)
        if rank == 0:
            draw(out)
    left_out = f", {skipped} steps left out" if skipped else ""
    return (
        f"{out / 'best.safetensors'}: step {step} of {recipe.steps}, last {psnr:.2f} dB{left_out}" if rank == 0 else ""
    )


@contextmanager
def processes(device: str) -> Iterator[tuple[str, int]]:
    """Join the other processes of torchrun, if it started this one; yield the device to use and the rank."""
    import torch.distributed as dist

    target = choose_device(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield str(target), 0
        return
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo")
    try:
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if target.type == "cuda" else str(target)
        yield own, dist.get_rank()
    finally:
        dist.destroy_process_group()


def differences(weights: Path, recipe: Recipe) -> str:
    """Say in what a recipe differs from the one a run's weights were trained with."""
    if not weights.exists():
        return ""
    then: dict[str, Any] = describe(weights).get("recipe", {})
    return ", ".join(f"{k} {then[k]} -> {v}" for k, v in asdict(recipe).items() if k in then and then[k] != v)


def draw(out: Path) -> None:
    """Draw the run's curves, or say what is missing for it."""
    try:
        plot(out)
    except ImportError:
        print("no plot.png: it needs pip install 'napari-dehazexl[train]'", file=sys.stderr)


def check_folder(out: Path, resume: bool) -> None:
    """Keep a training from being overwritten, or resumed where there is none."""
    checkpoint = out / "checkpoint.pt"
    if resume and not checkpoint.exists():
        raise FileNotFoundError(f"{out} holds no checkpoint to resume from: leave --resume out, or give its folder")
    if not resume and checkpoint.exists():
        raise FileExistsError(f"{out} holds a training: go on with --resume, or choose another folder")
