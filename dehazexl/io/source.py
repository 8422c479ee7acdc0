"""Helpers shared by the readers: lazy ``(y, x, c)`` levels, axis order, validation and fingerprints."""

from __future__ import annotations

import base64
import binascii
import math
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import tokenize

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BANDS = 8  # where the axes of an array have no names
CHUNK = 1024  # pixels along a side of a dask chunk at least; an image of 100,000 pixels a side has 10,000 chunks
MAX_CHUNKS = 2**16
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
CHUNK_BYTES = 64 * 2**20
MAX_SIDE = 2**24
"""Pixels along a side of an image at most: dask lists the chunks along each."""
MAX_BLOCK = 600 * 2**20
"""Bytes at most that are decoded at once (a chunk, tile, strip or whole photograph), so that 2 GB of memory suffice."""
MAX_METADATA = 16 * 2**20
"""Bytes of metadata at most (a zarr.json, a tag of a TIFF): parsing takes ten times the memory, and a second."""
MAX_PIECES = 1024
"""Chunks of a file in a dask chunk at most, where they are smaller than usual."""
MIN_PIECE = 64
"""Pixels of a chunk or tile at least, in images of more than a million of them: each costs a call."""
GUARD_SLOW, GUARD_SHARE = 0.1, 100
"""Seconds that a look at the files of an image takes before it is left out at times, and how many times as long."""
TIMEOUT = 30
"""Seconds without a byte of a server, after which it has failed."""
RETILE = "write it in tiles first, e.g. gdal_translate -co TILED=YES IMAGE tiled.tif"
SUFFIXES = (
    *(".zip", ".zarr", ".tif", ".tiff", ".btf", ".ome", ".png", ".jpg", ".jpeg", ".webp"),
    *(".jp2", ".j2k", ".vrt", ".img", ".bsq", ".bil", ".bip", ".dat"),
)


@dataclass(frozen=True, eq=False)
class Source:
    """An array-like source of pixels for dask.

    Attributes
    ----------
    shape
        ``(y, x, c)``.
    dtype
        Data type in native byte order.
    read
        Function of two slices, rows and columns, that returns the pixels of all bands ``(y, x, c)``.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    read: Callable[[slice, slice], NDArray[Any]]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


@contextmanager
def report_damage(path: Path | str, kind: str) -> Iterator[None]:
    """Convert any error of a library that reads a damaged file to a ValueError that names the file.

    Libraries trust their input: a tile without pixels ends in a ZeroDivisionError, a missing attribute in a KeyError.
    Errors that already name the file, and MemoryError, are unchanged.

    Parameters
    ----------
    path
        The file.
    kind
        Name of its format.

    Raises
    ------
    ValueError
        If the block raises an error.
    """
    try:
        yield
    except Exception as error:
        names_file = str(path) in str(error) if isinstance(error, ValueError) else getattr(error, "filename", None)
        if names_file or isinstance(error, MemoryError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} is a damaged {kind} ({reason}): copy or download it again") from error


def silence(seconds: float) -> str:
    """Return the reason of an error of a server that was waited for."""
    return f"the server sent nothing for {seconds:g} s"


def reason_of(error: Exception) -> str:
    """Return the reason of an error of a store at an address, in one line."""
    if isinstance(error, TimeoutError) and "onnect" not in f"{type(error).__name__} {error}":
        return silence(TIMEOUT)
    return " ".join(f"{type(error).__name__}: {error}".split())


def chunk_length(tile: int) -> int:
    """Return the side of a chunk in pixels: the smallest multiple of the tile of the file that is at least `CHUNK`."""
    return math.ceil(CHUNK / tile) * tile


def chunk_within(tall: int, wide: int, pixel: int) -> tuple[int, int]:
    """Return rows and columns of a chunk of whole tiles: smaller ones where pixels of many bands are large.

    Parameters
    ----------
    tall, wide
        Rows and columns of a tile of the file.
    pixel
        Bytes of a pixel.
    """
    rows, cols = chunk_length(tall), chunk_length(wide)
    while rows * cols * pixel > CHUNK_BYTES and (rows > tall or cols > wide):
        rows, cols = max(tall, rows // 2 // tall * tall), max(wide, cols // 2 // wide * wide)
    return rows, cols


def chunk_sides(height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of a chunk of at most `MAX_PIECES` chunks of the file, see `chunk_length`."""
    down, across = math.ceil(CHUNK / height), math.ceil(CHUNK / width)
    while down * across > MAX_PIECES:
        down, across = (math.ceil(down / 2), across) if down > across else (down, math.ceil(across / 2))
    return down * height, across * width


