"""A picture that is dehazed while it is looked at: what it answers when, and what becomes of trouble."""

import copy
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from reference import randomised

import dehazexl
from dehazexl.image.grid import Window
from dehazexl.model import SPECS, DehazeXL
from dehazexl.viewing.level import LevelRun
from dehazexl.viewing.session import DehazeSession
from dehazexl.viewing.tile_cache import TileCache

VIEW = (slice(100, 500), slice(300, 900))


@pytest.fixture(scope="module")
def hazy() -> np.ndarray:
    y, x = np.mgrid[:1100, :1500]
    scene = np.stack([x % 97, y % 89, (x + y) % 83], axis=-1)
    return (scene + 120).astype(np.uint8)


def opened(pixels: np.ndarray) -> dehazexl.Image:
    """A picture with overviews."""
    image = dehazexl.open_image(pixels)
    return replace(image, levels=tuple(image.levels[0][::step, ::step].rechunk(512) for step in (1, 2, 4, 8)))


@pytest.fixture
def watch() -> Iterator[Callable[..., DehazeSession]]:
    made: list[DehazeSession] = []

    def start(*args, **kwargs) -> DehazeSession:
        made.append(DehazeSession(*args, **kwargs))
        return made[-1]

    yield start
    for live in made:
        live.close(60)
        assert not live._worker._thread.is_alive()


def test_hazy_at_once_then_as_the_engine_has_it(watch, model, hazy) -> None:
    gate = threading.Event()
    live = watch(opened(hazy), lambda: gate.wait(60) and model)
    np.testing.assert_array_equal(live.levels[0][VIEW], hazy[VIEW])
    updates: list[bool] = []
    live.updated.connect(lambda everywhere: updates.append(everywhere))
    gate.set()
    assert live.wait(60)
    assert updates[:2] == [True, True] and set(updates[2:]) == {False}  # two overviews, then tiles
    wanted = np.asarray(dehazexl.dehaze(hazy, model)[VIEW]).astype(int)
    assert np.abs(wanted - hazy[VIEW]).mean() > 2, "the network does nothing"
    assert np.abs(live.levels[0][VIEW] - wanted).max() <= 1


def test_tiles_of_another_size_are_as_the_engine_has_them(watch, hazy) -> None:
    model = randomised("tiny-field")
    live = watch(opened(hazy), lambda: model)
    live.levels[0][VIEW]
    assert live.wait(60)
    wanted = np.asarray(dehazexl.dehaze(hazy, model)[VIEW]).astype(int)
    assert np.abs(wanted - hazy[VIEW]).mean() > 2, "the network does nothing"
    assert np.abs(live.levels[0][VIEW] - wanted).max() <= 1
    assert live.progress == (len(live._tiles), len(live._tiles)) and len(live._tiles) == 2  # of 512 x 512 pixels


def test_the_overview_s_change_comes_between(watch, model, hazy) -> None:
    live = watch(opened(hazy), lambda: model)
    live.look_at(1, Window(0, 10, 0, 10))  # the overview itself, 550 x 750
    assert live.wait(60)
    live.close(60)  # nothing is computed from here on
    wanted = np.asarray(dehazexl.dehaze(hazy, model)[VIEW]).astype(int)
    guess = live.levels[0][VIEW]
    assert np.abs(guess - wanted).mean() < 0.5 * np.abs(hazy[VIEW] - wanted).mean()
    assert not np.array_equal(live.levels[3][:], hazy[::8, ::8])


def test_a_small_overview_comes_before_the_larger(watch, model, hazy, monkeypatch) -> None:
    sides: list[int] = []
    changes = LevelRun.predict_affine

    def noted(work: LevelRun, stopped: Callable[[], bool]) -> np.ndarray | None:
        sides.append(work.job.grid.height)
        return changes(work, stopped)

    monkeypatch.setattr(LevelRun, "predict_affine", noted)
    live = watch(opened(hazy), lambda: model)
    assert live.wait(60)
    assert sides == [275, 550]
    live.forget()
    assert live.wait(60)
    assert sides == 2 * [275, 550]


