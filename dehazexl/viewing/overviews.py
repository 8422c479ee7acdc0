"""Overviews of large images without any: computed once, in the background, and kept in a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal

from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import Window
from dehazexl.image.image import Image
from dehazexl.image.windowed_array import WindowedArray
from dehazexl.io.open import open_image
from dehazexl.io.pyramid import halve
from dehazexl.viewing.errors import UNREADABLE, expected
from dehazexl.viewing.worker import Worker

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray

ENOUGH = 2048
"""Pixels: longest side of a coarsest level that needs no further overviews."""

GAP = 8
"""Largest ratio of the sides of a level and the next one."""

SMALLEST = 64
"""Pixels: longest side of the last level, which viewers read in full."""

SAMPLES = 8
"""Samples along each side of an image while its overviews are computed."""

MORE_SAMPLES = 32
"""Samples along each side of an image whose overviews cannot be computed."""

ABANDONED = 24 * 3600
"""Seconds after which unfinished overviews of another process are taken for abandoned."""

KEPT = 20 * 10**9
"""Bytes of overviews to keep in the folder."""

# Two images at a time would only compete for the disk, and one that is opened twice needs its overviews once.
_making = threading.Lock()


def needs_overviews(image: Image) -> bool:
    """Return whether an image has no level small enough to be read at once."""
    return max(image.levels[-1].shape[:2]) > ENOUGH


def without_gaps(image: Image) -> Image:
    """Return the image without the levels after a gap, for example a thumbnail in a file of full size.

    Viewers would read the large level in full where the small one is too coarse.
    """
    sides = [max(level.shape[:2]) for level in image.levels]
    gaps = [n for n, (fine, coarse) in enumerate(pairwise(sides), 1) if fine > ENOUGH and fine > GAP * coarse]
    return replace(image, levels=image.levels[: gaps[0]]) if gaps else image


def with_tail(image: Image) -> Image:
    """Return the image with further levels, down to a tiny one.

    They are in memory, and the coarsest level is read for them, at once. An image that needs overviews gets those of
    `sampled`.
    """
    import dask.array as da

    if max(image.levels[-1].shape[:2]) <= SMALLEST:
        return image
    if needs_overviews(image):
        return sampled(image, look_around(image, SAMPLES))
    pixels, levels = np.asarray(image.levels[-1]), [*image.levels]
    while max(pixels.shape[:2]) > SMALLEST:
        pixels = halve(pixels, image.nodata, image.alpha)
        levels.append(da.from_array(pixels, chunks=-1, name=False))
    return replace(image, levels=tuple(levels))


def halved(image: Image) -> da.Array:
    """Return the coarsest level of an image at half its size, ``(y, x, c)``, lazily; see `pyramid.halve`."""
    import dask.array as da
    from dask.array.routines import aligned_coarsen_chunks

    level = image.levels[-1]
    fine = [aligned_coarsen_chunks(level.chunks[axis], 2) for axis in (0, 1)]  # parts no pair
    chunks = (*(tuple(-(-side // 2) for side in sides) for sides in fine), level.shape[2])
    half = da.from_array(Halved(image), chunks=chunks, name=False, meta=np.empty((0, 0, 0), level.dtype))
    return half.rechunk({0: "auto", 1: "auto", 2: -1})


class Halved(WindowedArray):
    """The coarsest level of an image at half its size, ``(y, x, c)``. What its file does not contain is not read."""

    def __init__(self, image: Image) -> None:
        self.image, self.level = image, image.levels[-1]
        height, width, bands = self.level.shape
        self.shape, self.dtype = (-(-height // 2), -(-width // 2), bands), self.level.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Return the means of a window."""
        height, width = self.level.shape[:2]
        y0, y1, x0, x1 = window.y0, window.y1, window.x0, window.x1
        fine = Window(2 * y0, min(2 * y1, height), 2 * x0, min(2 * x1, width))
        if self.level is self.image.levels[0] and self.image.is_missing(fine):
            return self.image.fill(window.height, window.width)
        pixels = self.level[fine.y0 : fine.y1, fine.x0 : fine.x1].compute(scheduler="synchronous")
        return halve(np.asarray(pixels), self.image.nodata, self.image.alpha)


