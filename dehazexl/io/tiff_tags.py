"""Tags of a TIFF that GDAL does not write: EXIF with GPS, XMP and IPTC."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import tifffile

    from dehazexl.image.image import Image

EXIF_IFD, GPS_IFD, XMP, IPTC = 0x8769, 0x8825, 700, 33723
KINDS = {XMP: 1, IPTC: 7, EXIF_IFD: 4, GPS_IFD: 4}
"""Types of the tags: bytes, undefined, and offsets of 4 bytes; others are texts."""
ASCII, OFFSET = 2, 4


def photo_metadata(tif: tifffile.TiffFile) -> dict[str, bytes]:
    """Return EXIF, XMP and IPTC of the first page of a TIFF as bytes, where it has them."""
    tags = tif.pages.first.tags
    found: dict[str, bytes] = {}
    for code, name in ((XMP, "xmp"), (IPTC, "iptc")):
        if code in tags:
            found[name] = _raw(tif, tags[code])
    if EXIF_IFD in tags or GPS_IFD in tags:
        from dehazexl.io.exif import exif_of_tiff

        if exif := exif_of_tiff(tif.filehandle.path):
            found["exif"] = exif
    return found


def _raw(tif: tifffile.TiffFile, tag: tifffile.TiffTag) -> bytes:
    """Return the bytes of a tag as they are in the file."""
    tif.filehandle.seek(tag.valueoffset)
    return bytes(tif.filehandle.read(tag.valuebytecount))


def photo_tags(target: Image) -> dict[int, Any]:
    """Return XMP, IPTC and the texts of EXIF as bytes, its directories as mappings, where the input has them."""
    said = target.metadata
    tags: dict[int, Any] = {code: said[name] for code, name in ((XMP, "xmp"), (IPTC, "iptc")) if said.get(name)}
    if exif := said.get("exif"):
        from dehazexl.io.exif import TEXTS, directories, parse_exif

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
        Bytes, or a mapping for a directory, by the code of the tag.
    """
    from tifffile import TiffFile

    with TiffFile(path) as tif:
        form, first = tif.tiff, tif.pages.first.offset
    order = form.byteorder
    with path.open("r+b") as file:
        entries, following = _read_directory(file, first, form, order)
        for code, value in tags.items():
            if isinstance(value, bytes) and len(value) <= form.offsetsize:
                entries[code] = _entry(code, len(value), value, form, order)
                continue
            place = _append_at(file)
            data = value if isinstance(value, bytes) else directory_bytes(value, place, order)
            file.write(data)
            entries[code] = _entry(code, len(value) if isinstance(value, bytes) else 1, place, form, order)
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


def _entry(code: int, count: int, value: bytes | int, form: Any, order: str) -> bytes:
    """Return an entry of a directory: its value, or the offset of it."""
    kind = KINDS.get(code, ASCII)
    head = struct.pack(order + "HH", code, kind)
    head += struct.pack(form.offsetformat, count)
    if isinstance(value, bytes):
        return head + value.ljust(form.offsetsize, b"\0")
    if kind == OFFSET:
        return head + struct.pack(order + "I", value).ljust(form.offsetsize, b"\0")
    return head + struct.pack(form.offsetformat, value)
