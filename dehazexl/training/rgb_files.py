"""8-bit RGB pictures in files, as training reads them: whole and kept, or by crop."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

WHOLE = 64 * 2**20
"""Bytes: smaller pictures are read whole; of larger ones, where the file allows it, each crop is read by itself."""

KEPT = 4 * 2**30
"""Bytes of pictures read whole that are kept in memory, the last used ones."""


class Picture(Protocol):
    """An 8-bit RGB picture ``(h, w, 3)``, in memory or in a file; an array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns and colors."""

    def __getitem__(self, index: Any, /) -> NDArray[np.uint8]:
        """Return the pixels of slices of rows and columns."""


class ImageCache:
    """Keeps pictures that were read whole, the last used ones, for all threads."""

    def __init__(self, limit: int = KEPT) -> None:
        self._limit, self._size = limit, 0
        self._pictures: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()
        self._lock = Lock()

    def read(self, path: Path, index: Any) -> NDArray[np.uint8]:
        """Return a part of a picture."""
        with self._lock:
            pixels = self._pictures.get(path)
            if pixels is not None:
                self._pictures.move_to_end(path)
                return pixels[index]
        # Without the lock, so that threads can decode different pictures at the same time.
        pixels = decode(path)
        with self._lock:
            if path not in self._pictures and pixels.nbytes <= self._limit:
                self._pictures[path] = pixels
                self._size += pixels.nbytes
            while self._size > self._limit:
                self._size -= self._pictures.popitem(last=False)[1].nbytes
        return pixels[index]


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An 8-bit RGB picture in a file.

    Attributes
    ----------
    shape
        ``(height, width, 3)``.
    read
        Takes slices of rows and columns and returns ``(y, x, 3)``.
    whole
        Whether all of it is read for any part of it, unless it is in memory already.
    """

    shape: tuple[int, ...]
    read: Callable[[Any], NDArray[np.uint8]]
    whole: bool = False

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        return self.read(index)


def open_rgb(path: Path, memory: ImageCache | None = None) -> ImageFile:
    """Open a picture without reading it.

    Parameters
    ----------
    path
        A TIFF, Zarr, PNG, JPEG, or a ``.npy`` file ``(h, w, 3)``.
    memory
        Keeps it, once it was read whole: small pictures and those that cannot be read in parts (PNG, JPEG) are.
        Crops of large TIFF and Zarr are read by themselves, ``.npy`` files are mapped.

    Raises
    ------
    ValueError
        If it cannot be read, or is not an 8-bit picture with three bands or more.
    """
    if path.suffix.lower() == ".npy":
        return ImageFile(check_rgb(path, map_npy(path)).shape, partial(read_npy, path))
    # Not needed for .npy, so that training runs where only torch and numpy are installed.
    from dehazexl.io.open import open_image

    image = open_image(path)
    level = image.levels[0]
    # A gray picture repeats its only band: it would teach that nothing has colors.
    check_rgb(path, level[..., list(dict.fromkeys(image.rgb))])
    shape = (*level.shape[:2], 3)
    if level.nbytes < WHOLE or level.npartitions == 1:
        return ImageFile(shape, partial((memory or ImageCache()).read, path), whole=True)
    return ImageFile(shape, partial(read_lazy, level, list(image.rgb)))


def check_rgb(path: Path, pixels: Any) -> Any:
    """Return a picture if it is ``(h, w, 3)`` of 8 bits, else raise ValueError with its name."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"{path}: 8-bit RGB pictures are needed, this is {pixels.dtype} {pixels.shape}: "
            "convert it, or take it out of the folder"
        )
    return pixels


def map_npy(path: Path) -> NDArray[Any]:
    """Map an array in a file."""
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path} is no array, or cut short ({error}): copy or make it again") from error
    return mapped


def read_npy(path: Path, index: Any) -> NDArray[np.uint8]:
    """Read a part of an array in a file, mapped each time: thousands of files must not stay open."""
    return np.array(map_npy(path)[index])


def read_lazy(level: Any, rgb: list[int], index: Any) -> NDArray[np.uint8]:
    """Read the part of a dask array ``(y, x, c)`` that is asked for; the caller's threads are the parallelism."""
    return np.asarray(level[index].compute(scheduler="synchronous"))[..., rgb]


def decode(path: Path) -> NDArray[np.uint8]:
    """Read a picture whole, ``(h, w, 3)``."""
    from dehazexl.io.open import open_image

    image = open_image(path)
    return read_lazy(image.levels[0], list(image.rgb), ())


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read a picture as ``(h, w, 3)``, uint8; ``.npy`` files hold just that.

    Raises
    ------
    ValueError
        See `open_rgb`.
    """
    return np.ascontiguousarray(open_rgb(path)[:, :])
