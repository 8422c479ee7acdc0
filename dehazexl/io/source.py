"""Any source as lazy `(y, x, c)` levels, and what is refused."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import tokenize

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BANDS = 8
CHUNK = 1024  # pixels: the least side of a dask chunk, so that a picture of 100,000 pixels a side has 10,000 chunks
DTYPES = ("uint8", "uint16", "float16", "float32", "float64")
SUFFIXES = (".zip", ".zarr", ".tif", ".tiff", ".btf", ".ome", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True, eq=False)
class Source:
    """What dask reads from: ``read(rows, columns)`` returns those pixels of every band, ``(y, x, c)``."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    read: Callable[[slice, slice], NDArray[Any]]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


@contextmanager
def named(path: Path | str, kind: str) -> Iterator[None]:
    """Make of whatever a library comes to in a damaged file a ValueError that names the file.

    Libraries trust what they read: a tile of no pixels ends in a division by zero, a missing attribute in a KeyError.
    Errors that name the file already, and a want of memory, stay as they are.
    """
    try:
        yield
    except Exception as error:
        told = str(path) in str(error) if isinstance(error, ValueError) else getattr(error, "filename", None)
        if told or isinstance(error, MemoryError):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is a damaged {kind} ({said}): copy or download it again") from error


def grouped(tile: int) -> int:
    """Length of a chunk: the least multiple of the file's own tile that is not below `CHUNK`."""
    return math.ceil(CHUNK / tile) * tile


def lazy(source: Source, chunk: tuple[int, int], name: str) -> da.Array:
    """Wrap a source in dask, in chunks of so many rows and columns and of all bands."""
    chunks = (min(chunk[0], source.shape[0]), min(chunk[1], source.shape[1]), source.shape[2])
    meta = np.empty((0, 0, 0), source.dtype)
    # A getitem of our own: some releases of dask push slices into theirs, and a chunk would be decoded once a slice.
    array: da.Array = da.from_array(source, chunks=chunks, name=name, getitem=read_chunk, meta=meta)
    return array


def read_chunk(source: Source, index: tuple[slice, slice, slice]) -> NDArray[Any]:
    """Read the chunk of a dask task, in the machine's byte order."""
    block = source.read(index[0], index[1])[..., index[2]]
    return np.array(block, dtype=source.dtype, order="C")


def strided(array: Any, axes: str) -> Source:
    """See a numpy-like array whose axes are named, one letter each, as ``(y, x, c)``; other axes have length 1."""
    lengths = dict(zip(axes, array.shape, strict=True))
    shape = (lengths["y"], lengths["x"], lengths.get("c", 1))
    return Source(shape, np.dtype(array.dtype).newbyteorder("="), partial(read_strided, array, axes))


def read_strided(array: Any, axes: str, rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window of an array, axes in any order."""
    window = {"y": rows, "x": cols, "c": slice(None)}
    block: NDArray[Any] = to_yxc(np.asarray(array[tuple(window.get(axis, 0) for axis in axes)]), axes)
    return block


def to_yxc(block: Any, axes: str) -> Any:
    """Bring a numpy or dask array without its other axes into the order ``(y, x, c)``."""
    kept = [axis for axis in axes if axis in "yxc"]
    if "c" not in kept:
        return block.transpose([kept.index("y"), kept.index("x")])[..., None]
    return block.transpose([kept.index(axis) for axis in "yxc"])


def check_pixels(shape: Sequence[int], dtype: np.dtype[Any], what: str) -> None:
    """Refuse what is not a picture of at least one pixel of a known type."""
    if len(shape) < 2:
        raise ValueError(f"{what} has {len(shape)} axes, shape {tuple(shape)}: a picture needs (y, x) or (y, x, bands)")
    if any(length != length for length in shape):
        raise ValueError(f"{what} has chunks of unknown length: call its compute_chunk_sizes() first")
    if 0 in shape:
        raise ValueError(f"{what} is empty, shape {tuple(shape)}: a picture needs at least one pixel")
    if dtype.kind == "b":
        raise ValueError(f"{what} is a 1-bit mask, not a picture: give the picture that it belongs to")
    if dtype.name not in DTYPES:
        converting = "convert it, e.g. with astype('float32') or gdal_translate -ot Float32"
        remedy = "take its absolute value" if dtype.kind == "c" else converting
        raise ValueError(f"{what} holds {dtype.name} pixels, not {', '.join(DTYPES)}: {remedy}")


def check_bands(count: int, what: str) -> None:
    """Refuse more bands than a picture may have."""
    if count > MAX_BANDS:
        remedy = "pick those you need first, e.g. gdal_translate -b 4 -b 3 -b 2"
        raise ValueError(f"{what} has {count} bands, more than {MAX_BANDS}: {remedy}")


def axes_by_shape(shape: Sequence[int], what: str) -> str:
    """Name unnamed axes: bands are the last or else the first axis, if it is short and the shortest."""
    spare = len(shape) - 3
    letters: list[str] = []
    for length in shape:
        dropped = length == 1 and spare > 0
        spare -= dropped
        letters.append("-" if dropped else "?")
    lengths = [length for length, letter in zip(shape, letters, strict=True) if letter == "?"]
    if len(lengths) > 3:
        raise ValueError(f"{what} has shape {tuple(shape)}: pass one plane of it, (y, x) or (y, x, bands)")
    order = iter("yx" if len(lengths) == 2 else _order(lengths, what))
    return "".join(next(order) if letter == "?" else letter for letter in letters)


def _order(lengths: list[int], what: str) -> str:
    """Order the axes of a 3-D shape."""
    first, middle, last = lengths
    if last <= min(MAX_BANDS, first, middle):
        return "yxc"
    if first <= min(MAX_BANDS, middle, last):
        return "cyx"
    shape = (first, middle, last)
    raise ValueError(f"{what} has shape {shape} and no axis of 1 to {MAX_BANDS} bands: pass one plane, e.g. array[0]")


def short_name(path: Path) -> str:
    """Take a file's name without the suffixes that say what it is."""
    name = path.name
    while Path(name).suffix.lower() in SUFFIXES:
        name = Path(name).stem
    return name


def file_token(paths: Sequence[Path]) -> str:
    """Hash what changes when a file is written: path, size, modification time."""
    stats = [(str(path.resolve()), path.stat()) for path in sorted(set(paths))]
    return str(tokenize([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]))


def as_number(text: object) -> float | None:
    """Read a nodata value: a number, its text, or xarray's base64 of eight bytes."""
    if isinstance(text, (int, float, np.number)) and not isinstance(text, bool):
        return float(text)
    if not isinstance(text, str):
        return None
    try:
        return float(text.strip("\0 "))
    except ValueError:
        pass
    try:
        return float(struct.unpack("<d", base64.b64decode(text, validate=True))[0])
    except (binascii.Error, struct.error):
        return None
