"""Write images as tiled TIFF with overviews and georeference, block by block."""

from __future__ import annotations

import math
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from dehazexl.image import georeference as geo
from dehazexl.io.pyramid import Levels, Pyramid, Tile

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from pathlib import Path

    from dehazexl.image.image import Image
    from dehazexl.io.blocks import Block

Compression = Literal["deflate", "zstd", "none"]

TagTuple = tuple[int, int, int, Any, bool]

_DEFLATE, _ZSTD = 8, 50000
_CODES: dict[Compression, int] = {"none": 1, "deflate": _DEFLATE, "zstd": _ZSTD}
_HORIZONTAL, _FLOATING = 2, 3
_GDAL_METADATA, _GDAL_NODATA = 42112, 42113
_SHORT, _ASCII, _DOUBLE = 3, 2, 12
_TEXTS = {270: "description", 306: "datetime", 315: "artist", 33432: "copyright"}
_COLORS = ("red", "green", "blue")
_FOR_PROGRAMS = ("<", "{", "ImageJ=", "Aperio")
_CENTIMETRES = {"meter": 100.0, "centimeter": 1.0, "millimeter": 0.1, "micrometer": 1e-4, "inch": 2.54}
# Offsets in a classic TIFF end at 4 GiB; compression may also expand.
_CLASSIC_BYTES = 3_500_000_000


def write_tiff(
    blocks: Iterable[Block], path: Path, target: Image, compression: Compression
) -> Generator[int, None, None]:
    """Write blocks into a tiled TIFF with overviews, as they arrive.

    The directories of all levels are written first, so that they are at the start of the file. The tiles follow in the
    order of their completion, and their offsets last. Only unfinished tiles are kept in memory.

    Parameters
    ----------
    blocks
        Row, column and pixels ``(y, x, c)`` of blocks that cover the image once.
    path
        Path of the file; an existing file is overwritten.
    target
        The image: its first level has the shape and dtype.
    compression
        ``"deflate"``, ``"zstd"`` or ``"none"``.

    Yields
    ------
    int
        Number of pixels of each block.
    """
    height, width, _ = target.levels[0].shape
    levels = Levels(height, width)
    pyramid = Pyramid(levels, target.nodata, target.alpha)
    _write_directories(path, target, levels, compression)
    places = [np.zeros((2, *levels.grid(level)), "<u8") for level in range(len(levels.sizes))]
    with path.open("r+b") as file, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        file.seek(0, os.SEEK_END)
        for y, x, block in blocks:
            for tile, data in _encoded(pool, pyramid.paste(y, x, block), levels.tile, compression):
                places[tile.level][:, tile.row, tile.col] = file.tell(), len(data)
                file.write(data)
            yield block.shape[0] * block.shape[1]
    _write_places(path, places, compression)


def _encoded(
    pool: ThreadPoolExecutor, tiles: Iterable[Tile], side: int, compression: Compression
) -> Iterator[tuple[Tile, bytes]]:
    """Encode tiles in threads, several at a time, and yield them in order."""
    waiting: deque[tuple[Tile, Future[bytes]]] = deque()
    for tile in tiles:
        waiting.append((tile, pool.submit(_encode, tile.pixels, side, compression)))
        if len(waiting) > 8:
            done, future = waiting.popleft()
            yield done, future.result()
    for done, future in waiting:
        yield done, future.result()


def _encode(pixels: NDArray[Any], side: int, compression: Compression) -> bytes:
    import imagecodecs

    height, width, bands = pixels.shape
    whole = np.zeros((side, side, bands), pixels.dtype.newbyteorder("<"))
    whole[:height, :width] = pixels
    if compression == "none":
        return whole.tobytes()
    difference = imagecodecs.floatpred_encode if pixels.dtype.kind == "f" else imagecodecs.delta_encode
    differences = difference(whole, axis=-2).tobytes()
    if compression == "zstd":
        return bytes(imagecodecs.zstd_encode(differences, level=3))
    return bytes(imagecodecs.deflate_encode(differences, level=6))


def _write_directories(path: Path, target: Image, levels: Levels, compression: Compression) -> None:
    """Write the directories of a TIFF without tiles."""
    from tifffile import TiffWriter

    bands, dtype = target.levels[0].shape[2], target.levels[0].dtype
    samples = sum(math.prod(levels.grid(level)) for level in range(len(levels.sizes))) * levels.tile**2 * bands
    look = _look(target, bands)
    with TiffWriter(path, byteorder="<", bigtiff=samples * dtype.itemsize > _CLASSIC_BYTES) as writer:
        for level, size in enumerate(levels.sizes):
            writer.write(
                (b"" for _ in range(math.prod(levels.grid(level)))),
                shape=(*size, bands) if bands > 1 else size,
                dtype=dtype.newbyteorder("="),
                tile=(levels.tile, levels.tile),
                planarconfig="contig" if bands > 1 else None,
                # tifffile lays out an uncompressed image by itself, so "none" is entered afterwards.
                compression=_ZSTD if compression == "zstd" else _DEFLATE,
                predictor=None if compression == "none" else _FLOATING if dtype.kind == "f" else _HORIZONTAL,
                # GDAL and tifffile take the reduced pages that follow an image as its overviews.
                subfiletype=1 if level else 0,
                metadata=None,
                software=False,
                **look,
                iccprofile=None if level else color_profile(target) or None,
                **(_resolution(target) if level == 0 else {}),
                extratags=_tags(target) if level == 0 else _nodata_tags(target),
            )


