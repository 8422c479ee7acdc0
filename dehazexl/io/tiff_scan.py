"""A look at the directories of a TIFF before tifffile parses it: their number, their tables, and other files."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from dehazexl.io.source import MAX_METADATA, check_regular

MAX_PAGES = 10_000
"""Pages and overviews at most: tifffile parses each."""
MAX_TAGS = 4096
MAX_SEGMENTS = 2**22
"""Tiles or strips of a page at most, as many as a terapixel has in tiles of 512 x 512: a table in Python takes 40 times
as many bytes."""
SUBIFDS = 330
TABLES = (273, 279, 324, 325)
"""Tags with a number for each tile or strip."""
SKIPPED = (34377, 37724)
"""Tags of Photoshop, which are never read and hold all its layers."""
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type."""


@dataclass(frozen=True)
class Layout:
    """Forms, as of `struct`, of the parts of a directory.

    Attributes
    ----------
    start
        Position of the offset of the first directory.
    count, tag, link
        The number of tags, a tag (code, type, count, value or its offset) and the offset of the next directory.
    """

    start: int
    count: str
    tag: str
    link: str

    @classmethod
    def of(cls, path: Path, head: bytes) -> Layout:
        """Return the layout that the first bytes of a file announce."""
        order = "<" if head.startswith(b"II") else ">"
        if head[2:4] in (b"+\0", b"\0+"):  # BigTIFF
            return cls(8, f"{order}Q", f"{order}HHQ8s", f"{order}Q")
        long = path.suffix == ".ndpi"  # a classic TIFF with 64-bit offsets
        return cls(4, f"{order}H", f"{order}HHI4s", f"{order}{'Q' if long else 'I'}")


def scan_directories(path: Path) -> None:
    """Check all directories of a TIFF.

    Raises
    ------
    ValueError
        If one lies past the end of the file, they form a loop, there are more than `MAX_PAGES`, or one has tags or
        tables too large to be read.
    """
    with path.open("rb") as file:
        layout = Layout.of(path, file.read(8))
        size, seen = os.fstat(file.fileno()).st_size, set[int]()
        (offset,) = _read(file, layout.start, layout.link) or (0,)
        while offset:
            if offset in seen:
                raise ValueError(f"{path} is damaged: its list of pages is a loop; copy or download it again")
            _check_offset(path, offset, size, layout, f"page {len(seen)}")
            seen.add(offset)
            offset, overviews = _scan_directory(path, file, offset, layout, size)
            if len(overviews) + len(seen) > MAX_PAGES:
                raise ValueError(f"{path} has more than {MAX_PAGES} pages or overviews: save one page to its own file")
            for number, overview in enumerate(overviews, start=1):
                _check_offset(path, overview, size, layout, f"overview {number}")
                _scan_directory(path, file, overview, layout, size)


def _check_offset(path: Path, offset: int, size: int, layout: Layout, name: str) -> None:
    """Check that a directory lies in the file."""
    if offset + struct.calcsize(layout.count) > size:
        raise ValueError(
            f"{path} is cut short: {name} lies past the end of its {size} bytes; copy or download it again"
        )


def _scan_directory(path: Path, file: BinaryIO, offset: int, layout: Layout, size: int) -> tuple[int, tuple[int, ...]]:
    """Check the tags of a directory; return the offsets of the next one and of its overviews."""
    (count,) = _read(file, offset, layout.count) or (0,)
    if count > MAX_TAGS:
        raise ValueError(f"{path} is damaged: a page has {count} tags, more than {MAX_TAGS}; copy or download it again")
    start = offset + struct.calcsize(layout.count)
    overviews: tuple[int, ...] = ()
    file.seek(start)
    end = start + count * struct.calcsize(layout.tag)
    entries = file.read(end - start)
    for code, kind, number, value in _entries(entries, layout):
        limit = MAX_SEGMENTS if code in TABLES else MAX_METADATA // SIZES.get(kind, 1)
        if number > limit and code not in SKIPPED:
            remedy = "write it in larger tiles" if code in TABLES else "remove the tag"
            raise ValueError(f"{path} has {number} values in its tag {code}, larger than the {limit} read: {remedy}")
        if code == SUBIFDS:
            overviews = _read_offsets(file, kind, number, value, layout)
    (following,) = _read(file, end, layout.link) or (size,)
    return following, overviews


def _entries(data: bytes, layout: Layout) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield code, type, count and value of the whole tags in some bytes."""
    length = struct.calcsize(layout.tag)
    yield from struct.iter_unpack(layout.tag, data[: len(data) // length * length])


def _read(file: BinaryIO, offset: int, form: str) -> tuple[int, ...] | None:
    """Read numbers at an offset; None past the end of the file."""
    length = struct.calcsize(form)
    file.seek(offset)
    data = file.read(length)
    return struct.unpack(form, data) if len(data) == length else None


def _read_offsets(file: BinaryIO, kind: int, count: int, value: bytes, layout: Layout) -> tuple[int, ...]:
    """Read the offsets in a tag, from the tag itself or from where it points."""
    count = min(count, MAX_PAGES + 1)
    form = f"{layout.count[0]}{count}{'Q' if SIZES.get(kind) == 8 else 'I'}"
    if (length := struct.calcsize(form)) <= len(value):
        return struct.unpack(form, value[:length])
    (at,) = struct.unpack(f"{layout.count[0]}{'Q' if len(value) == 8 else 'I'}", value)
    return _read(file, at, form) or ()


def check_companions(path: Path, xml: str | None) -> None:
    """Check the further files of an OME-TIFF before tifffile opens them.

    Raises
    ------
    ValueError
        If the metadata name a file in another folder, or one that cannot be read safely, see `scan_directories`.
    """
    try:
        root = ElementTree.fromstring(xml or "<none/>")
    except ElementTree.ParseError:
        return
    for name in sorted({uuid.get("FileName") or path.name for uuid in root.findall(".//{*}UUID")} - {path.name}):
        other = path.parent / name
        if Path(name).name != name or other.resolve().parent not in (path.parent.resolve(), path.resolve().parent):
            raise ValueError(f"{path} names the file {name!r}, which leaves its folder: copy that file next to it")
        if other.exists():
            check_regular(other)
            scan_directories(other)
