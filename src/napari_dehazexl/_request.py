"""An image and the settings to dehaze it with, as chosen in the widget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from napari_dehazexl._layer import network, window_of
from napari_dehazexl._save import save
from napari_dehazexl._state import choices_of

if TYPE_CHECKING:
    from dehazexl.image.image import Image
    from dehazexl.viewing.choices import Choices
    from dehazexl.viewing.local import LocalStrength
    from dehazexl.viewing.model_info import ModelInfo
    from dehazexl.viewing.session import DehazeSession
    from napari_dehazexl._save import Steps


@dataclass(frozen=True)
class DehazeRequest:
    """An image, or a region of one, and the settings to dehaze it with.

    Attributes
    ----------
    image
        The whole image.
    choices
        The settings.
    value_range
        Values of the image that are black and white.
    changed
        Time when the weights were last written, see `_layer.written`: the same path may hold other weights later.
    local
        Local strength over the image, or the region of it.
    """

    image: Image
    choices: Choices
    value_range: tuple[float, float]
    changed: int
    local: LocalStrength | None = None

    @property
    def network(self) -> tuple[str, str, str]:
        """Weights, device and dtype, see `dehazexl.load_model`."""
        return self.choices.weights, self.choices.device, self.choices.dtype

    @cached_property
    def part(self) -> Image:
        """The image, or the region of it."""
        return self.image if self.choices.region is None else self.image.cropped(window_of(self.choices.region))

    def count_tiles(self, model: ModelInfo) -> int:
        """Return the number of tiles that take part."""
        alone = self.choices.context == "region"
        height, width, _ = (self.part if alone else self.image).levels[0].shape
        return model.grid(height, width, self.choices.overlap).count

    def fits(self, session: DehazeSession) -> bool:
        """Return whether a session dehazes the same pixels with the same settings, except for the strength."""
        theirs = session.image.fingerprint, getattr(session.load, "args", ()), session.overlap, session.value_range
        own = (*self.network, self.changed)
        alike = self.choices.region is None or self.choices.context == session.context
        return alike and theirs == (self.part.fingerprint, own, self.choices.overlap, self.value_range)

    def steps(self, path: Path, stopped: Callable[[], bool]) -> Steps:
        """Return the steps of saving the dehazed image; a file at the path is replaced."""
        load = partial(network, *self.network, self.changed)
        return save(
            self.image,
            path,
            load,
            choices=self.choices,
            value_range=self.value_range,
            local=self.local,
            overwrite=True,
            stopped=stopped,
        )


def request_of(session: DehazeSession) -> DehazeRequest:
    """Return the request for what a session of `dehaze_layer` dehazes."""
    changed = int(getattr(session.load, "args", (0,))[-1])
    return DehazeRequest(session.whole, choices_of(session), session.value_range, changed, session.local)


def network_of(session: DehazeSession) -> tuple[str, ...]:
    """Return weights, device and dtype of a session of `dehaze_layer`."""
    return tuple(str(each) for each in getattr(session.load, "args", ())[:3])
