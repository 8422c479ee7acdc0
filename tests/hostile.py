"""Hostile and broken files of every kind, built on the fly: each claims, hides or demands more than a file may."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import PIL.Image
import tifffile
import torch
from make_pictures import png
from safetensors.numpy import save_file

from dehazexl.model import SPECS, DehazeXL

Builder = Callable[[Path], Path]
KINDS: dict[str, tuple[Builder, str]] = {}
"""A builder, which writes into an empty folder and returns the input, and a pattern of the error, by kind."""

READING: set[str] = set()
"""Kinds that are opened, and refused when pixels are read."""

SHORT, LONG, LONG8 = (3, "<H"), (4, "<I"), (16, "<Q")
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def kind(words: str, reading: bool = False) -> Callable[[Builder], Builder]:
    """Enter a builder by its name."""

    def enter(builder: Builder) -> Builder:
        if reading:
            READING.add(builder.__name__)
        KINDS[builder.__name__] = (builder, words)
        return builder

    return enter


# ---- Zarr -----------------------------------------------------------------------------------------


def zarr3(folder: Path, shape: Sequence[int] = (64, 64), chunks: Sequence[int] = (64, 64), **fields: Any) -> Path:
    """Write the metadata of an array of version 3; its chunks are missing."""
    about = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [BYTES],
        "attributes": {},
        **fields,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zarr.json").write_text(json.dumps(about))
    return folder


def zarr2(folder: Path, chunk: bytes = b"", **fields: Any) -> Path:
    """Write an array of version 2 with one chunk."""
    about = {
        "zarr_format": 2,
        "shape": [64, 64],
        "chunks": [64, 64],
        "dtype": "<u2",
        "compressor": None,
        "fill_value": 0,
        "order": "C",
        "filters": None,
        **fields,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".zarray").write_text(json.dumps(about))
    if chunk:
        (folder / "0.0").write_bytes(chunk)
    return folder


def ngff(folder: Path, path: str = "0", **dataset: Any) -> Path:
    """Write an OME-Zarr with one level at a path."""
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    levels = [{"path": path, "coordinateTransformations": scale, **dataset}]
    axes = [{"name": name, "type": "space"} for name in "yx"]
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    folder.mkdir(parents=True, exist_ok=True)
    about = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
    (folder / "zarr.json").write_text(json.dumps(about))
    zarr3(folder / "0")
    return folder


class Code:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


def mark(folder: Path) -> Path:
    """Return the folder that exists once the code of a hostile file ran."""
    return folder / "code-ran"


@kind("16,777,216 pixels")
def zarr_of_endless_sides(folder: Path) -> Path:
    return zarr3(folder / "a.zarr", (2**40, 2**40), (1024, 1024))


@kind("re-chunk")
def zarr_in_one_chunk(folder: Path) -> Path:
    return zarr3(folder / "a.zarr", (40_000, 40_000), (40_000, 40_000))


@kind("re-chunk")
def zarr_of_single_pixels(folder: Path) -> Path:
    return zarr3(folder / "a.zarr", (2**20, 2**20), (1, 1))


@kind("re-chunk")
def zarr_with_a_chunk_larger_than_the_image(folder: Path) -> Path:
    return zarr3(folder / "a.zarr", (64, 64), (100_000, 100_000), data_type="uint16")


@kind("re-chunk")
def zarr_with_an_endless_shard(folder: Path) -> Path:
    inner = {"chunk_shape": [64, 64], "codecs": [BYTES], "index_codecs": [BYTES], "index_location": "end"}
    return zarr3(
        folder / "a.zarr",
        (2**20, 2**20),
        (2**20, 2**20),
        data_type="uint16",
        codecs=[{"name": "sharding_indexed", "configuration": inner}],
    )


@kind("not a readable Zarr")
def zarr_with_an_endless_fill_value(folder: Path) -> Path:
    path = zarr3(folder / "a.zarr", data_type="uint16", fill_value="HERE") / "zarr.json"
    path.write_text(path.read_text().replace('"HERE"', "1e400"))
    return path.parent


@kind("not a readable Zarr")
def zarr_with_nested_metadata(folder: Path) -> Path:
    path = zarr3(folder / "a.zarr") / "zarr.json"
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    return path.parent


@kind("larger than .* with fewer attributes$")
def zarr_with_endless_metadata(folder: Path) -> Path:
    path = zarr3(folder / "a.zarr")
    os.truncate(path / "zarr.json", 3 * 2**30)
    return path


@kind("a side of 0 pixels")
def zarr_with_chunks_without_pixels(folder: Path) -> Path:
    return zarr3(folder / "a.zarr", (64, 64), (0, 32))


@kind("larger than")
def zip_with_inflated_metadata(folder: Path) -> Path:
    path = folder / "a.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file, file.open("zarr.json", "w") as part:
        for _ in range(96):
            part.write(b" " * 2**20)
    return path


@kind("damaged chunk")
def zip_with_an_inflated_chunk(folder: Path) -> Path:
    path = folder / "a.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.write(zarr3(folder / "a", data_type="uint16") / "zarr.json", "zarr.json")
        with file.open("c/0/0", "w") as part:
            for _ in range(96):
                part.write(bytes(2**20))
    return path


@kind("bands")
def zarr_with_an_attribute_of_wrong_length(folder: Path) -> Path:
    return zarr3(folder / "a.zarr", attributes={"dehazexl": {"rgb": [0], "alpha": None}})


@kind("bands")
def zarr_with_bands_that_do_not_exist(folder: Path) -> Path:
    return zarr3(folder / "a.zarr", attributes={"dehazexl": {"rgb": [0, 1, 77], "alpha": 9}})


@kind("damaged Zarr")
def zarr_with_a_scale_of_words(folder: Path) -> Path:
    return ngff(folder / "a.zarr", coordinateTransformations=[{"type": "scale", "scale": ["a", "b"]}])


@kind("leaves")
def zarr_whose_level_lies_above(folder: Path) -> Path:
    zarr3(folder / "outside")
    return ngff(folder / "a.zarr", "../outside")


@kind("leaves")
def zarr_whose_level_is_a_link_out(folder: Path) -> Path:
    path = ngff(folder / "a.zarr", "1")
    (path / "1").symlink_to(zarr3(folder / "outside"))
    return path


@kind("leaves")
def zarr_whose_chunk_is_a_link_out(folder: Path) -> Path:
    (folder / "secret").write_bytes(bytes(64 * 64 * 2))
    path = zarr2(folder / "a.zarr")
    (path / "0.0").symlink_to(folder / "secret")
    return path


@kind("not a regular file")
def zarr_whose_chunk_is_a_pipe(folder: Path) -> Path:
    path = zarr2(folder / "a.zarr")
    os.mkfifo(path / "0.0")
    return path


@kind("not a regular file")
def zarr_whose_metadata_is_a_pipe(folder: Path) -> Path:
    path = folder / "a.zarr"
    path.mkdir()
    os.mkfifo(path / "zarr.json")
    return path


@kind("larger than")
def zarr_with_an_endless_chunk(folder: Path) -> Path:
    path = zarr2(folder / "a.zarr", b"1")
    os.truncate(path / "0.0", 10 * 2**30)
    return path


@kind("pickle'")
def zarr_with_a_pickled_chunk(folder: Path) -> Path:
    return zarr2(folder / "a.zarr", pickle.dumps(Code(mark(folder))), compressor={"id": "pickle"})


@kind("pickle'")
def zarr_with_a_pickling_filter(folder: Path) -> Path:
    return zarr2(folder / "a.zarr", pickle.dumps(Code(mark(folder))), filters=[{"id": "pickle"}])


@kind("inflates to more")
def zarr_with_a_gzip_bomb(folder: Path) -> Path:
    squeeze = zlib.compressobj(1, zlib.DEFLATED, 31)
    bomb = b"".join([squeeze.compress(bytes(2**20)) for _ in range(700)]) + squeeze.flush()
    return zarr2(folder / "a.zarr", bomb, compressor={"id": "gzip", "level": 1})


@kind("inflates to more")
def zarr_with_a_lying_zstd_header(folder: Path) -> Path:
    lie = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + bytes(64)
    return zarr2(folder / "a.zarr", lie, compressor={"id": "zstd", "level": 1})


@kind("inflates to more")
def zarr_with_a_lying_blosc_header(folder: Path) -> Path:
    lie = bytes([2, 1, 1, 2]) + struct.pack("<III", 2**31 - 64, 2**31 - 64, 80) + bytes(64)
    return zarr2(folder / "a.zarr", lie, compressor={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1})


@kind("inflates to more")
def zarr_with_a_blosc_header_that_lies_twice(folder: Path) -> Path:
    lie = bytes([2, 1, 1, 2]) + struct.pack("<III", 2**31 - 64, 2**31 - 64, 2**30) + bytes(64)
    return zarr2(folder / "a.zarr", lie, compressor={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1})


@kind("damaged chunk")
def zarr_with_a_blosc_header_of_too_little(folder: Path) -> Path:
    data = bytearray(numcodecs.Blosc().encode(bytes(64 * 64 * 2)))
    struct.pack_into("<I", data, 4, 64)
    return zarr2(folder / "a.zarr", bytes(data), compressor={"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1})


@kind("inflates to more")
def zarr_with_an_lz4_bomb(folder: Path) -> Path:
    # A byte, then copies of it: each further 255 in the length of a match copies as many.
    count = 2**30
    block = b"\x1f0\x01\0" + b"\xff" * ((count - 32) // 255) + b"\0"
    return zarr2(folder / "a.zarr", struct.pack("<I", count) + block, compressor={"id": "lz4", "acceleration": 1})


@kind("damaged chunk")
def zarr_with_an_lz4_header_of_too_little(folder: Path) -> Path:
    data = struct.pack("<I", 64) + numcodecs.LZ4().encode(bytes(64 * 64 * 2))[4:]
    return zarr2(folder / "a.zarr", data, compressor={"id": "lz4", "acceleration": 1})


@kind("re-chunk")
def zarr_with_a_widening_filter(folder: Path) -> Path:
    wide = {"id": "astype", "encode_dtype": "<u2", "decode_dtype": "<f8"}
    return zarr2(folder / "a.zarr", shape=[2**14] * 2, chunks=[2**14] * 2, filters=[wide])


@kind("is a folder in place of a chunk")
def zarr_whose_chunk_is_a_folder(folder: Path) -> Path:
    path = zarr2(folder / "a.zarr")
    (path / "0.0").mkdir()
    return path


@kind("Not a directory")
def zarr_whose_chunks_lie_below_a_file(folder: Path) -> Path:
    path = zarr3(folder / "a.zarr", data_type="uint16")
    (path / "c").mkdir()
    (path / "c" / "0").write_bytes(bytes(64))
    return path


@kind("is a link to a file that is missing")
def zarr_whose_chunk_is_a_broken_link(folder: Path) -> Path:
    path = zarr2(folder / "a.zarr")
    (path / "0.0").symlink_to("elsewhere")
    return path


def zip_of_many(path: Path, name: bytes) -> Path:
    """Write a zip file whose list repeats an empty member two million times."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0) + name
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    members = entry * 2_000_000
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(members), len(local), 0)
    path.write_bytes(local + members + end)
    return path


