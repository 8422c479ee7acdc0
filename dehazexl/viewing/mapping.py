"""Maps of the haze of an image while it is viewed: computed where they are viewed, block by block.

They come from the tokens of the dehazed layer's levels, so that a map needs no more than decoding: first of the whole
overview, which is enlarged everywhere, then of the level on screen, from the center of the view outwards. One thread
does it, after the view itself is dehazed. Nothing here needs a viewer.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Generator, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache
from psygnal import Signal

from dehazexl.engine.decode import decode_with_haze
from dehazexl.engine.maps import MAPS, check_maps, map_of, maps_of
from dehazexl.image.grid import Window
from dehazexl.image.windowed_array import WindowedArray, check_there
from dehazexl.viewing.errors import expected
from dehazexl.viewing.turns import PAUSE, is_turn
from dehazexl.viewing.worker import Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.viewing.level import LevelRun
    from dehazexl.viewing.session import DehazeSession

BLOCK = 256
"""Pixels: side of a block of a level."""

CACHE = 128 * 2**20
"""Bytes of blocks in the cache: 32 megapixels."""

Cell = tuple[int, int, int]
"""Level, row and column of a block."""


class MapSession:
    """Maps of the haze of an image that is being dehazed, computed where they are viewed.

    Its thread ends when the session is closed or garbage collected.

    Parameters
    ----------
    session
        The image that is being dehazed. Its network is loaded if it has not been yet.
    names
        Names of maps, see `engine.maps`; None for those that the network gives.

    Attributes
    ----------
    names : tuple of str
        Names of the maps.
    error : Exception or None
        The error that ended the work. The levels still return what there is.
    updated : psygnal.Signal()
        Emitted when a block is there, or the strength has changed.
    progressed : psygnal.Signal()
        Emitted when `status` may have changed.
    failed : psygnal.Signal(Exception)
        Emitted with the error that ends the work.

    Signals are emitted in the thread that computes. They hold bound methods weakly.

    Raises
    ------
    ValueError
        See `engine.maps.check_maps`.
    """

    updated = Signal()
    progressed = Signal()
    failed = Signal(Exception)

    def __init__(self, session: DehazeSession, names: Iterable[str] | None = None) -> None:
        model = session.model or session.load()
        self.names = check_maps(maps_of(model) or MAPS if names is None else names, model)
        self.session, self.image = session, session.image
        self.error: Exception | None = None
        self.coarse = session.coarse
        self._overview = np.full(self._shape(self.coarse), np.nan, np.float32)
        self._pending = _blocks(self.coarse, _whole(self._overview.shape))
        self._blocks: LRUCache[Cell, NDArray[np.float32]] = LRUCache(CACHE, attrgetter("nbytes"))
        self._airlight: dict[int, NDArray[np.float32]] = {}
        self._view: tuple[int, Window] | None = None
        self._changed = threading.Condition()
        self._idle = self._waits = False
        session.updated.connect(self._renewed)
        session.progressed.connect(self._wake)
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> MapSession:
        return self  # viewers copy a layer's metadata to duplicate it; both layers show the same work

    def levels(self, name: str) -> tuple[MapLevel, ...]:
        """Return the levels of a map, finest first."""
        return tuple(MapLevel(self, name, number) for number in range(len(self.image.levels)))

    @property
    def running(self) -> bool:
        """Whether the thread is alive, at work or waiting for a view."""
        return self._worker.running

    @property
    def status(self) -> str:
        """The state of the work, in a few words."""
        if self.error is not None:
            return "failed"
        if not self.running:
            return "stopped"
        with self._changed:
            left = len(self._missing())
        if left and self._waits and not self.session.running:
            return "waiting for the dehazed layer, which is stopped"
        return f"mapping, {left} blocks of the view left" if left else "all in view is mapped"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the view is mapped or the work has ended; return whether it is mapped."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle or self._stuck, timeout)
            return self._idle and self.error is None

    def close(self, timeout: float | None = 0) -> None:
        """Stop within a block; wait for that at most `timeout` seconds, without limit if None."""
        self._worker.close()
        self._tell()
        self._worker.join(timeout)

    def restart(self) -> None:
        """Continue after `close` or an error. Blocks are kept."""
        if not self.running:
            self._worker.join()
            self.error = None
            self._start()

    def read(self, name: str, level: int, window: Window) -> NDArray[np.float32]:
        """Return a window of a map as far as it is known by now, at once; what is missing is computed next.

        Returns
        -------
        ndarray
            ``transmission`` and ``removed``: ``(y, x)``, the means over the bands, NaN where nothing is known yet or
            there is no data. ``airlight``: ``(y, x, 4)``, its color from 0 to 1, and alpha.
        """
        if level <= self.coarse:  # thumbnails are made of coarser levels: those are no views
            self._look_at(level, window)
        transmission = self._known(level, window)
        if name == "removed":
            return np.asarray(100 * self._strength(level, window) * (1 - transmission), np.float32)
        return self._colored(level, transmission) if name == "airlight" else transmission

    def _colored(self, level: int, transmission: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the airlight where there is a transmission."""
        known = np.isfinite(transmission)
        airlight = self._airlight.get(level, self._airlight.get(self.coarse, np.zeros(3, np.float32)))
        return np.concatenate([known[..., None] * airlight.clip(0, 1), known[..., None]], axis=-1, dtype=np.float32)

    def _strength(self, level: int, window: Window) -> float | NDArray[np.float32]:
        """Return the fraction of the haze that is removed in a window, or that of each pixel ``(y, x)``."""
        local, strength = self.session.local, self.session.strength
        return strength if local is None else strength * local.of(window, self._shape(level))[..., 0]

    def _known(self, level: int, window: Window) -> NDArray[np.float32]:
        """Return the transmission ``(y, x)`` of a window: of its blocks, and elsewhere that of the overview."""
        shape = self._shape(level)
        rows, cols = (
            (np.arange(start, stop) + 0.5) * own / size
            for start, stop, own, size in zip(
                (window.y0, window.x0), (window.y1, window.x1), self._overview.shape, shape, strict=True
            )
        )
        values = self._overview[rows.astype(int)[:, None], cols.astype(int)]
        with self._changed:
            there = {cell: self._blocks.get(cell) for cell in _blocks(level, window)} if level < self.coarse else {}
        for cell, block in there.items():
            if block is not None:
                place = _place(cell, shape)
                shared = place.intersection(window)
                values[shared.to_slices(window)] = block[shared.to_slices(place)]
        return values

    def _look_at(self, level: int, window: Window) -> None:
        """Set the window of a level that is on screen; its blocks are computed first."""
        view = (level, window) if level < self.coarse else None
        with self._changed:
            if view != self._view:
                self._view, self._idle = view, False
        self.session.look_at(level, window)  # so that its tokens are fused
        self._wake()

    # Computing

    def _start(self) -> None:
        self._worker = Worker(_map(weakref.ref(self)), f"map {self.image.name}")
        weakref.finalize(self, self._worker.close).atexit = False  # at exit all workers are ended anyway
        self._worker.start()

    def _missing(self) -> list[Cell]:
        """List the blocks to be computed: the overview, then the view, from its center."""
        if self._pending or self._view is None:
            return self._pending
        level, window = self._view
        middle = (window.y0 + window.y1) / 2 / BLOCK - 0.5, (window.x0 + window.x1) / 2 / BLOCK - 0.5
        wanted = sorted(_blocks(level, window), key=lambda cell: math.dist(cell[1:], middle))
        return [cell for cell in wanted[: CACHE // (BLOCK**2 * 4)] if cell not in self._blocks]

    def _do_next(self) -> bool:
        """Compute the next block; return whether there may be more to do at once."""
        with self._changed:
            missing = self._missing()
            self._idle = not missing
        run = self.session.fused(missing[0][0]) if missing else None
        # The view itself goes first.
        self._waits = bool(missing) and (run is None or self.session.hurried)
        if run is None or self._waits:
            if missing and not self.session.hurried and self._view is not None:
                self.session.look_at(*self._view)  # it has looked elsewhere since
            return False  # until something is viewed, or the layer has got further
        if not is_turn():
            time.sleep(PAUSE)
            return True
        try:
            self._compute(missing[0], run)
        except Exception as error:
            expected(error, f"mapping {self.image.name}")
            self.error = error
            self._worker.close()
            self.failed.emit(error)
        return True

    def _compute(self, cell: Cell, run: LevelRun) -> None:
        """Compute a block, and keep it."""
        place = _place(cell, self._shape(cell[0]))
        check_there(self.image.path)
        _, haze = decode_with_haze(run.job, run.store, place)
        check_there(self.image.path)  # what is gone may have been read as anything
        block = map_of("transmission", run.job, haze).mean(-1)
        valid = np.isfinite(block)
        with self._changed:
            if "airlight" in self.names and valid.any():
                self._airlight.setdefault(cell[0], haze[valid][0, 3:])
            if cell[0] == self.coarse:
                self._overview[place.y0 : place.y1, place.x0 : place.x1] = block
                self._pending = self._pending[1:]
            else:
                self._blocks[cell] = block
        self.updated.emit()

    @property
    def _stuck(self) -> bool:
        """Whether nothing will change by itself."""
        return not self.running or (self._waits and not self.session.running)

    def _shape(self, level: int) -> tuple[int, int]:
        height, width = self.image.levels[level].shape[:2]
        return height, width

    def _renewed(self, everywhere: bool) -> None:
        """Show another strength; called when the dehazed layer has changed."""
        if everywhere:
            self.updated.emit()

    def _wake(self) -> None:
        self._worker.wake()

    def _tell(self) -> None:
        """Wake the threads in `wait`, and emit the progress."""
        with self._changed:
            self._changed.notify_all()
        self.progressed.emit()


def _map(ref: weakref.ref[MapSession]) -> Generator[bool, None, None]:
    """Take the steps of a session. It is referenced only during a step, so that it can be garbage collected."""
    while (session := ref()) is not None:
        busy = session._do_next()
        session._tell()
        del session
        yield busy


class MapLevel(WindowedArray):
    """A level of a map, ``(y, x)``, or ``(y, x, 4)`` of the airlight; float32. Indexing returns at once."""

    def __init__(self, session: MapSession, name: str, number: int) -> None:
        self.session, self.name, self.number = session, name, number
        self.shape = (*session._shape(number), *((4,) if name == "airlight" else ()))
        self.dtype = np.dtype(np.float32)

    def read(self, window: Window) -> NDArray[np.float32]:
        """Return a window, see `MapSession.read`."""
        return self.session.read(self.name, self.number, window)


def _whole(shape: tuple[int, ...]) -> Window:
    return Window(0, shape[0], 0, shape[1])


def _blocks(level: int, window: Window) -> list[Cell]:
    """List the blocks of a window of a level."""
    rows = range(window.y0 // BLOCK, -(-window.y1 // BLOCK))
    return [(level, row, col) for row in rows for col in range(window.x0 // BLOCK, -(-window.x1 // BLOCK))]


def _place(cell: Cell, shape: tuple[int, ...]) -> Window:
    """Return the window of a block in its level."""
    _, row, col = cell
    return Window(row * BLOCK, row * BLOCK + BLOCK, col * BLOCK, col * BLOCK + BLOCK).intersection(_whole(shape))
