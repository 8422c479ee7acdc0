"""Every kind of source, read back and compared with the array it was written from or with another library."""

from __future__ import annotations

import pickle
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import rasterio
import tifffile
import zarr
from dask.delayed import delayed
from make_pictures import png, smooth, write_gdal, write_ngff, write_pyramid

import dehazexl
from dehazexl.engine.dehaze import CHUNK
from dehazexl.image.chunk_cache import CACHE_ROW, ChunkCache
from dehazexl.image.grid import TileGrid, Window
from dehazexl.image.image import Image, valid_mask, value_range
from dehazexl.io.open import open_image
from dehazexl.io.source import Guard
from dehazexl.io.tiff_pages import Plane
from dehazexl.io.write import write

RGB = smooth()
FOUR = smooth(4, "uint16")
TILED = {"tiled": True, "blockxsize": 128, "blockysize": 256}
MASK = np.indices(RGB.shape[:2]).sum(0) > 300


def pixels(image: Image, level: int = 0) -> np.ndarray:
    return image.levels[level].compute()


# ---- TIFF -----------------------------------------------------------------------------------------

GDAL_FILES: dict[str, tuple[Any, Any, str]] = {
    "strips": (RGB, {}, "red green blue"),
    "strips-lzw": (RGB, {"compress": "lzw", "predictor": 2}, "red green blue"),
    "tall-strips": (RGB, {"compress": "deflate", "blockysize": 300}, "red green blue"),
    "tiles": (RGB, {**TILED}, "red green blue"),
    "tiles-zstd": (
        FOUR,
        {**TILED, "compress": "zstd", "predictor": 2, "photometric": "RGB", "alpha": "YES"},
        "red green blue alpha",
    ),
    "band": (FOUR, {**TILED, "compress": "deflate", "interleave": "band"}, "red green blue band_4"),
    "band-strips": (FOUR, {"compress": "lzw", "interleave": "band"}, "red green blue band_4"),
    "bigtiff": (RGB, {"BIGTIFF": "YES", "compress": "lzw"}, "red green blue"),
    "big-endian": (FOUR, {"ENDIANNESS": "BIG"}, "red green blue band_4"),
    "big-endian-lzw": (FOUR, {"ENDIANNESS": "BIG", "compress": "lzw"}, "red green blue band_4"),
    "float": (smooth(1, "float32"), {**TILED, "compress": "deflate", "predictor": 3}, "gray"),
    "eight": (smooth(8), {"photometric": "MINISBLACK"}, " ".join(f"band_{n}" for n in range(1, 9))),
    "twelve-bit": (smooth(3, "uint16") // 4, {"NBITS": 12, "compress": "lzw"}, "band_1 band_2 band_3"),
    "sparse": (RGB * 0, {**TILED, "SPARSE_OK": True, "nodata": 7}, "red green blue"),
    "cog": (RGB, {"driver": "COG", "blocksize": 128, "compress": "deflate"}, "band_1 band_2 band_3"),
}


@pytest.mark.parametrize("kind", GDAL_FILES)
def test_equals_gdal(tmp_path: Path, kind: str) -> None:
    array, options, bands = GDAL_FILES[kind]
    path = tmp_path / f"{kind}.tif"
    if "NBITS" not in options and array.shape[2] == 4 and "photometric" not in options:
        options = options | {"photometric": "RGB", "alpha": "unspecified"}
    write_gdal(path, array, **options)
    image = open_image(path)
    with rasterio.open(path) as file:
        expected = np.moveaxis(file.read(), 0, -1)
        assert [level.shape[:2] for level in image.levels[1:]] == [
            (-(-file.height // n), -(-file.width // n)) if kind != "cog" else (file.height // n, file.width // n)
            for n in file.overviews(1)
        ]
    assert np.array_equal(pixels(image), expected)
    assert image.levels[0].dtype == expected.dtype == array.dtype
    assert " ".join(name.replace(" ", "_") for name in image.bands) == bands
    assert image.geo is not None
    assert image.name == kind
    assert image.path == path


def test_overviews_are_those_in_the_file(tmp_path: Path) -> None:
    write_gdal(tmp_path / "cog.tif", RGB, driver="COG", blocksize=128, overview_count=2)
    image = open_image(tmp_path / "cog.tif")
    assert len(image.levels) == 3
    for number in (0, 1):
        with rasterio.open(tmp_path / "cog.tif", overview_level=number) as file:
            assert np.array_equal(pixels(image, number + 1), np.moveaxis(file.read(), 0, -1))


def test_overviews_of_any_factor(tmp_path: Path) -> None:
    write_gdal(tmp_path / "a.tif", RGB, **TILED)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.build_overviews([2, 8, 16])
    assert [level.shape[0] for level in open_image(tmp_path / "a.tif").levels] == [701, 351, 88, 44]


@pytest.mark.parametrize("driver", ["GTiff", "COG"])
def test_jpeg_in_tiff_with_mask(tmp_path: Path, driver: str) -> None:
    options = {"photometric": "YCBCR", **TILED, "blockxsize": 256} if driver == "GTiff" else {"overview_count": 2}
    write_gdal(tmp_path / "a.tif", RGB, driver=driver, compress="JPEG", mask=MASK, **options)
    image = open_image(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as file:
        colors, mask = np.moveaxis(file.read(), 0, -1), file.dataset_mask()
    block = pixels(image)
    assert image.bands == ("red", "green", "blue", "mask")
    assert image.alpha == 3
    assert np.abs(block[..., :3].astype(int) - colors).max() <= 6
    assert np.array_equal(block[..., 3], mask)
    assert np.array_equal(valid_mask(block, image), MASK)
    assert all(level.shape[2] == 4 for level in image.levels)
    assert len(image.levels) == (1 if driver == "GTiff" else 3)


def test_jpeg_in_tiff_band_by_band(tmp_path: Path) -> None:
    write_gdal(tmp_path / "a.tif", RGB, **TILED, compress="jpeg", interleave="band")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(np.moveaxis(pixels(open_image(tmp_path / "a.tif")), -1, 0), file.read())


def test_jpeg_in_tiff_of_three_bands_that_are_not_colors(tmp_path: Path) -> None:
    """A JPEG decoder decodes three components as YCbCr by default."""
    write_gdal(tmp_path / "a.tif", RGB, **TILED, compress="jpeg", interleave="pixel", photometric="MINISBLACK")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(np.moveaxis(pixels(open_image(tmp_path / "a.tif")), -1, 0), file.read())


def test_eight_bands_and_a_mask(tmp_path: Path) -> None:
    write_gdal(tmp_path / "a.tif", smooth(8), photometric="MINISBLACK", mask=MASK)
    image = open_image(tmp_path / "a.tif")
    assert image.alpha == 8 and len(image.bands) == 9
    for name in ("b.tif", "b.zarr"):
        for _ in write(image.levels[0], tmp_path / name, image):
            pass
        again = open_image(tmp_path / name)
        assert again.alpha == 8 and np.array_equal(pixels(again), pixels(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("tiled", [True, False])
def test_tiff_is_upright(tmp_path: Path, orientation: int, tiled: bool) -> None:
    options = {"tile": (64, 64), "compression": "zlib"} if tiled else {"rowsperstrip": 16, "compression": "lzw"}
    tags = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, extratags=tags, **options)
    with PIL.Image.open(tmp_path / "a.tif") as file:
        upright = np.asarray(PIL.ImageOps.exif_transpose(file))
    image = open_image(tmp_path / "a.tif")
    assert np.array_equal(pixels(image), upright)
    np.testing.assert_array_equal(ChunkCache(image.levels[0]).read(Window(33, 140, 70, 99)), upright[33:140, 70:99])


def test_a_georeferenced_image_keeps_its_orientation(tmp_path: Path) -> None:
    """As in GDAL: the georeference refers to rows and columns of the file."""
    tags: list[tuple[Any, ...]] = [
        (33550, 12, 3, (0.5, 0.5, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, 5e5, 5e6, 0.0), True),
    ]
    tags.append((274, 3, 1, 6, True))
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, extratags=tags)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert np.array_equal(np.moveaxis(pixels(open_image(tmp_path / "a.tif")), -1, 0), file.read())


TIFFFILE_FILES: dict[str, tuple[Any, str]] = {
    "plain": ({}, "yxc"),
    "planar": ({"planarconfig": "separate", "compression": "zlib", "photometric": "rgb"}, "cyx"),
    "pages": ({"photometric": "minisblack"}, "cyx"),
    "pages-zstd": ({"photometric": "minisblack", "compression": "zstd", "metadata": {"axes": "CYX"}}, "cyx"),
    "truncated": ({"photometric": "minisblack", "metadata": {"axes": "CYX"}, "truncate": True}, "cyx"),
    "imagej": ({"imagej": True, "photometric": "minisblack"}, "cyx"),
    "lonely": ({"photometric": "minisblack", "metadata": {"axes": "TCYX"}}, "tcyx"),
    "big": ({"bigtiff": True, "tile": (64, 96), "byteorder": ">"}, "yxc"),
    "ome": ({"ome": True, "photometric": "minisblack", "tile": (64, 64), "compression": "zlib"}, "cyx"),
    "webp": ({"compression": "webp", "compressionargs": {"lossless": True}, "tile": (64, 64)}, "yxc"),
}


@pytest.mark.parametrize("kind", TIFFFILE_FILES)
def test_reads_files_of_tifffile(tmp_path: Path, kind: str) -> None:
    options, axes = TIFFFILE_FILES[kind]
    options = {"photometric": "rgb"} | options if axes == "yxc" else options
    array = {"yxc": RGB, "cyx": np.moveaxis(RGB, -1, 0), "tcyx": np.moveaxis(RGB, -1, 0)[None]}[axes]
    tifffile.imwrite(tmp_path / f"{kind}.ome.tif" if kind == "ome" else tmp_path / f"{kind}.tif", array, **options)
    image = open_image(next(tmp_path.iterdir()))
    assert np.array_equal(pixels(image), RGB)
    assert image.name == kind
    assert image.rgb == (0, 1, 2)


def test_subifd_pyramid(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "a.tif", RGB, photometric="rgb", tile=(64, 64), compression="zstd")
    image = open_image(tmp_path / "a.tif")
    assert [np.array_equal(pixels(image, n), RGB[:: 2**n, :: 2**n]) for n in range(3)] == [True] * 3


def test_ome_tiff_channels(tmp_path: Path) -> None:
    metadata = {
        "axes": "CYX",
        "Channel": {"Name": ["Blue", "Green", "Red", "NIR"], "Color": [65535, 16711935, -16776961, -1]},
        **{"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "m", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "m"},
    }
    path = tmp_path / "a.ome.tif"
    options = {"photometric": "minisblack", "tile": (64, 64), "compression": "zlib"}
    write_pyramid(path, np.moveaxis(FOUR, -1, 0), ome=True, metadata=metadata, **options)
    image = open_image(path)
    assert np.array_equal(pixels(image), FOUR)
    assert np.array_equal(pixels(image, 2), FOUR[::4, ::4])
    assert (image.bands, image.rgb) == (("Blue", "Green", "Red", "NIR"), (2, 1, 0))
    assert (image.scale, image.units) == ((0.25, 0.5), "meter")


COLORS: dict[str, tuple[Any, Any, Any]] = {
    "names": ({"names": ["blue", "green", "Red", "NIR"]}, (2, 1, 0), None),
    "sentinel": ({"names": ["B2 (blue)", "B3 (green)", "B4 (red)", "B5 (red edge)"]}, (2, 1, 0), None),
    "planet": ({"names": ["coastal_blue", "blue", "green_i", "green", "yellow", "red"]}, (5, 3, 1), None),
    "sentinel-1": ({"names": ["B01 (coastal blue)", "B02 (blue)", "B03 (green)", "B04 (red)"]}, (3, 2, 1), None),
    "interpretation": ({"colors": "blue green red undefined"}, (2, 1, 0), None),
    "alpha-first": ({"colors": "alpha red green blue"}, (1, 2, 3), 0),
    "rgba": ({"photometric": "RGB", "alpha": "YES"}, (0, 1, 2), 3),
    "rgb-nir": ({"photometric": "RGB", "alpha": "unspecified"}, (0, 1, 2), None),
    "nothing": ({"photometric": "MINISBLACK"}, (0, 1, 2), None),
    "alpha-by-name": ({"photometric": "RGB", "alpha": "NO", "names": ["", "", "", "alpha"]}, (0, 1, 2), 3),
}


@pytest.mark.parametrize("kind", COLORS)
def test_finds_red_green_and_blue(tmp_path: Path, kind: str) -> None:
    options, rgb, alpha = COLORS[kind]
    write_gdal(tmp_path / "a.tif", smooth(len(options.get("names", FOUR[0, 0])), "uint16"), **options)
    image = open_image(tmp_path / "a.tif")
    assert (image.rgb, image.alpha) == (rgb, alpha)


def test_gray_and_gray_with_alpha(tmp_path: Path) -> None:
    write_gdal(tmp_path / "1.tif", smooth(1))
    write_gdal(tmp_path / "2.tif", smooth(2), alpha="YES")
    write_gdal(tmp_path / "sar.tif", smooth(2), alpha="NO", names=["VV", "VH"])
    found = [open_image(tmp_path / name) for name in ("1.tif", "2.tif", "sar.tif")]
    assert [(image.rgb, image.alpha) for image in found] == [((0, 0, 0), None), ((0, 0, 0), 1), ((0, 0, 0), None)]
    assert [image.bands for image in found] == [("gray",), ("gray", "alpha"), ("VV", "VH")]


@pytest.mark.parametrize("nodata", [0, 255, -9999, float("nan"), -3.4028234663852886e38])
def test_nodata(tmp_path: Path, nodata: float) -> None:
    array = smooth(3, "float32")
    array[:50] = nodata
    write_gdal(tmp_path / "a.tif", array, nodata=nodata)
    image = open_image(tmp_path / "a.tif")
    assert image.nodata == pytest.approx(nodata, nan_ok=True)
    assert np.array_equal(valid_mask(pixels(image), image), np.arange(701)[:, None].repeat(523, 1) >= 50)


def test_metadata(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", RGB, description="a park", software="cam", resolution=(100, 100), metadata=None
    )
    image = open_image(tmp_path / "a.tif")
    assert image.metadata["description"] == "a park"
    assert image.metadata["software"] == "cam"
    assert image.metadata["x_resolution"] == (100, 1)


def test_the_reader_can_be_pickled(tmp_path: Path) -> None:
    write_gdal(tmp_path / "a.tif", RGB, **TILED, compress="lzw")
    image = open_image(tmp_path / "a.tif")
    image.levels[0][:9].compute()
    copy = pickle.loads(pickle.dumps(image))
    with dask.config.set(scheduler="synchronous"):
        assert np.array_equal(pixels(copy), RGB)


def test_wide_strips_make_low_chunks(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((600, 40_000), "u1"), compression="zlib", rowsperstrip=10)
    assert open_image(tmp_path / "a.tif").levels[0].chunksize == (260, 40_000, 1)


def test_strips_are_decoded_once_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4400, 16384, 3), "u1"), compression="zlib", rowsperstrip=20)
    decoded, decode = list[int](), Plane.decode

    def counted(plane: Plane, data: bytes, index: int) -> object:
        decoded.append(index)
        return decode(plane, data, index)

    monkeypatch.setattr(Plane, "decode", counted)
    level = open_image(path).levels[0]
    reader, grid = ChunkCache(level), TileGrid(4400, 16384, overlap=32)
    for block in grid.blocks(grid.block):
        reader.read(grid.tile_window(block))
    assert sorted(decoded) == list(range(220))

    decoded.clear()
    reader = ChunkCache(level)
    for y in range(0, 4400, CHUNK):
        for x in range(0, 16384, CHUNK):
            chunk = Window(y, min(y + CHUNK, 4400), x, min(x + CHUNK, 16384))
            reader.read(grid.tile_window(grid.tiles_touching(chunk)))
    assert sorted(decoded) == list(range(220))


def test_wide_images_keep_a_bounded_number_of_chunks() -> None:
    wide = da.zeros((4096, 500_000, 3), chunks=(256, -1, -1), dtype="u1")
    assert ChunkCache(wide)._chunk.cache_info().maxsize * 256 * 500_000 * 3 <= CACHE_ROW


# ---- Zarr -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["yxc", "cyx", "yx"])
def test_zarr_array(tmp_path: Path, version: Any, axes: str) -> None:
    array = {"yxc": FOUR, "cyx": np.moveaxis(FOUR, -1, 0), "yx": FOUR[..., 0]}[axes]
    stored = zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(100,) * array.ndim, zarr_format=version)
    expected = FOUR[..., :1] if axes == "yx" else FOUR
    for source in (tmp_path / "a.zarr", str(tmp_path / "a.zarr"), stored):
        image = open_image(source)
        assert np.array_equal(pixels(image), expected)
        assert image.name == "a" or source is stored
    assert image.levels[0].numblocks[2] == 1


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str) -> None:
    omero = {
        "channels": [{"label": f"ch {n}", "color": color} for n, color in enumerate(("0000ff", "00FF00", "FF0000"))]
    }
    write_ngff(tmp_path / "a.ome.zarr", np.moveaxis(RGB, -1, 0), version, omero=omero)
    image = open_image(tmp_path / "a.ome.zarr")
    assert np.array_equal(pixels(image), RGB)
    assert np.array_equal(pixels(image, 1), RGB[::2, ::2])
    assert (image.bands, image.rgb) == (("ch 0", "ch 1", "ch 2"), (2, 1, 0))
    assert (image.scale, image.translate, image.units) == ((0.5, 1.0), (7, 9), "meter")
    assert image.name == "a"


