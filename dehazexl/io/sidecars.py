"""Files beside an image: georeference and metadata of photographs, as GDAL has them, and headers of raw pixels."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from dehazexl.io.raster_read import gdal, gdal_errors, open_dataset, raster_geo, raster_metadata
from dehazexl.io.raster_write import write_raster
from dehazexl.io.source import Guard

if TYPE_CHECKING:
    from dehazexl.image.image import Image

WORLD = {".png": (".pgw", ".pngw"), ".jpg": (".jgw", ".jpgw"), ".jpeg": (".jgw", ".jpegw"), ".tif": (".tfw", ".tifw")}
"""Suffixes of world files by the suffix of the image; ``.wld`` belongs to any."""
BESIDE = (".aux.xml", ".ovr", ".msk")
"""Suffixes that follow the name of the image: metadata, overviews and mask of GDAL."""
ENVI = ("", ".img", ".dat", ".bsq", ".bil", ".bip", ".raw", ".bin")
"""Suffixes of raw pixels of ENVI."""
_DRIVERS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_SIDE = 16
_READ = ("domains", "band_tags", "scales", "offsets", "units", "descriptions")
"""Metadata that is read from the files beside a photograph."""


def with_sidecars(image: Image, path: Path) -> Image:
    """Return a photograph with the georeference of its world file or ``.aux.xml``, if it has one that GDAL reads."""
    suffixes = (".wld", *WORLD[".png"], *WORLD[".jpg"], *WORLD[".jpeg"])
    worlds = [path.with_suffix(suffix) for suffix in (*suffixes, *map(str.upper, suffixes))]
    if not any(each.exists() for each in (*worlds, path.with_name(path.name + ".aux.xml"))):
        return image
    try:
        with gdal(), open_dataset(str(path)) as file:
            geo, nodata, said = raster_geo(file), file.nodatavals[0], raster_metadata(file)
            turned = (file.height, file.width) != image.levels[0].shape[:2]
            if file.count == image.levels[0].shape[2] and (values := file.tags().get("NODATA_VALUES")):
                said["domains"].setdefault("", {})["NODATA_VALUES"] = values
            elif file.count < image.levels[0].shape[2]:
                nodata, said = None, _with_alpha(said, file.count)
    except gdal_errors():
        return image
    if turned:
        return replace(image, notes=(*image.notes, "it is turned by its EXIF, so its world file is not used"))
    meters = geo.meters if geo else None
    scale, units = (meters, "meter") if meters else (image.scale, image.units)
    assert image.guard is None or isinstance(image.guard, Guard)
    said = {name: said[name] for name in _READ if name in said}
    named = said.get("descriptions", ())
    bands = image.bands
    if len(named) == len(bands):
        bands = tuple(name or band for name, band in zip(named, bands, strict=True))
    metadata = {**image.metadata, **said}
    return replace(image, geo=geo, nodata=nodata, scale=scale, units=units, bands=bands, metadata=metadata)


def _with_alpha(said: dict[str, Any], count: int) -> dict[str, Any]:
    """Return the metadata of the `count` bands of GDAL with that of alpha: the color of a PNG that is transparent."""
    plain = {"band_tags": {}, "scales": 1.0, "offsets": 0.0, "units": None, "descriptions": None}
    return said | {name: [*said[name], value] for name, value in plain.items() if len(said.get(name, ())) == count}


def sidecars_of(path: Path) -> list[Path]:
    """Return the existing files beside an image that programs read as a part of it."""
    suffix = path.suffix.lower().replace("tiff", "tif")
    worlds = [path.with_suffix(each) for each in WORLD.get(suffix, ())]
    return [each for each in (*(path.with_name(path.name + each) for each in BESIDE), *worlds) if each.is_file()]


def write_sidecars(path: Path, target: Image) -> None:
    """Write georeference, nodata value and metadata of a PNG or JPEG beside it; stale files of any image are removed.

    They are an ``.aux.xml`` as GDAL writes it, and a world file. A JPEG has no nodata value: its pixels are not exact.
    """
    made: list[Path] = []
    if path.suffix.lower() in _DRIVERS and _has_sidecars(target):
        with TemporaryDirectory() as folder:
            made = _made(Path(folder), path, target)
    for each in sidecars_of(path):
        if each not in made:
            each.unlink()


def _has_sidecars(target: Image) -> bool:
    said = target.metadata
    tags = [tags.keys() - {"AREA_OR_POINT"} for tags in (*said.get("domains", {}).values(), *said.get("band_tags", ()))]
    named = any(said.get("descriptions", ()))
    return bool(target.geo) or target.nodata is not None or any(tags) or named or any(n in said for n in _READ[2:5])


def _made(folder: Path, path: Path, target: Image) -> list[Path]:
    """Make the files beside an image: those that GDAL makes for a small one."""
    import dask.array as da
    import rasterio.shutil

    suffix = path.suffix.lower()
    driver = _DRIVERS[suffix]
    bands = target.levels[0].shape[2] - (target.masked and driver == "JPEG")
    level = da.zeros((_SIDE, _SIDE, bands), dtype=target.levels[0].dtype)
    nodata = None if driver == "JPEG" else target.nodata
    small = replace(
        target, levels=(level,), bands=target.bands[:bands], alpha=None, masked=False, nodata=None, bits=None,
        metadata={name: value for name, value in target.metadata.items() if name in _READ},
    )  # fmt: skip
    for _ in write_raster([(0, 0, np.zeros(level.shape, level.dtype))], folder / "a.tif", small, "none"):
        pass
    with gdal():
        rasterio.shutil.copy(folder / "a.tif", folder / f"a{suffix}", driver=driver, WORLDFILE="YES")
    made = {folder / f"a{suffix}.aux.xml": path.with_name(path.name + ".aux.xml")}
    if (folder / "a.wld").exists():
        made[folder / "a.wld"] = path.with_suffix(WORLD[suffix][0])
    _add_nodata(folder / f"a{suffix}.aux.xml", nodata, bands)
    for source, beside in made.items():
        shutil.copyfile(source, beside)
    return list(made.values())


def _add_nodata(path: Path, nodata: float | None, bands: int) -> None:
    """Add a nodata value of each band to a file of GDAL's metadata, which may not exist yet."""
    root = ElementTree.parse(path).getroot() if path.exists() else ElementTree.Element("PAMDataset")
    for number in range(1, bands + 1) if nodata is not None else ():
        band = root.find(f"PAMRasterBand[@band='{number}']")
        band = ElementTree.SubElement(root, "PAMRasterBand", band=str(number)) if band is None else band
        ElementTree.SubElement(band, "NoDataValue").text = f"{nodata:.17g}"
    ElementTree.ElementTree(root).write(path, encoding="utf-8")


def envi_data(path: Path) -> Path | None:
    """Return the raw pixels of an ENVI image, given those or its header; None for any other file."""
    if path.suffix.lower() == ".hdr":
        names = (path.with_suffix(suffix) for suffix in ENVI)
        return next((each for each in names if each.is_file()), None) if _is_envi(path) else None
    headers = (path.with_suffix(".hdr"), path.with_name(path.name + ".hdr"))
    return path if any(header.is_file() and _is_envi(header) for header in headers) else None


def _is_envi(header: Path) -> bool:
    with header.open("rb") as file:
        return file.read(4) == b"ENVI"
