"""What `dehazexl train` does: it finds the pictures, and shows the training at work."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from dehazexl.image.grid import TILE
from dehazexl.model import Spec
from dehazexl.model.spec import spec_from_text
from dehazexl.model.weights import OFFICIAL_MEAN, OFFICIAL_STD, choose_device, describe, has_bfloat16, load_model
from dehazexl.training.checkpoint import read_checkpoint
from dehazexl.training.config import Recipe
from dehazexl.training.datasets import Dataset, check_beside, open_datasets
from dehazexl.training.log import plot
from dehazexl.training.loop import train
from dehazexl.training.rgb_files import KEPT

SMALLEST = 128
"""Pixels: pictures with a shorter side are left out; a crop of a tile would show them more than twice as large."""


def train_with_bar(
    folders: Sequence[Path],
    hold_out: Sequence[str],
    out: Path,
    spec: str,
    recipe: Recipe,
    *,
    device: str = "auto",
    init: str | None = None,
    normalize: bool = False,
    resume: bool = False,
    minutes: float = math.inf,
    every: int = 250,
    given: Collection[str] = (),
) -> str | None:
    """Train on folders of pictures, with a bar on stderr, and return what came of it; of several processes one does.

    With `init`, the training starts from those weights, and their spec. With `normalize`, the network sees colors
    less the mean and over the deviation of the official training set, as with its ``--nor``. With `resume`, what is not
    named in `given` (the names of arguments and of the recipe's attributes) is as it was before. Started by torchrun,
    each process takes its share of every step.

    Raises
    ------
    FileExistsError
        If `out` holds a training and `resume` is False.
    FileNotFoundError
        If `out` holds none and `resume` is True.
    FloatingPointError, OSError, ValueError
        See `training.loop.train`, `training.datasets.open_datasets`; ValueError also if `init` contradicts other
        arguments.
    """
    with processes(device) as (target, rank):
        say: Callable[[str], None] = partial(print, file=sys.stderr) if rank == 0 else lambda _: None
        check_folder(out, folders, resume)
        if resume and init is not None:
            raise ValueError(f"--resume goes on with the weights in {out}, not those of --init: leave one of them out")
        first = None if init is None else load_model(init, device="cpu", dtype="float32")
        network = spec_from_text(spec) if first is None else first.spec
        if first is not None and "spec" in given and spec_from_text(spec) != first.spec:
            raise ValueError(f"--init {init} has a spec of its own, which is not --spec {spec}: leave one of them out")
        if resume:
            before = read_checkpoint(out / "checkpoint.pt")
            old = Spec.from_json(before["spec"])
            network = replace(network, mean=old.mean, std=old.std) if "spec" in given else old
            recipe, hold_out = as_before(before, recipe, hold_out, given, say)
        if normalize:
            network = replace(network, mean=OFFICIAL_MEAN, std=OFFICIAL_STD)
            if first is not None and network != first.spec:
                raise ValueError(f"--init {init} was trained without --normalize: leave it out")
        training, held = open_datasets(folders, hold_out)
        training = without_small(training, say)
        speak_of_large(training, say)
        if target == "cpu" and recipe.precision == "bfloat16" and not has_bfloat16():
            say("this processor does not compute in bfloat16: it is far slower than --precision float32 here")
        if resume and before["about"].get("held_out", list(held.names)) != list(held.names):
            say("other pictures are held out than before: scores cannot be compared, the best begins anew")
        say(f"{len(training)} pictures to train on, {len(held)} to validate on, on {target}")
        about: dict[str, Any] = {"data": [folder.resolve().name for folder in folders], "hold_out": list(hold_out)}
        if origin := before["about"].get("init") if resume else init and Path(init).name:
            about["init"] = origin
        reports = train(
            training, held, out, network, recipe,
            device=target, init=first, resume=resume, minutes=minutes, every=every, about=about,
        )  # fmt: skip
        try:
            last = show(reports, recipe, quiet=rank > 0)
        finally:
            if rank == 0 and (out / "log.csv").exists():
                draw(out)
    return summary(out, last, recipe) if rank == 0 else None


def as_before(
    before: dict[str, Any],
    recipe: Recipe,
    hold_out: Sequence[str],
    given: Collection[str],
    say: Callable[[str], None],
) -> tuple[Recipe, Sequence[str]]:
    """Take what was not given from a checkpoint, and say what is otherwise than before."""
    about = before["about"]
    old = {name: value for name, value in about.get("recipe", {}).items() if hasattr(recipe, name)}
    recipe = replace(recipe, **{name: value for name, value in old.items() if name not in given})
    changed = [
        f"{name} {old[name]} -> {value}" for name, value in asdict(recipe).items() if old.get(name, value) != value
    ]
    if changed:
        say(f"going on with another recipe than before: {', '.join(changed)}")
    return recipe, hold_out if "hold_out" in given else about.get("hold_out", hold_out)


def without_small(data: Dataset, say: Callable[[str], None]) -> Dataset:
    """Leave out pictures that are much smaller than a crop, and say so once.

    Raises
    ------
    ValueError
        If none is left.
    """
    sides = [min(picture.shape[:2]) for picture in data.clear]
    kept = [i for i, side in enumerate(sides) if side >= SMALLEST]
    if not kept:
        raise ValueError(f"all pictures are smaller than {SMALLEST} pixels on a side: larger ones are needed")
    if left := [name for name, side in zip(data.names, sides, strict=True) if side < SMALLEST]:
        say(f"{len(left)} pictures smaller than {SMALLEST} pixels on a side are left out, e.g. {left[0]}")
    if few := [data.names[i] for i in kept if sides[i] < TILE]:
        say(f"{len(few)} pictures smaller than a tile of {TILE} pixels are enlarged, e.g. {few[0]}")
    hazy = None if data.hazy is None else [data.hazy[i] for i in kept]
    return Dataset([data.clear[i] for i in kept], hazy, [data.names[i] for i in kept])


def speak_of_large(data: Dataset, say: Callable[[str], None]) -> None:
    """Say what would make loading faster, where pictures are decoded whole for each crop."""
    pictures = {id(picture): picture for picture in (*data.clear, *(data.hazy or ()))}.values()
    size = sum(math.prod(picture.shape) for picture in pictures if getattr(picture, "whole", False))
    if size > KEPT:
        say(
            f"the pictures are {size / 2**30:.0f} GB in memory, of which {KEPT / 2**30:.0f} GB are kept; others are "
            "decoded whole for each crop: loading is faster from tiled TIFF or Zarr, which are read by crop"
        )


def show(reports: Iterator[dict[str, float]], recipe: Recipe, quiet: bool) -> dict[str, float]:
    """Run a training with a bar on stderr, and return its last report, with the last score."""
    from tqdm import tqdm

    last: dict[str, float] = {}
    interval = 0.1 if sys.stderr.isatty() else 30
    with tqdm(total=recipe.steps, desc="train", unit="step", mininterval=interval, disable=quiet) as bar:
        for report in reports:
            last |= report
            bar.n = int(report["step"])
            bar.set_postfix_str(f"loss {report['loss']:.4f}, {last.get('psnr', math.nan):.2f} dB", refresh=False)
            bar.update(0)
    return last


def summary(out: Path, last: dict[str, float], recipe: Recipe) -> str:
    """Say in a line what came of a training."""
    if not last:
        return f"{out}: there was nothing left to do of {recipe.steps} steps"
    done = f"step {last['step']:.0f} of {recipe.steps}"
    left_out = f", {last['skipped']:.0f} steps left out" if last["skipped"] else ""
    weights = out / "best.safetensors"
    if not weights.exists():
        return f"{out}: {done}{left_out}; no weights were kept"
    best = describe(weights)["trained"]
    score = f", {best['psnr']:.2f} dB" if "psnr" in best else ""
    return f"{weights}: of step {best['step']:.0f}{score}; {done}{left_out}"


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


def draw(out: Path) -> None:
    """Draw the run's curves, or say what is missing for it."""
    try:
        plot(out)
    except ImportError:
        print("no plot.png: it needs pip install 'napari-dehazexl[train]'", file=sys.stderr)
    except OSError as error:
        print(f"no plot.png: {error}", file=sys.stderr)


def check_folder(out: Path, folders: Sequence[Path], resume: bool) -> None:
    """Keep a training from being overwritten, resumed where there is none, or its plot from being trained on."""
    checkpoint = out / "checkpoint.pt"
    check_beside(out, folders)
    if resume and not checkpoint.exists():
        raise FileNotFoundError(f"{out} holds no checkpoint to resume from: leave --resume out, or give its folder")
    if not resume and checkpoint.exists():
        raise FileExistsError(f"{out} holds a training: go on with --resume, or choose another folder")
