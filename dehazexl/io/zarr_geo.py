"""Georeference of a Zarr, from its coordinates, CF grid mapping and the conventions ``spatial:`` and ``proj:``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.georeference import Affine, Geo, parse_crs

if TYPE_CHECKING:
    from numpy.typing import NDArray

OFF = 0.02
"""Deviation in pixels up to which coordinates are evenly spaced, and agree with a transform."""


def read_geo(
    attributes: Mapping[str, Any], x: NDArray[Any] | None = None, y: NDArray[Any] | None = None
) -> tuple[Geo | None, list[str]]:
    """Read the georeference of a Zarr.

    Parameters
    ----------
    attributes
        Attributes of group and array; those of a CF grid mapping at the top or in a mapping ``spatial_ref``.
    x, y
        Coordinates of the pixel centers, from arrays of these names, or None. They win over a transform in the
        attributes, which is often that of another extent: programs that crop keep it as it was.

    Returns
    -------
    geo : Geo or None
        None if there is no georeference.
    notes : list of str
        A line for each contradiction.
    """
    grid = attributes.get("spatial_ref")
    grid = grid if isinstance(grid, Mapping) else attributes
    affine = _read_affine(attributes, grid)
    wkt, unknown = _read_crs(attributes, grid)
    notes = list(unknown)
    if x is not None and y is not None and x.size and y.size:
        affine, contradiction = _check_coordinates(affine, x, y)
        notes += contradiction
    if affine is not None and not (wkt or unknown or _is_plain(affine)):
        notes += ["it states no coordinate system, and none is written: gdal_edit.py -a_srs EPSG:N adds it to a .tif"]
    geo = replace(Geo.control(attributes), affine=affine, wkt=wkt)
    if wkt and affine is None and not (geo.gcps or geo.rpcs or notes):
        notes += ["it states a coordinate system but no place in it: neither coordinates x and y nor a transform"]
    return geo or None, notes


def _read_affine(attributes: Mapping[str, Any], grid: Mapping[str, Any]) -> Affine | None:
    """Read the transform of the pixels' corners."""
    if transform := attributes.get("spatial:transform"):
        a, b, c, d, e, f = (float(v) for v in transform[:6])
        # Nodes are the centers of pixels.
        half = 0.5 if attributes.get("spatial:registration") == "node" else 0.0
        return a, b, c - half * (a + b), d, e, f - half * (d + e)
    if transform := grid.get("GeoTransform"):
        values = transform.split() if isinstance(transform, str) else transform
        c, a, b, f, d, e = (float(v) for v in values)
        return a, b, c, d, e, f
    if transform := attributes.get("proj:transform"):  # STAC and EOPF
        a, b, c, d, e, f = (float(v) for v in transform[:6])
        return a, b, c, d, e, f
    return None


def _is_plain(affine: Affine) -> bool:
    """Return whether a transform only counts pixels, from their corners or centers."""
    a, b, c, d, e, f = affine
    return (abs(a), b, d, abs(e)) == (1, 0, 0, 1) and c == f and c in (0, -0.5)


def _check_coordinates(affine: Affine | None, x: NDArray[Any], y: NDArray[Any]) -> tuple[Affine | None, list[str]]:
    """Return the transform of coordinates of pixel centers, and a line if they contradict a transform."""
    if affine is not None and (affine[1] or affine[3]):
        return affine, []  # a rotated grid has no coordinates along its axes
    columns, rows = _axis(x, affine and affine[0]), _axis(y, affine and affine[4])
    if columns is None or rows is None:
        return affine, [] if affine else ["the coordinates x and y are not evenly spaced: no georeference is kept"]
    (a, c), (e, f) = columns, rows
    found: Affine = (a, 0.0, c, 0.0, e, f)
    if affine is None:
        return found, []
    corners = [(0, 0), (len(x), len(y))]
    off = max(
        max(abs(found[0] * col + found[2] - affine[0] * col - affine[2]) / abs(a),
            abs(found[4] * row + found[5] - affine[4] * row - affine[5]) / abs(e))
        for col, row in corners
    )  # fmt: skip
    if off <= OFF:
        return affine, []
    said = "its coordinates x and y contradict its transform (of another extent?): the coordinates are used"
    return found, [said]


def _axis(centers: NDArray[Any], step: float | None) -> tuple[float, float] | None:
    """Return step and first edge of evenly spaced centers, or None."""
    values = centers.astype(np.float64)
    if len(values) > 1:
        step = float(values[-1] - values[0]) / (len(values) - 1)
    if not step or not np.isfinite(values).all():
        return None
    even = values[0] + step * np.arange(len(values))
    # Coordinates in single precision are rounded.
    rounded = 4 * np.abs(values).max() * np.finfo(centers.dtype if centers.dtype.kind == "f" else float).eps
    if np.abs(values - even).max() > OFF * abs(step) + rounded:
        return None
    return step, float(values[0]) - step / 2


def _read_crs(attributes: Mapping[str, Any], grid: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Read the coordinate system as WKT, and a line if it is not known."""
    gdal = attributes.get("_CRS") or {}
    said = (
        attributes.get("proj:code"), attributes.get("proj:wkt2"), attributes.get("proj:projjson"),
        grid.get("crs_wkt"), grid.get("spatial_ref"), gdal.get("wkt"), gdal.get("projjson"),
        *(_named_crs(attributes.get(name)) for name in ("proj:epsg", "crs", "epsg")),
    )  # fmt: skip
    unknown = []
    identity = (attributes.get("proj:projjson") or {}).get("id") or {}
    for each in (*said, f"{identity['authority']}:{identity['code']}" if len(identity) >= 2 else None):
        text = json.dumps(each) if isinstance(each, Mapping) else each
        if not isinstance(text, str) or not text:
            continue
        if (crs := parse_crs(text)) is not None:
            return crs.to_wkt(), []
        unknown.append(text if len(text) < 40 else text[:37] + "...")
    if "grid_mapping_name" in grid and (wkt := _from_cf(grid)):
        return wkt, []
    lines = [f"its coordinate system {name} is in no registry: it is left out" for name in unknown[:1]]
    return "", lines


def _named_crs(value: Any) -> Any:
    """Return a coordinate system in the attributes of an array, such as ``EPSG:32632``, in a form that PROJ reads."""
    if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
        return f"EPSG:{value}" if int(value) else None
    if isinstance(value, str):
        return re.sub(r"^\+init=(\w+):", lambda found: f"{found[1].upper()}:", value.strip())
    return value


def _from_cf(grid: Mapping[str, Any]) -> str:
    """Return the coordinate system of the parameters of a CF grid mapping, or an empty string."""
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        return str(CRS.from_cf(dict(grid)).to_wkt())
    except (CRSError, KeyError):
        return ""
