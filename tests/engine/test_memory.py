"""Where memory runs short, fewer tiles are computed at once: in every pass, for good, and it is said once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference import randomised, relative

import dehazexl
from dehazexl.engine.dehaze import decode_lazily, open_tokens, prepare
from dehazexl.engine.memory import TilesAtOnce, short_of_memory
from dehazexl.engine.run import Cancel, Cancelled, stages


def scene(height: int = 900, width: int = 1100) -> np.ndarray:
    return np.random.default_rng(0).random((height, width, 3)).astype(np.float32)


def test_parts_cover_all_in_order_and_shrink_for_good() -> None:
    memory, asked = TilesAtOnce(8), []

    def compute(part: slice) -> list[int]:
        asked.append(part.stop - part.start)
        if asked[-1] > 2:
            raise MemoryError
        return list(range(part.start, part.stop))

    found = [n for _, some in memory.each(11, compute) for n in some]
    assert found == list(range(11))
    assert asked == [8, 4, 2, 2, 2, 2, 2, 1]
    assert memory.batch == 2 and memory.note == "memory ran out: 2 tiles are computed at once from now on"


def test_fusing_has_a_number_of_its_own() -> None:
    memory, asked = TilesAtOnce(2), []

    def compute(part: slice) -> None:
        asked.append(part.stop - part.start)
        if asked[-1] > 40:
            raise MemoryError

    assert [part.stop for part, _ in memory.each(90, compute, "fuse")] == [22, 44, 66, 88, 90]
    assert asked == [90, 45, 22, 22, 22, 22, 2]
    assert (memory.batch, memory.fuse) == (2, 22)
    assert TilesAtOnce(64).fuse == 256


def test_what_one_tile_does_not_fit_in_is_raised() -> None:
    with pytest.raises(MemoryError):
        list(TilesAtOnce(2).each(3, lambda part: (_ for _ in ()).throw(MemoryError())))


def test_other_errors_are_raised_at_once() -> None:
    memory = TilesAtOnce(4)
    with pytest.raises(ZeroDivisionError):
        list(memory.each(4, lambda part: 1 / 0))
    assert memory.batch == 4 and not memory.note


@pytest.mark.parametrize("spec", ["tiny", "tiny-field"])
@pytest.mark.parametrize("stage", ["encode", "fuse", "decode"])
def test_every_pass_goes_on_with_fewer_tiles(spec: str, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = randomised(spec), scene()
    wanted = np.asarray(dehazexl.dehaze(pixels, model, value_range=(0, 1), batch=4))
    place: tuple[object, str] = (model, "decode" if stage == "decode" else "encode")
    if stage == "fuse":
        monkeypatch.setattr("dehazexl.engine.memory.FUSE_SHARE", 1)
        place = (model.context.layers[0], "forward")
    whole: Callable[..., Any] = getattr(*place)

    def short(x: torch.Tensor, *rest: object) -> object:
        if (x.shape[1] / 64 if stage == "fuse" and len(x) == 1 else len(x)) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(x, *rest)

    monkeypatch.setattr(*place, short)
    job = prepare(pixels, model, value_range=(0, 1), batch=4)
    store = open_tokens(job)
    for each in stages(job, store):
        assert sum(each.steps) == each.total
    clear = np.asarray(decode_lazily(job, store))
    assert (job.memory.fuse if stage == "fuse" else job.memory.batch) == 2
    assert job.memory.note == "memory ran out: 2 tiles are computed at once from now on"
    assert relative(clear, wanted) < 1e-5


def test_short_memory_is_known_by_what_torch_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert short_of_memory(caught.value)
    assert not short_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_cancelled_a_run_ends_within_a_batch_and_can_be_taken_up() -> None:
    model, pixels = randomised("tiny"), scene()
    job = prepare(pixels, model, value_range=(0, 1), batch=1)
    store, wanted, done = open_tokens(job), threading.Event(), 0
    cancel = Cancel(wanted.is_set)
    with pytest.raises(Cancelled):
        for stage in stages(job, store, cancel):
            for some in stage.steps:
                done += some
                if done == 3:
                    wanted.set()
    assert done == 3
    assert [stage.name for stage in stages(job, store) if sum(stage.steps) == stage.total] == ["encode", "fuse"]
    with pytest.raises(Cancelled):
        np.asarray(decode_lazily(job, store, cancel.check))
