"""Overviews made for pictures that have none."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr

import dehazexl
from dehazexl.viewing.overviews import (
    OverviewBuilder,
    kept_overviews,
    make_overviews,
    needs_overviews,
    sampled,
    with_tail,
    without_gaps,
)


def started(image: dehazexl.Image, folder: Path) -> OverviewBuilder:
    """Overviews that are being made."""
    builder = OverviewBuilder(image, folder)
    builder.start()
    return builder


@pytest.fixture
def large(tmp_path: Path) -> dehazexl.Image:
    """A tiled picture of 2400 x 3000 without overviews."""
    y, x = np.mgrid[:2400, :3000]
    pixels = np.stack([y % 251, x % 241, (x + y) % 239], axis=-1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "large.tif", pixels, tile=(256, 256), photometric="rgb")
    return dehazexl.open_image(tmp_path / "large.tif")


def test_who_needs_them(large) -> None:
    assert needs_overviews(large)
    assert not needs_overviews(dehazexl.open_image(np.zeros((2048, 2048, 3), np.uint8)))


def test_a_thumbnail_is_no_overview(large) -> None:
    """Viewers would show the large level whole where the thumbnail is too coarse."""
    half, tiny = (large.levels[0][::step, ::step] for step in (2, 16))
    assert needs_overviews(without_gaps(replace(large, levels=(large.levels[0], tiny))))
    assert without_gaps(replace(large, levels=(large.levels[0], half, tiny))).levels[1:] == (half, tiny)


@pytest.mark.parametrize(("nodata", "alpha"), [(-9999.0, None), (None, 3)])
def test_what_is_no_data_is_not_mixed_in(tmp_path, nodata, alpha) -> None:
    pixels = np.full((2501, 2100, 4 if alpha else 3), 100, np.float32)
    pixels[:, ::3, :3] = -9999
    if alpha:
        pixels[:, ::3, 3] = 0
    array = da.from_array(pixels, chunks=(1001, 701, -1))  # chunks of odd sides
    image = replace(dehazexl.open_image(array), nodata=nodata, alpha=alpha)
    list(make_overviews(image, tmp_path))
    kept = kept_overviews(image, tmp_path)
    assert kept is not None and kept.levels[1].shape[:2] == (1251, 1050)
    assert set(np.unique(np.asarray(kept.levels[1])[..., :3])) == {100.0}
    assert sampled(image, pixels[:8, 1:2]).levels[1].shape == kept.levels[1].shape


def test_made_once_and_kept(large, tmp_path) -> None:
    folder = tmp_path / "cache"
    assert kept_overviews(large, folder) is None
    shares = list(make_overviews(large, folder))
    assert shares == sorted(shares) and shares[-1] == 1
    kept = kept_overviews(large, folder)
    assert kept is not None and kept.levels[0] is large.levels[0]
    assert not needs_overviews(kept)
    pixels = np.asarray(large.levels[0]).astype(float)
    half = pixels.reshape(1200, 2, 1500, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(kept.levels[1]) - half).max() <= 0.5
    again = dehazexl.open_image(large.path)
    assert kept_overviews(again, folder) is not None


def test_a_changed_file_gets_new_ones(large, tmp_path) -> None:
    folder = tmp_path / "cache"
    list(make_overviews(large, folder))
    tifffile.imwrite(large.path, np.zeros((2400, 3000, 3), np.uint8), tile=(256, 256), photometric="rgb")
    assert kept_overviews(dehazexl.open_image(large.path), folder) is None


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """Overviews made in many steps."""
    with dask.config.set({"array.chunk-size": "256KiB"}):
        yield


def test_two_processes_make_the_same(large, tmp_path, small_blocks) -> None:
    folder = tmp_path / "cache"
    making = make_overviews(large, folder)
    for _ in range(3):
        next(making)
    other = "import sys, dehazexl; from dehazexl.viewing.overviews import make_overviews; from pathlib import Path\n"
    other += "for _ in make_overviews(dehazexl.open_image(sys.argv[1]), Path(sys.argv[2])): pass"
    subprocess.run([sys.executable, "-c", other, str(large.path), str(folder)], check=True)
    theirs = kept_overviews(large, folder)
    assert theirs is not None
    list(making)
    ours = kept_overviews(large, folder)
    assert ours is not None and len(list(folder.iterdir())) == 1
    half = np.asarray(large.levels[0]).astype(float).reshape(1200, 2, 1500, 2, 3).mean((1, 3))
    assert np.abs(np.asarray(ours.levels[1]) - half).max() <= 0.5


def test_what_a_killed_process_left_is_removed_in_time(large, tmp_path, small_blocks) -> None:
    making = make_overviews(large, folder := tmp_path / "cache")
    next(making)
    (part,) = folder.iterdir()
    old, fresh = (folder / part.name.replace(f".{os.getpid()}.", f".{pid}.") for pid in (1, 2))
    for left in (old, fresh):
        shutil.copytree(part, left)
    making.close()
    os.utime(old, (0, 0))
    list(make_overviews(large, folder))
    assert not old.exists() and fresh.exists()


def test_damaged_ones_are_made_anew(large, tmp_path) -> None:
    folder = tmp_path / "cache"
    list(make_overviews(large, folder))
    for file in folder.rglob("zarr.json"):
        file.write_text('{"zarr_format"')
    assert kept_overviews(large, folder) is None and not list(folder.iterdir())
    assert started(large, folder).wait(60)


def test_two_that_grow_at_the_same_time_are_made_once(large, tmp_path, monkeypatch) -> None:
    made, make = [], make_overviews
    monkeypatch.setattr("dehazexl.viewing.overviews.make_overviews", lambda *args: made.append(1) or make(*args))
    both = [started(large, tmp_path / "cache") for _ in range(2)]
    assert all(growing.wait(60) for growing in both)
    assert len(made) == 1


def test_the_tail_is_tiny_and_in_memory() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (500, 701, 3), np.uint8)
    levels = with_tail(dehazexl.open_image(pixels)).levels
    assert [level.shape[:2] for level in levels] == [(500, 701), (250, 351), (125, 176), (63, 88), (32, 44)]
    half = pixels[:, :700].reshape(250, 2, 350, 2, 3).astype(float).mean((1, 3))
    assert np.abs(np.asarray(levels[1])[:, :350] - half).max() <= 0.5


def test_a_sample_is_shown_as_overviews(large) -> None:
    sample = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    levels = sampled(large, sample).levels
    assert max(levels[-1].shape[:2]) <= 64
    np.testing.assert_array_equal(np.asarray(levels[1])[[0, -1]][:, [0, -1]], sample)


def test_what_is_shown_while_they_grow(large, tmp_path, monkeypatch) -> None:
    gate = threading.Event()
    make = make_overviews
    monkeypatch.setattr("dehazexl.viewing.overviews.make_overviews", lambda *args: gate.wait(60) and make(*args))
    growing = OverviewBuilder(large, tmp_path / "cache")
    looked, finished = threading.Event(), threading.Event()
    growing.updated.connect(looked.set)
    growing.finished.connect(finished.set)
    coarse = growing.levels[-1]
    assert max(coarse.shape) <= 64
    assert coarse[:].shape == coarse.shape  # at once, whatever it is
    growing.start()
    assert looked.wait(60) and growing.running
    assert len(np.unique(coarse[:].reshape(-1, 3), axis=0)) > 8
    np.testing.assert_array_equal(growing.levels[0][5:9, 7:9], large.levels[0][5:9, 7:9])
    assert not growing.ready and not finished.is_set()
    gate.set()
    assert growing.wait(60) and growing.error is None
    assert finished.is_set() and growing.done and not growing.running
    half = np.asarray(growing.image.levels[2])
    np.testing.assert_array_equal(growing.levels[2][:], half)
    assert growing.levels[2].shape == half.shape


def test_stopped_they_leave_nothing_half_made(large, tmp_path, small_blocks, monkeypatch) -> None:
    making = threading.Event()

    def made(*args):
        for share in make_overviews(*args):
            making.set()
            assert stopped.wait(60)
            yield share

    stopped, folder = threading.Event(), tmp_path / "cache"
    monkeypatch.setattr("dehazexl.viewing.overviews.make_overviews", made)
    growing = started(large, folder)
    assert making.wait(60) and len(list(folder.iterdir())) == 1, "nothing was begun"
    growing.close()
    stopped.set()
    assert not growing.wait(60) and growing.error is None
    assert growing.done and not list(folder.iterdir())


def test_a_folder_that_cannot_be(large, tmp_path) -> None:
    (tmp_path / "cache").write_text("in the way")
    growing = started(large, tmp_path / "cache")
    assert not growing.wait(60)
    assert isinstance(growing.error, OSError)
    overview = next(level for level in growing.image.levels if max(level.shape[:2]) <= 1024)
    assert np.asarray(overview).std() > 0, "no picture instead of the overviews"
    assert growing.levels[-1][:].shape == growing.image.levels[-1].shape


def test_what_a_sparse_file_lacks_is_not_read(tmp_path, monkeypatch) -> None:
    from dehazexl.io.pyramid import halve
    from dehazexl.viewing import overviews

    group = zarr.open_group(tmp_path / "sparse.zarr", mode="w")
    array = group.create_array("0", shape=(20_000, 20_000, 3), chunks=(1000, 1000, 3), dtype="uint8")
    array[3000:4000, 5000:6000] = np.random.default_rng(0).integers(0, 255, (1000, 1000, 3), np.uint8)
    image = dehazexl.open_image(tmp_path / "sparse.zarr" / "0")
    sizes: list[int] = []
    monkeypatch.setattr(overviews, "halve", lambda *args: sizes.append(args[0].size) or halve(*args))
    half = overviews.halved(image)
    assert half.shape == (10_000, 10_000, 3)
    part = np.asarray(half[:4000, :4000])
    assert 0 < sum(sizes) <= 3 * 3000**2, "holes were read"
    np.testing.assert_array_equal(part[1500:2000, 2500:3000], halve(np.asarray(array[3000:4000, 5000:6000])))
    assert not part[:1500].any() and not part[2000:].any()


def test_old_overviews_are_forgotten(tmp_path) -> None:
    import os

    from dehazexl.viewing.overviews import forget_old

    for age, name in enumerate(("new", "used", "old")):
        (tmp_path / f"{name}.ome.zarr").mkdir()
        (tmp_path / f"{name}.ome.zarr" / "chunk").write_bytes(bytes(1000))
        os.utime(tmp_path / f"{name}.ome.zarr", (10**9 - age,) * 2)
    forget_old(tmp_path, most=2500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.ome.zarr", "used.ome.zarr"]