@kind("list of members")
def zip_of_endless_members(folder: Path) -> Path:
    return zip_of_many(folder / "a.zarr.zip", b"zarr.json")


@kind("list of members")
def pth_of_endless_members(folder: Path) -> Path:
    return zip_of_many(folder / "a.pth", b"a/data.pkl")


@kind("compressed more than once")
def zarr_that_is_compressed_twice(folder: Path) -> Path:
    gzip = {"name": "gzip", "configuration": {"level": 1}}
    return zarr3(folder / "a.zarr", codecs=[BYTES, gzip, gzip])


# ---- TIFF -----------------------------------------------------------------------------------------


def directory(tags: dict[int, tuple[tuple[int, str], Sequence[int]]], at: int, following: int) -> bytes:
    """Build a directory of a classic TIFF at a position, with its longer values after it."""
    entries, values = b"", b""
    end = at + 2 + 12 * len(tags) + 4
    for code, ((number, form), numbers) in sorted(tags.items()):
        packed = b"".join(struct.pack(form, value) for value in numbers)
        if len(packed) <= 4:
            entries += struct.pack("<HHI4s", code, number, len(numbers), packed)
        else:
            entries += struct.pack("<HHII", code, number, len(numbers), end + len(values))
            values += packed
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", following) + values


def page(height: int, width: int, **tags: tuple[tuple[int, str], Sequence[int]]) -> dict[int, Any]:
    """Return the tags of a gray page; names of further ones are t and a number."""
    usual: dict[int, Any] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8]),
        259: (SHORT, [8]),
        262: (SHORT, [1]),
        277: (SHORT, [1]),
    }
    return usual | {int(name[1:]): value for name, value in tags.items()}


