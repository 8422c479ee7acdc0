"""Training: clear pictures in, haze put on them as they come (or pairs), weights out."""

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
from dehazexl.training.batches import Batch, steps, validation_set
from dehazexl.training.checkpoint import State
from dehazexl.training.config import PRECISIONS, Recipe, learning_rate
from dehazexl.training.datasets import Dataset
from dehazexl.training.log import forget_after, log
from dehazexl.training.losses import losses

PATIENCE = 20
"""Consecutive steps that may fail (a loss that is not finite) before training gives up."""

Answer = Callable[[Tensor, tuple[int, int], int | None], Affine]
"""From hazy pictures, offset and tiles at once to what is done to them, see `DehazeXL.predict_affine`."""


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

    In several processes (torch.distributed initialized, see `cli.train`) each takes its share of every step,
    and the first one writes.

    Parameters
    ----------
    data, held_out
        Pictures to train on and to validate on. Without any held out there is no ``psnr``, and the best weights
        are the last.
    folder
        Gets ``checkpoint.pt`` (to resume from) and ``last.safetensors`` (the averaged weights), ``best.pt`` and
        ``best.safetensors`` of the step with the best validation, and ``log.csv``.
    spec, recipe
        What to train, and how.
    device
        Torch device.
    init
        A network of the same spec whose weights to start from, instead of random ones.
    resume
        Go on from the folder's checkpoint.
    minutes
        Stop, resumable, after this time.
    every
        Steps between validations, and between checkpoints.
    about
        Provenance for the weights files.

    Yields
    ------
    dict
        After each step, by the names of `log.COLUMNS`: ``step``, ``loss``, ``lr``, ``seconds`` since the start,
        ``waited`` of them for batches, ``skipped`` steps; after a validation ``psnr`` and ``ssim``.

    Raises
    ------
    FloatingPointError
        If the loss stays not finite; the last checkpoint with finite steps stands.
    OSError
        If a checkpoint cannot be written; the one before stands.
    ValueError
        If a picture turns out to be damaged. The first process, if it is the one that meets it, writes a checkpoint
        before, unless its last step failed.
    """
    recipe = recipe or Recipe()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, target = folder / "checkpoint.pt", torch.device(device)
    state = State.load(checkpoint, spec, recipe, target) if resume else State.start(spec, recipe, target, init)
    if state.about.get("held_out", list(held_out.names)) != list(held_out.names):
        state.best = -math.inf  # it was scored on other pictures
    state.about = {**(about or {}), "processes": ranks, "recipe": asdict(recipe)}
    state.about["held_out"] = list(held_out.names)
    answer = shared(state.model)
    cases = validation_set(held_out, max(512, 2 * spec.tile)) if rank == 0 else []
    if rank == 0:
        forget_after(folder / "log.csv", state.step)
    started, before, failed, due = time.perf_counter(), state.seconds, 0, False

    coming = steps(data, state.step, recipe, rank, ranks, tile=spec.tile)
    while True:
        asked = time.perf_counter()
        try:
            batches = next(coming, None)
        except (OSError, ValueError) as error:  # a damaged picture: some are only found out when they are read
            if rank == 0 and failed == 0:
                state.save(checkpoint)
            then = ", then --resume goes on" if checkpoint.exists() else ""
            raise ValueError(f"{error}; mend or remove it{then}") from error
        state.waited += time.perf_counter() - asked
        if batches is None:
            return
        lr = learning_rate(state.step, recipe)
        loss = step(state, batches, lr, recipe, answer)
        state.skipped += not math.isfinite(loss)
        failed = 0 if math.isfinite(loss) else failed + 1
        if failed > PATIENCE:
            raise FloatingPointError(
                f"the loss was not finite {failed} times in a row; lower --lr, then --resume from the last checkpoint"
            )
        state.step += 1
        state.seconds = before + time.perf_counter() - started
        report = {"step": state.step, "loss": loss, "lr": lr, "seconds": round(state.seconds, 1)}
        report |= {"waited": round(state.waited, 1), "skipped": state.skipped}
        over = mean_of_all(state.seconds - before, target) > 60 * minutes
        ends = state.step == recipe.steps or over
        due = due or ends or state.step % every == 0
        if rank == 0:
            # While steps fail, the weights may be on their way to where no step succeeds: what was good stands. A
            # single one that float16 leaves out says nothing, and at the end there is no later one to wait for.
            if due and failed <= ends:
                report |= keep(state, folder, cases, report)
                due = False
            log(folder / "log.csv", report)
        yield report
        if over:
            return


def keep(state: State, folder: Path, cases: Sequence[Batch], report: dict[str, float]) -> dict[str, float]:
    """Validate the averaged weights, keep them and the checkpoint, and return the scores.

    Weights that have become NaN are not kept.
    """
    scores = validate(state.average, cases) if cases else {}
    # Without pictures held out the last weights are the best.
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


def step(state: State, batches: Sequence[Batch], lr: float, recipe: Recipe, answer: Answer | None = None) -> float:
    """Make one step of the optimizer and of the average and return the loss.

    A step whose loss or gradient is not finite is left out, in all processes, and its loss is NaN.
    """
    answer, device = answer or state.model.predict_affine, state.model.device
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for batch in (batch.to(device) for batch in batches):
        with torch.autocast(device.type, PRECISIONS[recipe.precision], enabled=recipe.precision != "float32"):
            change = answer(batch.hazy, batch.offset, recipe.part)
        loss = losses(batch, change, recipe, scattering=state.model.head.scattering) / len(batches)
        state.scaler.scale(loss).backward()
        total += float(loss.detach())
    total = mean_of_all(total, device)
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
    """Move the averaged weights towards the present ones; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for a, p in zip(average.parameters(), model.parameters(), strict=True):
            a.lerp_(p, 1 - decay)
    average.train().eval()  # drops the cached biases


