"""The georeference against rasterio's reading of real GeoTIFFs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import Affine

from dehazexl import open_image
from dehazexl.image.georeference import Geo, parse_crs
from dehazexl.io.write import to_tiff, to_zarr
from dehazexl.io.zarr_geo import read_geo

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
    geo = open_image(path).geo
    assert geo is not None
    return geo


def rewritten(path: Path, geo: Geo) -> tuple[Affine, int | None]:
    """Return `geo` as read by rasterio from a TIFF."""
    image = open_image(np.ones((20, 30), "uint8"))
    with rasterio.open(to_tiff(image.levels[0], path, replace(image, geo=geo), overwrite=True)) as file:
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
    assert attributes["proj:code"] == f"EPSG:{epsg}"
    assert {convention["name"] for convention in attributes["zarr_conventions"]} == {"proj", "spatial"}
    plain, notes = read_geo(attributes)
    assert plain is not None and not notes
    assert (plain.affine, plain.epsg) == (geo.affine, epsg)
    transform, code = rewritten(tmp_path / "out.tif", plain)
    assert transform.almost_equals(affine, 1e-9) and code == epsg


@pytest.mark.parametrize("wrapped", [False, True])
def test_cf_grid_mapping(wrapped: bool) -> None:
    grid = {
        "crs_wkt": rasterio.crs.CRS.from_epsg(26914).to_wkt(),
        "GeoTransform": "485900.0 5.0 0.0 5209247.0 0.0 -5.0",
    }
    geo, _ = read_geo({"spatial_ref": grid} if wrapped else grid)
    assert geo is not None
    assert geo.affine == tuple(NORTH_UP)[:6]
    assert geo.epsg == 26914


@pytest.mark.parametrize(("epsg", "geographic"), [(3857, False), (4326, True), (6318, True), (32633, False)])
def test_the_kind_of_a_system_does_not_depend_on_the_place(tmp_path: Path, epsg: int, geographic: bool) -> None:
    """Near the origin meters look like degrees."""
    geo, _ = read_geo({"proj:code": f"EPSG:{epsg}", "spatial:transform": [2.0, 0.0, 10.0, 0.0, -2.0, 20.0]})
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
    again, _ = read_geo(json.loads(json.dumps(geo.to_attributes())))
    assert again is not None and again.gcps == geo.gcps
    changed = geo.moved(4, 10).scaled(2, 5)
    assert changed.gcps[:2] == ((-2.0, -2.0, 100.0, 50.0, 0.0), (-2.0, 4.0, 130.0, 50.0, 0.0))
    image = open_image(np.ones((20, 30), "uint8"))
    with rasterio.open(to_tiff(image.levels[0], tmp_path / "out.tif", replace(image, geo=changed))) as file:
        points, crs = file.gcps
    assert [(p.row, p.col, p.x, p.y, p.z) for p in points] == list(changed.gcps) and crs.to_epsg() == 32633


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
    assert read_geo(json.loads(json.dumps(geo.to_attributes())))[0] == geo
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
    geo, _ = read_geo({"proj:code": "EPSG:26914"})
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
    geo, _ = read_geo(attributes)
    assert geo is not None and geo.epsg == 3857


def test_no_georeference() -> None:
    assert read_geo({"ome": {}, "nodata": 0}) == (None, [])


def test_a_system_without_a_code_is_carried_as_wkt(tmp_path: Path) -> None:
    wkt = rasterio.crs.CRS.from_proj4("+proj=laea +lat_0=12.5 +lon_0=3.25 +datum=WGS84 +units=m").to_wkt()
    geo = Geo((5.0, 0.0, 1e5, 0.0, -5.0, 2e5), wkt)
    assert geo.code is None and "proj:code" not in geo.to_attributes()
    again, notes = read_geo(geo.to_attributes())
    assert again is not None and again.crs == geo.crs and not notes
    rewritten(tmp_path / "out.tif", geo)
    assert read(tmp_path / "out.tif").crs == geo.crs


@pytest.mark.parametrize(
    ("code", "name"), [("EPSG:102004", "USA_Contiguous_Lambert_Conformal_Conic"), ("EPSG:999999", None)]
)
def test_codes_beyond_the_registry_are_those_of_esri_or_left_out(code: str, name: str | None) -> None:
    crs = parse_crs(code)
    assert (crs and crs.name) == name
    geo, notes = read_geo({"proj:code": code, "spatial:transform": [1, 0, 0, 0, -1, 0]})
    assert geo is not None and bool(geo.wkt) == (name is not None)
    assert notes == ([] if name else ["its coordinate system EPSG:999999 is in no registry: it is left out"])


X, Y = 500_005.0 + 10 * np.arange(30), 5_599_995.0 - 10 * np.arange(20)
FROM_XY = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_600_000.0)


@pytest.mark.parametrize(
    ("x", "y", "affine", "told"),
    [
        pytest.param(X, Y, FROM_XY, False, id="agree"),
        pytest.param(X[5:], Y[7:], (10, 0, 500_050, 0, -10, 5_599_930), True, id="slice"),
        pytest.param(X[::2], Y[::2], (20, 0, 499_995, 0, -20, 5_600_005), True, id="stride"),
        pytest.param(X, Y[::-1], (10, 0, 500_000, 0, 10, 5_599_800), True, id="ascending"),
        pytest.param(X.astype("f4"), Y.astype("f4"), FROM_XY, False, id="single precision"),
        pytest.param(np.geomspace(1, 9, 30), Y, FROM_XY, False, id="uneven"),
        pytest.param(X[:1], Y[:1], FROM_XY, False, id="one pixel"),
    ],
)
def test_coordinates_win_over_a_transform(x: np.ndarray, y: np.ndarray, affine: tuple[float, ...], told: bool) -> None:
    geo, notes = read_geo({"GeoTransform": "500000 10 0 5600000 0 -10", "crs_wkt": "EPSG:32632"}, x, y)
    assert geo is not None and geo.affine == pytest.approx(affine)
    assert bool(notes) == told


def test_nodes_are_centers() -> None:
    geo, _ = read_geo({"spatial:transform": [10, 0, 5, 0, -10, 95], "spatial:registration": "node"})
    assert geo is not None and geo.affine == (10, 0, 0, 0, -10, 100)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(("affine", "epsg", "kind"), PLACES)
def test_a_zarr_has_its_place_in_other_programs(tmp_path: Path, affine: Affine, epsg: int, kind: str) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("rioxarray")
    write(tmp_path / "in.tif", affine, epsg, kind)
    image = open_image(tmp_path / "in.tif")
    for ngff in ("0.4", "0.5"):
        path = to_zarr(image.levels[0], tmp_path / f"{ngff}.zarr", image, ngff=ngff)  # type: ignore[arg-type]
        opened = xarray.open_zarr(path, decode_coords="all", consolidated=False)["0"]
        assert opened.rio.crs.to_epsg() == epsg
        assert opened.rio.transform().almost_equals(affine, 1e-6)
        again = open_image(path).geo
        assert again is not None and image.geo is not None and (again.affine, again.epsg) == (image.geo.affine, epsg)
    # GDAL of the wheels reads version 2.
    with rasterio.open(f'ZARR:"{tmp_path / "0.4.zarr"}":/0') as file:
        assert file.crs.to_epsg() == epsg
        if not affine.b:
            assert file.transform.almost_equals(affine, 1e-6)