def tiled(height: int, width: int, tile: int, offset: int, count: int, **tags: Any) -> dict[int, Any]:
    """Return the tags of a gray page of one tile."""
    own = {"t322": (LONG, [tile]), "t323": (LONG, [tile]), "t324": (LONG, [offset]), "t325": (LONG, [count])}
    return page(height, width, **own, **tags)


def tiff(folder: Path, tags: dict[int, Any], data: bytes = b"", following: int = 0, size: int = 0) -> Path:
    """Write a TIFF of one directory at byte 4096, with data at byte 8."""
    path = folder / "a.tif"
    start = max(4096, 8 + len(data))
    path.write_bytes(
        b"II*\0" + struct.pack("<I", start) + data.ljust(start - 8, b"\0") + directory(tags, start, following)
    )
    if size:
        os.truncate(path, size)
    return path


def packed_pixels() -> bytes:
    """Return the data of a gray tile of 256 x 256 pixels."""
    return zlib.compress(bytes(256 * 256))


@kind("pages")
def tiff_of_many_pages(folder: Path) -> Path:
    path = folder / "a.tif"
    data = packed_pixels()
    own = directory(tiled(256, 256, 256, 8, len(data)), 8 + len(data), 0)
    at = 8 + len(data)
    pages = b"".join(
        own[:-4] + struct.pack("<I", at + len(own) * (number + 1) if number < 299_999 else 0)
        for number in range(300_000)
    )
    path.write_bytes(b"II*\0" + struct.pack("<I", at) + data + pages)
    return path


