"""What `dehazexl train` does: it finds the pictures, and shows the training at work."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from dehazexl.data import find_pictures, read_rgb
from dehazexl.train import Recipe, spec_from_text, train
from dehazexl.weights import choose_device, load_model


def train_with_bar(
    folders: Sequence[Path],
    hold_out: Sequence[str],
    out: Path,
    spec: str,
    recipe: Recipe,
    *,
    device: str = "auto",
    init: str | None = None,
    resume: bool = False,
    minutes: float = math.inf,
    every: int = 250,
) -> str:
    """Train on folders of pictures, with a bar on stderr, and return what came of it.

    With `init`, the training starts from those weights, whose spec is taken instead of `spec`.

    Raises
    ------
    FileExistsError
        If `out` holds a training and `resume` is False.
    FileNotFoundError
        If `out` holds none and `resume` is True.
    FloatingPointError, OSError, ValueError
        See `train.train`, `data.find_pictures`.
    """
    from tqdm import tqdm

    target = str(choose_device(device))
    first = None if init is None else load_model(init, device="cpu", dtype="float32")
    network = spec_from_text(spec) if first is None else first.spec
    check_folder(out, resume)
    training, held = split(folders, hold_out)
    print(f"{len(training)} pictures to train on, {len(held)} to validate on, on {target}", file=sys.stderr)
    pictures, validation = [read_rgb(path) for path in training], [read_rgb(path) for path in held]
    about = {"data": sorted({str(path.parent) for path in training})}
    steps = train(
        pictures, validation, out, network, recipe,
        device=target, init=first, resume=resume, minutes=minutes, every=every, about=about,
    )  # fmt: skip
    psnr, step = math.nan, 0
    with tqdm(total=recipe.steps, desc="train", unit="step", mininterval=0.1 if sys.stderr.isatty() else 30) as bar:
        for report in steps:
            step = int(report["step"])
            psnr = report.get("psnr", psnr)
            bar.n = step
            bar.set_postfix_str(f"loss {report['loss']:.4f}, {psnr:.2f} dB", refresh=False)
            bar.update(0)
    return f"{out / 'best.safetensors'}: step {step} of {recipe.steps}, last {psnr:.2f} dB"


def check_folder(out: Path, resume: bool) -> None:
    """Keep a training from being overwritten, or resumed where there is none."""
    checkpoint = out / "checkpoint.pt"
    if resume and not checkpoint.exists():
        raise FileNotFoundError(f"{out} holds no checkpoint to resume from: leave --resume out, or give its folder")
    if not resume and checkpoint.exists():
        raise FileExistsError(f"{out} holds a training: go on with --resume, or choose another folder")


def split(folders: Sequence[Path], hold_out: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """List the pictures to train on and to validate on: those that match a pattern, else every tenth."""
    training, held = find_pictures(folders, hold_out)
    if hold_out and not held:
        raise ValueError(
            f"--hold-out {' '.join(hold_out)}: no picture matches; patterns are like 'naip/*' or 'DJI_003*'"
        )
    if not held:
        if len(training) < 2:
            raise ValueError(
                f"one picture, {training[0]}, is too few: one to train on and one to validate on are needed"
            )
        held, training = training[::10], [path for i, path in enumerate(training) if i % 10]
    return training, held