def test_forgotten_while_an_overview_is_made(watch, model, hazy, monkeypatch) -> None:
    """What comes of it is not kept, and both overviews are made anew."""
    sides: list[int] = []
    changes = LevelRun.predict_affine

    def forgetful(work: LevelRun, stopped: Callable[[], bool]) -> np.ndarray | None:
        overview = changes(work, stopped)
        sides.append(work.job.grid.height)
        if len(sides) == 1:
            live.forget()
        return overview

    monkeypatch.setattr(LevelRun, "predict_affine", forgetful)
    gate = threading.Event()
    live = watch(opened(hazy), lambda: gate.wait(60) and model)
    gate.set()
    assert live.wait(60)
    assert sides == [275, 275, 550]
    assert live._tiles.overview is not None and live._tiles.overview.shape == (2, 3, 550, 750)


def test_strength_needs_no_network(watch, model, hazy) -> None:
    live = watch(opened(hazy), lambda: model)
    live.levels[0][VIEW]
    assert live.wait(60)
    live.close(60)
    full = live.levels[0][VIEW].astype(float)
    live.strength = 0.5
    np.testing.assert_allclose(live.levels[0][VIEW], (full + hazy[VIEW]) / 2, atol=1)
    live.strength = 0
    np.testing.assert_array_equal(live.levels[0][VIEW], hazy[VIEW])
    with pytest.raises(ValueError, match="strength must be between 0 and 1, not 2"):
        live.strength = 2


@pytest.mark.parametrize("limits", [(10, 5), (3, 3), (0, math.inf), (math.nan, 1)])
def test_limits_that_do_not_rise(model, hazy, limits) -> None:
    with pytest.raises(ValueError, match="must be two rising numbers"):
        DehazeSession(opened(hazy), lambda: model, value_range=limits)


def test_bytes_keep_their_values_whatever_is_black_and_white(watch, model, hazy) -> None:
    live = watch(opened(hazy), lambda: model, value_range=(130, 190))
    live.levels[0][VIEW]
    assert live.wait(60)
    wanted = np.asarray(dehazexl.dehaze(hazy, model, value_range=(130, 190))[VIEW]).astype(int)
    assert np.abs(wanted - hazy[VIEW]).mean() > 2, "the network does nothing"
    assert np.abs(live.levels[0][VIEW] - wanted).max() <= 1
    live.strength = 0
    np.testing.assert_array_equal(live.levels[0][VIEW], hazy[VIEW])


def test_what_is_transparent_stays_so(watch, model, hazy) -> None:
    alpha = np.full((*hazy.shape[:2], 1), 255, np.uint8)
    alpha[:400] = 0
    picture = replace(opened(np.concatenate([hazy, alpha], axis=-1)), rgb=(0, 1, 2), alpha=3)
    live = watch(picture, lambda: model)
    live.levels[0][VIEW]
    assert live.wait(60)
    shown = live.levels[0][VIEW]
    np.testing.assert_array_equal(shown[..., 3:], alpha[VIEW])
    np.testing.assert_array_equal(shown[:300, :, :3], hazy[100:400, 300:900])
    assert np.abs(shown[300:, :, :3].astype(int) - hazy[400:500, 300:900]).mean() > 2


def test_the_middle_of_the_view_comes_first(watch, model, hazy) -> None:
    live = watch(opened(hazy), lambda: model)
    nearest = live._tiles.wanted(0, Window(300, 700, 500, 1100))
    assert nearest[0] == (2, 3)  # its middle is at 560, 784, that of the view at 500, 800
    assert sorted(nearest) == sorted(live._tiles.grids[0].tiles_touching(Window(300, 700, 500, 1100)).cells())


