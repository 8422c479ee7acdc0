"""A table of inputs of every kind, written again and read back by other programs, and inputs of public reports."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import rasterio
import rasterio.shutil
import rasterio.vrt
import tifffile
import xarray
import zarr
from make_pictures import png, smooth, write_gdal, write_ngff
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.control import GroundControlPoint

from dehazexl.image.georeference import Geo
from dehazexl.image.image import Image, valid_mask, value_range
from dehazexl.io.carried import carried_over, not_carried_over
from dehazexl.io.open import open_image
from dehazexl.io.write import to_tiff, to_zarr, write

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

HEIGHT, WIDTH = 70, 90
INVALID = np.indices((HEIGHT, WIDTH)).sum(0) < 60
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
PLACES: dict[str, dict[str, Any]] = {
    "utm": {"crs": "EPSG:32632", "transform": Affine(10, 0, 5e5, 0, -10, 5.6e6)},
    "rotated": {"crs": "EPSG:3857", "transform": Affine(3, 1.5, 4e5, 1.25, -4, 5e6)},
    "south-up": {"crs": "EPSG:32632", "transform": Affine(10, 0, 5e5, 0, 10, 5e6)},
    "degrees": {"crs": "EPSG:4326", "transform": Affine(0.001, 0, 7.25, 0, -0.0005, 46.5)},
    "esri": {"crs": "ESRI:102004", "transform": Affine(10, 0, 5e5, 0, -10, 5.6e6)},
    "no-code": {"crs": "+proj=laea +lat_0=12.5 +lon_0=3 +datum=WGS84", "transform": Affine(10, 0, 0, 0, -10, 0)},
    "points": {
        "crs": "EPSG:32632",
        "transform": None,
        "gcps": [GroundControlPoint(row, col, 5e5 + col, 5e6 - row, 0) for row in (0, 70) for col in (0, 90)],
    },
    "none": {"crs": None, "transform": None},
}
VALIDITY = ("all", "nodata", "nan", "alpha", "mask", "mask and nodata", "external")
LAYOUTS: dict[str, dict[str, Any]] = {
    "strips": {"compress": "lzw"},
    "tiles": {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate", "interleave": "band"},
    "cog": {"driver": "COG", "compress": "zstd", "blocksize": 128},
}


def scene(dtype: str, bands: int = 3) -> NDArray[Any]:
    """A smooth picture over a part of the range of the dtype, without the value that marks missing data."""
    wave = smooth(bands, "uint8", HEIGHT, WIDTH).astype(float) / 255
    if np.dtype(dtype).kind == "f":
        return (wave - 0.1).astype(dtype)
    info = np.iinfo(dtype)
    return np.clip(wave * min(info.max, 4000), 1, info.max).astype(dtype)


def write_input(path: Path, dtype: str, validity: str, layout: str, **place: Any) -> bool:
    """Write a file of the table; False if there is no such file."""
    kind = np.dtype(dtype).kind
    if (
        (validity == "nan" and kind != "f")
        or (validity == "alpha" and kind != "u")
        or (validity, layout) == ("external", "cog")
    ):
        return False
    pixels, options = scene(dtype), {**(place or PLACES["utm"]), **LAYOUTS[layout]}
    if validity in ("nodata", "mask and nodata"):
        options["nodata"] = {"u": 0, "i": np.iinfo(dtype).min if kind == "i" else 0, "f": -9999.0}[kind]
        pixels[INVALID] = options["nodata"]
    elif validity == "nan":
        options["nodata"] = np.nan
        pixels[INVALID] = np.nan
    elif validity == "alpha":
        alpha = np.where(INVALID, 0, np.iinfo(dtype).max).astype(dtype)
        pixels = np.concatenate([pixels, alpha[..., None]], axis=-1)
        options |= {} if layout == "cog" else {"photometric": "RGB", "alpha": "YES"}
        options["colors"] = "red green blue alpha"
    if "mask" in validity:
        options["mask"] = ~INVALID
    write_gdal(path, pixels, **options)
    if validity == "external":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as file:
            file.write_mask(~INVALID)
    return True


def facts(path: Path) -> dict[str, Any]:
    """Return what GDAL says of a file."""
    with rasterio.open(path) as file:
        return {
            "pixels": file.read(),
            "masks": file.read_masks(),
            "shape": (file.count, file.height, file.width),
            "dtypes": file.dtypes,
            "crs": file.crs,
            "transform": file.transform,
            "points": [(p.row, p.col, p.x, p.y) for p in file.gcps[0]],
            "nodata": file.nodata,
            # A first band that is undefined cannot be told from gray.
            "colors": ["gray" if color.name == "undefined" else color.name for color in file.colorinterp],
            "names": file.descriptions,
            "scales": (file.scales, file.offsets, file.units),
            "tags": {k: v for k, v in file.tags().items() if k != "TIFFTAG_SOFTWARE"},
            "band tags": [file.tags(band) for band in file.indexes],
        }


def assert_facts(found: dict[str, Any], wanted: dict[str, Any], lossless: bool = True) -> None:
    for name, value in wanted.items():
        if name == "pixels":
            if lossless:
                np.testing.assert_array_equal(found[name], value, err_msg=name)
        elif name == "masks":
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        elif name == "transform":
            assert found[name].almost_equals(value, 1e-9)
        elif name == "nodata" and value is not None:
            assert found[name] == pytest.approx(value, nan_ok=True)
        else:
            assert found[name] == value, name


def saved(image: Image, path: Path, **options: Any) -> Path:
    """Write an image as it is, which is what dehazing with strength 0 returns."""
    for _ in write(image.levels[0], path, image, overwrite=True, **options):
        pass
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("validity", VALIDITY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tiff_stays_what_it_was(tmp_path: Path, dtype: str, validity: str, layout: str) -> None:
    """168 rows: GDAL reads the same pixels, masks, names, colors and place from output and input."""
    source = tmp_path / "in.tif"
    if not write_input(source, dtype, validity, layout):
        return
    image = open_image(source)
    wanted = facts(source)
    assert_facts(facts(saved(image, tmp_path / "out.tif")), wanted)
    valid = valid_mask(image.levels[0].compute(), image)
    if (dtype, validity) == ("uint32", "alpha"):
        return  # for GDAL alpha of 32 bits is no mask
    np.testing.assert_array_equal(valid, wanted["masks"][0] != 0)
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.compression.name == {"strips": "lzw", "tiles": "deflate", "cog": "zstd"}[layout]
        assert (file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG") == (layout == "cog")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_place_is_kept(tmp_path: Path, dtype: str, place: str, layout: str) -> None:
    """72 rows of TIFF."""
    source = tmp_path / "in.tif"
    write_input(source, dtype, "all", layout, **PLACES[place])
    wanted = facts(source)
    assert_facts(facts(saved(open_image(source), tmp_path / "out.tif")), wanted)


def test_a_transform_and_control_points_are_not_mixed(tmp_path: Path) -> None:
    """GDAL has no coordinate system then but that of the points."""
    write_gdal(tmp_path / "in.tif", scene("uint8"), **PLACES["utm"])
    point = "<GCP Id='{0}' Pixel='{0}' Line='{1}' X='{0}' Y='{1}'/>"
    points = "".join(point.format(x, y) for x, y in ((0, 0), (90, 0), (0, 70)))
    (tmp_path / "in.tif.aux.xml").write_text(
        f"<PAMDataset><GCPList Projection='EPSG:4326'>{points}</GCPList></PAMDataset>"
    )
    image = open_image(tmp_path / "in.tif")
    assert image.geo is not None and "it has a transform and ground control points" in image.notes[0]
    assert (image.geo.epsg, image.geo.affine, len(image.geo.gcps)) == (4326, None, 3)
    with rasterio.open(saved(image, tmp_path / "out.tif")) as file:
        assert len(file.gcps[0]) == 3 and file.gcps[1].to_epsg() == 4326 and file.transform.is_identity


@pytest.mark.parametrize(
    "system", ["EPSG:7415", "EPSG:6349", "EPSG:5972", "EPSG:9518", "EPSG:32632+5773", "EPSG:4979", "ESRI:102004"]
)
@pytest.mark.parametrize("between", ["", "between.zarr"])
def test_a_vertical_datum_is_kept(tmp_path: Path, system: str, between: str) -> None:
    source = tmp_path / "a.tif"
    write_gdal(source, scene("uint8"), crs=system, transform=Affine(10, 0, 5e5, 0, -10, 5e6))
    image = open_image(saved(open_image(source), tmp_path / between) if between else source)
    assert not_carried_over(tmp_path / "b.tif", image) == ""
    with rasterio.open(saved(image, tmp_path / "b.tif")) as file, rasterio.open(source) as wanted:
        assert file.crs == wanted.crs
        assert file.crs.to_authority() == wanted.crs.to_authority()
        assert file.crs.to_wkt() == wanted.crs.to_wkt()


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ("points", "none")])
@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_a_zarr_holds_the_same(tmp_path: Path, dtype: str, place: str, ngff: Any) -> None:
    """36 rows: xarray, rioxarray, ome-zarr-py and GDAL read pixels, place and nodata value."""
    import rioxarray
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    assert rioxarray
    source = tmp_path / "in.tif"
    write_input(source, dtype, "nodata", "tiles", **PLACES[place])
    wanted = facts(source)
    image = open_image(source)
    to_zarr(image.levels[0], tmp_path / "out.zarr", image, ngff=ngff)
    (node,) = Reader(parse_url(tmp_path / "out.zarr"))()
    np.testing.assert_array_equal(node.data[0], wanted["pixels"])
    assert [axis["name"] for axis in node.metadata["axes"]] == ["c", "y", "x"]
    assert node.metadata["coordinateTransformations"][0][0] == {"type": "scale", "scale": [1, *image.scale]}
    if ngff == "0.4":  # GDAL reads the other from 3.11 on
        with rasterio.open(f'ZARR:"{tmp_path / "out.zarr"}":/0') as file:
            np.testing.assert_array_equal(file.read(), wanted["pixels"])
            assert file.crs == wanted["crs"] and file.nodata == wanted["nodata"]
            assert place == "rotated" or file.transform.almost_equals(wanted["transform"], 1e-6)
    options: Any = {"decode_coords": "all", "consolidated": False}
    with xarray.open_zarr(tmp_path / "out.zarr", mask_and_scale=False, **options) as opened:
        array = opened["0"]
        np.testing.assert_array_equal(array.values, wanted["pixels"])
        assert array.rio.crs == wanted["crs"]
        assert array.rio.transform().almost_equals(wanted["transform"], 1e-6)
        # xarray leaves the base64 of version 3 to its own decoding.
        if ngff == "0.4" or np.dtype(dtype).kind != "f":
            assert array.attrs["_FillValue"] == wanted["nodata"]
    again = open_image(tmp_path / "out.zarr")
    assert again.nodata == wanted["nodata"]
    assert_facts(facts(to_tiff(again.levels[0], tmp_path / "out.tif", again)), wanted)


@pytest.mark.parametrize("compression", ["deflate", "zstd", "lzw", "lerc", "none", "jpeg", "webp"])
@pytest.mark.parametrize("cog", [True, False])
def test_compression_is_that_of_the_input(tmp_path: Path, compression: str, cog: bool) -> None:
    layout = {"driver": "COG", "blocksize": 128} if cog else {"tiled": True, "blockxsize": 64, "blockysize": 64}
    pixels = smooth(3, "uint8", 600, 530)
    write_gdal(tmp_path / "in.tif", pixels, compress=compression, **layout)
    image = open_image(tmp_path / "in.tif")
    out = saved(image, tmp_path / "out.tif")
    with rasterio.open(out) as file:
        assert (file.compression.name.lower() if file.compression else "none") == compression
        assert len(file.overviews(1)) > 0
        error = np.abs(np.moveaxis(file.read(), 0, -1).astype(int) - image.levels[0].compute()).max()
    assert error <= {"jpeg": 8, "webp": 20}.get(compression, 0)
    if cog:
        from rio_cogeo.cogeo import cog_validate

        assert cog_validate(out)[:2] == (True, [])


@pytest.mark.parametrize("layout", ["GTiff", "COG"])
@pytest.mark.parametrize(
    ("blocksize", "size", "factors"), [(128, (600, 530), [2, 4, 8]), (512, (600, 530), [2]), (128, (300, 400), [2, 4])]
)
def test_overviews_are_as_many_as_of_the_input(
    tmp_path: Path, blocksize: int, size: tuple[int, int], factors: list[int], layout: str
) -> None:
    """Down to one block, as GDAL makes them."""
    sides = {"tiled": True, "blockxsize": blocksize, "blockysize": blocksize}
    options: dict[str, Any] = sides if layout == "GTiff" else {"blocksize": blocksize}
    write_gdal(tmp_path / "in.tif", smooth(3, "uint8", *size), driver=layout, compress="deflate", **options)
    with rasterio.open(tmp_path / "in.tif", "r+" if layout == "GTiff" else "r") as file:
        if layout == "GTiff":
            file.build_overviews(factors)
        assert file.overviews(1) == factors
    with rasterio.open(saved(open_image(tmp_path / "in.tif"), tmp_path / "out.tif")) as file:
        assert file.overviews(1) == factors and file.block_shapes[0] == (blocksize, blocksize)


@pytest.mark.parametrize("cog", [True, False])
def test_jpeg_tiles_with_a_mask(tmp_path: Path, cog: bool) -> None:
    """The bands are those of tifffile, the mask is GDAL's, at all levels."""
    pixels, valid = smooth(3, "uint8", 600, 530), np.indices((600, 530)).sum(0) > 300
    write_gdal(tmp_path / "plain.tif", pixels, mask=valid, **PLACES["utm"])
    if cog:
        options = {"driver": "COG", "compress": "jpeg", "blocksize": 128}
    else:
        options = {"driver": "GTiff", "compress": "jpeg", "tiled": True, "photometric": "YCBCR"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        rasterio.shutil.copy(tmp_path / "plain.tif", tmp_path / "in.tif", **options)
    image = open_image(tmp_path / "in.tif")
    assert image.masked and len(image.levels) == (4 if cog else 1)
    for number, level in enumerate(image.levels):
        read = level.compute()
        with rasterio.open(tmp_path / "in.tif", **({"overview_level": number - 1} if number else {})) as file:
            np.testing.assert_array_equal(read[..., 3] != 0, file.read_masks(1) != 0)
            assert np.abs(read[..., :3].astype(int) - np.moveaxis(file.read(), 0, -1)).mean() < 1
        np.testing.assert_array_equal(read[..., :3], tifffile.imread(tmp_path / "in.tif", level=number))
    assert_facts(facts(saved(image, tmp_path / "out.tif")), facts(tmp_path / "in.tif"), lossless=False)


def test_jpeg_tiles_are_those_of_tifffile(tmp_path: Path) -> None:
    """Of all levels; place, names and colors are GDAL's."""
    pixels = smooth(3, "uint8", 600, 530)
    write_gdal(tmp_path / "in.tif", pixels, driver="COG", compress="jpeg", blocksize=128, **PLACES["utm"])
    image = open_image(tmp_path / "in.tif")
    assert len(image.levels) > 2 and image.geo is not None and image.bands == ("red", "green", "blue")
    for number, level in enumerate(image.levels):
        read = level.compute()
        np.testing.assert_array_equal(read, tifffile.imread(tmp_path / "in.tif", level=number))
        with rasterio.open(tmp_path / "in.tif", **({"overview_level": number - 1} if number else {})) as file:
            difference = np.abs(read.astype(int) - np.moveaxis(file.read(), 0, -1))
        assert difference.mean() < 1  # chroma is interpolated differently


@pytest.mark.parametrize("kind", ["jpegxl", "jpeg2000", "jpegxr"])
def test_other_kinds_of_jpeg_lose_nothing_more(tmp_path: Path, kind: str) -> None:
    tifffile.imwrite(tmp_path / "in.tif", scene("uint8"), photometric="rgb", compression=kind, tile=(64, 64))
    image = open_image(tmp_path / "in.tif")
    with rasterio.open(saved(image, tmp_path / "out.tif")) as file:
        assert file.compression.name == "deflate"
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), image.levels[0].compute())


