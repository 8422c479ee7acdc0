"""Reader of TIFF files (GeoTIFF, COG, OME-TIFF) with overviews and masks."""

from __future__ import annotations

import logging
import math
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
    Guard,
    Source,
    as_number,
    axes_by_shape,
    check_bands,
    check_pixels,
    chunk_length,
    file_token,
    lazy,
    report_damage,
    short_name,
    strided,
)
from dehazexl.io.tiff_pages import Mapped, Plane, check_segments, read_planes, segment_sides, tiff_path
from dehazexl.io.tiff_scan import check_companions, scan_directories

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
MIRRORED, UPSIDE_DOWN, TRANSPOSED = (2, 3, 6, 7), (3, 4, 7, 8), (5, 6, 7, 8)
"""Values of the tag Orientation. An image becomes upright by swapping rows and columns (transposed), then reversing the
order of rows (upside down) and of columns (mirrored)."""
UNITS = {"nm": "nanometer", "µm": "micrometer", "mm": "millimeter", "cm": "centimeter", "m": "meter", "km": "kilometer"}
COLOR_SPACES = {0: "white-is-zero", 3: "palette", 4: "mask", 5: "CMYK", 8: "CIELab", 32803: "raw color filter array"}
QUIET = logging.NullHandler()
STRIP_ROWS = 256  # rows of a chunk of strips at least: the side of a network tile
STRIP_AREA = 2048 * 2048  # pixels in a chunk of whole rows, approximately, where columns cannot be read separately


def open_tiff(path: Path) -> Image:
    """Open the first image of a TIFF with its overviews and its mask.

    Raises
    ------
    ValueError
        If the file is damaged, truncated or not safe to read, or its axes, colors or dtype are not supported.
    """
    import tifffile

    # Errors of a damaged file are raised; a handler keeps the same notes of tifffile from appearing on stderr.
    logging.getLogger("tifffile").addHandler(QUIET)
    with report_damage(path, "TIFF"):
        scan_directories(path)
        with tifffile.TiffFile(path) as tif:
            if not len(tif.pages):
                raise ValueError(f"{path} is cut short: its list of tiles is missing; copy or download it again")
            check_companions(path, tif.ome_metadata)
            return describe_tiff(tif, path)


def describe_tiff(tif: tifffile.TiffFile, path: Path) -> Image:
    """Describe the first image of an open TIFF."""
    series = tif.series[0]
    page = series.keyframe
    check_colors(page, path)
    check_pixels(series.shape, np.dtype(series.dtype or "O"), str(path))
    axes = tiff_axes(series, path)
    sources = [tiff_source(level, axes, path) for level in tiff_levels(tif)]
    count = sources[0][0].shape[2]
    names, roles = tiff_bands(tif, count)
    check_bands(count - ("alpha" in roles), str(path))
    mask = None if "alpha" in roles else tiff_mask(tif, path)
    if mask is not None and sources[0][0].shape[:2] in mask:
        sources = [
            (with_mask(source, mask[source.shape[:2]]), chunk) for source, chunk in sources if source.shape[:2] in mask
        ]
        names, roles = [*names, "mask"], [*roles, "alpha"]
    files = sorted({tiff_path(part) for level in tiff_levels(tif) for part in level.pages if part is not None})
    token = file_token(files)
    bands, rgb, alpha = describe_bands(names, roles)
    geo = Geo.from_tags({code: page.tags[code].value for code in GEO_TAGS if code in page.tags})
    # The orientation of a georeferenced image is ignored, as in GDAL.
    orientation = 1 if geo is not None else int(page.tags.valueof(ORIENTATION) or 1)
    sources = [apply_orientation(source, chunk, orientation) for source, chunk in sources]
    scale, units = ome_scale(tif)
    if units == "pixel" and geo is not None and geo.meters is not None:
        scale, units = geo.meters, "meter"
    return Image(
        levels=tuple(lazy(source, chunk, f"tiff-{token}-{number}") for number, (source, chunk) in enumerate(sources)),
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
        guard=Guard(path, token, partial(file_token, files)),
        metadata=tiff_metadata(page),
    )