def test_a_pan_re_orders_the_queue(watch, model, hazy) -> None:
    gate = threading.Event()
    live = watch(opened(hazy), lambda: gate.wait(60) and model)
    first, then = Window(0, 500, 0, 500), Window(700, 1100, 1000, 1500)
    live.look_at(0, first)
    live.look_at(0, then)  # before anything of the first has been computed
    kept: list[list[tuple[int, int]]] = []
    keep = live._tiles.keep
    live._tiles.keep = lambda level, tiles: (kept.append(list(tiles)), keep(level, tiles))  # type: ignore[method-assign]
    gate.set()
    assert live.wait(60)
    assert live._tiles.wanted(0, then)[0] in kept[0], "not the middle of the new view"
    assert {cell[1:] for cell in live._tiles._tiles} <= set(live._tiles.wanted(0, then)), "tiles that nobody looks at"


def test_progress_and_rate_from_the_first_tiles_on(watch, model, hazy) -> None:
    gate = threading.Event()
    live = watch(opened(hazy), lambda: gate.wait(60) and model)
    assert math.isnan(live.rate)
    live.levels[0][VIEW]
    seen: list[str] = []

    def follow() -> None:
        done, total = live.progress
        assert 0 <= done <= total
        assert not live.status.startswith("encoding") or live.rate > 0
        seen.append(live.status)

    live.progressed.connect(follow)
    gate.set()
    assert live.wait(60) and live.error is None
    assert "dehazing the overview" in seen
    assert any(status.startswith("encoding ") and status.endswith(" of 35 tiles") for status in seen)
    assert live.rate > 0 and live.status == "all in view is dehazed"


def test_tiles_are_forgotten_when_there_are_too_many(watch, model, hazy) -> None:
    tile = 256 * 256 * 3 * 2
    live = watch(opened(hazy), lambda: model, cache=5 * tile)
    live.levels[0][:300, :300]
    assert live.wait(60)
    assert {key[1:] for key in live._tiles._tiles} >= {(0, 0), (0, 1), (1, 0), (1, 1)}
    live.levels[0][:]  # more than fits: as many as fit, and then rest
    assert live.wait(60)
    assert 0 < len(live._tiles._tiles) <= 5


def test_floats_are_shown_from_black_to_white(watch, model, hazy) -> None:
    pixels = (hazy.astype(np.float32) * 10 + 100).astype(np.uint16)
    pixels[0, 0] = 65535
    live = watch(opened(pixels), lambda: model, value_range=(100, 2650))
    live.levels[0][VIEW]
    assert live.wait(60)
    shown = live.levels[0][VIEW]
    wanted = np.asarray(dehazexl.dehaze(pixels, model, value_range=(100, 2650))[VIEW]).astype(float)
    assert shown.dtype == np.float32
    np.testing.assert_allclose(shown, ((wanted - 100) / 2550).clip(0, 1), atol=2e-3)


def test_levels_are_cut_as_arrays_are(watch, model, hazy) -> None:
    live = watch(opened(hazy), lambda: model, strength=0)
    level = live.levels[2]
    own = hazy[::4, ::4]
    assert level.shape == own.shape and level.ndim == 3 and level.dtype == np.uint8 and len(level) == len(own)
    for index in (np.s_[5], np.s_[5, 6], np.s_[..., 0], np.s_[3:9, 4:8, 1], np.s_[::3, ::-2], np.s_[-4:], np.s_[2:2]):
        np.testing.assert_array_equal(level[index], own[index])
    np.testing.assert_array_equal(np.asarray(level), own)


def test_short_memory_halves_the_batch(watch, hazy) -> None:
    class Short(DehazeXL):
        def decode(self, fused, maps, tiles):
            if len(tiles) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().decode(fused, maps, tiles)

    torch.manual_seed(0)
    gate, warnings = threading.Event(), []
    live = watch(opened(hazy), lambda: gate.wait(60) and Short(SPECS["tiny"]).eval())
    live.warned.connect(lambda note: warnings.append(note))
    gate.set()
    live.levels[0][VIEW]
    assert live.wait(60) and live.error is None
    assert live.notes == ["memory ran out: 2 tiles are computed at once from now on"] == warnings


