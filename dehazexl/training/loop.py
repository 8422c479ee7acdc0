"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dehazexl.model import DehazeXL, Spec
from dehazexl.model.heads import Affine
from dehazexl.model.weights import save_model
from dehazexl.training.batches import Batch, iterate_batches, validation_set
from dehazexl.training.checkpoint import State
from dehazexl.training.config import PRECISIONS, Recipe, learning_rate
from dehazexl.training.datasets import Dataset
from dehazexl.training.log import append_report, drop_after
from dehazexl.training.losses import losses

PATIENCE = 20
"""Largest number of consecutive steps with a loss that is not finite."""

Forward = Callable[[Tensor, tuple[int, int], int | None], Affine]
"""Function of hazy images, offset and number of tiles at once, see `DehazeXL.predict_affine`."""


def train(
    data: Dataset,
    held_out: Dataset,
    folder: Path,
    spec: Spec,
    recipe: Recipe | None = None,
    *,
    device: str = "cpu",
    init: DehazeXL | None = None,
    resume: bool = False,
    minutes: float = math.inf,
    every: int = 250,
    about: dict[str, Any] | None = None,
) -> Iterator[dict[str, float]]:
    """Train a network.

    If torch.distributed is initialized (see `cli.train`), each process computes its share of every step, and the first
    one writes the files.

    Parameters
    ----------
    data, held_out
        Images to train on and to validate on. If none are held out, there is no ``psnr``, and the best weights are the
        last ones.
    folder
        Output folder for ``checkpoint.pt`` (to resume from) and ``last.safetensors`` (the averaged weights),
        ``best.pt`` and ``best.safetensors`` of the step with the best validation, and ``log.csv``.
    spec, recipe
        Specification of the network, and hyperparameters.
    device
        Torch device.
    init
        A network of the same spec with the initial weights; random by default.
    resume
        Continue from the checkpoint in the folder.
    minutes
        Time after which to stop; the run can be resumed.
    every
        Number of steps between validations and checkpoints.
    about
        Provenance to be stored in the weights files.

    Yields
    ------
    dict
        After each step, by the names of `log.COLUMNS`: ``step``, ``loss``, ``lr``, ``seconds`` since the start, seconds
        ``waited`` for batches, number of ``skipped`` steps; after a validation also ``psnr`` and ``ssim``.

    Raises
    ------
    FloatingPointError
        If the loss is not finite in too many consecutive steps; the last valid checkpoint is kept.
    OSError
        If a checkpoint cannot be written; the previous one is kept.
    ValueError
        If an image is damaged. If the first process finds it, it first writes a checkpoint, unless its last step
        failed.
    """
    recipe = recipe or Recipe()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, target = folder / "checkpoint.pt", torch.device(device)
    state = State.load(checkpoint, spec, recipe, target) if resume else State.start(spec, recipe, target, init)
    set_provenance(state, list(held_out.names), {**(about or {}), "processes": ranks, "recipe": asdict(recipe)})
    forward = distributed_forward(state.model)
    cases = validation_set(held_out, max(512, 2 * spec.tile)) if rank == 0 else []
    if rank == 0:
        drop_after(folder / "log.csv", state.step)
    started, previous, failed, due = time.perf_counter(), state.seconds, 0, False

    batches_by_step = iterate_batches(data, state.step, recipe, rank, ranks, tile=spec.tile)
    while True:
        batches = next_batches(batches_by_step, state, checkpoint, save=rank == 0 and failed == 0)
        if batches is None:
            return
        lr = learning_rate(state.step, recipe)
        loss = train_step(state, batches, lr, recipe, forward)
        state.skipped += not math.isfinite(loss)
        failed = 0 if math.isfinite(loss) else failed + 1
        if failed > PATIENCE:
            raise FloatingPointError(
                f"the loss was not finite {failed} times in a row; lower --lr, then --resume from the last checkpoint"
            )
        state.step += 1
        state.seconds = previous + time.perf_counter() - started
        report = {"step": state.step, "loss": loss, "lr": lr, "seconds": round(state.seconds, 1)}
        report |= {"waited": round(state.waited, 1), "skipped": state.skipped}
        time_is_up = mean_over_processes(state.seconds - previous, target) > 60 * minutes
        ends = state.step == recipe.steps or time_is_up
        due = due or ends or state.step % every == 0
        if rank == 0:
            # While steps fail, the weights may be diverging, so the last valid files are kept. At the end of the run
            # one failed step is tolerated: float16 leaves out single steps, and no later one could be waited for.
            if due and failed <= ends:
                report |= validate_and_save(state, folder, cases, report)
                due = False
            append_report(folder / "log.csv", report)
        yield report
        if time_is_up:
            return


def set_provenance(state: State, held_out: list[str], about: dict[str, Any]) -> None:
    """Set the provenance of a run; a best score on other held-out images is reset."""
    if state.about.get("held_out", held_out) != held_out:
        state.best = -math.inf
    state.about = {**about, "held_out": held_out}


