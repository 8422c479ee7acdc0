"""Length of compressed data before they are decompressed in memory, so that no chunk is a bomb."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any

DEFLATE_RATIO = 1032
"""Bytes at most that deflate makes of one."""
STEP = 2**20
BLOSC_VERSION = b"\2"
MAX_MEMBERS = 16 * 2**20
"""Bytes of the list of members of a zip file at most, a quarter of a million of them: reading it takes seconds."""
ZSTD_SIZES = {0: 1, 1: 2, 2: 4, 3: 8}
"""Bytes of the length in the header of a zstd frame, by the two highest bits of its descriptor."""


class Members(io.FileIO):
    """A zip file of which `zipfile` reads the list of members, unless that is too long."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read some bytes; the list of members is read at once.

        Raises
        ------
        ValueError
            If it has more than `MAX_MEMBERS` bytes.
        """
        if size is not None and size > MAX_MEMBERS:
            raise ValueError(f"{self.name} has a list of members of {size} bytes, larger than {MAX_MEMBERS}: unzip it")
        return super().read(size)


def inflates_beyond(codec: str, data: bytes, limit: int) -> bool:
    """Return whether data decompress to more than `limit` bytes; False for data that are damaged.

    Headers that give the length are read; other data are decompressed in steps that are dropped.
    """
    if codec in ("gzip", "zlib"):
        return len(data) * DEFLATE_RATIO > limit and _exceeds(zlib.decompressobj(47), data, limit)
    if codec == "bz2":
        return _exceeds(bz2.BZ2Decompressor(), data, limit)
    if codec == "lzma":
        return _exceeds(lzma.LZMADecompressor(), data, limit)
    if codec == "blosc":  # of any length: room is made for what the header claims
        return data[:1] == BLOSC_VERSION and int.from_bytes(data[4:8], "little") > limit
    if codec == "lz4":
        return int.from_bytes(data[:4], "little") > limit
    return codec == "zstd" and data.startswith(b"\x28\xb5\x2f\xfd") and _zstd_exceeds(data, limit)


def _exceeds(decoder: Any, data: bytes, limit: int) -> bool:
    """Decompress data in steps until they end or exceed the limit."""
    total = 0
    # zlib returns what it did not use; the others keep it, and are fed nothing.
    rest: Callable[[], bytes] = (lambda: decoder.unconsumed_tail) if hasattr(decoder, "unconsumed_tail") else bytes
    try:
        part = decoder.decompress(data, STEP)
        while part and total <= limit:
            total += len(part)
            part = b"" if decoder.eof else decoder.decompress(rest(), STEP)
    except (zlib.error, OSError, EOFError, lzma.LZMAError):
        return False
    return total > limit


def _zstd_exceeds(data: bytes, limit: int) -> bool:
    """Read the length in the header of a zstd frame; without one, decompress into a buffer of the limit."""
    descriptor = data[4] if len(data) > 4 else 0
    single, size = bool(descriptor & 0x20), ZSTD_SIZES[descriptor >> 6]
    if descriptor >> 6 or single:
        start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
        return int.from_bytes(data[start : start + size], "little") > limit
    import imagecodecs

    try:
        imagecodecs.zstd_decode(data, out=limit)
    except (RuntimeError, ValueError) as error:
        return "small" in str(error)
    return False
