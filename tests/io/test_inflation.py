"""The length of compressed data is known before they are decompressed."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib

import imagecodecs
import numcodecs
import numpy as np
import pytest

from dehazexl.io.inflation import inflates_beyond

DATA = np.random.default_rng(0).integers(0, 9, 3_000_000, np.uint8).tobytes()
ZEROS = bytes(3_000_000)
PACKED = {
    "gzip": [gzip.compress(DATA), gzip.compress(ZEROS)],
    "zlib": [zlib.compress(DATA), zlib.compress(ZEROS)],
    "bz2": [bz2.compress(DATA), bz2.compress(ZEROS)],
    "lzma": [lzma.compress(DATA), lzma.compress(ZEROS)],
    "blosc": [numcodecs.Blosc().encode(DATA), numcodecs.Blosc("zstd").encode(ZEROS)],
    "lz4": [numcodecs.LZ4().encode(DATA), numcodecs.LZ4().encode(ZEROS)],
    "zstd": [numcodecs.Zstd().encode(DATA), imagecodecs.zstd_encode(ZEROS)],
}
CASES = [(codec, bytes(data)) for codec, each in PACKED.items() for data in each]


@pytest.mark.parametrize(("codec", "data"), CASES, ids=[f"{codec}-{len(data)}" for codec, data in CASES])
def test_the_limit_is_exact(codec: str, data: bytes) -> None:
    assert not inflates_beyond(codec, data, len(DATA))
    assert inflates_beyond(codec, data, len(DATA) - 1)


def test_a_zstd_frame_without_a_length() -> None:
    # Magic, a descriptor without length, a window of 1 MB, and one last block that repeats a byte 100,000 times.
    frame = b"\x28\xb5\x2f\xfd\x00\x50" + (100_000 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"a"
    assert imagecodecs.zstd_decode(frame, out=200_000) == b"a" * 100_000
    assert not inflates_beyond("zstd", frame, 100_000)
    assert inflates_beyond("zstd", frame, 99_999)


@pytest.mark.parametrize("codec", sorted(PACKED.keys() - {"lz4"}))  # any four bytes are a length of lz4
def test_damaged_data_are_left_to_the_decoder(codec: str) -> None:
    whole = bytes(PACKED[codec][0])
    for data in (b"", b"\x28\xb5\x2f\xfd", whole[:20], whole[:1000], b"x" + whole):
        assert not inflates_beyond(codec, data, 2 * len(DATA))
