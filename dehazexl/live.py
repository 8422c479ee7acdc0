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
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.cut import Cut, check_there
from dehazexl.grid import TileGrid, Window
from dehazexl.image import Image, valid_mask, value_range
from dehazexl.pixels import Pixels
from dehazexl.worker import Worker
from dehazexl.works import LevelWork

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.model import DehazeXL

CACHE = 512 * 2**20
"""Bytes of dehazed tiles that are kept."""

OVERVIEW = 1024
"""Pixels: the longest side of the level that is dehazed first."""


class Live:
    """A picture that is dehazed while it is looked at.

    Its thread ends when it is closed, and when nobody holds the picture any more.

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
    limits : tuple of float
        The values of the picture that are black and white.
    version : int
        Rises when pixels that were handed out could be better now.
    error : Exception or None
        What ended the work. The levels go on to answer with what there is.
    lost : bool
        Whether the picture could not be read.
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
        self.limits = _checked(value_range(image) if limits is None else limits)
        self.version, self.lost = 0, False
        self.error: Exception | None = None
        self.notes: list[str] = []
        self._pixels = [Pixels(level) for level in image.levels]
        self._grids = [TileGrid(level.shape[0], level.shape[1], overlap) for level in image.levels]
        fits = [max(level.shape[:2]) <= OVERVIEW for level in image.levels]
        self._first = fits.index(True) if any(fits) else len(fits) - 1
        self._model: DehazeXL | None = None
        self._works: dict[int, LevelWork] = {}
        self._tiles: OrderedDict[tuple[int, int, int], NDArray[np.float16]] = OrderedDict()
        self._overview: NDArray[np.float32] | None = None  # gain and offset of each colour, (2, 3, y, x)
        self._view: tuple[int, Window] | None = None
        self._changed = threading.Condition()
        self._idle = False
        self.strength = strength
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> Live:
        return self  # viewers copy a layer's metadata to duplicate it; both show the same work

    @property
    def levels(self) -> tuple[Level, ...]:
        """The dehazed levels, finest first."""
        # Made anew each time: a circle of references would keep the thread until Python looks for such.
        return tuple(Level(self, number) for number in range(len(self.image.levels)))

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
        return self._worker.running

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
        if (work := self._preparing) is not None:
            return f"{work.stage} {done} of {total} tiles"
        return f"{done} of {total} tiles in view" if done < total else "all in view is dehazed"

    @property
    def progress(self) -> tuple[int, int]:
        """Tiles in view that are dehazed, and how many there are; while their level is encoded or fused, of that."""
        if (work := self._preparing) is not None:
            return work.done, work.total
        view = self._view
        if view is None:
            return 0, 0
        cells = self._wanted(*view)
        return sum((view[0], *cell) in self._tiles for cell in cells), len(cells)

    @property
    def rate(self) -> float:
        """Tiles a second that are encoded and decoded, as far as is known; NaN before the first."""
        seconds: dict[str, float] = {}
        for work in [*self._works.values()]:
            seconds |= work.seconds
        return len(seconds) / (2 * sum(seconds.values())) if seconds else math.nan

    def look_at(self, level: int, window: Window) -> None:
        """Say which pixels of which level are on show, to be dehazed first; `Level` says so when it is cut."""
        # From the overview on all is there; smaller levels are cut for thumbnails, too, which say nothing of the view.
        view = (level, window) if level < self._first else None
        if level <= self._first and view != self._view:
            with self._changed:
                self._view, self._idle = view, False
            self._worker.wake()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all that is on show is as good as it gets, or the work has ended; tell whether it is."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle or not self.running, timeout)
            return self._idle and self.error is None

    def close(self, timeout: float | None = 0) -> None:
        """End the work within a batch of tiles; wait for that at most `timeout` seconds (None: until it has ended)."""
        self._worker.close()
        self._tell()
        self._worker.join(timeout)

    def restart(self) -> None:
        """Go on after `close` or an error; what is dehazed already stays."""
        if not self.running:
            self.error, self.lost, self._idle = None, False, False
            self._start(self._worker)

    def forget(self) -> None:
        """Drop all that has been computed; what is asked for later is computed again, if the work goes on."""
        with self._changed:
            self._overview, self._model, self._idle = None, None, False
            self._works, self._tiles = {}, OrderedDict()
        self._better()

    # What is shown

    def read(self, level: int, window: Window) -> NDArray[Any]:
        """Return the best there is of a window of a level, at once.

        Returns
        -------
        ndarray
            ``(y, x, 3)``, or 4 with the picture's alpha: the values of pictures of uint8, else float32 in [0, 1] of
            the limits. Pixels without data stay as they are (0 where that is no number). If the picture cannot be
            read: zeros, and `error` says why.
        """
        try:
            check_there(self.image.path)
            raw = self._pixels[level].read(window)
        except Exception as error:
            self.lost = True
            self._fail(_bare(error))
            return np.zeros((window.height, window.width, 3 if self.image.alpha is None else 4), self.dtype)
        low, high = self.limits
        # In place where it can be: a viewer waits for this.
        hazy = raw[..., list(self.image.rgb)].astype(np.float32)
        hazy -= np.float32(low)
        hazy /= np.float32(high - low)
        if raw.dtype.kind == "f":
            np.nan_to_num(hazy, copy=False)
        change = self._clear(level, window, hazy) - hazy
        change *= np.float32(self._strength)
        valid = valid_mask(raw, self.image)
        if not valid.all():
            change[~valid] = 0
        shown = np.add(hazy, change, out=hazy)
        if self.dtype == np.uint8:
            shown *= np.float32(high - low)
            shown += np.float32(low)
            shown = np.rint(np.clip(shown, 0, 255, out=shown), out=shown).astype(np.uint8)
        else:
            np.clip(shown, 0, 1, out=shown)
        return with_alpha(shown, raw, self.image)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is shown: uint8 if the picture is, else float32."""
        return shown_dtype(self.image)

    def _clear(self, level: int, window: Window, hazy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the dehazed pixels of a window: its tiles, where there are any; else what the overview says."""
        grid = self._grids[level]
        cells = [*grid.tiles_at(window).cells()] if level < self._first else []
        there = {cell: answer for cell in cells if (answer := self._tile(level, *cell)) is not None}
        if not there:
            return self._guess(level, window, hazy)
        total = np.zeros(hazy.shape, np.float32)
        share = np.zeros((*hazy.shape[:2], 1), np.float32)
        for (row, col), answer in there.items():
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
            np.multiply(gain, hazy[..., colour], out=clear[..., colour])
            clear[..., colour] += offset
        return clear

    def _tile(self, level: int, row: int, col: int) -> NDArray[np.float16] | None:
        with self._changed:
            answer = self._tiles.get((level, row, col))
            if answer is not None:
                self._tiles.move_to_end((level, row, col))
            return answer

    # What is computed

    def _start(self, before: Worker | None = None) -> None:
        self._worker = Worker(_dehaze(weakref.ref(self), before), f"dehaze {self.image.name}")
        weakref.finalize(self, self._worker.close).atexit = False  # then all workers are ended anyway
        self._worker.start()

    def _do_next(self) -> bool:
        """Do a batch of what is wanted most; tell whether there was anything to do."""
        task = self._next()
        if task is None:
            return False
        try:
            self._advance(*task)
        except Exception as error:
            self._recover(error)
        return True

    def _next(self) -> tuple[int, Window] | None:
        """Return what to work at: the overview, then the view; None if both are done."""
        with self._changed:
            if self._overview is None:
                height, width = self.image.levels[self._first].shape[:2]
                return self._first, Window(0, height, 0, width)
            view = self._view
            if view is not None and any((view[0], *cell) not in self._tiles for cell in self._wanted(*view)):
                return view
            self._idle = True
            self._changed.notify_all()
        return None

    def _wanted(self, level: int, window: Window) -> list[tuple[int, int]]:
        """List the tiles of a window, nearest its middle first, as many as can be kept."""
        grid = self._grids[level]
        tiles = grid.tiles_at(window)
        middle = [(window.y0 + window.y1) / 2 / grid.stride - 0.5, (window.x0 + window.x1) / 2 / grid.stride - 0.5]
        cells = sorted(tiles.cells(), key=lambda cell: math.dist(cell, middle))
        return cells[: max(1, self.cache // _TILE_BYTES)]

    @property
    def _preparing(self) -> LevelWork | None:
        """The level that is wanted most, while it is encoded or fused."""
        view = self._view
        work = self._works.get(self._first if self._overview is None or view is None else view[0])
        return None if work is None or work.ready else work

    def _advance(self, level: int, window: Window) -> None:
        """Do the next batch of what a window of a level needs."""
        if self._model is None:
            self._model = self.load()
        if level not in self._works:
            self._works[level] = self._begin(level, self._model)
        work = self._works[level]
        if not work.ready:
            work.advance()
        elif self._overview is None:
            self._overview = work.changes(lambda: not self.running)
            self._better()
        else:
            missing = [cell for cell in self._wanted(level, window) if (level, *cell) not in self._tiles]
            self._keep({(level, *cell): tile for cell, tile in work.decode(missing).items()})
        # What was read of a file that has gone meanwhile may be anything.
        check_there(self.image.path)

    def _begin(self, level: int, model: DehazeXL) -> LevelWork:
        batch = min((work.job.batch for work in self._works.values()), default=None)
        return LevelWork.begin(self.image, level, model, self.overlap, self.limits, batch)

    def _keep(self, tiles: dict[tuple[int, int, int], NDArray[np.float16]]) -> None:
        """Keep dehazed tiles; forget those that were not looked at for longest."""
        with self._changed:
            if self.running:  # else they may have been forgotten for good
                self._tiles.update(tiles)
            while len(self._tiles) > max(1, self.cache // _TILE_BYTES):
                self._tiles.popitem(last=False)
        self._better()

    def _better(self) -> None:
        with self._changed:
            self.version += 1

    def _recover(self, error: Exception) -> None:
        """Halve the batch after the device ran out of memory; end the work after any other error."""
        batch = min((work.job.batch for work in self._works.values()), default=1) // 2
        if not short_of_memory(error) or not batch:
            self.lost = self.lost or (self._model is not None and isinstance(error, (OSError, ValueError)))
            self._fail(error)
            return
        for work in self._works.values():
            work.with_batch(batch)
        self.notes.append(f"memory was short: {batch} tiles are computed at once from now on")

    def _fail(self, error: Exception) -> None:
        self.error = self.error or error
        self._worker.close()
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()


_TILE_BYTES = 256 * 256 * 3 * 2
"""Of a dehazed tile in half precision."""


def _dehaze(ref: weakref.ref[Live], before: Worker | None) -> Generator[bool, None, None]:
    """Do a picture's work; it is held only while a batch is computed, so that it can be dropped."""
    if before is not None:
        before.join()
    try:
        while (live := ref()) is not None:
            busy = live._do_next()
            del live
            yield busy
    finally:
        if (live := ref()) is not None:
            for work in live._works.values():
                work.interrupt()
            live._tell()


class Level(Cut):
    """A level of a `Live` picture, ``(y, x, 3)`` or 4: cut, it answers at once and never raises, see `Live.read`."""

    def __init__(self, live: Live, number: int) -> None:
        self.live, self.number = live, number
        height, width, _ = live.image.levels[number].shape
        self.shape, self.dtype = (height, width, 3 if live.image.alpha is None else 4), live.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Return the best there is of a window; its tiles are dehazed next."""
        self.live.look_at(self.number, window)
        return self.live.read(self.number, window)


def shown_dtype(image: Image) -> np.dtype[Any]:
    """Return the dtype in which a picture is shown: uint8 if it is of that, else float32."""
    own = image.levels[0].dtype
    return own if own == np.uint8 else np.dtype(np.float32)


def with_alpha(shown: NDArray[Any], raw: NDArray[Any], image: Image) -> NDArray[Any]:
    """Append the alpha of a picture's pixels ``(y, x, c)``, if it has any, to the colours as they are shown."""
    if image.alpha is None:
        return shown
    alpha = raw[..., image.alpha, None]
    if shown.dtype != np.uint8:
        opaque = np.iinfo(raw.dtype).max if raw.dtype.kind == "u" else 1
        alpha = np.clip(np.nan_to_num(alpha.astype(np.float32)) / opaque, 0, 1)
    return np.concatenate([shown, alpha], axis=-1)


def _checked(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value range must be two rising numbers (black, white), not {limits}")
    return float(low), float(high)


def _bare(error: Exception) -> Exception:
    """Return an error without the frames that it came through: to keep them would keep the window that was painting."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _stretched(plane: NDArray[np.float32], window: Window, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Interpolate a window of a level of `shape` out of an overview ``(y, x)`` of the whole, linearly."""
    from PIL import Image as Pillow

    fy, fx = plane.shape[0] / shape[0], plane.shape[1] / shape[1]
    box = (window.x0 * fx, window.y0 * fy, window.x1 * fx, window.y1 * fy)
    size = window.width, window.height
    return np.asarray(Pillow.fromarray(plane).resize(size, Pillow.Resampling.BILINEAR, box))


def short_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory ran out, as torch and Python say so."""
    return isinstance(error, MemoryError) or "out of memory" in str(error).lower()