def test_the_quality_of_jpeg_is_that_of_the_input(tmp_path: Path) -> None:
    options: Any = {"photometric": "rgb", "compression": "jpeg", "tile": (64, 64)}
    tifffile.imwrite(tmp_path / "in.tif", scene("uint8"), compressionargs={"level": 92}, **options)
    assert open_image(tmp_path / "in.tif").metadata["quality"] == "92"
    image = open_image(saved(open_image(tmp_path / "in.tif"), tmp_path / "out.tif"))
    assert (image.metadata["compression"], image.metadata["quality"]) == ("jpeg", "92")


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize(("kind", "now"), [("packbits", "deflate"), ("lzma", "deflate"), ("lzw", "")])
def test_another_compression_and_interleaving_are_told(tmp_path: Path, kind: str, now: str, placed: bool) -> None:
    place: Any = [(33550, "d", 3, (10, 10, 0), True), (33922, "d", 6, (0, 0, 0, 5e5, 5e6, 0), True)] * placed
    options: Any = {"compression": kind, "photometric": "rgb", "metadata": None, "extratags": place}
    tifffile.imwrite(tmp_path / "in.tif", scene("uint8"), **options)
    line = f"the compression {kind} (it is {now} now)"
    image = open_image(tmp_path / "in.tif")
    assert carried_over(tmp_path / "out.tif", image)[1] == (f"not carried over: {line}" if now else "")
    assert carried_over(tmp_path / "out.tif", image, compression="zstd")[1] == ""
    tifffile.imwrite(tmp_path / "in.tif", np.moveaxis(scene("uint8"), -1, 0), planarconfig="separate", **options)
    assert "the interleaving by bands" in not_carried_over(tmp_path / "out.tif", open_image(tmp_path / "in.tif"))


def test_a_lossy_compression_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    for compression, message in (("jpeg", "8 bits without sign, not float32"), ("webp", "3 or 4 bands of 8 bits")):
        with pytest.raises(ValueError, match=message):
            to_tiff(scene("float32"), tmp_path / "out.tif", compression=compression)  # type: ignore[arg-type]


def test_twelve_bits_stay_twelve(tmp_path: Path) -> None:
    write_gdal(tmp_path / "in.tif", scene("uint16"), NBITS=12)
    image = open_image(tmp_path / "in.tif")
    assert image.bits == 12
    with rasterio.open(saved(image, tmp_path / "out.tif")) as file:
        assert file.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "12"
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), scene("uint16"))
    to_zarr(image.levels[0], tmp_path / "out.zarr", image)
    assert open_image(tmp_path / "out.zarr").bits == 12


