"""Reader of TIFF files of cameras, microscopes and scanners, with overviews; GDAL reads those with georeference."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.grid import Window
from dehazexl.image.image import Holes, Image
from dehazexl.io.bands import choose_bands
from dehazexl.io.exif import MIRRORED, TRANSPOSED, UPSIDE_DOWN
from dehazexl.io.raster_read import Decoders, inversion, open_raster
from dehazexl.io.source import (
    CHUNK,
    Guard,
    Source,
    axes_by_shape,
    check_pixels,
    chunk_length,
    file_token,
    lazy,
    plane_of,
    report_damage,
    short_name,
    strided,
)
from dehazexl.io.tiff_metadata import imagej_scale, ome_scale, tiff_bands, tiff_bits, tiff_metadata
from dehazexl.io.tiff_pages import Mapped, Plane, check_segments, read_planes, segment_sides, tiff_path
from dehazexl.io.tiff_scan import check_companions, scan_directories
from dehazexl.io.tiff_tags import description_of, photo_metadata

if TYPE_CHECKING:
    import tifffile
    from numpy.typing import NDArray

GDAL_TAGS = (33550, 33922, 34264, 34735, 50844, 42112, 42113, 50674)
"""Tags of files that GDAL reads: georeference, rational polynomials, GDAL's metadata and nodata value, LERC."""
SIDECARS = (".aux.xml", ".ovr", ".msk")
ORIENTATION = 274
COLOR_SPACES = {0: "white-is-zero", 3: "palette", 4: "mask", 5: "CMYK", 8: "CIELab", 32803: "raw color filter array"}
MICROSCOPY = ("ome", "imagej")
"""Kinds of series that name their axes."""
QUIET = logging.NullHandler()
STRIP_ROWS = 256  # rows of a chunk of strips at least: the side of a network tile
STRIP_AREA = 2048 * 2048  # pixels in a chunk of whole rows, approximately, where columns cannot be read separately