def test_ome_zarr_of_five_axes(tmp_path: Path) -> None:
    write_ngff(tmp_path / "a.zarr", np.moveaxis(RGB, -1, 0)[None, :, None], "0.4", "tczyx")
    assert np.array_equal(pixels(open_image(tmp_path / "a.zarr")), RGB)


def test_axes_by_dimension_names(tmp_path: Path) -> None:
    array = smooth(8, height=8, width=8)
    names = ("x", "band", "y")
    zarr.create_array(tmp_path / "3.zarr", data=array.transpose(1, 2, 0), dimension_names=names)
    old = zarr.create_array(tmp_path / "2.zarr", data=array.transpose(1, 2, 0), zarr_format=2, fill_value=9)
    old.attrs["_ARRAY_DIMENSIONS"] = list(names)
    assert np.array_equal(pixels(open_image(tmp_path / "3.zarr")), array)
    image = open_image(tmp_path / "2.zarr")
    assert np.array_equal(pixels(image), array)
    assert image.nodata == 9


def test_rioxarray_group(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    data = group.create_array("reflectance", data=np.moveaxis(FOUR, -1, 0), dimension_names=("band", "y", "x"))
    data.attrs.update(
        {"grid_mapping": "crs", "_FillValue": "AAAAAACI00A=", "long_name": ["blue", "green", "red", "nir"]}
    )
    group.create_array("x", data=np.arange(523.0))
    group.create_array("crs", shape=(), dtype="int64").attrs["GeoTransform"] = "500000 0.5 0 5000000 0 -0.5"
    image = open_image(tmp_path / "a.zarr")
    assert np.array_equal(pixels(image), FOUR)
    assert (image.rgb, image.nodata) == ((2, 1, 0), 20_000.0)
    assert image.geo is not None
    assert image.geo.affine == (0.5, 0, 500_000, 0, -0.5, 5_000_000)


def test_zip_and_memory(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=RGB, chunks=(100, 100, 3))
    shutil.make_archive(str(tmp_path / "b.zarr"), "zip", tmp_path / "a.zarr")
    zipped = open_image(tmp_path / "b.zarr.zip")
    assert np.array_equal(pixels(zipped), RGB)
    assert zipped.name == "b"
    kept = zarr.create_array(zarr.storage.MemoryStore(), data=RGB)
    assert np.array_equal(pixels(open_image(kept)), RGB)
    assert open_image(kept).fingerprint != open_image(kept).fingerprint


def test_a_shard_is_read_in_parts(tmp_path: Path) -> None:
    stored = zarr.create_array(
        tmp_path / "a.zarr", shape=(4096, 4096, 3), shards=(4096, 4096, 3), chunks=(256, 256, 3), dtype="uint8"
    )
    stored[:] = np.tile(smooth(3, "uint8", 256, 256), (16, 16, 1))
    image = open_image(tmp_path / "a.zarr")
    assert image.levels[0].chunksize == (1024, 1024, 3)
    np.testing.assert_array_equal(image.levels[0][1000:1300, 2000:2100].compute(), stored[1000:1300, 2000:2100])


def test_axes_of_unknown_names_are_found_by_length(tmp_path: Path) -> None:
    write_ngff(tmp_path / "a.zarr", np.moveaxis(RGB, -1, 0), "0.5")
    group = zarr.open_group(tmp_path / "a.zarr")
    ome: Any = group.attrs["ome"]
    for axis, name in zip(ome["multiscales"][0]["axes"], ("first", "second", "third"), strict=True):
        axis["name"] = name
    group.attrs["ome"] = ome
    assert np.array_equal(pixels(open_image(tmp_path / "a.zarr")), RGB)


@pytest.mark.parametrize("axes", ["yxc", "cyx"])
def test_huge_zarr_opens_without_its_pixels(tmp_path: Path, axes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    side = {"y": (100_000, 1024), "x": (100_000, 1024), "c": (3, 3)}
    shape, chunks = zip(*(side[axis] for axis in axes), strict=True)
    stored = zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=chunks, dtype="uint8")
    stored[:5, :5, :5] = 200
    get, asked = zarr.storage.LocalStore.get, []

    async def noted(store: zarr.storage.LocalStore, key: str, *rest: Any, **options: Any) -> object:
        asked.append(key)
        return await get(store, key, *rest, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", noted)
    image = open_image(tmp_path / "a.zarr")
    assert asked and not [key for key in asked if key.startswith("c/")]
    assert image.levels[0].numblocks[:2] == (98, 98)
    assert image.levels[0].shape == (100_000, 100_000, 3)
    assert image.levels[0][90_000:90_002, 5, 0].compute().tolist() == [0, 0]


def test_opening_reads_no_pixels(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=RGB, chunks=(100, 100, 3))
    shutil.rmtree(tmp_path / "a.zarr" / "c")
    write_gdal(tmp_path / "a.tif", RGB, **TILED, compress="lzw")
    body = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages.first
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
            body[offset : offset + count] = b"\xff" * count
    (tmp_path / "a.tif").write_bytes(body)
    assert open_image(tmp_path / "a.zarr").levels[0].shape == open_image(tmp_path / "a.tif").levels[0].shape
    with pytest.raises(ValueError, match=r"a\.tif is damaged in rows 0 to 700, columns 0 to 522"):
        open_image(tmp_path / "a.tif").levels[0][:9, :9].compute(scheduler="synchronous")


# ---- photographs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(RGB).save(tmp_path / "a.JPG", exif=exif, quality=95)
    image = open_image(tmp_path / "a.JPG")
    turned = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1]}
    turned |= {n: np.swapaxes(turned[m], 0, 1) for n, m in ((5, 1), (8, 2), (7, 3), (6, 4))}
    assert image.levels[0].shape == turned[orientation].shape
    assert np.abs(pixels(image).astype(int) - turned[orientation]).max() < 12


