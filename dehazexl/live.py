"""A dehazed picture to look at: it answers at once with the best there is, and gets better where it is looked at.

Three answers, each better than the one before:

1. the hazy pixels;
2. the change that the network made to an overview, as gain and offset, enlarged and applied to the pixels: as sharp as
   they are, after some seconds for a picture of any size;
3. the network's own answer at the level on show, tile by tile, those nearest the middle of the view first.

One thread owns the network. Nothing here needs a viewer: `Level` is what any viewer of lazy arrays can cut.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.cut import Cut
from dehazexl.grid import TileGrid, Window
from dehazexl.image import Image, valid_mask, value_range
from dehazexl.pixels import Pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.model import DehazeXL
    from dehazexl.passes import Job
    from dehazexl.tokens import TokenStore

CACHE = 512 * 2**20
"""Bytes of dehazed tiles that are kept."""

OVERVIEW = 1024
"""Pixels: the longest side of the level that is dehazed first."""

MAPS = 128 * 2**20
"""Bytes of feature maps kept for a level."""


@dataclass(eq=False)
class _Work:
    """How far a level is: its tiles are encoded and fused (`steps`), then decoded."""

    job: Job
    store: TokenStore
    steps: Iterator[int]
    ready: bool = False


class Live:
    """A picture that is dehazed while it is looked at.

    Parameters
    ----------
    image
        The picture. Its levels, finest first, are what can be looked at; the coarser ones are dehazed themselves, so
        a large picture needs them.
    load
        Returns the network; called in the thread that computes, so that nobody waits for it.
    overlap, strength, limits
        As in `pipeline.dehaze`; limits are the values of black and white, None takes those of `image.value_range`.
    cache
        Bytes of dehazed tiles to keep.

    Attributes
    ----------
    levels : tuple of Level
        The dehazed levels, finest first.
    limits : tuple of float
        The values of the picture that are black and white.
    version : int
        Rises when pixels that were handed out could be better now.
    error : Exception or None
        What ended the work. The levels go on to answer with what there is.
    notes : list of str
        What the user should know, e.g. that memory was short.

    Raises
    ------
    ValueError
        If overlap or strength is out of range, or the limits do not rise.
    """

    def __init__(
        self,
        image: Image,
        load: Callable[[], DehazeXL],
        *,
        overlap: int = 32,
        strength: float = 1.0,
        limits: tuple[float, float] | None = None,
        cache: int = CACHE,
    ) -> None:
        self.image, self.load, self.overlap, self.cache = image, load, overlap, cache
        self.limits = value_range(image) if limits is None else limits
        if not self.limits[0] < self.limits[1]:
            raise ValueError(f"value range must be two rising numbers (black, white), not {self.limits}")
        self.levels = tuple(Level(self, number) for number in range(len(image.levels)))
        self.version, self.error, self.notes = 0, None, []  # type: int, Exception | None, list[str]
        self.rate = math.nan
        self._pixels = [Pixels(level) for level in image.levels]
        self._grids = [TileGrid(level.shape[0], level.shape[1], overlap) for level in image.levels]
        fits = [max(level.shape[:2]) <= OVERVIEW for level in image.levels]
        self._first = fits.index(True) if any(fits) else len(fits) - 1
        self._tiles: OrderedDict[tuple[int, int, int], NDArray[np.float16]] = OrderedDict()
        self._overview: NDArray[np.float32] | None = None  # gain and offset of each colour, (2, 3, y, x)
        self._view: tuple[int, Window] | None = None
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._idle = False
        self.strength = strength
        self._thread = threading.Thread(target=self._run, name=f"dehaze {image.name}", daemon=True)
        self._thread.start()
        # A thread that computes while Python shuts down would crash it.
        self._at_exit = weakref.finalize(self, _stop, self._closed, self._changed, self._thread)

    @property
    def strength(self) -> float:
        """From 0 (the hazy pixels) to 1; changed without running the network again."""
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be between 0 and 1, not {strength}")
        self._strength = strength
        self._better()

    @property
    def running(self) -> bool:
        """Whether the thread is there, at work or waiting to be looked at."""
        return self._thread.is_alive() and not self._closed.is_set()

    @property
    def status(self) -> str:
        """What is being done, in a few words."""
        if self.error is not None:
            return "failed"
        if not self.running:
            return "stopped"
        if self._overview is None:
            return "looking at the whole picture"
        done, total = self.progress
        return f"{done} of {total} tiles in view" if done < total else "all in view is dehazed"

    @property
    def progress(self) -> tuple[int, int]:
        """Tiles in view that are dehazed, and how many there are."""
        view = self._view
        if view is None:
            return 0, 0
        cells = self._wanted(*view)
        return sum((view[0], *cell) in self._tiles for cell in cells), len(cells)

    def look_at(self, level: int, window: Window) -> None:
        """Say which pixels of which level are on show, to be dehazed first; `Level` says so when it is cut."""
        # From the overview on all is there; smaller levels are cut for thumbnails, too, which say nothing of the view.
        view = (level, window) if level < self._first else None
        if level <= self._first and view != self._view:
            with self._changed:
                self._view, self._idle = view, False
                self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all that is on show is as good as it gets, or the work has ended; tell whether it is."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle or not self.running, timeout)
            return self._idle and self.error is None

    def close(self, timeout: float | None = 0) -> None:
        """End the work within a batch of tiles; wait for that at most `timeout` seconds (None: until it has ended)."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    # What is shown

    def read(self, level: int, window: Window) -> NDArray[Any]:
        """Return the best there is of a window of a level, at once.

        Returns
        -------
        ndarray
            ``(y, x, 3)``: the values of pictures of uint8, else float32 in [0, 1] of the limits. Pixels without data
            stay as they are (0 where that is no number). If the picture cannot be read: zeros, and `error` says why.
        """
        try:
            raw = self._pixels[level].read(window)
        except Exception as error:
            self._fail(error)
            return np.zeros((window.height, window.width, 3), self.dtype)
        low, high = self.limits
        own = raw[..., list(self.image.rgb)].astype(np.float32)
        hazy = np.nan_to_num((own - np.float32(low)) / np.float32(high - low))
        change = self._strength * (self._clear(level, window, hazy) - hazy)
        change[~valid_mask(raw, self.image)] = 0
        if self.dtype == np.uint8:
            return np.rint(np.clip(own + change * np.float32(high - low), 0, 255)).astype(np.uint8)
        return np.clip(hazy + change, 0, 1).astype(np.float32)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is shown: uint8 if the picture is, else float32."""
        own = self.image.levels[0].dtype
        return own if own == np.uint8 else np.dtype(np.float32)

    def _clear(self, level: int, window: Window, hazy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the dehazed pixels of a window: its tiles, where there are any; else what the overview says."""
        total = np.zeros(hazy.shape, np.float32)
        share = np.zeros((*hazy.shape[:2], 1), np.float32)
        grid = self._grids[level]
        for row, col in grid.tiles_at(window).cells() if level < self._first else ():
            if (answer := self._tile(level, row, col)) is None:
                continue
            tile = grid.pixels_of(Window(row, row + 1, col, col + 1))
            part = tile.meet(window)
            weight = grid.share(row, col)[part.within(tile)][..., None]
            total[part.within(window)] += weight * answer[part.within(tile)]
            share[part.within(window)] += weight
        if share.size and share.min() > 0.999:
            return total
        return np.asarray(total + (1 - share) * self._guess(level, window, hazy), np.float32)

    def _guess(self, level: int, window: Window, hazy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the overview's change to a window of another level."""
        if self._overview is None:
            return hazy
        clear = np.empty_like(hazy)
        for colour in range(3):
            gain, offset = (_stretched(side[colour], window, self.image.levels[level].shape) for side in self._overview)
            clear[..., colour] = gain * hazy[..., colour] + offset
        return clear

    def _tile(self, level: int, row: int, col: int) -> NDArray[np.float16] | None:
        with self._changed:
            answer = self._tiles.get((level, row, col))
            if answer is not None:
                self._tiles.move_to_end((level, row, col))
            return answer

    # What is computed

    def _run(self) -> None:
        try:
            model = self.load()
            works: dict[int, _Work] = {}
            while (task := self._next(works)) is not None:
                level, window = task
                if level not in works:
                    works[level] = self._begin(level, model, works)
                try:
                    self._advance(works[level], level, window)
                except Exception as error:
                    if not _short_of_memory(error) or works[level].job.batch == 1:
                        raise
                    self._with_less_memory(works)
        except Exception as error:
            self._fail(error)
        finally:
            with self._changed:
                self._changed.notify_all()

    def _next(self, works: dict[int, _Work]) -> tuple[int, Window] | None:
        """Return what to work at: the overview, then the view; wait if both are done. None: the end."""
        with self._changed:
            while not self._closed.is_set():
                if self._overview is None:
                    height, width = self.image.levels[self._first].shape[:2]
                    return self._first, Window(0, height, 0, width)
                view = self._view
                if view is not None and any((view[0], *cell) not in self._tiles for cell in self._wanted(*view)):
                    return view
                self._idle = True
                self._changed.notify_all()
                self._changed.wait()
        return None

    def _wanted(self, level: int, window: Window) -> list[tuple[int, int]]:
        """List the tiles of a window, nearest its middle first, as many as can be kept."""
        grid = self._grids[level]
        tiles = grid.tiles_at(window)
        middle = [(window.y0 + window.y1) / 2 / grid.stride - 0.5, (window.x0 + window.x1) / 2 / grid.stride - 0.5]
        cells = sorted(tiles.cells(), key=lambda cell: math.dist(cell, middle))
        return cells[: max(1, self.cache // _TILE_BYTES)]

    def _begin(self, level: int, model: DehazeXL, works: dict[int, _Work]) -> _Work:
        from dehazexl.passes import encode, fuse
        from dehazexl.pipeline import open_tokens, prepare

        alone = replace(self.image, levels=(self.image.levels[level],))
        batch = min((work.job.batch for work in works.values()), default=None)
        job = prepare(alone, model, self.overlap, value_range=self.limits, batch=batch or "auto")
        job = replace(job, keep=MAPS)
        store = open_tokens(job)
        return _Work(job, store, chain(encode(job, store), fuse(job, store)))

    def _advance(self, work: _Work, level: int, window: Window) -> None:
        """Do the next batch of what a window of a level needs."""
        from dehazexl.passes import Tiles, changes

        if not work.ready:
            work.ready = next(work.steps, None) is None
        elif self._overview is None:
            self._look_over(work)
        else:
            wanted = self._wanted(level, window)
            missing = [cell for cell in wanted if (level, *cell) not in self._tiles]
            side = max(1, math.isqrt(work.job.batch))
            row, col = (n // side * side for n in missing[0])
            tiles = Window(row, row + side, col, col + side).meet(work.job.grid.tiles)
            read = Tiles.read(work.job, tiles)
            started, done = time.perf_counter(), {}
            for cell, gain, offset in changes(work.job, work.store, read, tiles):
                inside = work.job.grid.pixels_of(Window(cell[0], cell[0] + 1, cell[1], cell[1] + 1)).within(read.window)
                done[level, *cell] = np.clip(gain * read.rgb[inside] + offset, -_FAR, _FAR).astype(np.float16)
            self.rate = len(done) / (time.perf_counter() - started)
            self._keep({key: tile for key, tile in done.items() if key[1:] in wanted})

    def _look_over(self, work: _Work) -> None:
        """Dehaze the whole overview, and remember gain and offset of each pixel."""
        from dehazexl.passes import Tiles, changes

        grid = work.job.grid
        whole = Window(0, grid.height, 0, grid.width)
        overview = np.zeros((2, 3, grid.height, grid.width), np.float32)
        for row in range(grid.rows):
            tiles = Window(row, row + 1, 0, grid.cols)
            for cell, gain, offset in changes(work.job, work.store, Tiles.read(work.job, tiles), tiles):
                tile = grid.pixels_of(Window(row, row + 1, cell[1], cell[1] + 1))
                inside = tile.meet(whole).within(tile)
                both = np.stack([gain[inside], offset[inside]]).transpose(0, 3, 1, 2)
                overview[(..., *tile.meet(whole).within(whole))] += grid.share(*cell)[inside] * both
            if self._closed.is_set():
                return
        self._overview = overview
        self._better()

    def _keep(self, tiles: dict[tuple[int, int, int], NDArray[np.float16]]) -> None:
        """Keep dehazed tiles; forget those that were not looked at for longest."""
        with self._changed:
            self._tiles.update(tiles)
            while len(self._tiles) > max(1, self.cache // _TILE_BYTES):
                self._tiles.popitem(last=False)
        self._better()

    def _better(self) -> None:
        self.version += 1

    def _fail(self, error: Exception) -> None:
        self.error = self.error or error
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def _with_less_memory(self, works: dict[int, _Work]) -> None:
        """Halve the batch after the device ran out of memory, and begin anew what was under way."""
        from dehazexl.passes import encode, fuse

        for work in works.values():
            work.job = replace(work.job, batch=max(1, work.job.batch // 2))
            if not work.ready:
                work.steps = chain(encode(work.job, work.store), fuse(work.job, work.store))
        batch = min(work.job.batch for work in works.values())
        self.notes.append(f"memory was short: {batch} tiles are computed at once from now on")


_FAR = 60000
"""What half precision still holds: pixels far outside the limits are that many times as bright."""

_TILE_BYTES = 256 * 256 * 3 * 2
"""Of a dehazed tile in half precision."""


class Level(Cut):
    """A level of a `Live` picture, ``(y, x, 3)``: cut, it answers at once and never raises, see `Live.read`."""

    def __init__(self, live: Live, number: int) -> None:
        self.live, self.number = live, number
        height, width, _ = live.image.levels[number].shape
        self.shape, self.dtype = (height, width, 3), live.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Return the best there is of a window; its tiles are dehazed next."""
        self.live.look_at(self.number, window)
        return self.live.read(self.number, window)


def _stretched(plane: NDArray[np.float32], window: Window, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Interpolate a window of a level of `shape` out of an overview ``(y, x)`` of the whole, linearly."""
    from PIL import Image as Pillow

    fy, fx = plane.shape[0] / shape[0], plane.shape[1] / shape[1]
    box = (window.x0 * fx, window.y0 * fy, window.x1 * fx, window.y1 * fy)
    size = window.width, window.height
    return np.asarray(Pillow.fromarray(plane).resize(size, Pillow.Resampling.BILINEAR, box))


def _short_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory ran out, as torch and Python say so."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()


def _stop(closed: threading.Event, changed: threading.Condition, thread: threading.Thread) -> None:
    """End a thread and wait for it, a little."""
    closed.set()
    with changed:
        changed.notify_all()
    if thread is not threading.current_thread():
        thread.join(10)
