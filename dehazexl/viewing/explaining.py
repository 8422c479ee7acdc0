"""The explanation of a window of an image while it is viewed: a coarse map at once, a better one after each step.

A small overview of the image is explained first. Then the image itself, whose map gets better with each point of the
path, see `engine.explain.attribution`. Nothing here needs a viewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal

from dehazexl.engine.explain.attribution import Attribution, check_steps
from dehazexl.engine.explain.detectors import check_detector
from dehazexl.engine.explain.measures import squares
from dehazexl.image.grid import Window
from dehazexl.viewing.errors import expected
from dehazexl.viewing.session import GLANCE, finest
from dehazexl.viewing.worker import Worker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.image.image import Image
    from dehazexl.model import DehazeXL

STEPS, GLANCE_STEPS = 20, 4
"""Points of the path for the image, by default, and for the overview, at most."""

LARGEST = 4096
"""Pixels: longest side of the level that is explained. It takes 15 bytes of memory a pixel, or more."""

SHOWN = 2048
"""Pixels: longest side of a map that is shown."""

LENGTHS = ("radius_50", "radius_90", "tile_side", "token_side")
"""Numbers that are lengths in pixels."""


@dataclass(frozen=True)
class AttributionMap:
    """A map of what parts of an image contribute to a window of its output, as far as it is known.

    Attributes
    ----------
    values
        Mean contribution of the pixels in each cell ``(rows, cols)``, float32.
    side
        Height and width of a cell, in pixels of the finest level; the first begins with the image.
    limit
        Absolute value at the end of a scale of colors: percentile 99.5.
    numbers
        See `Attribution.numbers`, with lengths in pixels of the finest level; ``level``, which was explained, and
        ``points``, the steps that the map will have.
    """

    values: NDArray[np.float32]
    side: tuple[float, float]
    limit: float
    numbers: dict[str, Any]


class ExplainSession:
    """The explanation of a window of an image, computed in a thread of its own.

    Parameters
    ----------
    image
        The image, with the levels of a pyramid. The finest level of at most `LARGEST` pixels is explained.
    load
        Returns the network, in float32. Called in the thread of the session.
    window
        Rows and columns of the finest level.
    overlap, value_range
        See `dehazexl.dehaze`.
    detector, baseline, steps
        See `dehazexl.explain`.

    Attributes
    ----------
    found : AttributionMap or None
        The best map there is.
    complete : bool
        Whether it will not get any better.
    error : Exception or None
        The error that ended the session.
    updated : psygnal.Signal()
        Emitted when there is a better map.
    progressed : psygnal.Signal()
        Emitted after each batch, and when the session ends: `status` may have changed.
    failed : psygnal.Signal(Exception)
        Emitted with the error that ends the session.

    Signals are emitted in the thread that computes. They hold bound methods weakly.

    Raises
    ------
    ValueError
        If the window does not lie in the image, or an argument is out of range.
    """

    updated = Signal()
    progressed = Signal()
    failed = Signal(Exception)

    def __init__(
        self,
        image: Image,
        load: Callable[[], DehazeXL],
        window: Window,
        *,
        overlap: int | None = None,
        value_range: tuple[float, float] | None = None,
        detector: str = "sum",
        baseline: str | Path = "dehazed",
        steps: int = STEPS,
    ) -> None:
        image.cropped(window)  # raises if it is outside
        check_detector(detector, window)
        self.image, self.window, self.steps = image, window, check_steps(steps)
        self._load, self._overlap, self._value_range = load, overlap, value_range
        self._detector, self._baseline = detector, baseline
        self.level = finest(image, LARGEST)
        self.found: AttributionMap | None = None
        self.error: Exception | None = None
        self.complete = False
        self._doing = "loading the weights"
        self._worker = Worker(self._work(), f"explain {image.name}")

    def __deepcopy__(self, memo: dict[int, Any]) -> ExplainSession:
        return self  # viewers copy a layer's metadata to duplicate it; both layers show the same work

    @property
    def running(self) -> bool:
        """Whether the thread is at work."""
        return self._worker.running

    @property
    def status(self) -> str:
        """The state of the work, and the numbers of the map once it is complete."""
        if self.error is not None:
            return "failed"
        if self.complete and self.found is not None:
            return describe(self.found.numbers)
        if self.running:
            return self._doing
        done = 0 if self.found is None or self.found.numbers["level"] != self.level else self.found.numbers["steps"]
        return f"stopped after step {done} of {self.steps}"

    def start(self) -> None:
        """Start the work, after the signals are connected."""
        self._worker.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the work has ended; return whether the map is complete."""
        self._worker.join(timeout)
        return self.complete

    def close(self, timeout: float | None = 0) -> None:
        """Stop within a batch of tiles; wait for that at most `timeout` seconds, without limit if None."""
        self._worker.close()
        self._worker.join(timeout)

    def _work(self) -> Generator[bool, None, None]:
        """Explain the overview, then the image; yield after each batch."""
        try:
            model = self._load()
            for level in sorted({finest(self.image, GLANCE), self.level}, reverse=True):
                yield from self._explain(level, model)
            self.complete = True
        except Exception as error:
            expected(error, f"explaining {self.image.name}")
            self.error = error
            self.failed.emit(error)
        finally:
            self._worker.close()  # not running any more when the last progress is told
            self.progressed.emit()

    def _explain(self, level: int, model: DehazeXL) -> Generator[bool, None, None]:
        """Explain a level."""
        work = self._begin(level, model)
        shown = 0
        for stage in work.stages():
            for _ in stage.steps:
                self._doing = self._describe(level, stage.name, work)
                self.progressed.emit()
                yield True
                if work.done > shown:
                    shown = work.done
                    self._show(level, work)
        if work.done > shown:
            self._show(level, work)

    def _begin(self, level: int, model: DehazeXL) -> Attribution:
        from dehazexl.engine.explain.attribution import prepare_float32

        alone = replace(self.image, levels=(self.image.levels[level],))
        job = prepare_float32(alone, model, self._overlap, self._value_range)
        steps = self.steps if level == self.level else min(self.steps, GLANCE_STEPS)
        window = self.window if level == 0 else shrunk(self.window, *self._factors(level), *alone.levels[0].shape[:2])
        return Attribution(job, window, self._detector, self._baseline, steps, with_curves=False)

    def _factors(self, level: int) -> tuple[float, float]:
        """Return the height and width of a level's pixel in pixels of the finest level."""
        (height, width), (own_height, own_width) = (self.image.levels[n].shape[:2] for n in (0, level))
        return height / own_height, width / own_width

    def _describe(self, level: int, stage: str, work: Attribution) -> str:
        if level != self.level:
            return f"explaining the overview, step {work.done + 1} of {work.steps}"
        if stage != "path":
            return "computing the baseline"
        return f"explaining, step {min(work.done + 1, work.steps)} of {work.steps}"

    def _show(self, level: int, work: Attribution) -> None:
        """Keep the map of the points of the path so far, and tell."""
        result, (down, across) = work.result(), self._factors(level)
        height, width = result.attribution.shape
        cell = -(-max(height, width) // SHOWN)
        rows, cols = range(0, height, cell), range(0, width, cell)
        counts = np.diff([*rows, height])[:, None] * np.diff([*cols, width])
        means = squares(result.attribution, rows, cols) / counts
        numbers = result.numbers | {name: result.numbers[name] * max(down, across) for name in LENGTHS}
        window = self.window
        numbers |= {
            "window": [window.y0, window.y1, window.x0, window.x1],
            "level": level,
            "points": self.steps,
        }
        limit = float(np.percentile(np.abs(means), 99.5)) or float(np.abs(means).max()) or 1.0
        self.found = AttributionMap(means.astype(np.float32), (cell * down, cell * across), limit, numbers)
        self.updated.emit()


def describe(numbers: dict[str, Any]) -> str:
    """Describe the numbers of a map in one line."""
    if math.isnan(numbers["radius_50"]):
        return "nothing is attributed: the image is like the baseline"
    text = (
        f"{100 * numbers['global_share']:.0f} % outside the tiles of the region, half within "
        f"{numbers['radius_50']:.0f} pixels of it"
    )
    complete = numbers["completeness"]
    if math.isnan(complete):
        return f"{text}, but the responses to image and baseline hardly differ"
    return f"{text}, completeness {100 * complete:.1f} %"


def shrunk(window: Window, down: float, across: float, height: int, width: int) -> Window:
    """Return the window of a coarser level, of height x width pixels, that covers one of the finest.

    It has two rows and columns at least, if the level has them.
    """
    return Window(*_shrunk(window.y0, window.y1, down, height), *_shrunk(window.x0, window.x1, across, width))


def _shrunk(start: int, stop: int, factor: float, size: int) -> tuple[int, int]:
    first = max(0, min(math.floor(start / factor), size - 2))
    return first, min(size, max(math.ceil(stop / factor), first + 2))
