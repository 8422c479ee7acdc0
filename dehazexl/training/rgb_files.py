"""8-bit RGB image files for training, read as a whole and cached, or by crop."""

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

MAX_WHOLE_SIZE = 64 * 2**20
"""Size in bytes below which images are read as a whole; of larger ones, crops are read if the format allows it."""

CACHE_SIZE = 4 * 2**30
"""Bytes of recently used images that are cached."""


class RgbImage(Protocol):
    """An 8-bit RGB image ``(h, w, 3)``: a numpy array, or a file that is indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(height, width, 3)``."""

    def __getitem__(self, index: Any, /) -> NDArray[np.uint8]:
        """Return the pixels ``(y, x, 3)`` at slices of rows and columns."""


class ImageCache:
    """Thread-safe cache of recently used images.

    Parameters
    ----------
    limit
        Size in bytes.
    """

    def __init__(self, limit: int = CACHE_SIZE) -> None:
        self._limit, self._size = limit, 0
        self._images: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()
        self._lock = Lock()

    def read(self, path: Path, index: Any) -> NDArray[np.uint8]:
        """Return the part of an image at an index."""
        with self._lock:
            pixels = self._images.get(path)
            if pixels is not None:
                self._images.move_to_end(path)
                return pixels[index]
        # Not under the lock: threads decode different images at the same time.
        pixels = decode(path)
        with self._lock:
            if path not in self._images and pixels.nbytes <= self._limit:
                self._images[path] = pixels
                self._size += pixels.nbytes
            while self._size > self._limit:
                self._size -= self._images.popitem(last=False)[1].nbytes
        return pixels[index]


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An 8-bit RGB image in a file.

    Attributes
    ----------
    shape
        ``(height, width, 3)``.
    read
        Function of slices of rows and columns that returns ``(y, x, 3)``.
    whole
        Whether reading any part of the image decodes all of it, unless it is cached.
    """

    shape: tuple[int, ...]
    read: Callable[[Any], NDArray[np.uint8]]
    whole: bool = False

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        return self.read(index)


def open_rgb(path: Path, cache: ImageCache | None = None) -> ImageFile:
    """Open an image without reading its pixels.

    Parameters
    ----------
    path
        A TIFF, Zarr, PNG, JPEG, or a ``.npy`` file ``(h, w, 3)``.
    cache
        Cache for images that are read as a whole: small ones, and formats that cannot be read in parts (PNG, JPEG).
        Crops of large TIFF and Zarr files are read separately; ``.npy`` files are memory-mapped.

    Raises
    ------
    ValueError
        If the file cannot be read, or is not an 8-bit image with at least three bands.
    """
    if path.suffix.lower() == ".npy":
        return ImageFile(check_rgb(path, map_npy(path)).shape, partial(read_npy, path))
    # Imported here so that training on .npy files needs only torch and numpy.
    from dehazexl.io.open import open_image

    image = open_image(path)
    level = image.levels[0]
    # A gray image repeats its only band and is rejected: it would bias the network towards gray.
    check_rgb(path, level[..., list(dict.fromkeys(image.rgb))])
    shape = (*level.shape[:2], 3)
    if level.nbytes < MAX_WHOLE_SIZE or level.npartitions == 1:
        return ImageFile(shape, partial((cache or ImageCache()).read, path), whole=True)
    return ImageFile(shape, partial(read_lazy, level, list(image.rgb)))


def check_rgb(path: Path, pixels: Any) -> Any:
    """Return an image if it is ``(h, w, 3)`` uint8, else raise ValueError with its path."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"{path}: 8-bit RGB images are needed, this is {pixels.dtype} {pixels.shape}: "
            "convert it, or remove it from the folder"
        )
    return pixels


def map_npy(path: Path) -> NDArray[Any]:
    """Memory-map a ``.npy`` file; raise ValueError if it is damaged."""
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r")
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path} is not an array, or is cut short ({error}): copy or create it again") from error
    return mapped


def read_npy(path: Path, index: Any) -> NDArray[np.uint8]:
    """Read a part of a ``.npy`` file, mapped for each read so that thousands of files do not stay open."""
    return np.array(map_npy(path)[index])


def read_lazy(level: Any, rgb: list[int], index: Any) -> NDArray[np.uint8]:
    """Read part of a dask array ``(y, x, c)`` in the calling thread; callers are parallel already."""
    return np.asarray(level[index].compute(scheduler="synchronous"))[..., rgb]


def decode(path: Path) -> NDArray[np.uint8]:
    """Read a whole image ``(h, w, 3)``."""
    from dehazexl.io.open import open_image

    image = open_image(path)
    return read_lazy(image.levels[0], list(image.rgb), ())


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read a whole image or ``.npy`` file as ``(h, w, 3)`` uint8.

    Raises
    ------
    ValueError
        See `open_rgb`.
    """
    return np.ascontiguousarray(open_rgb(path)[:, :])
