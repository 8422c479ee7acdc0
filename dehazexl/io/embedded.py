"""Sizes in the headers of images that are embedded as tiles: a decoder allocates what they claim."""

from __future__ import annotations

import struct

# Start of frame, of all kinds; the rest of C0 to CF are tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset([0x01, *range(0xD0, 0xDA)])


def embedded_sides(data: bytes) -> tuple[int, int] | None:
    """Return height and width in the header of a JPEG, JPEG 2000, PNG, WebP or LERC; None for anything else."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg_sides(data)
        if data.startswith(b"\x89PNG"):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith(b"Lerc2 "):
            height, width = struct.unpack_from("<II", data, 14)
        elif data[8:16] == b"WEBPVP8X":
            width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        elif (start := data[:4096].find(b"\xff\x4f\xff\x51")) >= 0:
            width, height, left, top = struct.unpack_from(">IIII", data, start + 8)
            return height - top, width - left
        else:
            return None
    except struct.error:
        return None
    return height, width


def _jpeg_sides(data: bytes) -> tuple[int, int] | None:
    """Return height and width in the first frame of a JPEG."""
    at = 2
    while at + 4 <= len(data):
        mark = data[at + 1]
        if data[at] != 0xFF or mark == 0xFF:
            at += 1
        elif mark in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        else:
            at += 2 if mark in _ALONE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
