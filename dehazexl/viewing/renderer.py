"""Levels for a viewer that must not wait for a file: they are rendered in a thread and returned from memory."""

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
"""Pixels: longest side of the level that is read at once when a renderer is created."""


@dataclass(frozen=True)
class Frame:
    """A rendered window of a level.

    Attributes
    ----------
    level, window
        The level and the window.
    version
        Version of the session when it was rendered.
    pixels
        ``(y, x, 3)`` or 4, as `DehazeSession.read` returns them.
    """

    level: int
    window: Window
    version: int
    pixels: NDArray[Any]


class Renderer:
    """Renders the levels of a session in a thread of its own, so that nobody waits for a file.

    Pixels of a level come from the frame that was rendered last, and outside of it from a small image of the whole,
    enlarged. A thread then reads and renders the requested window, reads ahead around it, and ends.

    Parameters
    ----------
    session
        The session. A tiny level of it is read at once. When it is updated, the last window is rendered again.

    Attributes
    ----------
    painted : psygnal.Signal(bool)
        Emitted when a frame was rendered: True for the small image of the whole, False for a window. Emitted in the
        thread that renders.
    """

    painted = Signal(bool)

    def __init__(self, session: DehazeSession) -> None:
        self.session = session
        sides = [max(level.shape[:2]) for level in session.image.levels]
        tiny = next((number for number, side in enumerate(sides) if side <= TINY), len(sides) - 1)
        self._whole = replace(self._painted(*self._all_of(tiny)), version=-1)
        self._view: Frame | None = None
        self._wanted: tuple[int, Window] | None = None
        self._ahead: tuple[int, list[Window]] = 0, []
        self._worker: Worker | None = None
        self._lock = threading.Lock()
        session.updated.connect(self.paint)

    @property
    def levels(self) -> tuple[RenderedLevel, ...]:
        """The levels, finest first."""
        return tuple(RenderedLevel(self, number) for number in range(len(self.session.image.levels)))

    def read(self, level: int, window: Window) -> NDArray[Any]:
        """Return the best rendered pixels of a window, at once; better ones are rendered next."""
        self.session.look_at(level, window)
        if level <= self.session.coarse:  # thumbnails are made of coarser ones
            self._want((level, window) if level < self.session.coarse else None)
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
        """Start to render the last window, unless its frame is up to date."""
        with self._lock:
            if self._worker is None and self._due() is not None:
                self._worker = Worker(self._steps(), f"paint {self.session.image.name}")
                self._worker.start()

    @property
    def fresh(self) -> bool:
        """Whether all frames are up to date."""
        return self._unpainted() is None

    def _want(self, wanted: tuple[int, Window] | None) -> None:
        """Set the window that is viewed."""
        if wanted != self._wanted:
            self._wanted = wanted
            self._ahead = (0, []) if wanted is None else (wanted[0], self.session.around(*wanted))

    def _steps(self) -> Generator[bool, None, None]:
        while (step := self._next()) is not None:
            step()
            yield True

    def _next(self) -> Callable[[], None] | None:
        """Return the next step, or end the work: under the lock of `paint`, whose request would be lost otherwise."""
        with self._lock:
            step = self._due()
            if step is None:
                self._worker = None
            return step

    def _due(self) -> Callable[[], None] | None:
        """Return the next step: render a frame that is out of date, then read ahead around the view."""
        unpainted, (level, chunks) = self._unpainted(), self._ahead
        if unpainted is not None:
            return partial(self._paint, *unpainted)
        if chunks and self.session.running and not self.session.lost:
            return partial(self._read_ahead, level, chunks)
        return None

    def _unpainted(self) -> tuple[int, Window] | None:
        """Return the next window to render: the view, then the whole; None if both are up to date."""
        view, wanted = self._view, self._wanted
        if self.session.lost:
            return None
        fresh = view is not None and (view.level, view.window) == wanted and view.version == self.session.version
        if wanted is not None and not fresh:
            return wanted
        return self._all_of(self.session.coarse) if self._whole.version < self.session.renewed else None

    def _paint(self, level: int, window: Window) -> None:
        frame = self._painted(level, window)
        if self.session.lost:  # the frame before is better
            return
        is_view = level < self.session.coarse
        if is_view:
            self._view = frame
        else:
            self._whole = frame
        self.painted.emit(not is_view)

    def _read_ahead(self, level: int, chunks: list[Window]) -> None:
        """Read one chunk; the view may move meanwhile and is rendered first."""
        self.session.read_ahead(level, chunks.pop())

    def _painted(self, level: int, window: Window) -> Frame:
        version = self.session.version
        return Frame(level, window, version, self.session.read(level, window))

    def _all_of(self, level: int) -> tuple[int, Window]:
        height, width = self._shape_of(level)[:2]
        return level, Window(0, height, 0, width)

    def _shape_of(self, level: int) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.session.image.levels[level].shape
        return shape


class RenderedLevel(Level):
    """A level of a `Renderer`, ``(y, x, 3)`` or 4. Indexing returns at once and never raises.

    Converting it to an array reads the whole level. A copy has a renderer of its own, as it may show another window.
    """

    def __init__(self, renderer: Renderer, number: int) -> None:
        super().__init__(renderer.session, number)
        self.renderer = renderer

    def read(self, window: Window) -> NDArray[Any]:
        """Return a window, see `Renderer.read`."""
        return self.renderer.read(self.number, window)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        height, width = self.shape[:2]
        return np.asarray(self.session.read(self.number, Window(0, height, 0, width)), dtype=dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> RenderedLevel:
        key = id(self.renderer)
        if key not in memo:
            memo[key] = Renderer(self.session)
        return RenderedLevel(memo[key], self.number)
