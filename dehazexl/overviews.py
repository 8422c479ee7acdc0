"""Overviews of a large picture that has none: made once, in the background, and kept in a folder."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.cut import Cut
from dehazexl.grid import Window
from dehazexl.image import Image, open_image
from dehazexl.pixels import Pixels

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray

ENOUGH = 2048
"""Pixels: a picture whose coarsest level is no longer than this on any side needs no further overviews."""

SAMPLES = 8
"""Places a side where a picture is looked at first."""


def needs_overviews(image: Image) -> bool:
    """Tell whether a picture has no level small enough to be read at once."""
    return max(image.levels[-1].shape[:2]) > ENOUGH


def halved(level: da.Array) -> da.Array:
    """Return every 2 x 2 pixels of a lazy picture ``(y, x, c)`` as their mean, lazily; an odd last row is left out."""
    import dask.array as da

    axes = {axis: 2 for axis in (0, 1) if level.shape[axis] > 1}
    half = da.coarsen(np.mean, level, axes, trim_excess=True)
    rounded = half if level.dtype.kind == "f" else half.round()
    return rounded.astype(level.dtype).rechunk({0: "auto", 1: "auto", 2: -1})


def kept_overviews(image: Image, folder: Path) -> Image | None:
    """Return the picture with the overviews that a folder keeps of it, or None if it keeps none."""
    path = _place(image, folder)
    if not path.exists():
        return None
    return replace(image, levels=(*image.levels, *open_image(path).levels))


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
    from dehazexl.sink import total, write

    folder.mkdir(parents=True, exist_ok=True)
    half = halved(image.levels[-1])
    like = replace(image, levels=(half,), geo=None, path=None)
    for done in write(half, _place(image, folder), like, overwrite=True):
        yield done / total(half)


def _place(image: Image, folder: Path) -> Path:
    return folder / f"{hashlib.sha256(image.fingerprint.encode()).hexdigest()[:32]}.ome.zarr"


class Growing:
    """A picture whose overviews are being made: what can be shown of it meanwhile.

    Attributes
    ----------
    levels : tuple of GrowingLevel
        The levels that there will be. Those of the file answer with its pixels, the others with a blurred picture from
        a few places, until they are made.
    image : Image
        The picture; with its overviews, once they are there.
    share : float
        How far the making is, 0 to 1.
    version : int
        Rises when more can be shown.
    error : Exception or None
        Why there will be no overviews.
    """

    def __init__(self, image: Image, folder: Path) -> None:
        self.image, self.share, self.version = image, 0.0, 0
        self.error: Exception | None = None
        lazy = [*image.levels]
        while max(lazy[-1].shape[:2]) > 64:
            lazy.append(halved(lazy[-1]))
        self.levels = tuple(GrowingLevel(self, number, level) for number, level in enumerate(lazy))
        self._first = len(image.levels)
        self._sample: NDArray[Any] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(folder,), name=f"overviews {image.name}", daemon=True)
        self._thread.start()
        self._at_exit = weakref.finalize(self, _stop, self._closed, self._thread)

    @property
    def ready(self) -> bool:
        """Whether the overviews are there."""
        return len(self.image.levels) > self._first

    @property
    def running(self) -> bool:
        """Whether they are being made."""
        return self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the overviews are made, or cannot be; tell whether they are."""
        self._thread.join(timeout)
        return self.ready

    def close(self) -> None:
        """Stop making them, within a block; nothing half-made is left."""
        self._closed.set()

    def read(self, level: GrowingLevel, window: Window) -> NDArray[Any]:
        """Return the pixels ``(y, x, c)`` of a window, or something like them, at once."""
        if level.number < self._first:
            return np.asarray(level.lazy[window.y0 : window.y1, window.x0 : window.x1])
        if self.ready and level.number < len(self.image.levels):
            return np.asarray(self.image.levels[level.number][window.y0 : window.y1, window.x0 : window.x1])
        height, width, bands = level.shape
        if self._sample is None:
            return np.zeros((window.height, window.width, bands), level.dtype)
        rows = np.arange(window.y0, window.y1) * len(self._sample) // height
        cols = np.arange(window.x0, window.x1) * len(self._sample) // width
        return self._sample[rows[:, None], cols]

    def _run(self, folder: Path) -> None:
        try:
            self._sample = self._look_around()
            self.version += 1
            making = make_overviews(self.image, folder)
            for share in making:
                self.share = share
                if self._closed.is_set():
                    making.close()
                    return
            done = kept_overviews(self.image, folder)
            assert done is not None
            self.image = done
        except Exception as error:
            self.error = error
        self.version += 1

    def _look_around(self) -> NDArray[Any]:
        """Return the mean colours ``(8, 8, c)`` of small windows all over the picture."""
        finest = self.image.levels[-1]
        pixels = Pixels(finest)
        out = np.zeros((SAMPLES, SAMPLES, finest.shape[2]), finest.dtype)
        for row in range(SAMPLES):
            for col in range(SAMPLES):
                y, x = ((2 * at + 1) * finest.shape[axis] // (2 * SAMPLES) for axis, at in enumerate((row, col)))
                out[row, col] = pixels.read(Window(y, y + 16, x, x + 16)).mean((0, 1)).astype(finest.dtype)
        return out


class GrowingLevel(Cut):
    """A level of a `Growing` picture, ``(y, x, c)``: cut, it answers at once, see `Growing.read`."""

    def __init__(self, picture: Growing, number: int, lazy: da.Array) -> None:
        self.picture, self.number, self.lazy = picture, number, lazy
        self.shape, self.dtype = lazy.shape, lazy.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """See `Growing.read`."""
        return self.picture.read(self, window)


def _stop(closed: threading.Event, thread: threading.Thread) -> None:
    closed.set()
    if thread is not threading.current_thread():
        thread.join(10)
