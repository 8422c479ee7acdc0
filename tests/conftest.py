"""Networks that many tests share, each made once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

# Small networks gain nothing from more threads, and on busy cores torch's wait for each other: up to ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dehazexl import DehazeXL


@pytest.fixture(scope="session")
def official_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write a .pth file as the official code does: half a gigabyte."""
    import torch
    from reference import official_state

    path = tmp_path_factory.mktemp("official") / "official.pth"
    torch.save(official_state(), path)
    yield path
    path.unlink()


@pytest.fixture(scope="session")
def official(official_file: Path) -> DehazeXL:
    """Load the official network as its users do."""
    from dehazexl import load_model

    return load_model(official_file, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tiny() -> DehazeXL:
    """Return a small network that changes pictures a lot; every tile depends on every other."""
    from reference import randomised

    return randomised("tiny")


@pytest.fixture(scope="session")
def model() -> DehazeXL:
    """Return a small network as training would start from."""
    import torch

    from dehazexl.model import SPECS, DehazeXL

    torch.manual_seed(0)
    return DehazeXL(SPECS["tiny"]).eval()