def lazy(source: Source, chunk: tuple[int, int], name: str) -> da.Array:
    """Wrap a source in a dask array.

    Parameters
    ----------
    source
        The source of pixels.
    chunk
        Rows and columns of a chunk, which contains all bands; twice as many, or four times, in images of more than
        `MAX_CHUNKS` of them, where dask takes long to find one.
    name
        Name of the dask array, unique to its content.

    Returns
    -------
    dask.array.Array
        ``(y, x, c)``; pixels are read when a chunk is computed.
    """
    height, width, bands = source.shape
    rows, cols = chunk
    pixel = bands * source.dtype.itemsize
    while (
        min(rows, cols) >= CHUNK and height * width > MAX_CHUNKS * rows * cols and 4 * rows * cols * pixel < CHUNK_BYTES
    ):
        rows, cols = 2 * rows, 2 * cols
    chunks = (min(rows, height), min(cols, width), bands)
    meta = np.empty((0, 0, 0), source.dtype)
    # A custom getitem: some releases of dask fuse slices into theirs and would decode a chunk once per slice.
    array: da.Array = da.from_array(source, chunks=chunks, name=name, getitem=read_chunk, meta=meta)
    return array


def read_chunk(source: Source, index: tuple[slice, slice, slice]) -> NDArray[Any]:
    """Read the chunk of a dask task in native byte order."""
    block = source.read(index[0], index[1])[..., index[2]]
    return np.ascontiguousarray(block, source.dtype)


def strided(array: Any, axes: str, plane: int = 0) -> Source:
    """Return a numpy-like array as a source ``(y, x, c)``.

    Parameters
    ----------
    array
        The array.
    axes
        One letter for each axis: y, x, c, or - for further ones.
    plane
        Index of a plane along the further axes, the last of them fastest.
    """
    lengths = dict(zip(axes, array.shape, strict=True))
    shape = (lengths["y"], lengths["x"], lengths.get("c", 1))
    further = [length for axis, length in zip(axes, array.shape, strict=True) if axis == "-"]
    fixed = tuple(int(place) for place in np.unravel_index(plane, further)) if further else ()
    return Source(shape, np.dtype(array.dtype).newbyteorder("="), partial(read_strided, array, axes, fixed))