@pytest.mark.parametrize("container", ["plain", "ome"])
def test_twelve_bits_of_other_programs_stay_twelve(tmp_path: Path, container: str) -> None:
    pixels = scene("uint16").clip(0, 4095)
    tifffile.imwrite(
        tmp_path / "in.tif", pixels, photometric="rgb", bitspersample=12, ome=container == "ome", metadata=None
    )
    image = open_image(tmp_path / "in.tif")
    assert image.bits == 12
    np.testing.assert_array_equal(image.levels[0].compute(), pixels)
    if container == "plain":
        with rasterio.open(saved(image, tmp_path / "out.tif")) as file:
            assert file.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "12"
            np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), pixels)


def test_domains_descriptions_scales_and_polynomials_are_kept(tmp_path: Path) -> None:
    write_gdal(tmp_path / "in.tif", scene("uint16"), names=["nir", "red", "green"], compress="deflate")
    rpc = {f"{axis}_{part}": "10" for axis in ("LINE", "SAMP", "LAT", "LONG", "HEIGHT") for part in ("OFF", "SCALE")}
    rpc |= {f"{a}_{b}_COEFF": " ".join(["1"] * 20) for a in ("LINE", "SAMP") for b in ("NUM", "DEN")}
    with rasterio.open(tmp_path / "in.tif", "r+") as file:
        file.scales, file.offsets, file.units = (1e-4,) * 3, (-0.1,) * 3, ("1",) * 3
        file.update_tags(SENSOR="camera <1>", AREA_OR_POINT="Point")
        file.update_tags(ns="FLIGHT", PILOT="Ann")
        file.update_tags(2, wavelength="660")
        file.update_tags(ns="RPC", **rpc)
    wanted, image = facts(tmp_path / "in.tif"), open_image(tmp_path / "in.tif")
    assert image.zero == pytest.approx(1000)
    assert value_range(image)[0] == pytest.approx(min(1000, image.levels[0].min().compute()), abs=5)
    for between in ("", "between.zarr"):
        if between:
            image = open_image(to_zarr(image.levels[0], tmp_path / between, image))
        out = saved(image, tmp_path / "out.tif")
        assert_facts(facts(out), wanted)
        with rasterio.open(out) as file:
            assert file.tags(ns="FLIGHT") == {"PILOT": "Ann"}
            assert file.rpcs.line_off == 10


# ---- colors ---------------------------------------------------------------------------------------

SATELLITES: dict[str, tuple[list[str], tuple[int, int, int]]] = {
    "sentinel-2 in file order": (["B02", "B03", "B04", "B08"], (2, 1, 0)),
    "sentinel-2 of gdal": (["B4, central wavelength 665 nm", "B3, x", "B2, x", "B8, x", "B05"], (0, 1, 2)),
    "hls": (["B02", "B03", "B04"], (2, 1, 0)),
    "landsat 8 surface reflectance": (["SR_B1", "SR_B2", "SR_B3", "SR_B4", "SR_B5", "SR_B6", "SR_B7"], (3, 2, 1)),
    "landsat 7 surface reflectance": (["SR_B1", "SR_B2", "SR_B3"], (2, 1, 0)),
    "file names": (["T32_20200101_B02_10m", "T32_20200101_B03_10m", "T32_20200101_B04_10m"], (2, 1, 0)),
    "modis": (["sur_refl_b01", "sur_refl_b02", "sur_refl_b03", "sur_refl_b04"], (0, 3, 2)),
    "landsat 5 without its thermal band": (["B1", "B2", "B3", "B4", "B5", "B7"], (2, 1, 0)),
    "landsat 7 product": ([f"LE07_L2SP_B{band}" for band in range(1, 8)], (2, 1, 0)),
    "words": (["Blue", "Green", "Red", "Red Edge", "NIR"], (2, 1, 0)),
    "words in German": (["Blau", "Gru\u0308n", "Rot", "Nahes Rot", "NIR"], (2, 1, 0)),
    "words in French": (["bande bleue", "Bleu", "Vert", "Rouge", "bord rouge"], (3, 2, 1)),
    "words in Russian": (["синий", "зелёный", "красный"], (2, 1, 0)),
}
PRODUCTS: dict[str, tuple[str, dict[str, str], list[str], tuple[int, int, int] | None]] = {
    "tags of landsat 5": ("a.tif", {"SPACECRAFT_ID": "LANDSAT_5"}, ["B1", "B2", "B3", "B4"], (2, 1, 0)),
    "platform of stac": ("a.tif", {"platform": "landsat-7"}, ["B1", "B2", "B3"], (2, 1, 0)),
    "collection": ("a.tif", {"collection": "landsat-c2l2-sr LT05"}, ["B3", "B2", "B1"], (0, 1, 2)),
    "file of landsat 7": ("LE07_L1TP_2003.tif", {}, ["B1", "B2", "B3", "B4"], (2, 1, 0)),
    "file of landsat 8": ("LC08_L1TP_2020.tif", {}, ["B1", "B2", "B3", "B4"], (3, 2, 1)),
    "sensor of landsat 5 without blue": (
        "a.tif",
        {"SENSOR_ID": "MSS", "PLATFORM": "LANDSAT_5"},
        ["B1", "B2", "B3"],
        None,
    ),
    "a name by chance": ("olive_atm_grove.tif", {}, ["B1", "B2", "B3", "B4"], None),
}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_the_product_tells_the_numbers_of_the_bands(tmp_path: Path, kind: str) -> None:
    name, tags, names, rgb = PRODUCTS[kind]
    write_gdal(tmp_path / name, scene("uint16", len(names)), names=names, photometric="MINISBLACK")
    with rasterio.open(tmp_path / name, "r+") as file:
        file.update_tags(**tags)
    image = open_image(tmp_path / name)
    assert (image.rgb, image.guessed) == ((0, 1, 2) if rgb is None else rgb, rgb is None)
    assert len(image.notes) == (image.rgb != (0, 1, 2) or rgb is None)


def test_a_vrt_of_products_has_their_names(tmp_path: Path) -> None:
    names = ["T32_B02_10m", "T32_B03_10m", "T32_B04_10m"]
    for band, name in enumerate(names):
        write_gdal(tmp_path / f"{name}.tif", scene("uint16")[..., band : band + 1])
    text = "<SourceFilename relativeToVRT='1'>{}.tif</SourceFilename><SourceBand>1</SourceBand>"
    bands = "".join(
        f"<VRTRasterBand dataType='UInt16' band='{n}'><SimpleSource>{text.format(name)}</SimpleSource></VRTRasterBand>"
        for n, name in enumerate(names, 1)
    )
    (tmp_path / "a.vrt").write_text(f"<VRTDataset rasterXSize='90' rasterYSize='70'>{bands}</VRTDataset>")
    image = open_image(tmp_path / "a.vrt")
    assert (image.bands, image.rgb, image.guessed) == (tuple(names), (2, 1, 0), False)
    np.testing.assert_array_equal(image.levels[0].compute(), scene("uint16"))
    with rasterio.open(saved(image, tmp_path / "out.tif")) as file:
        assert file.descriptions == (None, None, None)


@pytest.mark.parametrize("kind", SATELLITES)
def test_names_of_bands_tell_the_colors(tmp_path: Path, kind: str) -> None:
    names, rgb = SATELLITES[kind]
    write_gdal(tmp_path / "in.tif", scene("uint16", len(names)), names=names, photometric="MINISBLACK")
    image = open_image(tmp_path / "in.tif")
    assert (image.rgb, image.guessed) == (rgb, False)
    if not kind.startswith("words"):
        assert bool(image.notes) == (rgb != (0, 1, 2))
    assert_facts(facts(saved(image, tmp_path / "out.tif")), facts(tmp_path / "in.tif"))


@pytest.mark.parametrize("wavelengths", [("490", "560", "665", "842"), ("0.49", "0.56", "0.665", "0.842")])
def test_wavelengths_tell_the_colors(tmp_path: Path, wavelengths: tuple[str, ...]) -> None:
    write_gdal(tmp_path / "in.tif", scene("uint16", 4), photometric="MINISBLACK")
    with rasterio.open(tmp_path / "in.tif", "r+") as file:
        for band, wavelength in enumerate(wavelengths, 1):
            file.update_tags(band, wavelength=wavelength)
    assert open_image(tmp_path / "in.tif").rgb == (2, 1, 0)


def test_a_guess_is_told_and_not_written(tmp_path: Path) -> None:
    write_gdal(tmp_path / "in.tif", scene("uint16", 40), photometric="MINISBLACK")
    image = open_image(tmp_path / "in.tif")
    assert image.guessed and image.rgb == (0, 1, 2) and image.levels[0].shape[2] == 40
    assert image.notes[0].startswith("nothing tells the colors: the bands 1, 2, 3 are taken as red, green and blue")
    assert open_image(tmp_path / "in.tif", bands=[4, 3, 2]).notes == ()
    zarr_path = to_zarr(image.levels[0], tmp_path / "out.zarr", image)
    again = open_image(zarr_path)
    assert again.guessed and again.bands[:2] == ("band 1", "band 2")
    for each in (image, again):
        with rasterio.open(saved(each, tmp_path / "out.tif")) as file:
            assert [color.name for color in file.colorinterp] == ["gray"] + ["undefined"] * 39
            assert file.descriptions == (None,) * 40


