"""The state of a training, in memory and on disk."""

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

COUNTED = ("step", "seconds", "waited", "best", "skipped", "about")
"""Plain values of a `State`."""


@dataclass
class State:
    """All that changes while training, and where it comes from (`about`): what a checkpoint holds."""

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
        """Make a fresh network, or one with the weights of `init`, and its optimizer."""
        torch.manual_seed(recipe.seed)
        model = DehazeXL(spec)
        if init is not None:
            model.load_state_dict(init.state_dict())
        model.to(device)
        # Half precision has few exponents: gradients are scaled up, and a step in which they overflow is left out.
        scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        average = deepcopy(model).requires_grad_(False).eval()
        return cls(model, average, make_optimizer(model, recipe), scaler=scaler)

    def save(self, path: Path) -> None:
        """Write a checkpoint beside `path`, then rename it, so that a kill or a full disk leaves the one before."""
        state = {
            "spec": self.model.spec.to_json(),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in COUNTED},
        }
        with atomic_write(path) as part, part.open("wb") as file:
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
        state.optimizer.load_state_dict(saved["optimizer"])
        if state.scaler.is_enabled() and saved.get("scaler"):
            state.scaler.load_state_dict(saved["scaler"])
        for name in COUNTED:
            setattr(state, name, saved.get(name, getattr(state, name)))
        return state


def make_optimizer(model: DehazeXL, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases and norms do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99))


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
    if not isinstance(saved, dict) or "spec" not in saved or "optimizer" not in saved:
        raise ValueError(
            f"{path}: no checkpoint of dehazexl train, or a damaged one; put best.pt beside it in its place, or start "
            "another training with --init and the last weights"
        )
    return {"about": {}, **saved}  # earlier versions kept nothing about it
