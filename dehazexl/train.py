"""Training: clear pictures in, haze put on them as they come (or pairs), weights out."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from dehazexl.atomic import replacing
from dehazexl.batches import Batch, steps, validation_set
from dehazexl.data import Dataset
from dehazexl.grid import TILE
from dehazexl.model import DehazeXL, Spec
from dehazexl.weights import read_pickle, save_model

PATIENCE = 20
"""Consecutive steps that may fail (a loss that is not finite) before training gives up."""

COLUMNS = ["step", "seconds", "waited", "loss", "lr", "skipped", "psnr", "ssim"]
"""Of the log."""

COUNTED = ("step", "seconds", "waited", "best", "skipped", "about")
"""Plain values of a `State`."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What the network computes in while training; its weights stay in float32, and so does its last layer."""

Answer = Callable[[Tensor, tuple[int, int], int | None], tuple[Tensor, Tensor]]
"""From hazy pictures, offset and tiles at once to gain and offset, see `DehazeXL.change`."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    steps
        Steps of the whole run; the learning rate falls to zero along a cosine by the last.
    tiles
        Tiles of 256 x 256 pixels in a batch.
    crop
        Side of the largest crops, in tiles: 1 to 8 (2048 pixels).
    accumulate
        Batches of a step, whose gradients are summed.
    part
        Tiles computed at once; their activations are then computed again in the backward pass, so that large crops
        fit (gradient checkpointing). None computes the batch at once and keeps all.
    precision
        ``float32``, or what to compute in where it is safe (autocast): ``bfloat16`` or ``float16``.
    procedural
        Share of the crops that are procedural pictures instead of real ones, 0 to 1.
    lr, warmup, decay, clip
        Peak learning rate of AdamW, steps until it is reached, weight decay, largest norm of the gradient.
    ema
        Decay of the moving average of the weights that is validated and saved.
    fft, transmission, airlight, seam
        Weights of the losses beside L1: on the Fourier transform, on the logarithm of the transmission, on the
        airlight, on what differs around tile borders.
    seed
        Of weights, crops and haze.
    """

    steps: int = 3000
    tiles: int = 8
    crop: int = 3
    accumulate: int = 1
    part: int | None = None
    precision: str = "float32"
    procedural: float = 0.0
    lr: float = 6e-4
    warmup: int = 100
    decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.995
    fft: float = 0.05
    transmission: float = 0.1
    airlight: float = 0.2
    seam: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if not 1 <= self.crop <= 8:
            raise ValueError(f"crop is 1 to 8 tiles, not {self.crop}")
        if not 0 <= self.procedural <= 1:
            raise ValueError(f"procedural is a share from 0 to 1, not {self.procedural}")
        if (self.part is not None and self.part < 1) or self.accumulate < 1:
            raise ValueError(f"part and accumulate are at least 1, not {self.part} and {self.accumulate}")


@dataclass
class State:
    """All that changes while training, and where it comes from (`about`): what a checkpoint holds."""

    model: DehazeXL
    average: DehazeXL
    optimiser: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    best: float = -math.inf
    skipped: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))

    @classmethod
    def start(cls, spec: Spec, recipe: Recipe, device: torch.device, init: DehazeXL | None = None) -> State:
        """Make a fresh network, or one with the weights of `init`, and its optimiser."""
        torch.manual_seed(recipe.seed)
        model = DehazeXL(spec)
        if init is not None:
            model.load_state_dict(init.state_dict())
        model.to(device)
        # Half precision has few exponents: gradients are scaled up, and a step in which they overflow is left out.
        scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        average = deepcopy(model).requires_grad_(False).eval()
        return cls(model, average, make_optimiser(model, recipe), scaler=scaler)

    def save(self, path: Path) -> None:
        """Write a checkpoint beside `path`, then rename it, so that a kill or a full disk leaves the one before."""
        state = {
            "spec": self.model.spec.to_json(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in COUNTED},
        }
        with replacing(path) as part, part.open("wb") as file:
            torch.save(state, file)

    @classmethod
    def load(cls, path: Path, spec: Spec, recipe: Recipe, device: torch.device) -> State:
        """Go on from a checkpoint.

        Raises
        ------
        ValueError
            If it was made with another spec, or is damaged.
        """
        saved = read_checkpoint(path, device)
        if Spec.from_json(saved["spec"]) != spec:
            raise ValueError(f"{path}: a checkpoint of another spec; train into another folder, or give its spec")
        state = cls.start(spec, recipe, device)
        state.model.load_state_dict(saved["model"])
        state.average.load_state_dict(saved["average"])
        state.optimiser.load_state_dict(saved["optimiser"])
        if state.scaler.is_enabled() and saved.get("scaler"):
            state.scaler.load_state_dict(saved["scaler"])
        for name in COUNTED:
            setattr(state, name, saved.get(name, getattr(state, name)))
        return state