# ---- other formats --------------------------------------------------------------------------------


def test_jpeg_2000_vrt_envi_erdas_and_webp(tmp_path: Path) -> None:
    pixels, place = scene("uint16"), PLACES["utm"]
    kinds = {"a.jp2": "JP2OpenJPEG", "a.img": "HFA", "b.bsq": "ENVI", "a.webp": "WEBP"}
    for name, driver in kinds.items():
        data = scene("uint8") if driver == "WEBP" else pixels
        options = {"QUALITY": 100, "REVERSIBLE": "YES"} if driver == "JP2OpenJPEG" else {}
        options = {"LOSSLESS": "True"} if driver == "WEBP" else options
        write_gdal(tmp_path / "source.tif", data, **place)
        rasterio.shutil.copy(tmp_path / "source.tif", tmp_path / name, driver=driver, **options)
        image = open_image(tmp_path / name)
        np.testing.assert_array_equal(image.levels[0].compute(), data, err_msg=name)
        assert image.geo is not None and image.geo.affine == tuple(place["transform"])[:6], name
    assert open_image(tmp_path / "b.hdr").levels[0].shape == pixels.shape


def test_a_mosaic_of_tiles(tmp_path: Path) -> None:
    pixels = scene("uint8")
    for name, part, left in (("w.tif", pixels[:, :40], 0), ("e.tif", pixels[:, 40:], 40)):
        write_gdal(tmp_path / name, part, crs="EPSG:32632", transform=Affine(10, 0, 5e5 + 10 * left, 0, -10, 5.6e6))
    sources = "".join(
        f"<SimpleSource><SourceFilename relativeToVRT='1'>{name}</SourceFilename><SourceBand>{{band}}</SourceBand>"
        f"<SrcRect xOff='0' yOff='0' xSize='{width}' ySize='70'/>"
        f"<DstRect xOff='{left}' yOff='0' xSize='{width}' ySize='70'/></SimpleSource>"
        for name, left, width in (("w.tif", 0, 40), ("e.tif", 40, 50))
    )
    bands = "".join(
        f"<VRTRasterBand dataType='Byte' band='{band}'><ColorInterp>{color}</ColorInterp>{sources.format(band=band)}"
        "</VRTRasterBand>"
        for band, color in enumerate(("Red", "Green", "Blue"), 1)
    )
    (tmp_path / "all.vrt").write_text(
        f"<VRTDataset rasterXSize='90' rasterYSize='70'><SRS>EPSG:32632</SRS>"
        f"<GeoTransform>500000, 10, 0, 5600000, 0, -10</GeoTransform>{bands}</VRTDataset>"
    )
    image = open_image(tmp_path / "all.vrt")
    np.testing.assert_array_equal(image.levels[0].compute(), pixels)
    assert image.geo is not None and image.geo.epsg == 32632
    assert image.guard is not None
    (tmp_path / "e.tif").unlink()
    with pytest.raises(OSError, match=r"all\.vrt"):
        image.guard()


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_world_file_is_read(tmp_path: Path, name: str) -> None:
    PIL.Image.fromarray(scene("uint8")).save(tmp_path / name)
    (tmp_path / "a.wld").write_text("10\n0\n0\n-10\n500005\n5599995\n")
    image = open_image(tmp_path / name)
    assert image.geo is not None and image.geo.affine == (10, 0, 500_000, 0, -10, 5_600_000)
    assert not_carried_over(Path("out.png"), image) == ""
    assert not_carried_over(Path("out.ome.tif"), image) == "not carried over: the georeference"
    with rasterio.open(saved(image, tmp_path / "out.tif")) as file:
        assert tuple(file.transform)[:6] == image.geo.affine


def test_external_overviews_are_levels(tmp_path: Path) -> None:
    write_gdal(tmp_path / "a.tif", smooth(), compress="deflate")
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.build_overviews([2, 4])
    assert (tmp_path / "a.tif.ovr").exists()
    assert [level.shape[0] for level in open_image(tmp_path / "a.tif").levels] == [701, 351, 176]


def test_a_damaged_block_is_reported(tmp_path: Path) -> None:
    write_gdal(tmp_path / "a.tif", smooth(), tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    body = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages.first
        body[page.dataoffsets[3] : page.dataoffsets[3] + 40] = b"\xff" * 40
    (tmp_path / "a.tif").write_bytes(body)
    image = open_image(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif is damaged in rows 0 to 700, columns 0 to 522"):
        image.levels[0].compute(scheduler="synchronous")


def test_libraries_are_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", scene("uint8"), photometric="rgb", extratags=[(42113, 2, 3, "x", True)])
    saved(open_image(tmp_path / "a.tif"), tmp_path / "out.tif")
    assert capfd.readouterr() == ("", "")


def test_microscopy_stays_ome_tiff(tmp_path: Path) -> None:
    pixels = np.moveaxis(smooth(4, "uint16"), -1, 0)
    metadata = {
        "axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm",
        "Channel": {"Name": ["DAPI", "GFP", "RFP", "Cy5"]}, "Description": "a slice",
    }  # fmt: skip
    tifffile.imwrite(tmp_path / "in.ome.tif", pixels, photometric="minisblack", metadata=metadata, compression="zlib")
    image = open_image(tmp_path / "in.ome.tif")
    assert (image.scale, image.units) == ((0.25, 0.5), "micrometer")
    out = saved(image, tmp_path / "out.ome.tif")
    with tifffile.TiffFile(out) as file:
        assert file.is_ome and file.series[0].axes == "CYX" and len(file.series[0].levels) == 2
        np.testing.assert_array_equal(file.asarray(), pixels)
        assert all(word in (file.ome_metadata or "") for word in ("DAPI", "Cy5", "a slice", 'PhysicalSizeX="0.5"'))
        assert file.pages.first.get_resolution("micrometer") == pytest.approx((2, 4))
    again = open_image(out)
    assert (again.bands, again.scale, again.units) == (image.bands, image.scale, image.units)


def test_pages_are_told_and_chosen(tmp_path: Path) -> None:
    pages = [scene("uint8"), scene("uint8")[::-1], scene("uint8")[:50]]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(page, photometric="rgb", metadata=None, compression="zlib")
    first = open_image(tmp_path / "a.tif")
    assert first.notes == ("the file has 3 pages, of which the first is opened; --page N opens another",)
    for number, page in enumerate(pages, 1):
        image = open_image(tmp_path / "a.tif", page=number)
        np.testing.assert_array_equal(image.levels[0].compute(), page)
        assert image.notes == ()
    with pytest.raises(ValueError, match="has no page 4: choose one of 1 to 3"):
        open_image(tmp_path / "a.tif", page=4)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("shape", [(3, 40, 50, 3), (20, 40, 50), (2, 2, 40, 50), (30, 40, 3)])
def test_equal_pages_are_opened_at_the_first(tmp_path: Path, shape: tuple[int, ...], compression: str | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, shape, "uint8")
    kind = "rgb" if len(shape) == 4 and shape[-1] == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=kind, compression=compression)
    if shape[-1] == 3 and kind == "minisblack" and compression is None:
        assert open_image(tmp_path / "a.tif").levels[0].shape == shape, "bands beside each other"
        return
    count = 4 if shape[:2] == (2, 2) else shape[0]
    pages = pixels.reshape(count, *shape[-3 if kind == "rgb" else -2 :])
    first = open_image(tmp_path / "a.tif")
    assert first.notes[0] == f"the file has {count} pages, of which the first is opened; --page N opens another"
    np.testing.assert_array_equal(first.levels[0].compute().reshape(pages[0].shape), pages[0])
    last = open_image(tmp_path / "a.tif", page=count)
    np.testing.assert_array_equal(last.levels[0].compute().reshape(pages[0].shape), pages[-1])


def stack(path: Path, axes: str, shape: tuple[int, ...], **options: Any) -> NDArray[Any]:
    """Write a stack whose planes all differ; return it."""
    pixels = np.arange(np.prod(shape), dtype="uint16").reshape(*shape, 1, 1) + smooth(1, "uint16", 40, 50)[..., 0]
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata={"axes": f"{axes}YX"}, **options)
    return pixels


@pytest.mark.parametrize(("axes", "options"), [("TZC", {}), ("TCZ", {}), ("CZ", {}), ("CZ", {"compression": "zlib"})])
def test_planes_of_a_stack_are_chosen_with_all_channels(tmp_path: Path, axes: str, options: dict[str, Any]) -> None:
    sizes = [{"T": 2, "Z": 3, "C": 4}[axis] for axis in axes]
    pixels = stack(tmp_path / "a.ome.tif", axes, tuple(sizes), **options)
    with pytest.raises(ValueError, match=r"has the axes .*: choose one of \d planes with --page N"):
        open_image(tmp_path / "a.ome.tif")
    planes = np.moveaxis(pixels, axes.index("C"), -1).reshape(-1, 40, 50, 4)
    for number, plane in enumerate(planes, 1):
        image = open_image(tmp_path / "a.ome.tif", page=number)
        np.testing.assert_array_equal(image.levels[0].compute(), plane)
    with pytest.raises(ValueError, match=f"has no page {len(planes) + 1}"):
        open_image(tmp_path / "a.ome.tif", page=len(planes) + 1)
    assert open_image(tmp_path / "a.ome.tif", page=1).fingerprint != image.fingerprint
    again = open_image(saved(image, tmp_path / "out.ome.tif"))
    np.testing.assert_array_equal(again.levels[0].compute(), planes[-1])


