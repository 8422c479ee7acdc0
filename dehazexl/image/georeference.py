"""Georeference of an image, carried from the input file to the output file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pyproj import CRS

Affine = tuple[float, float, float, float, float, float]

_CONVENTIONS = {
    "spatial": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "spatial", "Spatial coordinate information"),
    "proj": (
        "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "geo-proj",
        "Coordinate reference system information for geospatial data",
    ),
}
_CONTROL = "dehazexl:geo"
"""Attribute for control points and rational polynomials, for which no Zarr convention exists."""


class ControlPoint(NamedTuple):
    """A ground control point: row and column, 0 at the corner of the first pixel, and its place on the ground."""

    row: float
    col: float
    x: float
    y: float
    z: float = 0.0


@dataclass(frozen=True)
class Geo:
    """Georeference of an image.

    Attributes
    ----------
    affine
        Affine transform from pixels to the ground: six numbers (a, b, c, d, e, f), or None. The upper left **corner**
        of the pixel in column ``col`` and row ``row`` lies at ``x = a col + b row + c``, ``y = d col + e row + f``, in
        the units of the coordinate system.
    wkt
        Coordinate system as WKT (any version), or an empty string.
    gcps
        Ground control points.
    rpcs
        Rational polynomials of a satellite's camera, by the names of GDAL's domain RPC; lines and samples are 0 at the
        center of the first pixel.
    """

    affine: Affine | None = None
    wkt: str = ""
    gcps: tuple[ControlPoint, ...] = ()
    rpcs: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.affine is not None or bool(self.wkt or self.gcps or self.rpcs)

    @property
    def crs(self) -> CRS | None:
        """Coordinate system, or None if there is none that PROJ understands."""
        return parse_crs(self.wkt)

    @property
    def code(self) -> str | None:
        """Code in a registry that the coordinate system itself states, such as ``"EPSG:32633"``; never a guess."""
        identity = {} if self.crs is None else self.crs.to_json_dict().get("id", {})
        return f"{identity['authority']}:{identity['code']}" if identity else None

    @property
    def epsg(self) -> int | None:
        """EPSG code of the coordinate system, or None if it states none."""
        authority, _, number = (self.code or "").partition(":")
        return int(number) if authority == "EPSG" and number.isdecimal() else None

    @property
    def meters(self) -> tuple[float, float] | None:
        """Height and width of a pixel in meters, or None if the grid is rotated or its unit is not the meter."""
        if self.affine is None or self.crs is None or not self.crs.is_projected:
            return None
        if any(axis.unit_name not in ("metre", "meter") for axis in self.crs.axis_info):
            return None
        width, row_shear, _, column_shear, height, _ = self.affine
        return None if row_shear or column_shear else (abs(height), abs(width))

    def moved(self, y: float, x: float) -> Geo:
        """Return the georeference of the image cropped to start at row `y` and column `x`, in pixels."""
        affine = self.affine
        if affine is not None:
            a, b, c, d, e, f = affine
            affine = (a, b, c + a * x + b * y, d, e, f + d * x + e * y)
        gcps = tuple(point._replace(row=point.row - y, col=point.col - x) for point in self.gcps)
        return replace(self, affine=affine, gcps=gcps, rpcs=_shifted(self.rpcs, y, x))

    def scaled(self, fy: float, fx: float) -> Geo:
        """Return the georeference after resizing to pixels `fy` times as high and `fx` times as wide."""
        affine = self.affine
        if affine is not None:
            a, b, c, d, e, f = affine
            affine = (a * fx, b * fy, c, d * fx, e * fy, f)
        gcps = tuple(point._replace(row=point.row / fy, col=point.col / fx) for point in self.gcps)
        return replace(self, affine=affine, gcps=gcps, rpcs=_resized(self.rpcs, fy, fx))

    def to_attributes(self) -> dict[str, Any]:
        """Convert the georeference to the attributes of the Zarr conventions ``spatial:`` and ``proj:``.

        See `dehazexl.io.zarr_geo` for the way back.
        """
        attributes: dict[str, Any] = {}
        if self.affine is not None:
            attributes |= {
                "spatial:dimensions": ["y", "x"],
                "spatial:transform_type": "affine",
                "spatial:transform": list(self.affine),
                "spatial:registration": "pixel",
            }
        if self.code is not None:
            attributes["proj:code"] = self.code
        elif self.crs is not None:
            attributes["proj:wkt2"] = self.crs.to_wkt()
        used = {key.partition(":")[0] for key in attributes}
        if used:
            attributes["zarr_conventions"] = [_convention(name) for name in sorted(used)]
        if self.gcps or self.rpcs:
            attributes[_CONTROL] = {"gcps": [list(point) for point in self.gcps], "rpcs": dict(self.rpcs)}
        return attributes

    @classmethod
    def control(cls, attributes: Mapping[str, Any]) -> Geo:
        """Read control points and rational polynomials from the attributes of `to_attributes`."""
        kept = attributes.get(_CONTROL) or {}
        gcps = tuple(ControlPoint(*map(float, point)) for point in kept.get("gcps", ()))
        return cls(gcps=gcps, rpcs=dict(kept.get("rpcs", {})))


@lru_cache(maxsize=32)
def parse_crs(text: str) -> CRS | None:
    """Parse a coordinate system from WKT, PROJJSON or a code; None if PROJ does not understand it.

    A code beyond the registry of EPSG, such as EPSG:102004, is looked up in that of ESRI.
    """
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    authority, _, number = text.partition(":")
    for name in (text, f"ESRI:{number}") if authority.upper() == "EPSG" else (text,) if text else ():
        try:
            return CRS.from_user_input(name)
        except CRSError:
            continue
    return None


def _shifted(rpcs: Mapping[str, str], y: float, x: float) -> dict[str, str]:
    """Return rational polynomials for an image cropped to start at row `y` and column `x`."""
    moved = {name: repr(float(rpcs[name]) - by) for name, by in (("LINE_OFF", y), ("SAMP_OFF", x)) if name in rpcs}
    return {**rpcs, **moved}


def _resized(rpcs: Mapping[str, str], fy: float, fx: float) -> dict[str, str]:
    """Return rational polynomials for pixels `fy` times as high and `fx` times as wide."""
    changed = dict(rpcs)
    for axis, factor in (("LINE", fy), ("SAMP", fx)):
        if f"{axis}_OFF" in rpcs:
            changed[f"{axis}_OFF"] = repr((float(rpcs[f"{axis}_OFF"]) + 0.5) / factor - 0.5)
        if f"{axis}_SCALE" in rpcs:
            changed[f"{axis}_SCALE"] = repr(float(rpcs[f"{axis}_SCALE"]) / factor)
    return changed


def _convention(name: str) -> dict[str, str]:
    uuid, repository, description = _CONVENTIONS[name]
    return {
        "uuid": uuid,
        "name": name,
        "description": description,
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{repository}/refs/tags/v1/schema.json",
        "spec_url": f"https://github.com/zarr-conventions/{repository}/blob/v1/README.md",
    }
