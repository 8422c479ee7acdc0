"""The georeference against rasterio's reading of real GeoTIFFs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import Affine

from dehazexl import open_image
from dehazexl.image.georeference import GEO_TAGS, Geo

NORTH_UP = Affine(5.0, 0.0, 485900.0, 0.0, -5.0, 5209247.0)
ROTATED = Affine(3.0, 1.5, 485900.0, 1.25, -4.0, 5209247.0)
SOUTH_UP = Affine(5.0, 0.0, 485900.0, 0.0, 5.0, 5209247.0)
DEGREES = Affine(0.001, 0.0, 7.25, 0.0, -0.0005, 46.5)
PLACES = [
    pytest.param(NORTH_UP, 26914, "Area", id="north up"),
    pytest.param(NORTH_UP, 26914, "Point", id="pixel is point"),
    pytest.param(ROTATED, 32633, "Area", id="rotated"),
    pytest.param(ROTATED, 32633, "Point", id="rotated, pixel is point"),
    pytest.param(SOUTH_UP, 3857, "Area", id="south up"),
    pytest.param(DEGREES, 4326, "Area", id="degrees"),
    pytest.param(DEGREES, 6318, "Area", id="degrees beyond 5000"),
]


def write(path: Path, affine: Affine, epsg: int, kind: str = "Area") -> Geo:
    profile = {"driver": "GTiff", "width": 30, "height": 20, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", crs=f"EPSG:{epsg}", transform=affine, **profile) as file:
        file.update_tags(AREA_OR_POINT=kind)
        file.write(np.ones((1, 20, 30), "uint8"))
    return read(path)


def read(path: Path) -> Geo:
    with tifffile.TiffFile(path) as file:
        geo = Geo.from_tags({tag.code: tag.value for tag in file.pages.first.tags})
    assert geo is not None
    return geo


def rewritten(path: Path, geo: Geo) -> tuple[Affine, int | None]:
    """Return the tags of `geo` as read by rasterio from a TIFF."""
    kinds = {34735: 3, 34737: 2}
    tags = [(code, kinds.get(code, 12), len(value), value, True) for code, value in geo.tags.items()]
    tifffile.imwrite(path, np.ones((20, 30), "uint8"), extratags=tags, metadata=None)
    with rasterio.open(path) as file:
        return file.transform, file.crs.to_epsg() if file.crs else None


def composed(outer: Affine, inner: Affine) -> Affine:
    product = np.reshape(tuple(outer), (3, 3)) @ np.reshape(tuple(inner), (3, 3))
    return Affine(*product.ravel()[:6].tolist())


def test_pixel_size_in_meters(tmp_path: Path) -> None:
    tall = Affine(5.0, 0.0, 485900.0, 0.0, -2.5, 5209247.0)
    assert write(tmp_path / "meters.tif", tall, 26914).meters == (2.5, 5.0)
    image = open_image(tmp_path / "meters.tif")
    assert (image.scale, image.units) == ((2.5, 5.0), "meter")
    for affine, epsg in ((ROTATED, 32633), (DEGREES, 4326), (NORTH_UP, 2263)):  # turned, degrees, feet
        assert write(tmp_path / "other.tif", affine, epsg).meters is None
        assert open_image(tmp_path / "other.tif").units == "pixel"


@pytest.mark.parametrize(("affine", "epsg", "kind"), PLACES)
def test_reads_files_of_rasterio(tmp_path: Path, affine: Affine, epsg: int, kind: str) -> None:
    geo = write(tmp_path / "in.tif", affine, epsg, kind)
    assert set(geo.tags) <= set(GEO_TAGS)
    assert geo.affine == pytest.approx(tuple(affine)[:6], rel=1e-12)
    assert geo.epsg == epsg
    transform, code = rewritten(tmp_path / "out.tif", geo)
    assert transform.almost_equals(affine, 1e-9) and code == epsg


@pytest.mark.parametrize(("affine", "epsg", "kind"), PLACES)
def test_cropped_and_resized(tmp_path: Path, affine: Affine, epsg: int, kind: str) -> None:
    geo = write(tmp_path / "in.tif", affine, epsg, kind)
    for changed, oracle in (
        (geo.moved(7, 11), composed(affine, Affine.translation(11, 7))),
        (geo.scaled(2, 3), composed(affine, Affine.scale(3, 2))),
        (geo.moved(7, 11).scaled(2, 2).moved(-3, 1), composed(affine, Affine(2, 0, 13, 0, 2, 1))),
    ):
        transform, code = rewritten(tmp_path / "out.tif", changed)
        assert transform.almost_equals(oracle, 1e-6) and code == epsg
        assert changed.affine == pytest.approx(tuple(oracle)[:6], rel=1e-12)


@pytest.mark.parametrize(("affine", "epsg", "kind"), PLACES)
def test_attributes_round_trip(tmp_path: Path, affine: Affine, epsg: int, kind: str) -> None:
    geo = write(tmp_path / "in.tif", affine, epsg, kind)
    attributes = json.loads(json.dumps(geo.to_attributes(), allow_nan=False))
    assert Geo.from_attributes(attributes) == geo
    assert attributes["proj:code"] == f"EPSG:{epsg}"
    assert {convention["name"] for convention in attributes["zarr_conventions"]} == {"proj", "spatial"}
    del attributes["geotiff"]
    plain = Geo.from_attributes(attributes)
    assert plain is not None
    transform, code = rewritten(tmp_path / "out.tif", plain)
    assert transform.almost_equals(affine, 1e-9) and code == epsg


@pytest.mark.parametrize("wrapped", [False, True])
def test_cf_grid_mapping(wrapped: bool) -> None:
    grid = {
        "crs_wkt": rasterio.crs.CRS.from_epsg(26914).to_wkt(),
        "GeoTransform": "485900.0 5.0 0.0 5209247.0 0.0 -5.0",
    }
    geo = Geo.from_attributes({"spatial_ref": grid} if wrapped else grid)
    assert geo is not None
    assert geo.affine == tuple(NORTH_UP)[:6]
    assert geo.epsg == 26914


@pytest.mark.parametrize(("epsg", "geographic"), [(3857, False), (4326, True), (6318, True), (32633, False)])
def test_the_kind_of_a_system_does_not_depend_on_the_place(tmp_path: Path, epsg: int, geographic: bool) -> None:
    """Near the origin meters look like degrees."""
    geo = Geo.from_attributes({"proj:code": f"EPSG:{epsg}", "spatial:transform": [2.0, 0.0, 10.0, 0.0, -2.0, 20.0]})
    assert geo is not None
    assert rewritten(tmp_path / "out.tif", geo)[1] == epsg
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.crs.is_geographic == geographic


def test_ground_control_points(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, col, 100 + col, 50 - row, 0) for row, col in ((0, 0), (0, 30), (20, 0), (20, 30))]
    profile = {"driver": "GTiff", "width": 30, "height": 20, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "in.tif", "w", gcps=points, crs="EPSG:32633", **profile) as file:
        file.write(np.ones((1, 20, 30), "uint8"))
    geo = read(tmp_path / "in.tif")
    assert geo.affine is None and geo.epsg == 32633
    assert "spatial:transform" not in geo.to_attributes()
    assert Geo.from_attributes(geo.to_attributes()) == geo
    changed = geo.moved(4, 10).scaled(2, 5)
    assert changed.tags[33922][:12] == (-2.0, -2.0, 0.0, 100.0, 50.0, 0.0, 4.0, -2.0, 0.0, 130.0, 50.0, 0.0)


def test_rational_polynomials(tmp_path: Path) -> None:
    ones = [1.0] * 20
    rpc = RPC(
        height_off=5.0, height_scale=100.0, lat_off=46.0, lat_scale=0.1, long_off=7.0, long_scale=0.2,
        line_off=9.5, line_scale=10.0, samp_off=14.5, samp_scale=15.0,
        line_num_coeff=ones, line_den_coeff=ones, samp_num_coeff=ones, samp_den_coeff=ones,
    )  # fmt: skip
    profile = {"driver": "GTiff", "width": 30, "height": 20, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "in.tif", "w", rpcs=rpc, **profile) as file:
        file.write(np.ones((1, 20, 30), "uint8"))
    geo = read(tmp_path / "in.tif")
    assert Geo.from_attributes(json.loads(json.dumps(geo.to_attributes()))) == geo
    # Lines and samples are 0 at the first pixel's center: the center of the image stays in place.
    for changed, line, sample in (
        (geo, (9.5, 10.0), (14.5, 15.0)),
        (geo.moved(4, 10), (5.5, 10.0), (4.5, 15.0)),
        (geo.scaled(2, 3), (4.5, 5.0), (4.5, 5.0)),
    ):
        rewritten(tmp_path / "out.tif", changed)
        with rasterio.open(tmp_path / "out.tif") as file:
            found = file.rpcs
        assert (found.line_off, found.line_scale, found.samp_off, found.samp_scale) == pytest.approx(line + sample)
        assert (found.lat_off, found.long_scale, found.line_num_coeff) == (46.0, 0.2, ones)


def test_a_coordinate_system_without_a_transform() -> None:
    geo = Geo.from_attributes({"proj:code": "EPSG:26914"})
    assert geo is not None
    assert geo.affine is None and geo.epsg == 26914
    assert geo.moved(3, 4) == geo


@pytest.mark.parametrize(
    "attributes",
    [
        {"proj:wkt2": rasterio.crs.CRS.from_epsg(3857).to_wkt()},
        {"proj:projjson": {"type": "ProjectedCRS", "id": {"authority": "EPSG", "code": 3857}}},
        {"spatial_ref": rasterio.crs.CRS.from_epsg(3857).to_wkt()},
    ],
)
def test_other_ways_to_name_a_coordinate_system(attributes: dict[str, object]) -> None:
    geo = Geo.from_attributes(attributes)
    assert geo is not None and geo.epsg == 3857


def test_no_georeference() -> None:
    assert Geo.from_tags({256: 30, 42113: "0"}) is None
    assert Geo.from_attributes({"ome": {}, "nodata": 0}) is None


def test_tag_values_of_other_libraries() -> None:
    geo = Geo.from_tags({33550: np.array([2, 2, 0]), 33922: [0, 0, 0, 5, 6, 0], 34736: 6378137.0, 34737: b"WGS 84|\0"})
    assert geo is not None
    assert geo.tags == {
        33550: (2.0, 2.0, 0.0),
        33922: (0.0, 0.0, 0.0, 5.0, 6.0, 0.0),
        34736: (6378137.0,),
        34737: "WGS 84|",
    }
    assert geo.affine == (2.0, 0.0, 5.0, 0.0, -2.0, 6.0)
    assert geo.epsg is None


def test_a_user_defined_system_has_no_code() -> None:
    geo = Geo({34735: (1, 1, 0, 1, 3072, 0, 1, 32767)})
    assert geo.epsg is None
    assert "proj:code" not in geo.to_attributes()
