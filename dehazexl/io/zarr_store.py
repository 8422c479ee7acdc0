"""Zarr files of unknown origin: nothing outside the Zarr is read, only known codecs run, and sizes are bounded."""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from dehazexl.io.inflation import Members, inflates_beyond
from dehazexl.io.source import MAX_BLOCK, MAX_METADATA, check_block

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
CODECS = frozenset(
    {
        "adler32",
        "astype",
        "bitround",
        "blosc",
        "bytes",
        "bz2",
        "cast_value",
        "crc32",
        "crc32c",
        "delta",
        "endian",
        "fixedscaleoffset",
        "fletcher32",
        "gzip",
        "jenkins_lookup3",
        "lz4",
        "lzma",
        "quantize",
        "scale_offset",
        "sharding_indexed",
        "shuffle",
        "transpose",
        "zlib",
        "zstd",
    }
)
"""Codecs that decode numbers and nothing else. The codec ``pickle`` runs the code that a chunk contains."""
RECHUNK = "re-chunk it first, e.g. dask.array.from_zarr(PATH).rechunk(1024).to_zarr(NEW)"


INFLATING = frozenset({"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"})
"""Codecs of which a small chunk can make a large one."""
WIDENING = frozenset({"astype", "cast_value", "delta", "fixedscaleoffset", "quantize", "scale_offset"})
"""Codecs whose values may take eight bytes on their way, whatever the array has."""


class RefusedError(ValueError):
    """An error of this module: it names the file and the remedy."""


class FolderStore(zarr.storage.LocalStore):
    """A folder from which only its own regular files of bounded size are read."""

    inflating: frozenset[str] = frozenset()
    """Codecs of `INFLATING` that chunks of this Zarr are compressed with, once they are known."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a file, see `zarr.abc.store.Store.get`."""
        self.check(key, byte_range)
        return check_inflation(await super().get(key, prototype, byte_range), self.inflating, f"{self.root}/{key}")

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of a file; only newer releases of zarr call this."""
        self.check(key, byte_range)
        data = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return check_inflation(data, self.inflating, f"{self.root}/{key}")

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of files, see `zarr.abc.store.Store.get_partial_values`."""
        key_ranges = list(key_ranges)
        for key, byte_range in key_ranges:
            self.check(key, byte_range)
        return await super().get_partial_values(prototype, key_ranges)

    def check(self, key: str, byte_range: ByteRequest | None) -> None:
        """Check a file before it is read; a missing one passes.

        Raises
        ------
        OSError
            If it cannot be reached for another reason than that it is missing: zarr takes some for that.
        ValueError
            If it lies outside the folder, is a folder, a pipe or a device, or is larger than what is ever read at once.
        """
        path = os.path.join(self.root, key)
        if not os.path.realpath(path).startswith(os.path.join(os.path.realpath(self.root), "")) and key:
            raise RefusedError(f"{path} leaves the Zarr by a link or '..': copy its target into the Zarr")
        try:
            status = os.stat(path)
        except FileNotFoundError:
            if os.path.islink(path):
                raise RefusedError(f"{path} is a link to a file that is missing: restore it") from None
            return
        except NotADirectoryError:
            if key.endswith(METADATA):  # zarr asks whether a chunk is a group
                return
            raise
        if not key or (stat.S_ISDIR(status.st_mode) and key.endswith(METADATA)):
            return
        if stat.S_ISDIR(status.st_mode):
            raise RefusedError(f"{path} is a folder in place of a chunk: restore the chunk")
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(f"{path} is not a regular file but a pipe or a device: write the Zarr again")
        check_length(path, _requested(byte_range, status.st_size))


class ZipStore(zarr.storage.ZipStore):
    """A zip file whose chunks are bounded once they are decompressed; see `open_store` for its members."""

    inflating: frozenset[str] = frozenset()
    """As of `FolderStore`."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes of a member, see `zarr.abc.store.Store.get`."""
        return check_inflation(await super().get(key, prototype, byte_range), self.inflating, f"{self.path}/{key}")


