"""An image and the settings to dehaze it with, as chosen in the widget."""

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
    """An image, or a region of one, and the settings to dehaze it with.

    Attributes
    ----------
    image
        The image.
    network
        Weights, device and dtype, see `dehazexl.load_model`.
    changed
        Time when the weights were last written, see `_layer.written`: the same path may hold other weights later.
    overlap, strength, value_range
        See `dehazexl.dehaze`.
    """

    image: Image
    network: tuple[str, str, str]
    changed: int
    overlap: int | None
    strength: float
    value_range: tuple[float, float]

    def count_tiles(self, model: ModelInfo) -> int:
        """Return the number of tiles of the image."""
        height, width, _ = self.image.levels[0].shape
        return model.grid(height, width, self.overlap).count

    def fits(self, session: DehazeSession) -> bool:
        """Return whether a session dehazes the same pixels with the same settings, except for the strength."""
        theirs = session.image.fingerprint, getattr(session.load, "args", ()), session.overlap, session.value_range
        return theirs == (self.image.fingerprint, (*self.network, self.changed), self.overlap, self.value_range)

    def steps(self, path: Path, stopped: Callable[[], bool]) -> Steps:
        """Return the steps of saving the dehazed image; a file at the path is replaced."""
        load = partial(network, *self.network, self.changed)
        return save(
            self.image, path, load, overlap=self.overlap, strength=self.strength, value_range=self.value_range,
            overwrite=True, stopped=stopped,
        )  # fmt: skip


def network_of(session: DehazeSession) -> tuple[str, ...]:
    """Return weights, device and dtype of a session of `dehaze_layer`."""
    return tuple(str(each) for each in getattr(session.load, "args", ())[:3])
