"""Levels for a window that must not wait: they answer from memory, and are painted anew behind its back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal

from dehazexl.image.grid import Window
from dehazexl.viewing.display import upsample_window
from dehazexl.viewing.session import DehazeSession, Level
from dehazexl.viewing.worker import Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

TINY = 256
"""Pixels: the longest side of what is read while the window waits, once, when a painter is made."""


@dataclass(frozen=True)
class Frame:
    """A painted window of a level.

    Attributes
    ----------
    level, window
        What it shows.
    version
        The picture's when it was painted.
    pixels
        ``(y, x, 3)`` or 4, as `DehazeSession.read` returns them.
    """

    level: int
    window: Window
    version: int
    pixels: NDArray[Any]


class Renderer:
    """Shows a `DehazeSession` picture without reading its file while somebody waits.

    What is cut out of its levels comes from what was painted last, and where that does not reach, from a small
    picture of the whole, enlarged. A thread then reads and paints what was asked for, reads what lies around it, and
    ends.

    Parameters
    ----------
    live
        The picture. A tiny level of it is read at once. When it is updated, the window shown last is painted again.

    Attributes
    ----------
    painted : psygnal.Signal(bool)
        What is cut now is better than what was cut before; True if that of the whole picture is, of which thumbnails
        are made. Emitted in the thread that paints.
    """

    painted = Signal(bool)

    def __init__(self, live: DehazeSession) -> None:
        self.live = live
        sides = [max(level.shape[:2]) for level in live.image.levels]
        tiny = next((number for number, side in enumerate(sides) if side <= TINY), len(sides) - 1)
        self._whole = replace(self._painted(*self._all_of(tiny)), version=-1)
        self._view: Frame | None = None
        self._wanted: tuple[int, Window] | None = None
        self._ahead: tuple[int, list[Window]] = 0, []
        self._worker: Worker | None = None
        self._lock = threading.Lock()
        live.updated.connect(self.paint)

    @property
    def levels(self) -> tuple[RenderedLevel, ...]:
        """The levels, finest first."""
        return tuple(RenderedLevel(self, number) for number in range(len(self.live.image.levels)))

    def read(self, level: int, window: Window) -> NDArray[Any]:
        """Return the best pixels of a window that are painted, at once; better ones are painted next."""
        self.live.look_at(level, window)
        if level <= self.live.coarse:  # smaller ones are cut for thumbnails
            self._want((level, window) if level < self.live.coarse else None)
        whole, view = self._whole, self._view
        self.paint()
        if whole.level == level:
            return whole.pixels[window.to_slices(whole.window)].copy()
        pixels = np.empty((window.height, window.width, *whole.pixels.shape[2:]), whole.pixels.dtype)
        rest = [window]
        if view is not None and view.level == level:
            shared, rest = window.split(view.window)
            pixels[shared.to_slices(window)] = view.pixels[shared.to_slices(view.window)]
        for part in rest:
            pixels[part.to_slices(window)] = upsample_window(whole.pixels, part, self._shape_of(level))
        return pixels

    def paint(self) -> None:
        """Begin to paint what was asked for last, unless it is as good as the picture is by now."""
        with self._lock:
            if self._worker is None and self._due() is not None:
                self._worker = Worker(self._steps(), f"paint {self.live.image.name}")
                self._worker.start()

    @property
    def fresh(self) -> bool:
        """Whether what was painted is as good as the picture is by now."""
        return self._unpainted() is None

    def _want(self, wanted: tuple[int, Window] | None) -> None:
        """Say what is looked at."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._ahead = (0, []) if wanted is None else (wanted[0], self.live.around(*wanted))

    def _steps(self) -> Generator[bool, None, None]:
        while (step := self._next()) is not None:
            step()
            yield True

    def _next(self) -> Callable[[], None] | None:
        """Return what is due, or end the work: at one go with `paint`, or what it asks for meanwhile would be lost."""
        with self._lock:
            step = self._due()
            if step is None:
                self._worker = None
            return step

    def _due(self) -> Callable[[], None] | None:
        """Return what is to be done next: paint what is not as good as the picture, then read what lies around."""
        unpainted, (level, chunks) = self._unpainted(), self._ahead
        if unpainted is not None:
            return partial(self._paint, *unpainted)
        if chunks and self.live.running and not self.live.lost:
            return partial(self._read_ahead, level, chunks)
        return None

    def _unpainted(self) -> tuple[int, Window] | None:
        """Return what is to be painted next: the view, then the whole; None if both are as good as the picture."""
        view, wanted = self._view, self._wanted
        if self.live.lost:
            return None
        fresh = view is not None and (view.level, view.window) == wanted and view.version == self.live.version
        if wanted is not None and not fresh:
            return wanted
        return self._all_of(self.live.coarse) if self._whole.version < self.live.renewed else None

    def _paint(self, level: int, window: Window) -> None:
        frame = self._painted(level, window)
        if self.live.lost:  # then what there is is better
            return
        is_view = level < self.live.coarse
        if is_view:
            self._view = frame
        else:
            self._whole = frame
        self.painted.emit(not is_view)

    def _read_ahead(self, level: int, chunks: list[Window]) -> None:
        """Read one chunk: then the view may have moved, which is painted first."""
        self.live.read_ahead(level, chunks.pop())

    def _painted(self, level: int, window: Window) -> Frame:
        version = self.live.version
        return Frame(level, window, version, self.live.read(level, window))

    def _all_of(self, level: int) -> tuple[int, Window]:
        height, width = self._shape_of(level)[:2]
        return level, Window(0, height, 0, width)

    def _shape_of(self, level: int) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.live.image.levels[level].shape
        return shape


class RenderedLevel(Level):
    """A level of a `Renderer`, ``(y, x, 3)`` or 4: cut, it answers at once and never raises.

    As an array it is all there is of the picture, read now. A copy has a renderer of its own: it may be looked at
    elsewhere.
    """

    def __init__(self, renderer: Renderer, number: int) -> None:
        super().__init__(renderer.live, number)
        self.renderer = renderer

    def read(self, window: Window) -> NDArray[Any]:
        """Return what there is of a window, see `Renderer.read`."""
        return self.renderer.read(self.number, window)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        height, width = self.shape[:2]
        return np.asarray(self.live.read(self.number, Window(0, height, 0, width)), dtype=dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> RenderedLevel:
        key = id(self.renderer)
        if key not in memo:
            memo[key] = Renderer(self.live)
        return RenderedLevel(memo[key], self.number)
