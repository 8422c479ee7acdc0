"""A network that computed has threads, which a forked process lacks."""

from __future__ import annotations

import multiprocessing
import os
import sys

import numpy as np
import pytest

from dehazexl import DehazeXL, dehaze
from dehazexl.engine.job import computing


def compute() -> None:
    with computing():
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_says_that_it_would_hang(tiny: DehazeXL) -> None:
    dehaze(np.zeros((40, 40, 3), np.uint8), tiny).compute()
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            compute()
            os.write(writes, b"computed")
        except RuntimeError as error:
            os.write(writes, str(error).encode())
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert "forked after a network had computed" in said and "spawn" in said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks by default")
def test_a_process_forked_before_computes() -> None:
    """Check it in a child that is spawned, in which no network has computed yet."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(fork_and_compute) == 0


def fork_and_compute() -> int:
    child = os.fork()
    if child == 0:
        compute()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