def next_batches(
    batches_by_step: Iterator[list[Batch]], state: State, checkpoint: Path, *, save: bool
) -> list[Batch] | None:
    """Return the batches of the next step, None after the last, and add the time spent waiting to the state.

    Raises
    ------
    ValueError
        If an image is damaged, which for some files is only found when they are read. With `save`, a checkpoint is
        written first.
    """
    started = time.perf_counter()
    try:
        batches = next(batches_by_step, None)
    except (OSError, ValueError) as error:
        if save:
            state.save(checkpoint)
        then = ", then continue with --resume" if checkpoint.exists() else ""
        raise ValueError(f"{error}; repair or remove it{then}") from error
    state.waited += time.perf_counter() - started
    return batches


def validate_and_save(state: State, folder: Path, cases: Sequence[Batch], report: dict[str, float]) -> dict[str, float]:
    """Validate the averaged weights, and save them and the checkpoint unless their output is NaN.

    Parameters
    ----------
    state
        State of the run, whose best score is updated.
    folder
        Output folder.
    cases
        Validation set.
    report
        Report of the step, which is stored with the weights.

    Returns
    -------
    dict
        Scores, see `validate`.
    """
    scores = validate(state.average, cases) if cases else {}
    # Without held-out images the last weights count as the best.
    psnr = scores.get("psnr", math.inf)
    if math.isnan(psnr):
        return scores
    about = {**state.about, "trained": {**report, **scores}}
    best, state.best = psnr >= state.best, max(psnr if cases else state.best, state.best)
    save_model(state.average, folder / "last.safetensors", half=True, **about)
    state.save(folder / "checkpoint.pt")
    if best:
        save_model(state.average, folder / "best.safetensors", half=True, **about)
        state.save(folder / "best.pt")
    return scores


def train_step(
    state: State, batches: Sequence[Batch], lr: float, recipe: Recipe, forward: Forward | None = None
) -> float:
    """Update the weights and their moving average, and return the loss.

    Parameters
    ----------
    state
        State of the run, which is updated.
    batches
        Batches whose gradients are accumulated.
    lr
        Learning rate.
    recipe
        Hyperparameters.
    forward
        Forward pass; by default that of the network.

    Returns
    -------
    float
        The loss; NaN if loss or gradient was not finite and the step was left out, in all processes.
    """
    forward, device = forward or state.model.predict_affine, state.model.device
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for batch in (batch.to(device) for batch in batches):
        with torch.autocast(device.type, PRECISIONS[recipe.precision], enabled=recipe.precision != "float32"):
            change = forward(batch.hazy, batch.offset, recipe.part)
        loss = losses(batch, change, recipe, scattering=state.model.head.scattering) / len(batches)
        state.scaler.scale(loss).backward()
        total += float(loss.detach())
    total = mean_over_processes(total, device)
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
    if not (math.isfinite(total) and torch.isfinite(norm)):
        state.scaler.update()
        return math.nan
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.scaler.step(state.optimizer)
    state.scaler.update()
    update_average(state.average, state.model, state.step, recipe.ema)
    return total


def update_average(average: DehazeXL, model: DehazeXL, step: int, decay: float) -> None:
    """Move the averaged weights towards the current ones, faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for a, p in zip(average.parameters(), model.parameters(), strict=True):
            a.lerp_(p, 1 - decay)
    average.train().eval()  # clears cached biases


@torch.no_grad()
def validate(model: DehazeXL, cases: Sequence[Batch]) -> dict[str, float]:
    """Return the mean ``psnr`` of a network in decibels, and the mean ``ssim`` if scikit-image is installed.

    The network must be in evaluation mode.
    """
    psnr: list[float] = []
    ssim: list[float] = []
    for case in cases:
        out = model(case.hazy.to(model.device)).clamp(0, 1).cpu()
        error = (out - case.clear).square().mean().item()
        # The order of the arguments matters: max(1e-10, nan) would be the best score, this is NaN.
        psnr.append(-10 * math.log10(max(error, 1e-10)))
        ssim.extend(compute_ssim(one, other) for one, other in zip(out, case.clear, strict=True))
    scores = {"psnr": sum(psnr) / len(psnr), "ssim": sum(ssim) / len(ssim)}
    return {name: score for name, score in scores.items() if name == "psnr" or math.isfinite(score)}


def compute_ssim(one: Tensor, other: Tensor) -> float:
    """Return the SSIM of two images ``(3, h, w)`` in [0, 1]; NaN without scikit-image or below 7 x 7 pixels."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return math.nan
    if min(one.shape[1:]) < 7:
        return math.nan
    return float(structural_similarity(one.numpy(), other.numpy(), data_range=1, channel_axis=0))


def distributed_forward(model: DehazeXL) -> Forward:
    """Return the forward pass of a network; in several processes (torchrun) it averages gradients over them."""
    if not dist.is_initialized():
        return model.predict_affine
    from torch.nn.parallel import DistributedDataParallel

    devices = [model.device] if model.device.type == "cuda" else None
    forward: Forward = DistributedDataParallel(PredictAffine(model), device_ids=devices)
    return forward


class PredictAffine(nn.Module):
    """Module whose forward pass is `DehazeXL.change`, as required by `DistributedDataParallel`."""

    def __init__(self, model: DehazeXL) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, offset: tuple[int, int], part: int | None) -> Affine:
        """Return gain and offset, see `DehazeXL.predict_affine`."""
        return self.model.predict_affine(x, offset, part)


def mean_over_processes(value: float, device: torch.device) -> float:
    """Return the mean of a number over all processes, so that all take the same decision."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor)
    return float(tensor) / dist.get_world_size()