def _write_places(path: Path, places: list[NDArray[Any]], compression: Compression) -> None:
    """Write the offsets of the tiles into the space reserved in the directories."""
    from tifffile import TiffFile

    with TiffFile(path, mode="r+") as file:
        for page, (offsets, sizes) in zip(file.pages, places, strict=True):
            for name, values in (("TileOffsets", offsets), ("TileByteCounts", sizes)):
                tag = page.aspage().tags[name]
                file.filehandle.seek(tag.valueoffset)
                file.filehandle.write(values.astype({3: "<u2", 4: "<u4", 16: "<u8"}[int(tag.dtype)]).tobytes())
            page.aspage().tags["Compression"].overwrite(_CODES[compression])


def _look(target: Image, bands: int) -> dict[str, Any]:
    """Return the tags for the interpretation of the channels: RGB or gray, alpha or other extra samples."""
    colors = 3 if _is_rgb(target) else 1
    extra = ["unassalpha" if band == target.alpha else "unspecified" for band in range(colors, bands)]
    return {"photometric": "rgb" if colors == 3 else "minisblack", "extrasamples": extra or None}


def _is_rgb(target: Image) -> bool:
    """Return whether the first three bands are red, green and blue."""
    return tuple(target.rgb) == (0, 1, 2) and target.alpha not in target.rgb


def color_profile(target: Image) -> bytes:
    """Return the ICC profile of the input, or an empty string if there is none or it does not fit the bands."""
    profile = bytes(target.metadata.get("icc_profile", b""))
    return profile if profile[16:20] == (b"RGB " if _is_rgb(target) else b"GRAY") else b""


def _resolution(target: Image) -> dict[str, Any]:
    """Return the resolution of the input, else that of the pixel size if it is a length."""
    said = target.metadata
    # Some writers use 0/0.
    if all(np.all(said.get(name, 0)) for name in ("x_resolution", "y_resolution")):
        unit = int(said.get("resolution_unit") or 1)
        return {"resolution": (said["x_resolution"], said["y_resolution"]), "resolutionunit": unit}
    centimeters = _CENTIMETRES.get(target.units)
    if centimeters is None or target.geo is not None:
        return {}
    height, width = (1 / (size * centimeters) for size in target.scale)
    return {"resolution": (width, height), "resolutionunit": "CENTIMETER"}


def _tags(target: Image) -> list[TagTuple]:
    """Return the tags of the image that its overviews do not repeat."""
    carried = target.geo.tags if target.geo else {}
    texts = {code: str(target.metadata.get(name) or "") for code, name in _TEXTS.items()}
    # A description for programs describes the pages of the input file, not of this one.
    if texts[270].lstrip().startswith(_FOR_PROGRAMS):
        texts[270] = ""
    texts |= {305: "dehazexl", _GDAL_METADATA: _gdal_metadata(target)}
    texts |= {code: value for code, value in carried.items() if isinstance(value, str)}
    numbers = [
        (code, _SHORT if code == geo.GEO_KEYS else _DOUBLE, len(value), value, True)
        for code, value in carried.items()
        if not isinstance(value, str)
    ]
    return [*numbers, *(_text(code, text) for code, text in texts.items() if text), *_nodata_tags(target)]


def _gdal_metadata(target: Image) -> str:
    """Return GDAL's metadata: roles and names of the bands, and the other items of the input."""
    items = str(target.metadata.get("gdal_items", ""))
    items += "".join(_gdal_item("colorinterp", band, role.capitalize()) for band, role in _odd_roles(target).items())
    if not all(map(_goes_without_saying, range(len(target.bands)), target.bands)):
        items += "".join(
            # GDAL escapes names twice.
            _gdal_item("description", band, escape(name))
            for band, name in enumerate(target.bands)
            if name != f"band {band + 1}"
        )
    return f"<GDALMetadata>{items}</GDALMetadata>" if items else ""


def _gdal_item(role: str, band: int, text: str) -> str:
    return f'<Item name="{role.upper()}" sample="{band}" role="{role}">{escape(text)}</Item>'


def _odd_roles(target: Image) -> dict[int, str]:
    """Return the roles of bands that are not in the order red, green, blue, others, which needs no tags."""
    if len(set(target.rgb)) < 3 or _is_rgb(target):
        return {}
    roles = dict(zip(target.rgb, _COLORS, strict=True))
    return roles if target.alpha is None else roles | {target.alpha: "alpha"}


def _goes_without_saying(band: int, name: str) -> bool:
    """Return whether readers derive the name from the number or color of the band anyway."""
    return name in (f"band {band + 1}", "gray", *_COLORS, "alpha", "mask")


def _text(code: int, text: str) -> TagTuple:
    # As bytes: tifffile refuses non-ASCII strings, GDAL reads UTF-8.
    value = text.encode() + b"\0"
    return code, _ASCII, len(value), value, True


def _nodata_tags(target: Image) -> list[TagTuple]:
    return [] if target.nodata is None else [_text(_GDAL_NODATA, f"{target.nodata:.17g}")]
