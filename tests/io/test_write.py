"""Pictures written and read back, by rasterio, tifffile, zarr, yaozarrs and Pillow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Generator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import PIL.Image
import pytest
import rasterio
import tifffile
import yaozarrs
import zarr
from numpy.typing import NDArray

from dehazexl.image.georeference import Geo
from dehazexl.image.image import Image
from dehazexl.io.open import open_image
from dehazexl.io.pyramid import Levels, Pyramid, halve
from dehazexl.io.unfinished import held
from dehazexl.io.write import check, to_photo, to_tiff, to_zarr, total, write
from dehazexl.io.zarr_geo import read_geo
from dehazexl.io.zarr_write import level_path

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

UTM = Geo((5.0, 0.0, 485900.0, 0.0, -5.0, 5209247.0), rasterio.crs.CRS.from_epsg(26914).to_wkt())
# Shape, side of the dask blocks, dtype: uneven sizes, blocks that fit no tile, one pixel.
PICTURES = [
    pytest.param((700, 1000, 3), (300, 400), "uint8", id="uneven blocks"),
    pytest.param((1, 1, 1), (1, 1), "uint8", id="one pixel"),
    pytest.param((1, 700, 2), (1, 700), "uint16", id="one row"),
    pytest.param((513, 2049, 1), (512, 1024), "float32", id="one more than tiles"),
    pytest.param((530, 1030, 4), (512, 1024), "uint16", id="4 bands"),
    pytest.param((600, 300, 8), (512, 512), "float32", id="8 bands"),
    pytest.param((1025, 515, 3), (77, 515), "uint8", id="thin blocks"),
    pytest.param((260, 520, 3), (260, 520), "float64", id="float64"),
    pytest.param((40, 520, 3), (40, 520), "float16", id="float16"),
    pytest.param((512, 512, 1), (256, 256), "int16", id="one tile"),
]


def scene(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    """A smooth picture with some noise, over most of the dtype's range."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(y / (50 + 9 * c)) * np.cos(x / (70 + 5 * c)) for c in range(shape[2])]
    smooth = 0.5 + 0.4 * np.stack(waves, axis=2) + rng.normal(0, 0.02, shape)
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1.0
    return (smooth.clip(0.01, 1) * top).astype(dtype)


def lazy(pixels: NDArray[Any], sides: tuple[int, int] = (512, 512)) -> da.Array:
    return da.from_array(pixels, chunks=(*sides, -1))


def image(pixels: NDArray[Any], **known: Any) -> Image:
    bands = pixels.shape[2]
    known.setdefault("bands", ("red", "green", "blue", "nir", "b5", "b6", "b7", "b8")[:bands])
    known.setdefault("rgb", (0, 1, 2) if bands >= 3 else (0, 0, 0))
    return Image((lazy(pixels),), "scene", **known)


