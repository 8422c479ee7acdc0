"""Training: clear pictures in, haze put on them as they come, weights out."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dehazexl.data import center_crop, random_crop
from dehazexl.grid import TILE
from dehazexl.haze import Hazy, synthesise
from dehazexl.model import DehazeXL, Spec
from dehazexl.weights import read_pickle, save_model

GRIDS = ((1, 1), (1, 1), (1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3))
"""Sizes of the training crops, in tiles: one to nine. More of one tile, as a step then sees more pictures."""

FARTHEST = 512
"""Crops pretend to lie up to this many tokens (16384 pixels) from the corner of a larger picture."""

PATIENCE = 20
"""Consecutive steps that may fail (a loss that is not finite) before training gives up."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    steps
        Steps of the whole run; the learning rate falls to zero along a cosine by the last.
    tiles
        Tiles of 256 x 256 pixels a step.
    lr, warmup, decay, clip
        Peak learning rate of AdamW, steps until it is reached, weight decay, largest norm of the gradient.
    ema
        Decay of the moving average of the weights that is validated and saved.
    fft, transmission, seam
        Weights of the losses beside L1: on the Fourier transform, on the logarithm of the transmission, on what
        differs across tile borders.
    seed
        Of weights, crops and haze.
    """

    steps: int = 3000
    tiles: int = 8
    lr: float = 6e-4
    warmup: int = 100
    decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.995
    fft: float = 0.05
    transmission: float = 0.1
    seam: float = 0.5
    seed: int = 0


@dataclass
class State:
    """All that changes while training, and so all that a checkpoint holds."""

    model: DehazeXL
    average: DehazeXL
    optimiser: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf

    @classmethod
    def start(cls, spec: Spec, recipe: Recipe, device: torch.device, init: DehazeXL | None = None) -> State:
        """Make a fresh network, or one with the weights of `init`, and its optimiser."""
        torch.manual_seed(recipe.seed)
        model = DehazeXL(spec)
        if init is not None:
            model.load_state_dict(init.state_dict())
        model.to(device)
        return cls(model, deepcopy(model).requires_grad_(False).eval(), make_optimiser(model, recipe))

    def save(self, path: Path) -> None:
        """Write a checkpoint beside `path`, then rename it, so that a kill leaves the one before."""
        state = {
            "spec": self.model.spec.to_json(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
        }
        part = path.with_name(f".{path.name}.part")
        torch.save(state, part)
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path, spec: Spec, recipe: Recipe, device: torch.device) -> State:
        """Go on from a checkpoint.

        Raises
        ------
        ValueError
            If it was made with another spec, or is damaged.
        """
        saved = read_pickle(path, device)
        if not isinstance(saved, dict) or "spec" not in saved or "optimiser" not in saved:
            raise ValueError(f"{path}: not a checkpoint of dehazexl train; give the folder of one, or start without it")
        if Spec.from_json(saved["spec"]) != spec:
            raise ValueError(f"{path}: a checkpoint of another spec; train into another folder, or give its spec")
        state = cls.start(spec, recipe, device)
        state.model.load_state_dict(saved["model"])
        state.average.load_state_dict(saved["average"])
        state.optimiser.load_state_dict(saved["optimiser"])
        state.step, state.seconds, state.best = saved["step"], saved["seconds"], saved["best"]
        return state


def make_optimiser(model: DehazeXL, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases and norms do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    return recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps)))


def make_batch(
    pictures: Sequence[NDArray[np.uint8]], step: int, recipe: Recipe
) -> tuple[Tensor, Hazy, tuple[int, int]]:
    """Make the batch of a step, the same whenever it is made.

    Returns
    -------
    clear : Tensor
        ``(n, 3, h, w)`` in [0, 1], of one to nine tiles each.
    hazy : Hazy
        The same with haze.
    offset : tuple of int
        Where the crops pretend to lie in a larger picture, in tokens.
    """
    random = np.random.default_rng((recipe.seed, step))
    rows, cols = GRIDS[random.integers(len(GRIDS))]
    count = max(1, recipe.tiles // (rows * cols))
    clear = torch.cat([random_crop(pictures, rows * TILE, cols * TILE, random) for _ in range(count)])
    generator = torch.Generator().manual_seed(int(random.integers(2**62)))
    far = random.random() < 0.5
    offset = (int(random.integers(FARTHEST)), int(random.integers(FARTHEST))) if far else (0, 0)
    return clear, synthesise(clear, generator), offset


def batches(
    pictures: Sequence[NDArray[np.uint8]], first: int, recipe: Recipe
) -> Iterator[tuple[Tensor, Hazy, tuple[int, int]]]:
    """Yield the batches from step `first` on; the next is made while one is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make_batch, pictures, first, recipe)
        for step in range(first + 1, recipe.steps + 1):
            batch = coming.result()
            coming = pool.submit(make_batch, pictures, step, recipe)
            yield batch


def losses(clear: Tensor, hazy: Hazy, gain: Tensor, shift: Tensor, recipe: Recipe) -> Tensor:
    """Compute the loss of a batch.

    Parameters
    ----------
    clear
        Truth, ``(n, 3, h, w)`` in [0, 1].
    hazy
        What the network saw.
    gain, shift
        What it answered, ``(n, 3, h, w)``.
    """
    out = (gain * hazy.pixels + shift).clamp(-0.1, 1.1)
    error = out - clear
    loss = error.abs().mean()
    spectrum = torch.view_as_real(torch.fft.rfft2(error, norm="ortho")).abs().mean()
    seen = hazy.transmission.clamp(min=0.05).log()
    density = (gain.clamp(min=0.05).log() + seen).abs().mean()
    return loss + recipe.fft * spectrum + recipe.transmission * density + recipe.seam * seam(error)