def read_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read what `State.save` wrote.

    Raises
    ------
    ValueError
        If it is something else, or damaged.
    """
    try:
        saved = read_pickle(path, device)
    except ValueError:
        saved = None
    if not isinstance(saved, dict) or "spec" not in saved or "optimiser" not in saved:
        raise ValueError(
            f"{path}: no checkpoint of dehazexl train, or a damaged one; put best.pt beside it in its place, or start "
            "another training with --init and the last weights"
        )
    return {"about": {}, **saved}  # earlier versions kept nothing about it


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


def losses(batch: Batch, gain: Tensor, shift: Tensor, recipe: Recipe) -> Tensor:
    """Compute the loss of what the network answered to a batch: gain and shift ``(n, 3, h, w)``.

    The answer is clamped near [0, 1], or what dense haze hides would rule the rest. By Koschmieder's law the gain
    is one over the transmission t, and the shift is (1 - gain) times the airlight, whose error counts by 1 - t: as
    much as there is haze to show it. Both are left out where they are not known.
    """
    out = (gain * batch.hazy + shift).clamp(-0.1, 1.1)
    error = out - batch.clear
    loss = error.abs().mean()
    spectrum = torch.view_as_real(torch.fft.rfft2(error, norm="ortho")).abs().mean()
    loss = loss + recipe.fft * spectrum + recipe.seam * seam(error)
    if batch.transmission is None or batch.airlight is None:
        return loss
    density = (gain.clamp(min=0.05).log() + batch.transmission.clamp(min=0.05).log()).abs().mean()
    colour = ((shift + (gain - 1) * batch.airlight) / gain.clamp(min=1)).abs().mean()
    return loss + recipe.transmission * density + recipe.airlight * colour


def seam(error: Tensor) -> Tensor:
    """Mean jump of the error ``(n, 3, h, w)`` around tile borders; 0 for pictures of one tile.

    Of pixels and of means over cells of 4 and 16 pixels, the two on each side of a border: with the border's jump
    alone, a network learns to leave the border's pixels hazy, which is as visible as a seam.
    """
    jumps = [
        cells.narrow(axis, at // side - 2, 4).diff(dim=axis).abs().mean()
        for side in (1, 4, 16)
        for cells in (F.avg_pool2d(error, side),)
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


class Change(nn.Module):
    """A network whose forward is its `change`, as `DistributedDataParallel` wants it."""

    def __init__(self, model: DehazeXL) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, offset: tuple[int, int], part: int | None) -> tuple[Tensor, Tensor]:
        """Return gain and offset ``(n, 3, h, w)``."""
        return self.model.change(x, offset, part)


def shared(model: DehazeXL) -> Answer:
    """Return the network's `change`; of several processes (torchrun) each has a copy, and gradients are averaged."""
    if not dist.is_initialized():
        return model.change
    from torch.nn.parallel import DistributedDataParallel

    devices = [model.device] if model.device.type == "cuda" else None
    answer: Answer = DistributedDataParallel(Change(model), device_ids=devices)
    return answer


