"""Networks that many tests share, each made once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

# Small networks gain nothing from more threads, and on busy cores torch's wait for each other: up to ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from dehazexl import DehazeXL


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> DehazeXL:
    """Load the official network as its users do: from a .pth file."""
    import torch
    from reference import official_state

    from dehazexl import load_model

    path = tmp_path_factory.mktemp("official") / "official.pth"
    torch.save(official_state(), path)
    model = load_model(path, device="cpu", dtype="float32")
    path.unlink()
    return model


@pytest.fixture(scope="session")
def tiny() -> DehazeXL:
    """Return a small network that changes pictures a lot; every tile depends on every other."""
    from reference import randomised

    return randomised("tiny")
