"""What is chosen in the form: images, and the settings to dehaze them with."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image

from dehazexl.viewing.choices import Choices
from napari_dehazexl._form import format_range, parse_range
from napari_dehazexl._layer import written
from napari_dehazexl._local import local_strength
from napari_dehazexl._region import drawn
from napari_dehazexl._request import DehazeRequest
from napari_dehazexl._selection import chosen_sources
from napari_dehazexl._source import contrast_of, image_in, range_of
from napari_dehazexl._state import state_of

if TYPE_CHECKING:
    from dehazexl.viewing.local import LocalStrength
    from napari_dehazexl._form import Form
    from napari_dehazexl._region import Region


class Chosen:
    """The choices of a form.

    Parameters
    ----------
    form
        The form.
    """

    def __init__(self, form: Form) -> None:
        self.form, self.viewer = form, form.viewer
        self._ranges: weakref.WeakKeyDictionary[Image, str] = weakref.WeakKeyDictionary()  # entered, by layer

    def source(self) -> Image:
        """Return the input.

        Raises
        ------
        ValueError
            If there is none.
        """
        layer = self.form.input.value
        if layer is None:
            raise ValueError("there is no image layer: open an image first")
        return layer

    def sources(self) -> list[Image]:
        """Return the layers to dehaze: all that are selected, if the input is one of them."""
        return chosen_sources(self.viewer, self.source())

    def network(self) -> tuple[str, str, str]:
        """Return weights, device and dtype."""
        return self.form.chosen_weights(), self.form.device.value, self.form.precision.value

    def region(self, layer: Image) -> Region | None:
        """Return the region of a layer, None for all of it."""
        shapes = self.form.region.value
        return None if shapes is None else drawn(self.viewer, shapes, layer)

    def choices(self, layer: Image, region: Region | None) -> Choices:
        """Return the settings to dehaze a layer, or a region of it, with."""
        form, entered = self.form, parse_range(self._ranges.get(layer, ""))
        overlap, strength, context = form.overlap.value, form.strength.value, form.context.value
        return Choices(*self.network(), overlap, strength, entered, region, context)

    def request(self, layer: Image) -> DehazeRequest:
        """Return the request to dehaze a layer, or its region, with the settings."""
        choices, image = self.choices(layer, self.region(layer)), image_in(layer, self.viewer)
        return DehazeRequest(image, choices, choices.value_range or range_of(layer, image), written(choices.weights))

    def local(self, layer: Image, region: Region | None = None) -> LocalStrength | None:
        """Return the local strength for a layer, or a region of it; None without a layer that protects."""
        painted = self.form.spare.value
        return None if painted is None else local_strength(painted, layer, region)

    def show_range(self) -> None:
        """Show the values of black and white of the input: those entered, or in gray those of the image."""
        layer, limits = self.form.input.value, self.form.limits
        with limits.changed.blocked():
            limits.value = "" if layer is None else self._ranges.get(layer, "")
        limits.native.setPlaceholderText("" if layer is None else self._own_range(layer))

    def _own_range(self, layer: Any) -> str:
        """Return the values of black and white of the image of a layer, unless reading them would take long."""
        own = state_of(layer).value_range
        at_once = own is not None or isinstance(layer.data, np.ndarray) or layer.dtype == np.uint8
        try:
            return format_range(own or range_of(layer, image_in(layer, self.viewer))) if at_once else "the image's own"
        except (ValueError, OSError):  # a click on a button shows why
            return ""

    def enter_range(self, text: str) -> None:
        """Keep the values that were entered for the input: they suit no other image."""
        if self.form.input.value is not None:
            self._ranges[self.form.input.value] = text

    def take_contrast(self) -> None:
        """Take over the contrast limits of the input as black and white."""
        self.form.limits.value = format_range(contrast_of(self.source()))
