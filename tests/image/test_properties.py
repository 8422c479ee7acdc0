"""Laws of grids, windows, axes and value ranges, for geometries that hypothesis draws."""

from __future__ import annotations

import dask.array as da
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import TileGrid, Window, reflect
from dehazexl.image.image import check_range, value_range
from dehazexl.image.value_scale import ValueScale, to_dtype
from dehazexl.io.open import open_image
from dehazexl.io.source import CHUNK, MAX_BANDS, MAX_PIECES, axes_by_shape, chunk_sides, to_yxc

few = settings(max_examples=30, deadline=None, derandomize=True, database=None)
sides = st.integers(1, 2**24)
grids = st.builds(TileGrid, sides, sides, st.integers(0, 128), st.sampled_from([256, 512, 1024]))
spans = st.tuples(st.integers(-50, 50), st.integers(0, 60)).map(lambda span: (span[0], span[0] + span[1]))
windows = st.tuples(spans, spans).map(lambda pair: Window(*pair[0], *pair[1]))


def cells(window: Window) -> set[tuple[int, int]]:
    return set(window.cells())


# ---- Grids ----------------------------------------------------------------------------------------


@few
@given(grids, st.data())
def test_every_pixel_lies_in_the_tiles_that_touch_it(grid: TileGrid, data: st.DataObject) -> None:
    y, x = data.draw(st.integers(0, grid.height - 1)), data.draw(st.integers(0, grid.width - 1))
    touching = grid.tiles_touching(Window(y, y + 1, x, x + 1))
    total = 0.0
    for row, col in touching.cells():
        tile = grid.tile(row, col)
        assert tile.y0 <= y < tile.y1 and tile.x0 <= x < tile.x1
        total += grid.blend_weight(row, col)[y - tile.y0, x - tile.x0]
    assert abs(total - 1) < 1e-5
    around = touching.expand(1).intersection(grid.tiles)
    for row, col in cells(around) - cells(touching):
        tile = grid.tile(row, col)
        assert not (tile.y0 <= y < tile.y1 and tile.x0 <= x < tile.x1)


@few
@given(grids)
def test_the_last_tile_reaches_the_end_and_is_needed(grid: TileGrid) -> None:
    last = grid.tile(grid.rows - 1, grid.cols - 1)
    assert last.y1 >= grid.height and last.x1 >= grid.width
    assert grid.rows == 1 or last.y1 - grid.stride < grid.height
    assert grid.cols == 1 or last.x1 - grid.stride < grid.width


# ---- Windows --------------------------------------------------------------------------------------


@few
@given(windows, windows)
def test_intersection_and_split_are_those_of_sets(a: Window, b: Window) -> None:
    both, rest = a.split(b)
    assert cells(both) == cells(a) & cells(b)
    assert cells(a.intersection(b)) == (cells(a) & cells(b))
    parts = [both, *rest]
    assert set().union(*map(cells, parts)) == cells(a)
    assert sum(len(cells(part)) for part in parts) == len(cells(a))


@few
@given(windows, st.integers(0, 5))
def test_a_window_is_found_in_one_that_surrounds_it(window: Window, margin: int) -> None:
    outer = window.expand(margin)
    rows, cols = np.mgrid[outer.y0 : outer.y1, outer.x0 : outer.x1]
    inside = window.to_slices(outer)
    assert set(zip(rows[inside].ravel().tolist(), cols[inside].ravel().tolist(), strict=True)) == cells(window)


@few
@given(st.integers(1, 9), st.lists(st.integers(-40, 40), min_size=1))
def test_reflection_is_even_and_periodic(size: int, index: list[int]) -> None:
    found = reflect(np.array(index), size)
    assert ((found >= 0) & (found < size)).all()
    assert np.array_equal(found, reflect(-np.array(index), size))
    assert np.array_equal(found, reflect(np.array(index) + 2 * size - 2, size))
    assert np.array_equal(reflect(np.arange(size), size), np.arange(size))


@few
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(1, 50), windows)
def test_the_cache_reads_what_numpy_pads(height: int, width: int, down: int, across: int, window: Window) -> None:
    array = np.arange(height * width * 2).reshape(height, width, 2)
    if not (window.height and window.width):
        return
    cache = ChunkCache(da.from_array(array, chunks=(down, across, 2)))
    ys, xs = (
        reflect(np.arange(*span), size)
        for span, size in (((window.y0, window.y1), height), ((window.x0, window.x1), width))
    )
    assert np.array_equal(cache.read(window), array[ys][:, xs])


# ---- Axes -----------------------------------------------------------------------------------------


@few
@given(
    st.integers(MAX_BANDS + 1, 40),
    st.integers(MAX_BANDS + 1, 40),
    st.integers(1, MAX_BANDS),
    st.booleans(),
    st.integers(0, 2),
)
def test_bands_first_and_last_are_the_same_image(y: int, x: int, bands: int, first: bool, ones: int) -> None:
    array = np.random.default_rng(0).random((y, x, bands), np.float32)
    stored = np.moveaxis(array, -1, 0) if first else array
    assert np.array_equal(open_image(stored[(None,) * ones]).levels[0].compute(), array)
    axes = axes_by_shape(stored.shape, "a")
    assert np.array_equal(to_yxc(stored, axes), array)


@few
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_chunks_are_of_whole_pieces_and_not_too_many(height: int, width: int) -> None:
    rows, cols = chunk_sides(height, width)
    assert rows % height == cols % width == 0
    assert (rows // height) * (cols // width) <= MAX_PIECES
    assert (rows // height - 1) * height < CHUNK and (cols // width - 1) * width < CHUNK


# ---- Value ranges ---------------------------------------------------------------------------------

floats = st.floats(-1e6, 1e6, width=32)


@few
@given(floats, st.floats(1, 1e6, width=32), st.lists(floats, min_size=1, max_size=20))
def test_values_come_back_from_the_unit_range(low: float, extent: float, values: list[float]) -> None:
    scale = ValueScale(*check_range((low, low + extent)))
    array = np.array(values, np.float32)
    back = scale.from_unit(scale.to_unit(array))
    assert np.allclose(back, array, rtol=1e-5, atol=1e-5 * (abs(low) + extent))


@few
@given(st.sampled_from(["uint16", "float16", "float32", "float64"]), st.lists(floats | st.just(np.nan), min_size=1))
def test_a_value_range_always_rises(dtype: str, values: list[float]) -> None:
    array = to_dtype(np.array(values), np.dtype(dtype)).reshape(1, -1)
    low, high = check_range(value_range(open_image(np.repeat(array, 3, axis=0))))
    assert low <= 0 < high or low < 0


@few
@given(st.sampled_from(["uint8", "uint16", "float16", "float32"]), st.lists(st.floats(), min_size=1))
def test_every_number_has_a_finite_value_in_every_dtype(dtype: str, values: list[float]) -> None:
    found = to_dtype(np.array(values), np.dtype(dtype))
    numbers = ~np.isnan(values)
    assert found.dtype == dtype
    assert np.isfinite(found[numbers].astype(float)).all()