def check_inflation(data: Buffer | None, codecs: frozenset[str], path: str) -> Buffer | None:
    """Return the bytes of a chunk.

    Raises
    ------
    ValueError
        If they decompress to more than is read at once.
    """
    if data is not None and codecs and not path.endswith(METADATA):
        packed = data.to_bytes()
        if any(inflates_beyond(codec, packed, MAX_BLOCK) for codec in codecs):
            raise RefusedError(f"{path} inflates to more than {MAX_BLOCK} bytes: {RECHUNK}")
    return data


def _requested(byte_range: ByteRequest | None, size: int) -> int:
    """Return the number of bytes that a request reads from a file of `size` bytes."""
    if isinstance(byte_range, RangeByteRequest):
        return min(byte_range.end, size) - byte_range.start
    if isinstance(byte_range, OffsetByteRequest):
        return size - byte_range.offset
    if isinstance(byte_range, SuffixByteRequest):
        return min(byte_range.suffix, size)
    return size


def check_length(path: str, length: int) -> None:
    """Check the length in bytes of what is read from a file of a Zarr.

    Raises
    ------
    ValueError
        If it is more than metadata or a chunk can have.
    """
    metadata = path.endswith(METADATA)
    limit = MAX_METADATA if metadata else MAX_BLOCK + MAX_METADATA
    if length > limit:
        remedy = "copy the Zarr again, or write it with fewer attributes" if metadata else RECHUNK
        raise RefusedError(f"{path} has {length} bytes, larger than the {limit} that are read at once: {remedy}")


def open_store(path: Path) -> FolderStore | ZipStore:
    """Open a folder, or a zip file after a look at its list of members.

    Raises
    ------
    ValueError
        If there are too many members, or one inflates to more than metadata or a chunk can have.
    zipfile.BadZipFile
        If a file is not a zip file.
    """
    if not path.is_file():
        return FolderStore(path, read_only=True)
    with Members(path) as members, zipfile.ZipFile(members) as file:
        for member in file.infolist():
            # A member that is stored without compression, e.g. a shard, is read in parts.
            if member.compress_type != zipfile.ZIP_STORED or member.filename.endswith(METADATA):
                check_length(f"{path}/{member.filename}", member.file_size)
    return ZipStore(path, mode="r")


def check_array(array: zarr.Array[Any], where: str) -> None:
    """Check the codecs, chunks and shards of an array before a chunk of it is read.

    Raises
    ------
    ValueError
        If a codec is not in `CODECS`, or chunks are too large or too small to be read.
    """
    names = list(codec_names(array.metadata))
    for name in names:
        if name not in CODECS:
            raise RefusedError(
                f"{where} is encoded with the codec {name!r}, which is not among those that only decode numbers: write "
                f"it again with zstd"
            )
    if 0 in array.chunks or 0 in (array.shards or ()):
        raise RefusedError(f"{where} has chunks with a side of 0 pixels in its metadata: write it again")
    inflating = [name for name in names if name in INFLATING]
    if len(inflating) > 1:
        raise RefusedError(
            f"{where} is compressed more than once, by {' and '.join(inflating)}: write it again with zstd"
        )
    if inflating and isinstance(array.store, (FolderStore, ZipStore)):
        array.store.inflating |= {inflating[0]}
    # From a zip file the whole shard is read, see `zarr_source.zarr_levels`.
    zipped = isinstance(array.store, zarr.storage.ZipStore)
    width = max(array.dtype.itemsize, 8 if WIDENING & set(names) else 1)
    check_block((zipped and array.shards) or array.chunks, array.shape, width, where, RECHUNK)
    if array.shards:
        counts = [shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]
        if (index := 16 * math.prod(counts)) > MAX_METADATA:
            raise RefusedError(f"{where} has shards with {index} bytes of index, more than {MAX_METADATA}: {RECHUNK}")


def codec_names(metadata: Any) -> Iterator[str]:
    """Yield the names of all codecs of an array; those of numcodecs have the same name in versions 2 and 3."""
    if metadata.zarr_format == 2:
        for codec in (metadata.compressor, *(metadata.filters or ())):
            if codec is not None:
                yield str(codec.codec_id)
    else:
        yield from _names_within(metadata.codecs)


def _names_within(codecs: Sequence[Any]) -> Iterator[str]:
    """Yield the names of codecs of version 3, and of those within shards."""
    for codec in codecs:
        yield str(codec.to_dict()["name"]).removeprefix("numcodecs.")
        yield from _names_within([*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ())])
