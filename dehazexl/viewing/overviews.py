"""Overviews of a large picture that has none: made once, in the background, and kept in a folder."""

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
"""Pixels: a picture whose coarsest level is no longer than this on any side needs no further overviews."""

GAP = 8
"""Times as long a level may be as the next one."""

SMALLEST = 64
"""Pixels of the last, tiny level: viewers read that in full."""

SAMPLES = 8
"""Places a side where a picture is looked at first."""

MORE_SAMPLES = 32
"""Places a side where it is looked at if there will be no overviews."""

ABANDONED = 24 * 3600
"""Seconds after which overviews that another process began are taken for left over."""

# Two pictures at a time would only compete for the disk; and one that is opened twice needs its overviews once.
_making = threading.Lock()


def needs_overviews(image: Image) -> bool:
    """Tell whether a picture has no level small enough to be read at once."""
    return max(image.levels[-1].shape[:2]) > ENOUGH


def without_gaps(image: Image) -> Image:
    """Return the picture without the levels after a gap, such as a thumbnail that lies in a file of full size.

    Viewers would show the large level whole where the small one is too coarse.
    """
    sides = [max(level.shape[:2]) for level in image.levels]
    gaps = [n for n, (fine, coarse) in enumerate(pairwise(sides), 1) if fine > ENOUGH and fine > GAP * coarse]
    return replace(image, levels=image.levels[: gaps[0]]) if gaps else image


def with_tail(image: Image) -> Image:
    """Return the picture with further levels, down to a tiny one.

    They are in memory; the coarsest level is read for them, at once. A picture that needs overviews gets those of
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
    """Return the coarsest level of a picture at half its size, ``(y, x, c)``, lazily; see `pyramid.halve`."""
    from dask.array.routines import aligned_coarsen_chunks

    level = image.levels[-1]
    level = level.rechunk({axis: aligned_coarsen_chunks(level.chunks[axis], 2) for axis in (0, 1)})  # parts no pair
    half = level.map_blocks(
        halve, nodata=image.nodata, alpha=image.alpha, dtype=level.dtype, meta=np.empty((0, 0, 0), level.dtype),
        chunks=(*(tuple(-(-side // 2) for side in sides) for sides in level.chunks[:2]), level.chunks[2]),
    )  # fmt: skip
    return half.rechunk({0: "auto", 1: "auto", 2: -1})


def look_around(image: Image, places: int) -> NDArray[Any]:
    """Return the mean colors ``(places, places, c)`` of small windows all over a picture."""
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
    """Return the picture with overviews, down to a tiny one, that show the pixels of a sample ``(y, x, c)``."""
    import dask.array as da

    levels = [
        da.from_array(NearestUpsampled(sample, shape), chunks=(1024, 1024, -1), name=False, meta=sample[:0, :0, :0])
        for shape in _further_shapes(image)
    ]
    return replace(image, levels=(*image.levels, *levels))


def _further_shapes(image: Image) -> list[tuple[int, ...]]:
    """List the shapes of the overviews that `make_overviews` makes, and of those that follow."""
    shapes: list[tuple[int, ...]] = [image.levels[-1].shape]
    while len(shapes) == 1 or max(shapes[-1][:2]) > SMALLEST:
        shapes.append((*(-(-side // 2) for side in shapes[-1][:2]), shapes[-1][2]))
    return shapes[1:]


def kept_overviews(image: Image, folder: Path) -> Image | None:
    """Return the picture with the overviews that a folder keeps of it, or None if it keeps none.

    Damaged ones are thrown away.
    """
    path = _place(image, folder)
    if not path.exists():
        return None
    try:
        levels = open_image(path).levels
    except (OSError, ValueError):
        shutil.rmtree(path, ignore_errors=True)
        return None
    return replace(image, levels=(*image.levels, *levels))


def with_overviews(image: Image, folder: Path) -> Image:
    """Return the image with its own overviews, or those that a folder keeps of it."""
    image = without_gaps(image)
    return (kept_overviews(image, folder) if needs_overviews(image) else None) or image


def make_overviews(image: Image, folder: Path) -> Generator[float, None, None]:
    """Make a picture's overviews and keep them in a folder, which is made if it is not there.

    The picture is read once. The overviews are an OME-Zarr named after the picture's fingerprint, a third of its size
    before compression.

    Yields
    ------
    float
        The share that is done, 0 to 1, after each block.

    Raises
    ------
    OSError
        If the disk is full; nothing is left behind.
    """
    from dehazexl.io.write import total, write

    folder.mkdir(parents=True, exist_ok=True)
    place = _place(image, folder)
    _forget_left_over(folder)
    half = halved(image)
    like = replace(image, levels=(half,), geo=None, path=None)
    # Another process may be making the same.
    own = place.with_name(f"{place.name.partition('.')[0]}.{os.getpid()}.ome.zarr")
    try:
        for done in write(half, own, like, overwrite=True):
            yield done / total(half)
        with suppress(OSError):  # the other one may have been first
            own.rename(place)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _forget_left_over(folder: Path) -> None:
    """Remove what processes that were killed have left, unless it may be that they still live."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                shutil.rmtree(part)