def test_a_stack_of_imagej(tmp_path: Path) -> None:
    pixels = stack(tmp_path / "a.tif", "ZC", (3, 2), imagej=True)
    for number in (1, 2, 3):
        plane = open_image(tmp_path / "a.tif", page=number).levels[0].compute()
        np.testing.assert_array_equal(plane, np.moveaxis(pixels[number - 1], 0, -1))


@pytest.mark.parametrize("colored", [False, True])
@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m"])
def test_channels_and_size_of_imagej_are_kept(tmp_path: Path, unit: str, colored: bool) -> None:
    names = ["DAPI", "GFP", "RFP"] if colored else ["red", "green", "blue"]
    tables = [np.outer(np.eye(3)[2 - band], np.arange(256)).astype("uint8") for band in range(3)]
    said: dict[str, Any] = {"axes": "CYX", "Labels": names, "unit": unit, "mode": "composite"}
    said |= {"LUTs": tables} if colored else {}
    pixels = np.moveaxis(scene("uint8"), -1, 0)
    tifffile.imwrite(tmp_path / "in.tif", pixels, imagej=True, resolution=(2, 4), metadata=said)
    image = open_image(tmp_path / "in.tif")
    assert (image.bands, image.scale, image.units) == (tuple(names), (0.25, 0.5), "micrometer")
    assert (image.rgb, image.guessed, image.notes) == ((2, 1, 0) if colored else (0, 1, 2), False, ())
    out = saved(image, tmp_path / "out.tif")
    with tifffile.TiffFile(out) as file:
        assert file.is_ome
        np.testing.assert_array_equal(file.asarray(), pixels)
    again = open_image(out)
    assert (again.bands, again.scale, again.units) == (image.bands, image.scale, image.units)
    assert (again.rgb, again.guessed) == (image.rgb, False)


def test_masks_of_bands_are_told(tmp_path: Path) -> None:
    write_gdal(tmp_path / "a.tif", scene("uint16"))
    file = "<SourceFilename relativeToVRT='1'>a.tif</SourceFilename><SourceBand>{0}</SourceBand>"
    band = "<VRTRasterBand dataType='UInt16' band='{0}'><NoDataValue>{0}</NoDataValue><SimpleSource>%s</SimpleSource>"
    bands = "".join((band % file).format(n) + "</VRTRasterBand>" for n in (1, 2, 3))
    (tmp_path / "a.vrt").write_text(f"<VRTDataset rasterXSize='90' rasterYSize='70'>{bands}</VRTDataset>")
    image = open_image(tmp_path / "a.vrt")
    assert image.masked and "a pixel is valid where all bands are" in image.notes[0]


@pytest.mark.parametrize("placed", [False, True])
def test_a_thumbnail_before_the_image_is_not_opened(tmp_path: Path, placed: bool) -> None:
    tags = [(33550, "d", 3, (10, 10, 0), True), (33922, "d", 6, (0, 0, 0, 5e5, 5e6, 0), True)] if placed else []
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for step, kind in ((4, 1), (1, 0)):
            pixels = scene("uint8")[::step, ::step].copy()
            file.write(pixels, photometric="rgb", subfiletype=kind, metadata=None, extratags=tags)
    image = open_image(tmp_path / "a.tif")
    assert image.notes == () and (image.geo is not None) == placed
    np.testing.assert_array_equal(image.levels[0].compute(), scene("uint8"))


def test_images_of_microscopy_are_told_and_chosen(tmp_path: Path) -> None:
    images = [np.moveaxis(smooth(3, "uint16", side, 50), -1, 0) for side in (40, 30)]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        for number, pixels in enumerate(images):
            metadata = {
                "axes": "CYX", "PhysicalSizeX": 0.5 + number, "PhysicalSizeY": 0.5 + number,
                "Channel": {"Name": [f"{number}a", f"{number}b", f"{number}c"]},
            }  # fmt: skip
            file.write(pixels, photometric="minisblack", metadata=metadata)
    first = open_image(tmp_path / "a.ome.tif")
    assert "the file has 2 images, of which the first is opened; --page N opens another" in first.notes
    for number, pixels in enumerate(images):
        image = open_image(tmp_path / "a.ome.tif", page=number + 1)
        for each in (image, open_image(saved(image, tmp_path / "out.ome.tif"))):
            np.testing.assert_array_equal(each.levels[0].compute(), np.moveaxis(pixels, 0, -1))
            assert (each.bands[0], each.scale) == (f"{number}a", (0.5 + number, 0.5 + number))


def test_planes_of_a_zarr_are_chosen(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype="uint16").reshape(2, 3, 4, 1, 1) + smooth(1, "uint16", 40, 50)[..., 0]
    write_ngff(tmp_path / "a.zarr", pixels, "0.5", "tczyx")
    with pytest.raises(ValueError, match="choose one of 8 planes with --page N"):
        open_image(tmp_path / "a.zarr")
    for number in (1, 5, 8):
        image = open_image(tmp_path / "a.zarr", page=number)
        t, z = divmod(number - 1, 4)
        np.testing.assert_array_equal(image.levels[0].compute(), np.moveaxis(pixels[t, :, z], 0, -1))
        np.testing.assert_array_equal(image.levels[1].compute(), np.moveaxis(pixels[t, :, z, ::2, ::2], 0, -1))
    with pytest.raises(ValueError, match="has no page 9: choose one of 1 to 8"):
        open_image(tmp_path / "a.zarr", page=9)


def test_pages_of_a_georeferenced_file(tmp_path: Path) -> None:
    for name, pixels in (("1.tif", scene("uint8")), ("2.tif", scene("uint8")[::-1])):
        write_gdal(tmp_path / name, pixels)
    rasterio.shutil.copy(tmp_path / "1.tif", tmp_path / "a.tif", driver="GTiff")
    rasterio.shutil.copy(tmp_path / "2.tif", tmp_path / "a.tif", driver="GTiff", APPEND_SUBDATASET="YES")
    assert "has 2 pages" in open_image(tmp_path / "a.tif").notes[0]
    np.testing.assert_array_equal(open_image(tmp_path / "a.tif", page=2).levels[0].compute(), scene("uint8")[::-1])


PRIVATE = [
    (65000, "H", 3, (1, 2, 50_000), True), (65001, "s", 0, "a text of a camera", True), (65002, "2I", 1, (7, 9), True),
    (65003, "d", 2, (0.5, -1.25), True), (65004, "B", 2, b"\3\4", True), (269, "s", 0, "a document", True),
    (271, "s", 0, "DJI", True), (272, "s", 0, "FC6310 and more", True), (285, "s", 0, "a page", True),
    (286, "2I", 1, (3, 2), True), (297, "H", 2, (0, 1), True), (316, "s", 0, "a host", True),
]  # fmt: skip


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("between", ["", "between.zarr"])
def test_tags_of_cameras_and_programs_are_kept(tmp_path: Path, order: Any, placed: bool, between: str) -> None:
    geo = [(33550, "d", 3, (10, 10, 0), True), (33922, "d", 6, (0, 0, 0, 5e5, 5e6, 0), True)] if placed else []
    options: Any = {"photometric": "rgb", "metadata": None, "extratags": [*PRIVATE, *geo], "byteorder": order}
    tifffile.imwrite(tmp_path / "in.tif", scene("uint8"), **options)
    image = open_image(tmp_path / "in.tif")
    if between:
        image = open_image(saved(image, tmp_path / between))
    with tifffile.TiffFile(saved(image, tmp_path / "out.tif")) as file:
        for code, _, _, value, _ in PRIVATE:
            assert file.pages.first.tags[code].value == value
        np.testing.assert_array_equal(file.asarray(), scene("uint8"))
    assert not_carried_over(Path("a.png"), image) == "not carried over: tags of cameras and programs"


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("described", ["hello", '{"author": "someone"}', ""])
@pytest.mark.parametrize("camera", [False, True])
def test_the_description_for_people_is_kept(tmp_path: Path, placed: bool, described: str, camera: bool) -> None:
    """That of tifffile for programs holds the shape of the input."""
    tags: Any = [(271, "s", 0, "DJI", True)] * camera
    tags += [(33550, "d", 3, (10, 10, 0), True), (33922, "d", 6, (0, 0, 0, 5e5, 5e6, 0), True)] * placed
    tifffile.imwrite(
        tmp_path / "in.tif", scene("uint8"), photometric="rgb", description=described or None, extratags=tags
    )
    with tifffile.TiffFile(saved(open_image(tmp_path / "in.tif"), tmp_path / "out.tif")) as file:
        assert [tag.value for tag in file.pages.first.tags.getall(270, default=[])] == [described] * bool(described)


@pytest.mark.parametrize("name", ["out.jpg", "out.png", "out.tif"])
def test_make_and_model_of_a_tiff_are_kept(tmp_path: Path, name: str) -> None:
    camera: Any = [(271, "s", 0, "DJI", True), (272, "s", 0, "FC6310", True)]
    tifffile.imwrite(tmp_path / "in.tif", scene("uint8"), photometric="rgb", extratags=camera)
    image = open_image(tmp_path / "in.tif")
    assert not_carried_over(tmp_path / name, image) == ""
    with PIL.Image.open(saved(image, tmp_path / name)) as file:
        exif = file.getexif()
    assert (exif[271], exif[272], exif.get(270)) == ("DJI", "FC6310", None)