def read_strided(array: Any, axes: str, fixed: Sequence[int], rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window ``(y, x, c)`` of an array with its axes in any order; the pixels of a numpy array are copied."""
    window, further = {"y": rows, "x": cols, "c": slice(None)}, iter(fixed)
    pixels = array[tuple(window[axis] if axis in window else next(further) for axis in axes)]
    block: NDArray[Any] = to_yxc(np.array(pixels) if isinstance(array, np.ndarray) else np.asarray(pixels), axes)
    return block


def plane_of(page: int | None, count: int, where: str) -> int:
    """Return the index of a page that is counted from 1; 0 for None.

    Raises
    ------
    ValueError
        If there is no such page.
    """
    if page is not None and not 1 <= page <= count:
        raise ValueError(f"{where} has no page {page}: choose one of 1 to {count}")
    return (page or 1) - 1


def to_yxc(block: Any, axes: str) -> Any:
    """Transpose a numpy or dask array, from which axes other than y, x and c were dropped, to ``(y, x, c)``."""
    order = [axis for axis in axes if axis in "yxc"]
    if "c" not in order:
        return block.transpose([order.index("y"), order.index("x")])[..., None]
    return block.transpose([order.index(axis) for axis in "yxc"])


def check_pixels(shape: Sequence[int], dtype: np.dtype[Any], name: str) -> None:
    """Check that an array can be an image.

    Raises
    ------
    ValueError
        If it has fewer than two axes, no pixels, a side longer than `MAX_SIDE`, chunks of unknown length, or a dtype
        that is not supported. The message starts with `name`.
    """
    if len(shape) < 2:
        raise ValueError(f"{name} has {len(shape)} axes, shape {tuple(shape)}: an image needs (y, x) or (y, x, bands)")
    if any(length != length for length in shape):
        raise ValueError(f"{name} has chunks of unknown length: call its compute_chunk_sizes() first")
    if 0 in shape:
        raise ValueError(f"{name} is empty, shape {tuple(shape)}: an image needs at least one pixel")
    if max(shape) > MAX_SIDE:
        raise ValueError(f"{name} has shape {tuple(shape)}, more than {MAX_SIDE:,} pixels along a side: crop it first")
    if dtype.kind == "b":
        raise ValueError(f"{name} is a 1-bit mask, not an image: pass the image that it belongs to")
    if dtype.name not in DTYPES:
        convert = "convert it, e.g. with astype('float32') or gdal_translate -ot Float32"
        remedy = "take its absolute value" if dtype.kind == "c" else convert
        raise ValueError(f"{name} has {dtype.name} pixels, not {', '.join(DTYPES)}: {remedy}")


def check_block(block: Sequence[int], shape: Sequence[int], itemsize: int, name: str, remedy: str) -> None:
    """Check the size of what must be decoded at once.

    Parameters
    ----------
    block
        Shape of a chunk, tile or strip of the file.
    shape
        Shape of the image.
    itemsize
        Bytes of a number.
    name, remedy
        Start and end of the message.

    Raises
    ------
    ValueError
        If a block has more than `MAX_BLOCK` bytes, or fewer than `MIN_PIECE` pixels in a large image.
    """
    sides = " x ".join(map(str, block))
    if (size := math.prod(block) * itemsize) > MAX_BLOCK:
        raise ValueError(
            f"{name} can only be read in blocks of {sides}, {size / 1e9:.1f} GB, more than {MAX_BLOCK / 1e9:.1f}: "
            f"{remedy}"
        )
    if 0 < math.prod(block) < MIN_PIECE and math.prod(shape) > MIN_PIECE * MAX_PIECES * math.prod(block):
        raise ValueError(f"{name} is stored in blocks of {sides}, each of which takes a read: {remedy}")


def check_regular(path: Path) -> None:
    """Check that a path is a file or a folder: a pipe would be waited for, and a device has no end.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if not (path.is_file() or path.is_dir()):
        raise ValueError(
            f"{path} is not a regular file but a pipe, a socket or a device: copy its content to a file first"
        )


def axes_by_shape(shape: Sequence[int], name: str, remedy: str = "") -> str:
    """Name the axes of an array by its shape.

    The bands are the last axis, or else the first one, if it has at most `MAX_BANDS` entries and no axis is shorter.
    `remedy` ends the message of an error; by default it is that for arrays.

    Returns
    -------
    str
        One letter for each axis: y, x, c, or - for a dropped axis of length 1.

    Raises
    ------
    ValueError
        If the axes cannot be told apart.
    """
    spare = len(shape) - 3
    letters: list[str] = []
    for length in shape:
        dropped = length == 1 and spare > 0
        spare -= dropped
        letters.append("-" if dropped else "?")
    lengths = [length for length, letter in zip(shape, letters, strict=True) if letter == "?"]
    if len(lengths) > 3:
        remedy = remedy or "pass one plane of it, (y, x) or (y, x, bands)"
        raise ValueError(f"{name} has shape {tuple(shape)}: {remedy}")
    order = iter("yx" if len(lengths) == 2 else _order_3d(lengths, name, remedy))
    return "".join(next(order) if letter == "?" else letter for letter in letters)


def _order_3d(lengths: list[int], name: str, remedy: str) -> str:
    """Return the axis letters of a 3-D shape."""
    first, middle, last = lengths
    if last <= min(MAX_BANDS, first, middle):
        return "yxc"
    if first <= min(MAX_BANDS, middle, last):
        return "cyx"
    shape = (first, middle, last)
    remedy = remedy or "pass one plane, e.g. array[0]"
    raise ValueError(f"{name} has shape {shape} and no axis of 1 to {MAX_BANDS} bands: {remedy}")


def short_name(path: Path) -> str:
    """Return the name of a file without the suffixes of image formats."""
    name = path.name
    while Path(name).suffix.lower() in SUFFIXES:
        name = Path(name).stem
    return name


def file_token(paths: Sequence[Path]) -> str:
    """Return a hash of path, size and modification time of files, which changes when one is written."""
    stats = [(str(path.resolve()), path.stat()) for path in sorted(set(paths))]
    return str(tokenize([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]))


@dataclass(frozen=True)
class Guard:
    """Check that the files of an image are those that were opened.

    Parameters
    ----------
    path
        Path of the image, for the error.
    token
        Hash of the files when the image was opened.
    compute
        Function that computes the hash again.
    """

    path: Path
    token: str
    compute: Callable[[], str]
    _again: list[float] = field(default_factory=list, compare=False, repr=False)

    def __call__(self, surely: bool = False) -> None:
        """Check the files; not `surely`, that is left out where it takes long and was done a short time ago.

        Raises
        ------
        OSError
            If they were changed, replaced or removed.
        """
        start = time.monotonic()
        if not surely and self._again and start < self._again[-1]:
            return
        try:
            now = self.compute()
        except OSError as error:
            raise OSError(error.errno, f"{self.path} cannot be read anymore ({error.strerror}): restore it") from error
        if now != self.token:
            raise OSError(f"{self.path} was changed or removed after it was opened: restore it, or open it again")
        # A Zarr of a terapixel has millions of folders to be looked at.
        took = time.monotonic() - start
        self._again[:] = [start + GUARD_SHARE * took] if took > GUARD_SLOW else []

    def __reduce__(self) -> tuple[type[Guard], tuple[Any, ...]]:
        """Leave out the time, which is another one in other processes."""
        return Guard, (self.path, self.token, self.compute)


def as_number(text: object) -> float | None:
    """Parse a nodata value: a number, its text, or eight bytes in base64 as xarray writes it; else None.

    A list of one of them, as netCDF has it, is that one.
    """
    if isinstance(text, (list, tuple)) and len(text) == 1:
        text = text[0]
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
