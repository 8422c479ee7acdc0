"""The image in a layer of any origin."""

from __future__ import annotations

import atexit
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_dehazexl._overviews import build, reopened
from napari_dehazexl._state import is_result, original_of, session_of_layer, shows_as_read, state_of, update_state

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.image.grid import Window
    from dehazexl.image.image import Image
    from dehazexl.viewing.arrays import Plane
    from dehazexl.viewing.overviews import OverviewBuilder


class OverviewsPending(ValueError):
    """Raised for a large image whose overviews are still being computed, by `builder`."""

    def __init__(self, name: str, builder: OverviewBuilder) -> None:
        self.builder = builder
        super().__init__(
            f"the overviews of {name!r} are being computed, {builder.progress:.0%} are done: dehaze it afterwards"
        )


def source_of(layer: napari.layers.Image, viewer: Any = None) -> tuple[Image, tuple[float, float]]:
    """Return the image to dehaze for a layer, and its values of black and white.

    Parameters
    ----------
    layer
        The layer. A dehazed one stands for the image that it was made from.
    viewer
        The viewer whose sliders choose the plane of a layer of more than two dimensions; None takes the first.

    Returns
    -------
    image : dehazexl.Image
        The image, with levels down to a tiny one.
    value_range : tuple of float
        See `dehazexl.image.image.value_range`: the contrast limits of the layer are for display only.

    Raises
    ------
    ValueError
        If the layer is no image, its overviews are still being computed (`OverviewsPending`), or its file holds
        another image now.
    """
    from dehazexl.viewing.overviews import with_tail

    image = image_in(layer, viewer)
    black_and_white = range_of(layer, image)
    builder = _builder_of(layer, image)
    if builder is not None and builder.running:
        raise OverviewsPending(layer.name, builder)
    return with_tail(image if builder is None else builder.image), black_and_white


def part_of(layer: napari.layers.Image, window: Window, viewer: Any = None) -> tuple[Image, Image]:
    """Return a part of the image of a layer with levels down to a tiny one, and the whole image.

    A part of at most `overviews.ENOUGH` pixels needs no overviews of the whole.

    Raises
    ------
    ValueError
        See `source_of`; also if the part is empty or extends beyond the image.
    """
    from dehazexl.viewing.overviews import needs_overviews, with_tail

    whole = image_in(layer, viewer)
    builder = state_of(layer).overviews
    if builder is not None and builder.ready and builder.image.fingerprint == whole.fingerprint:
        whole = builder.image
    part = _cropped(whole, window)
    if needs_overviews(part):
        whole, _ = source_of(layer, viewer)
        part = _cropped(whole, window)
    return with_tail(part), whole


def _cropped(image: Image, window: Window) -> Image:
    """Crop an image; of its tiny levels only the first is kept."""
    from dehazexl.viewing.overviews import SMALLEST

    part = image.cropped(window)
    sides = [max(level.shape[:2]) for level in part.levels]
    enough = next((number for number, side in enumerate(sides, start=1) if side <= SMALLEST), len(sides))
    return replace(part, levels=part.levels[:enough])


def image_in(layer: napari.layers.Image, viewer: Any = None) -> Image:
    """Return the image to dehaze for a layer as `source_of` does, but with the levels that there are.

    Raises
    ------
    ValueError
        See `source_of`.
    """
    if (dehazing := session_of_layer(layer)) is not None:
        return dehazing.image
    if is_result(layer):
        if (source := original_of(layer)) is None:
            raise ValueError(f"the layer {layer.name!r} is dehazed already, and its source is gone: open that again")
        return image_in(source, viewer)
    image = state_of(layer).image if shows_as_read(layer) else None
    if image is None:
        return image_at(layer, plane_of(layer, viewer))
    band = state_of(layer).band
    return reopened(image) if band is None else band_of(reopened(image), band)


def band_of(image: Image, band: int) -> Image:
    """Return the image of one band."""
    levels = tuple(level[..., band : band + 1] for level in image.levels)
    own: dict[str, Any] = {
        "levels": levels,
        "bands": (image.bands[band],),
        "rgb": (0, 0, 0),
        "alpha": None,
        "holes": None,
    }
    return replace(image, fingerprint=f"{image.fingerprint} band {band}", **own)


def range_of(layer: napari.layers.Image, image: Image) -> tuple[float, float]:
    """Return the values of black and white of the image of a layer, by the rule of the engine."""
    from dehazexl.image.image import value_range

    own = state_of(layer).value_range if shows_as_read(layer) else None
    if own is not None and not is_result(layer):
        return own
    # Of the levels of the layer alone, as for its file: not of those that were made of them.
    given = len(layer.data) if layer.multiscale else 1
    return value_range(replace(image, levels=image.levels[:given]))


def contrast_of(layer: napari.layers.Image) -> tuple[float, float]:
    """Return the contrast limits of a layer in the values of its image."""
    low, high = (float(limit) for limit in layer.contrast_limits)
    own = state_of(layer).value_range if shows_as_read(layer) else None
    if own is None or layer.dtype == np.uint8:
        return low, high
    # The reader shows such images from 0 to 1.
    return own[0] + low * (own[1] - own[0]), own[0] + high * (own[1] - own[0])


def plane_of(layer: napari.layers.Image, viewer: Any = None) -> Plane:
    """Return the plane of a layer that a viewer shows, the first of each axis without a viewer."""
    from dehazexl.viewing.arrays import choose_plane

    point = np.zeros(layer.ndim) if viewer is None else layer.world_to_data(viewer.dims.point)
    steps = [round(float(place)) for place in point]
    shape, labels = _axes_of(layer)
    return choose_plane(shape, labels, steps, bool(layer.rgb))


def planes_of(layer: napari.layers.Image) -> dict[str, Plane]:
    """Return the planes of a layer by their names; a single one if the layer has no sliders."""
    from dehazexl.viewing.arrays import all_planes

    shape, labels = _axes_of(layer)
    return {plane.name(shape, labels): plane for plane in all_planes(shape, labels, bool(layer.rgb))}


def _axes_of(layer: napari.layers.Image) -> tuple[tuple[int, ...], list[str]]:
    """Return the lengths and the names of the axes of a layer, without that of its colors."""
    level = layer.data[0] if layer.multiscale else layer.data
    labels = getattr(layer, "axis_labels", [""] * layer.ndim)
    return tuple(level.shape[: layer.ndim]), [str(label) for label in labels]


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


def image_at(layer: napari.layers.Image, plane: Plane) -> Image:
    """Return a plane of a layer that shows no `dehazexl.Image`, such as one of another reader.

    What its reader has left out, such as the georeference or the names of channels, comes from the file.
    """
    from dehazexl.viewing.arrays import described_by, image_of_arrays

    arrays = layer.data if layer.multiscale else [layer.data]
    image = image_of_arrays(
        arrays,
        layer,
        plane=plane,
        name=layer.name,
        scale=tuple(layer.scale[-2:]),
        translate=tuple(layer.translate[-2:]),
        units=str(layer.units[-1]),
    )
    path = getattr(layer.source, "path", None)
    return image if path is None else described_by(image, Path(path), plane.page(_axes_of(layer)[0]))
