"""Tags of a TIFF that GDAL does not write: EXIF with GPS, XMP, IPTC, and those of cameras and programs."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.io.exif import FOR_PROGRAMS, TEXTS, directories, exif_of_tiff, parse_exif

if TYPE_CHECKING:
    from pathlib import Path

    import tifffile

    from dehazexl.image.image import Image

EXIF_IFD, GPS_IFD, XMP, IPTC = 0x8769, 0x8825, 700, 33723
KINDS = {XMP: 1, IPTC: 7, EXIF_IFD: 4, GPS_IFD: 4}
"""Types of the tags: bytes, undefined, and offsets of 4 bytes; others are texts."""
ASCII, OFFSET = 2, 4
STANDARD = (269, 271, 272, 285, 286, 287, 297, 316, 337)
"""Tags below `PRIVATE` that do not describe the pixels: names of document, make and model of the camera, name, position
and number of the page, host computer, target printer."""
CAMERA = (271, 272)
"""Make and model, which are in EXIF, too."""
PRIVATE = 32768
"""Codes from here on belong to programs and cameras."""
INTERPRETED = frozenset(
    {
        *(33432, 33550, 33723, 33920, 33922, 34264, 34665, 34675, 34735, 34736, 34737, 34853, 40965),
        *(42112, 42113, 50674, 50844),  # of GDAL
        *(33628, 33629, 33630, 33631, 34361, 34362, 34412, 50838, 50839),  # of microscopy
        *(32781, 32932, 34377, 37724),  # of editors: layers and previews of the old pixels
        *(33421, 33422, *range(50706, 50779)),  # of raw images
    }
)
"""Private tags that are read as what they mean, or describe the old pixels."""
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 1, 7: 1, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8}
"""Bytes of a number by the type of a tag; a rational has two."""
LONGEST = 2**20
"""Bytes of a private tag that is kept, at most."""


def photo_metadata(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Return EXIF, XMP and IPTC of the first page of a TIFF as bytes, and private tags, where it has them."""
    tags = tif.pages.first.tags
    found: dict[str, Any] = {}
    for code, name in ((XMP, "xmp"), (IPTC, "iptc")):
        if code in tags:
            found[name] = _raw(tif, tags[code])
    if any(code in tags for code in (EXIF_IFD, GPS_IFD, *CAMERA)) and (exif := exif_of_tiff(tif.filehandle.path)):
        found["exif"] = exif
    private = (tag for tag in tags if _is_private(tag.code))
    kept = [tag for tag in private if int(tag.dtype) in SIZES and tag.valuebytecount <= LONGEST]
    if kept:
        found["tags"] = {str(tag.code): _private(tif, tag) for tag in kept}
    return found


def description_of(page: tifffile.TiffPage) -> str:
    """Return the description of a page for people; tifffile adds another one for programs. Empty if there is none."""
    texts = (tag.value for tag in page.tags.getall(270) or ())
    return next((text for text in texts if isinstance(text, str) and text and not FOR_PROGRAMS.match(text)), "")


def _is_private(code: int) -> bool:
    """Return whether a tag is kept as it is."""
    return code in STANDARD or (code >= PRIVATE and code not in INTERPRETED)


def _private(tif: tifffile.TiffFile, tag: tifffile.TiffTag) -> list[Any]:
    """Return the type of a tag, its count, and its bytes in little-endian order as hexadecimal digits."""
    size, data = SIZES[int(tag.dtype)], _raw(tif, tag)
    if tif.byteorder == ">" and size > 1:
        data = np.frombuffer(data, f">u{size}").astype(f"<u{size}").tobytes()
    return [int(tag.dtype), tag.count, data.hex()]


def _raw(tif: tifffile.TiffFile, tag: tifffile.TiffTag) -> bytes:
    """Return the bytes of a tag as they are in the file."""
    tif.filehandle.seek(tag.valueoffset)
    return bytes(tif.filehandle.read(tag.valuebytecount))