def open_tiff(path: Path, page: int | None = None) -> Image:
    """Open an image of a TIFF with its overviews and its mask: a page, counted from 1, or the first image.

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
            return describe_tiff(tif, path, page)


def describe_tiff(tif: tifffile.TiffFile, path: Path, page: int | None = None) -> Image:
    """Describe an image of an open TIFF."""
    microscopy = tif.is_ome or tif.is_imagej
    pages = [] if microscopy else full_pages(tif)
    if not microscopy:
        plane_of(page, len(pages), str(path))
    if for_gdal(tif, path):
        return placed_tiff(tif, path, pages, page)
    series, plane, notes = chosen_plane(tif, page, path) if microscopy else chosen_series(tif, pages, page)
    key, place = series.keyframe, tif.series.index(series) if microscopy else 0
    check_colors(key, path)
    check_pixels(series.shape, np.dtype(series.dtype or "O"), str(path))
    axes = tiff_axes(series, path, any_plane=page is not None)
    levels = tiff_levels(tif, series)
    sources = [tiff_source(level, axes, path, plane) for level in levels]
    chosen = choose_bands(*tiff_bands(tif, series, sources[0][0].shape[2], place, plane))
    files = sorted({tiff_path(part) for level in levels for part in level.pages if part is not None})
    token = file_token(files)
    orientation = int(key.tags.valueof(ORIENTATION) or 1)
    sources = [apply_orientation(source, chunk, orientation) for source, chunk in sources]
    scale, units = imagej_scale(tif) if tif.is_imagej else ome_scale(tif, place)
    suffix = f"-{page}" if page else ""
    image = Image(
        levels=tuple(
            lazy(source, chunk, f"tiff-{token}{suffix}-{number}") for number, (source, chunk) in enumerate(sources)
        ),
        name=short_name(path),
        bands=chosen.names,
        rgb=chosen.rgb,
        alpha=chosen.alpha,
        guessed=chosen.guessed,
        basis=chosen.basis,
        notes=(*notes, *chosen.notes),
        scale=scale,
        units=units,
        path=path,
        fingerprint=token + suffix,
        guard=Guard(path, token, partial(file_token, files)),
        metadata=tiff_metadata(key) | ({"ome_image": place} if place else {}),
        bits=tiff_bits(key),
        holes=tiff_holes(series, f"tiff-{token}{suffix}-0") if orientation == 1 and not plane else None,
    )
    return with_photo_metadata(image, tif)


def placed_tiff(tif: tifffile.TiffFile, path: Path, pages: list[int], page: int | None) -> Image:
    """Describe an image of an open TIFF that GDAL reads; `pages` are the positions of its images."""
    for each in tif.pages:
        check_segments(each.aspage(), each.aspage())
    at = pages[(page or 1) - 1] if pages else 0  # there may be a thumbnail before the first
    plain = page is None and not at
    image = open_raster(path, "" if plain else f"GTIFF_DIR:{at + 1}:{path}", jpeg_decoders(tif, path) if plain else {})
    if plain and not image.masked:
        image = replace(image, holes=tiff_holes(tif.series[0], image.levels[0].name))
    return with_photo_metadata(image, tif, pages, page)


def for_gdal(tif: tifffile.TiffFile, path: Path) -> bool:
    """Return whether GDAL reads a TIFF: one with its tags, a mask or a sidecar; never those of microscopes."""
    if tif.is_ome or tif.is_imagej:
        return False
    if any(code in tif.pages.first.tags for code in GDAL_TAGS) or any(
        int(p.aspage().subfiletype) & 4 for p in tif.pages
    ):
        return True
    if int(tif.pages.first.tags.valueof(ORIENTATION) or 1) != 1:
        return False  # GDAL does not turn images
    worlds = (path.with_suffix(suffix) for suffix in (".tfw", ".tifw", ".wld", ".TFW"))
    return any(path.with_name(path.name + suffix).exists() for suffix in SIDECARS) or any(w.exists() for w in worlds)


def jpeg_decoders(tif: tifffile.TiffFile, path: Path) -> Decoders:
    """Return sources of the levels of JPEG tiles, which imagecodecs decodes faster than GDAL; none of other files."""
    series = tif.series[0]
    page = series.keyframe
    if (page.compression, page.bitspersample, page.planarconfig) != (7, 8, 1) or page.samplesperpixel not in (1, 3):
        return {}
    if plane_count(series) > 1:
        return {}  # pages, of which GDAL opens the first
    axes = tiff_axes(series, path)
    sources = [tiff_source(level, axes, path) for level in tiff_levels(tif, series)]
    return {source.shape: (source, chunk) for source, chunk in sources}


def full_pages(tif: tifffile.TiffFile) -> list[int]:
    """Return the positions of the pages of a TIFF that are neither overviews nor masks."""
    return [n for n, page in enumerate(tif.pages) if not int(page.aspage().subfiletype) & 5]


def with_photo_metadata(
    image: Image, tif: tifffile.TiffFile, pages: list[int] | None = None, page: int | None = None
) -> Image:
    """Return the image with EXIF, XMP and IPTC, and with a line about the pages that are not opened."""
    notes = image.notes
    if pages is not None and len(pages) > 1 and page is None:
        notes = (_pages_note(len(pages)), *notes)
    metadata = {**image.metadata, **photo_metadata(tif)}
    if page is None and (described := description_of(tif.pages.first)):
        metadata.setdefault("description", described)  # GDAL reads one of several
    return replace(image, metadata=metadata, notes=notes)


def _pages_note(count: int) -> str:
    return f"the file has {count} pages, of which the first is opened; --page N opens another"


def chosen_plane(
    tif: tifffile.TiffFile, page: int | None, path: Path
) -> tuple[tifffile.TiffPageSeries, int, list[str]]:
    """Return an image of a file of microscopy, the index of its plane, and a line about other images.

    The pages are the planes (z, t) of all images, each with all of its channels.
    """
    images = [series for series in tif.series if series.kind == tif.series[0].kind]
    counts = [plane_count(series) for series in images]
    plane = plane_of(page, sum(counts), str(path))
    if page is None:
        note = f"the file has {len(images)} images, of which the first is opened; --page N opens another"
        return images[0], 0, [note] if len(images) > 1 else []
    for series, count in zip(images, counts, strict=True):
        if plane < count:
            return series, plane, []
        plane -= count
    raise AssertionError


def plane_count(series: tifffile.TiffPageSeries) -> int:
    """Return the number of planes of an image: positions along its axes other than y, x, and channels."""
    return math.prod(length for axis, length in zip(series.axes, series.shape, strict=True) if axis not in "YXSC")


def chosen_series(
    tif: tifffile.TiffFile, pages: list[int], page: int | None
) -> tuple[tifffile.TiffPageSeries, int, list[str]]:
    """Return the first image of a TIFF, or a page as an image; 0; and a line about the others."""
    import tifffile

    first = tif.series[0]
    if page is None and not (pages and (pages[0] > 0 or has_pages(first))):
        others = sum(int(series.keyframe.subfiletype) & 5 == 0 and series.kind == first.kind for series in tif.series)
        return first, 0, [_pages_note(len(pages))] if others > 1 else []
    key = tif.pages[pages[(page or 1) - 1]].aspage()
    alone = tifffile.TiffPageSeries([key], shape=key.shape, dtype=key.dtype, axes=key.axes)
    return alone, 0, [_pages_note(len(pages))] if page is None and len(pages) > 1 else []


def has_pages(series: tifffile.TiffPageSeries) -> bool:
    """Return whether the pages of a series are images of their own: nothing names their axis, and they are no bands."""
    lengths = dict(zip(series.axes, series.shape, strict=True))
    if lengths.get("I", 1) > 1:
        return True
    if "Q" not in lengths or len(series.pages) < 2:
        return False
    try:
        axes = axes_by_shape(series.shape, "")
    except ValueError:
        return True
    return series.dataoffset is None and axes.replace("-", "")[-2:] != "yx"


def tiff_holes(series: tifffile.TiffPageSeries, level: str) -> Holes | None:
    """Return the tiles or strips that a sparse TIFF does not contain; None for one contiguous block of pixels."""
    if series.dataoffset is not None:
        return None
    planes = tuple(Plane(tiff_path(page), page.offset) for page in series.pages if page is not None)
    return Holes(level, series.keyframe.nodata, partial(planes_missing, planes))


def planes_missing(planes: tuple[Plane, ...], window: Window) -> bool:
    """Return whether the file contains nothing of a window of pixels."""
    rows, cols = slice(window.y0, window.y1), slice(window.x0, window.x1)
    return all(plane.is_missing(rows, cols) for plane in planes)


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
        how = {0: inversion(page.bitspersample), 3: "-expand rgb "}.get(space, "")
        remedy = f"gdal_translate {how}{path.name} {'gray' if space == 0 else 'rgb'}.tif"
        if space == 8 or (space == 5 and page.bitspersample != 8):  # which GDAL does not convert, or not exactly
            remedy = f"magick {path.name} -colorspace sRGB rgb.tif"
        raise ValueError(f"{path} has {COLOR_SPACES[space]} colors: make it gray or RGB first, e.g. {remedy}")
    if space == 6 and page.compression not in tifffile.TIFF.IMAGE_COMPRESSIONS:
        raise ValueError(f"{path} has YCbCr colors without JPEG compression: save it as RGB first")


def tiff_axes(series: tifffile.TiffPageSeries, path: Path, any_plane: bool = False) -> str:
    """Return one letter for each axis of a series: y, x, c, or - for an axis of length 1, of any if a plane is chosen.

    Raises
    ------
    ValueError
        If it has several planes, and none is chosen.
    """
    sized = list(zip(series.axes, series.shape, strict=True))
    if "Q" in series.axes and series.kind not in MICROSCOPY:
        return axes_by_shape(series.shape, str(path))
    further = [f"{axis} ({length})" for axis, length in sized if length > 1 and axis not in "YXSC"]
    if (further and not any_plane) or sum(length > 1 for axis, length in sized if axis in "SC") > 1:
        named = ", ".join(f"{axis} ({length})" for axis, length in sized)
        remedy = f"choose one of {plane_count(series)} planes with --page N, or save it to its own file"
        raise ValueError(f"{path} has the axes {named}: {remedy}")
    known = "YXSC"
    letters = ["-" if axis not in known or (length == 1 and axis in "SC") else axis.lower() for axis, length in sized]
    return "".join(letters).replace("s", "c")


def tiff_levels(tif: tifffile.TiffFile, first: tifffile.TiffPageSeries) -> list[tifffile.TiffPageSeries]:
    """Return an image and its overviews, finest first, each smaller than the one before."""
    if first is not tif.series[0]:
        return list(first.levels)  # an image or a page that was chosen
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


def tiff_source(
    series: tifffile.TiffPageSeries, axes: str, path: Path, plane: int = 0
) -> tuple[Source, tuple[int, int]]:
    """Return the source of a level, memory-mapped if its pixels are uncompressed and contiguous.

    Parameters
    ----------
    series
        The level.
    axes
        One letter for each axis, see `tiff_axes`.
    path
        The file, for messages.
    plane
        Index of the plane along the other axes.

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
        return strided(mapped, axes, plane), (CHUNK, CHUNK)
    pages = [page for page in series.pages if page is not None]
    if len(pages) < len(series.pages):
        raise ValueError(f"{path} has {len(pages)} of its {len(series.pages)} pages: copy or download all its parts")
    if plane or "-" in axes:
        pages = pages_of_plane(pages, series, plane)
    for page in pages:
        check_segments(page, series.keyframe)
    planes = tuple(Plane(tiff_path(page), page.offset) for page in pages)
    lengths = dict(zip(axes, series.shape, strict=True))
    shape = (lengths["y"], lengths["x"], lengths.get("c", 1))
    page = series.keyframe
    return Source(shape, np.dtype(series.dtype).newbyteorder("="), partial(read_planes, planes)), tiff_chunk(page)


def pages_of_plane(pages: list[Any], series: tifffile.TiffPageSeries, plane: int) -> list[Any]:
    """Return the pages of a plane: one for each channel, or a single one of all."""
    sized = [(axis, length) for axis, length in zip(series.axes, series.shape, strict=True)]
    leading = sized[: next(n for n, (axis, _) in enumerate(sized) if axis in "YXS")]
    if math.prod(length for _, length in leading) != len(pages):
        return pages
    order = np.arange(len(pages)).reshape([length for _, length in leading])
    channels = [n for n, (axis, _) in enumerate(leading) if axis == "C"]
    by_plane = np.moveaxis(order, channels, range(-len(channels), 0)).reshape(plane_count(series), -1)
    return [pages[int(place)] for place in by_plane[plane]]


def tiff_chunk(page: tifffile.TiffPage) -> tuple[int, int]:
    """Return rows and columns of a chunk: several tiles, or strips of whole rows."""
    if page.is_tiled:
        return chunk_length(page.tilelength), chunk_length(page.tilewidth)
    rows, strip = max(STRIP_ROWS, min(CHUNK, STRIP_AREA // page.imagewidth)), segment_sides(page)[0]
    return math.ceil(rows / strip) * strip, page.imagewidth


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
