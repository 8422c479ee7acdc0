"""Metadata of an image as attributes of a Zarr, and back."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dehazexl.io.source import as_number


def packed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as JSON values, bytes in base64; the inverse of `unpacked`. What JSON cannot hold is left out."""
    found: dict[str, Any] = {}
    for name, value in metadata.items():
        if isinstance(value, bytes):
            found[name] = {"base64": base64.b64encode(value).decode()}
            continue
        try:
            found[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            continue
    return found


def unpacked(attributes: object) -> dict[str, Any]:
    """Return metadata from the attributes of `packed`.

    Raises
    ------
    ValueError
        If they are not a mapping, or bytes are not in base64.
    """
    if not isinstance(attributes, Mapping):
        raise ValueError("the metadata are no mapping")
    return {name: _bytes(value) for name, value in attributes.items()}


def _bytes(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"base64"}:
        return base64.b64decode(value["base64"], validate=True)
    return value


_STRUCTURE = {
    "ome", "multiscales", "omero", "image-label", "labels", "bioformats2raw.layout", "_ARRAY_DIMENSIONS", "_FillValue",
    "nodata", "missing_value", "grid_mapping", "spatial_ref", "_CRS", "GeoTransform", "crs_wkt", "zarr_conventions",
    "scale_factor", "add_offset", "long_name", "units", "coordinates", "dehazexl", "dehazexl:geo", "AREA_OR_POINT",
    "_Unsigned",
}  # fmt: skip
"""Attributes that describe the arrays, and are read as such."""


def further(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a Zarr that describe its content, such as a title, rather than its arrays."""
    if "grid_mapping_name" in attributes:
        return {}
    return {
        name: value
        for name, value in attributes.items()
        if name not in _STRUCTURE and not name.startswith(("spatial:", "proj:", "STATISTICS_"))
    }


def cf_metadata(attributes: Mapping[str, Any], by_band: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return scale, offset and unit of CF as metadata with a value for each band, and the further attributes.

    Parameters
    ----------
    attributes
        Attributes of group and array. Those with one value become tags of GDAL, too.
    by_band
        Attributes of the array of each band.
    """
    found: dict[str, Any] = {
        "scales": [as_number(each.get("scale_factor")) or 1.0 for each in by_band],
        "offsets": [as_number(each.get("add_offset")) or 0.0 for each in by_band],
        "units": [unit if isinstance(unit := each.get("units"), str) else "" for each in by_band],
    }
    if set(found["scales"]) == {1.0} and not any(found["offsets"]):
        del found["scales"], found["offsets"]
    if not any(found["units"]):
        del found["units"]
    if kept := further(attributes):
        tags = {name: str(value) for name, value in kept.items() if isinstance(value, (str, int, float))}
        found |= {"attributes": kept} | ({"domains": {"": tags}} if tags else {})
    return found


def cf_attributes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of CF of metadata that is the same for all bands; the inverse of `cf_metadata`."""
    found = {}
    for name, attribute in (("scales", "scale_factor"), ("offsets", "add_offset"), ("units", "units")):
        values = list(metadata.get(name) or ())
        if values and all(value == values[0] for value in values) and values[0]:
            found[attribute] = values[0]
    return found
