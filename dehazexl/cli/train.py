"""Implementation of `dehazexl train`: data sets, options and progress of a training run."""

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
from dehazexl.training.datasets import Dataset, check_output_folder, open_datasets
from dehazexl.training.log import plot
from dehazexl.training.loop import train
from dehazexl.training.rgb_files import CACHE_SIZE

SMALLEST = 128
"""Shortest side in pixels of training images; smaller ones would be enlarged more than twice to fill a tile."""


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
    """Train on folders of images with a progress bar on stderr.

    If started by torchrun, each process computes its share of every step.

    Parameters
    ----------
    folders, hold_out
        See `training.datasets.open_datasets`.
    out
        Output folder.
    spec
        Name or JSON of the specification.
    recipe, minutes, every
        See `training.loop.train`.
    device
        Name of the device, or "auto".
    init
        Weights to start from, whose spec is used.
    normalize
        Normalize colors by mean and standard deviation of the official training set, as with its ``--nor``.
    resume
        Continue the run in `out`. Options and hyperparameters that are not named in `given` keep their values.
    given
        Names of arguments and attributes of the recipe that were set by the user.

    Returns
    -------
    str or None
        Summary; None in all processes but the initial.

    Raises
    ------
    FileExistsError
        If `out` contains a run and `resume` is False.
    FileNotFoundError
        If `out` contains no run and `resume` is True.
    FloatingPointError, OSError, ValueError
        See `training.loop.train` and `training.datasets.open_datasets`; ValueError also if `init` conflicts with
        other arguments.
    """
    with processes(device) as (target, rank):
        echo: Callable[[str], None] = partial(print, file=sys.stderr) if rank == 0 else lambda _: None
        check_folder(out, folders, resume)
        if resume and init is not None:
            raise ValueError(
                f"--resume continues with the weights in {out}, not those of --init: leave one of them out"
            )
        initial = None if init is None else load_model(init, device="cpu", dtype="float32")
        network = spec_from_text(spec) if initial is None else initial.spec
        if initial is not None and "spec" in given and spec_from_text(spec) != initial.spec:
            raise ValueError(f"the spec of --init {init} differs from --spec {spec}: leave one of them out")
        if resume:
            saved = read_checkpoint(out / "checkpoint.pt")
            saved_spec = Spec.from_json(saved["spec"])
            network = replace(network, mean=saved_spec.mean, std=saved_spec.std) if "spec" in given else saved_spec
            recipe, hold_out = restore_options(saved, recipe, hold_out, given, echo)
        if normalize:
            network = replace(network, mean=OFFICIAL_MEAN, std=OFFICIAL_STD)
            if initial is not None and network != initial.spec:
                raise ValueError(f"--init {init} was trained without --normalize: leave it out")
        training, held_out = open_datasets(folders, hold_out)
        training = drop_small_images(training, echo)
        warn_about_large_images(training, echo)
        if target == "cpu" and recipe.precision == "bfloat16" and not has_bfloat16():
            echo("this processor has no bfloat16 instructions: it is far slower than --precision float32")
        if resume and saved["about"].get("held_out", list(held_out.names)) != list(held_out.names):
            echo("other images are held out than before: scores cannot be compared, the best score is reset")
        echo(f"{len(training)} images to train on, {len(held_out)} to validate on, on {target}")
        about: dict[str, Any] = {"data": [folder.resolve().name for folder in folders], "hold_out": list(hold_out)}
        if origin := saved["about"].get("init") if resume else init and Path(init).name:
            about["init"] = origin
        reports = train(
            training, held_out, out, network, recipe,
            device=target, init=initial, resume=resume, minutes=minutes, every=every, about=about,
        )  # fmt: skip
        try:
            last = run_with_bar(reports, recipe, quiet=rank > 0)
        finally:
            if rank == 0 and (out / "log.csv").exists():
                plot_log(out)
    return summary(out, last, recipe) if rank == 0 else None


