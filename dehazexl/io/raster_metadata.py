"""What GDAL says of a data set: names and colors of bands, its place, its mask, and what a writer carries over."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from dehazexl.image.georeference import ControlPoint, Geo
from dehazexl.io.bands import SENSOR_NAMES

if TYPE_CHECKING:
    import rasterio

DERIVED = ("IMAGE_STRUCTURE", "DERIVED_SUBDATASETS", "SUBDATASETS", "RPC", "COLOR_PROFILE", "EXIF", "TIFF", "FILE_INFO")
"""Domains of GDAL that describe the file, or that are carried in another form."""
DERIVED_XML = ("xml:XMP", "xml:ESRI", "xml:VRT", "xml:gml.root-instance")
"""The same of domains of XML; others cannot be written by rasterio."""


def mask_of(file: rasterio.DatasetReader) -> str | None:
    """Return the mask that is no band and not a nodata value: of the "file", of its "bands", or None."""
    from rasterio.enums import MaskFlags

    flags = [set(each) for each in file.mask_flag_enums]
    if all(MaskFlags.per_dataset in each and MaskFlags.alpha not in each for each in flags):
        return "file"
    nodata = {str(value) for value in file.nodatavals}
    if any(not each for each in flags) or (len(nodata) > 1 and any(MaskFlags.nodata in each for each in flags)):
        return "bands"
    return None


def raster_notes(file: rasterio.DatasetReader) -> Iterator[str]:
    """Yield a line about each thing that is not opened as it is in the file."""
    if mask_of(file) == "bands":
        yield "its bands have masks or nodata values of their own: a pixel is valid where all bands are"
    if file.gcps[0] and not file.transform.is_identity:
        used = "transform is" if file.crs else "points, which have a coordinate system, are"
        yield f"it has a transform and ground control points: the {used} used alone"
    if file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
        yield "its CMYK colors are read as red, green and blue"


def raster_bands(file: rasterio.DatasetReader) -> tuple[list[str | None], list[str | None]]:
    """Return names and roles of the bands."""
    names = [text or stac_name(file, band) for band, text in enumerate(file.descriptions, 1)]
    if file.driver == "VRT" and not any(names):
        names = source_names(file)
    roles: list[str | None] = [color.name for color in file.colorinterp]
    return names, roles


def source_names(file: rasterio.DatasetReader) -> list[str | None]:
    """Return the names of the files that a VRT stacks, one for each band; None for each band of any other VRT."""
    sources = (file.tags(band, ns="vrt_sources").get("source_0", "") for band in file.indexes)
    found = [re.search(r"<SourceFilename[^>]*>([^<]+)<", source) for source in sources]
    stems = [PurePosixPath(unescape(each[1])).stem if each else None for each in found]
    return stems if len(set(stems)) == file.count > 1 else [None] * file.count


def stac_name(file: rasterio.DatasetReader, band: int) -> str | None:
    """Return the name of a band in its metadata, as STAC, Google Earth Engine and others write it."""
    tags = {name.lower(): text for name, text in file.tags(band).items()}
    found = (tags.get(name) for name in ("eo:common_name", "common_name", "band_name", "bandname", "name", "long_name"))
    return next((text for text in found if text), None)


def band_wavelengths(file: rasterio.DatasetReader) -> list[float | None]:
    """Return the central wavelength of each band in micrometers, where the metadata has it."""
    return [wavelength_of({**file.tags(band, ns="IMAGERY"), **file.tags(band)}, file.tags()) for band in file.indexes]


def wavelength_of(tags: dict[str, str], common: dict[str, str]) -> float | None:
    """Return the wavelength of a band in micrometers, in the terms of ENVI, GDAL and STAC; None if there is none."""
    lowered = {name.lower(): text for name, text in tags.items()}
    unit = str(lowered.get("wavelength_units") or common.get("wavelength_units") or "").lower()
    for name in ("central_wavelength_um", "eo:center_wavelength", "center_wavelength", "wavelength"):
        found = re.match(r"\s*([\d.]+)", lowered.get(name, ""))
        if found and (value := float(found[1])) > 0:
            return value / 1000 if "nano" in unit or value > 100 else value
    return None


def sensor_text(file: rasterio.DatasetReader) -> str:
    """Return the metadata that may name a satellite, and the name of the file."""
    tags = {**file.tags(), **file.tags(ns="IMAGERY")}
    said = (text for name, text in tags.items() if any(word in name.upper() for word in SENSOR_NAMES))
    return " ".join((*said, PurePosixPath(file.name).name))


def raster_geo(file: rasterio.DatasetReader) -> Geo | None:
    """Return the georeference of a data set: of a transform and control points, those with a coordinate system."""
    gcps, gcps_crs = file.gcps
    affine: Any = None if file.transform.is_identity else tuple(file.transform)[:6]
    if gcps and affine is not None:
        gcps, affine = ([], affine) if file.crs else (gcps, None)
    crs = (gcps and gcps_crs) or file.crs
    geo = Geo(
        affine=affine,
        wkt="" if _is_placeholder(crs) else crs.to_wkt(version="WKT2_2019"),
        gcps=tuple(ControlPoint(p.row, p.col, p.x, p.y, p.z or 0.0) for p in gcps),
        rpcs=dict(file.tags(ns="RPC")),
    )
    return geo or None


def _is_placeholder(crs: Any) -> bool:
    """Return whether a coordinate system is missing, or the one that GDAL makes up for files that give an axis only."""
    return not crs or crs.to_wkt().startswith('LOCAL_CS["unnamed"')


def raster_bits(file: rasterio.DatasetReader) -> int | None:
    """Return the bits of a value, if they are fewer than its dtype has: 12-bit data in uint16."""
    bits = file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", "")
    return int(bits) if bits.isdecimal() else None


def raster_metadata(file: rasterio.DatasetReader) -> dict[str, Any]:
    """Return what a writer carries over: GDAL's domains, descriptions, scales, colors, profile, and the container."""
    structure = file.tags(ns="IMAGE_STRUCTURE")
    namespaces = file.tag_namespaces()
    domains = {ns: file.tags(ns=ns) for ns in ("", *namespaces) if carried(ns)}
    if mask_of(file) == "file":
        domains[""].pop("NODATA_VALUES", None)  # the mask tells the same, of any number of bands
    profile = file.tags(ns="COLOR_PROFILE").get("SOURCE_ICC_PROFILE", "")
    xmp = file.tags(ns="xml:XMP").get("xml:XMP", "").removeprefix("xml:XMP=")
    said: dict[str, Any] = {
        "domains": {ns: tags for ns, tags in domains.items() if tags},
        "band_tags": [_without_statistics(file.tags(band)) for band in file.indexes],
        "descriptions": list(file.descriptions),
        "colorinterp": [color.name for color in file.colorinterp],
        "icc_profile": base64.b64decode(profile),
        "xmp": xmp.encode(),
        "left_out": [ns for ns in namespaces if ns.startswith("xml:") and not ns.startswith(DERIVED_XML)],
    }
    if any(scale != 1 for scale in file.scales) or any(file.offsets):
        said |= {"scales": list(file.scales), "offsets": list(file.offsets)}
    if any(file.units):
        said["units"] = list(file.units)
    if file.driver == "GTiff":
        rows, cols = file.block_shapes[0]
        tiled = cols < file.width or rows == cols
        said |= {
            "container": "cog" if structure.get("LAYOUT") == "COG" or (tiled and file.overviews(1)) else "tiff",
            "compression": _compression(file, structure),
            "compressed": structure.get("COMPRESSION", "NONE").lower(),
            "planes": structure.get("INTERLEAVE") == "BAND" and file.count > 1,
            "blocksize": cols if tiled else None,
            "quality": structure.get("JPEG_QUALITY") or structure.get("WEBP_LEVEL"),
            "lossless": structure.get("COMPRESSION_REVERSIBILITY", "").startswith("LOSSLESS"),
        }
    return {name: value for name, value in said.items() if value}


def carried(namespace: str) -> bool:
    """Return whether a domain of metadata is carried over as it is."""
    return namespace not in DERIVED and not namespace.startswith("xml:")


def _without_statistics(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags of a band without the statistics of its old pixels."""
    return {name: text for name, text in tags.items() if not name.startswith("STATISTICS_")}


def _compression(file: rasterio.DatasetReader, structure: dict[str, str]) -> str:
    """Return the compression of a TIFF in the words of `raster_write.Compression`."""
    name = structure.get("COMPRESSION", "NONE").lower()
    known: Sequence[str] = ("jpeg", "webp", "lerc", "lzw", "deflate", "zstd", "none")
    return next((each for each in known if each in name), "deflate")
