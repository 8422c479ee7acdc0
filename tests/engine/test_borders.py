"""A border of one value, undeclared, against the same border declared."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from make_pictures import smooth, write_gdal
from numpy.typing import NDArray

import dehazexl
from dehazexl import DehazeXL
from dehazexl.engine.borders import find_border
from dehazexl.image.grid import Window
from dehazexl.image.image import valid_mask, value_range
from dehazexl.io.open import open_image

SIDE = 300


def collar(share: float, turned: bool = True) -> NDArray[np.bool_]:
    """Return where there is no image: around a turned rectangle, or bars at top and bottom."""
    y, x = (np.indices((SIDE, SIDE)) - SIDE / 2) / SIDE
    if not turned:
        return np.abs(y) > (1 - share) / 2
    angle = 0.3 if share > 0.1 else 0.05
    u, v = np.abs(y * np.cos(angle) + x * np.sin(angle)), np.abs(x * np.cos(angle) - y * np.sin(angle))
    away = np.maximum(u, v)
    outside: NDArray[np.bool_] = away > np.quantile(away, 1 - share)
    return outside


@pytest.mark.parametrize("share", [0.02, 0.08, 0.21, 0.47])
@pytest.mark.parametrize(("dtype", "value"), [("uint8", 0), ("uint8", 255), ("uint16", 65535), ("float32", 0)])
def test_an_undeclared_border_counts_like_a_declared_one(
    tiny: DehazeXL, tmp_path: Path, share: float, dtype: str, value: float
) -> None:
    """The results are equal, but a valid pixel never gets the declared value."""
    pixels, outside = smooth(3, dtype, SIDE, SIDE), collar(share)
    pixels[outside] = value
    write_gdal(tmp_path / "plain.tif", pixels, compress="deflate", photometric="RGB")
    write_gdal(tmp_path / "declared.tif", pixels, compress="deflate", photometric="RGB", nodata=value)
    plain, declared = (open_image(tmp_path / name) for name in ("plain.tif", "declared.tif"))
    found = find_border(plain)
    assert found.border is not None and found.border.value == value
    assert found.border.share == pytest.approx(share, abs=0.01)
    assert found.notes == (*plain.notes, found.notes[-1]) and f"a border of {value} around the image" in found.notes[-1]
    assert value_range(found) == value_range(declared)
    ours, theirs = (dehazexl.dehaze(image, tiny).compute() for image in (plain, declared))
    np.testing.assert_allclose(ours.astype(float), theirs.astype(float), atol=1 if dtype != "float32" else 1e-6)
    np.testing.assert_array_equal(ours[outside], pixels[outside])
    kept = dehazexl.dehaze(plain, tiny, border="keep").compute()
    assert (kept[~outside] != ours[~outside]).mean() > 0.1


def test_a_border_is_found_in_an_overview(tmp_path: Path) -> None:
    outside = np.kron(collar(0.2), np.ones((8, 8), bool))
    pixels = np.where(outside[..., None], 0, np.kron(smooth(3, "uint8", SIDE, SIDE), np.ones((8, 8, 1), "u1")))
    write_gdal(tmp_path / "a.tif", pixels.astype("uint8"), driver="COG", compress="deflate", blocksize=256)
    image = find_border(open_image(tmp_path / "a.tif"))
    assert image.border is not None
    window = Window(-20, 500, 100, 2500)
    from dehazexl.image.chunk_cache import ChunkCache

    block = ChunkCache(image.levels[0]).read(window)
    rows, cols = np.abs(np.arange(-20, 500)), np.arange(100, 2500)
    cols = np.where(cols > 2399, 2 * 2399 - cols, cols)
    np.testing.assert_array_equal(valid_mask(block, image, window), ~outside[rows[:, None], cols])


@pytest.mark.parametrize("margin", [0, 300])
def test_no_more_is_read_than_the_border_needs(margin: int) -> None:
    """Blocks of 256 pixels: those at the edges, and those that a margin of 300 pixels extends into."""
    pixels = np.full((2048, 2048, 3), 7, "uint8")
    pixels[0, 0] = 0  # starts the search
    pixels[:, :margin] = pixels[:, 2048 - margin :] = 0
    pixels[1000:1100, 1000:1100] = 0
    places: list[tuple[int, int]] = []

    def read(part: NDArray[np.uint8], block_info: Any = None) -> NDArray[np.uint8]:
        places.append(block_info[None]["chunk-location"][:2])
        return part

    source = da.map_blocks(read, da.from_array(pixels, chunks=(256, 256, 3)), dtype="u1", meta=np.empty(0, "u1"))
    image = find_border(open_image(source))
    assert (image.border is not None) == bool(margin)
    edges = {(y, x) for y in range(8) for x in range(8) if y in (0, 7) or x in (0, 7)}
    within = {(y, x) for y in range(8) for x in (1, 6)} if margin else set()
    assert set(places) == edges | within
    if image.border is not None:
        block = image.levels[0][:400, :400].compute()
        valid = valid_mask(block, image, Window(0, 400, 0, 400))
        np.testing.assert_array_equal(valid, np.broadcast_to(np.arange(400) >= margin, (400, 400)))


def test_a_hole_counts_as_its_fill_value(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(1500, 1500, 3), dtype="u1", chunks=(500, 500, 3), fill_value=0
    )
    array[:, 500:] = 7
    image = find_border(open_image(tmp_path / "a.zarr"))
    assert image.border is not None and image.border.share == pytest.approx(1 / 3, abs=0.01)
    assert not image.is_hole(Window(0, 9, 0, 9)) and image.is_missing(Window(0, 9, 0, 9))


def test_a_border_of_half_precision() -> None:
    pixels = smooth(3, "float32", SIDE, SIDE).astype("float16")
    pixels[:40] = -9999
    border = find_border(open_image(pixels)).border
    assert border is not None and border.value == np.float16(-9999)


def test_a_border_is_small_when_it_is_sent(tmp_path: Path) -> None:
    pixels = np.full((2000, 2000, 3), 7, "uint8")
    pixels[:100] = 0
    border = find_border(open_image(pixels)).border
    assert border is not None
    sent = pickle.dumps(border)
    assert len(sent) < 10_000
    again = pickle.loads(sent)
    assert again == border
    np.testing.assert_array_equal(again.cells, border.cells)


@pytest.mark.parametrize(
    "kind",
    [
        "no border",
        "dark spot",
        "dark within",
        "sky of a photograph",
        "sky without a place",
        "a few pixels",
        "nothing else",
    ],
)
def test_what_is_no_border(tmp_path: Path, kind: str) -> None:
    pixels = smooth(3, "uint8", SIDE, SIDE)
    if kind == "dark spot":
        pixels[:3, :3] = 0
    elif kind == "dark within":
        pixels[50:150, 50:150] = 0
    elif kind.startswith("sky"):
        pixels[:60] = 255
    elif kind == "a few pixels":
        pixels[0, ::7] = 0
    elif kind == "nothing else":
        pixels[:] = 0
    image = open_image(pixels)
    if kind == "sky of a photograph":
        image = replace(image, path=tmp_path / "a.jpg")
    assert find_border(image) is image


def test_bars_of_a_photograph(tmp_path: Path) -> None:
    pixels = smooth(3, "uint8", SIDE, SIDE)
    pixels[collar(0.2, turned=False)] = 0
    image = find_border(replace(open_image(pixels), path=tmp_path / "a.jpg"))
    assert image.border is not None and image.border.share == pytest.approx(0.2, abs=0.01)


def test_corners_of_a_turned_image_without_a_place() -> None:
    pixels = smooth(3, "uint8", SIDE, SIDE)
    pixels[collar(0.21)] = 255
    image = find_border(open_image(pixels))
    assert image.border is not None and image.border.share == pytest.approx(0.21, abs=0.01)


def test_a_border_is_searched_once() -> None:
    pixels = smooth(3, "uint8", SIDE, SIDE)
    pixels[:40] = 0
    reads = []

    def read(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        reads.append(part.shape)
        return part

    image = open_image(da.map_blocks(read, da.from_array(pixels), dtype="u1", meta=np.empty(0, "u1")))
    first = find_border(image).border
    count = len(reads)
    again = open_image(image)
    assert first is not None and find_border(again).border is first and len(reads) == count > 0


def test_other_values_of_border_are_refused(tiny: DehazeXL) -> None:
    with pytest.raises(ValueError, match="border='off' is not one of ignore, keep"):
        dehazexl.dehaze(smooth(), tiny, border="off")  # type: ignore[arg-type]
