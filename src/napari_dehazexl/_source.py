"""The image in a layer of any origin."""

from __future__ import annotations

import atexit
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from napari_dehazexl._overviews import build, reopened
from napari_dehazexl._state import shows_as_read, state_of, update_state

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.image.image import Image
    from dehazexl.viewing.overviews import OverviewBuilder


def source_of(layer: napari.layers.Image) -> tuple[Image, tuple[float, float]]:
    """Return the image in a layer, and its values at the contrast limits of the layer.

    Raises
    ------
    ValueError
        If the layer is not RGB, has more than two dimensions, or is dehazed already; if its overviews are still being
        computed, or its file holds another image now.
    """
    from dehazexl.viewing.overviews import with_tail

    if not getattr(layer, "rgb", False):
        raise ValueError(f"the layer {layer.name!r} is not RGB: select an RGB image, or open the file with DehazeXL")
    if layer.ndim != 2:
        raise ValueError(f"the layer {layer.name!r} has {layer.ndim} dimensions: select a two-dimensional image")
    if state_of(layer).session is not None:
        raise ValueError(f"the layer {layer.name!r} is dehazed already: select its source")
    image = state_of(layer).image if shows_as_read(layer) else None
    if image is None:
        image = _image_of(layer)
        limits = _limits_of(layer, image)
    else:
        limits = _limits_of(layer, image)
        image = reopened(image)
    builder = _builder_of(layer, image)
    if builder is not None and builder.running:
        raise ValueError(
            f"the overviews of {layer.name!r} are being computed, {builder.progress:.0%} are done: dehaze it afterwards"
        )
    return with_tail(image if builder is None else builder.image), limits


def _builder_of(layer: napari.layers.Image, image: Image) -> OverviewBuilder | None:
    """Return the builder of the overviews of a layer, a new one if they are needed, None if they are not."""
    from dehazexl.viewing.overviews import needs_overviews

    builder = state_of(layer).overviews
    if builder is not None and builder.image.fingerprint == image.fingerprint:
        return builder
    if not needs_overviews(image):
        return None
    builder = build(image, _scratch())  # it ends with the layer
    update_state(layer, overviews=builder)
    return builder


@cache
def _scratch() -> Path:
    """Return a folder that is deleted with the process, for overviews of images that are in no file."""
    folder = TemporaryDirectory(prefix="napari-dehazexl-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _image_of(layer: napari.layers.Image) -> Image:
    """Return the image in a layer that this plugin has not read."""
    from dehazexl.viewing.arrays import image_of_arrays

    arrays = layer.data if layer.multiscale else [layer.data]
    return image_of_arrays(
        arrays,
        layer,
        name=layer.name,
        scale=tuple(layer.scale),
        translate=tuple(layer.translate),
        units=str(layer.units[0]),
    )


def _limits_of(layer: napari.layers.Image, image: Image) -> tuple[float, float]:
    """Return the contrast limits of a layer in the values of its image.

    Those that napari chose, the smallest and the largest value, do not count: a hazy image has no black.
    """
    from dehazexl.image.image import value_range

    first, last = (float(limit) for limit in layer.contrast_limits)
    if image.levels[0].dtype == np.uint8:
        return first, last
    if state_of(layer).image is not image:
        chosen = getattr(layer, "_calc_data_range", lambda: None)()
        return value_range(image) if chosen is not None and (first, last) == tuple(chosen) else (first, last)
    # The reader shows such images from 0 to 1.
    low, high = state_of(layer).value_range or value_range(image)
    return low + first * (high - low), low + last * (high - low)
