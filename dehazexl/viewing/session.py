"""An image that is dehazed while it is viewed: pixels are returned at once, and improve where they are viewed.

There are four stages, each better than the one before:

1. the hazy pixels;
2. the gain and bias that the network predicts for a small overview, then for a larger one, enlarged and applied to the
   hazy pixels: as sharp as they are, after one or two seconds for an image of any size;
3. the output of the network at the level on screen, tile by tile, from the center of the view outwards;
4. at rest, what a file will hold: means of the pixels of full size, all of which are dehazed for it, see `full_size`.

One thread runs the network. Nothing here needs a viewer: any viewer of lazy arrays can index `Level`, and
`renderer.RenderedLevel` is for viewers that must not wait for a file.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal

from dehazexl.engine.memory import short_of_memory
from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import Window, check_overlap
from dehazexl.image.image import Image, check_range, check_strength
from dehazexl.image.image import value_range as find_value_range
from dehazexl.image.windowed_array import WindowedArray, check_there
from dehazexl.viewing.display import render, shown_dtype
from dehazexl.viewing.errors import expected
from dehazexl.viewing.level import LevelRun
from dehazexl.viewing.refinement import Refinement
from dehazexl.viewing.tile_cache import TileCache
from dehazexl.viewing.turns import PAUSE, is_turn, look, may_refine
from dehazexl.viewing.worker import Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.engine.memory import TilesAtOnce
    from dehazexl.model import DehazeXL
    from dehazexl.viewing.full_size import Cell
    from dehazexl.viewing.local import LocalStrength

CACHE = 512 * 2**20
"""Bytes of dehazed tiles in the cache, by default."""

AROUND = 512
"""Pixels around the view that are read ahead."""

GLANCE, OVERVIEW = 512, 1024
"""Pixels: longest sides of the two levels that are dehazed first, as a whole. The small one takes a second."""


class DehazeSession:
    """An image that is dehazed while it is viewed.

    Its thread ends when the session is closed or garbage collected.

    Parameters
    ----------
    image
        The image. All of its levels, finest first, can be viewed. The coarser ones are dehazed themselves, so a large
        image needs them.
    load
        Returns the network. Called in the thread of the session.
    overlap, strength, value_range
        See `dehazexl.dehaze`.
    cache
        Bytes of dehazed tiles in the cache.
    settle
        Most tiles of an image of full size that is dehazed at rest for the fourth stage; 0 leaves that out.
    region
        Rows and columns of `image` in `whole`, if it is a region of that.
    whole
        The image that the region lies in.
    context
        ``"all"``: from the fourth stage on, all of `whole` takes part in dehazing a region. ``"region"``: nothing else
        does.

    Attributes
    ----------
    value_range : tuple of float
        Values of the image that are black and white.
    coarse : int
        The level that is dehazed as a whole before any tiles: the finest of at most 1024 pixels.
    version, renewed : int
        Number of updates, and its value at the last update of all pixels. A `renderer.Frame` records its version.
    error : Exception or None
        The error that ended the session. The levels still return the best pixels there are.
    lost : bool
        Whether the image could not be read.
    updated : psygnal.Signal(bool)
        Emitted when pixels have improved: True if all have, False if those of some tiles have.
    progressed : psygnal.Signal()
        Emitted after each batch, and when the session stops: `status`, `progress` and `rate` may have changed.
    warned : psygnal.Signal(str)
        Emitted with a note for the user, for example that memory ran out.
    failed : psygnal.Signal(Exception)
        Emitted with the error that ends the session.

    Signals are emitted in the thread that computes or reads. They hold bound methods weakly.

    Raises
    ------
    ValueError
        If overlap, strength or cache is out of range, or the value range does not rise.
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
        value_range: tuple[float, float] | None = None,
        cache: int = CACHE,
        settle: int = 0,
        region: Window | None = None,
        whole: Image | None = None,
        context: str = "all",
    ) -> None:
        if cache < 0:
            raise ValueError(f"cache is a number of bytes, 0 or more, not {cache}")
        self.image, self.load, self.overlap = image, load, check_overlap(overlap)
        self.value_range = find_value_range(image) if value_range is None else check_range(value_range)
        self.region, self.context, self.whole = region, context, image if whole is None else whole
        self.version, self.renewed, self.lost = 0, 0, False
        self.error: Exception | None = None
        self._pixels = [ChunkCache.of(level) for level in image.levels]
        self.coarse = finest(image, OVERVIEW)
        self._pending = self._all_pending()  # levels still to be dehazed as a whole
        self._tiles = TileCache([level.shape for level in image.levels], self.coarse, cache)
        self._refinement = Refinement(image, self.whole if context == "all" else image, region, settle, cache // 2)
        self._model: DehazeXL | None = None
        self._runs: dict[int, LevelRun] = {}
        self._view: tuple[int, Window] | None = None
        self._changed = threading.Condition()
        self._idle = False
        self._note = ""
        self._local: LocalStrength | None = None
        self.strength = strength
        look(self)
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> DehazeSession:
        return self  # viewers copy a layer's metadata to duplicate it; both layers share the session

    @property
    def levels(self) -> tuple[Level, ...]:
        """The dehazed levels, finest first."""
        # Created each time: a reference cycle would keep the thread alive until the garbage collector runs.
        return tuple(Level(self, number) for number in range(len(self.image.levels)))

    @property
    def strength(self) -> float:
        """Fraction of the haze that is removed, 0 to 1. Setting it does not run the network again."""
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        self._strength = check_strength(strength)
        self._better(everywhere=True)
        self.progressed.emit()

    @property
    def local(self) -> LocalStrength | None:
        """Local strength, by which `strength` is multiplied. Setting it does not run the network again."""
        return self._local

    @local.setter
    def local(self, local: LocalStrength | None) -> None:
        self._local = local
        self._better(everywhere=True)

    @property
    def running(self) -> bool:
        """Whether the thread is alive, at work or waiting for a view."""
        return self._worker.running

    @property
    def hurried(self) -> bool:
        """Whether the view is not dehazed yet: other work waits for it."""
        return self.running and not self._idle and self.error is None

    @property
    def loaded(self) -> bool:
        """Whether the network has been loaded."""
        return self._model is not None

    @property
    def model(self) -> DehazeXL | None:
        """The network, once it has been loaded."""
        return self._model

    def fused(self, level: int) -> LevelRun | None:
        """Return the run of a level once its tokens are fused, so that more can be decoded from them; None before."""
        run = self._runs.get(level)
        return run if run is not None and run.ready else None

    @property
    def status(self) -> str:
        """The state of the work, in a few words."""
        if self.error is not None:
            return "failed"
        if not self.running:
            return "stopped"
        if self._pending:
            return "dehazing the overview"
        done, total = self.progress
        if (run := self._preparing) is not None:
            return f"{run.stage} {done} of {total} tiles"
        if done < total:
            return f"{done} of {total} tiles in view"
        if self._unsettled():
            return f"all in view is dehazed, refining it to full size{self._refinement.progress}"
        return "all in view is dehazed" if total else "the overview is dehazed"

    @property
    def progress(self) -> tuple[int, int]:
        """Finished tiles and their total: of the view, or of its level while that is encoded or fused."""
        if (run := self._preparing) is not None:
            return run.done, run.total
        view = self._view
        if view is None:
            return 0, 0
        total = len(self._tiles.wanted(*view))
        return total - len(self._tiles.missing(*view)), total

    @property
    def exact(self) -> bool:
        """Whether the view is what a file will hold: full size, or means of that."""
        level, window = self._view or self._all_of(self.coarse)
        if level == 0 and self._refinement.around is self.image:
            done, total = self.progress
            return not self._pending and self._preparing is None and done == total
        return self._refinement.blocks.complete(level, window)

    @property
    def settles(self) -> bool:
        """Whether the view becomes exact when it is left alone: the image is not too large for that."""
        return self._refinement.possible(self._tiles.grids[0].overlap, self._tiles.grids[0].side)

    @property
    def notes(self) -> list[str]:
        """Notes for the user, for example that memory ran out."""
        notes = [run.job.memory.note for run in [*self._runs.values()]]
        return [note for note in notes[:1] if note]

    @property
    def rate(self) -> float:
        """Tiles per second, encoded and decoded, as last measured; NaN before the first."""
        seconds: dict[str, float] = {}
        for run in [*self._runs.values()]:
            seconds |= run.seconds
        return len(seconds) / (2 * sum(seconds.values())) if seconds else math.nan

    def look_at(self, level: int, window: Window) -> None:
        """Set the window of a level that is on screen; its tiles are dehazed first. Indexing a `Level` does so."""
        # The overview and coarser levels need no tiles. Thumbnails are made of the coarsest: those are no views.
        view = (level, window) if level < self.coarse else None
        if level <= self.coarse and view != self._view:
            with self._changed:
                self._view, self._idle = view, False
            look(self)
            self._worker.wake()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the view is dehazed or the work has ended; return whether it is dehazed."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle or not self.running, timeout)
            return self._idle and self.error is None

    def close(self, timeout: float | None = 0) -> None:
        """Stop within a batch of tiles; wait for that at most `timeout` seconds, without limit if None."""
        self._worker.close()
        self._tell()
        self._worker.join(timeout)

    def restart(self) -> None:
        """Continue after `close` or an error. Dehazed tiles are kept."""
        if not self.running:
            for pixels in (*self._pixels, *(run.job.pixels for run in self._all_runs)):
                pixels.forget()  # chunks of a file that was gone may hold anything
            self.error, self.lost, self._idle = None, False, False
            self._better(everywhere=True)
            look(self)
            self._start(self._worker)

    def forget(self) -> None:
        """Drop the network and all results. They are computed again if the session is running."""
        with self._changed:
            self._model, self._runs, self._idle = None, {}, False
            self._pending = self._all_pending()
            self._tiles.forget()
            self._refinement.forget()
        self._better(everywhere=True)
        self._worker.wake()

    # Reading

    def read(self, level: int, window: Window) -> NDArray[Any]:
        """Return a window of a level as dehazed as it is by now, at once.

        Returns
        -------
        ndarray
            ``(y, x, 3)``, or 4 with the alpha of the image. uint8 for an image of uint8, else float32: 0 and 1 are
            the ends of the value range. Nodata pixels are unchanged, NaN becomes 0. Zeros if the image cannot be
            read; then `error` is set.
        """
        try:
            check_there(self.image.path)
            raw = self._pixels[level].read(window)
            return render(
                raw, self.image, self.value_range, self._share(level, window), partial(self._dehaze, level, window)
            )
        except Exception as error:
            self.lost = self.lost or expected(error, f"showing {self.image.name}")
            self._fail(_bare(error), self._worker)
            return np.zeros((window.height, window.width, 3 if self.image.alpha is None else 4), self.dtype)

    def _share(self, level: int, window: Window) -> float | NDArray[np.float32]:
        """Return the fraction of the haze that is removed in a window, or that of each pixel."""
        local = self._local
        shape = self.image.levels[level].shape
        return self._strength if local is None else self._strength * local.of(window, shape)

    def _dehaze(self, level: int, window: Window, hazy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the best dehazed colors of a window that there are."""
        return self._refinement.blocks.paste(level, window, self._tiles.dehaze(level, window, hazy))

    def sample(self, strength: float, side: int) -> NDArray[Any]:
        """Return a small image of the whole with another strength; its longest side is at least `side` pixels.

        A chunk of the smallest level that is large enough is read at once. Axes and values are those of `read`.
        """
        large = [number for number, level in enumerate(self.image.levels) if max(level.shape[:2]) >= side]
        level, window = self._all_of(large[-1] if large else 0)
        raw = self._pixels[level].read(window)
        return render(raw, self.image, self.value_range, strength, partial(self._dehaze, level, window))

    def around(self, level: int, window: Window) -> list[Window]:
        """List the chunks of a level in and around a window; an empty list if they do not fit into the cache."""
        return self._pixels[level].chunks(window.expand(AROUND))

    def read_ahead(self, level: int, chunk: Window) -> None:
        """Read a chunk of the file before the view moves there. Errors are ignored: they recur when it is needed."""
        pixels = self._pixels[level]
        try:
            check_there(self.image.path)
            pixels.load(chunk)
            check_there(self.image.path)
        except Exception as error:
            expected(error, f"reading ahead in {self.image.name}")
            pixels.forget()  # chunks of a file that is gone may hold anything

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the levels: uint8 for an image of uint8, else float32."""
        return shown_dtype(self.image)

    # Computing

    def _start(self, before: Worker | None = None) -> None:
        own: list[Worker] = []
        self._worker = Worker(_dehaze(weakref.ref(self), before, own), f"dehaze {self.image.name}")
        own.append(self._worker)
        weakref.finalize(self, self._worker.close).atexit = False  # at exit all workers are ended anyway
        self._worker.start()

    def _do_next(self, worker: Worker) -> bool:
        """Compute the next batch; return whether there was one.

        An error ends the session, unless `worker` has been replaced: the session was closed and restarted meanwhile.
        """
        task = self._next()
        cell = self._unsettled() if task is None and may_refine() else None
        if task is None and cell is None:
            return False
        try:
            if task is not None:
                self._advance(*task)
            elif cell is not None:
                self._refine(cell)
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
        """Return the level and window to dehaze next: the overviews, then the view; None if all are done."""
        with self._changed:
            if self._pending:
                height, width = self.image.levels[self._pending[0]].shape[:2]
                return self._pending[0], Window(0, height, 0, width)
            view = self._view
            if view is not None and self._tiles.missing(*view):
                return view
            self._idle = True
        return None

    @property
    def _preparing(self) -> LevelRun | None:
        """The run of the level to dehaze next, while it is encoded or fused."""
        view, pending = self._view, self._pending
        run = self._runs.get(pending[0] if pending else self.coarse if view is None else view[0])
        return None if run is None or run.ready else run

    def _advance(self, level: int, window: Window) -> None:
        """Compute the next batch that a window of a level needs."""
        # In local names: `forget`, in another thread, may drop the attributes at any time.
        model = self._model
        if model is None:
            model = self.load()
            self._tiles.cut(model.spec.tile, model.head.overlap if self.overlap is None else self.overlap)
            self._model = model
        run = self._runs.get(level)
        if run is None:
            run = self._runs[level] = self._begin(level, model)
        # A file that is gone may have been read as anything: check before a result is kept.
        if not run.ready:
            run.advance()
            check_there(self.image.path)
        elif self._pending[:1] == [level]:
            overview = run.predict_affine(lambda: not self.running)
            check_there(self.image.path)
            with self._changed:
                if overview is not None and self._wants(level, run):
                    self._tiles.overview, self._pending = overview, self._pending[1:]
            self._better(everywhere=True)
        else:
            tiles = run.decode(self._tiles.missing(level, window))
            check_there(self.image.path)
            with self._changed:
                if self._wants(level, run):
                    self._tiles.keep(level, tiles)
            self._better()

    @property
    def _rests(self) -> bool:
        """Whether nothing is left to do but to refine the view."""
        return self._idle and self._unsettled() is not None

    def _unsettled(self) -> Cell | None:
        """Return the next block of the view to be refined to full size, from its center; None if there is none."""
        if self._model is None or not self.settles or self.exact:
            return None
        return self._refinement.next(*(self._view or self._all_of(self.coarse)))

    def _refine(self, cell: Cell) -> None:
        """Compute the next batch that a block of full size needs."""
        model = self._model
        if model is None:
            return
        complete = self._refinement.advance(cell, partial(self._begin_full, model))
        check_there(self.image.path)
        if complete:
            self._better(everywhere=cell[0] >= self.coarse)

    def _all_of(self, level: int) -> tuple[int, Window]:
        height, width = self.image.levels[level].shape[:2]
        return level, Window(0, height, 0, width)

    def _wants(self, level: int, run: LevelRun) -> bool:
        """Return whether a result is still wanted: the session may have been closed, or made to forget, meanwhile."""
        return self.running and self._runs.get(level) is run

    def _all_pending(self) -> list[int]:
        """List the levels to dehaze as a whole, the smaller one first."""
        return sorted({self.coarse, finest(self.image, GLANCE)}, reverse=True)

    def _begin(self, level: int, model: DehazeXL) -> LevelRun:
        return LevelRun.begin(self.image, level, model, self.overlap, self.value_range, self._memory)

    def _begin_full(self, model: DehazeXL) -> LevelRun:
        """Return the run in full size of the image that takes part, that of its level if that is the image itself."""
        around = self._refinement.around
        shared = self._runs.get(0) if around is self.image else None
        return shared or LevelRun.begin(around, 0, model, self.overlap, self.value_range, self._memory)

    @property
    def _memory(self) -> TilesAtOnce | None:
        """The tiles at once that memory allows, known from the first run."""
        return next((run.job.memory for run in [*self._runs.values()]), None)

    @property
    def _all_runs(self) -> list[LevelRun]:
        """The runs of levels, and that of the image that takes part in full size."""
        full = self._refinement.run
        return [*self._runs.values(), *([full] if full else [])]

    def _better(self, everywhere: bool = False) -> None:
        with self._changed:
            self.version += 1
            if everywhere:
                self.renewed = self.version
        self.updated.emit(everywhere)

    def _fail(self, error: Exception, worker: Worker) -> None:
        """End the work of a worker and record the first error."""
        with self._changed:
            first, self.error = self.error is None, self.error or error
        worker.close()
        self._tell()
        if first:
            self.failed.emit(error)

    def _tell(self) -> None:
        """Wake the threads in `wait`, and emit the progress."""
        with self._changed:
            self._changed.notify_all()
        self.progressed.emit()


def _dehaze(ref: weakref.ref[DehazeSession], before: Worker | None, own: list[Worker]) -> Generator[bool, None, None]:
    """Take the steps of a session. It is referenced only during a batch, so that it can be garbage collected.

    The steps begin when the worker `before` has ended; `own` holds the worker that takes them.
    """
    if before is not None:
        before.join()
    try:
        while (session := ref()) is not None:
            waits = not is_turn(session) or (session._rests and not may_refine())
            busy = waits or session._do_next(own[0]) or session._rests
            if not waits:
                session._tell()
            del session
            if waits:
                time.sleep(PAUSE)
            yield busy
    finally:
        if (session := ref()) is not None:
            for run in session._all_runs:
                run.interrupt()
            session._tell()


class Level(WindowedArray):
    """A level of a session, ``(y, x, 3)`` or 4. Indexing returns at once and never raises."""

    def __init__(self, session: DehazeSession, number: int) -> None:
        self.session, self.number = session, number
        height, width, _ = session.image.levels[number].shape
        self.shape, self.dtype = (height, width, 3 if session.image.alpha is None else 4), session.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Return a window as dehazed as it is by now; its tiles are dehazed next."""
        self.session.look_at(self.number, window)
        return self.session.read(self.number, window)


def finest(image: Image, side: int) -> int:
    """Return the index of the finest level of at most `side` pixels; if there is none, of the last."""
    fits = [max(level.shape[:2]) <= side for level in image.levels]
    return fits.index(True) if any(fits) else len(fits) - 1


def _bare(error: Exception) -> Exception:
    """Return an error without its frames: they would keep the window alive that was painting."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