PNGS = {
    "L": (RGB[..., :1], (0, 0, 0), None),
    "LA": (RGB[..., :2], (0, 0, 0), 1),
    "RGB": (RGB, (0, 1, 2), None),
    "RGBA": (smooth(4), (0, 1, 2), 3),
}


@pytest.mark.parametrize("mode", PNGS)
def test_png(tmp_path: Path, mode: str) -> None:
    array, rgb, alpha = PNGS[mode]
    PIL.Image.fromarray(array.squeeze()).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert np.array_equal(pixels(image), array)
    assert (image.rgb, image.alpha) == (rgb, alpha)


def test_png_of_sixteen_bits_and_palette(tmp_path: Path) -> None:
    rows = b"\0" + struct.pack(">6H", *range(1000, 1006))
    (tmp_path / "16.png").write_bytes(png(2, 1, 16, 2, rows))
    assert pixels(open_image(tmp_path / "16.png")).tolist() == [[[1000, 1001, 1002], [1003, 1004, 1005]]]
    PIL.Image.fromarray(RGB).quantize(16).save(tmp_path / "p.png")
    with PIL.Image.open(tmp_path / "p.png") as picture:
        assert np.array_equal(pixels(open_image(tmp_path / "p.png")), np.asarray(picture.convert("RGB")))
    (tmp_path / "t.png").write_bytes(png(1, 1, 8, 3, b"\0\1", (b"PLTE", bytes(range(6))), (b"tRNS", b"\x09\x08")))
    image = open_image(tmp_path / "t.png")
    assert pixels(image).tolist() == [[[3, 4, 5, 8]]]
    assert image.alpha == 3


