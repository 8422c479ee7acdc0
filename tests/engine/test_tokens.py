"""One contract for every store of tokens, and what only the one on disk must do."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dehazexl.engine.tokens import MemoryTokens, TokenStore, ZarrTokens, check_apart
from dehazexl.image.grid import TileGrid, Window

GRID = TileGrid(256 * 11, 256 * 10)
BLOCKS = list(GRID.blocks(GRID.block))
CHANNELS = 6
Make = Callable[[], TokenStore]


def tokens_of(block: Window, channels: int = CHANNELS) -> np.ndarray:
    random = np.random.default_rng(block.y0 * 100 + block.x0)
    return random.standard_normal((block.height, block.width, 64, channels)).astype(np.float32)


def valid_of(block: Window) -> np.ndarray:
    return tokens_of(block, 1)[..., 0] > -1


@pytest.fixture(params=["memory", "zarr"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    if request.param == "memory":
        return lambda: MemoryTokens(GRID, CHANNELS, np.float32)
    return lambda: ZarrTokens(tmp_path / "tokens", GRID, CHANNELS, np.float32, "abc")


def fill(store: TokenStore) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.zeros((GRID.rows, GRID.cols, 64, CHANNELS), np.float32)
    valid = np.zeros(tokens.shape[:3], bool)
    for block in BLOCKS:
        store.put(block, tokens_of(block), valid_of(block))
        tokens[block.y0 : block.y1, block.x0 : block.x1] = tokens_of(block)
        valid[block.y0 : block.y1, block.x0 : block.x1] = valid_of(block)
    return tokens, valid


# ---- The contract -----------------------------------------------------------------------------------


def test_an_empty_store_has_nothing(make: Make) -> None:
    store = make()
    assert not any(store.done(block) for block in BLOCKS)
    assert not store.fused()


def test_blocks_are_done_one_by_one(make: Make) -> None:
    store = make()
    for count, block in enumerate(BLOCKS):
        store.put(block, tokens_of(block), valid_of(block))
        assert [store.done(b) for b in BLOCKS] == [i <= count for i in range(len(BLOCKS))]


def test_a_block_of_zeros_is_done(make: Make) -> None:
    store, block = make(), BLOCKS[1]
    store.put(block, np.zeros_like(tokens_of(block)), np.zeros_like(valid_of(block)))
    assert store.done(block)


def test_tokens_come_back(make: Make) -> None:
    store = make()
    expected = fill(store)
    for found, wanted in zip(store.tokens(), expected, strict=True):
        assert found.dtype == wanted.dtype
        assert np.array_equal(found, wanted)


def test_tokens_may_be_overwritten(make: Make) -> None:
    store = make()
    fill(store)
    array, _ = store.tokens()
    array += 1
    assert array.flags.c_contiguous  # torch shares its memory


def test_what_was_handed_out_and_lost_is_not_done(make: Make) -> None:
    store = make()
    expected, _ = fill(store)
    array, _ = store.tokens()
    array[:] = 7  # fusing was stopped half-way
    for block in BLOCKS:
        if not store.done(block):
            store.put(block, tokens_of(block), valid_of(block))
    assert np.array_equal(store.tokens()[0], expected)


def test_fused_tokens_come_back_in_rectangles(make: Make) -> None:
    store = make()
    fill(store)
    fused = store.tokens()[0] + 1
    store.put_fused(fused)
    assert store.fused()
    assert all(store.done(block) for block in BLOCKS)
    for tiles in (GRID.tiles, Window(7, 9, 6, 10), Window(10, 11, 0, 1)):
        found = store.get_fused(tiles)
        assert np.array_equal(found, fused[tiles.y0 : tiles.y1, tiles.x0 : tiles.x1])


def test_a_pickled_store_answers_the_same(make: Make) -> None:
    store = make()
    fill(store)
    store.put_fused(store.tokens()[0] + 1)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.fused()
    assert np.array_equal(copy.get_fused(GRID.tiles), store.get_fused(GRID.tiles))


# ---- On disk ----------------------------------------------------------------------------------------


def test_a_folder_goes_on_where_it_was(tmp_path: Path) -> None:
    first = ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float32, "abc")
    zeros = np.zeros_like(tokens_of(BLOCKS[0]))
    first.put(BLOCKS[0], zeros, np.zeros_like(valid_of(BLOCKS[0])))
    first.put(BLOCKS[3], tokens_of(BLOCKS[3]), valid_of(BLOCKS[3]))
    again = ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float32, "abc")
    assert [again.done(block) for block in BLOCKS] == [True, False, False, True]
    assert np.array_equal(again.tokens()[0][8:, 8:], tokens_of(BLOCKS[3]))
    assert np.array_equal(again.tokens()[1][8:, 8:], valid_of(BLOCKS[3]))
    assert not again.fused()


def test_a_folder_keeps_fused_tokens(tmp_path: Path) -> None:
    first = ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float32, "abc")
    fused, _ = fill(first)
    first.put_fused(fused)
    again = ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float32, "abc")
    assert again.fused()
    assert np.array_equal(again.get_fused(GRID.tiles), fused)


def test_half_precision_is_kept(tmp_path: Path) -> None:
    store = ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float16, "abc")
    fill(store)
    assert store.tokens()[0].dtype == np.float16


def test_tokens_of_other_work_are_refused_and_kept(tmp_path: Path) -> None:
    first = ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float32, "abc")
    first.put(BLOCKS[0], tokens_of(BLOCKS[0]), valid_of(BLOCKS[0]))
    with pytest.raises(ValueError, match=r"t contains .* another image.* delete it"):
        ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float32, "xyz")
    assert ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float32, "abc").done(BLOCKS[0])


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    import zarr

    zarr.create_array(tmp_path / "picture" / "0", shape=(5,), dtype="u1")
    zarr.open_group(tmp_path / "picture", mode="a")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="contains"):
        ZarrTokens(tmp_path / "picture", GRID, CHANNELS, np.float32, "abc")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["file", "folder of pictures", "array"])
def test_what_is_no_folder_of_tokens_is_refused_and_kept(tmp_path: Path, kind: str) -> None:
    import zarr

    path = tmp_path / "t"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder of pictures":
        path.mkdir()
        (path / "a.tif").write_text("mine")
    else:
        zarr.create_array(path, shape=(5,), dtype="u1")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="t is not a folder of tokens"):
        ZarrTokens(path, GRID, CHANNELS, np.float32, "abc")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root on Linux")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_told_and_what_is_done_is_kept(small_disk: Path) -> None:
    grid = TileGrid(256 * 24, 256 * 24)
    blocks = list(grid.blocks(grid.block))
    store = ZarrTokens(small_disk / "t", grid, 40, np.float32, "abc")
    store.put(blocks[0], tokens_of(blocks[0], 40), valid_of(blocks[0]))
    with pytest.raises(OSError, match=rf"No space left.*{small_disk}/t.*kept.*make room and run it again") as caught:
        for block in blocks[1:]:
            store.put(block, tokens_of(block, 40), valid_of(block))
    assert "\n" not in str(caught.value)
    assert ZarrTokens(small_disk / "t", grid, 40, np.float32, "abc").done(blocks[0])


@pytest.mark.parametrize("place", ["a.zarr", "a.zarr/tokens", ".", "b/../a.zarr", "link"])
def test_a_folder_that_meets_another_place_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a.zarr")
    check_apart(tmp_path / "tokens", tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="or in it, or around it: choose another folder"):
        check_apart(tmp_path / place, tmp_path / "b.zarr", tmp_path / "a.zarr")