def test_tags_of_the_pixels_are_never_those_of_the_input(tmp_path: Path) -> None:
    """A Zarr can claim any: the width of the image is no private tag."""
    image = replace(open_image(scene("uint8")), metadata={"tags": {"256": [4, 1, "01000000"], "65000": [3, 1, "0700"]}})
    with tifffile.TiffFile(saved(image, tmp_path / "out.tif")) as file:
        assert file.pages.first.shape == (HEIGHT, WIDTH, 3) and file.pages.first.tags[65000].value == 7


def test_a_source_that_is_missing_is_no_damage(tmp_path: Path) -> None:
    write_gdal(tmp_path / "w.tif", scene("uint8"))
    with rasterio.open(tmp_path / "w.tif") as file, rasterio.vrt.WarpedVRT(file) as warped:
        rasterio.shutil.copy(warped, tmp_path / "a.vrt", driver="VRT")
    image = open_image(tmp_path / "a.vrt")
    (tmp_path / "w.tif").unlink()
    with pytest.raises(ValueError, match=r"check the files that it refers to") as caught:
        image.levels[0].compute()
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "how"), [("uint8", "-expand gray in.tif gray.tif"), ("uint16", "-scale 0 65535 65535 0 in.tif gray.tif")]
)
def test_white_is_zero_has_a_remedy(tmp_path: Path, dtype: str, how: str, placed: bool) -> None:
    """GDAL takes 8 bits for a palette, which it writes again unless it is expanded."""
    place: Any = [(33550, "d", 3, (10, 10, 0), True), (33922, "d", 6, (0, 0, 0, 5e5, 5e6, 0), True)] * placed
    bands = scene(dtype)[..., 0]
    tifffile.imwrite(tmp_path / "in.tif", bands, photometric="miniswhite", metadata=None, extratags=place)
    with pytest.raises(ValueError, match=f"white-is-zero colors.*gdal_translate {how}"):
        open_image(tmp_path / "in.tif")


@pytest.mark.parametrize("photometric", ["miniswhite", "cielab"])
def test_colors_that_gdal_does_not_convert_are_refused(tmp_path: Path, photometric: str) -> None:
    """White is 0 in a placed file: its haze would be taken for shadow."""
    place = [(33550, "d", 3, (10, 10, 0), True), (33922, "d", 6, (0, 0, 0, 5e5, 5e6, 0), True)]
    bands = scene("uint8")[..., 0] if photometric == "miniswhite" else scene("uint8")
    tifffile.imwrite(tmp_path / "in.tif", bands, photometric=photometric, metadata=None, extratags=place)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"colors, which GDAL does not convert: .*(gray|sRGB)"):
        open_image(tmp_path / "in.tif")


def test_four_bits_are_not_eight(tmp_path: Path) -> None:
    write_gdal(tmp_path / "in.tif", scene("uint8") // 16, NBITS=4)
    image = open_image(tmp_path / "in.tif")
    assert image.bits == 4 and value_range(image)[1] <= 15


# ---- photographs ----------------------------------------------------------------------------------

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf gimbal="-89.9"/></x:xmpmeta>'
IPTC = b"\x1c\x02\x78\x00\x05a park"[:-1]


def photograph(path: Path, **entries: Any) -> None:
    """Write a photograph of a drone: EXIF with position, XMP and IPTC."""
    exif = PIL.Image.Exif()
    exif[0x010F] = "DJI"
    exif[0x8769] = {0x9003: "2024:05:06 07:08:09"}
    exif[0x8825] = {1: "N", 2: (46.0, 30.0, 0.0), 6: 82.5}
    for code, value in entries.items():
        exif[int(code)] = value
    resource = b"8BIM" + struct.pack(">HHI", 0x0404, 0, len(IPTC)) + IPTC + b"\0" * (len(IPTC) % 2)
    iptc = b"Photoshop 3.0\0" + resource
    extra = struct.pack(">BBH", 0xFF, 0xED, len(iptc) + 2) + iptc
    PIL.Image.fromarray(scene("uint8")).save(path, "JPEG", exif=exif, xmp=XMP, extra=extra)


@pytest.mark.parametrize("name", ["out.jpg", "out.png", "out.tif"])
@pytest.mark.parametrize("between", ["", "between.tif", "between.png", "between.zarr"])
def test_the_metadata_of_a_drone_are_kept(tmp_path: Path, name: str, between: str) -> None:
    """12 rows: from JPEG to each format, at once or by way of another."""
    photograph(tmp_path / "in.jpg")
    image = open_image(tmp_path / "in.jpg")
    if between:
        image = open_image(saved(image, tmp_path / between))
    with PIL.Image.open(saved(image, tmp_path / name)) as file:
        exif = file.getexif()
        assert exif[0x010F] == "DJI"
        assert exif.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
        assert (exif.get_ifd(0x8825)[2], exif.get_ifd(0x8825)[6]) == ((46.0, 30.0, 0.0), 82.5)
    again = open_image(tmp_path / name)
    assert again.metadata["xmp"] == XMP
    if not {"out.png", "between.png"} & {name, between}:
        assert again.metadata["iptc"] == IPTC


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_beyond_its_values_is_upright(tmp_path: Path, orientation: int) -> None:
    photograph(tmp_path / "in.jpg", **{"274": orientation})
    assert open_image(tmp_path / "in.jpg").levels[0].compute().shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", ["out.jpg", "out.png", "out.tif"])
def test_exif_that_cannot_be_written_costs_the_exif(tmp_path: Path, orientation: int, name: str) -> None:
    """A resolution unit of 4 bytes where its type has 2."""
    photograph(tmp_path / "in.jpg", **{"274": orientation, "296": 2})
    body = (tmp_path / "in.jpg").read_bytes()
    head = body.index(b"Exif\0\0") + 6
    order = ">" if body[head : head + 2] == b"MM" else "<"
    entry = body.index(struct.pack(order + "HHI", 296, 3, 1), head)
    wrong = struct.pack(order + "HHII", 296, 4, 1, 700_000)
    (tmp_path / "in.jpg").write_bytes(body[:entry] + wrong + body[entry + 12 :])
    image = open_image(tmp_path / "in.jpg")
    assert image.notes == ("EXIF that does not follow its standard is left out: ResolutionUnit",)
    with PIL.Image.open(saved(image, tmp_path / name)) as file:
        assert file.getexif().get_ifd(0x8825)[6] == 82.5


@pytest.mark.parametrize("name", ["out.jpg", "out.png", "out.tif"])
def test_exif_of_webp_is_kept(tmp_path: Path, name: str) -> None:
    exif = PIL.Image.Exif()
    exif[0x010F] = "DJI"
    exif[0x8825] = {1: "N", 2: (46.0, 30.0, 0.0), 6: 82.5}
    PIL.Image.fromarray(scene("uint8")).save(tmp_path / "in.webp", exif=exif, xmp=XMP, lossless=True)
    image = open_image(tmp_path / "in.webp")
    np.testing.assert_array_equal(image.levels[0].compute(), scene("uint8"))
    with PIL.Image.open(saved(image, tmp_path / name)) as file:
        assert file.getexif()[0x010F] == "DJI" and file.getexif().get_ifd(0x8825)[6] == 82.5
    assert open_image(tmp_path / name).metadata["xmp"] == XMP


@pytest.mark.parametrize("orientation", range(1, 9))
def test_webp_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.fromarray(scene("uint8")).save(tmp_path / "in.webp", exif=exif, lossless=True)
    image = open_image(tmp_path / "in.webp")
    with PIL.Image.open(tmp_path / "in.webp") as file:
        wanted = np.asarray(PIL.ImageOps.exif_transpose(file))
    np.testing.assert_array_equal(image.levels[0].compute(), wanted)
    with PIL.Image.open(saved(image, tmp_path / "out.jpg")) as file:
        assert (file.getexif()[0x0112], file.size) == (1, wanted.shape[1::-1])
    assert image.notes == ()


def test_webp_with_a_place_is_not_turned(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(scene("uint8")).save(tmp_path / "in.webp", exif=exif, lossless=True)
    place = "<PAMDataset><GeoTransform>500000, 10, 0, 5600000, 0, -10</GeoTransform></PAMDataset>"
    (tmp_path / "in.webp.aux.xml").write_text(place)
    image = open_image(tmp_path / "in.webp")
    assert image.geo is not None and image.levels[0].shape == (HEIGHT, WIDTH, 3)
    assert image.notes == ("it has a place, so it is not turned by its EXIF",)


@pytest.mark.parametrize("name", ["out.jpg", "out.png", "out.tif"])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_texts_and_resolution_of_photographs_are_kept(tmp_path: Path, kind: str, name: str) -> None:
    picture, source = PIL.Image.fromarray(scene("uint8")), tmp_path / f"in.{kind}"
    if kind == "jpg":
        picture.save(source, dpi=(300, 150), comment="fog on the Ångström")
    else:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("Description", "a plain text")
        info.add_itxt("Description", "fog on the Ångström")
        info.add_text("Author", "Ann", zip=True)
        info.add_text("Flight", "seven")
        picture.save(source, dpi=(300, 150), pnginfo=info)
    image = open_image(source)
    with PIL.Image.open(saved(image, tmp_path / name)) as file:
        assert file.info["dpi"] == pytest.approx((300, 150), rel=0.01)
        if name != "out.tif":
            found = file.info["Description"] if name == "out.png" else file.info["comment"].decode()
            assert found == "fog on the Ångström"
        if (kind, name) == ("png", "out.png"):
            assert (file.info["Author"], file.info["Flight"]) == ("Ann", "seven")
    if name == "out.tif":
        with rasterio.open(tmp_path / name) as file:
            assert file.tags()["TIFFTAG_IMAGEDESCRIPTION"] == "fog on the Ångström"
            assert kind == "jpg" or (file.tags()["TIFFTAG_ARTIST"], file.tags()["Flight"]) == ("Ann", "seven")


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "MPO"), ("a.png", "PNG")])
def test_further_images_of_a_photograph_are_told(tmp_path: Path, name: str, kind: str) -> None:
    first, second = (PIL.Image.fromarray(pixels) for pixels in (scene("uint8"), scene("uint8")[::-1]))
    first.save(tmp_path / name, kind, save_all=True, append_images=[second])
    image = open_image(tmp_path / name)
    assert image.notes == ("the file has 2 images, of which the first is opened and written",)
    off = np.abs(image.levels[0].compute().astype(int) - scene("uint8"))
    assert off.max() < (1 if kind == "PNG" else 20)


