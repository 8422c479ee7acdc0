"""Reader of PNG and JPEG files, which are decoded as a whole."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from dehazexl.image.image import Image
from dehazexl.io.bands import RGB_ROLES, describe_bands
from dehazexl.io.exif import (
    MIRRORED,
    TRANSPOSED,
    UNREADABLE,
    UPSIDE_DOWN,
    exif_of,
    orientation_of,
    turned_upright,
    upright_exif,
)
from dehazexl.io.photo_metadata import jpeg_metadata, lost_line, png_metadata
from dehazexl.io.raster_read import open_raster
from dehazexl.io.sidecars import with_sidecars
from dehazexl.io.source import (
    MAX_BLOCK,
    RETILE,
    Guard,
    Source,
    check_block,
    check_pixels,
    file_token,
    lazy,
    report_damage,
    short_name,
)

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray

MAX_PNG_CHUNKS = 10_000
"""Chunks between the header of a PNG and its pixels that are looked at."""
STRIP_ROWS = 512
"""Rows that are converted at once from the form of Pillow, which has four bytes for each pixel."""
PNG_BANDS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
"""Number of bands after decoding, by the color type in the header."""


def open_png(path: Path) -> Image:
    """Open a PNG from its header. Palettes are decoded to RGB; 16-bit pixels keep their depth.

    Raises
    ------
    ValueError
        If the file is truncated or damaged, or is a 1-bit mask.
    """
    with path.open("rb") as file:
        head = file.read(33)
        if len(head) < 33:
            raise ValueError(f"{path} is cut short: it has no PNG header; copy or download it again")
        width, height, bits, colors = struct.unpack(">IIBB", head[16:26])
        transparent = colors in (0, 2, 3) and png_has(file, b"tRNS")
        file.seek(33)
        frames = int.from_bytes(file.read(4), "big") if png_has(file, b"acTL") else 1
    if bits == 1 and colors == 0:
        raise ValueError(f"{path} is a 1-bit mask, not an image: pass the image that it belongs to")
    if colors not in PNG_BANDS:
        raise ValueError(f"{path} is a damaged PNG (color type {colors}): copy or download it again")
    count = PNG_BANDS[colors] + transparent
    roles = ["gray"] if count < 3 else list(RGB_ROLES)
    dtype = np.dtype("uint16" if bits == 16 else "uint8")
    image = describe_photo(path, (height, width, count), dtype, [*roles, "alpha"][:count], decode_png)
    metadata, notes = png_metadata(path)
    return with_sidecars(replace(image, metadata=metadata, notes=(*several_images(frames), *notes)), path)


def several_images(count: int) -> tuple[str, ...]:
    """Return a line about the images of a photograph that are not opened, or none."""
    return (f"the file has {count} images, of which the first is opened and written",) if count > 1 else ()


def png_has(file: BinaryIO, wanted: bytes) -> bool:
    """Return whether a chunk of type `wanted` exists between the header of a PNG and its pixels."""
    for _ in range(MAX_PNG_CHUNKS):
        head = file.read(8)
        length, kind = struct.unpack(">I4s", head.ljust(8, b"\0"))
        if kind in (wanted, b"IDAT") or not kind.isalpha():
            return bool(kind == wanted)
        file.seek(length + 4, 1)
    return False


def decode_png(path: Path) -> NDArray[Any]:
    """Decode a PNG to ``(y, x)`` or ``(y, x, c)``."""
    import imagecodecs

    with report_damage(path, "PNG"):
        if (size := path.stat().st_size) > MAX_BLOCK:
            raise ValueError(f"{path} has {size} bytes, more than are read at once: {RETILE}")
        return np.asarray(imagecodecs.png_decode(path.read_bytes()))


def open_jpeg(path: Path) -> Image:
    """Open a JPEG from its header, rotated according to its EXIF orientation."""
    from PIL.JpegImagePlugin import JpegImageFile

    # Not PIL.Image.open, which rejects large images as "decompression bombs".
    with report_damage(path, "JPEG"), JpegImageFile(path) as file:
        (width, height), mode = file.size, file.mode
        orientation = orientation_of(exif_of(file))
        metadata, notes = jpeg_metadata(file)
        notes = (*several_images(jpeg_images(path) if "mp" in file.info else 1), *notes)
    size = (width, height) if orientation in TRANSPOSED else (height, width)
    roles = ["gray"] if mode == "L" else list(RGB_ROLES)
    image = describe_photo(path, (*size, len(roles)), np.dtype("uint8"), roles, decode_jpeg)
    return with_sidecars(replace(image, metadata=metadata, notes=notes), path, turned=orientation != 1)


def jpeg_images(path: Path) -> int:
    """Return the number of images of a JPEG that lists several (MPO); 1 if the list is damaged."""
    from PIL.MpoImagePlugin import MpoImageFile

    try:
        with MpoImageFile(path) as file:
            return int(file.n_frames)
    except UNREADABLE:
        return 1


def decode_jpeg(path: Path) -> NDArray[Any]:
    """Decode a JPEG to gray ``(y, x, 1)`` or RGB ``(y, x, 3)`` in upright orientation."""
    from PIL.JpegImagePlugin import JpegImageFile

    with report_damage(path, "JPEG"), JpegImageFile(path) as file:
        upright = turned_upright(file)
        width, height = upright.size
        mode = "L" if upright.mode == "L" else "RGB"
        pixels = np.empty((height, width, len(mode)), np.uint8)
        for top in range(0, height, STRIP_ROWS):
            strip = upright.crop((0, top, width, min(top + STRIP_ROWS, height)))
            pixels[top : top + STRIP_ROWS] = np.asarray(strip.convert(mode)).reshape(-1, width, len(mode))
        return pixels


def open_webp(path: Path) -> Image:
    """Open a WebP: its pixels by GDAL, its EXIF and profile by Pillow. It is turned by its EXIF if it has no place."""
    from PIL.WebPImagePlugin import WebPImageFile

    image = open_raster(path)
    with report_damage(path, "WebP"), WebPImageFile(path) as file:
        if file.n_frames > 1:
            raise ValueError(f"{path} is an animation of {file.n_frames} images: save one of them to its own file")
        exif, profile = exif_of(file), file.info.get("icc_profile", b"")
    orientation = orientation_of(exif) if image.geo is None else 1
    levels = tuple(upright_level(level, orientation) for level in image.levels)
    height, width, _ = levels[0].shape
    data, lost = upright_exif(exif, height, width)
    found = {"exif": data, "xmp": file.info.get("xmp", b""), "icc_profile": profile}
    placed = ("it has a place, so it is not turned by its EXIF",) if orientation != orientation_of(exif) else ()
    metadata = {**image.metadata, **{name: value for name, value in found.items() if value}}
    return replace(image, levels=levels, metadata=metadata, notes=(*image.notes, *lost_line(lost), *placed))


def upright_level(level: da.Array, orientation: int) -> da.Array:
    """Return a lazy level ``(y, x, c)`` turned upright from an orientation of EXIF."""
    if orientation in TRANSPOSED:
        level = level.swapaxes(0, 1)
    return level[:: -1 if orientation in UPSIDE_DOWN else 1, :: -1 if orientation in MIRRORED else 1]


def describe_photo(
    path: Path,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    roles: Sequence[str],
    decode: Callable[[Path], NDArray[Any]],
) -> Image:
    """Describe a file that can only be decoded as a whole, as an image of one chunk.

    Parameters
    ----------
    path
        The file.
    shape, dtype
        Shape ``(y, x, c)`` and data type of the decoded pixels.
    roles
        Role of each band, see `bands.describe_bands`.
    decode
        Function that decodes the file.
    """
    check_pixels(shape, dtype, str(path))
    check_block(shape, shape, dtype.itemsize, str(path), RETILE)
    token = file_token([path])
    level = lazy(Source(shape, dtype, partial(read_whole, decode, path, shape)), shape[:2], f"file-{token}")
    bands, rgb, alpha = describe_bands([None] * len(roles), roles)
    guard = Guard(path, token, partial(file_token, [path]))
    return Image((level,), short_name(path), bands, rgb, alpha, path=path, fingerprint=token, guard=guard)


def read_whole(
    decode: Callable[[Path], NDArray[Any]], path: Path, shape: tuple[int, int, int], rows: slice, cols: slice
) -> NDArray[Any]:
    """Decode a file and return a window of it."""
    pixels = decode(path)
    if pixels.size != math.prod(shape):
        raise ValueError(f"{path} contains {pixels.shape} pixels but its header gives {shape}: save it again")
    return pixels.reshape(shape)[rows, cols]