def photo_tags(target: Image) -> dict[int, Any]:
    """Return XMP, IPTC and the texts of EXIF as bytes, its directories as mappings; type, count and bytes of others."""
    said = target.metadata
    tags: dict[int, Any] = {code: said[name] for code, name in ((XMP, "xmp"), (IPTC, "iptc")) if said.get(name)}
    for code, (kind, count, digits) in (said.get("tags") or {}).items():
        if _is_private(int(code)):
            tags[int(code)] = int(kind), int(count), bytes.fromhex(digits)
    if exif := said.get("exif"):
        found = directories(parse_exif(exif))
        tags |= {code: found[code] for code in (EXIF_IFD, GPS_IFD) if code in found}
        tags |= {code: f"{found[0][code]}\0".encode() for code in TEXTS if found.get(0, {}).get(code)}
    return tags


def add_tags(path: Path, tags: dict[int, Any]) -> None:
    """Add tags to the first page of a TIFF: its directory moves to the end of the file.

    Parameters
    ----------
    path
        The file.
    tags
        By the code of the tag: bytes; a mapping for a directory; or type, count and bytes.
    """
    from tifffile import TiffFile

    with TiffFile(path) as tif:
        form, first = tif.tiff, tif.pages.first.offset
    order = form.byteorder
    with path.open("r+b") as file:
        entries, following = _read_directory(file, first, form, order)
        for code, value in tags.items():
            kind = value[0] if isinstance(value, tuple) else KINDS.get(code, ASCII)
            data = value[2] if isinstance(value, tuple) else value
            count = value[1] if isinstance(value, tuple) else len(value) if isinstance(value, bytes) else 1
            if isinstance(data, bytes) and len(data) <= form.offsetsize:
                entries[code] = _entry(code, kind, count, data, form)
                continue
            place = _append_at(file)
            file.write(data if isinstance(data, bytes) else directory_bytes(data, place, order))
            entries[code] = _entry(code, kind, count, place, form, is_offset=not isinstance(data, bytes))
        moved = _append_at(file)
        file.write(struct.pack(form.tagnoformat, len(entries)))
        file.write(b"".join(entries[code] for code in sorted(entries)) + following)
        file.seek(8 if form.version == 43 else 4)
        file.write(struct.pack(form.offsetformat, moved))


def _append_at(file: Any) -> int:
    """Move to the end of a file, on an even offset, and return it."""
    end = file.seek(0, 2)
    file.write(b"\0" * (end % 2))
    return end + end % 2


def directory_bytes(values: dict[int, Any], place: int, order: str) -> bytes:
    """Return a directory of EXIF as it is written at a place of a file."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    directory = ImageFileDirectory_v2(b"II*\0\0\0\0\0" if order == "<" else b"MM\0*\0\0\0\0")
    for code, value in values.items():
        directory[code] = value
    return bytes(directory.tobytes(place))


def _read_directory(file: Any, offset: int, form: Any, order: str) -> tuple[dict[int, bytes], bytes]:
    """Return the entries of a directory by their codes, and the link to the next one."""
    file.seek(offset)
    (count,) = struct.unpack(form.tagnoformat, file.read(form.tagnosize))
    entries = [file.read(form.tagsize) for _ in range(count)]
    return {struct.unpack(order + "H", entry[:2])[0]: entry for entry in entries}, file.read(form.offsetsize)


def _entry(code: int, kind: int, count: int, value: bytes | int, form: Any, is_offset: bool = False) -> bytes:
    """Return an entry of a directory: its value, or the offset of it; `is_offset` if the value itself is an offset."""
    order = form.byteorder
    head = struct.pack(order + "HH", code, kind)
    head += struct.pack(form.offsetformat, count)
    if isinstance(value, bytes):
        return head + value.ljust(form.offsetsize, b"\0")
    if is_offset:
        return head + struct.pack(order + "I", value).ljust(form.offsetsize, b"\0")
    return head + struct.pack(form.offsetformat, value)