def _place(image: Image, folder: Path) -> Path:
    return folder / f"{hashlib.sha256(image.fingerprint.encode()).hexdigest()[:32]}.ome.zarr"


class OverviewBuilder:
    """A picture whose overviews are being made, from `start` on: what can be shown of it meanwhile.

    Attributes
    ----------
    levels : tuple of GrowingLevel
        The levels that there will be. Those of the file answer with its pixels, the others with a blurred picture from
        a few places, until they are made.
    image : Image
        The picture; with its overviews, once they are there. If they cannot be made, with such as `sampled` makes.
    ready : bool
        Whether the overviews are there.
    done : bool
        Whether the work has ended, with overviews or without.
    share : float
        How far the making is, 0 to 1.
    error : Exception or None
        Why there will be no overviews.
    updated : psygnal.Signal()
        More can be shown. Emitted in the thread that makes them.
    finished : psygnal.Signal()
        They are made, or will not be: `done` is True. Emitted in the thread that makes them.
    """

    updated = Signal()
    finished = Signal()

    def __init__(self, image: Image, folder: Path) -> None:
        self.image, self.ready, self.done, self.share = image, False, False, 0.0
        self.error: Exception | None = None
        shapes = [*(level.shape for level in image.levels), *_further_shapes(image)]
        self.levels = tuple(GrowingLevel(self, number, shape) for number, shape in enumerate(shapes))
        self._sample: NDArray[Any] = np.zeros((1, 1, image.levels[0].shape[2]), image.levels[0].dtype)
        self._worker = Worker(self._grow(folder), f"overviews {image.name}")

    def __deepcopy__(self, memo: dict[int, Any]) -> OverviewBuilder:
        return self  # viewers copy a layer's metadata to duplicate it

    def start(self) -> None:
        """Begin to make them, in a thread."""
        self._worker.start()

    @property
    def running(self) -> bool:
        """Whether they are being made."""
        return self._worker.running and not self.done

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the overviews are made, or cannot be; tell whether they are."""
        self._worker.join(timeout)
        return self.ready

    def close(self) -> None:
        """Stop making them, within a block; nothing half-made is left."""
        self._worker.close()

    def read(self, level: GrowingLevel, window: Window) -> NDArray[Any]:
        """Return the pixels ``(y, x, c)`` of a window, or something like them, at once."""
        if level.number < len(self.image.levels):
            pixels = self.image.levels[level.number][window.y0 : window.y1, window.x0 : window.x1]
            return np.asarray(pixels.compute(scheduler="synchronous"))
        return NearestUpsampled(self._sample, level.shape).read(window)

    def _grow(self, folder: Path) -> Generator[bool, None, None]:
        """Look around, then make the overviews, a block a step."""
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
            expected(error, f"making overviews of {self.image.name}")
            self.error = error
            with suppress(*UNREADABLE):  # then the few places have to do
                self._sample = look_around(self.image, MORE_SAMPLES)
        finally:
            if not self.ready:
                self.image = sampled(self.image, self._sample)
            self.done = True
            self.finished.emit()

    def _make(self, folder: Path) -> Generator[bool, None, None]:
        if kept_overviews(self.image, folder) is None:
            with closing(make_overviews(self.image, folder)) as making:
                for self.share in making:
                    yield True
        done = kept_overviews(self.image, folder)
        if done is None:
            raise OSError(f"they could not be kept in {folder}")
        self.image, self.ready = with_tail(done), True


class GrowingLevel(WindowedArray):
    """A level of a `OverviewBuilder` picture, ``(y, x, c)``: cut, it answers at once, see `OverviewBuilder.read`."""

    def __init__(self, picture: OverviewBuilder, number: int, shape: tuple[int, ...]) -> None:
        self.picture, self.number, self.shape = picture, number, shape
        self.dtype = picture.image.levels[0].dtype

    def read(self, window: Window) -> NDArray[Any]:
        """See `OverviewBuilder.read`."""
        return self.picture.read(self, window)


class NearestUpsampled(WindowedArray):
    """A few pixels ``(y, x, c)``, each repeated over its share of a picture of some shape."""

    def __init__(self, pixels: NDArray[Any], shape: tuple[int, ...]) -> None:
        self.pixels, self.shape, self.dtype = pixels, shape, pixels.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Return a window's pixels."""
        rows = np.arange(window.y0, window.y1) * self.pixels.shape[0] // self.shape[0]
        cols = np.arange(window.x0, window.x1) * self.pixels.shape[1] // self.shape[1]
        return np.asarray(self.pixels[rows[:, None], cols])
