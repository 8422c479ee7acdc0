"""Pixels of the arrays of a Zarr: sources of the levels, chunks that are not there, and what tells a change."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.base import tokenize

from dehazexl.image.grid import Window
from dehazexl.image.image import Holes
from dehazexl.io.source import Source, check_pixels, chunk_sides, file_token, plane_of, reason_of, strided

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

ASKED = 4096
"""Chunks of a window that are looked up at most, to see whether there are any: reading it costs no more."""


def zarr_levels(
    arrays: Sequence[zarr.Array[Any]], axes: str, where: str, page: int | None = None
) -> list[tuple[Source, tuple[int, int]]]:
    """Return a source and a chunk for each array that is smaller than the one before."""
    import zarr

    from dehazexl.io.zarr_store import check_array

    levels: list[tuple[Source, tuple[int, int]]] = []
    for array in arrays:
        check_pixels(array.shape, array.dtype, where)
        check_array(array, where)
        if further_axes(array.shape, axes) != further_axes(arrays[0].shape, axes):
            continue  # an overview with fewer planes
        plane = plane_of(page, math.prod(further_axes(array.shape, axes)), where)
        plain = unsigned(strided(array, axes, plane), array)
        source = Source(plain.shape, plain.dtype, partial(read_checked, plain, where))
        finest = levels[0][0] if levels else source
        if (source.dtype, source.shape[2]) != (finest.dtype, finest.shape[2]):
            raise ValueError(f"{where} has levels that differ in dtype or bands: write its overviews again")
        if not levels or math.prod(source.shape) < math.prod(levels[-1][0].shape):
            # A shard can be as large as the image and is read in parts; except from a zip file, where each part would
            # decompress the whole shard.
            zipped = isinstance(array.store, zarr.storage.ZipStore)
            stored = dict(zip(axes, (zipped and array.shards) or array.chunks, strict=True))
            levels.append((source, chunk_sides(stored["y"], stored["x"])))
    return levels


def is_unsigned(array: zarr.Array[Any]) -> bool:
    """Return whether the integers of an array have no sign, as netCDF says in the attribute ``_Unsigned``."""
    return array.dtype.kind == "i" and str(array.attrs.get("_Unsigned", "")).lower() == "true"


def unsigned(source: Source, array: zarr.Array[Any]) -> Source:
    """Return the source of an array; of integers without sign if they only look as if they had one."""
    if not is_unsigned(array):
        return source
    dtype = np.dtype(f"u{source.dtype.itemsize}")
    return Source(source.shape, dtype, partial(read_as, source, dtype))


def read_as(source: Source, dtype: np.dtype[Any], rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window whose numbers are of another type of the same size."""
    return np.ascontiguousarray(source.read(rows, cols), source.dtype).view(dtype)


def further_axes(shape: Sequence[int], axes: str) -> list[int]:
    """Return the lengths of the axes other than y, x and c."""
    return [length for letter, length in zip(axes, shape, strict=True) if letter == "-"]


def stacked(bands: list[tuple[Source, tuple[int, int]]]) -> tuple[Source, tuple[int, int]]:
    """Return arrays of one band each as one source ``(y, x, c)``, and its chunk."""
    sources = [source for source, _ in bands]
    height, width, _ = sources[0].shape
    return Source((height, width, len(sources)), sources[0].dtype, partial(read_bands, sources)), bands[0][1]


def read_bands(sources: Sequence[Source], rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window ``(y, x, c)`` of one array for each band."""
    return np.concatenate([source.read(rows, cols) for source in sources], axis=-1)


def read_checked(source: Source, where: str, rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window.

    Raises
    ------
    ValueError
        If a chunk in it cannot be decoded.
    OSError
        If a server does not answer.
    """
    from dehazexl.io.zarr_store import RefusedError

    remote = "://" in where
    try:
        return source.read(rows, cols)
    except RefusedError:
        raise
    except Exception as error:  # a codec fails in any way on what it did not write, a server in many
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and not remote):
            raise
        position = f"rows {rows.start} to {rows.stop - 1}, columns {cols.start} to {cols.stop - 1}"
        if remote:
            raise OSError(f"{where} cannot be read in {position} ({reason_of(error)}): check the connection") from error
        raise ValueError(f"{where} has a damaged chunk in {position} ({error}): copy or download it again") from error


def zarr_holes(array: zarr.Array[Any], axes: str, level: str) -> Holes | None:
    """Return the chunks that a Zarr in a folder does not contain; None for other stores, which are not asked."""
    import zarr

    if not isinstance(array.store, zarr.storage.LocalStore):
        return None
    if is_unsigned(array):
        return None  # its fill value has a sign
    return Holes(level, array.fill_value or 0, partial(chunks_missing, array, axes))


def chunks_missing(array: zarr.Array[Any], axes: str, window: Window) -> bool:
    """Return whether no chunk that a window of pixels touches is in the folder of an array; False for too many."""
    store: Any = array.store
    folder, limits = Path(store.root) / array.path, {"y": (window.y0, window.y1), "x": (window.x0, window.x1)}
    touched = []
    for axis, length, side in zip(axes, array.shape, array.shards or array.chunks, strict=True):
        start, stop = limits.get(axis, (0, length))
        touched.append(range(start // side, -(-stop // side)))
    if math.prod(map(len, touched)) > ASKED:
        return False
    return not any(is_stored(folder / array.metadata.encode_chunk_key(chunk)) for chunk in product(*touched))


def is_stored(chunk: Path) -> bool:
    """Return whether there may be anything at the path of a chunk, be it a broken link: reading it says what is."""
    try:
        chunk.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def zarr_token(array: zarr.Array[Any]) -> str:
    """Return a hash that changes when pixels are written, without listing the chunks."""
    import zarr

    store = array.store
    identity = [str(array.store_path), str(array.metadata)]
    if isinstance(store, zarr.storage.LocalStore):
        return str(tokenize(identity, list(folder_times(Path(store.root) / array.path, chunk_depth(array)))))
    if isinstance(store, zarr.storage.ZipStore):
        return file_token([Path(store.path)])
    return str(tokenize(identity, uuid.uuid4().hex if isinstance(store, zarr.storage.MemoryStore) else None))


def chunk_depth(array: zarr.Array[Any]) -> int:
    """Return the number of folder levels between an array and its chunks: three for c/0/1/2, none for 0.1.2."""
    if array.metadata.zarr_format == 2:
        return array.ndim - 1 if array.metadata.dimension_separator == "/" else 0
    encoding: Any = array.metadata.chunk_key_encoding
    return array.ndim - (encoding.name != "default") if encoding.separator == "/" else 0


def folder_times(folder: Path, depth: int) -> Iterator[tuple[str, int]]:
    """Yield path and modification time (ns) of a folder and of its subfolders down to `depth` levels."""
    if not folder.exists():
        return
    yield str(folder), folder.stat().st_mtime_ns
    if depth:
        with os.scandir(folder) as entries:
            below = sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        for path in below:
            yield from folder_times(Path(path), depth - 1)
