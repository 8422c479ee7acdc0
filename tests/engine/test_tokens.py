"""One contract for every store of tokens, and what only the one on disk must do."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dehazexl.engine.tokens import FUSED, MemoryTokens, TokenStore, ZarrTokens, check_apart
from dehazexl.image.grid import TileGrid, Window

GRID = TileGrid(256 * 11, 256 * 10)
BLOCKS = list(GRID.blocks(GRID.block))
CHANNELS = 6
ABC = {"image": "abc", "overlap": 32}
Make = Callable[[], TokenStore]


def tokens_of(block: Window, channels: int = CHANNELS) -> np.ndarray:
    random = np.random.default_rng(block.y0 * 100 + block.x0)
    return random.standard_normal((block.height, block.width, 64, channels)).astype(np.float32)


def valid_of(block: Window) -> np.ndarray:
    return tokens_of(block, 1)[..., 0] > -1


def on_disk(folder: Path, grid: TileGrid = GRID, channels: int = CHANNELS, dtype: type = np.float32) -> ZarrTokens:
    return ZarrTokens(folder / "t", grid, channels, dtype, ABC)


@pytest.fixture(params=["memory", "zarr"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    if request.param == "memory":
        return lambda: MemoryTokens(GRID, CHANNELS, np.float32)
    return lambda: on_disk(tmp_path)


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
    assert not store.begun() and not store.fused()
    with pytest.raises(OSError, match="tokens of 110 tiles are lost or damaged, the first in row 0, column 0: run it"):
        store.get(GRID.tiles)


def test_blocks_are_done_one_by_one(make: Make) -> None:
    store = make()
    for count, block in enumerate(BLOCKS):
        store.put(block, tokens_of(block), valid_of(block))
        assert [store.done(b) for b in BLOCKS] == [i <= count for i in range(len(BLOCKS))]
    assert store.begun() and store.complete("tokens")


def test_a_part_of_a_block_is_kept_without_the_rest(make: Make) -> None:
    store, part = make(), Window(2, 4, 1, 3)
    store.put(part, tokens_of(part), valid_of(part))
    there = ~np.isnan(store.read(BLOCKS[0], "tokens")[:, :, 0, -1])
    assert store.begun() and not store.done(BLOCKS[0])
    assert sorted(zip(*np.nonzero(there), strict=True)) == [(2, 1), (2, 2), (3, 1), (3, 2)]
    beside = Window(2, 4, 3, 8)
    store.put(beside, tokens_of(beside), valid_of(beside))
    assert np.array_equal(store.get(part)[0], tokens_of(part))


def test_a_block_of_zeros_is_done(make: Make) -> None:
    store, block = make(), BLOCKS[1]
    store.put(block, np.zeros_like(tokens_of(block)), np.zeros_like(valid_of(block)))
    assert store.done(block)


def test_tokens_come_back_in_rectangles(make: Make) -> None:
    store = make()
    tokens, valid = fill(store)
    for tiles in (GRID.tiles, Window(7, 9, 6, 10), Window(10, 11, 0, 1)):
        found, marks = store.get(tiles)
        part = np.s_[tiles.y0 : tiles.y1, tiles.x0 : tiles.x1]
        assert found.dtype == tokens.dtype and np.array_equal(found, tokens[part])
        assert marks.dtype == bool and np.array_equal(marks, valid[part])


def test_each_name_has_its_own_form(make: Make) -> None:
    store = make()
    fill(store)
    keys = np.random.default_rng(0).random((8, 8, 4, 20)).astype(np.float32)
    store.put(BLOCKS[0], keys, np.ones((8, 8, 4), bool), "keys0")
    assert np.array_equal(store.get(BLOCKS[0], "keys0")[0], keys)
    assert store.done(BLOCKS[0], "keys0") and not store.done(BLOCKS[1], "keys0")
    store.drop("keys0", "never there")
    assert not store.done(BLOCKS[0], "keys0") and store.done(BLOCKS[0])


def test_fused_tokens_come_back_in_rectangles(make: Make) -> None:
    store = make()
    fused = fill(store)[0] + 1
    store.put(BLOCKS[0], tokens_of(BLOCKS[0]), valid_of(BLOCKS[0]), "features1")
    store.put_fused(fused)
    assert store.fused()
    store.finish()
    assert all(store.done(block) for block in BLOCKS) and not store.done(BLOCKS[0], "features1")
    for tiles in (GRID.tiles, Window(7, 9, 6, 10), Window(10, 11, 0, 1)):
        found = store.get_fused(tiles)
        assert np.array_equal(found, fused[tiles.y0 : tiles.y1, tiles.x0 : tiles.x1])


def test_a_pickled_store_answers_the_same(make: Make) -> None:
    store = make()
    store.put_fused(fill(store)[0] + 1)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.fused()
    assert np.array_equal(copy.get_fused(GRID.tiles), store.get_fused(GRID.tiles))


# ---- On disk ----------------------------------------------------------------------------------------


def test_a_folder_goes_on_where_it_was(tmp_path: Path) -> None:
    first = on_disk(tmp_path)
    zeros = np.zeros_like(tokens_of(BLOCKS[0]))
    first.put(BLOCKS[0], zeros, np.zeros_like(valid_of(BLOCKS[0])))
    first.put(BLOCKS[3], tokens_of(BLOCKS[3]), valid_of(BLOCKS[3]))
    again = on_disk(tmp_path)
    assert [again.done(block) for block in BLOCKS] == [True, False, False, True]
    assert np.array_equal(again.get(BLOCKS[3])[0], tokens_of(BLOCKS[3]))
    assert np.array_equal(again.get(BLOCKS[3])[1], valid_of(BLOCKS[3]))
    assert not again.fused()


def test_a_folder_keeps_fused_tokens(tmp_path: Path) -> None:
    first = on_disk(tmp_path)
    fused, _ = fill(first)
    first.put_fused(fused)
    again = on_disk(tmp_path)
    assert again.fused()
    assert np.array_equal(again.get_fused(GRID.tiles), fused)


def test_half_precision_is_kept(tmp_path: Path) -> None:
    store = on_disk(tmp_path, dtype=np.float16)
    store.put(BLOCKS[0], tokens_of(BLOCKS[0]).astype(np.float16), valid_of(BLOCKS[0]))
    assert store.get(BLOCKS[0])[0].dtype == np.float16


def chunk(folder: Path, name: str = "tokens", row: int = 3, col: int = 0) -> Path:
    """Return the file of the tiles of a row in a block."""
    return folder / "t" / name / "c" / str(row) / str(col) / "0" / "0"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "lost": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "shorter than a checksum": lambda path: path.write_bytes(b"ab"),
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:99] + b"?" + path.read_bytes()[100:]),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another chunk's head": lambda path: path.write_bytes(path.read_bytes()[:50] + bytes(500)),
}


@pytest.mark.parametrize("name", ["tokens", FUSED])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_chunk_is_known_and_costs_its_own_tiles(tmp_path: Path, damage: str, name: str) -> None:
    first = on_disk(tmp_path)
    for block in BLOCKS:
        first.put(block, tokens_of(block), valid_of(block), name)
    DAMAGE[damage](chunk(tmp_path, name))
    for store in (first, on_disk(tmp_path)):
        assert [store.done(block, name) for block in BLOCKS] == [False, True, True, True]
        assert not store.complete(name)
        there = ~np.isnan(store.read(BLOCKS[0], name)[:, :, 0, -1])
        assert there.sum() == 56 and not there[3].any()
        with pytest.raises(
            OSError, match=rf"{tmp_path}/t: {name} of 8 tiles .* row 3, column 0: run it again"
        ) as caught:
            store.get(Window(2, 5, 0, 10), name)
        assert "\n" not in str(caught.value)
    part = Window(3, 4, 0, 8)
    first.put(part, tokens_of(BLOCKS[0])[3:4], valid_of(BLOCKS[0])[3:4], name)
    assert np.array_equal(first.get(BLOCKS[0], name)[0], tokens_of(BLOCKS[0]))


def test_lost_fused_tokens_are_not_complete(tmp_path: Path) -> None:
    store = on_disk(tmp_path)
    store.put_fused(fill(store)[0])
    shutil.rmtree(chunk(tmp_path, FUSED).parents[2])
    assert not on_disk(tmp_path).fused()
    with pytest.raises(OSError, match="fused of 10 tiles are lost"):
        store.get_fused(GRID.tiles)


@pytest.mark.parametrize("text", ["", "{", "{}", None])
def test_lost_metadata_cost_no_tokens(tmp_path: Path, text: str | None) -> None:
    first = on_disk(tmp_path)
    fill(first)
    metadata = tmp_path / "t" / "tokens" / "zarr.json"
    metadata.unlink() if text is None else metadata.write_text(text)
    store = on_disk(tmp_path)
    assert not store.done(BLOCKS[0])
    store.put(BLOCKS[1], tokens_of(BLOCKS[1]), valid_of(BLOCKS[1]))
    assert store.complete("tokens")


@pytest.mark.parametrize("text", ["", '{"zarr_for', '{"attributes": {}, "zarr_format": 3, "node_type": "group"}', None])
def test_a_folder_killed_when_it_began_is_taken_up(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "t").mkdir()
    if text is not None:
        (tmp_path / "t" / "zarr.json").write_text(text)
    (tmp_path / "t" / "zarr.0123.partial").write_text("{")
    store = on_disk(tmp_path)
    store.put(BLOCKS[0], tokens_of(BLOCKS[0]), valid_of(BLOCKS[0]))
    assert on_disk(tmp_path).done(BLOCKS[0])


def test_a_group_with_attributes_of_somebody_is_refused_and_kept(tmp_path: Path) -> None:
    import zarr

    zarr.create_group(tmp_path / "t", attributes={"mine": 1})
    with pytest.raises(ValueError, match="contains something else"):
        on_disk(tmp_path)
    assert json.loads((tmp_path / "t" / "zarr.json").read_text())["attributes"] == {"mine": 1}


def test_tokens_of_other_work_are_refused_and_kept(tmp_path: Path) -> None:
    first = on_disk(tmp_path)
    first.put(BLOCKS[0], tokens_of(BLOCKS[0]), valid_of(BLOCKS[0]))
    others: list[tuple[dict[str, Any], str]] = [
        ({"image": "xyz", "overlap": 32}, "image"),
        ({"image": "abc", "bands": [0, 1]}, "overlap, bands"),
    ]
    for other, differ in others:
        found = ", ".join(sorted(differ.split(", "), key=list({**other, **ABC}).index))
        with pytest.raises(ValueError, match=rf"t contains .* another image.*these differ: {found}\).* delete it"):
            ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float32, other)
    assert on_disk(tmp_path).done(BLOCKS[0])


def test_a_description_is_compared_as_it_is_stored(tmp_path: Path) -> None:
    described = {"bands": (0, 1, 2), "nodata": float("nan"), "range": (0, 255.5), "region": None}
    ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float32, described)
    ZarrTokens(tmp_path / "t", GRID, CHANNELS, np.float32, described)


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    import zarr

    zarr.create_array(tmp_path / "picture" / "0", shape=(5,), dtype="u1")
    zarr.open_group(tmp_path / "picture", mode="a")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="contains"):
        ZarrTokens(tmp_path / "picture", GRID, CHANNELS, np.float32, ABC)
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
        ZarrTokens(path, GRID, CHANNELS, np.float32, ABC)
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
    store = on_disk(small_disk, grid, 40)
    store.put(blocks[0], tokens_of(blocks[0], 40), valid_of(blocks[0]))
    with pytest.raises(OSError, match=rf"No space left.*{small_disk}/t.*kept.*make room and run it again") as caught:
        for block in blocks[1:]:
            store.put(block, tokens_of(block, 40), valid_of(block))
    assert "\n" not in str(caught.value)
    assert on_disk(small_disk, grid, 40).done(blocks[0])


@pytest.mark.parametrize("place", ["a.zarr", "a.zarr/tokens", ".", "b/../a.zarr", "link"])
def test_a_folder_that_meets_another_place_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a.zarr")
    check_apart(tmp_path / "tokens", tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="or in it, or around it: choose another folder"):
        check_apart(tmp_path / place, tmp_path / "b.zarr", tmp_path / "a.zarr")