def look_around(image: Image, places: int) -> NDArray[Any]:
    """Return the mean colors ``(places, places, c)`` of small windows on a regular grid."""
    finest = image.levels[-1]
    pixels = ChunkCache(finest)
    out = np.zeros((places, places, finest.shape[2]), finest.dtype)
    for row, col in np.ndindex(places, places):
        y, x = ((2 * at + 1) * finest.shape[axis] // (2 * places) for axis, at in enumerate((row, col)))
        out[row, col] = _mean(pixels.read(Window(y, y + 16, x, x + 16)), image)
    return out


def _mean(pixels: NDArray[Any], image: Image) -> NDArray[Any]:
    """Return the mean color ``(c,)`` of some pixels ``(16, 16, c)``."""
    while len(pixels) > 1:
        pixels = halve(pixels, image.nodata, image.alpha)
    return pixels[0, 0]


def sampled(image: Image, sample: NDArray[Any]) -> Image:
    """Return the image with overviews, down to a tiny one, that repeat the pixels of a sample ``(y, x, c)``."""
    import dask.array as da

    levels = [
        da.from_array(NearestUpsampled(sample, shape), chunks=(1024, 1024, -1), name=False, meta=sample[:0, :0, :0])
        for shape in _further_shapes(image)
    ]
    return replace(image, levels=(*image.levels, *levels))


def _further_shapes(image: Image) -> list[tuple[int, ...]]:
    """List the shapes of the overviews of `make_overviews`, and of the levels after them."""
    shapes: list[tuple[int, ...]] = [image.levels[-1].shape]
    while len(shapes) == 1 or max(shapes[-1][:2]) > SMALLEST:
        shapes.append((*(-(-side // 2) for side in shapes[-1][:2]), shapes[-1][2]))
    return shapes[1:]


def kept_overviews(image: Image, folder: Path) -> Image | None:
    """Return the image with its overviews in a folder, or None if there are none. Damaged ones are deleted."""
    path = _place(image, folder)
    if not path.exists():
        return None
    try:
        levels = open_image(path).levels
        os.utime(path)  # it is in use, see `forget_old`
    except (OSError, ValueError):
        shutil.rmtree(path, ignore_errors=True)
        return None
    return replace(image, levels=(*image.levels, *levels))


def with_overviews(image: Image, folder: Path) -> Image:
    """Return the image with its own overviews, or with those in a folder."""
    image = without_gaps(image)
    return (kept_overviews(image, folder) if needs_overviews(image) else None) or image


def make_overviews(image: Image, folder: Path) -> Generator[float, None, None]:
    """Compute the overviews of an image and write them into a folder, which is created if needed.

    The image is read once. The overviews are an OME-Zarr named after its fingerprint, a third of its size before
    compression.

    Yields
    ------
    float
        The fraction that is done, 0 to 1, after each block.

    Raises
    ------
    OSError
        If the disk is full; nothing is left behind.
    """
    from dehazexl.io.write import total, write

    folder.mkdir(parents=True, exist_ok=True)
    place = _place(image, folder)
    _forget_left_over(folder)
    with suppress(OSError):  # another process may delete them, too
        forget_old(folder)
    half = halved(image)
    like = replace(image, levels=(half,), geo=None, path=None)
    # Another process may compute the same.
    own = place.with_name(f"{place.name.partition('.')[0]}.{os.getpid()}.ome.zarr")
    try:
        for done in write(half, own, like, overwrite=True):
            yield done / total(half)
        with suppress(OSError):  # the other process may have been first
            own.rename(place)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _forget_left_over(folder: Path) -> None:
    """Delete what killed processes have left, once it is old enough that none can still be running."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                shutil.rmtree(part)


def forget_old(folder: Path, most: int = KEPT) -> None:
    """Delete the overviews that were used longest ago, until the others take at most `most` bytes."""
    total = 0
    for path in sorted(folder.glob("*.ome.zarr"), key=lambda path: path.stat().st_mtime, reverse=True):
        total += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if total > most:
            shutil.rmtree(path, ignore_errors=True)


def _place(image: Image, folder: Path) -> Path:
    return folder / f"{hashlib.sha256(image.fingerprint.encode()).hexdigest()[:32]}.ome.zarr"


class OverviewBuilder:
    """Computes the overviews of an image in a thread, from `start` on, and shows the image meanwhile.

    Attributes
    ----------
    levels : tuple of GrowingLevel
        All levels, with the overviews to come. Those of the file return its pixels, the others a blurred image of a
        few samples until they are computed.
    image : Image
        The image, with its overviews once they are computed. If they cannot be computed, with those of `sampled`.
    ready : bool
        Whether the overviews are computed.
    done : bool
        Whether the work has ended, with overviews or without.
    progress : float
        Fraction that is done, 0 to 1.
    error : Exception or None
        The error that ended the work.
    updated : psygnal.Signal()
        Emitted when the blurred image is ready, in the thread that computes.
    finished : psygnal.Signal()
        Emitted when `done` becomes True, in the thread that computes.
    """

    updated = Signal()
    finished = Signal()

    def __init__(self, image: Image, folder: Path) -> None:
        self.image, self.ready, self.done, self.progress = image, False, False, 0.0
        self.error: Exception | None = None
        shapes = [*(level.shape for level in image.levels), *_further_shapes(image)]
        self.levels = tuple(GrowingLevel(self, number, shape) for number, shape in enumerate(shapes))
        self._sample: NDArray[Any] = np.zeros((1, 1, image.levels[0].shape[2]), image.levels[0].dtype)
        self._worker = Worker(self._grow(folder), f"overviews {image.name}")

    def __deepcopy__(self, memo: dict[int, Any]) -> OverviewBuilder:
        return self  # viewers copy a layer's metadata to duplicate it

    def start(self) -> None:
        """Start to compute the overviews."""
        self._worker.start()

    @property
    def running(self) -> bool:
        """Whether the overviews are being computed."""
        return self._worker.running and not self.done

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the work has ended; return whether there are overviews."""
        self._worker.join(timeout)
        return self.ready

    def close(self) -> None:
        """Stop within a block; nothing unfinished is left on disk."""
        self._worker.close()

    def read(self, level: GrowingLevel, window: Window) -> NDArray[Any]:
        """Return the pixels ``(y, x, c)`` of a window, blurred if need be, at once."""
        if level.number < len(self.image.levels):
            pixels = self.image.levels[level.number][window.y0 : window.y1, window.x0 : window.x1]
            return np.asarray(pixels.compute(scheduler="synchronous"))
        return NearestUpsampled(self._sample, level.shape).read(window)

    def _grow(self, folder: Path) -> Generator[bool, None, None]:
        """Sample the image, then compute the overviews, one block per step."""
        try:
            self._sample = look_around(self.image, SAMPLES)
            self.updated.emit()
            while not _making.acquire(timeout=0.1):
                yield True
            try:
                yield from self._make(folder)
            finally:
                _making.release()
        except Exception as error:
            expected(error, f"computing overviews of {self.image.name}")
            self.error = error
            with suppress(*UNREADABLE):  # then the first samples have to do
                self._sample = look_around(self.image, MORE_SAMPLES)
        finally:
            if not self.ready:
                self.image = sampled(self.image, self._sample)
            self.done = True
            self.finished.emit()

    def _make(self, folder: Path) -> Generator[bool, None, None]:
        if kept_overviews(self.image, folder) is None:
            with closing(make_overviews(self.image, folder)) as making:
                for self.progress in making:
                    yield True
        done = kept_overviews(self.image, folder)
        if done is None:
            raise OSError(f"they could not be kept in {folder}")
        self.image, self.ready = with_tail(done), True


class GrowingLevel(WindowedArray):
    """A level of an `OverviewBuilder`, ``(y, x, c)``. Indexing returns at once, see `OverviewBuilder.read`."""

    def __init__(self, builder: OverviewBuilder, number: int, shape: tuple[int, ...]) -> None:
        self.builder, self.number, self.shape = builder, number, shape
        self.dtype = builder.image.levels[0].dtype

    def read(self, window: Window) -> NDArray[Any]:
        """See `OverviewBuilder.read`."""
        return self.builder.read(self, window)


class NearestUpsampled(WindowedArray):
    """A few pixels ``(y, x, c)``, enlarged to a shape by nearest neighbor."""

    def __init__(self, pixels: NDArray[Any], shape: tuple[int, ...]) -> None:
        self.pixels, self.shape, self.dtype = pixels, shape, pixels.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Return the pixels of a window."""
        rows = np.arange(window.y0, window.y1) * self.pixels.shape[0] // self.shape[0]
        cols = np.arange(window.x0, window.x1) * self.pixels.shape[1] // self.shape[1]
        return np.asarray(self.pixels[rows[:, None], cols])
