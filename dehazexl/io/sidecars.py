"""Files beside an image: world files and metadata of photographs, and headers of raw pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dehazexl.io.raster_read import gdal, open_dataset, raster_geo
from dehazexl.io.source import Guard

if TYPE_CHECKING:
    from pathlib import Path

    from dehazexl.image.image import Image

WORLD = (".wld", ".pgw", ".jgw", ".pngw", ".jpgw", ".jpegw")


def with_sidecars(image: Image, path: Path) -> Image:
    """Return a photograph with the georeference of its world file or ``.aux.xml``, if it has one that GDAL reads."""
    from rasterio.errors import RasterioError

    worlds = [path.with_suffix(suffix) for suffix in (*WORLD, *map(str.upper, WORLD))]
    if not any(each.exists() for each in (*worlds, path.with_name(path.name + ".aux.xml"))):
        return image
    try:
        with gdal(), open_dataset(str(path)) as file:
            geo, nodata = raster_geo(file), file.nodatavals[0]
            turned = (file.height, file.width) != image.levels[0].shape[:2]
    except RasterioError:
        return image
    if turned:
        return replace(image, notes=(*image.notes, "it is turned by its EXIF, so its world file is not used"))
    meters = geo.meters if geo else None
    scale, units = (meters, "meter") if meters else (image.scale, image.units)
    assert image.guard is None or isinstance(image.guard, Guard)
    return replace(image, geo=geo, nodata=nodata, scale=scale, units=units)


def envi_data(path: Path) -> Path | None:
    """Return the raw pixels of an ENVI image, given those or its header; None for any other file."""
    if path.suffix.lower() == ".hdr":
        names = [path.with_suffix(""), *(path.with_suffix(s) for s in (".img", ".dat", ".bsq", ".bil", ".bip", ".raw"))]
        return next((each for each in names if each.is_file()), None) if _is_envi(path) else None
    headers = (path.with_suffix(".hdr"), path.with_name(path.name + ".hdr"))
    return path if any(header.is_file() and _is_envi(header) for header in headers) else None


def _is_envi(header: Path) -> bool:
    with header.open("rb") as file:
        return file.read(4) == b"ENVI"