def test_short_memory_while_fusing(watch, hazy, monkeypatch) -> None:
    """Fewer tiles ask at once then, too, and the answer stays."""
    monkeypatch.setattr("dehazexl.engine.memory.FUSE_SHARE", 4)  # of the 12 tiles of the overview all ask at once
    torch.manual_seed(0)
    network = DehazeXL(SPECS["tiny"]).eval()
    wanted = np.asarray(dehazexl.dehaze(hazy, network)[VIEW]).astype(int)
    layer = network.context.layers[0]
    fuse = layer.forward

    def short(queries: torch.Tensor, *keys: torch.Tensor) -> torch.Tensor:
        if queries.shape[1] > 8 * 64:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return fuse(queries, *keys)

    monkeypatch.setattr(layer, "forward", short)
    live = watch(opened(hazy), lambda: network)
    live.levels[0][VIEW]
    assert live.wait(60) and live.error is None
    assert live.notes == ["memory ran out: 6 tiles are computed at once from now on"]
    assert np.abs(live.levels[0][VIEW] - wanted).max() <= 1


def test_weights_that_are_none(watch, hazy) -> None:
    live = watch(opened(hazy), lambda: dehazexl.load_model("nothing.safetensors"))
    assert not live.wait(60)
    assert isinstance(live.error, FileNotFoundError) and live.status == "failed"
    np.testing.assert_array_equal(live.levels[0][VIEW], hazy[VIEW])


def test_a_file_that_vanishes(watch, model, hazy, tmp_path: Path) -> None:
    path = tmp_path / "hazy.tif"
    tifffile.imwrite(path, hazy, tile=(256, 256), photometric="rgb")
    image = dehazexl.open_image(path)
    path.unlink()
    live = watch(image, lambda: model)
    assert not live.levels[0][VIEW].any()
    assert live.error is not None and not live.wait(60)


def test_a_zarr_that_vanishes(watch, model, hazy, tmp_path: Path) -> None:
    """Zarr answers zeros for chunks that are not there: they must not be dehazed as if they were pixels."""
    path = tmp_path / "hazy.ome.zarr"
    dehazexl.to_zarr(hazy, path)
    live = watch(dehazexl.open_image(path), lambda: model)
    live.levels[0][:200, :200]
    assert live.wait(60)
    path.rename(tmp_path / "away")  # at once: half of it might be seen while it is removed
    assert not live.levels[0][-200:, -200:].any()
    assert live.lost and isinstance(live.error, FileNotFoundError) and "is gone" in str(live.error)


def test_nothing_is_kept_of_a_zarr_that_vanished(model, hazy, tmp_path: Path) -> None:
    """Nor of what was read of it: put back, it is dehazed anew."""
    path = tmp_path / "hazy.ome.zarr"
    dehazexl.to_zarr(hazy, path)
    gate = threading.Event()
    live = DehazeSession(dehazexl.open_image(path), lambda: gate.wait(60) and model)  # type: ignore[arg-type, return-value]
    try:
        path.rename(tmp_path / "away")
        gate.set()
        live._worker.join(60)
        assert live.lost and live._tiles.overview is None
        (tmp_path / "away").rename(path)
        live.restart()
        live.levels[0][VIEW]
        assert live.wait(60)
        wanted = dehazexl.dehaze(dehazexl.open_image(path), model).compute()[VIEW]
        assert np.abs(live.levels[0][VIEW].astype(int) - wanted).max() <= 1
    finally:
        live.close(60)


def test_forgotten_it_is_computed_again(watch, model, hazy) -> None:
    live = watch(opened(hazy), lambda: model)
    live.levels[0][VIEW]
    assert live.wait(60)
    clear = live.levels[0][VIEW]
    live.forget()
    assert live.wait(60)
    np.testing.assert_array_equal(live.levels[0][VIEW], clear)


