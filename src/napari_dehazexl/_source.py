"""The picture in a layer, whoever made the layer."""

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
    """Return the picture in a layer, and which of its values the layer's contrast limits make black and white.

    Raises
    ------
    ValueError
        If the layer is not RGB, has further dimensions, is dehazed already, its overviews are still being made,
        or another picture was written in its file.
    """
    from dehazexl.viewing.overviews import with_tail

    if not getattr(layer, "rgb", False):
        raise ValueError(f"the layer {layer.name!r} is not RGB: select an RGB image, or open the file with DehazeXL")
    if layer.ndim != 2:
        raise ValueError(f"the layer {layer.name!r} has {layer.ndim} dimensions: select a picture of two")
    if state_of(layer).session is not None:
        raise ValueError(f"the layer {layer.name!r} is dehazed already: select its source")
    image = state_of(layer).image if shows_as_read(layer) else None
    if image is None:
        image = _image_of(layer)
        limits = _limits_of(layer, image)
    else:
        limits = _limits_of(layer, image)
        image = reopened(image)
    growing = _growing(layer, image)
    if growing is not None and growing.running:
        raise ValueError(
            f"the overviews of {layer.name!r} are being made, {growing.share:.0%} are there: dehaze it when they are"
        )
    return with_tail(image if growing is None else growing.image), limits


def _growing(layer: napari.layers.Image, image: Image) -> OverviewBuilder | None:
    """Return the layer's picture while, or after, its overviews are made; begin to make them if it needs some."""
    from dehazexl.viewing.overviews import needs_overviews

    growing = state_of(layer).overviews
    if growing is not None and growing.image.fingerprint == image.fingerprint:
        return growing
    if not needs_overviews(image):
        return None
    growing = build(image, _scratch())  # it ends with the layer
    update_state(layer, overviews=growing)
    return growing


@cache
def _scratch() -> Path:
    """Make a folder that lives as long as this process, for overviews of pictures that no file holds."""
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
    """Return a layer's contrast limits in the values of its picture.

    Those that napari chose itself, the least and the largest value, are none: haze has no black.
    """
    from dehazexl.image.image import value_range

    first, last = (float(limit) for limit in layer.contrast_limits)
    if image.levels[0].dtype == np.uint8:
        return first, last
    if state_of(layer).image is not image:
        chosen = getattr(layer, "_calc_data_range", lambda: None)()
        return value_range(image) if chosen is not None and (first, last) == tuple(chosen) else (first, last)
    # The reader shows such pictures from 0 to 1.
    low, high = state_of(layer).value_range or value_range(image)
    return low + first * (high - low), low + last * (high - low)
