"""The levels of an image as a viewer shows them before they are dehazed: its colors, or one of its bands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.image import Image
from dehazexl.image.image import value_range as find_value_range
from dehazexl.image.windowed_array import WindowedArray, check_there
from dehazexl.io.open import open_image
from dehazexl.viewing.display import as_shown, shown_dtype
from dehazexl.viewing.errors import expected
from dehazexl.viewing.overviews import GrowingLevel, OverviewBuilder, with_overviews, with_tail

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.image.grid import Window

CHUNK = 1024
"""Pixels: side of the chunks of overviews that are being computed."""

CHANGED = "another image was written there: open it again"


@dataclass(frozen=True)
class ShownImage:
    """An image that a viewer shows while its file may change, and its overviews may still be computed.

    Attributes
    ----------
    image
        The image.
    folder
        Where overviews are kept, see `overviews.kept_overviews`.
    report
        Called, in the thread that reads, with the image and the error when it cannot be read, and with None when it
        can be read again.
    builder
        The overviews of the image while they are computed.
    """

    image: Image
    folder: Path
    report: Callable[[Image, Exception | None], None]
    builder: OverviewBuilder | None = None

    def colors(self, value_range: tuple[float, float] | None = None) -> list[da.Array]:
        """Return the colors of each level, and their alpha.

        Parameters
        ----------
        value_range
            The values that are shown as 0 and 1, unless the image is of uint8, which is shown as it is. None takes
            those of `dehazexl.image.value_range`.

        Returns
        -------
        list of dask.array.Array
            ``(y, x, 3)`` or ``(y, x, 4)``, uint8 or float32; 0 where the image cannot be read.
        """
        image = self.image
        render = partial(as_shown, image=image, value_range=value_range or find_value_range(image))
        return self._levels(render, (3 if image.alpha is None else 4,), shown_dtype(image))

    def band(self, band: int) -> list[da.Array]:
        """Return one band of each level, ``(y, x)``; 0 where the image cannot be read."""
        return self._levels(itemgetter((..., band)), (), self.image.levels[0].dtype)

    def _levels(
        self, render: Callable[[NDArray[Any]], NDArray[Any]], channels: tuple[int, ...], dtype: np.dtype[Any]
    ) -> list[da.Array]:
        builder = self.builder
        levels: Sequence[da.Array | GrowingLevel] = builder.levels if builder else with_tail(self.image).levels
        return [
            da.from_array(
                ShownLevel(self, number, level, render, (*level.shape[:2], *channels), dtype),
                chunks=(*getattr(level, "chunks", (CHUNK, CHUNK))[:2], *channels),
                name=False,
                meta=np.empty((0,) * (2 + len(channels)), dtype),
            )
            for number, level in enumerate(levels)
        ]


class ShownLevel(WindowedArray):
    """A level of a source as it is shown. Indexed, it never raises: viewers would paint garbage, or half a layer."""

    def __init__(
        self,
        source: ShownImage,
        number: int,
        level: da.Array | GrowingLevel,
        render: Callable[[NDArray[Any]], NDArray[Any]],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self.source, self.number, self.render, self.shape, self.dtype = source, number, render, shape, dtype
        # A view that moves a little needs most chunks again, and the window waits for them.
        self.level = ChunkCache.of(level) if isinstance(level, da.Array) else level
        self.written = last_written(source.image)

    def read(self, window: Window) -> NDArray[Any]:
        """Read a window; zeros, and a report, if that fails."""
        image = self.source.image
        try:
            check_there(image.path)
            self.reopen()
            return self.render(self.level.read(window))
        except Exception as error:
            expected(error, f"showing {image.name}")
            if isinstance(error, FileNotFoundError):
                self.written = 0  # a file that is back later is another one
            self.source.report(image, error)
            return np.zeros((window.height, window.width, *self.shape[2:]), self.dtype)

    def reopen(self) -> None:
        """Open the file again if it was written since: nothing in it lies where it lay.

        Raises
        ------
        ValueError
            If it holds another image now.
        """
        image = self.source.image
        written = last_written(image)
        if written == self.written or not isinstance(self.level, ChunkCache):
            return
        assert image.path is not None
        levels = _reopened(image.path, written, self.source.folder)
        if self.number >= len(levels) or levels[self.number].shape != self.level.array.shape:
            raise ValueError(CHANGED)
        self.level, self.written = ChunkCache.of(levels[self.number]), written
        self.source.report(image, None)  # not after each window: a damaged one lies among good ones


@lru_cache(maxsize=1)
def _reopened(path: Path, written: int, folder: Path) -> tuple[da.Array, ...]:
    """Return the levels of a file that was written again: once for all of them."""
    return with_tail(with_overviews(open_image(path), folder)).levels


def last_written(image: Image) -> int:
    """Return when the file of an image was last written, in nanoseconds; 0 without a file."""
    return image.path.stat().st_mtime_ns if image.path is not None and image.path.exists() else 0
