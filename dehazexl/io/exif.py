"""EXIF of photographs: read once, mended where it cannot be written, and carried from format to format."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import PIL.Image
    from PIL.Image import Exif

ORIENTATION, DETAILS, GPS = 0x0112, 0x8769, 0x8825
MIRRORED, UPSIDE_DOWN, TRANSPOSED = (2, 3, 6, 7), (3, 4, 7, 8), (5, 6, 7, 8)
"""Values of the tag Orientation. An image becomes upright by swapping rows and columns (transposed), then reversing the
order of rows (upside down) and of columns (mirrored)."""
WIDTH, HEIGHT = 0xA002, 0xA003
PREFIX = b"Exif\0\0"
TEXTS = {270: "ImageDescription", 271: "Make", 272: "Model", 306: "DateTime", 315: "Artist", 33432: "Copyright"}
"""Texts of the first directory of EXIF."""
UNREADABLE = (struct.error, TypeError, ValueError, OSError, SyntaxError, KeyError, IndexError, EOFError)
"""Errors of Pillow where EXIF is damaged."""
UNWRITABLE = (struct.error, TypeError, ValueError, OverflowError, ZeroDivisionError)
"""Errors of Pillow where a value does not fit the type of its tag."""

FOR_PROGRAMS = re.compile(r'\s*(<|\{"shape": ?\[|ImageJ=|Aperio)')
"""Start of a description that describes the pages of a file to programs: of OME, tifffile, ImageJ and Aperio."""

Directories = dict[int, dict[int, Any]]
"""Values by tag: of the first directory, 0, and of those of details and position by their tags."""


def parse_exif(data: bytes) -> Exif:
    """Parse EXIF, with or without its prefix."""
    from PIL.Image import Exif

    exif = Exif()
    try:
        exif.load(data if data.startswith(PREFIX) else PREFIX + data)
    except UNREADABLE:
        return Exif()
    return exif


def exif_of(file: PIL.Image.Image) -> Exif:
    """Return the EXIF of a file that Pillow has opened; empty if it is damaged, which costs the EXIF alone."""
    from PIL.Image import Exif

    try:
        return file.getexif()
    except UNREADABLE:
        return Exif()


def turned_upright(file: PIL.Image.Image) -> PIL.Image.Image:
    """Return a photograph turned by its orientation. Unlike ``ImageOps.exif_transpose``, it writes no EXIF."""
    from PIL.Image import Transpose

    turns = (
        Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM, Transpose.TRANSPOSE,
        Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90,
    )  # fmt: skip
    orientation = orientation_of(exif_of(file))
    return file if orientation == 1 else file.transpose(turns[orientation - 2])


def directories(exif: Exif) -> Directories:
    """Return the directories of EXIF that hold values."""
    found: Directories = {}
    try:
        found[0] = {tag: value for tag, value in exif.items() if tag not in (DETAILS, GPS)}
        found |= {tag: dict(exif.get_ifd(tag)) for tag in (DETAILS, GPS) if tag in exif}
    except UNREADABLE:
        pass  # the directories before the damaged one are kept
    return {tag: values for tag, values in found.items() if values}


def orientation_of(exif: Mapping[int, Any]) -> int:
    """Return the orientation in EXIF: 1, upright, for values beyond 1 to 8."""
    value = exif.get(ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright_exif(exif: Exif, height: int, width: int) -> tuple[bytes, list[str]]:
    """Return EXIF for pixels that were turned upright when they were read.

    Parameters
    ----------
    exif
        EXIF of the input.
    height, width
        Size of the image; 0 if it is not turned.

    Returns
    -------
    data : bytes
        EXIF with its prefix, without the entries that cannot be written; empty if there is none.
    lost : list of str
        Names of those entries.
    """
    found = directories(exif)
    main, details = found.get(0, {}), found.get(DETAILS, {})
    if ORIENTATION in main and height:
        main[ORIENTATION] = 1
    details |= {tag: size for tag, size in ((WIDTH, width), (HEIGHT, height)) if size and tag in details}
    return to_bytes(found)


def to_bytes(found: Directories) -> tuple[bytes, list[str]]:
    """Return directories as EXIF with its prefix, and the names of entries that cannot be written."""
    from PIL.Image import Exif

    lost = [name for values in found.values() for name in _mended(values)]
    exif = Exif()
    for tag, values in found.items():
        if tag:
            exif[tag] = values
        else:
            for each, value in values.items():
                exif[each] = value
    try:
        return exif.tobytes() if any(found.values()) else b"", lost
    except UNWRITABLE:
        return b"", ["EXIF"]


def _mended(values: dict[int, Any]) -> list[str]:
    """Remove the entries that Pillow cannot write; return their names."""
    from PIL.ExifTags import GPSTAGS, TAGS
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    lost = []
    for tag, value in list(values.items()):
        alone = ImageFileDirectory_v2()
        try:
            alone[tag] = value
            alone.tobytes()
        except UNWRITABLE:
            del values[tag]
            lost.append(str(TAGS.get(tag) or GPSTAGS.get(tag) or tag))
    return lost


def exif_of_tiff(path: str) -> bytes:
    """Return EXIF with its prefix from a TIFF: its texts, details and position. BigTIFF has none."""
    from PIL.Image import Exif

    source = Exif()
    with open(path, "rb") as file:
        if file.read(4)[2:] not in (b"*\0", b"\0*"):
            return b""
        file.seek(0)
        try:
            source.load_from_fp(file)
        except UNREADABLE:
            return b""
        found = directories(source)
    texts = {tag: text for tag, text in found.get(0, {}).items() if tag in TEXTS and isinstance(text, str)}
    if FOR_PROGRAMS.match(texts.get(270, "")):
        del texts[270]
    return to_bytes({0: texts, **{tag: found[tag] for tag in (DETAILS, GPS) if tag in found}})[0]
