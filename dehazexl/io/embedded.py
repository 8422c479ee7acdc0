"""Sizes in the headers of images that are embedded as tiles: a decoder allocates what they claim."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

# Start of frame, of all kinds; the rest of C0 to CF are tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset([0x01, *range(0xD0, 0xDA)])
_SIGNATURES = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x0cJXL \r\n\x87\n")
_CODESTREAMS = {b"jp2c": 0, b"jxlc": 0, b"jxlp": 4}
"""Boxes with the pixels of JPEG 2000 and JPEG XL, and the bytes in them before these."""
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width over height, as JPEG XL numbers them from 1."""
_WIDEST = 16
"""Bytes of the largest pixel of JPEG XR: four floats."""


def embedded_size(data: bytes) -> tuple[int, int, int] | None:
    """Return height, width and the bytes that decoding takes for a pixel, as the header of an image claims.

    JPEG, JPEG 2000, JPEG XL, JPEG XR, PNG, WebP and LERC are known; None for anything else.
    """
    if data.startswith(_SIGNATURES):
        data = _codestream(data)
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
        if data.startswith(b"\xff\x4f\xff\x51"):
            return _jpeg2000_size(data)
        if data.startswith(b"\xff\x0a"):
            return _jpegxl_size(data)
        if data.startswith(b"II\xbc"):
            return _jpegxr_size(data)
        if data.startswith(b"\x89PNG"):
            width, height = struct.unpack_from(">II", data, 16)
            return height, width, 8
        if data.startswith(b"Lerc2 "):
            return _lerc_size(data)
        if data.startswith(b"CntZImage "):
            height, width = struct.unpack_from("<II", data, 18)
            return height, width, 8
        return _webp_size(data) if data[8:12] == b"WEBP" else None
    except struct.error:
        return None


def _codestream(data: bytes) -> bytes:
    """Return a file of boxes from its first codestream on; empty if it has none."""
    return next((data[start + _CODESTREAMS[kind] :] for kind, start in _boxes(data) if kind in _CODESTREAMS), b"")


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield type and start of the boxes of a file."""
    at = 0
    while at + 16 <= len(data):
        size, kind, long = struct.unpack_from(">I4sQ", data, at)
        start, size = (at + 16, long) if size == 1 else (at + 8, size)
        yield kind, start
        if size < start - at:  # 0 is to the end
            return
        at += size


def _jpeg_size(data: bytes) -> tuple[int, int, int] | None:
    """Read the first frame of a JPEG."""
    at = 2
    while at + 4 <= len(data):
        mark = data[at + 1]
        if data[at] != 0xFF or mark == 0xFF:
            at += 1
        elif mark in _FRAMES:
            bits, height, width, bands = struct.unpack_from(">BHHB", data, at + 4)
            return height, width, bands * -(-bits // 8)
        else:
            at += 2 if mark in _ALONE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _jpeg2000_size(data: bytes) -> tuple[int, int, int]:
    """Read the size in a codestream of JPEG 2000, which is decoded to 32 bits for each band."""
    width, height, left, top = struct.unpack_from(">IIII", data, 8)
    (bands,) = struct.unpack_from(">H", data, 40)
    return height - top, width - left, 4 * bands


def _jpegxl_size(data: bytes) -> tuple[int, int, int]:
    """Read the header of a codestream of JPEG XL, which is decoded to 32 bits for each band (ISO/IEC 18181-1)."""
    bits = _Bits(data[2:])
    small = bits.read(1)
    height = 8 * (1 + bits.read(5)) if small else 1 + bits.one_of(9, 13, 18, 30)
    if ratio := bits.read(3):
        above, below = _RATIOS[ratio - 1]
        width = height * above // below
    else:
        width = 8 * (1 + bits.read(5)) if small else 1 + bits.one_of(9, 13, 18, 30)
    return height, width, 4 * (3 + _further_bands(bits))


def _further_bands(bits: _Bits) -> int:
    """Read the number of bands beside the colors, from the metadata after the size of a JPEG XL."""
    if bits.read(1):  # all defaults
        return 0
    if bits.read(1):  # orientation, then an intrinsic size, a preview and an animation, which tiles do not have
        bits.read(3)
        if bits.read(3):
            return 2**12
    floats = bits.read(1)
    bits.one_of(-1, -1, -1, 6)  # bits of a sample
    if floats:
        bits.read(4)
    bits.read(1)  # whether 16 bits suffice
    choice = bits.read(2)
    return (0, 1, 2 + bits.peek(4), 1 + bits.peek(12))[choice]


class _Bits:
    """Numbers in the bits of a header, the lowest bit first; zeros beyond its end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data[:64], "little")

    def peek(self, count: int) -> int:
        """Return a number of some bits."""
        return self._value & (1 << count) - 1

    def read(self, count: int) -> int:
        """Return a number of some bits, and go on after it."""
        value = self.peek(count)
        self._value >>= count
        return value

    def one_of(self, *counts: int) -> int:
        """Return a number of one of four counts of bits, as the two before it choose; -1 is a constant, read as 0."""
        return self.read(max(0, counts[self.read(2)]))


def _jpegxr_size(data: bytes) -> tuple[int, int, int] | None:
    """Read the largest header of a codestream in a JPEG XR (ITU-T T.832): it may have one for its alpha."""
    found = []
    for match in re.finditer(b"WMPHOTO\0", data):
        (flags,) = struct.unpack_from("B", data, match.end() + 2)
        width, height = struct.unpack_from(">HH" if flags & 0x80 else ">II", data, match.end() + 4)
        found.append((height + 1, width + 1, _WIDEST))
    return max(found, default=None, key=lambda size: size[0] * size[1])


def _lerc_size(data: bytes) -> tuple[int, int, int]:
    """Read the header of a LERC, whose values are decoded to 64 bits at most."""
    (version,) = struct.unpack_from("<I", data, 6)
    height, width, depth = struct.unpack_from("<III", data, 14 if version >= 3 else 10)
    return height, width, 8 * (depth if version >= 4 else 1)


def _webp_size(data: bytes) -> tuple[int, int, int] | None:
    """Read the header of a WebP, which is decoded to 32 bits twice."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        (sides,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    else:
        return None
    return height, width, 8