def test_a_cache_smaller_than_the_view_comes_to_rest() -> None:
    """Tiles that are in view but not wanted must not drive out those that are, or they are decoded for ever."""
    answers = TileCache([(2048, 4096, 3), (1024, 2048, 3)], 1, 40 * 256 * 256 * 6)
    tile = np.zeros((256, 256, 3), np.float16)
    for x in (0, 600, 1200):
        window, decoded = Window(0, 1400, x, x + 2400), 0
        while missing := answers.missing(0, window):
            answers.keep(0, dict.fromkeys(missing[:4], tile))
            answers.dehaze(0, window, np.zeros((1400, 2400, 3), np.float32))  # the view is drawn after each batch
            decoded += 4
            assert decoded <= 80, "the same tiles are asked for again and again"
    assert len(answers) == 40


def test_stopped_it_goes_on_where_it_was(watch, model, hazy) -> None:
    live = watch(opened(hazy), lambda: model)
    live.levels[0][VIEW]
    until = time.monotonic() + 60
    while not live.status.startswith("encoding"):
        assert time.monotonic() < until
        time.sleep(0.001)
    live.close(60)
    assert live.status == "stopped" and not live._worker._thread.is_alive()
    live.levels[0][VIEW]
    assert not live.wait(0)
    live.restart()
    assert live.wait(60)
    wanted = np.asarray(dehazexl.dehaze(hazy, model)[VIEW]).astype(int)
    assert np.abs(live.levels[0][VIEW] - wanted).max() <= 1


def test_a_late_failure_of_a_cancelled_run_does_not_end_the_next(watch, model, hazy, monkeypatch) -> None:
    reached, failing = threading.Event(), threading.Event()
    advance = LevelRun.advance

    def late(work: LevelRun) -> None:
        if not reached.is_set():
            reached.set()
            assert failing.wait(60)
            raise OSError("the disk was away for a moment")
        advance(work)

    monkeypatch.setattr(LevelRun, "advance", late)
    live = watch(opened(hazy), lambda: model)
    assert reached.wait(60)
    live.close()
    live.restart()
    failing.set()
    live.levels[0][VIEW]
    assert live.wait(60) and live.error is None and not live.lost


def test_an_error_of_the_program_is_no_unreadable_file(watch, model, hazy, monkeypatch, caplog) -> None:
    live = watch(opened(hazy), lambda: model)
    monkeypatch.setattr(live._tiles, "dehaze", lambda *_: 1 / 0)
    assert not live.levels[0][VIEW].any()
    assert isinstance(live.error, ZeroDivisionError) and not live.lost
    assert "ZeroDivisionError" in caplog.text and "1 / 0" in caplog.text


def test_what_failed_can_be_tried_again(watch, model, hazy) -> None:
    tries = iter([OSError("the disk is away"), model])

    def load() -> DehazeXL:
        answer = next(tries)
        if isinstance(answer, OSError):
            raise answer
        return answer

    gate, errors = threading.Event(), []
    live = watch(opened(hazy), lambda: gate.wait(60) and load())
    live.failed.connect(lambda error: errors.append(error))
    gate.set()
    assert not live.wait(60) and live.status == "failed" and not live.lost
    live._worker.join(60)
    assert errors == [live.error]
    live.restart()
    live.levels[0][VIEW]
    assert live.wait(60) and live.error is None


def test_forgotten_it_holds_nothing(watch, model, hazy) -> None:
    live = watch(opened(hazy), lambda: model)
    live.levels[0][VIEW]
    assert live.wait(60)
    live.close(60)
    live.forget()
    assert not live._tiles._tiles and not live._runs and live._tiles.overview is None
    np.testing.assert_array_equal(live.levels[0][VIEW], hazy[VIEW])


