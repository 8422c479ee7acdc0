"""Progress of a run over all of its stages: one fraction that only rises, tiles per second, and the time left."""

from __future__ import annotations

import threading
import time

COSTS = {"encoding": 1.0, "fusing": 0.15, "decoding": 1.0}
"""Time of a tile in each stage, as a multiple of that of encoding it. A tile is fused once for each layer."""

WORDS = {
    "encoding": "looking at all tiles",
    "fusing": "comparing the tiles",
    "decoding": "removing the haze",
    "dehazing the overview": "dehazing a small copy first",
    "the overview is dehazed": "all in view is dehazed",
}
"""Stages and states for somebody who does not know the network."""

NEARLY = 0.99
"""Largest fraction before the end: the last overviews and the renaming come after all tiles."""


class Meter:
    """Progress of a run, counted in tiles from any thread.

    Parameters
    ----------
    tiles
        Number of tiles of the image.
    layers
        Number of layers in which each tile is fused.
    encoded_again
        Whether decoding encodes each tile again, because features were not kept.
    """

    def __init__(self, tiles: int = 0, layers: int = 0, encoded_again: bool = False) -> None:
        self.tiles, self.stage = tiles, ""
        self._totals = {"encoding": tiles, "fusing": tiles * layers, "decoding": tiles}
        self._costs = COSTS | {"decoding": COSTS["decoding"] + encoded_again * COSTS["encoding"]}
        self._done = dict.fromkeys(self._totals, 0.0)
        self._begun: tuple[float, float] | None = None
        self._lock = threading.Lock()

    def add(self, stage: str, tiles: float) -> None:
        """Count tiles that a stage has finished; more than there are count as all."""
        with self._lock:
            if self._begun is None:
                self._begun = time.perf_counter(), self.fraction
            self.stage = stage
            self._done[stage] = min(self._totals[stage], self._done[stage] + tiles)

    def reach(self, stage: str, share: float) -> None:
        """Count a share of a stage, unless more is counted already. Earlier stages are finished."""
        before = [name for name in self._totals if [*self._totals].index(name) < [*self._totals].index(stage)]
        for name in before:
            self.add(name, self._totals[name])
        self.add(stage, max(0.0, share * self._totals[stage] - self._done[stage]))

    @property
    def fraction(self) -> float:
        """Fraction of the work that is done, 0 to 1, at most `NEARLY`."""
        total = sum(self._costs[name] * count for name, count in self._totals.items())
        done = sum(self._costs[name] * count for name, count in self._done.items())
        return min(NEARLY, done / total) if total else 0.0

    @property
    def rate(self) -> float | None:
        """Tiles per second, through all stages, or None at the beginning."""
        if self._begun is None:
            return None
        (started, before), now = self._begun, time.perf_counter()
        done = self.fraction - before
        return self.tiles * done / (now - started) if done > 0 and now > started else None

    @property
    def left(self) -> float | None:
        """Seconds until the end, or None at the beginning."""
        rate = self.rate
        return None if not rate else self.tiles * (1 - self.fraction) / rate

    def __str__(self) -> str:
        rate, left = self.rate, self.left
        if rate is None or left is None:
            return in_words(self.stage) or "starting"
        return f"{in_words(self.stage)}, {rate:.3g} tiles/s, {duration(left)} left"


def in_words(status: str) -> str:
    """Return a stage or a status in the words of `WORDS`."""
    for name, words in WORDS.items():
        status = status.replace(name, words)
    return status


def duration(seconds: float) -> str:
    """Format a time."""
    if seconds < 100:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"
