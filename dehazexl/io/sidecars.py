"""Files beside an image: georeference and metadata of photographs, as GDAL has them, and headers of raw pixels."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from dehazexl.io.raster_metadata import carried, mask_of, raster_geo, raster_metadata
from dehazexl.io.raster_read import Raster, gdal, gdal_errors, open_dataset
from dehazexl.io.raster_write import write_raster
from dehazexl.io.source import Guard, Source, file_token, lazy

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


def with_sidecars(image: Image, path: Path, turned: bool = False) -> Image:
    """Return a photograph with what GDAL reads beside it, or behind its end: a place, metadata, nodata and a mask.

    Nothing of it fits a photograph that was `turned` by its EXIF.
    """
    beside = _has_files(path)
    if not beside and not _has_end(path):
        return image
    from rasterio.enums import MaskFlags

    try:
        with gdal(), open_dataset(str(path)) as file:
            geo, nodata, said = raster_geo(file), file.nodatavals[0], raster_metadata(file)
            masked = mask_of(file) == "file" and not any(MaskFlags.nodata in each for each in file.mask_flag_enums)
            turned = turned or (file.height, file.width) != image.levels[0].shape[:2]
            if file.count == image.levels[0].shape[2] and (values := file.tags().get("NODATA_VALUES")):
                said["domains"].setdefault("", {})["NODATA_VALUES"] = values
            elif file.count < image.levels[0].shape[2]:
                nodata, said = None, _with_alpha(said, file.count)
    except gdal_errors():
        return image
    if not beside and not masked:
        return image
    if turned:
        note = "it is turned by its EXIF, so its world file and its mask are not used"
        return replace(image, notes=(*image.notes, note))
    meters = geo.meters if geo else None
    scale, units = (meters, "meter") if meters else (image.scale, image.units)
    assert image.guard is None or isinstance(image.guard, Guard)
    said = {name: said[name] for name in _READ if name in said}
    if plain := said.get("domains", {}).get(""):
        said["domains"][""] = {name: text for name, text in plain.items() if not name.startswith("EXIF_")}
    named = said.get("descriptions", ())
    bands = image.bands
    if len(named) == len(bands):
        bands = tuple(name or band for name, band in zip(named, bands, strict=True))
    metadata = {**image.metadata, **said}
    image = replace(image, geo=geo, nodata=nodata, scale=scale, units=units, bands=bands, metadata=metadata)
    return _with_mask(image, path) if masked else image


def _has_files(path: Path) -> bool:
    """Return whether there are files beside a photograph."""
    suffixes = (".wld", *WORLD[".png"], *WORLD[".jpg"], *WORLD[".jpeg"])
    worlds = [path.with_suffix(suffix) for suffix in (*suffixes, *map(str.upper, suffixes))]
    return any(
        each.exists() for each in (*worlds, *(path.with_name(path.name + each) for each in (".aux.xml", ".msk")))
    )


def _has_end(path: Path) -> bool:
    """Return whether there is something behind the end of a JPEG, as the mask that GDAL writes."""
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return False
    with path.open("rb") as file:
        file.seek(-2, 2)
        return file.read() != b"\xff\xd9"


def _with_mask(image: Image, path: Path) -> Image:
    """Return a photograph with the mask that GDAL reads as a last band."""
    import dask.array as da

    beside = path.with_name(path.name + ".msk")
    files = [path, *([beside] if beside.exists() else [])]
    token, level = file_token(files), image.levels[0]
    raster = Raster(str(path), None, token, level.dtype, masked=True)
    mask = lazy(Source((*level.shape[:2], 1), level.dtype, raster.read_mask), level.shape[:2], f"mask-{token}")
    return replace(
        image,
        levels=(da.concatenate([level, mask], axis=2).rechunk({2: -1}),),
        bands=(*image.bands, "mask"),
        alpha=level.shape[2],
        masked=True,
        fingerprint=token,
        guard=Guard(path, token, partial(file_token, files)),
    )


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
    said = {name: value for name, value in target.metadata.items() if name in _READ}
    if target.masked and driver == "PNG":  # which has the mask as alpha
        said = _with_alpha(said, bands - 1)
    small = replace(
        target, levels=(level,), bands=target.bands[:bands], alpha=None, masked=False, nodata=None, bits=None,
        metadata=said,
    )  # fmt: skip
    for _ in write_raster([(0, 0, np.zeros(level.shape, level.dtype))], folder / "a.tif", small, "none"):
        pass
    with gdal():
        rasterio.shutil.copy(folder / "a.tif", folder / f"a{suffix}", driver=driver, WORLDFILE="YES")
    made = {folder / f"a{suffix}.aux.xml": path.with_name(path.name + ".aux.xml")}
    if (folder / "a.wld").exists():
        made[folder / "a.wld"] = path.with_suffix(WORLD[suffix][0])
    _complete(folder / f"a{suffix}.aux.xml", nodata, bands, target.metadata.get("domains", {}))
    for source, beside in made.items():
        shutil.copyfile(source, beside)
    return list(made.values())


def _complete(path: Path, nodata: float | None, bands: int, domains: Mapping[str, Mapping[str, str]]) -> None:
    """Add domains and a nodata value of each band, which GDAL does not copy, to its metadata; the file may be new."""
    root = ElementTree.parse(path).getroot() if path.exists() else ElementTree.Element("PAMDataset")
    for number in range(1, bands + 1) if nodata is not None else ():
        band = root.find(f"PAMRasterBand[@band='{number}']")
        band = ElementTree.SubElement(root, "PAMRasterBand", band=str(number)) if band is None else band
        ElementTree.SubElement(band, "NoDataValue").text = f"{nodata:.17g}"
    for name in (each for each in domains if each and carried(each) and not each.startswith("json:")):
        domain = ElementTree.SubElement(root, "Metadata", domain=name)
        for key, text in domains[name].items():
            ElementTree.SubElement(domain, "MDI", key=key).text = text
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