@kind("loop")
def tiff_with_a_loop(folder: Path) -> Path:
    data = packed_pixels()
    return tiff(folder, tiled(256, 256, 256, 8, len(data)), data, following=4096)


@kind("cut short")
def tiff_with_a_page_past_the_end(folder: Path) -> Path:
    data = packed_pixels()
    return tiff(folder, tiled(256, 256, 256, 8, len(data)), data, following=2**31)


@kind("cut short")
def tiff_with_a_tile_past_the_end(folder: Path) -> Path:
    return tiff(folder, tiled(256, 256, 256, 2**31, 1000))


@kind("16,777,216 pixels")
def tiff_of_endless_sides(folder: Path) -> Path:
    strip = {"t278": (LONG, [2**31]), "t273": (LONG, [8]), "t279": (LONG, [64])}
    return tiff(folder, page(2**31, 2**31, **strip), bytes(64))


@kind("list of tiles")
def tiff_of_endless_tiles(folder: Path) -> Path:
    return tiff(folder, tiled(2**23, 2**23, 16, 8, 64), bytes(64))


@kind("gdal_translate")
def tiff_in_one_tile(folder: Path) -> Path:
    return tiff(folder, tiled(60_000, 60_000, 60_000, 8, 64), bytes(64))


@kind("gdal_translate")
def tiff_with_a_tile_larger_than_the_image(folder: Path) -> Path:
    return tiff(folder, tiled(256, 256, 60_000, 8, 64), bytes(64))


@kind("gdal_translate")
def tiff_of_single_pixels(folder: Path) -> Path:
    count = 512 * 512
    tags = page(512, 512, t322=(LONG, [1]), t323=(LONG, [1]), t324=(LONG, [8] * count), t325=(LONG, [64] * count))
    return tiff(folder, tags, bytes(64))


@kind("gdal_translate")
def tiff_in_one_strip(folder: Path) -> Path:
    strip = {"t278": (LONG, [50_000]), "t273": (LONG, [8]), "t279": (LONG, [2**31])}
    return tiff(folder, page(50_000, 60_000, **strip), bytes(64), size=3 * 2**30)


@kind("more than is read at once")
def tiff_with_a_swollen_tile(folder: Path) -> Path:
    return tiff(folder, tiled(256, 256, 256, 8, 3 * 2**30), size=4 * 2**30 - 1)


@kind("damaged at tile 0")
def tiff_with_a_deflate_bomb(folder: Path) -> Path:
    squeeze = zlib.compressobj(1)
    bomb = b"".join([squeeze.compress(bytes(2**20)) for _ in range(300)]) + squeeze.flush()
    tags = tiled(256, 256, 256, 8, len(bomb)) | {258: (SHORT, [16])}
    return tiff(folder, tags, bomb)


@kind("blocks of 60000 x 60000 x 1", reading=True)
def tiff_with_a_jpeg_of_other_size(folder: Path) -> Path:
    data = swollen_jpeg(folder).read_bytes()
    tags = tiled(256, 256, 256, 8, len(data)) | {259: (SHORT, [7])}
    return tiff(folder, tags, data)


def in_a_tile(folder: Path, compression: int, data: bytes) -> Path:
    """Write a TIFF whose only tile, of 256 x 256 pixels, is an image of its own."""
    return tiff(folder, tiled(256, 256, 256, 8, len(data)) | {259: (SHORT, [compression])}, data)