def restore_options(
    saved: dict[str, Any],
    recipe: Recipe,
    hold_out: Sequence[str],
    given: Collection[str],
    echo: Callable[[str], None],
) -> tuple[Recipe, Sequence[str]]:
    """Return recipe and hold-out patterns, from the checkpoint unless given; report changes of the recipe."""
    about = saved["about"]
    old = {name: value for name, value in about.get("recipe", {}).items() if hasattr(recipe, name)}
    recipe = replace(recipe, **{name: value for name, value in old.items() if name not in given})
    changed = [
        f"{name} {old[name]} -> {value}" for name, value in asdict(recipe).items() if old.get(name, value) != value
    ]
    if changed:
        echo(f"continuing with another recipe than before: {', '.join(changed)}")
    return recipe, hold_out if "hold_out" in given else about.get("hold_out", hold_out)


def drop_small_images(data: Dataset, echo: Callable[[str], None]) -> Dataset:
    """Drop images that are much smaller than a crop, and report them once.

    Raises
    ------
    ValueError
        If no image is left.
    """
    sides = [min(image.shape[:2]) for image in data.clear]
    indices = [i for i, side in enumerate(sides) if side >= SMALLEST]
    if not indices:
        raise ValueError(f"all images are smaller than {SMALLEST} pixels on a side: larger ones are needed")
    if dropped := [name for name, side in zip(data.names, sides, strict=True) if side < SMALLEST]:
        echo(f"{len(dropped)} images smaller than {SMALLEST} pixels on a side are left out, e.g. {dropped[0]}")
    if enlarged := [data.names[i] for i in indices if sides[i] < TILE]:
        echo(f"{len(enlarged)} images smaller than a tile of {TILE} pixels are enlarged, e.g. {enlarged[0]}")
    hazy = None if data.hazy is None else [data.hazy[i] for i in indices]
    return Dataset([data.clear[i] for i in indices], hazy, [data.names[i] for i in indices])


def warn_about_large_images(data: Dataset, echo: Callable[[str], None]) -> None:
    """Report if images exceed the cache and are decoded as a whole for each crop."""
    images = {id(image): image for image in (*data.clear, *(data.hazy or ()))}.values()
    size = sum(math.prod(image.shape) for image in images if getattr(image, "whole", False))
    if size > CACHE_SIZE:
        echo(
            f"the images need {size / 2**30:.0f} GB of memory, the cache has {CACHE_SIZE / 2**30:.0f} GB; other images "
            "are decoded for each crop: loading is faster from tiled TIFF or Zarr, which are read by crop"
        )


def run_with_bar(reports: Iterator[dict[str, float]], recipe: Recipe, quiet: bool) -> dict[str, float]:
    """Run a training with a progress bar on stderr, and return its last report, including the last scores."""
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
    """Return a one-line summary of a training run."""
    if not last:
        return f"{out}: all {recipe.steps} steps were already done"
    done = f"step {last['step']:.0f} of {recipe.steps}"
    left_out = f", {last['skipped']:.0f} steps left out" if last["skipped"] else ""
    weights = out / "best.safetensors"
    if not weights.exists():
        return f"{out}: {done}{left_out}; no weights were saved"
    best = describe(weights)["trained"]
    score = f", {best['psnr']:.2f} dB" if "psnr" in best else ""
    return f"{weights}: of step {best['step']:.0f}{score}; {done}{left_out}"


@contextmanager
def processes(device: str) -> Iterator[tuple[str, int]]:
    """Initialize torch.distributed if started by torchrun; yield the device and the rank of this process."""
    import torch.distributed as dist

    target = choose_device(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield str(target), 0
        return
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo")
    try:
        local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if target.type == "cuda" else str(target)
        yield local, dist.get_rank()
    finally:
        dist.destroy_process_group()


def plot_log(out: Path) -> None:
    """Plot the log of a run, or report why it cannot be plotted."""
    try:
        plot(out)
    except ImportError:
        print("no plot.png: install matplotlib with pip install 'napari-dehazexl[train]'", file=sys.stderr)
    except OSError as error:
        print(f"no plot.png: {error}", file=sys.stderr)


def check_folder(out: Path, folders: Sequence[Path], resume: bool) -> None:
    """Check that a run is neither overwritten nor missing, and that its plot does not end up among the images."""
    checkpoint = out / "checkpoint.pt"
    check_output_folder(out, folders)
    if resume and not checkpoint.exists():
        raise FileNotFoundError(f"{out} has no checkpoint to resume from: leave --resume out, or pass another folder")
    if not resume and checkpoint.exists():
        raise FileExistsError(f"{out} contains a run: continue it with --resume, or choose another folder")