def mean_of_all(value: float, device: torch.device) -> float:
    """Return the mean of a number over all processes, so that all decide alike."""
    if not dist.is_initialized():
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor)
    return float(tensor) / dist.get_world_size()


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

    In several processes (torch.distributed initialised, see `commands.train`) each takes its share of every step,
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
        After each step, by the names of `COLUMNS`: ``step``, ``loss``, ``lr``, ``seconds`` since the start,
        ``waited`` of them for batches, ``skipped`` steps; after a validation ``psnr`` and ``ssim``.

    Raises
    ------
    FloatingPointError
        If the loss stays not finite; the last checkpoint with finite steps stands.
    OSError
        If a checkpoint cannot be written; the one before stands.
    ValueError
        If a picture turns out to be damaged; a checkpoint is written before.
    """
    recipe = recipe or Recipe()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, target = folder / "checkpoint.pt", torch.device(device)
    state = State.load(checkpoint, spec, recipe, target) if resume else State.start(spec, recipe, target, init)
    if state.about.get("held_out", list(held_out.names)) != list(held_out.names):
        state.best = -math.inf  # it was scored on other pictures
    state.about = {"licence": "BSD-3-Clause", **(about or {}), "recipe": asdict(recipe)}
    state.about["held_out"] = list(held_out.names)
    answer = shared(state.model)
    cases = validation_set(held_out) if rank == 0 else []
    if rank == 0:
        forget_after(folder / "log.csv", state.step)
    started, before, failed = time.perf_counter(), state.seconds, 0

    coming = steps(data, state.step, recipe, rank, ranks)
    while True:
        asked = time.perf_counter()
        try:
            batches = next(coming, None)
        except (OSError, ValueError) as error:  # a damaged picture: some are only found out when they are read
            if rank == 0 and failed == 0:
                state.save(checkpoint)
            raise ValueError(f"{error}; mend or remove it, then --resume goes on from step {state.step}") from error
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
        due = state.step % every == 0 or state.step == recipe.steps or over
        if rank == 0:
            # While steps fail, the weights may be on their way to where no step succeeds: what was good stands.
            report |= keep(state, folder, cases, report) if due and failed == 0 else {}
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
    """Make one step of the optimiser and of the average and return the loss.

    A step whose loss or gradient is not finite is left out, in all processes, and its loss is NaN.
    """
    answer, device = answer or state.model.change, state.model.device
    state.model.train()
    state.optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for batch in (batch.to(device) for batch in batches):
        with torch.autocast(device.type, PRECISIONS[recipe.precision], enabled=recipe.precision != "float32"):
            gain, shift = answer(batch.hazy, batch.offset, recipe.part)
        loss = losses(batch, gain, shift, recipe) / len(batches)
        state.scaler.scale(loss).backward()
        total += float(loss.detach())
    total = mean_of_all(total, device)
    state.scaler.unscale_(state.optimiser)
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
    if not (math.isfinite(total) and torch.isfinite(norm)):
        state.scaler.update()
        return math.nan
    for group in state.optimiser.param_groups:
        group["lr"] = lr
    state.scaler.step(state.optimiser)
    state.scaler.update()
    update_average(state.average, state.model, state.step, recipe.ema)
    return total


def log(path: Path, report: dict[str, float]) -> None:
    """Append a line to the CSV log."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(report)


def read_log(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV log, none if there is no such file; a row that was cut short by a kill is left out."""
    if not path.exists():
        return []
    text = path.read_text(errors="replace").replace("\0", "")
    return [row for row in csv.DictReader(io.StringIO(text)) if whole(row)]


def whole(row: dict[str, str]) -> bool:
    """Tell whether a row of the log holds numbers, as many as it should."""
    try:
        return len([float(row[name]) for name in COLUMNS if row[name]]) >= COLUMNS.index("psnr")
    except (KeyError, TypeError, ValueError):
        return False


def forget_after(path: Path, step: int) -> None:
    """Drop what a log says of steps that the checkpoint does not know of: they are made again."""
    if not path.exists():
        return
    kept = [row for row in read_log(path) if int(row["step"]) <= step]
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)


def plot(folder: Path) -> Path:
    """Draw a run's log: loss, smoothed over steps, and the scores of its validations, as ``plot.png``.

    Raises
    ------
    ImportError
        Without matplotlib, which ``pip install napari-dehazexl[train]`` brings.
    """
    from matplotlib.figure import Figure

    rows = read_log(folder / "log.csv")
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses_ = [(int(row["step"]), float(row["loss"])) for row in rows]
    size = max(1, len(losses_) // 50)
    groups = [losses_[i : i + size] for i in range(0, len(losses_), size)]
    means = [[value for _, value in group if math.isfinite(value)] for group in groups]
    left.plot([group[-1][0] for group in groups], [sum(m) / len(m) if m else math.nan for m in means])
    left.set(xlabel="step", ylabel=f"loss, mean of {size} steps")
    for axes, name, style in ((right, "psnr", "o-C0"), (right.twinx(), "ssim", "s--C1")):
        scored = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        axes.plot([at for at, _ in scored], [value for _, value in scored], style, markersize=3)
        axes.set_ylabel(f"{name.upper()} of the validation" + (", dB" if name == "psnr" else ""), color=style[-2:])
    right.set_xlabel("step")
    figure.savefig(folder / "plot.png", dpi=100)
    return folder / "plot.png"


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
