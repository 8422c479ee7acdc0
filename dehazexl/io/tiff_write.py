"""Writer of OME-TIFF with overviews, block by block, for programs of microscopy."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from dehazexl.io.pyramid import Levels, Pyramid, Tile
from dehazexl.io.raster_write import resolution

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dehazexl.image.image import Image
    from dehazexl.io.blocks import Block

OME = "ome-tiff"
CODES = {"none": 1, "lzw": 5, "deflate": 8, "zstd": 50000}
"""Codes of the compressions that are written here; any other becomes deflate."""
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
SETTINGS = "DEHAZEXL"
"""Domain of the metadata with the settings that an image was dehazed with."""

UNITS = {"nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "centimeter": "cm", "meter": "m", "kilometer": "km"}

_COLORS = (0xFF0000FF - 2**32, 0x00FF00FF, 0x0000FFFF)
"""Red, green and blue of OME: signed integers 0xRRGGBBAA."""

# Offsets in a classic TIFF end at 4 GiB; compression may also expand.
_CLASSIC_BYTES = 3_500_000_000


def is_ome(path: Path, target: Image) -> bool:
    """Return whether an image is written as OME-TIFF: by the name of the output, or as its input was."""
    named = path.name.lower().endswith((".ome.tif", ".ome.tiff"))
    plain = target.geo is None and not target.masked and target.nodata is None
    return (named or (target.metadata.get("container") == OME and plain)) and target.levels[0].dtype.name in DTYPES


def write_tiff(blocks: Iterable[Block], path: Path, target: Image, compression: str) -> Generator[int, None, None]:
    """Write blocks into an OME-TIFF with overviews, as they arrive: a page for each band.

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
        One of `CODES`; another one becomes deflate.

    Yields
    ------
    int
        Number of pixels of each block.
    """
    compression = compression if compression in CODES else "deflate"
    height, width, bands = target.levels[0].shape
    levels = Levels(height, width)
    pyramid = Pyramid(levels, target.nodata, target.alpha)
    _write_directories(path, target, levels, compression)
    places = [np.zeros((bands, 2, *levels.grid(level)), "<u8") for level in range(len(levels.sizes))]
    with path.open("r+b") as file, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        file.seek(0, os.SEEK_END)
        for y, x, block in blocks:
            for tile, planes in _encoded(pool, pyramid.paste(y, x, block), levels.tile, compression):
                for band, data in enumerate(planes):
                    places[tile.level][band, :, tile.row, tile.col] = file.tell(), len(data)
                    file.write(data)
            yield block.shape[0] * block.shape[1]
    _write_places(path, places, compression)


def _encoded(
    pool: ThreadPoolExecutor, tiles: Iterable[Tile], side: int, compression: str
) -> Iterator[tuple[Tile, list[bytes]]]:
    """Encode tiles in threads, several at a time, and yield them in order."""
    waiting: deque[tuple[Tile, Future[list[bytes]]]] = deque()
    for tile in tiles:
        waiting.append((tile, pool.submit(_encode, tile.pixels, side, compression)))
        if len(waiting) > 8:
            done, future = waiting.popleft()
            yield done, future.result()
    for done, future in waiting:
        yield done, future.result()


def _encode(pixels: NDArray[Any], side: int, compression: str) -> list[bytes]:
    """Encode each band of a tile."""
    import imagecodecs

    height, width, bands = pixels.shape
    whole = np.zeros((bands, side, side), pixels.dtype.newbyteorder("<"))
    whole[:, :height, :width] = np.moveaxis(pixels, -1, 0)
    if compression == "none":
        return [plane.tobytes() for plane in whole]
    difference = imagecodecs.floatpred_encode if pixels.dtype.kind == "f" else imagecodecs.delta_encode
    options: dict[str, Any] = {"zstd": {"level": 3}, "deflate": {"level": 6}}.get(compression, {})
    encode = getattr(imagecodecs, f"{compression}_encode")
    return [bytes(encode(difference(plane, axis=-1).tobytes(), **options)) for plane in whole]


def _write_directories(path: Path, target: Image, levels: Levels, compression: str) -> None:
    """Write the directories of a TIFF without tiles, those of the overviews below their page."""
    from tifffile import TiffWriter

    bands, dtype = target.levels[0].shape[2], target.levels[0].dtype
    samples = sum(math.prod(levels.grid(level)) for level in range(len(levels.sizes))) * levels.tile**2 * bands
    density = resolution(target)
    first: dict[str, Any] = {"subifds": len(levels.sizes) - 1, "description": ome_xml(target), "metadata": None}
    if density:
        first["resolution"] = float(density["XRESOLUTION"]), float(density["YRESOLUTION"])
        first["resolutionunit"] = int(density["RESOLUTIONUNIT"])
    with TiffWriter(path, byteorder="<", bigtiff=samples * dtype.itemsize > _CLASSIC_BYTES) as writer:
        for level, size in enumerate(levels.sizes):
            writer.write(
                (b"" for _ in range(bands * math.prod(levels.grid(level)))),
                shape=(bands, *size),
                dtype=dtype.newbyteorder("="),
                tile=(levels.tile, levels.tile),
                photometric="minisblack",
                # tifffile lays out an uncompressed image by itself, so the compression is entered afterwards.
                compression=CODES["deflate"],
                predictor=None if compression == "none" else 3 if dtype.kind == "f" else 2,
                software=False,
                **(first if level == 0 else {"subfiletype": 1, "metadata": None}),
            )


def ome_xml(target: Image) -> bytes:
    """Return the metadata of OME: those of the input, with the pixels as they are written."""
    kept = target.metadata.get("ome_xml")
    root = ElementTree.fromstring(kept if kept else _plain_xml())
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    ElementTree.register_namespace("", space.strip("{}"))
    images = root.findall(f"{space}Image")
    image = images.pop(target.metadata.get("ome_image", 0))
    for other in images:
        root.remove(other)
    pixels = image.find(f"{space}Pixels")
    assert pixels is not None
    height, width, bands = target.levels[0].shape
    dtype = {"float32": "float", "float64": "double"}.get(target.levels[0].dtype.name, target.levels[0].dtype.name)
    sizes = {"SizeX": width, "SizeY": height, "SizeC": bands, "SizeZ": 1, "SizeT": 1}
    pixels.attrib.update({"DimensionOrder": "XYCZT", "Type": dtype, **{name: str(n) for name, n in sizes.items()}})
    pixels.attrib.pop("Interleaved", None)
    if target.units in UNITS:
        for axis, size in zip("YX", target.scale, strict=True):
            pixels.set(f"PhysicalSize{axis}", f"{size:.17g}")
            pixels.set(f"PhysicalSize{axis}Unit", UNITS[target.units])
    _set_channels(pixels, target, space)
    _set_settings(root, target.metadata.get("domains", {}).get(SETTINGS), space)
    return b'<?xml version="1.0" encoding="UTF-8"?>' + ElementTree.tostring(root, encoding="utf-8")


def _set_channels(pixels: ElementTree.Element, target: Image, space: str) -> None:
    """Replace the channels unless there is one for each band, and the places of the planes."""
    channels, bands = pixels.findall(f"{space}Channel"), target.levels[0].shape[2]
    if len(channels) != bands or any(channel.get("SamplesPerPixel", "1") != "1" for channel in channels):
        for channel in channels:
            pixels.remove(channel)
        known = len(set(target.rgb)) == 3 and not target.guessed
        names = {"ID": "Channel:0:{}", "Name": "{}"}
        for band, name in enumerate(target.bands):
            said = {key: text.format(band if key == "ID" else name) for key, text in names.items()}
            if known and band in target.rgb:
                said["Color"] = str(_COLORS[target.rgb.index(band)])
            pixels.insert(band, ElementTree.Element(f"{space}Channel", {**said, "SamplesPerPixel": "1"}))
    planes = [
        each for each in pixels if each.tag.rpartition("}")[2] in ("TiffData", "Plane", "MetadataOnly", "BinData")
    ]
    for each in planes:
        pixels.remove(each)
    ElementTree.SubElement(pixels, f"{space}TiffData", {"IFD": "0", "PlaneCount": str(bands)})


def _set_settings(root: ElementTree.Element, settings: Mapping[str, str] | None, space: str) -> None:
    """Annotate the file with the settings that it was dehazed with, if they are known, in place of earlier ones."""
    if not settings:
        return
    notes = root.find(f"{space}StructuredAnnotations")
    if notes is None:
        notes = ElementTree.Element(f"{space}StructuredAnnotations")
        last = max(place for place, each in enumerate(root) if each.tag == f"{space}Image")
        root.insert(last + 1, notes)
    for earlier in notes.findall(f"{space}MapAnnotation[@Namespace='{SETTINGS}']"):
        notes.remove(earlier)
    note = ElementTree.SubElement(
        notes, f"{space}MapAnnotation", {"ID": f"Annotation:{SETTINGS}", "Namespace": SETTINGS}
    )
    values = ElementTree.SubElement(note, f"{space}Value")
    for name, text in settings.items():
        ElementTree.SubElement(values, f"{space}M", {"K": name}).text = text


def _plain_xml() -> str:
    space = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    image = '<Image ID="Image:0" Name="Image0"><Pixels ID="Pixels:0"/></Image>'
    return f'<OME xmlns="{space}" Creator="dehazexl">{image}</OME>'


def _write_places(path: Path, places: list[NDArray[Any]], compression: str) -> None:
    """Write the offsets of the tiles into the space reserved in the directories."""
    from tifffile import TiffFile

    with TiffFile(path, mode="r+") as file:
        for band, page in enumerate(file.pages):
            first = page.aspage()
            for level, part in enumerate([first, *(first.pages or ())]):
                offsets, sizes = places[level][band]
                for name, values in (("TileOffsets", offsets), ("TileByteCounts", sizes)):
                    tag = part.aspage().tags[name]
                    file.filehandle.seek(tag.valueoffset)
                    file.filehandle.write(values.astype({3: "<u2", 4: "<u4", 16: "<u8"}[int(tag.dtype)]).tobytes())
                part.aspage().tags["Compression"].overwrite(CODES[compression])