def plain_halve(pixels: NDArray[Any]) -> NDArray[Any]:
    """Mean of what there is of every 2 x 2 pixels, by numpy's own mean."""
    height, width, bands = pixels.shape
    whole = np.full((height + height % 2, width + width % 2, bands), np.nan)
    whole[:height, :width] = pixels
    mean = np.nanmean(whole.reshape(len(whole) // 2, 2, -1, 2, bands), axis=(1, 3))
    return (np.rint(mean) if pixels.dtype.kind in "iu" else mean).astype(pixels.dtype)


def assert_same(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


def counted(pixels: NDArray[Any], sides: tuple[int, int]) -> tuple[da.Array, Counter[tuple[int, ...]]]:
    """A lazy picture that counts how often each block is computed."""
    counts: Counter[tuple[int, ...]] = Counter()
    lock = threading.Lock()

    def network(block: NDArray[Any], block_info: Any = None) -> NDArray[Any]:
        with lock:
            counts[block_info[0]["chunk-location"]] += 1
        return block

    meta = np.empty((0, 0, 0), pixels.dtype)
    return da.map_blocks(network, lazy(pixels, sides), dtype=pixels.dtype, meta=meta), counts


# ---- TIFF -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "sides", "dtype"), PICTURES)
@pytest.mark.parametrize("compression", ["deflate", "zstd", "none"])
def test_tiff_pixels(
    tmp_path: Path, shape: tuple[int, int, int], sides: tuple[int, int], dtype: str, compression: Any
) -> None:
    pixels = scene(shape, dtype)
    path = to_tiff(lazy(pixels, sides), tmp_path / "clear.tif", compression=compression)
    assert [p.name for p in tmp_path.iterdir()] == ["clear.tif"]
    with rasterio.open(path) as file:
        found = np.moveaxis(file.read(), 0, 2)
        # GDAL before 3.11 has no float16 and reads it as float32.
        assert_same(found.astype(dtype) if dtype == "float16" else found, pixels)
        factors = [2**level for level in range(1, len(Levels(*shape[:2]).sizes))]
        assert file.overviews(1) == factors
        assert (file.compression is None) == (compression == "none")
    with tifffile.TiffFile(path) as file:
        assert_same(file.asarray().reshape(shape), pixels)
        pages = [(page.aspage().imagelength, page.aspage().imagewidth) for page in file.pages]
        assert pages == list(Levels(*shape[:2]).sizes)
        # tifffile does not take a level of one row for half of another.
        assert len(file.series[0].levels) == len(pages) or shape[0] == 1


def weights(small: int, large: int) -> np.ndarray:
    """Return the share of each of `large` pixels in each of `small` ones, by their overlap."""
    edges = np.arange(small + 1) * large / small
    low, high = np.arange(large), np.arange(large) + 1
    overlap = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)
    return np.clip(overlap, 0, None) * small / large


def test_tiff_overviews_are_means(tmp_path: Path) -> None:
    """Of 2 x 2 pixels; where the side is odd, of all that a pixel covers, in proportion."""
    pixels = scene((1100, 1030, 3))
    path = to_tiff(lazy(pixels, (300, 700)), tmp_path / "clear.tif")
    below = pixels.astype(float)
    for level in range(2):
        with rasterio.open(path, overview_level=level) as file:
            found = np.moveaxis(file.read(), 0, 2).astype(float)
        rows, cols = (weights(found.shape[axis], below.shape[axis]) for axis in (0, 1))
        expected = np.moveaxis(rows @ np.moveaxis(below, 2, 0) @ cols.T, 0, 2)
        assert np.abs(found - expected).max() <= 0.5 + 1e-6, level
        below = found


def test_tiff_carries_what_the_input_had(tmp_path: Path) -> None:
    pixels = scene((600, 700, 5), "uint16")
    said = {"description": "Überflug <3>", "datetime": "2024:05:06 07:08:09", "artist": "Ann", "copyright": "CC0"}
    like = image(pixels, geo=UTM, nodata=0.0, alpha=4, bands=("red", "green", "blue", "n<&>r", "Maske"), metadata=said)
    with rasterio.open(to_tiff(lazy(pixels), tmp_path / "clear.tif", like)) as file:
        assert file.crs.to_epsg() == 26914
        assert tuple(file.transform)[:6] == UTM.affine
        assert file.nodata == 0
        assert file.descriptions == like.bands
        assert [c.name for c in file.colorinterp] == ["red", "green", "blue", "undefined", "alpha"]
        tags = file.tags()
        assert file.profile["tiled"] and file.profile["blockxsize"] == 512
    assert tags["TIFFTAG_IMAGEDESCRIPTION"] == said["description"]
    assert (tags["TIFFTAG_DATETIME"], tags["TIFFTAG_ARTIST"], tags["TIFFTAG_COPYRIGHT"]) == (
        said["datetime"],
        "Ann",
        "CC0",
    )
    assert tags["TIFFTAG_SOFTWARE"] == "dehazexl"


@pytest.mark.parametrize(
    ("bands", "rgb", "alpha", "looks"),
    [
        (1, (0, 0, 0), None, ["gray"]),
        (2, (0, 0, 0), 1, ["gray", "alpha"]),
        (3, (0, 1, 2), None, ["red", "green", "blue"]),
        (4, (0, 1, 2), None, ["red", "green", "blue", "undefined"]),
        (4, (2, 1, 0), None, ["blue", "green", "red", "undefined"]),
        (4, (2, 1, 0), 3, ["blue", "green", "red", "alpha"]),
        (4, (1, 2, 3), 0, ["alpha", "red", "green", "blue"]),
        (5, (0, 1, 2), 3, ["red", "green", "blue", "alpha", "undefined"]),
    ],
)
def test_tiff_colors(tmp_path: Path, bands: int, rgb: tuple[int, int, int], alpha: int | None, looks: Any) -> None:
    pixels = scene((30, 40, bands))
    names = tuple(f"band {band}" for band in range(1, bands + 1))
    like = image(pixels, rgb=rgb, alpha=alpha, bands=names)
    path = to_tiff(pixels, tmp_path / "c.tif", like)
    with rasterio.open(path) as file:
        assert [c.name for c in file.colorinterp] == looks
        assert file.descriptions == (None,) * bands
    assert (open_image(path).rgb, open_image(path).alpha) == (rgb, alpha)


def test_bands_without_names_get_none(tmp_path: Path) -> None:
    for name, bands, photometric in (("gray", 1, "MINISBLACK"), ("rgb", 3, "RGB"), ("rgba", 4, "RGB")):
        profile = {"driver": "GTiff", "width": 40, "height": 30, "count": bands, "dtype": "uint8"}
        with rasterio.open(tmp_path / f"{name}.tif", "w", photometric=photometric, **profile) as file:
            file.write(np.moveaxis(scene((30, 40, bands)), -1, 0))
        found = open_image(tmp_path / f"{name}.tif")
        with rasterio.open(to_tiff(found.levels[0], tmp_path / "out.tif", found, overwrite=True)) as file:
            assert file.descriptions == (None,) * bands


@pytest.mark.parametrize(
    ("dtype", "nodata", "read"),
    [
        ("uint8", 255.0, 255.0),
        ("uint8", -9999.0, None),
        ("uint8", float("nan"), None),
        ("float32", float("nan"), float("nan")),
        ("float32", -3.4028234663852886e38, -3.4028234663852886e38),
        ("float16", -3.4028234663852886e38, None),
        ("float32", None, None),
    ],
)
def test_nodata_is_kept_where_the_dtype_has_it(tmp_path: Path, dtype: str, nodata: float | None, read: Any) -> None:
    pixels = scene((30, 40, 1), dtype)
    like = image(pixels, nodata=nodata)
    with rasterio.open(to_tiff(pixels, tmp_path / "c.tif", like)) as file:
        assert file.nodata == pytest.approx(read, nan_ok=True) if read is not None else file.nodata is None
    group = zarr.open_group(to_zarr(pixels, tmp_path / "c.zarr", like), mode="r")
    said = group.attrs.get("nodata")
    assert (None if said is None else float(str(said))) == pytest.approx(read, nan_ok=True)
    if read is not None:
        np.testing.assert_equal(group["0"].fill_value, np.dtype(dtype).type(read))


def test_resolution_from_the_pixel_size(tmp_path: Path) -> None:
    pixels = scene((30, 40, 1))
    like = image(pixels, scale=(0.5, 0.25), units="micrometer")
    with tifffile.TiffFile(to_tiff(pixels, tmp_path / "a.tif", like)) as file:
        assert file.pages.first.resolutionunit == 3
        assert file.pages.first.get_resolution("centimeter") == pytest.approx((40000, 20000))
    like = image(pixels, metadata={"x_resolution": (300, 1), "y_resolution": (72, 1), "resolution_unit": 2})
    with tifffile.TiffFile(to_tiff(pixels, tmp_path / "b.tif", like)) as file:
        assert file.pages.first.resolution == (300, 72)
        assert file.pages.first.resolutionunit == 2


def test_a_resolution_that_is_none_is_left_out(tmp_path: Path) -> None:
    pixels = scene((30, 40, 3))
    like = replace(image(pixels), metadata={"x_resolution": (0, 0), "y_resolution": (72, 1)})
    with tifffile.TiffFile(to_tiff(pixels, tmp_path / "clear.tif", like)) as file:
        assert "XResolution" not in file.pages.first.tags


@cache
def profile() -> bytes:
    """Return a real color profile: of one that is none, nobody knows whether it fits."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("source", ["hazy.tif", "hazy.jpg"])
@pytest.mark.parametrize("name", ["clear.tif", "clear.png"])
def test_a_color_profile_is_kept(tmp_path: Path, source: str, name: str) -> None:
    PIL.Image.fromarray(scene((30, 40, 3))).save(tmp_path / source, icc_profile=profile())
    hazy = open_image(tmp_path / source)
    for _ in write(hazy.levels[0], tmp_path / name, hazy):
        pass
    with PIL.Image.open(tmp_path / name) as file:
        assert file.info["icc_profile"] == profile()


def test_a_color_profile_stays_with_its_colors(tmp_path: Path) -> None:
    """A single band of an RGB picture is gray."""
    PIL.Image.fromarray(scene((30, 40, 3))).save(tmp_path / "hazy.tif", icc_profile=profile())
    hazy = open_image(tmp_path / "hazy.tif")
    band = replace(hazy, levels=(hazy.levels[0][..., :1],), bands=("red",), rgb=(0, 0, 0))
    with PIL.Image.open(to_tiff(band.levels[0], tmp_path / "clear.tif", band)) as file:
        assert "icc_profile" not in file.info


def test_large_tiff_is_big(tmp_path: Path) -> None:
    # The directories say so before a block is computed.
    clear = da.zeros((40000, 40000, 3), chunks=(2048, 2048, 3), dtype="uint8")
    writing = write(clear, tmp_path / "clear.tif")
    assert next(writing) == 2048 * 2048
    with (tmp_path / ".clear.tif.part" / "image").open("rb") as file:
        assert file.read(4) == b"II\x2b\0"
    writing.close()


# ---- OME-Zarr -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "sides", "dtype"), PICTURES)
@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_zarr_pixels(
    tmp_path: Path, shape: tuple[int, int, int], sides: tuple[int, int], dtype: str, ngff: Any
) -> None:
    pixels = scene(shape, dtype)
    path = to_zarr(lazy(pixels, sides), tmp_path / "clear.ome.zarr", ngff=ngff)
    assert [p.name for p in tmp_path.iterdir()] == ["clear.ome.zarr"]
    yaozarrs.validate_zarr_store(str(path))
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == (3 if ngff == "0.5" else 2)
    expected = pixels
    for level, size in enumerate(Levels(*shape[:2]).sizes):
        array = group[level_path(level)]
        assert array.shape[1:] == size
        assert_same(np.moveaxis(array[:], 0, 2), expected)  # type: ignore[arg-type]
        expected = halve(expected, alpha=1 if shape[2] == 2 else None)


def test_zarr_metadata(tmp_path: Path) -> None:
    pixels = scene((700, 1100, 4), "uint16")
    place = {"scale": (0.5, 0.25), "translate": (10.0, 20.0), "units": "meter"}
    said = {"artist": "Ann", "x_resolution": (1, 1)}
    like = image(pixels, geo=UTM, nodata=0.0, metadata=said, **place)
    group = zarr.open_group(to_zarr(lazy(pixels), tmp_path / "clear.zarr", like), mode="r")
    attributes = json.loads((tmp_path / "clear.zarr" / "zarr.json").read_text())["attributes"]
    geo, notes = read_geo(attributes)
    assert geo is not None and (geo.affine, geo.epsg, notes) == (UTM.affine, 26914, [])
    assert attributes["nodata"] == 0
    assert attributes["dehazexl"] == {
        "rgb": [0, 1, 2], "alpha": None, "masked": False, "bits": None,
        "metadata": {"artist": "Ann", "x_resolution": [1, 1]},
    }  # fmt: skip
    ome = yaozarrs.open_group(str(tmp_path / "clear.zarr")).ome_metadata()
    multiscale = ome.multiscales[0]
    assert [axis.name for axis in multiscale.axes] == ["c", "y", "x"]
    assert [axis.unit for axis in multiscale.axes[1:]] == ["meter", "meter"]
    steps = [[t.model_dump() for t in dataset.coordinateTransformations] for dataset in multiscale.datasets]
    assert [step[0]["scale"] for step in steps] == [[1, 0.5, 0.25], [1, 1, 0.5], [1, 2, 1]]
    # The first pixel of a level is centered on the pixels that it is the mean of.
    assert [step[1]["translation"] for step in steps] == [[0, 10, 20], [0, 10.25, 20.125], [0, 10.75, 20.375]]
    channels = ome.omero.channels
    assert [channel.label for channel in channels] == ["red", "green", "blue", "nir"]
    assert [channel.color for channel in channels] == ["FF0000", "00FF00", "0000FF", "FFFFFF"]
    assert [channel.active for channel in channels] == [True, True, True, False]
    assert len({channel.window.end for channel in channels}) == 1
    assert 0 < channels[0].window.start < channels[0].window.end < channels[0].window.max == 65535
    assert group["0"].chunks == (4, 512, 512)
    assert group["0"].metadata.dimension_names == ("c", "y", "x")


def test_units_that_ngff_does_not_know_are_left_out(tmp_path: Path) -> None:
    pixels = scene((30, 40, 3))
    path = to_zarr(pixels, tmp_path / "c.zarr", image(pixels, units="degree", scale=(1e-4, 1e-4)))
    yaozarrs.validate_zarr_store(str(path))
    axes = zarr.open_group(path, mode="r").attrs["ome"]["multiscales"][0]["axes"]  # type: ignore[call-overload]
    assert all("unit" not in axis for axis in axes)


# ---- the pyramid ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 8, 3), (7, 9, 2), (1, 5, 3)])
def test_halve_is_the_mean(shape: tuple[int, int, int], dtype: str) -> None:
    pixels = scene(shape, dtype, seed=3)
    assert_same(halve(pixels), plain_halve(pixels))


@pytest.mark.parametrize(
    ("dtype", "nodata", "four", "mean"),
    [
        ("uint8", 0, (0, 0, 0, 90), 90),
        ("uint8", 0, (0, 0, 0, 0), 0),
        ("uint8", 128, (127, 129, 127, 129), 127),
        ("uint8", 255, (255, 255, 254, 255), 254),
        ("uint8", 255, (255, 254, 254, 254), 254),
        ("float32", None, (np.nan, 1, 3, np.nan), 2),
        ("float32", None, (np.inf, 1, 3, -np.inf), 2),
        ("float32", None, (np.nan,) * 4, np.nan),
        ("float32", -9999, (-9999, 4, 5, np.nan), 4.5),
        ("float32", -9999, (-9999,) * 4, -9999),
        ("float32", np.nan, (np.nan, 4, 5, np.nan), 4.5),
    ],
)
def test_missing_pixels_do_not_mix(dtype: str, nodata: float | None, four: tuple[float, ...], mean: float) -> None:
    pixels = np.array(four, dtype).reshape(2, 2, 1)
    np.testing.assert_equal(halve(pixels, nodata)[0, 0, 0], np.dtype(dtype).type(mean))


def test_transparent_colors_do_not_show() -> None:
    pixels = np.zeros((2, 4, 4), "uint8")
    pixels[0, 0] = (200, 100, 50, 255)
    pixels[1, 0] = (100, 100, 50, 255)
    pixels[..., 2:, :3] = 7
    result = halve(pixels, alpha=3)
    assert result[0].tolist() == [[150, 100, 50, 128], [7, 7, 7, 0]]


@pytest.mark.parametrize("opacity", [0, 255])
def test_alpha_is_never_nodata(opacity: int) -> None:
    pixels = np.full((2, 2, 4), 9, "uint8")
    pixels[..., 3] = opacity
    assert halve(pixels, nodata=opacity, alpha=3)[0, 0].tolist() == [9, 9, 9, opacity]


def test_files_know_what_is_missing(tmp_path: Path) -> None:
    pixels = scene((600, 520, 4))
    pixels[:301, :, :3] = 0
    pixels[::3, ::5, 3] = 0
    like = image(pixels, nodata=0.0, alpha=3)
    expected = halve(pixels, 0.0, 3)
    assert not np.array_equal(expected, halve(pixels, 0.0)) and not np.array_equal(expected, halve(pixels, alpha=3))
    with rasterio.open(to_tiff(lazy(pixels), tmp_path / "clear.tif", like), overview_level=0) as file:
        found = np.moveaxis(file.read(), 0, 2)
        # GDAL leaves out missing pixels, but does not weight the others by alpha.
        assert not found[:150, :, :3].any() and found[150:, :, :3].all()
        assert np.abs(found[150:, :, :3].astype(int) - expected[150:, :, :3]).mean() < 2
        assert file.nodata == 0
    group = zarr.open_group(to_zarr(lazy(pixels), tmp_path / "clear.zarr", like), mode="r")
    assert_same(np.moveaxis(group[level_path(1)][:], 0, 2), expected)  # type: ignore[arg-type]


def test_blocks_in_any_order_make_the_same_pyramid() -> None:
    pixels = scene((1300, 1100, 2))
    order = [(y, x) for y in range(0, 1300, 217) for x in range(0, 1100, 433)]
    np.random.default_rng(1).shuffle(order)
    levels = Levels(1300, 1100)
    written = [np.zeros((*size, 2), "uint8") for size in levels.sizes]
    seen: Counter[tuple[int, int, int]] = Counter()
    pyramid = Pyramid(levels)
    for y, x in order:
        for level, row, col, tile in pyramid.paste(y, x, pixels[y : y + 217, x : x + 433]):
            seen[level, row, col] += 1
            written[level][row * 512 : row * 512 + tile.shape[0], col * 512 : col * 512 + tile.shape[1]] = tile
    assert set(seen.values()) == {1}
    assert_same(written[0], pixels)
    assert_same(written[1], halve(pixels))
    assert_same(written[2], halve(halve(pixels)))


# ---- the work -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif", "clear.png"])
def test_each_block_is_computed_once_and_counted(tmp_path: Path, name: str) -> None:
    pixels = scene((1100, 1300, 3))
    clear, counts = counted(pixels, (300, 512))
    done = list(write(clear, tmp_path / name))
    assert len(counts) == clear.npartitions <= len(done)
    assert set(counts.values()) == {1}
    assert done == sorted(done) and len(set(done)) == clear.npartitions
    assert done[-1] == total(clear) == 1100 * 1300 > done[-2]


def test_only_a_few_blocks_run_ahead(tmp_path: Path) -> None:
    clear, counts = counted(scene((1024, 1024, 1)), (128, 128))
    writing = write(clear, tmp_path / "clear.tif", blocks_at_once=3)
    next(writing)
    assert 1 <= len(counts) <= 4
    writing.close()


@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif", "clear.jpg"])
def test_cancelled_work_leaves_nothing(tmp_path: Path, name: str) -> None:
    threads = set()

    def network(block: NDArray[Any]) -> NDArray[Any]:
        threads.add(threading.current_thread())
        return block

    clear, counts = counted(scene((1024, 512, 3)), (128, 128))
    clear = da.map_blocks(network, clear, dtype=clear.dtype, meta=clear._meta)
    with dask.config.set(scheduler="synchronous"):  # each block is computed in the thread that asks for it
        writing = write(clear, tmp_path / name)
        assert not list(tmp_path.iterdir())
        next(writing)
        if name != "clear.jpg":
            assert [p.name for p in tmp_path.iterdir()] == [f".{name}.part"]
        writing.close()
    assert not list(tmp_path.iterdir())
    assert len(counts) < 8
    assert threads and not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif"])
def test_failed_work_keeps_the_old_picture(tmp_path: Path, name: str) -> None:
    def fails(block: NDArray[Any]) -> NDArray[Any]:
        raise RuntimeError("out of memory")

    first = scene((300, 300, 3))
    before = to_tiff(first, tmp_path / name) if name.endswith("tif") else to_zarr(first, tmp_path / name)
    broken = da.zeros((600, 600, 3), chunks=(256, 256, 3), dtype="uint8").map_blocks(fails, meta=np.empty((0, 0, 0)))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(write(broken.astype("uint8"), tmp_path / name, overwrite=True))
    assert list(tmp_path.iterdir()) == [before]
    found = tifffile.imread(before) if name.endswith("tif") else np.moveaxis(zarr.open_group(before)["0"][:], 0, 2)  # type: ignore[type-var]
    assert_same(found, first)  # type: ignore[arg-type]


def test_a_zarr_that_cannot_be_renamed_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scene((300, 300, 3))
    path = to_zarr(first, tmp_path / "clear.zarr")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.parent.name.endswith(".part") and self.name == "image":
            raise PermissionError(13, "in use")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match=r"in use: .* cannot be replaced; the complete image is .*, move it"):
        to_zarr(255 - first, path, overwrite=True)
    assert_same(open_image(tmp_path / ".clear.zarr.part" / "image").levels[0].compute(), 255 - first)
    assert_same(np.moveaxis(zarr.open_group(path)["0"][:], 0, 2), first)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif", "clear.png"])
def test_overwriting(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    list(write(scene((600, 600, 3)), path))
    with pytest.raises(FileExistsError, match="overwrite"):
        write(scene((40, 50, 3)), path)
    (tmp_path / f".{name}.part").write_text("left by a process that was killed")
    list(write(scene((40, 50, 3)), path, overwrite=True))
    assert list(tmp_path.iterdir()) == [path]
    if name == "clear.zarr":
        assert list(zarr.open_group(path).array_keys()) == ["0"]
    else:
        with rasterio.open(path) as file:
            assert file.shape == (40, 50)


@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif"])
def test_an_image_that_appears_meanwhile_is_kept(tmp_path: Path, name: str) -> None:
    pixels, path = scene((600, 600, 3)), tmp_path / name
    writing = write(pixels, path)
    next(writing)
    list(write(255 - pixels, tmp_path / f"other-{name}"))
    (tmp_path / f"other-{name}").rename(path)
    with pytest.raises(FileExistsError, match=r"appeared during the work and was kept: the complete image is"):
        list(writing)
    assert_same(open_image(path).levels[0].compute(), 255 - pixels)
    complete = (tmp_path / f".{name}.part" / "image").rename(tmp_path / f"moved-{name}")
    assert_same(open_image(complete).levels[0].compute(), pixels)


@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif", "clear.png"])
def test_two_cannot_write_one_image(tmp_path: Path, name: str) -> None:
    pixels, path = scene((600, 600, 3)), tmp_path / name
    first = write(lazy(pixels), path)
    next(first)
    with pytest.raises(OSError, match=rf"{name} is being written by process {os.getpid()} on .* since .*: wait for it"):
        list(write(lazy(255 - pixels), path, overwrite=True))
    list(first)
    assert_same(open_image(path).levels[0].compute(), pixels)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    list(write(lazy(255 - pixels), path, overwrite=True))
    assert_same(open_image(path).levels[0].compute(), 255 - pixels)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time, numpy as np, dask.array as da; from dehazexl.io.write import write\n"
        "w = write(da.zeros((2048, 2048, 3), chunks=(512, 512, 3), dtype='uint8'), sys.argv[1]); next(w)\n"
        "print('writing', flush=True); time.sleep(600)"
    )
    path = tmp_path / "clear.zarr"
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        zeros = da.zeros((2048, 2048, 3), chunks=(512, 512, 3), dtype="uint8")
        with pytest.raises(OSError, match=rf"is being written by process {process.pid} on"):
            list(write(zeros, path))
        process.kill()
    list(write(zeros, path))
    assert_same(open_image(path).levels[0].compute(), np.zeros((2048, 2048, 3), "uint8"))


# ---- going on -------------------------------------------------------------------------------------


def resumable(
    clear: da.Array, path: Path, work: str = "this", fresh: bool = False, **options: Any
) -> Generator[int, None, None]:
    with held(path) as folder:
        folder.begin({"work": work}, fresh)
        yield from write(clear, path, resume=folder, **options)


def stopped_after(blocks: int, clear: da.Array, path: Path) -> None:
    writing = resumable(clear, path)
    for _ in range(blocks):
        next(writing)
    writing.close()


@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif", "clear.png"])
@pytest.mark.parametrize("sides", [(512, 512), (300, 700)])
def test_work_that_was_stopped_goes_on(tmp_path: Path, name: str, sides: tuple[int, int]) -> None:
    pixels = scene((1500, 1400, 3))
    clear, first = counted(pixels, sides)
    stopped_after(5, clear, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [f".{name}.part"]
    again, counts = counted(pixels, sides)
    done = list(resumable(again, tmp_path / name))
    # Blocks that hold whole tiles are computed twice only where they ran ahead of the writer.
    most = again.npartitions - 5 if sides == (512, 512) else again.npartitions - 1
    assert len(first) >= 5 and len(counts) <= most
    assert done[-1] == total(clear) and [p.name for p in tmp_path.iterdir()] == [name]
    list(write(lazy(pixels, sides), tmp_path / f"at-once-{name}"))
    assert contents(tmp_path / name) == contents(tmp_path / f"at-once-{name}")


def contents(path: Path) -> dict[str, bytes]:
    """Read all files of an image, but those that bear its name."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    texts = {str(p.relative_to(path)): p.read_bytes() for p in files}
    return {name: text.replace(path.name.removesuffix(path.suffix).encode(), b"") for name, text in texts.items()}


@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif"])
def test_other_work_is_kept_until_it_is_given_up(tmp_path: Path, name: str) -> None:
    stopped_after(5, lazy(scene((1500, 1400, 3)), (512, 512)), tmp_path / name)
    begun = contents(tmp_path / f".{name}.part" / "done")
    other, counts = counted(scene((1500, 1400, 3), seed=1), (512, 512))
    words = r"holds unfinished work that differs in work \(this then, other now\): .* start again with --fresh"
    with pytest.raises(ValueError, match=words):
        list(resumable(other, tmp_path / name, "other"))
    with pytest.raises(ValueError, match=r"holds unfinished work on .*: repeat its command to go on, or remove it"):
        list(write(other, tmp_path / name))
    assert not counts and contents(tmp_path / f".{name}.part" / "done") == begun
    list(resumable(other, tmp_path / name, "other", fresh=True))
    assert len(counts) == other.npartitions
    assert_same(open_image(tmp_path / name).levels[0].compute(), other.compute())


@pytest.mark.parametrize("container", ["", "cog"])
def test_the_rest_of_an_export_that_no_program_opens_is_replaced(tmp_path: Path, container: str) -> None:
    """GDAL had written the header, and the place of a directory that it had no room for."""
    pixels, path = lazy(scene((1100, 1100, 3)), (512, 512)), tmp_path / "clear.tif"
    like = replace(open_image(pixels), metadata={"container": container})
    for name in ("image", "image.stage"):
        writing = resumable(pixels, path, like=like)
        next(writing)
        writing.close()
        (tmp_path / ".clear.tif.part" / name).write_bytes(b"II*\0" + (4096).to_bytes(4, "little") + bytes(4088))
    list(resumable(pixels, path, like=like))
    assert_same(open_image(path).levels[0].compute(), pixels.compute())


def test_an_unfinished_tile_is_not_done(tmp_path: Path) -> None:
    # A kill between the pixels of a tile and its mark: the mark is missing, and so the tile is written again.
    pixels = scene((1024, 1024, 3))
    stopped_after(3, lazy(pixels, (512, 512)), tmp_path / "clear.zarr")
    part = tmp_path / ".clear.zarr.part"
    marks = zarr.open_array(part / "done", mode="r+")
    assert marks[:].sum() in (3, 4)
    level = zarr.open_group(part / "image", mode="r+")["0"]
    level[:, :512, :512], marks[0, 0] = 7, False
    path = tmp_path / "clear.zarr"
    list(resumable(lazy(pixels, (512, 512)), path))
    assert_same(open_image(path).levels[0].compute(), pixels)


@pytest.mark.parametrize("damage", ["job.json", "done", "done/zarr.json", "image", "image/0"])
@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif"])
def test_damaged_work_starts_again(tmp_path: Path, name: str, damage: str) -> None:
    """What a kill or a full disk leaves behind must neither block the next run nor end up in the image."""
    pixels, path = scene((1100, 1100, 3)), tmp_path / name
    stopped_after(3, lazy(pixels, (512, 512)), path)
    place = tmp_path / f".{name}.part" / (damage if name == "clear.zarr" else damage.replace("image", "level0"))
    assert place.exists()
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.write_text("")
    list(resumable(lazy(pixels, (512, 512)), path))
    assert_same(open_image(path).levels[0].compute(), pixels)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_an_interrupted_clean_up_is_no_work_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image has its name; the rest of the folder must not be taken for it."""
    pixels, path = scene((600, 600, 3)), tmp_path / "clear.zarr"

    rmtree = shutil.rmtree

    def interrupted(folder: Path, *args: Any, **options: Any) -> None:
        if Path(folder).name == ".clear.zarr.part":
            raise KeyboardInterrupt
        rmtree(folder, *args, **options)

    monkeypatch.setattr("dehazexl.io.unfinished.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(resumable(lazy(pixels), path))
    monkeypatch.undo()
    assert_same(open_image(path).levels[0].compute(), pixels)
    list(resumable(lazy(pixels), path, overwrite=True))
    assert_same(open_image(path).levels[0].compute(), pixels)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif"])
def test_a_full_disk_keeps_work_that_can_go_on(small_disk: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), "uint8")
    clear, counts = counted(pixels, (512, 512))
    with pytest.raises(OSError, match="which is kept, so make room and run it again"):
        list(resumable(clear, small_disk / name))
    assert [p.name for p in small_disk.iterdir()] == [f".{name}.part"]
    assert counts


def test_a_folder_of_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "clear.zarr").mkdir()
    (tmp_path / "clear.zarr" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"clear\.zarr is a folder of other files, not a Zarr, and is not replaced"):
        to_zarr(scene((60, 60, 3)), tmp_path / "clear.zarr", overwrite=True)
    assert (tmp_path / "clear.zarr" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_integers_of_64_bits_are_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ValueError, match=rf"pixels of dtype {dtype} cannot be written: convert them"):
        to_zarr(np.zeros((60, 60, 3), dtype), tmp_path / "clear.zarr")


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root on Linux")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["clear.zarr", "clear.tif", "clear.png"])
def test_a_full_disk_is_told_in_one_line(small_disk: Path, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), "uint8")
    with pytest.raises(OSError, match=rf"No space left.*\.{name}\.part.*make room") as caught:
        list(write(lazy(pixels), small_disk / name))
    assert "\n" not in str(caught.value)
    assert not list(small_disk.iterdir())


# ---- PNG and JPEG ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("bands", "alpha"), [(1, None), (2, 1), (3, None), (4, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_pixels(tmp_path: Path, bands: int, alpha: int | None, dtype: str) -> None:
    pixels = scene((60, 70, bands), dtype)
    path = to_photo(lazy(pixels, (32, 32)), tmp_path / "clear.png", image(pixels, alpha=alpha))
    with rasterio.open(path) as file:
        assert_same(np.moveaxis(file.read(), 0, 2), pixels)


@pytest.mark.parametrize("bands", [1, 3])
def test_jpeg_pixels(tmp_path: Path, bands: int) -> None:
    y, x = np.mgrid[:64, :80]
    pixels = np.stack([y + c * x for c in range(bands)], axis=2).astype("uint8")[:, :64]
    path = to_photo(pixels, tmp_path / "clear.jpg")
    found = np.asarray(PIL.Image.open(path)).reshape(pixels.shape)
    assert np.abs(found.astype(int) - pixels).mean() < 1.5


@pytest.mark.parametrize("name", ["clear.jpg", "clear.png"])
def test_exif_and_color_profile_are_kept(tmp_path: Path, name: str) -> None:
    pixels = scene((60, 40, 3))
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "DJI"
    exif.get_ifd(0x8769).update({0xA002: 60, 0xA003: 40, 0x9003: "2024:05:06 07:08:09"})
    exif.get_ifd(0x8825).update({1: "N", 2: (46.0, 30.0, 0.0)})
    turned = PIL.Image.fromarray(np.rot90(pixels))
    turned.save(tmp_path / "in.jpeg", exif=exif, icc_profile=profile())
    path = to_photo(pixels, tmp_path / name, open_image(tmp_path / "in.jpeg"))
    with PIL.Image.open(path) as picture:
        found = picture.getexif()
        assert (found[0x0112], found[0x010F]) == (1, "DJI")
        assert found.get_ifd(0x8769) == {0xA002: 40, 0xA003: 60, 0x9003: "2024:05:06 07:08:09"}
        assert found.get_ifd(0x8825)[2] == (46.0, 30.0, 0.0)
        assert picture.info["icc_profile"] == profile()
        assert picture.size == (40, 60)


# ---- what is refused ------------------------------------------------------------------------------

RGB = scene((30, 40, 3))
REFUSED: list[Any] = [
    ("clear.gif", RGB, {}, ValueError, r"\.zarr, \.tif, \.tiff, \.png, \.jpg, \.jpeg"),
    ("clear", RGB, {}, ValueError, "no suffix"),
    ("nowhere/clear.tif", RGB, {}, FileNotFoundError, "nowhere does not exist"),
    ("clear.tif", RGB[..., 0, None, None], {}, ValueError, "shape"),
    ("clear.tif", RGB[:0], {}, ValueError, "shape"),
    ("clear.tif", RGB > 3, {}, ValueError, "astype"),
    ("clear.zarr", RGB.astype("complex64"), {}, ValueError, "astype"),
    ("clear.jpg", RGB.astype("float32"), {}, ValueError, r"8 bits.*float32.*\.tif"),
    ("clear.jpg", RGB.astype("uint16"), {}, ValueError, "8 bits"),
    ("clear.png", RGB.astype("float32"), {}, ValueError, "8 or 16 bits"),
    ("clear.jpg", scene((30, 40, 4)), {}, ValueError, r"4 bands: write a \.tif.*gdal_translate"),
    ("clear.png", scene((30, 40, 5)), {}, ValueError, "5 bands"),
    ("clear.png", scene((30, 40, 4)), {}, ValueError, r"transparency.*\.tif.*three bands"),
    ("clear.png", da.zeros((20000, 20000), dtype="uint8"), {}, ValueError, "20000 x 20000"),
    ("clear.jpg", da.zeros((70000, 10), dtype="uint8"), {}, ValueError, "70000 x 10"),
    ("clear.zarr", RGB, {"ngff": "0.3"}, ValueError, "0.5, 0.4"),
    ("clear.tif", RGB, {"compression": "bzip2"}, ValueError, "deflate, zstd, lzw, lerc, jpeg, webp, none"),
    ("clear.tif", RGB.astype("uint16"), {"compression": "jpeg"}, ValueError, "jpeg holds 8 bits without sign"),
    ("clear.tif", RGB, {"blocks_at_once": 0}, ValueError, "blocks_at_once"),
    ("clear.tif", RGB, {"like": image(scene((30, 41, 3)))}, ValueError, "shape"),
]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder in which nobody can write")
def test_a_folder_that_takes_nothing_is_known_at_once() -> None:
    with pytest.raises(OSError, match="nothing can be written there: choose another folder"):
        check(RGB, Path("/proc/clear.tif"))


@pytest.mark.parametrize(("name", "clear", "options", "error", "words"), REFUSED)
def test_refused_before_any_work(
    tmp_path: Path, name: str, clear: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        write(clear, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "name"),
    [("in.tif", "in.tif"), ("in.zarr", "in.zarr"), ("in.zarr", "in.zarr/out.tif"), ("out.zarr/0", "out.zarr")],
)
def test_the_input_is_safe(tmp_path: Path, source: str, name: str) -> None:
    if ".zarr" in source:
        to_zarr(RGB, tmp_path / source.split("/")[0])
    else:
        to_tiff(RGB, tmp_path / source)
    for path in (tmp_path / name, Path(os.path.relpath(tmp_path)) / name):
        with pytest.raises(ValueError, match="is the input"):
            write(RGB, path, image(RGB, path=tmp_path / source), overwrite=True)


@pytest.mark.parametrize(
    ("door", "name"), [(to_zarr, "a.tif"), (to_tiff, "a.zarr"), (to_photo, "a.tif"), (to_tiff, "a.png")]
)
def test_each_door_has_its_suffixes(tmp_path: Path, door: Any, name: str) -> None:
    with pytest.raises(ValueError, match="name it with one of"):
        door(RGB, tmp_path / name)


def test_like_must_be_an_image(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"like='plain\.tif' is not an Image: open it first"):
        to_tiff(scene((50, 40, 3)), tmp_path / "a.tif", like="plain.tif")  # type: ignore[arg-type]


def test_gray_pictures_without_a_band_axis(tmp_path: Path) -> None:
    with rasterio.open(to_tiff(RGB[..., 0], tmp_path / "a.tif")) as file:
        assert_same(file.read(1), RGB[..., 0])


def test_another_dtype_and_a_crop(tmp_path: Path) -> None:
    pixels = scene((600, 700, 3), "uint16")
    like = image(pixels, geo=UTM, nodata=-1.0)
    clear = lazy(pixels)[100:, 200:].astype("float32")
    cropped = replace(like, levels=(clear,), geo=UTM.moved(100, 200))
    with rasterio.open(to_tiff(clear, tmp_path / "a.tif", cropped)) as file:
        assert file.dtypes == ("float32",) * 3
        assert file.nodata == -1
        assert tuple(file.transform)[:6] == (5.0, 0.0, 486900.0, 0.0, -5.0, 5208747.0)
        assert_same(np.moveaxis(file.read(), 0, 2), pixels[100:, 200:].astype("float32"))


@pytest.mark.parametrize("between", ["", "between.zarr"])
def test_what_gdal_knows_of_the_bands_is_carried_over(tmp_path: Path, between: str) -> None:
    import rasterio
    from rasterio.transform import Affine

    profile = {"driver": "GTiff", "width": 300, "height": 200, "count": 4, "dtype": "uint16", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "in.tif", "w", transform=Affine(10, 0, 5e5, 0, -10, 4e6), **profile) as file:
        file.write(np.arange(4 * 200 * 300, dtype=np.uint16).reshape(4, 200, 300))
        file.scales, file.offsets, file.units = (1e-4,) * 4, (-0.1, 0, 0, 0.5), ("reflectance",) * 4
        file.update_tags(1, wavelength="660", STATISTICS_MEAN="5")
        file.update_tags(SENSOR="camera <1>")
    image = open_image(tmp_path / "in.tif")
    if between:
        image = open_image(to_zarr(image.levels[0], tmp_path / between, like=image))
    to_tiff(image.levels[0], tmp_path / "out.tif", like=image)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.scales, file.offsets) == ((1e-4,) * 4, (-0.1, 0, 0, 0.5))
        assert file.units == ("reflectance",) * 4
        assert file.tags(1) == {"wavelength": "660"}
        assert file.tags()["SENSOR"] == "camera <1>"