# ---- arrays ---------------------------------------------------------------------------------------

SHAPES = {
    (40, 50): (40, 50, 1),
    (40, 50, 3): (40, 50, 3),
    (3, 40, 50): (40, 50, 3),
    (1, 40, 50): (40, 50, 1),
    (40, 50, 1): (40, 50, 1),
    (4, 4, 4): (4, 4, 4),
    (7, 5, 3): (7, 5, 3),
    (1, 1, 40, 50): (40, 50, 1),
    (1, 3, 40, 50): (40, 50, 3),
    (1, 1): (1, 1, 1),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["numpy", "dask", "big-endian"])
def test_axes_by_shape(shape: tuple[int, ...], kind: str) -> None:
    array = np.arange(np.prod(shape), dtype=">u2" if kind == "big-endian" else "uint16").reshape(shape)
    image = open_image(da.from_array(array, chunks=3) if kind == "dask" else array)
    expected = array.reshape(SHAPES[shape]) if shape != (3, 40, 50) else np.moveaxis(array, 0, -1)
    expected = np.moveaxis(array[0], 0, -1) if shape == (1, 3, 40, 50) else expected
    assert np.array_equal(pixels(image), expected)
    assert image.levels[0].dtype == np.dtype("uint16")
    assert image.levels[0].numblocks[2] == 1
    assert image.name == "array"


