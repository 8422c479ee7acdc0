"""TIFF: GeoTIFF, COG, OME-TIFF, with overviews and masks."""

from __future__ import annotations

import logging
import math
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.sax.saxutils import unescape

import numpy as np

from dehazexl.image.georeference import GEO_TAGS, Geo
from dehazexl.image.image import Image
from dehazexl.io.bands import OME_COLORS, RGB_ROLES, describe_bands
from dehazexl.io.source import (
    CHUNK,
    Source,
    as_number,
    axes_by_shape,
    check_bands,
    check_pixels,
    file_token,
    grouped,
    lazy,
    named,
    short_name,
    strided,
)
from dehazexl.io.tiff_pages import Mapped, Plane, check_segments, read_planes, tiff_path

if TYPE_CHECKING:
    import tifffile
    from numpy.typing import NDArray

KEPT_TAGS = {
    270: "description",
    305: "software",
    306: "datetime",
    315: "artist",
    33432: "copyright",
    282: "x_resolution",
    283: "y_resolution",
    296: "resolution_unit",
    34675: "icc_profile",
}
ORIENTATION = 274
MIRRORED, UPSIDE_DOWN, LYING = (2, 3, 6, 7), (3, 4, 7, 8), (5, 6, 7, 8)
"""Values of the tag Orientation: a picture is upright once rows and columns have changed places (lying), then the order
of rows (upside down) and of columns (mirrored) is the other way round."""
UNITS = {"nm": "nanometer", "µm": "micrometer", "mm": "millimeter", "cm": "centimeter", "m": "meter", "km": "kilometer"}
COLOR_SPACES = {0: "white-is-zero", 3: "palette", 4: "mask", 5: "CMYK", 8: "CIELab", 32803: "raw color filter array"}
QUIET = logging.NullHandler()
STRIP_ROWS = 256  # rows: the least height of a chunk of strips, the side of a network tile
STRIP_AREA = 2048 * 2048  # pixels: about what a chunk of whole rows holds, where columns cannot be read apart


def open_tiff(path: Path) -> Image:
    """Describe a TIFF: its first image, with the overviews and the mask that go with it."""
    import tifffile

    # What tifffile notes of a damaged file, our error says; handled, it does not go to stderr as well.
    logging.getLogger("tifffile").addHandler(QUIET)
    with named(path, "TIFF"), tifffile.TiffFile(path) as tif:
        check_directories(tif, path)
        return describe_tiff(tif, path)