def test_the_thread_ends_when_nobody_holds_the_picture(model, hazy) -> None:
    live = DehazeSession(opened(hazy), lambda: model)
    thread = live._worker._thread
    live.levels[0][VIEW]
    assert live.wait(60)
    del live
    gc.collect()
    thread.join(30)
    assert not thread.is_alive()


def test_a_copy_is_the_same_work(watch, model, hazy) -> None:
    live = watch(opened(hazy), lambda: model)
    assert copy.deepcopy(live) is live
    assert copy.deepcopy(list(live.levels))[0].session is live


def test_nothing_is_left_when_closed_at_work(model, hazy) -> None:
    live = DehazeSession(opened(hazy), lambda: model)
    live.levels[0][VIEW]
    time.sleep(0.1)
    live.close(60)
    assert not any(thread.name.startswith("dehaze ") for thread in threading.enumerate())


def test_what_is_looked_at_last_goes_first(watch, model, hazy, monkeypatch) -> None:
    from dehazexl.viewing.turns import wait_for_turn

    done: list[str] = []
    advance, decode = LevelRun.advance, LevelRun.decode
    begun, go = threading.Event(), threading.Event()

    def noted(run: LevelRun) -> None:
        done.append(run.job.image.name)
        if run.job.image.name == "whole":
            begun.set()
            go.wait(60)
        advance(run)

    monkeypatch.setattr(LevelRun, "advance", noted)
    monkeypatch.setattr(LevelRun, "decode", lambda run, cells: done.append(run.job.image.name) or decode(run, cells))
    whole = watch(replace(opened(hazy), name="whole"), lambda: model)
    assert begun.wait(60)
    part = watch(replace(opened(hazy[:600, :600]), name="part"), lambda: model)
    part.levels[0][:300, :300]
    go.set()
    assert not wait_for_turn(lambda: not part.hurried) or part.wait(60)  # such as a save
    assert part.wait(60)
    order = done[done.index("part") : len(done) - done[::-1].index("part")]
    assert "whole" not in order, "it did not wait"
    assert whole.wait(60)


def test_at_rest_the_view_is_what_a_file_holds(watch, model, hazy, tmp_path) -> None:
    from dehazexl.viewing.turns import saving

    live = watch(opened(hazy), lambda: model, settle=1000)
    with saving():  # that goes before
        live.look_at(1, Window(0, 550, 0, 750))
        assert live.wait(60) and not live.exact
        time.sleep(0.5)
        assert live._refinement.run is None
    deadline = threading.Event()
    live.progressed.connect(lambda: live.exact and deadline.set())
    assert live.exact or deadline.wait(120)
    dehazexl.to_zarr(dehazexl.dehaze(hazy, model), tmp_path / "clear.ome.zarr")
    saved = dehazexl.open_image(tmp_path / "clear.ome.zarr")
    assert np.abs(live.levels[1][:].astype(int) - np.asarray(saved.levels[1])).max() <= 1
    live.forget()
    assert not live.exact


def test_a_region_is_refined_in_the_context_of_the_whole(watch, model, hazy) -> None:
    region = Window(300, 700, 500, 1100)
    whole = opened(hazy)
    live = watch(whole.cropped(region), lambda: model, settle=1000, region=region, whole=whole)
    live.levels[0][:, :]
    assert live.wait(60)
    alone = live.levels[0][:].astype(int)
    done = threading.Event()
    live.progressed.connect(lambda: live.exact and done.set())
    assert live.exact or done.wait(120)
    wanted = np.asarray(dehazexl.dehaze(hazy, model)[300:700, 500:1100]).astype(int)
    assert np.abs(live.levels[0][:] - wanted).max() <= 1 < np.abs(alone - wanted).max()


def test_images_that_are_too_large_are_not_refined(watch, model, hazy) -> None:
    live = watch(opened(hazy), lambda: model, settle=5)
    live.look_at(1, Window(0, 550, 0, 750))
    assert live.wait(60) and not live.settles and not live.exact
    assert live.status == "the overview is dehazed"