def test_computed_pixels_are_a_copy() -> None:
    array = RGB.copy()
    pixels(open_image(array))[:] = 0
    assert np.array_equal(array, RGB)


def test_an_image_is_returned_as_it_is() -> None:
    image = open_image(RGB)
    assert open_image(image) is image


@pytest.mark.parametrize(
    ("bands", "rgb"),
    [([3, 2, 1], (2, 1, 0)), (["Band 4", "band 2", 1], (3, 1, 0)), ([4], (3, 3, 3)), (np.array([1, 1, 2]), (0, 0, 1))],
)
def test_bands_by_number_or_name(bands: list[int | str], rgb: tuple[int, int, int]) -> None:
    assert open_image(FOUR, bands=bands).rgb == rgb
    assert open_image(open_image(FOUR), bands=bands).rgb == rgb


def test_fingerprint_changes_with_the_pixels(tmp_path: Path) -> None:
    tiff, folder = tmp_path / "a.tif", tmp_path / "a.zarr"
    tifffile.imwrite(tiff, RGB)
    stored = zarr.create_array(folder, data=np.moveaxis(RGB, -1, 0), chunks=(3, 100, 100))
    sources = {"tiff": tiff, "zarr": folder, "numpy": RGB, "dask": da.asarray(RGB)}
    before = {name: open_image(source).fingerprint for name, source in sources.items()}
    assert before == {name: open_image(source).fingerprint for name, source in sources.items()}
    assert open_image(stored).fingerprint
    time.sleep(0.02)
    tifffile.imwrite(tiff, RGB[::-1])
    stored[0, 650, 500] ^= 1
    after = {name: open_image(source).fingerprint for name, source in (sources | {"numpy": RGB ^ 1}).items()}
    assert {name for name in sources if after[name] != before[name]} == {"tiff", "zarr", "numpy"}


# ---- value range and valid pixels -----------------------------------------------------------------


def test_value_range_of_bytes_reads_nothing() -> None:
    image = open_image(da.from_delayed(delayed(lambda: 1 / 0)(), (9, 9, 3), "uint8"))
    assert value_range(image) == (0, 255)


