"""Georeference of an image, carried from the input file to the output file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Affine = tuple[float, float, float, float, float, float]

PIXEL_SCALE, TIEPOINT, TRANSFORMATION = 33550, 33922, 34264
GEO_KEYS, GEO_DOUBLES, GEO_ASCII = 34735, 34736, 34737
RPC = 50844
GEO_TAGS = (PIXEL_SCALE, TIEPOINT, TRANSFORMATION, GEO_KEYS, GEO_DOUBLES, GEO_ASCII, RPC)

# Indices into the values of tag 50844 that are in pixels: offset and scale of lines and of samples.
_LINE, _SAMPLE = (2, 7), (3, 8)

# GeoTIFF 1.1: keys in the directory of tag 34735, and the values of them that are used here.
_MODEL_TYPE, _RASTER_TYPE, _GEOGRAPHIC_CRS, _PROJECTED_CRS = 1024, 1025, 2048, 3072
_UNITS = 3076
_PIXEL_IS_POINT, _USER_DEFINED, _PROJECTED, _METRE = 2, 32767, 1, 9001

_CONVENTIONS = {
    "spatial": ("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "spatial", "Spatial coordinate information"),
    "proj": (
        "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "geo-proj",
        "Coordinate reference system information for geospatial data",
    ),
}


@dataclass(frozen=True)
class Geo:
    """Georeference of an image, stored as GeoTIFF tags.

    Attributes
    ----------
    tags
        The tags of the image among 33550 ModelPixelScale, 33922 ModelTiepoint, 34264 ModelTransformation
        (tuples of float), 34735 GeoKeyDirectory (tuple of int), 34736 GeoDoubleParams (tuple of float),
        34737 GeoAsciiParams (str) and 50844 RPCCoefficient (tuple of float: the rational polynomials of a satellite's
        camera). Storing the tags keeps every coordinate system of an input unchanged.
    """

    tags: Mapping[int, Any] = field(default_factory=dict)

    @classmethod
    def from_tags(cls, tags: Mapping[int, Any]) -> Geo | None:
        """Read the georeference from the tags of a TIFF.

        Parameters
        ----------
        tags
            Tag codes and values; tags other than the seven listed in `Geo` are ignored.

        Returns
        -------
        Geo or None
            None if none of the seven tags is present.
        """
        present = {code: _normalize_tag(code, tags[code]) for code in GEO_TAGS if tags.get(code) is not None}
        return cls(present) if present else None

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> Geo | None:
        """Read the georeference from the attributes of a Zarr array or group.

        Parameters
        ----------
        attributes
            JSON values by name. The following are used, in this order: the tags as written by `to_attributes`, the
            Zarr conventions ``proj:`` and ``spatial:``, and the attributes of a CF grid mapping (``GeoTransform``,
            ``crs_wkt``), either at the top or in a mapping named ``spatial_ref``.

        Returns
        -------
        Geo or None
            None if the attributes hold no georeference.
        """
        if isinstance(raw := attributes.get("geotiff"), Mapping):
            return cls.from_tags({int(code): value for code, value in raw.items()})
        grid = attributes.get("spatial_ref")
        grid = grid if isinstance(grid, Mapping) else attributes
        affine = _read_affine(attributes, grid)
        epsg = _read_epsg(attributes, grid)
        tags = (_affine_tags(affine) if affine else {}) | (_crs_tags(epsg) if epsg else {})
        return cls(tags) if tags else None

    def to_attributes(self) -> dict[str, Any]:
        """Convert the georeference to Zarr attributes; the inverse of `from_attributes`.

        Returns
        -------
        dict
            JSON values: ``proj:code`` and ``spatial:transform`` where they are known, the conventions'
            registration, and the tags themselves under ``geotiff``.
        """
        attributes: dict[str, Any] = {}
        if self.affine is not None:
            attributes |= {
                "spatial:dimensions": ["y", "x"],
                "spatial:transform_type": "affine",
                "spatial:transform": list(self.affine),
                "spatial:registration": "pixel",
            }
        if self.epsg is not None:
            attributes["proj:code"] = f"EPSG:{self.epsg}"
        used = {key.partition(":")[0] for key in attributes}
        if used:
            attributes["zarr_conventions"] = [_convention(name) for name in sorted(used)]
        attributes["geotiff"] = {str(code): list(v) if isinstance(v, tuple) else v for code, v in self.tags.items()}
        return attributes

    @property
    def affine(self) -> Affine | None:
        """Affine transform from pixels to the ground: six numbers (a, b, c, d, e, f), or None.

        The upper left **corner** of the pixel in column ``col`` and row ``row`` lies at ``x = a col + b row + c``,
        ``y = d col + e row + f``, in the units of the coordinate system, also where the tags refer to
        pixel centers (RasterPixelIsPoint). None for ground control points and for a bare coordinate system.
        """
        if PIXEL_SCALE in self.tags and TIEPOINT in self.tags:
            width, height = self.tags[PIXEL_SCALE][:2]
            col, row, _, x, y = self.tags[TIEPOINT][:5]
            # GDAL reads every pixel scale as north up.
            a, b, c, d, e, f = width, 0.0, x - col * width, 0.0, -abs(height), y + row * abs(height)
        elif TRANSFORMATION in self.tags:
            a, b, _, c, d, e, _, f = self.tags[TRANSFORMATION][:8]
        else:
            return None
        half = self._center
        return a, b, c - half * (a + b), d, e, f - half * (d + e)

    @property
    def epsg(self) -> int | None:
        """EPSG code of the coordinate system, or None if it has none or is user-defined."""
        code = self._key(_PROJECTED_CRS) or self._key(_GEOGRAPHIC_CRS)
        return None if code in (None, _USER_DEFINED) else code

    @property
    def meters(self) -> tuple[float, float] | None:
        """Height and width of a pixel in meters, or None if the grid is rotated or its unit is not the meter."""
        affine = self.affine
        if affine is None or self._key(_MODEL_TYPE) != _PROJECTED or self._key(_UNITS) != _METRE:
            return None
        width, row_shear, _, column_shear, height, _ = affine
        return None if row_shear or column_shear else (abs(height), abs(width))

    def moved(self, y: float, x: float) -> Geo:
        """Return the georeference of the image cropped to start at row `y` and column `x`, in pixels."""
        geo = self._with_rpc(lambda line: line - y, lambda sample: sample - x)
        if geo.affine is None:
            return geo._with_points(lambda col, row: (col - x, row - y))
        a, b, c, d, e, f = geo.affine
        return geo._with_affine((a, b, c + a * x + b * y, d, e, f + d * x + e * y))

    def scaled(self, fy: float, fx: float) -> Geo:
        """Return the georeference after resizing to pixels `fy` times as high and `fx` times as wide."""
        geo = self._with_rpc(lambda line: line / fy, lambda sample: sample / fx)
        if geo.affine is None:
            half = geo._center
            return geo._with_points(lambda col, row: ((col + half) / fx - half, (row + half) / fy - half))
        a, b, c, d, e, f = geo.affine
        return geo._with_affine((a * fx, b * fy, c, d * fx, e * fy, f))

    @property
    def _center(self) -> float:
        """Position within a pixel that the raster coordinates of the tags refer to: 0 its corner, 0.5 its center."""
        return 0.5 if self._key(_RASTER_TYPE) == _PIXEL_IS_POINT else 0.0

    def _key(self, key: int) -> int | None:
        directory = self.tags.get(GEO_KEYS, ())
        entries = (directory[i : i + 4] for i in range(4, len(directory) - 3, 4))
        return next((value for code, location, _, value in entries if code == key and location == 0), None)

    def _with_affine(self, affine: Affine) -> Geo:
        others = {code: v for code, v in self.tags.items() if code not in (PIXEL_SCALE, TIEPOINT, TRANSFORMATION)}
        return Geo(others | _affine_tags(affine, self._center))

    def _with_points(self, move: Callable[[float, float], tuple[float, float]]) -> Geo:
        if TIEPOINT not in self.tags:
            return self
        flat = self.tags[TIEPOINT]
        moved = [(*move(*flat[i : i + 2]), *flat[i + 2 : i + 6]) for i in range(0, len(flat), 6)]
        return Geo({**self.tags, TIEPOINT: tuple(float(v) for point in moved for v in point)})

    def _with_rpc(self, line: Callable[[float], float], sample: Callable[[float], float]) -> Geo:
        """Transform lines and samples of the rational polynomials, which are 0 at the center of the first pixel."""
        if RPC not in self.tags:
            return self
        values = list(self.tags[RPC])
        for (offset, scale), move in ((_LINE, line), (_SAMPLE, sample)):
            values[offset], values[scale] = move(values[offset] + 0.5) - 0.5, move(values[scale]) - move(0)
        return Geo({**self.tags, RPC: tuple(values)})


def _normalize_tag(code: int, value: Any) -> tuple[float, ...] | tuple[int, ...] | str:
    """Normalize the value of a tag, which TIFF libraries return as a scalar, list, array or bytes."""
    if code == GEO_ASCII:
        return value.decode("latin-1").rstrip("\0") if isinstance(value, bytes) else str(value)
    values = value if isinstance(value, Iterable) else [value]
    return tuple(int(v) for v in values) if code == GEO_KEYS else tuple(float(v) for v in values)


def _affine_tags(affine: Affine, center: float = 0.0) -> dict[int, Any]:
    a, b, c, d, e, f = affine
    x, y = c + center * (a + b), f + center * (d + e)
    if b == d == 0 and a > 0 > e:
        return {PIXEL_SCALE: (a, -e, 0.0), TIEPOINT: (0.0, 0.0, 0.0, x, y, 0.0)}
    return {TRANSFORMATION: (a, b, 0.0, x, d, e, 0.0, y, *(0.0,) * 7, 1.0)}


def _crs_tags(epsg: int) -> dict[int, Any]:
    model, key = (2, _GEOGRAPHIC_CRS) if _is_geographic(epsg) else (1, _PROJECTED_CRS)
    entries = ((_MODEL_TYPE, model), (_RASTER_TYPE, 1), (key, epsg))
    directory = [1, 1, 0, len(entries)]
    for code, value in entries:
        directory += [code, 0, 1, value]
    return {GEO_KEYS: tuple(directory)}


def _is_geographic(epsg: int) -> bool:
    """Return whether a code of the EPSG registry is a geographic system; unknown codes count as projected."""
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        return bool(CRS.from_epsg(epsg).is_geographic)
    except CRSError:
        return False


def _read_affine(attributes: Mapping[str, Any], grid: Mapping[str, Any]) -> Affine | None:
    if transform := attributes.get("spatial:transform"):
        a, b, c, d, e, f = (float(v) for v in transform[:6])
        return a, b, c, d, e, f
    if transform := grid.get("GeoTransform"):
        values = transform.split() if isinstance(transform, str) else transform
        c, a, b, f, d, e = (float(v) for v in values)
        return a, b, c, d, e, f
    return None


def _read_epsg(attributes: Mapping[str, Any], grid: Mapping[str, Any]) -> int | None:
    if code := re.fullmatch(r"EPSG:(\d+)", str(attributes.get("proj:code", ""))):
        return int(code[1])
    identity = (attributes.get("proj:projjson") or {}).get("id") or {}
    if identity.get("authority") == "EPSG":
        return int(identity["code"])
    for text in (attributes.get("proj:wkt2"), grid.get("crs_wkt"), grid.get("spatial_ref")):
        # The last identifier belongs to the whole system; the ones before it belong to its parts.
        if match := re.search(r'(?:ID|AUTHORITY)\["EPSG",\s*"?(\d+)"?\]\s*\]\s*$', str(text or "")):
            return int(match[1])
    return None


def _convention(name: str) -> dict[str, str]:
    uuid, repository, description = _CONVENTIONS[name]
    return {
        "uuid": uuid,
        "name": name,
        "description": description,
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{repository}/refs/tags/v1/schema.json",
        "spec_url": f"https://github.com/zarr-conventions/{repository}/blob/v1/README.md",
    }