@torch.no_grad()
def validate(model: DehazeXL, cases: Sequence[Batch]) -> dict[str, float]:
    """Return the mean ``psnr`` in decibels of a network in eval mode, and ``ssim`` if scikit-image is there."""
    psnr: list[float] = []
    ssim: list[float] = []
    for case in cases:
        out = model(case.hazy.to(model.device)).clamp(0, 1).cpu()
        error = (out - case.clear).square().mean().item()
        # In this order, so that NaN stays NaN: the other way round it would be the best score.
        psnr.append(-10 * math.log10(max(error, 1e-10)))
        ssim.extend(similarity(one, other) for one, other in zip(out, case.clear, strict=True))
    scores = {"psnr": sum(psnr) / len(psnr), "ssim": sum(ssim) / len(ssim)}
    return {name: score for name, score in scores.items() if name == "psnr" or math.isfinite(score)}


def similarity(one: Tensor, other: Tensor) -> float:
    """SSIM of two pictures ``(3, h, w)`` in [0, 1]; NaN without scikit-image, or under its 7 pixels."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError:
        return math.nan
    if min(one.shape[1:]) < 7:
        return math.nan
    return float(structural_similarity(one.numpy(), other.numpy(), data_range=1, channel_axis=0))


def shared(model: DehazeXL) -> Answer:
    """Return the network's `change`; of several processes (torchrun) each has a copy, and gradients are averaged."""
    if not dist.is_initialized():
        return model.predict_affine
    from torch.nn.parallel import DistributedDataParallel

    devices = [model.device] if model.device.type == "cuda" else None
    answer: Answer = DistributedDataParallel(Answering(model), device_ids=devices)
    return answer


class Answering(nn.Module):
    """A network whose forward is its `change`, as `DistributedDataParallel` wants it."""

    def __init__(self, model: DehazeXL) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, offset: tuple[int, int], part: int | None) -> Affine:
        """Return what is done to pictures."""
        return self.model.predict_affine(x, offset, part)


def mean_of_all(value: float, device: torch.device) -> float:
    """Return the mean of a number over all processes, so that all decide alike."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor)
    return float(tensor) / dist.get_world_size()
