"""Coordinates and grid mapping of a Zarr, as xarray, rioxarray and GDAL read them."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.io.zarr_metadata import cf_attributes

if TYPE_CHECKING:
    import zarr

    from dehazexl.image.image import Image


def write_place(group: zarr.Group, array: zarr.Array[Any], target: Image) -> None:
    """Write the place of the finest level: coordinates of the pixel centers, and a grid mapping of CF; scale and names.

    A rotated grid has no coordinates; its transform is in the grid mapping.
    """
    attributes = cf_attributes(target.metadata)
    if any(name != f"band {number}" for number, name in enumerate(target.bands, 1)):
        attributes["long_name"] = list(target.bands)  # of rioxarray
    if array.metadata.zarr_format == 2:
        attributes["_ARRAY_DIMENSIONS"] = ["c", "y", "x"]
    if target.nodata is not None:
        attributes["_FillValue"] = fill_value(target.nodata, array.dtype, array.metadata.zarr_format)
    geo = target.geo
    if geo is not None and (geo.affine is not None or geo.crs is not None):
        attributes |= {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"} | (
            {"_CRS": {"wkt": geo.crs.to_wkt()}} if geo.crs else {}
        )
        mapping = _create(group, "spatial_ref", np.zeros((), np.int64), ())
        mapping.attrs.update(grid_mapping(target))
        if geo.affine is not None and not (geo.affine[1] or geo.affine[3]):
            a, _, c, _, e, f = geo.affine
            height, width, _ = target.levels[0].shape
            units = _units(target)
            for name, start, step, length in (("x", c, a, width), ("y", f, e, height)):
                centers = start + step * (np.arange(length) + 0.5)
                _create(group, name, centers, (name,)).attrs.update(units[name])
    array.attrs.update(attributes)


def grid_mapping(target: Image) -> dict[str, Any]:
    """Return the attributes of the grid mapping."""
    assert target.geo is not None
    affine, crs = target.geo.affine, target.geo.crs
    attributes: dict[str, Any] = {}
    if crs is not None:
        attributes |= {name: value for name, value in crs.to_cf().items() if not isinstance(value, np.ndarray)}
        attributes["spatial_ref"] = attributes["crs_wkt"] = crs.to_wkt()
    if affine is not None:
        a, b, c, d, e, f = affine
        attributes["GeoTransform"] = " ".join(f"{value:.17g}" for value in (c, a, b, f, d, e))
    return attributes


def _units(target: Image) -> dict[str, dict[str, str]]:
    """Return the attributes of CF of the coordinates."""
    crs = target.geo.crs if target.geo else None
    if crs is not None and crs.is_geographic:
        return {
            "x": {"standard_name": "longitude", "units": "degrees_east", "axis": "X"},
            "y": {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"},
        }
    unit = {"units": "metre"} if target.units == "meter" else {}
    return {name: {"standard_name": f"projection_{name}_coordinate", "axis": name.upper(), **unit} for name in "xy"}


def _create(group: zarr.Group, name: str, values: np.ndarray[Any, Any], dimensions: tuple[str, ...]) -> zarr.Array[Any]:
    """Write a small array with the names of its axes."""
    new = group.metadata.zarr_format == 3
    options: dict[str, Any] = {"dimension_names": dimensions or None} if new else {}
    array = group.create_array(name, data=values, overwrite=True, **options)
    if not new:
        array.attrs["_ARRAY_DIMENSIONS"] = list(dimensions)
    return array


def fill_value(nodata: float, dtype: np.dtype[Any], zarr_format: int) -> Any:
    """Return a nodata value as the attribute _FillValue of xarray, which has floats in base64 in version 3."""
    if dtype.kind in "iu":
        return int(nodata)
    if zarr_format == 2:
        return "NaN" if nodata != nodata else float(nodata)
    return base64.standard_b64encode(struct.pack("<d", float(nodata))).decode()
