"""Write small images as PNG and JPEG, in memory."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.io.photo_metadata import jpeg_markers, png_chunks
from dehazexl.io.raster_write import color_profile, resolution

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from dehazexl.image.image import Image
    from dehazexl.io.blocks import Block

_MOST_PIXELS, _LONGEST_SIDE = 2**28, 65500
_JPEG_QUALITY = 95
_LONGEST_EXIF = 65533
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
    bands -= target.masked and not png
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
        The image: its first level has the shape and dtype; its metadata may contain EXIF, XMP and IPTC.
    suffix
        Format: ``.png``, ``.jpg`` or ``.jpeg``.

    Yields
    ------
    int
        Number of pixels of each block.
    """
    pixels = np.empty(target.levels[0].shape, target.levels[0].dtype)
    for y, x, block in blocks:
        pixels[y : y + block.shape[0], x : x + block.shape[1]] = block
        yield block.shape[0] * block.shape[1]
    path.write_bytes(
        _png(pixels, target) if suffix == ".png" else _jpeg(pixels[..., : pixels.shape[2] - target.masked], target)
    )


def _jpeg(pixels: NDArray[Any], target: Image) -> bytes:
    import PIL.Image

    file = io.BytesIO()
    picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    exif, (extra, _) = bytes(target.metadata.get("exif", b"")), jpeg_markers(dict(target.metadata))
    density = resolution(target)
    more: dict[str, Any] = {}
    if (unit := density.get("RESOLUTIONUNIT")) in ("2", "3"):
        inch = 1 if unit == "2" else 2.54
        more["dpi"] = [round(float(density[name]) * inch) for name in ("XRESOLUTION", "YRESOLUTION")]
    if description := target.metadata.get("description"):
        more["comment"] = str(description).encode("utf-8", "replace")[:_LONGEST_EXIF]
    picture.save(
        file, "JPEG", quality=_JPEG_QUALITY, subsampling=0, exif=exif if len(exif) < _LONGEST_EXIF else b"",
        icc_profile=color_profile(target), extra=extra, **more,
    )  # fmt: skip
    return file.getvalue()


def _png(pixels: NDArray[Any], target: Image) -> bytes:
    import imagecodecs

    plain = bytes(imagecodecs.png_encode(pixels[..., 0] if pixels.shape[2] == 1 else pixels, level=6))
    header = 33  # bytes: the signature and the first chunk, IHDR
    return (
        plain[:header] + png_chunks(dict(target.metadata), color_profile(target), resolution(target)) + plain[header:]
    )
