"""The geometry: every pixel is covered, shares sum to one, maps and their inverses agree."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dehazexl.image.grid import MAX_OVERLAP, TILE, TileGrid, Window, blend_ramp, reflect

SIZES = [(1, 1), (1, 1000), (255, 256), (256, 257), (480, 481), (513, 700), (1025, 300)]
OVERLAPS = [0, 1, 16, 32, 100, 128]
GRIDS = [TileGrid(*size, overlap) for size, overlap in itertools.product(SIZES, OVERLAPS)]


def name(grid: TileGrid) -> str:
    return f"{grid.height}x{grid.width}-{grid.overlap}"


def tile(grid: TileGrid, row: int, col: int) -> Window:
    return grid.tile_window(Window(row, row + 1, col, col + 1))


@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_weights_sum_to_one_and_every_pixel_is_covered(grid: TileGrid) -> None:
    all_tiles = grid.tile_window(grid.tiles)
    total = np.zeros((all_tiles.height, all_tiles.width))
    for row, col in grid.tiles.cells():
        share = grid.blend_weight(row, col)
        assert share.min() > 0
        total[tile(grid, row, col).to_slices(all_tiles)] += share
    assert all_tiles.y0 == all_tiles.x0 == 0
    assert all_tiles.height >= grid.height
    assert all_tiles.width >= grid.width
    assert np.abs(total - 1).max() < 1e-6


@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_no_tile_lies_outside(grid: TileGrid) -> None:
    last = tile(grid, grid.rows - 1, grid.cols - 1)
    assert grid.rows == 1 or last.y0 + grid.overlap < grid.height
    assert grid.cols == 1 or last.x0 + grid.overlap < grid.width


@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_tiles_touching_share_a_pixel(grid: TileGrid) -> None:
    y, x = grid.height - 1, grid.width - 1
    for rows, cols in itertools.product([(0, 1), (y // 2, y + 1), (y, y + 1)], [(0, x + 1), (x // 3, x // 2 + 1)]):
        pixels = Window(*rows, *cols)
        touched = set(grid.tiles_touching(pixels).cells())
        for cell in grid.tiles.cells():
            common = tile(grid, *cell).intersection(pixels)
            assert (cell in touched) == (common.height > 0 and common.width > 0)


@pytest.mark.parametrize("size", SIZES)
def test_without_overlap_tiles_touching_is_the_inverse_of_tile_window(size: tuple[int, int]) -> None:
    grid = TileGrid(*size)
    for row, col in grid.tiles.cells():
        for tiles in (Window(row, row + 1, col, col + 1), Window(0, row + 1, col, grid.cols)):
            assert grid.tiles_touching(grid.tile_window(tiles)) == tiles


@pytest.mark.parametrize("grid", GRIDS, ids=name)
@pytest.mark.parametrize("side", [1, 3, 8])
def test_blocks_hold_each_tile_once_in_order(grid: TileGrid, side: int) -> None:
    blocks = list(grid.blocks(side))
    cells = [cell for block in blocks for cell in block.cells()]
    assert sorted(cells) == list(grid.tiles.cells())
    assert all(block.height <= side and block.width <= side for block in blocks)
    assert all(block.y0 % side == block.x0 % side == 0 for block in blocks)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 300])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (7, 0), (0, 263), (900, 1000)])
def test_reflect_is_numpys(size: int, before: int, after: int) -> None:
    index = reflect(np.arange(-before, size + after), size)
    assert np.array_equal(index, np.pad(np.arange(size), (before, after), mode="reflect"))


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_blend_ramps_only_towards_neighbors(overlap: int) -> None:
    assert np.all(blend_ramp(overlap, False, False) == 1)
    middle = blend_ramp(overlap, True, True)
    assert np.all(np.diff(middle[:overlap]) > 0)
    assert np.all(middle[overlap : TILE - overlap] == 1)
    assert np.array_equal(middle, middle[::-1])


def test_windows() -> None:
    window = Window(2, 5, 10, 14)
    assert (window.height, window.width) == (3, 4)
    assert list(window.cells())[:5] == [(2, 10), (2, 11), (2, 12), (2, 13), (3, 10)]
    assert window.expand(2) == Window(0, 7, 8, 16)
    assert window.intersection(Window(4, 9, 0, 12)) == Window(4, 5, 10, 12)
    array = np.arange(400).reshape(20, 20)
    assert np.array_equal(array[2:5, 10:14], array[1:][window.to_slices(Window(1, 20, 0, 20))])


@pytest.mark.parametrize("overlap", [-1, MAX_OVERLAP + 1, 300, 32.0, float("nan"), None])
def test_overlaps_out_of_range(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap must be between 0 and 128 pixels, not {overlap}"):
        TileGrid(300, 300, overlap)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_images_without_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        TileGrid(*size)


@pytest.mark.parametrize(
    "other",
    [(0, 10, 0, 10), (2, 5, 3, 7), (-5, 4, 6, 20), (5, 30, -9, 30), (10, 20, 0, 10), (30, 40, 3, 5), (2, 5, 40, 50)],
)
def test_a_window_is_split_without_gaps(other: tuple[int, int, int, int]) -> None:
    window, other_window = Window(0, 10, 0, 10), Window(*other)
    both, beside = window.split(other_window)
    times = np.zeros((10, 10), int)
    for part in (both, *beside):
        times[part.to_slices(window)] += 1
    assert (times == 1).all()
    there = set(window.cells()) & set(other_window.cells())
    assert set(both.cells()) == there