def check_colors(page: tifffile.TiffPage, path: Path) -> None:
    """Raise ValueError for color spaces that are not decoded to gray or RGB."""
    import tifffile

    if 50706 in page.tags:
        raise ValueError(
            f"{path} is a raw image (DNG), of which only the thumbnail could be opened: develop it to TIFF first"
        )
    # Palettes written by GDAL can be labeled as gray.
    space = 3 if 320 in page.tags and page.samplesperpixel == 1 else int(page.photometric)
    if space in COLOR_SPACES:
        remedy = f"gdal_translate {'-expand rgb ' if space == 3 else ''}{path.name} rgb.tif"
        raise ValueError(f"{path} has {COLOR_SPACES[space]} colors: make it gray or RGB first, e.g. {remedy}")
    if space == 6 and page.compression not in tifffile.TIFF.IMAGE_COMPRESSIONS:
        raise ValueError(f"{path} has YCbCr colors without JPEG compression: save it as RGB first")


def tiff_axes(series: tifffile.TiffPageSeries, path: Path) -> str:
    """Return one letter for each axis of a series: y, x, c, or - for an axis of length 1."""
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
    """Return the first image and its overviews, finest first, each smaller than the one before."""
    first = tif.series[0]
    # tifffile only groups overviews with a constant factor; those of GDAL can have any size, with a flag.
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
    """Return the properties that an image shares with its overviews: axes, dtype and samples per pixel."""
    return series.axes, str(series.dtype), series.keyframe.samplesperpixel


