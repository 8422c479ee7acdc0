"""State of a training run, in memory and in a checkpoint file."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dehazexl.io.disk import atomic_write
from dehazexl.model import DehazeXL, Spec
from dehazexl.model.weights import read_pickle
from dehazexl.training.config import Recipe

SAVED_FIELDS = ("step", "seconds", "waited", "best", "skipped", "about")
"""Attributes of `State` that are stored as plain values."""


@dataclass
class State:
    """State of a training run, as stored in a checkpoint.

    Attributes
    ----------
    model, average
        The network and the moving average of its weights.
    optimizer, scaler
        Optimizer, and gradient scaler for float16.
    step
        Number of completed steps.
    seconds, waited
        Duration of the training, and the part of it spent waiting for batches.
    best
        Best PSNR of the validations in decibels.
    skipped
        Number of steps left out because loss or gradient was not finite.
    about
        Provenance.
    """

    model: DehazeXL
    average: DehazeXL
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    best: float = -math.inf
    skipped: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))

    @classmethod
    def start(cls, spec: Spec, recipe: Recipe, device: torch.device, init: DehazeXL | None = None) -> State:
        """Create the state of a new run.

        Parameters
        ----------
        spec, recipe
            Specification of the network, and hyperparameters.
        device
            Device of the network.
        init
            Network of the same spec with the initial weights; random by default.
        """
        torch.manual_seed(recipe.seed)
        model = DehazeXL(spec)
        if init is not None:
            model.load_state_dict(init.state_dict())
        model.to(device)
        # float16 has a small range of exponents: gradients are scaled up, and steps in which they overflow left out.
        scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        average = deepcopy(model).requires_grad_(False).eval()
        return cls(model, average, make_optimizer(model, recipe), scaler=scaler)

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically: an interruption or a full disk leaves the previous one intact."""
        state = {
            "spec": self.model.spec.to_json(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in SAVED_FIELDS},
        }
        with atomic_write(path) as part, part.open("wb") as file:
            torch.save(state, file)

    @classmethod
    def load(cls, path: Path, spec: Spec, recipe: Recipe, device: torch.device) -> State:
        """Restore the state from a checkpoint.

        Raises
        ------
        ValueError
            If the checkpoint has another spec, or is damaged.
        """
        saved = read_checkpoint(path, device)
        if Spec.from_json(saved["spec"]) != spec:
            raise ValueError(f"{path}: the checkpoint has another spec; train into another folder, or give its spec")
        state = cls.start(spec, recipe, device)
        state.model.load_state_dict(saved["model"])
        state.average.load_state_dict(saved["average"])
        state.optimizer.load_state_dict(saved["optimizer"])
        if state.scaler.is_enabled() and saved.get("scaler"):
            state.scaler.load_state_dict(saved["scaler"])
        for name in SAVED_FIELDS:
            setattr(state, name, saved.get(name, getattr(state, name)))
        return state


def make_optimizer(model: DehazeXL, recipe: Recipe) -> torch.optim.AdamW:
    """Create AdamW with weight decay on matrices, not on biases and norms."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))


def read_checkpoint(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint written by `State.save`.

    Raises
    ------
    ValueError
        If the file is not a checkpoint, or is damaged.
    """
    try:
        saved = read_pickle(path, device)
    except ValueError:
        saved = None
    if not isinstance(saved, dict) or "spec" not in saved or "optimizer" not in saved:
        raise ValueError(
            f"{path}: not a checkpoint of dehazexl train, or damaged; replace it by best.pt in that folder, or start "
            "another training with --init and the last weights"
        )
    return {"about": {}, **saved}  # checkpoints of earlier versions have no provenance