def jpegxl(side: int, bands: int = 0) -> bytes:
    """Return the header of a square JPEG XL with further bands."""
    numbers = [(0, 1), (3, 2), (side - 1, 30), (1, 3), (int(not bands), 1)]  # large, its height, square, all defaults
    numbers += [(0, 1), (0, 1), (0, 2), (1, 1), (3, 2), (bands - 1, 12)] * bool(bands)
    bits = "".join(f"{number:0{count}b}"[::-1] for number, count in numbers)
    return b"\xff\x0a" + int(bits[::-1], 2).to_bytes(64, "little")


def box(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(data), name) + data


@kind("blocks of 60000 x 60000 x 12", reading=True)
def tiff_with_a_jpegxl_of_other_size(folder: Path) -> Path:
    return in_a_tile(folder, 50002, jpegxl(60_000))


@kind("blocks of 256 x 256 x 16396", reading=True)
def tiff_with_a_jpegxl_of_many_bands(folder: Path) -> Path:
    return in_a_tile(folder, 50002, jpegxl(256, bands=4096))


@kind("blocks of 60000 x 60000 x 12", reading=True)
def tiff_with_a_jpegxl_in_boxes(folder: Path) -> Path:
    parts = [box(b"JXL ", b"\r\n\x87\n"), box(b"free", jpegxl(8) * 100), box(b"jxlp", bytes(4) + jpegxl(60_000))]
    return in_a_tile(folder, 50002, b"".join(parts))


@kind("blocks of 60000 x 60000 x 16", reading=True)
def tiff_with_a_jpegxr_of_other_size(folder: Path) -> Path:
    data = bytearray(imagecodecs.jpegxr_encode(np.zeros((256, 256), np.uint8)))
    struct.pack_into(">HH", data, data.index(b"WMPHOTO") + 12, 59_999, 59_999)
    return in_a_tile(folder, 34934, bytes(data))


@kind("blocks of 60000 x 60000 x 12", reading=True)
def tiff_with_a_jpeg2000_behind_boxes(folder: Path) -> Path:
    data = bytearray(imagecodecs.jpeg2k_encode(np.zeros((256, 256, 3), np.uint8), codecformat="J2K"))
    parts = [box(b"jP  ", b"\r\n\x87\n"), box(b"free", bytes(data) * 20)]
    struct.pack_into(">II", data, 8, 60_000, 60_000)
    return in_a_tile(folder, 34712, b"".join([*parts, box(b"jp2c", bytes(data))]))


@kind("blocks of 16383 x 16384 x 8", reading=True)
def tiff_with_a_webp_of_other_size(folder: Path) -> Path:
    data = bytearray(imagecodecs.webp_encode(np.zeros((256, 256, 3), np.uint8), lossless=True))
    struct.pack_into("<I", data, 21, 16_383 | 16_382 << 14)
    return in_a_tile(folder, 50001, bytes(data))


@kind("larger than")
def tiff_with_an_endless_description(folder: Path) -> Path:
    data = packed_pixels()
    tags = tiled(256, 256, 256, 8, len(data), t270=((2, "<Q"), [0]))
    path = tiff(folder, tags, data)
    body = bytearray(path.read_bytes())
    entry = body.index(struct.pack("<HH", 270, 2), 4096)
    struct.pack_into("<II", body, entry + 4, 2**31, 4096)
    path.write_bytes(body)
    os.truncate(path, 3 * 2**30)
    return path


@kind("overviews")
def tiff_of_many_overviews(folder: Path) -> Path:
    data = packed_pixels()
    return tiff(folder, tiled(256, 256, 256, 8, len(data), t330=(LONG, [4096] * 300_000)), data)


def ome(folder: Path, name: str) -> Path:
    """Write an OME-TIFF whose pixels are in another file."""
    path = folder / "in" / "a.ome.tif"
    path.parent.mkdir()
    uuids = ["urn:uuid:00000000-0000-0000-0000-000000000000", "urn:uuid:00000000-0000-0000-0000-000000000001"]
    xml = (
        f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuids[0]}">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="64" SizeY="64" SizeC="1" '
        f'SizeZ="1" SizeT="1"><Channel ID="Channel:0:0"/><TiffData IFD="0"><UUID FileName="{name}">{uuids[1]}</UUID>'
        "</TiffData></Pixels></Image></OME>"
    )
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), description=xml, metadata=None)
    return path