def test_a_damaged_list_of_images_costs_the_list_alone(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(scene("uint8"))
    picture.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[picture])
    body = (tmp_path / "a.jpg").read_bytes()
    start = body.index(b"MPF\0") + 4
    (tmp_path / "a.jpg").write_bytes(body[: start + 8] + b"\xff" * 30 + body[start + 38 :])
    assert open_image(tmp_path / "a.jpg").levels[0].compute().shape == (HEIGHT, WIDTH, 3)


def test_an_animation_is_not_damaged(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(scene("uint8"))
    picture.save(tmp_path / "a.webp", save_all=True, append_images=[PIL.Image.new("RGB", picture.size)])
    with pytest.raises(ValueError, match=r"^\S+a\.webp is an animation of 2 images: save one of them to its own file"):
        open_image(tmp_path / "a.webp")


def test_the_gamma_of_png_is_kept(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in scene("uint8"))
    gamma = (b"gAMA", struct.pack(">I", 100_000))
    (tmp_path / "a.png").write_bytes(png(WIDTH, HEIGHT, 8, 2, rows, gamma))
    image = open_image(tmp_path / "a.png")
    assert gamma[0] + gamma[1] in saved(image, tmp_path / "o.png").read_bytes()
    assert not_carried_over(Path("o.tif"), image) == "not carried over: the gamma of the PNG"
    (tmp_path / "a.png").write_bytes(png(WIDTH, HEIGHT, 8, 2, rows, (b"gAMA", struct.pack(">I", 45_455))))
    assert not_carried_over(Path("o.tif"), open_image(tmp_path / "a.png")) == ""


def test_a_resolution_is_not_made_up(tmp_path: Path) -> None:
    photograph(tmp_path / "in.jpg")
    image = open_image(tmp_path / "in.jpg")
    assert "x_resolution" not in image.metadata
    with rasterio.open(saved(image, tmp_path / "out.tif")) as file:
        assert "TIFFTAG_XRESOLUTION" not in file.tags()


def test_damaged_exif_costs_the_exif_alone(tmp_path: Path) -> None:
    photograph(tmp_path / "in.jpg")
    body = (tmp_path / "in.jpg").read_bytes()
    head = body.index(b"Exif\0\0") + 6
    (tmp_path / "in.jpg").write_bytes(body[: head + 2] + b"\xff" * 30 + body[head + 32 :])
    assert open_image(tmp_path / "in.jpg").levels[0].compute().shape == (HEIGHT, WIDTH, 3)


# ---- Zarr -----------------------------------------------------------------------------------------


def group_of(path: Path, **arrays: tuple[NDArray[Any], tuple[str, ...]]) -> zarr.Group:
    group = zarr.open_group(path, mode="a", zarr_format=3)
    for name, (values, names) in arrays.items():
        group.create_array(name, data=values, dimension_names=names)
    return group


def coordinates() -> dict[str, tuple[NDArray[Any], tuple[str, ...]]]:
    return {"x": (500_005 + 10.0 * np.arange(WIDTH), ("x",)), "y": (5_599_995 - 10.0 * np.arange(HEIGHT), ("y",))}


def planes(dtype: str = "uint16") -> dict[str, NDArray[Any]]:
    return dict(zip(("b02", "b03", "b04"), np.moveaxis(scene(dtype), -1, 0), strict=True))


def test_one_array_a_band(tmp_path: Path) -> None:
    arrays = {name: (plane, ("y", "x")) for name, plane in planes().items()}
    group_of(tmp_path / "a.zarr", **arrays, **coordinates())
    image = open_image(tmp_path / "a.zarr")
    np.testing.assert_array_equal(image.levels[0].compute(), scene("uint16"))
    assert (image.bands, image.rgb) == (("b02", "b03", "b04"), (2, 1, 0))
    assert image.geo is not None and image.geo.affine == (10, 0, 500_000, 0, -10, 5_600_000)
    with rasterio.open(saved(image, tmp_path / "out.tif")) as file:
        assert file.descriptions == ("b02", "b03", "b04")
        assert [color.name for color in file.colorinterp] == ["gray", "undefined", "undefined"]


def test_the_finest_group_of_a_product(tmp_path: Path) -> None:
    for folder, step in (("r10m", 1), ("r20m", 2)):
        arrays = {name: (plane[::step, ::step], ("y", "x")) for name, plane in planes().items()}
        group_of(tmp_path / f"a.zarr/measurements/reflectance/{folder}", **arrays)
    group_of(tmp_path / "a.zarr/quality/mask/r10m", b01=(np.zeros((300, 300), "u1"), ("y", "x")))
    for folder in ("", "measurements", "measurements/reflectance", "quality", "quality/mask"):
        zarr.open_group(tmp_path / "a.zarr" / folder, mode="a")
    image = open_image(tmp_path / "a.zarr")
    np.testing.assert_array_equal(image.levels[0].compute(), scene("uint16"))
    assert image.notes[0] == "the group measurements/reflectance/r10m is opened; another is opened by its path"


def test_the_axis_variable_and_labels(tmp_path: Path) -> None:
    values = xarray.DataArray(
        np.moveaxis(scene("uint16"), -1, 0), dims=("variable", "y", "x"), coords={"variable": ["B04", "B03", "B02"]}
    )
    values.to_dataset(name="refl").to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    image = open_image(tmp_path / "a.zarr")
    np.testing.assert_array_equal(image.levels[0].compute(), scene("uint16"))
    assert image.rgb == (0, 1, 2)


@pytest.mark.parametrize("between", ["", "between.zarr"])
@pytest.mark.parametrize("name", ["out.tif", "out.png"])
def test_labels_of_colors_are_names_of_bands(tmp_path: Path, between: str, name: str) -> None:
    labels = ["red", "green", "blue"]
    values = xarray.DataArray(scene("uint16"), dims=("y", "x", "band"), coords={"band": labels})
    values.to_dataset(name="refl").to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    image = open_image(tmp_path / "a.zarr")
    if between:
        image = open_image(to_zarr(image.levels[0], tmp_path / between, image))
    with rasterio.open(saved(image, tmp_path / name)) as file:
        assert file.descriptions == tuple(labels)
        assert [color.name for color in file.colorinterp] == labels
    again = open_image(tmp_path / name)
    assert (again.bands, again.rgb, again.guessed) == (tuple(labels), (0, 1, 2), False)


@pytest.mark.parametrize("version", [2, 3])
def test_what_bioformats2raw_writes(tmp_path: Path, version: Any) -> None:
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    axes = [{"name": name, "type": "channel" if name == "c" else "space"} for name in "cyx"]
    for series in ("0", "1"):
        group = root.create_group(series)
        group.create_array("0", data=np.moveaxis(scene("uint8"), -1, 0))
        scale = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
        datasets = [{"path": "0", "coordinateTransformations": scale}]
        said: dict[str, Any] = {"multiscales": [{"version": "0.4", "axes": axes, "datasets": datasets}]}
        group.attrs.update(said if version == 2 else {"ome": {"version": "0.5", **said}})
    layout: dict[str, Any] = {"bioformats2raw.layout": 3}
    root.attrs.update(layout if version == 2 else {"ome": {"version": "0.5", **layout}})
    root.create_group("OME")
    image = open_image(tmp_path / "a.zarr")
    np.testing.assert_array_equal(image.levels[0].compute(), scene("uint8"))
    assert image.notes[0].startswith("the Zarr has 2 images, of which 0 is opened")


def test_a_folder_within_a_zip(tmp_path: Path) -> None:
    group_of(tmp_path / "in/a.zarr", refl=(scene("uint8"), ("y", "x", "band")))
    shutil.make_archive(str(tmp_path / "b.zarr"), "zip", tmp_path / "in")
    np.testing.assert_array_equal(open_image(tmp_path / "b.zarr.zip").levels[0].compute(), scene("uint8"))


def test_an_array_opened_by_its_path_has_its_place(tmp_path: Path) -> None:
    group = group_of(tmp_path / "a.zarr", refl=(scene("uint8"), ("y", "x", "band")), **coordinates())
    group["refl"].attrs["_CRS"] = {"wkt": rasterio.crs.CRS.from_epsg(32632).to_wkt()}
    image = open_image(tmp_path / "a.zarr" / "refl")
    assert image.geo is not None and image.geo.epsg == 32632
    assert image.geo.affine == (10, 0, 500_000, 0, -10, 5_600_000)


@pytest.mark.parametrize("named", [{"crs": "EPSG:32632"}, {"crs": "+init=epsg:32632"}, {"crs": 32632}, {"epsg": 32632}])
def test_a_coordinate_system_in_the_attributes_of_an_array(tmp_path: Path, named: dict[str, Any]) -> None:
    group = group_of(tmp_path / "a.zarr", a=(scene("uint8"), ("y", "x", "band")), **coordinates())
    group["a"].attrs.update({**named, "grid_mapping": "spatial_ref"})
    image = open_image(tmp_path / "a.zarr")
    assert image.geo is not None and (image.geo.epsg, image.units) == (32632, "meter")
    assert not any("coordinate system" in note for note in image.notes)


@pytest.mark.parametrize("names", [("y", "x"), ("latitude", "longitude")])
def test_a_place_without_a_coordinate_system_is_told(tmp_path: Path, names: tuple[str, str]) -> None:
    """The datum of longitudes and latitudes is not guessed."""
    axes = {name: (np.linspace(47, 46, size), (name,)) for name, size in zip(names, (HEIGHT, WIDTH), strict=True)}
    group_of(tmp_path / "a.zarr", a=(scene("uint8"), (*names, "band")), **axes)
    image = open_image(tmp_path / "a.zarr")
    assert image.geo is not None and image.geo.affine is not None and image.geo.crs is None
    assert any(note.startswith("it states no coordinate system, and none is written") for note in image.notes)


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_plain_xarray_finds_the_coordinate_system(tmp_path: Path, ngff: Any) -> None:
    import rioxarray  # noqa: F401

    write_gdal(tmp_path / "a.tif", scene("uint8"), **PLACES["utm"])
    out = saved(open_image(tmp_path / "a.tif"), tmp_path / "a.zarr", ngff=ngff)
    with xarray.open_zarr(out, consolidated=False) as data:
        assert data["0"].rio.crs.to_epsg() == 32632


def test_integers_without_sign_of_netcdf(tmp_path: Path) -> None:
    pixels = np.moveaxis(scene("uint16") * np.uint16(12), -1, 0)
    pixels[:, INVALID] = 65535
    group = group_of(tmp_path / "a.zarr", a=(pixels.view("int16"), ("band", "y", "x")), **coordinates())
    group["a"].attrs.update({"_Unsigned": "true", "_FillValue": [-1]})
    image = open_image(tmp_path / "a.zarr")
    assert (image.levels[0].dtype, image.nodata) == ("uint16", 65535)
    for each in (image, open_image(saved(image, tmp_path / "o.zarr")), open_image(saved(image, tmp_path / "o.tif"))):
        np.testing.assert_array_equal(np.moveaxis(each.levels[0].compute(), -1, 0), pixels)
        assert each.nodata == 65535


def test_a_system_without_a_place_is_told(tmp_path: Path) -> None:
    group_of(tmp_path / "a.zarr", a=(scene("uint8"), ("y", "x", "band"))).attrs["proj:code"] = "EPSG:32632"
    image = open_image(tmp_path / "a.zarr")
    assert "states a coordinate system but no place in it" in image.notes[0]


def test_scale_and_offset_of_cf_move_black(tmp_path: Path) -> None:
    group = group_of(tmp_path / "a.zarr", refl=(scene("uint16") + np.uint16(1000), ("y", "x", "band")))
    group["refl"].attrs.update({"scale_factor": 1e-4, "add_offset": -0.1})
    image = open_image(tmp_path / "a.zarr")
    assert image.zero == pytest.approx(1000)
    assert value_range(image)[0] == pytest.approx(1000)


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_scale_offset_units_and_attributes_of_cf_are_kept(tmp_path: Path, ngff: Any) -> None:
    """xarray decodes the same values from the output; GDAL has them as scale, offset and tags."""
    group = group_of(
        tmp_path / "a.zarr", refl=(np.moveaxis(scene("uint16"), -1, 0), ("band", "y", "x")), **coordinates()
    )
    group.attrs.update({"title": "a scene", "orbit": 7, "history": ["a", "b"]})
    group["refl"].attrs.update({"scale_factor": 1e-4, "add_offset": -0.1, "units": "1", "long_name": ["a", "b", "c"]})
    image = open_image(tmp_path / "a.zarr")
    to_zarr(image.levels[0], tmp_path / "out.zarr", image, ngff=ngff)
    with xarray.open_zarr(tmp_path / "a.zarr", consolidated=False) as wanted:
        values = wanted["refl"].values
    with xarray.open_zarr(tmp_path / "out.zarr", consolidated=False) as found:
        np.testing.assert_allclose(found["0"].values, values)
        assert found["0"].attrs["units"] == "1" and list(found["0"].attrs["long_name"]) == ["a", "b", "c"]
        assert (found.attrs["title"], found.attrs["orbit"], found.attrs["history"]) == ("a scene", 7, ["a", "b"])
    for each in (image, open_image(tmp_path / "out.zarr")):
        with rasterio.open(saved(each, tmp_path / "out.tif")) as file:
            assert (file.scales, file.offsets, file.units) == ((1e-4,) * 3, (-0.1,) * 3, ("1",) * 3)
            assert file.descriptions == ("a", "b", "c")
            assert (file.tags()["title"], file.tags()["orbit"]) == ("a scene", "7")
    # And from TIFF, where they come from GDAL.
    placed = open_image(tmp_path / "out.tif")
    to_zarr(placed.levels[0], tmp_path / "again.zarr", placed, ngff=ngff)
    with xarray.open_zarr(tmp_path / "again.zarr", consolidated=False) as found:
        np.testing.assert_allclose(found["0"].values, values)


def test_nodata_that_is_given(tmp_path: Path) -> None:
    write_input(tmp_path / "in.tif", "uint16", "all", "strips")
    image = open_image(tmp_path / "in.tif", nodata=7)
    assert image.nodata == 7
    with rasterio.open(saved(image, tmp_path / "out.tif")) as file:
        assert file.nodata == 7


@pytest.mark.parametrize("value", [300, float("nan"), 0.5])
def test_a_value_that_no_pixel_has_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="is no value of uint8 pixels"):
        open_image(scene("uint8"), nodata=value)


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for dtype, bands, compression, bits in (
        ("uint8", 5, "jpeg", None),
        ("uint16", 3, "jpeg", 12),
        ("uint8", 3, "webp", 4),
    ):
        image = replace(open_image(scene(dtype, bands)), bits=bits)
        with pytest.raises(ValueError, match=f"cannot be compressed by {compression}: .* holds"):
            to_tiff(image.levels[0], tmp_path / "out.tif", image, compression=compression)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_domains_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    write_gdal(tmp_path / "in.tif", scene("uint8"), photometric="RGB")
    xml = "<PAMDataset><Metadata domain='xml:FLIGHT' format='xml'><a/></Metadata></PAMDataset>"
    (tmp_path / "in.tif.aux.xml").write_text(xml)
    with rasterio.open(tmp_path / "in.tif", "r+") as file:
        file.update_tags(ns="json:X", a=1)
        file.update_tags(ns="PILOT", a=1)
    image = open_image(tmp_path / "in.tif")
    assert carried_over(tmp_path / "out.tif", image)[1] == "not carried over: the metadata xml:FLIGHT"
    lost = "not carried over: the metadata xml:FLIGHT, the metadata json:X"
    assert carried_over(tmp_path / "out.png", image)[1] == lost
    with rasterio.open(saved(image, tmp_path / "out.png")) as file:
        assert file.tags(ns="PILOT") == {"a": "1"}