@pytest.mark.parametrize("dtype", ["uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize("size", [(300, 200), (1500, 1100)])
def test_value_range_is_from_zero_to_the_percentile(dtype: str, size: tuple[int, int]) -> None:
    array = smooth(3, dtype, *size)
    low, high = value_range(open_image(array))
    assert low == 0
    assert high == pytest.approx(np.percentile(array.astype(float), 99.9), abs=300)
    assert (low, high) == value_range(open_image(da.from_array(array, chunks=(500, 333, 1))))


def test_value_range_ignores_invalid_pixels() -> None:
    array = smooth(4, "float32")
    array[:100] = np.nan
    array[100:200, :, 1] = np.inf
    array[200:300] = -9999
    array[300:400] = 1e9
    array[..., 3] = np.arange(701)[:, None] >= 400
    image = Image((da.from_array(array),), "a", ("r", "g", "b", "a"), (0, 1, 2), alpha=3, nodata=-9999)
    assert value_range(image) == pytest.approx((0, np.percentile(array[400:, :, :3], 99.9)))


def test_value_range_reads_an_overview() -> None:
    fine = da.from_delayed(delayed(lambda: 1 / 0)(), (1200, 1200, 1), "uint16")
    coarse, tiny = (da.full((side, side, 1), side, dtype="uint16") for side in (600, 300))
    coarse = da.concatenate([coarse, coarse + 50])
    image = Image((fine, coarse, tiny), "a", ("gray",), (0, 0, 0))
    assert value_range(image) == (0, 650)


def test_value_range_finds_sparse_data() -> None:
    array = np.zeros((4000, 4000, 3), "uint16")
    array[140:360, 140:360] = smooth(3, "uint16", 220, 220)
    image = replace(open_image(da.from_array(array)), nodata=0)
    assert value_range(image)[1] == pytest.approx(array.max(), rel=0.2)


def test_value_range_below_zero() -> None:
    array = smooth(3, "float32", 300, 200)
    array -= array.mean()
    expected = np.percentile(array.astype(float), (0.1, 99.9))
    assert value_range(open_image(array)) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("value", [0, 7])
def test_value_range_of_one_value(value: int) -> None:
    assert value_range(open_image(np.full((9, 9), value, "uint16"))) == (0, 65535)
    assert value_range(open_image(np.full((9, 9), value, "float32"))) == (0, 1)
    assert value_range(open_image(np.full((9, 9), np.nan, "float32"))) == (0, 1)


# ---- errors ---------------------------------------------------------------------------------------


def plane(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.zeros(shape, dtype)


WRONG_ARRAYS = [
    ([[1, 2]], TypeError, "cannot open a list"),
    (plane(5), ValueError, "has 1 axes"),
    (plane(0, 5), ValueError, "is empty"),
    (plane(40, 50, 9), ValueError, "no axis of 1 to 8 bands"),
    (plane(20, 40, 50), ValueError, "no axis of 1 to 8 bands"),
    (plane(2, 3, 40, 50), ValueError, "pass one plane"),
    (plane(5, 5, dtype="complex64"), ValueError, "complex64 pixels.*absolute"),
    (plane(5, 5, dtype="int64"), ValueError, "int64 pixels.*astype"),
    (plane(5, 5, dtype="uint64"), ValueError, "uint64 pixels"),
    (plane(5, 5, dtype="bool"), ValueError, "1-bit mask"),
    (plane(5, 5, dtype="object"), ValueError, "object pixels"),
    (da.from_array(np.arange(9).reshape(3, 3))[np.arange(3) > da.zeros(3)], ValueError, "compute_chunk_sizes"),
]


@pytest.mark.parametrize(("source", "error", "message"), WRONG_ARRAYS)
def test_refuses_arrays(source: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        open_image(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bands", [[1, 2], [0, 1, 2], [1, 2, 5], ["red", "green", "blue"], "123", [1.5, 1, 2], [True, 1, 2]]
)
def test_refuses_bands(bands: list[int | str]) -> None:
    with pytest.raises(ValueError, match=r"bands"):
        open_image(FOUR, bands=bands)


def cut(path: Path, size: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * size)])


def test_reports_the_first_truncated_tile(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_gdal(path, RGB, **TILED, compress="lzw")
    with tifffile.TiffFile(path) as file:
        seventh = file.pages.first.dataoffsets[7]
    path.write_bytes(path.read_bytes()[: seventh + 3])
    with pytest.raises(ValueError, match=r"cut short: tile 7 \(row 1, column 2\)"):
        open_image(path)


CUT_FILES: dict[str, dict[str, Any]] = {
    "strips": {"compress": "lzw"},
    "mapped": {},
    "band": {**TILED, "interleave": "band"},
    "cog": {"driver": "COG", "blocksize": 128},
}


@pytest.mark.parametrize("kind", CUT_FILES)
@pytest.mark.parametrize("size", [0.0005, 0.01, 0.5, 0.99])
def test_refuses_a_file_cut_short(tmp_path: Path, kind: str, size: float) -> None:
    write_gdal(tmp_path / "a.tif", RGB, **CUT_FILES[kind])
    cut(tmp_path / "a.tif", size)
    with pytest.raises(ValueError, match=r"a\.tif (is cut short|is a damaged TIFF|is empty)") as caught:
        open_image(tmp_path / "a.tif")
    assert "\n" not in str(caught.value)


def test_refuses_ome_tiff_without_its_last_pages(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", np.moveaxis(RGB, -1, 0), photometric="minisblack", compression="zlib")
    cut(tmp_path / "a.ome.tif", 0.6)
    with pytest.raises(ValueError, match="cut short"):
        open_image(tmp_path / "a.ome.tif")


def write_wrong(kind: str, path: Path) -> Path:
    """Write a file that is not an image, or cannot be read."""
    tiff, folder = path / "a.tif", path / "a.zarr"
    stack = np.zeros((20, 30, 40), "uint16")
    if kind == "text":
        tiff.write_text("hello world")
    elif kind == "nothing":
        tiff.write_bytes(b"")
    elif kind == "head":
        tiff.write_bytes(b"II*\0")
    elif kind == "palette":
        tifffile.imwrite(tiff, RGB[..., 0], photometric="palette", colormap=np.zeros((3, 256), "uint16"))
    elif kind == "bits":
        tifffile.imwrite(tiff, MASK, photometric="minisblack", compression="zlib")
    elif kind == "cmyk":
        tifffile.imwrite(tiff, smooth(4), photometric="separated")
    elif kind == "integers":
        tifffile.imwrite(tiff, stack[0].astype("int64"))
    elif kind == "z-stack":
        tifffile.imwrite(tiff, stack, photometric="minisblack", imagej=True, metadata={"axes": "ZYX"})
    elif kind == "time":
        tifffile.imwrite(
            tiff,
            np.moveaxis(smooth(3)[None] * np.ones((2, 1, 1, 1), "u1"), -1, 1),
            photometric="minisblack",
            metadata={"axes": "TCYX"},
        )
    elif kind == "folder":
        folder.mkdir()
    elif kind == "empty-group":
        zarr.open_group(folder, mode="w")
    elif kind == "two-arrays":
        group = zarr.open_group(folder, mode="w")
        group["one"], group["two"] = RGB, RGB
    elif kind == "broken-zarr":
        folder.mkdir()
        (folder / "zarr.json").write_text("{")
    elif kind == "ngff-z":
        write_ngff(folder, stack[None], "0.5", "czyx")
    elif kind == "ngff-lost":
        write_ngff(folder, np.moveaxis(RGB, -1, 0), "0.5")
        shutil.rmtree(folder / "1")
    elif kind == "zip":
        shutil.make_archive(str(folder), "zip", path)
    elif kind == "zip-cut":
        zarr.create_array(path / "b.zarr", data=RGB)
        shutil.make_archive(str(folder), "zip", path / "b.zarr")
        cut(path / "a.zarr.zip", 0.5)
        shutil.rmtree(path / "b.zarr")
    elif kind == "own":
        zarr.create_array(folder, data=RGB, attributes={"dehazexl": {"metadata": {}}})
    elif kind == "png-bits":
        PIL.Image.fromarray(MASK).save(path / "a.png")
    elif kind == "png-head":
        (path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    elif kind == "jpeg-head":
        (path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    elif kind in DAMAGED_TAGS:
        tifffile.imwrite(tiff, RGB, photometric="rgb", compression="zlib", metadata=None, **DAMAGED_TAGS[kind][0])
        overwrite_tag(tiff, *DAMAGED_TAGS[kind][1:])
    elif kind == "ome-xml":
        tifffile.imwrite(path / "a.ome.tif", RGB, photometric="rgb")
        (path / "a.ome.tif").write_bytes((path / "a.ome.tif").read_bytes().replace(b"SizeT=", b"SizeQ="))
    elif kind == "png-colors":
        (path / "a.png").write_bytes(png(4, 4, 8, 9, bytes(20)))
    elif kind in DAMAGED_NGFF:
        write_ngff(folder, np.moveaxis(RGB, -1, 0), "0.5")
        group = zarr.open_group(folder)
        group.attrs["ome"] = DAMAGED_NGFF[kind](dict(group.attrs["ome"]))  # type: ignore[arg-type]
    elif kind == "broken-link":
        (path / "a.tif").symlink_to(path / "b.tif")
    return next(path.iterdir(), path / "gone.tif")


DAMAGED_TAGS: dict[str, Any] = {
    "no-rows-a-strip": ({"rowsperstrip": 16}, "RowsPerStrip", "value", 0),
    "tiles-of-no-rows": ({"tile": (64, 64)}, "TileLength", "value", 0),
    "no-columns": ({"tile": (64, 64)}, "ImageWidth", "value", 0),
    "no-bits": ({"tile": (64, 64)}, "BitsPerSample", "count", 0),
}


def overwrite_tag(path: Path, name: str, part: str, value: int) -> None:
    """Overwrite the count or the only value of a tag in a little-endian file."""
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages.first.tags[name]
        file.filehandle.seek(tag.offset + (4 if part == "count" else 8))
        file.filehandle.write(struct.pack("<I", value))


def first_level(ome: dict[str, Any], transformations: list[dict[str, Any]]) -> dict[str, Any]:
    ome["multiscales"][0]["datasets"][0]["coordinateTransformations"] = transformations
    return ome


DAMAGED_NGFF = {
    "ngff-none": lambda ome: {**ome, "multiscales": []},
    "ngff-no-levels": lambda ome: {**ome, "multiscales": [{**ome["multiscales"][0], "datasets": []}]},
    "ngff-list": lambda ome: {**ome, "multiscales": [[]]},
    "ngff-scale": lambda ome: first_level(ome, [{"type": "scale", "scale": [1, 1]}]),
    "ngff-translation": lambda ome: first_level(ome, [{"type": "translation", "translation": [1, 1]}]),
    "ngff-text": lambda ome: first_level(ome, [{"type": "scale", "scale": ["1", "a", "b"]}]),
}


WRONG_FILES = {
    "gone": (FileNotFoundError, r"gone\.tif does not exist"),
    "text": (ValueError, "is not a TIFF, Zarr, PNG or JPEG"),
    "nothing": (ValueError, "is empty: copy or download it again"),
    "head": (ValueError, "damaged TIFF"),
    "palette": (ValueError, "palette.*-expand rgb"),
    "bits": (ValueError, "1-bit mask"),
    "cmyk": (ValueError, "CMYK"),
    "integers": (ValueError, "int64 pixels"),
    "z-stack": (ValueError, r"axes Z \(20\), Y \(30\), X \(40\)"),
    "time": (ValueError, r"axes T \(2\), C \(3\)"),
    "folder": (ValueError, "is a folder but not a Zarr"),
    "empty-group": (ValueError, "group without an image"),
    "two-arrays": (ValueError, "one, two"),
    "broken-zarr": (ValueError, "is not a readable Zarr"),
    "ngff-z": (ValueError, r"axes c \(1\), z \(20\), y \(30\), x \(40\)"),
    "ngff-lost": (ValueError, "lists a level"),
    "zip": (ValueError, "is not a readable Zarr"),
    "zip-cut": (ValueError, r"a\.zarr\.zip is not a readable Zarr"),
    "own": (ValueError, r"a\.zarr is a damaged Zarr \(KeyError: 'alpha'\)"),
    "png-bits": (ValueError, "1-bit mask"),
    "png-head": (ValueError, "cut short"),
    "jpeg-head": (ValueError, "damaged JPEG"),
    "no-rows-a-strip": (ValueError, r"a\.tif is a damaged TIFF"),
    "tiles-of-no-rows": (ValueError, r"a\.tif is a damaged TIFF"),
    "no-columns": (ValueError, r"a\.tif is (a damaged TIFF|empty)"),
    "no-bits": (ValueError, r"a\.tif is a damaged TIFF"),
    "ome-xml": (ValueError, r"a\.ome\.tif is a damaged TIFF \(KeyError: 'SizeT'\)"),
    "png-colors": (ValueError, r"a\.png is a damaged PNG \(color type 9\)"),
    "ngff-none": (ValueError, r"a\.zarr is an OME-Zarr without an image"),
    "ngff-no-levels": (ValueError, r"a\.zarr is an OME-Zarr without an image"),
    "ngff-list": (ValueError, r"a\.zarr is an OME-Zarr without an image"),
    "ngff-scale": (ValueError, r"a\.zarr has a scale of 2 numbers for its 3 axes"),
    "ngff-translation": (ValueError, r"a\.zarr has a translation of 2 numbers for its 3 axes"),
    "ngff-text": (ValueError, r"a\.zarr is a damaged Zarr"),
    "broken-link": (FileNotFoundError, r"a\.tif is a link to .*b\.tif, which does not exist"),
}


def test_a_damaged_photograph_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(4, 4, 8, 0, bytes(20)).replace(b"\r\n", b"\r\r", 1))
    with pytest.raises(ValueError, match=r"a\.png is a damaged PNG"):
        pixels(open_image(tmp_path / "a.png"))


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_refuses_files(tmp_path: Path, kind: str) -> None:
    error, message = WRONG_FILES[kind]
    source = write_wrong(kind, tmp_path)
    with pytest.raises(error, match=message) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_photograph_cut_short(tmp_path: Path, suffix: str) -> None:
    PIL.Image.fromarray(RGB).save(tmp_path / f"a.{suffix}")
    cut(tmp_path / f"a.{suffix}", 0.5)
    image = open_image(tmp_path / f"a.{suffix}")
    with pytest.raises(ValueError, match="damaged"):
        pixels(image)


def test_arrays_of_the_same_name_are_read_separately() -> None:
    """Names of dask arrays need not be unique: a cache is shared only for the same array object."""
    pixels = [np.full((40, 50, 3), value, np.uint8) for value in (10, 200)]
    arrays = [da.from_array(each, chunks=20, name="twice") for each in pixels]
    readers = [ChunkCache.of(array) for array in arrays]
    for reader, own in zip(readers, pixels, strict=True):
        np.testing.assert_array_equal(reader.read(Window(0, 40, 0, 50)), own)
    assert ChunkCache.of(arrays[0]) is readers[0]


@pytest.mark.parametrize("lazy", [False, True])
def test_masked_arrays_are_refused(lazy: bool) -> None:
    """Their hidden values would be taken for values of the image."""
    masked = np.ma.masked_equal(np.full((20, 20, 3), -9999, np.float32), -9999)
    with pytest.raises(ValueError, match="is masked: fill it"):
        open_image(da.from_array(masked, chunks=10) if lazy else masked)


@pytest.mark.parametrize(
    ("name", "message"),
    [("gs://bucket/x.tif", "https:// and s3:// are supported"), ("empty.tif", "is empty: copy or download")],
)
def test_addresses_and_empty_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.tif").touch()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_image(name)


def test_palettes_labeled_gray_and_raw_images_are_refused(tmp_path: Path) -> None:
    for tag, kind, count, value, message in ((320, 3, 768, (0,) * 768, "palette"), (50706, 1, 4, (1, 4, 0, 0), "DNG")):
        tags = [(tag, kind, count, value, True)]
        tifffile.imwrite(tmp_path / "x.tif", np.zeros((20, 20), np.uint8), photometric="minisblack", extratags=tags)
        with pytest.raises(ValueError, match=message):
            open_image(tmp_path / "x.tif")


def test_band_names_are_read_as_gdal_writes_them(tmp_path: Path) -> None:
    write_gdal(tmp_path / "x.tif", smooth(3), names=("R & D", "<2>", "blue"))
    assert open_image(tmp_path / "x.tif").bands == ("R & D", "<2>", "blue")


# ---- Files that change ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.tif", "a.zarr", "a.png"])
@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_files_that_change_are_noticed(tmp_path: Path, name: str, change: str) -> None:
    path = tmp_path / name
    write: dict[str, Callable[[Path, np.ndarray], object]] = {
        "a.tif": lambda path, pixels: tifffile.imwrite(path, pixels, photometric="rgb"),
        "a.zarr": lambda path, pixels: dehazexl.to_zarr(pixels, path, overwrite=True),
        "a.png": lambda path, pixels: PIL.Image.fromarray(pixels).save(path),
    }
    write[name](path, RGB)
    image = open_image(path)
    assert image.guard is not None
    image.guard()
    if change == "replaced":
        write[name](path, 255 - RGB)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(OSError, match=rf"{name} (was changed|cannot be read anymore)"):
        image.guard()
    part = image.cropped(Window(0, 10, 0, 10)).guard
    assert part is not None
    with pytest.raises(OSError, match=name):
        part()
    assert open_image(RGB).guard is None


def test_a_slow_guard_looks_at_times_but_surely_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "looks").touch()
    guard = Guard(tmp_path, "same", partial(look, tmp_path / "looks"))
    for _ in range(3):
        guard()
    assert looks(tmp_path) == 3
    monkeypatch.setattr("dehazexl.io.source.GUARD_SLOW", -1)
    monkeypatch.setattr("dehazexl.io.source.GUARD_SHARE", 1e9)
    for _ in range(3):
        guard()
    assert looks(tmp_path) == 4
    guard(surely=True)
    pickle.loads(pickle.dumps(guard))()
    assert looks(tmp_path) == 6
    (tmp_path / "looks").unlink()
    guard()
    with pytest.raises(OSError, match="cannot be read anymore"):
        guard(surely=True)


def look(path: Path) -> str:
    path.write_text(path.read_text() + "x")
    return "same"


def looks(folder: Path) -> int:
    return len((folder / "looks").read_text())
