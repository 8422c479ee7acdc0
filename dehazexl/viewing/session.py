"""A dehazed picture to look at: it answers at once with the best there is, and gets better where it is looked at.

Three answers, each better than the one before:

1. the hazy pixels;
2. the change that the network made to a small overview, then to a larger one, as gain and offset, enlarged and applied
   to the pixels: as sharp as they are, after one or two seconds for a picture of any size;
3. the network's own answer at the level on show, tile by tile, those nearest the middle of the view first.

One thread owns the network. Nothing here needs a viewer: `Level` is what any viewer of lazy arrays can cut, and
`renderer.RenderedLevel` is for those whose window must not wait for a file.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal

from dehazexl.engine.memory import short_of_memory
from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import Window, check_overlap
from dehazexl.image.image import Image, check_range, check_strength, value_range
from dehazexl.image.windowed_array import WindowedArray, check_there
from dehazexl.viewing.display import render, shown_dtype
from dehazexl.viewing.errors import expected
from dehazexl.viewing.level import LevelRun
from dehazexl.viewing.tile_cache import TileCache
from dehazexl.viewing.worker import Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.model import DehazeXL

CACHE = 512 * 2**20
"""Bytes of dehazed tiles that are kept."""

AROUND = 512
"""Pixels around the view that are read before it moves there."""

GLANCE, OVERVIEW = 512, 1024
"""Pixels: the longest sides of the levels that are dehazed first, whole: a small one, to have something soon."""


class DehazeSession:
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
        As in `engine.dehaze.dehaze`; limits are the values of black and white, None takes those of `image.value_range`.
    cache
        Bytes of dehazed tiles to keep.

    Attributes
    ----------
    limits : tuple of float
        The values of the picture that are black and white.
    coarse : int
        The level that is dehazed whole before all tiles: the finest of at most 1024 pixels.
    version, renewed : int
        How often pixels were improved, and how often they had been when all of them were last. A `renderer.Frame`
        keeps the version that it shows.
    error : Exception or None
        What ended the work. The levels go on to answer with what there is.
    lost : bool
        Whether the picture could not be read.
    updated : psygnal.Signal(bool)
        Pixels that were handed out could be better now: all of them if True, those of some tiles if False.
    progressed : psygnal.Signal()
        A batch was computed, or the work has stopped: `status`, `progress` and `rate` may be others.
    warned : psygnal.Signal(str)
        A note for the user, such as that memory was short.
    failed : psygnal.Signal(Exception)
        The work ended with this error.

    Signals are emitted in the thread that computes or reads; bound methods are held weakly, see psygnal.

    Raises
    ------
    ValueError
        If overlap, strength or cache is out of range, or the limits do not rise.
    """

    updated = Signal(bool)
    progressed = Signal()
    warned = Signal(str)
    failed = Signal(Exception)

    def __init__(
        self,
        image: Image,
        load: Callable[[], DehazeXL],
        *,
        overlap: int | None = None,
        strength: float = 1.0,
        limits: tuple[float, float] | None = None,
        cache: int = CACHE,
    ) -> None:
        if cache < 0:
            raise ValueError(f"cache is a number of bytes, 0 or more, not {cache}")
        self.image, self.load, self.overlap = image, load, check_overlap(overlap)
        self.limits = value_range(image) if limits is None else check_range(limits)
        self.version, self.renewed, self.lost = 0, 0, False
        self.error: Exception | None = None
        self._pixels = [ChunkCache.of(level) for level in image.levels]
        self.coarse = _finest(image, OVERVIEW)
        self._wholes = self._first_wholes()  # levels that are yet to be dehazed whole
        self._answers = TileCache([level.shape for level in image.levels], self.coarse, cache)
        self._model: DehazeXL | None = None
        self._works: dict[int, LevelRun] = {}
        self._view: tuple[int, Window] | None = None
        self._changed = threading.Condition()
        self._idle = False
        self._note = ""
        self.strength = strength
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> DehazeSession:
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
        self._strength = check_strength(strength)
        self._better(everywhere=True)

    @property
    def running(self) -> bool:
        """Whether the thread is there, at work or waiting to be looked at."""
        return self._worker.running

    @property
    def loaded(self) -> bool:
        """Whether the network is there."""
        return self._model is not None

    @property
    def status(self) -> str:
        """What is being done, in a few words."""
        if self.error is not None:
            return "failed"
        if not self.running:
            return "stopped"
        if self._wholes:
            return "looking at the whole picture"
        done, total = self.progress
        if (work := self._preparing) is not None:
            return f"{work.stage} {done} of {total} tiles"
        if not total:
            return "the overview is dehazed"
        return f"{done} of {total} tiles in view" if done < total else "all in view is dehazed"

    @property
    def progress(self) -> tuple[int, int]:
        """Tiles in view that are dehazed, and how many there are; while their level is encoded or fused, of that."""
        if (work := self._preparing) is not None:
            return work.done, work.total
        view = self._view
        if view is None:
            return 0, 0
        total = len(self._answers.wanted(*view))
        return total - len(self._answers.missing(*view)), total

    @property
    def notes(self) -> list[str]:
        """What the user should know, such as that memory was short."""
        notes = [work.job.memory.note for work in [*self._works.values()]]
        return [note for note in notes[:1] if note]

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
        view = (level, window) if level < self.coarse else None
        if level <= self.coarse and view != self._view:
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
            for pixels in (*self._pixels, *(work.job.pixels for work in [*self._works.values()])):
                pixels.forget()  # what was kept of a file that was gone may be anything
            self.error, self.lost, self._idle = None, False, False
            self._better(everywhere=True)
            self._start(self._worker)

    def forget(self) -> None:
        """Drop all that has been computed; what is asked for later is computed again, if the work goes on."""
        with self._changed:
            self._model, self._works, self._idle = None, {}, False
            self._wholes = self._first_wholes()
            self._answers.forget()
        self._better(everywhere=True)
        self._worker.wake()

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
            return render(raw, self.image, self.limits, self._strength, partial(self._answers.clear, level, window))
        except Exception as error:
            self.lost = self.lost or expected(error, f"showing {self.image.name}")
            self._fail(_bare(error), self._worker)
            return np.zeros((window.height, window.width, 3 if self.image.alpha is None else 4), self.dtype)

    def around(self, level: int, window: Window) -> list[Window]:
        """List the chunks of a level's file in and around a window; none if they cannot all be kept."""
        return self._pixels[level].chunks(window.expand(AROUND))

    def read_ahead(self, level: int, chunk: Window) -> None:
        """Read a chunk of the file, to be there when the view moves; what goes wrong is told when it is needed."""
        pixels = self._pixels[level]
        try:
            check_there(self.image.path)
            pixels.load(chunk)
            check_there(self.image.path)
        except Exception as error:
            expected(error, f"reading ahead in {self.image.name}")
            pixels.forget()  # what was read of a file that has gone meanwhile may be anything

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what is shown: uint8 if the picture is, else float32."""
        return shown_dtype(self.image)

    # What is computed

    def _start(self, before: Worker | None = None) -> None:
        own: list[Worker] = []
        self._worker = Worker(_dehaze(weakref.ref(self), before, own), f"dehaze {self.image.name}")
        own.append(self._worker)
        weakref.finalize(self, self._worker.close).atexit = False  # then all workers are ended anyway
        self._worker.start()

    def _do_next(self, worker: Worker) -> bool:
        """Do a batch of what is wanted most; tell whether there was anything to do.

        What fails ends the work of `worker`, which may be another one's by then: cancelled, and begun again.
        """
        task = self._next()
        if task is None:
            return False
        try:
            self._advance(*task)
            self._warn()
        except Exception as error:
            unreadable = expected(error, f"dehazing {self.image.name}") and not short_of_memory(error)
            if worker is self._worker:
                self.lost = self.lost or (self._model is not None and unreadable)
                self._fail(error, worker)
        return True

    def _warn(self) -> None:
        """Emit the first note."""
        if not self._note and (notes := self.notes):
            self._note = notes[0]
            self.warned.emit(self._note)

    def _next(self) -> tuple[int, Window] | None:
        """Return what to work at: the overviews, then the view; None if all are done."""
        with self._changed:
            if self._wholes:
                height, width = self.image.levels[self._wholes[0]].shape[:2]
                return self._wholes[0], Window(0, height, 0, width)
            view = self._view
            if view is not None and self._answers.missing(*view):
                return view
            self._idle = True
        return None

    @property
    def _preparing(self) -> LevelRun | None:
        """The level that is wanted most, while it is encoded or fused."""
        view, wholes = self._view, self._wholes
        work = self._works.get(wholes[0] if wholes else self.coarse if view is None else view[0])
        return None if work is None or work.ready else work

    def _advance(self, level: int, window: Window) -> None:
        """Do the next batch of what a window of a level needs."""
        # In names of its own: `forget`, in another thread, may drop them at any time.
        model = self._model
        if model is None:
            model = self.load()
            self._answers.cut(model.spec.tile, model.spec.overlap if self.overlap is None else self.overlap)
            self._model = model
        work = self._works.get(level)
        if work is None:
            work = self._works[level] = self._begin(level, model)
        # What was read of a file that has gone meanwhile may be anything: it is looked for before anything is kept.
        if not work.ready:
            work.advance()
            check_there(self.image.path)
        elif self._wholes[:1] == [level]:
            overview = work.changes(lambda: not self.running)
            check_there(self.image.path)
            with self._changed:
                if overview is not None and self._wants(level, work):
                    self._answers.overview, self._wholes = overview, self._wholes[1:]
            self._better(everywhere=True)
        else:
            tiles = work.decode(self._answers.missing(level, window))
            check_there(self.image.path)
            with self._changed:
                if self._wants(level, work):
                    self._answers.keep(level, tiles)
            self._better()

    def _wants(self, level: int, work: LevelRun) -> bool:
        """Whether what a work has found is still wanted: meanwhile all may have been stopped, or forgotten."""
        return self.running and self._works.get(level) is work

    def _first_wholes(self) -> list[int]:
        """List the levels to be dehazed whole, the first one first."""
        return sorted({self.coarse, _finest(self.image, GLANCE)}, reverse=True)

    def _begin(self, level: int, model: DehazeXL) -> LevelRun:
        memory = next((work.job.memory for work in self._works.values()), None)
        return LevelRun.begin(self.image, level, model, self.overlap, self.limits, memory)

    def _better(self, everywhere: bool = False) -> None:
        with self._changed:
            self.version += 1
            if everywhere:
                self.renewed = self.version
        self.updated.emit(everywhere)

    def _fail(self, error: Exception, worker: Worker) -> None:
        """End the work of a worker, and keep what ended it."""
        with self._changed:
            first, self.error = self.error is None, self.error or error
        worker.close()
        self._tell()
        if first:
            self.failed.emit(error)

    def _tell(self) -> None:
        """Notify those who wait or follow the progress."""
        with self._changed:
            self._changed.notify_all()
        self.progressed.emit()


def _dehaze(ref: weakref.ref[DehazeSession], before: Worker | None, own: list[Worker]) -> Generator[bool, None, None]:
    """Do a picture's work; it is held only while a batch is computed, so that it can be dropped.

    It begins when the worker `before` has ended; `own` holds the worker that takes these steps.
    """
    if before is not None:
        before.join()
    try:
        while (live := ref()) is not None:
            busy = live._do_next(own[0])
            live._tell()
            del live
            yield busy
    finally:
        if (live := ref()) is not None:
            for work in [*live._works.values()]:
                work.interrupt()
            live._tell()


class Level(WindowedArray):
    """A level of a session's image, ``(y, x, 3)`` or 4: indexed, it answers at once and never raises."""

    def __init__(self, live: DehazeSession, number: int) -> None:
        self.live, self.number = live, number
        height, width, _ = live.image.levels[number].shape
        self.shape, self.dtype = (height, width, 3 if live.image.alpha is None else 4), live.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Return the best there is of a window; its tiles are dehazed next."""
        self.live.look_at(self.number, window)
        return self.live.read(self.number, window)


def _finest(image: Image, side: int) -> int:
    """Return the number of the finest level of at most so many pixels a side; if there is none, the last."""
    fits = [max(level.shape[:2]) <= side for level in image.levels]
    return fits.index(True) if any(fits) else len(fits) - 1


def _bare(error: Exception) -> Exception:
    """Return an error without the frames that it came through: to keep them would keep the window that was painting."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