def test_memory_that_runs_out_is_no_fault_of_metadata(tmp_path: Path) -> None:
    class Large:
        def __str__(self) -> str:
            raise MemoryError

    image = replace(open_image(scene("uint8")), metadata={"description": Large()})
    with pytest.raises(MemoryError):
        carried_over(tmp_path / "out.tif", image)


def test_metadata_that_cannot_be_written_cost_the_metadata(tmp_path: Path) -> None:
    image = replace(
        open_image(scene("uint8")),
        geo=Geo((1, 0, 0, 0, -1, 0), "GEOGCS[no such system"),
        metadata={"band_tags": [{"a": "\udcff"}, {}, {}], "units": ["\udcff"] * 3},
    )
    lost = "not carried over: metadata of band 1, units, the coordinate system"
    assert not_carried_over(Path("out.tif"), image) == lost
    with rasterio.open(saved(image, tmp_path / "out.tif")) as file:
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), scene("uint8"))
        assert file.crs is None and file.transform.e == -1


def test_lines_about_what_is_lost() -> None:
    image = open_image(scene("uint8"))
    assert not_carried_over(Path("a.png"), image) == ""
    said = {"exif": b"x", "iptc": b"x", "scales": [2]}
    lost = replace(image, nodata=0, metadata={**said, "container": "cog"})
    assert not_carried_over(Path("a.tif"), lost) == "not carried over: EXIF, IPTC"
    assert not_carried_over(Path("a.png"), lost) == "not carried over: IPTC"
    assert not_carried_over(Path("a.jpg"), lost) == "not carried over: the nodata value"
    line = "not carried over: the nodata value, scale and offset, EXIF, IPTC"
    assert not_carried_over(Path("a.ome.tif"), lost) == line