@kind("leaves")
def ome_tiff_that_points_above(folder: Path) -> Path:
    tifffile.imwrite(folder / "secret.tif", np.zeros((64, 64), np.uint8))
    return ome(folder, "../secret.tif")


@kind("leaves")
def ome_tiff_that_points_anywhere(folder: Path) -> Path:
    tifffile.imwrite(folder / "secret.tif", np.zeros((64, 64), np.uint8))
    return ome(folder, str(folder / "secret.tif"))


@kind("not a regular file")
def ome_tiff_that_points_to_a_pipe(folder: Path) -> Path:
    path = ome(folder, "pipe.tif")
    os.mkfifo(path.parent / "pipe.tif")
    return path


# ---- PNG and JPEG ---------------------------------------------------------------------------------


def swollen_jpeg(folder: Path) -> Path:
    """Write a JPEG whose header gives 60000 x 60000 pixels."""
    path = folder / "a.jpg"
    PIL.Image.new("L", (256, 256)).save(path)
    data = bytearray(path.read_bytes())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 60_000, 60_000)
    path.write_bytes(data)
    return path


@kind("gdal_translate")
def jpeg_of_endless_size(folder: Path) -> Path:
    return swollen_jpeg(folder)


@kind("gdal_translate")
def png_of_endless_size(folder: Path) -> Path:
    (folder / "a.png").write_bytes(png(60_000, 60_000, 16, 2, bytes(64)))
    return folder / "a.png"


@kind("more than are read at once", reading=True)
def png_of_endless_chunks(folder: Path) -> Path:
    path = folder / "a.png"
    path.write_bytes(png(64, 64, 8, 2, bytes(64))[:33])
    os.truncate(path, 10 * 2**30)
    return path


@kind("not a regular file")
def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.tif")
    return folder / "a.tif"


# ---- Weights --------------------------------------------------------------------------------------


def weights(folder: Path, spec: str, tensors: dict[str, Any] | None = None) -> Path:
    """Write a safetensors file with a spec."""
    path = folder / "a.safetensors"
    save_file(tensors or {"a": np.zeros(4, np.float32)}, path, {"format": "dehazexl", "spec": spec})
    return path


def changed(**fields: Any) -> str:
    """Return the spec of a small network with other fields, as JSON."""
    return json.dumps(json.loads(SPECS["tiny"].to_json()) | fields)


@kind("depths")
def weights_of_endless_depth(folder: Path) -> Path:
    return weights(folder, changed(depths=[1, 1, 10_000_000, 1]))


@kind("widths")
def weights_of_endless_width(folder: Path) -> Path:
    return weights(folder, changed(widths=[8192, 16384, 32768, 65536]))


@kind("does not fit")
def weights_that_lack_their_tensors(folder: Path) -> Path:
    return weights(folder, SPECS["official-large"].to_json())


@kind("context_layers")
def weights_of_endless_context(folder: Path) -> Path:
    return weights(folder, changed(context_layers=10_000_000))


@kind("metadata is not JSON")
def weights_with_a_nested_spec(folder: Path) -> Path:
    return weights(folder, '{"a":' * 100_000 + "1" + "}" * 100_000)


@kind("not JSON")
def weights_with_an_endless_number(folder: Path) -> Path:
    return weights(folder, '{"window": ' + "9" * 10_000 + "}")


@kind("not a safetensors file")
def weights_with_a_lying_header(folder: Path) -> Path:
    path = folder / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    return path


@kind("no numbers")
def weights_that_are_no_numbers(folder: Path) -> Path:
    tensors = {name: value.numpy() for name, value in DehazeXL(SPECS["tiny"]).state_dict().items()}
    name = next(iter(tensors))
    tensors[name] = np.full_like(tensors[name], np.nan)
    return weights(folder, SPECS["tiny"].to_json(), tensors)


@kind("not compressed")
def pth_with_a_zip_bomb(folder: Path) -> Path:
    path = folder / "a.pth"
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as file:
        parts = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, data in parts.items():
            with file.open(name, "w") as part:
                part.write(data)
                for _ in range(300 * name.endswith("data.pkl")):
                    part.write(bytes(2**20))
    return path


@kind("run code")
def pth_with_code(folder: Path) -> Path:
    torch.save({"a": Code(mark(folder))}, folder / "a.pth")
    return folder / "a.pth"


@kind("does not fit")
def pth_of_an_endless_tensor(folder: Path) -> Path:
    torch.save({"a": torch.zeros(1).expand(2**20, 2**20)}, folder / "a.pth")
    return folder / "a.pth"
