"""What a TIFF says of its image: names and colors of channels, the size of a pixel, and what a writer carries over."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from dehazexl.io.bands import OME_COLORS, RGB_ROLES
from dehazexl.io.photo_metadata import quality_of
from dehazexl.io.source import MAX_METADATA
from dehazexl.io.tiff_tags import description_of

if TYPE_CHECKING:
    import tifffile

KEPT_TAGS = {
    305: "software",
    306: "datetime",
    315: "artist",
    33432: "copyright",
    282: "x_resolution",
    283: "y_resolution",
    296: "resolution_unit",
    34675: "icc_profile",
}
UNITS = {"nm": "nanometer", "µm": "micrometer", "mm": "millimeter", "cm": "centimeter", "m": "meter", "km": "kilometer"}
COMPRESSIONS = {
    1: "none", 5: "lzw", 6: "jpeg", 7: "jpeg", 8: "deflate", 32946: "deflate", 34887: "lerc", 50000: "zstd",
    50001: "webp",
}  # fmt: skip
"""Names of the compressions that are written, by their codes; others, such as JPEG 2000, become deflate."""


def tiff_bands(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, count: int, number: int = 0, plane: int = 0
) -> tuple[list[str | None], list[str | None]]:
    """Read names and roles of the bands from color space and alpha samples, then from the metadata of OME or ImageJ."""
    page = series.keyframe
    names: list[str | None] = [None] * count
    roles: list[str | None] = ["undefined"] * count
    if int(page.photometric) in (2, 6) and count >= 3:
        roles[:3] = RGB_ROLES
    extra = [int(kind) for kind in page.extrasamples][:count]
    for band, kind in enumerate(extra, start=count - len(extra)):
        roles[band] = "alpha" if kind in (1, 2) else "undefined"
    if tif.is_imagej:
        return imagej_bands(tif.imagej_metadata or {}, roles, plane)
    channels = list(parse_xml(tif.ome_metadata).findall(f"{{*}}Image[{number + 1}]/{{*}}Pixels/{{*}}Channel"))
    if len(channels) == count:
        names = [channel.get("Name") for channel in channels]
        roles = [ome_role(channel.get("Color")) or role for channel, role in zip(channels, roles, strict=True)]
    return names, roles


def imagej_bands(
    said: dict[str, Any], roles: list[str | None], plane: int
) -> tuple[list[str | None], list[str | None]]:
    """Read names and roles of the channels of a plane from the labels and the color tables of ImageJ."""
    count = len(roles)
    labels = [str(label).partition("\n")[0].strip() for label in said.get("Labels") or ()]
    labels = labels[plane * count : (plane + 1) * count]
    names: list[str | None] = [label or None for label in labels] if len(labels) == count else [None] * count
    tables = [np.asarray(table) for table in said.get("LUTs") or ()]
    if len(tables) == count and all(table.shape == (3, 256) for table in tables):
        brightest = ["".join(f"{int(value):02X}" for value in table[:, -1]) for table in tables]
        roles = [OME_COLORS.get(color) or role for color, role in zip(brightest, roles, strict=True)]
    return names, roles


def parse_xml(xml: str | None) -> ElementTree.Element:
    """Parse XML metadata; missing or malformed metadata gives an empty element."""
    try:
        return ElementTree.fromstring(xml or "<none/>")
    except ElementTree.ParseError:
        return ElementTree.Element("none")


def ome_role(color: str | None) -> str | None:
    """Return the role of an OME-XML color, a signed integer 0xRRGGBBAA."""
    return OME_COLORS.get(f"{(int(color) & 0xFFFFFFFF) >> 8:06X}") if color else None


def ome_scale(tif: tifffile.TiffFile, number: int = 0) -> tuple[tuple[float, float], str]:
    """Read the size ``(y, x)`` of a pixel and its unit from the OME-XML of an image, counted from 0."""
    pixels = parse_xml(tif.ome_metadata).find(f"{{*}}Image[{number + 1}]/{{*}}Pixels")
    size = {} if pixels is None else pixels.attrib
    unit = size.get("PhysicalSizeXUnit", "µm")
    if "PhysicalSizeX" not in size or "PhysicalSizeY" not in size or size.get("PhysicalSizeYUnit", "µm") != unit:
        return (1.0, 1.0), "pixel"
    return (float(size["PhysicalSizeY"]), float(size["PhysicalSizeX"])), UNITS.get(unit, unit)


def imagej_scale(tif: tifffile.TiffFile) -> tuple[tuple[float, float], str]:
    """Read the size ``(y, x)`` of a pixel and its unit from a file of ImageJ."""
    unit = str((tif.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ")
    unit = {"um": "µm", "μm": "µm", "micron": "µm", "microns": "µm"}.get(unit, unit)
    tags = tif.pages.first.tags
    x, y = (float(np.divide(*tags.valueof(code, (0, 1)))) for code in (282, 283))
    if not unit or unit == "pixel" or not (0 < x < math.inf and 0 < y < math.inf):
        return (1.0, 1.0), "pixel"
    return (1 / y, 1 / x), UNITS.get(unit, unit)


def tiff_metadata(page: tifffile.TiffPage) -> dict[str, Any]:
    """Return the descriptive tags, the resolution, the compression and the container of an image."""
    kept = {name: page.tags[code].value for code, name in KEPT_TAGS.items() if code in page.tags}
    if described := description_of(page):
        kept["description"] = described
    said: dict[str, Any] = {"container": "tiff", "compression": COMPRESSIONS.get(int(page.compression), "deflate")}
    said["compressed"] = (
        said["compression"]
        if page.compression in COMPRESSIONS
        else str(getattr(page.compression, "name", int(page.compression))).lower()
    )
    if int(page.planarconfig) == 2:
        said["planes"] = True
    if page.parent.is_ome:
        said |= {"container": "ome-tiff", "ome_xml": page.parent.ome_metadata or ""}
    if page.parent.is_imagej:
        said |= {"container": "ome-tiff"}
    if said["compression"] == "jpeg" and (quality := jpeg_quality(page)):
        said["quality"] = str(quality)
    return {**kept, **said}


def tiff_bits(page: tifffile.TiffPage) -> int | None:
    """Return the bits of a value, if they are fewer than its dtype has: 12-bit data in uint16."""
    dtype, bits = np.dtype(page.dtype or "O"), int(page.bitspersample)
    return bits if dtype.kind == "u" and bits < 8 * dtype.itemsize else None


def jpeg_quality(page: tifffile.TiffPage) -> int:
    """Return the quality of JPEG tiles by their first table of quantization; 0 if it is not known."""
    data = page.jpegtables or b""
    if not data and page.databytecounts and 0 < page.databytecounts[0] <= MAX_METADATA:
        page.parent.filehandle.seek(page.dataoffsets[0])
        data = page.parent.filehandle.read(page.databytecounts[0])
    start = data.find(b"\xff\xdb")
    if start < 0 or len(data) < start + 69 or data[start + 4]:
        return 0
    return quality_of(np.frombuffer(data, np.uint8, 64, start + 5))