def seam(error: Tensor) -> Tensor:
    """Mean jump of the error ``(n, 3, h, w)`` across tile borders; 0 for pictures of one tile."""
    jumps = [
        (error.select(axis, at) - error.select(axis, at - 1)).abs().mean()
        for axis in (2, 3)
        for at in range(TILE, error.shape[axis], TILE)
    ]
    return torch.stack(jumps).mean() if jumps else error.new_zeros(())


def update_average(average: DehazeXL, model: DehazeXL, step: int, decay: float) -> None:
    """Move the averaged weights towards the present ones; faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for a, p in zip(average.parameters(), model.parameters(), strict=True):
            a.lerp_(p, 1 - decay)
    average.train().eval()  # drops the cached biases


def validation_set(pictures: Sequence[NDArray[np.uint8]], size: int = 512) -> list[tuple[Tensor, Hazy]]:
    """Put haze of every kind, seeded, on the middle of held-out pictures."""
    from dehazexl.haze import KINDS

    cases = []
    for i, picture in enumerate(pictures):
        clear = center_crop(picture, size, size)
        kind = list(KINDS)[i % len(KINDS)]
        generator = torch.Generator().manual_seed(1000 + i)
        cases.append((clear, synthesise(clear, generator, [kind], thickness=(0.9, 2.0), clear_share=0)))
    return cases


@torch.no_grad()
def validate(model: DehazeXL, cases: Sequence[tuple[Tensor, Hazy]]) -> float:
    """Return the mean PSNR in decibels of the model in eval mode."""
    scores = []
    for clear, hazy in cases:
        out = model(hazy.pixels.to(model.device)).clamp(0, 1).cpu()
        error = (out - clear).square().mean().item()
        # In this order, so that NaN stays NaN: the other way round it would be the best score.
        scores.append(-10 * math.log10(max(error, 1e-10)))
    return sum(scores) / len(scores)


def train(
    pictures: Sequence[NDArray[np.uint8]],
    held_out: Sequence[NDArray[np.uint8]],
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

    Parameters
    ----------
    pictures, held_out
        Clear pictures ``(h, w, 3)``, uint8, to train on and to validate on. Without any held out there is no
        ``psnr``, and the best weights are the last.
    folder
        Gets ``checkpoint.pt`` (to resume from), ``last.safetensors`` and ``best.safetensors`` (the averaged weights)
        and ``log.csv``.
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
        After each step: ``step``, ``loss``, ``lr``, ``seconds``, and ``psnr`` after a validation.

    Raises
    ------
    FloatingPointError
        If the loss stays not finite; the last checkpoint stands.
    """
    recipe = recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, target = folder / "checkpoint.pt", torch.device(device)
    state = State.load(checkpoint, spec, recipe, target) if resume else State.start(spec, recipe, target, init)
    cases = validation_set(held_out)
    started, before, failed = time.perf_counter(), state.seconds, 0
    about = {"licence": "BSD-3-Clause", **(about or {}), "recipe": asdict(recipe)}

    for clear, hazy, offset in batches(pictures, state.step, recipe):
        lr = learning_rate(state.step, recipe)
        loss = step(state, clear, hazy, offset, lr, recipe)
        failed = 0 if math.isfinite(loss) else failed + 1
        if failed > PATIENCE:
            raise FloatingPointError(f"the loss was not finite {failed} times in a row; lower --lr, then --resume")
        state.step += 1
        state.seconds = before + time.perf_counter() - started
        report: dict[str, float] = {"step": state.step, "loss": loss, "lr": lr, "seconds": round(state.seconds, 1)}
        over = state.seconds - before > 60 * minutes
        if state.step % every == 0 or state.step == recipe.steps or over:
            if cases:
                report["psnr"] = validate(state.average, cases)
            about["trained"] = report
            save_model(state.average, folder / "last.safetensors", half=True, **about)
            if report.get("psnr", math.inf) > state.best:
                state.best = report.get("psnr", state.best)
                save_model(state.average, folder / "best.safetensors", half=True, **about)
            state.save(checkpoint)
        log(folder / "log.csv", report)
        yield report
        if over:
            return


def step(state: State, clear: Tensor, hazy: Hazy, offset: tuple[int, int], lr: float, recipe: Recipe) -> float:
    """Make one step of the optimiser and of the average and return the loss.

    A step whose loss or gradient is not finite is left out, and its loss is NaN.
    """
    device = state.model.device
    hazy = Hazy(hazy.pixels.to(device), hazy.transmission.to(device), hazy.airlight.to(device))
    gain, shift = state.model.train().change(hazy.pixels, offset)
    loss = losses(clear.to(device), hazy, gain, shift, recipe)
    if not torch.isfinite(loss):
        return math.nan
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
    if not torch.isfinite(norm):
        return math.nan
    for group in state.optimiser.param_groups:
        group["lr"] = lr
    state.optimiser.step()
    update_average(state.average, state.model, state.step, recipe.ema)
    return float(loss.detach())


def log(path: Path, report: dict[str, float]) -> None:
    """Append a line to the CSV log."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, ["step", "seconds", "loss", "lr", "psnr"])
        if new:
            writer.writeheader()
        writer.writerow(report)


def spec_from_text(text: str) -> Spec:
    """Return a named spec, or one given as JSON."""
    from dehazexl.model import SPECS

    if text in SPECS:
        return SPECS[text]
    if text.lstrip().startswith("{"):
        try:
            return Spec.from_json(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the spec {text!r} is no JSON: {error}") from None
    raise ValueError(f"unknown spec {text!r}: give JSON or one of {', '.join(SPECS)}")
