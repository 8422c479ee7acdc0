"""What the widget's choices come to: a picture, and how it is to be dehazed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari_dehazexl._layer import network
from napari_dehazexl._save import save

if TYPE_CHECKING:
    from dehazexl.image.image import Image
    from dehazexl.viewing.model_info import ModelInfo
    from dehazexl.viewing.session import DehazeSession
    from napari_dehazexl._save import Steps


@dataclass(frozen=True)
class DehazeRequest:
    """A picture, or a region of one, to be dehazed.

    Attributes
    ----------
    image
        The picture.
    network
        Weights, device and dtype, see `dehazexl.load_model`.
    changed
        When the weights were last written, see `_layer.written`: those that were written again are others.
    overlap, strength, limits
        See `dehazexl.dehaze`; limits are its value range.
    """

    image: Image
    network: tuple[str, str, str]
    changed: int
    overlap: int | None
    strength: float
    limits: tuple[float, float]

    def tiles(self, network: ModelInfo) -> int:
        """Count the picture's tiles as a network cuts them."""
        height, width, _ = self.image.levels[0].shape
        grid = network.grid(height, width, self.overlap)
        return grid.count

    def fits(self, live: DehazeSession) -> bool:
        """Tell whether a layer shows the same pixels dehazed alike; its strength may be another."""
        theirs = live.image.fingerprint, getattr(live.load, "args", ()), live.overlap, live.limits
        return theirs == (self.image.fingerprint, (*self.network, self.changed), self.overlap, self.limits)

    def steps(self, path: Path, stopped: Callable[[], bool]) -> Steps:
        """Return the steps of saving it, in place of what is there."""
        load = partial(network, *self.network, self.changed)
        return save(
            self.image, path, load, overlap=self.overlap, strength=self.strength, limits=self.limits,
            overwrite=True, stopped=stopped,
        )  # fmt: skip


def network_of(live: DehazeSession) -> tuple[str, ...]:
    """Return the weights, device and dtype that `dehaze_layer` was called with."""
    return tuple(str(each) for each in getattr(live.load, "args", ())[:3])
