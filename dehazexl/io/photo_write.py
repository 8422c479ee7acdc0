"""Write small images as PNG and JPEG, in memory."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.io.tiff_write import color_profile

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from dehazexl.image.image import Image
    from dehazexl.io.blocks import Block

_MOST_PIXELS, _LONGEST_SIDE = 2**28, 65500
_JPEG_QUALITY = 95
_ORIENTATION, _EXIF_DETAILS, _EXIF_WIDTH, _EXIF_HEIGHT = 0x0112, 0x8769, 0xA002, 0xA003
_REMEDY = "write a .tif or a .zarr instead"
_FEWER = f"{_REMEDY}, or keep three bands (gdal_translate -b 1 -b 2 -b 3 on the file; pixels[..., :3] in Python)"


def check_photo(path: Path, target: Image) -> None:
    """Check that PNG or JPEG can hold an image.

    Raises
    ------
    ValueError
        If the dtype, the bands or the size do not fit.
    """
    height, width, bands = target.levels[0].shape
    dtype, png = target.levels[0].dtype, path.suffix.lower() == ".png"
    if dtype not in ((np.uint8, np.uint16) if png else (np.uint8,)):
        holds = "8 or 16 bits without sign" if png else "8 bits without sign"
        raise ValueError(f"{path} can hold {holds}, not {dtype}: {_REMEDY}, or scale and convert the pixels first")
    if bands not in ((1, 2, 3, 4) if png else (1, 3)):
        raise ValueError(f"{path} cannot hold {bands} bands: {_FEWER}")
    if bands in (2, 4) and target.alpha != bands - 1:
        raise ValueError(f"{path} would show band {bands} as transparency, which it is not: {_FEWER}")
    if height * width > _MOST_PIXELS or max(height, width) > _LONGEST_SIDE:
        raise ValueError(f"{path} cannot hold {height} x {width} pixels: {_REMEDY}")


def write_photo(blocks: Iterable[Block], path: Path, target: Image, suffix: str) -> Generator[int, None, None]:
    """Collect the blocks in memory, then encode them as PNG or JPEG.

    Parameters
    ----------
    blocks
        Row, column and pixels ``(y, x, c)`` of blocks that cover the image once.
    path
        Path of the file.
    target
        The image: its first level has the shape and dtype. The EXIF is copied from a JPEG at its path.
    suffix
        Format: ``.png``, ``.jpg`` or ``.jpeg``.

    Yields
    ------
    int
        Number of pixels of each block.
    """
    exif, profile = _exif(target), color_profile(target)
    pixels = np.empty(target.levels[0].shape, target.levels[0].dtype)
    for y, x, block in blocks:
        pixels[y : y + block.shape[0], x : x + block.shape[1]] = block
        yield block.shape[0] * block.shape[1]
    path.write_bytes(_png(pixels, exif, profile) if suffix == ".png" else _jpeg(pixels, exif, profile))


def _exif(target: Image) -> bytes:
    """Return the EXIF of the JPEG that the image was read from, or an empty string."""
    from PIL.JpegImagePlugin import JpegImageFile

    if target.path is None or not target.path.is_file() or not _is_jpeg(target.path):
        return b""
    height, width, _ = target.levels[0].shape
    # Not PIL.Image.open, which refuses large images as "decompression bombs".
    with JpegImageFile(target.path) as picture:
        exif = picture.getexif()
    if not exif:
        return b""
    details = exif.get_ifd(_EXIF_DETAILS)
    # The pixels were turned upright when they were read.
    exif[_ORIENTATION] = 1
    details |= {tag: size for tag, size in ((_EXIF_WIDTH, width), (_EXIF_HEIGHT, height)) if tag in details}
    return exif.tobytes()


def _is_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == b"\xff\xd8\xff"


def _jpeg(pixels: NDArray[Any], exif: bytes, profile: bytes) -> bytes:
    import PIL.Image

    file = io.BytesIO()
    picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0, exif=exif, icc_profile=profile)
    return file.getvalue()


def _png(pixels: NDArray[Any], exif: bytes, profile: bytes) -> bytes:
    import imagecodecs

    plain = bytes(imagecodecs.png_encode(pixels[..., 0] if pixels.shape[2] == 1 else pixels, level=6))
    header = 33  # bytes: the signature and the first chunk, IHDR
    extra = _png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)) if profile else b""
    extra += _png_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")) if exif else b""
    return plain[:header] + extra + plain[header:]


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