def check_directories(tif: tifffile.TiffFile, path: Path) -> None:
    """Refuse a file whose list of pages runs past its end; tifffile would drop those pages silently."""
    form, file = tif.tiff, tif.filehandle
    cut = f"{path} is cut short: {{}} lies past the end of its {file.size} bytes; copy or download it again"
    if not len(tif.pages):
        raise ValueError(cut.format("its list of tiles"))
    offset, seen = tif.pages.first.offset, set[int]()
    while offset and offset not in seen:
        seen.add(offset)
        if offset + form.tagnosize > file.size:
            raise ValueError(cut.format(f"page {len(seen) - 1}"))
        file.seek(offset)
        (tags,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
        file.seek(offset + form.tagnosize + tags * form.tagsize)
        link = file.read(form.offsetsize)
        offset = struct.unpack(form.offsetformat, link)[0] if len(link) == form.offsetsize else file.size
    for number, overview in enumerate(tif.pages.first.subifds or ()):
        if overview > file.size:
            raise ValueError(cut.format(f"overview {number + 1}"))


def describe_tiff(tif: tifffile.TiffFile, path: Path) -> Image:
    """Gather what an open TIFF says of its first image."""
    series = tif.series[0]
    page = series.keyframe
    check_colors(page, path)
    check_pixels(series.shape, np.dtype(series.dtype or "O"), str(path))
    axes = tiff_axes(series, path)
    opened = [tiff_source(level, axes, path) for level in tiff_levels(tif)]
    count = opened[0][0].shape[2]
    names, roles = tiff_bands(tif, count)
    check_bands(count - ("alpha" in roles), str(path))
    mask = None if "alpha" in roles else tiff_mask(tif, path)
    if mask is not None and opened[0][0].shape[:2] in mask:
        opened = [(with_mask(each, mask[each.shape[:2]]), chunk) for each, chunk in opened if each.shape[:2] in mask]
        names, roles = [*names, "mask"], [*roles, "alpha"]
    token = file_token([tiff_path(each) for level in tiff_levels(tif) for each in level.pages if each is not None])
    bands, rgb, alpha = describe_bands(names, roles)
    geo = Geo.from_tags({code: page.tags[code].value for code in GEO_TAGS if code in page.tags})
    # A picture with a place on the ground is taken as it lies in the file, as GDAL does.
    orientation = 1 if geo is not None else int(page.tags.valueof(ORIENTATION) or 1)
    opened = [turned(each, chunk, orientation) for each, chunk in opened]
    scale, units = ome_scale(tif)
    if units == "pixel" and geo is not None and geo.meters is not None:
        scale, units = geo.meters, "meter"
    return Image(
        levels=tuple(lazy(each, chunk, f"tiff-{token}-{number}") for number, (each, chunk) in enumerate(opened)),
        name=short_name(path),
        bands=bands,
        rgb=rgb,
        alpha=alpha,
        nodata=as_number(page.tags.valueof(42113)),
        scale=scale,
        units=units,
        geo=geo,
        path=path,
        fingerprint=token,
        metadata=tiff_metadata(page),
    )


def check_colors(page: tifffile.TiffPage, path: Path) -> None:
    """Refuse color spaces that are neither gray nor RGB once decoded."""
    import tifffile

    if 50706 in page.tags:
        raise ValueError(f"{path} is a raw picture (DNG), which opens as its thumbnail: develop it to TIFF first")
    # GDAL's palettes may say that they are gray.
    space = 3 if 320 in page.tags and page.samplesperpixel == 1 else int(page.photometric)
    if space in COLOR_SPACES:
        remedy = f"gdal_translate {'-expand rgb ' if space == 3 else ''}{path.name} rgb.tif"
        raise ValueError(f"{path} has {COLOR_SPACES[space]} colors: make it gray or RGB first, e.g. {remedy}")
    if space == 6 and page.compression not in tifffile.TIFF.IMAGE_COMPRESSIONS:
        raise ValueError(f"{path} has YCbCr colors without JPEG compression: save it as RGB first")


def tiff_axes(series: tifffile.TiffPageSeries, path: Path) -> str:
    """Name a series' axes by one letter each: y, x, c, or - for one of length 1."""
    sized = list(zip(series.axes, series.shape, strict=True))
    if "Q" in series.axes:
        axes = axes_by_shape(series.shape, str(path))
        if series.dataoffset is not None or [a for a in axes if a != "-"][-2:] == ["y", "x"]:
            return axes
    further = [f"{axis} ({length})" for axis, length in sized if length > 1 and axis not in "YXSC"]
    if further or sum(length > 1 for axis, length in sized if axis in "SC") > 1:
        named = ", ".join(f"{axis} ({length})" for axis, length in sized)
        raise ValueError(f"{path} has the axes {named}: save one plane, (y, x) or (y, x, bands), to its own file")
    letters = ["-" if length == 1 and axis not in "YX" else axis.lower() for axis, length in sized]
    return "".join(letters).replace("s", "c")


def tiff_levels(tif: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """List the first image and its overviews, finest first, each smaller than the one before."""
    first = tif.series[0]
    # tifffile pairs only overviews that follow one factor; GDAL writes any, each flagged as reduced.
    loose = [
        level
        for series in tif.series[1:]
        for level in series.levels
        if int(level.keyframe.subfiletype) == 1 and tiff_kind(level) == tiff_kind(first)
    ]
    levels = [first]
    for level in sorted([*first.levels[1:], *loose], key=lambda level: -math.prod(level.shape)):
        if math.prod(level.shape) < math.prod(levels[-1].shape):
            levels.append(level)
    return levels


def tiff_kind(series: tifffile.TiffPageSeries) -> tuple[str, str, int]:
    """Tell what a picture and its overviews have in common."""
    return series.axes, str(series.dtype), series.keyframe.samplesperpixel


def tiff_source(series: tifffile.TiffPageSeries, axes: str, path: Path) -> tuple[Source, tuple[int, int]]:
    """Choose how a level is read: mapped if its pixels lie bare in the file, else tile by tile or strip by strip."""
    if series.dataoffset is not None:
        dtype = np.dtype(series.dtype).newbyteorder(series.keyframe.parent.byteorder)
        mapped = Mapped(tiff_path(series.keyframe), dtype, series.shape, series.dataoffset)
        mapped.check()
        return strided(mapped, axes), (CHUNK, CHUNK)
    pages = [page for page in series.pages if page is not None]
    if len(pages) < len(series.pages):
        raise ValueError(f"{path} has {len(pages)} of its {len(series.pages)} pages: copy or download all its parts")
    for page in pages:
        check_segments(page, series.keyframe)
    planes = tuple(Plane(tiff_path(page), page.offset) for page in pages)
    lengths = dict(zip(axes, series.shape, strict=True))
    shape = (lengths["y"], lengths["x"], lengths.get("c", 1))
    page = series.keyframe
    return Source(shape, np.dtype(series.dtype).newbyteorder("="), partial(read_planes, planes)), tiff_chunk(page)


def tiff_chunk(page: tifffile.TiffPage) -> tuple[int, int]:
    """Group tiles into chunks, and strips into chunks of whole rows."""
    if page.is_tiled:
        return grouped(page.tilelength), grouped(page.tilewidth)
    rows = max(STRIP_ROWS, min(CHUNK, STRIP_AREA // page.imagewidth))
    return math.ceil(rows / page.rowsperstrip) * page.rowsperstrip, page.imagewidth


def tiff_mask(tif: tifffile.TiffFile, path: Path) -> dict[tuple[int, ...], Source] | None:
    """Find GDAL's internal mask, one source for each size it has; 0 where there is no picture."""
    for series in tif.series[1:]:
        if int(series.keyframe.subfiletype) & 4 and series.axes == "YX":
            levels = (tiff_source(level, "yx", path)[0] for level in series.levels)
            return {level.shape[:2]: level for level in levels}
    return None


def with_mask(source: Source, mask: Source) -> Source:
    """Append a mask to a picture as its last band."""
    return Source((*source.shape[:2], source.shape[2] + 1), source.dtype, partial(read_masked, source, mask))


def read_masked(source: Source, mask: Source, rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window of a picture and its mask; the mask is opaque at the dtype's white."""
    opaque = np.iinfo(source.dtype).max if source.dtype.kind == "u" else 1
    band = (mask.read(rows, cols) != 0).astype(source.dtype) * source.dtype.type(opaque)
    return np.concatenate([source.read(rows, cols), band], axis=-1)


def turned(source: Source, chunk: tuple[int, int], orientation: int) -> tuple[Source, tuple[int, int]]:
    """Turn a picture upright, see `LYING`."""
    if orientation not in {*MIRRORED, *UPSIDE_DOWN, *LYING}:
        return source, chunk
    height, width, bands = source.shape
    shape = (width, height, bands) if orientation in LYING else source.shape
    upright = Source(shape, source.dtype, partial(read_turned, source, orientation))
    return upright, chunk[::-1] if orientation in LYING else chunk


def read_turned(source: Source, orientation: int, rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window of an upright picture from one that is not."""
    height, width = source.shape[:2] if orientation not in LYING else source.shape[1::-1]
    if orientation in UPSIDE_DOWN:
        rows = slice(height - rows.stop, height - rows.start)
    if orientation in MIRRORED:
        cols = slice(width - cols.stop, width - cols.start)
    block = source.read(cols, rows).swapaxes(0, 1) if orientation in LYING else source.read(rows, cols)
    return block[:: -1 if orientation in UPSIDE_DOWN else 1, :: -1 if orientation in MIRRORED else 1]


def tiff_bands(tif: tifffile.TiffFile, count: int) -> tuple[list[str | None], list[str | None]]:
    """Read the bands' names and roles: color space, alpha samples, then GDAL's or OME's own words."""
    page = tif.series[0].keyframe
    names: list[str | None] = [None] * count
    roles: list[str | None] = [None] * count
    if int(page.photometric) in (2, 6) and count >= 3:
        roles[:3] = RGB_ROLES
    extra = [int(kind) for kind in page.extrasamples][:count]
    for band, kind in enumerate(extra, start=count - len(extra)):
        roles[band] = "alpha" if kind in (1, 2) else "undefined"
    for item in parsed(page.tags.valueof(42112)).iter("Item"):
        band, text = int(item.get("sample", -1)), item.text
        if 0 <= band < count and text and item.get("role") == "description":
            names[band] = unescape(text)  # GDAL escapes what is escaped in XML already
        if 0 <= band < count and text and item.get("role") == "colorinterp":
            roles[band] = text.lower()
    channels = list(parsed(tif.ome_metadata).findall("{*}Image[1]/{*}Pixels/{*}Channel"))
    if len(channels) == count:
        names = [channel.get("Name") for channel in channels]
        roles = [ome_role(channel.get("Color")) or role for channel, role in zip(channels, roles, strict=True)]
    return names, roles


def parsed(xml: str | None) -> ElementTree.Element:
    """Parse metadata that is XML; none, or one that is broken, is empty."""
    try:
        return ElementTree.fromstring(xml or "<none/>")
    except ElementTree.ParseError:
        return ElementTree.Element("none")


def ome_role(color: str | None) -> str | None:
    """Read an OME-XML color, a signed integer 0xRRGGBBAA."""
    return OME_COLORS.get(f"{(int(color) & 0xFFFFFFFF) >> 8:06X}") if color else None


def ome_scale(tif: tifffile.TiffFile) -> tuple[tuple[float, float], str]:
    """Read OME-XML's pixel size."""
    pixels = parsed(tif.ome_metadata).find("{*}Image[1]/{*}Pixels")
    size = {} if pixels is None else pixels.attrib
    unit = size.get("PhysicalSizeXUnit", "µm")
    if "PhysicalSizeX" not in size or "PhysicalSizeY" not in size or size.get("PhysicalSizeYUnit", "µm") != unit:
        return (1.0, 1.0), "pixel"
    return (float(size["PhysicalSizeY"]), float(size["PhysicalSizeX"])), UNITS.get(unit, unit)


def tiff_metadata(page: tifffile.TiffPage) -> dict[str, Any]:
    """Keep the tags that people wrote, and the resolution."""
    kept = {name: page.tags[code].value for code, name in KEPT_TAGS.items() if code in page.tags}
    if page.is_ome or page.is_shaped or page.is_imagej:
        kept.pop("description", None)
    # Scale, offset, unit, wavelengths...: what GDAL knows beside names and colors, but no statistics of old pixels.
    items = [
        ElementTree.tostring(item, encoding="unicode").strip()
        for item in parsed(page.tags.valueof(42112)).iter("Item")
        if item.get("role") not in ("description", "colorinterp") and not item.get("name", "").startswith("STATISTICS_")
    ]
    return kept | ({"gdal_items": "".join(items)} if items else {})