def tiff_source(series: tifffile.TiffPageSeries, axes: str, path: Path) -> tuple[Source, tuple[int, int]]:
    """Return the source of a level, memory-mapped if its pixels are uncompressed and contiguous.

    Parameters
    ----------
    series
        The level.
    axes
        One letter for each axis, see `tiff_axes`.
    path
        The file, for messages.

    Returns
    -------
    source : Source
        Pixels ``(y, x, c)``, read on demand.
    chunk : tuple of int
        Rows and columns of a chunk.

    Raises
    ------
    ValueError
        If the file is truncated, or pages are missing.
    """
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
    """Return rows and columns of a chunk: several tiles, or strips of whole rows."""
    if page.is_tiled:
        return chunk_length(page.tilelength), chunk_length(page.tilewidth)
    rows, strip = max(STRIP_ROWS, min(CHUNK, STRIP_AREA // page.imagewidth)), segment_sides(page)[0]
    return math.ceil(rows / strip) * strip, page.imagewidth


def tiff_mask(tif: tifffile.TiffFile, path: Path) -> dict[tuple[int, ...], Source] | None:
    """Return the internal mask written by GDAL as a source for each size, 0 where there is no image; or None."""
    for series in tif.series[1:]:
        if int(series.keyframe.subfiletype) & 4 and series.axes == "YX":
            levels = (tiff_source(level, "yx", path)[0] for level in series.levels)
            return {level.shape[:2]: level for level in levels}
    return None


def with_mask(source: Source, mask: Source) -> Source:
    """Append a mask ``(y, x, 1)`` to an image as its last band."""
    return Source((*source.shape[:2], source.shape[2] + 1), source.dtype, partial(read_masked, source, mask))


def read_masked(source: Source, mask: Source, rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window of an image and its mask, which is scaled to the white of the dtype."""
    opaque = np.iinfo(source.dtype).max if source.dtype.kind == "u" else 1
    band = (mask.read(rows, cols) != 0).astype(source.dtype) * source.dtype.type(opaque)
    return np.concatenate([source.read(rows, cols), band], axis=-1)


def apply_orientation(source: Source, chunk: tuple[int, int], orientation: int) -> tuple[Source, tuple[int, int]]:
    """Return the source and chunk of an image in upright orientation, see `TRANSPOSED`."""
    if orientation not in {*MIRRORED, *UPSIDE_DOWN, *TRANSPOSED}:
        return source, chunk
    height, width, bands = source.shape
    shape = (width, height, bands) if orientation in TRANSPOSED else source.shape
    upright = Source(shape, source.dtype, partial(read_upright, source, orientation))
    return upright, chunk[::-1] if orientation in TRANSPOSED else chunk


def read_upright(source: Source, orientation: int, rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window of the upright image from a source in another orientation."""
    height, width = source.shape[:2] if orientation not in TRANSPOSED else source.shape[1::-1]
    if orientation in UPSIDE_DOWN:
        rows = slice(height - rows.stop, height - rows.start)
    if orientation in MIRRORED:
        cols = slice(width - cols.stop, width - cols.start)
    block = source.read(cols, rows).swapaxes(0, 1) if orientation in TRANSPOSED else source.read(rows, cols)
    return block[:: -1 if orientation in UPSIDE_DOWN else 1, :: -1 if orientation in MIRRORED else 1]


def tiff_bands(tif: tifffile.TiffFile, count: int) -> tuple[list[str | None], list[str | None]]:
    """Read names and roles of the bands from color space and alpha samples, then from the metadata of GDAL or OME."""
    page = tif.series[0].keyframe
    names: list[str | None] = [None] * count
    roles: list[str | None] = [None] * count
    if int(page.photometric) in (2, 6) and count >= 3:
        roles[:3] = RGB_ROLES
    extra = [int(kind) for kind in page.extrasamples][:count]
    for band, kind in enumerate(extra, start=count - len(extra)):
        roles[band] = "alpha" if kind in (1, 2) else "undefined"
    for item in parse_xml(page.tags.valueof(42112)).iter("Item"):
        band, text = int(item.get("sample", -1)), item.text
        if 0 <= band < count and text and item.get("role") == "description":
            names[band] = unescape(text)  # GDAL escapes the text before XML escapes it again
        if 0 <= band < count and text and item.get("role") == "colorinterp":
            roles[band] = text.lower()
    channels = list(parse_xml(tif.ome_metadata).findall("{*}Image[1]/{*}Pixels/{*}Channel"))
    if len(channels) == count:
        names = [channel.get("Name") for channel in channels]
        roles = [ome_role(channel.get("Color")) or role for channel, role in zip(channels, roles, strict=True)]
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


def ome_scale(tif: tifffile.TiffFile) -> tuple[tuple[float, float], str]:
    """Read the size ``(y, x)`` of a pixel and its unit from OME-XML."""
    pixels = parse_xml(tif.ome_metadata).find("{*}Image[1]/{*}Pixels")
    size = {} if pixels is None else pixels.attrib
    unit = size.get("PhysicalSizeXUnit", "µm")
    if "PhysicalSizeX" not in size or "PhysicalSizeY" not in size or size.get("PhysicalSizeYUnit", "µm") != unit:
        return (1.0, 1.0), "pixel"
    return (float(size["PhysicalSizeY"]), float(size["PhysicalSizeX"])), UNITS.get(unit, unit)


def tiff_metadata(page: tifffile.TiffPage) -> dict[str, Any]:
    """Return the descriptive tags and the resolution of a page."""
    kept = {name: page.tags[code].value for code, name in KEPT_TAGS.items() if code in page.tags}
    if page.is_ome or page.is_shaped or page.is_imagej:
        kept.pop("description", None)
    # GDAL metadata such as scale, offset, unit and wavelength; not statistics, which belong to the old pixels.
    items = [
        ElementTree.tostring(item, encoding="unicode").strip()
        for item in parse_xml(page.tags.valueof(42112)).iter("Item")
        if item.get("role") not in ("description", "colorinterp") and not item.get("name", "").startswith("STATISTICS_")
    ]
    return kept | ({"gdal_items": "".join(items)} if items else {})
