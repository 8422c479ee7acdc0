"""Reader: TIFF and Zarr of any size become a lazy, multiscale RGB layer; of a folder, each image becomes one."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_dehazexl._levels import FullSizeData
from napari_dehazexl._messages import report
from napari_dehazexl._overviews import build, shown, with_kept_overviews
from napari_dehazexl._state import KEY, LayerState

if TYPE_CHECKING:
    from dehazexl.image.image import Image

    LayerData = tuple[Any, dict[str, Any], str]

SUFFIXES = (".tif", ".tiff", ".zarr")

MANY = 100
"""Images of a folder at most that are opened: each becomes a layer."""


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return `read` for paths of TIFF and Zarr, and for folders with images, else None. Never raises."""
    paths = [path] if isinstance(path, str) else list(path)
    return read if paths and all(_named_as_image(each) or images_of(Path(each)) for each in paths) else None


def _named_as_image(path: str) -> bool:
    return str(path).rstrip("/\\").lower().endswith(SUFFIXES)


def images_of(folder: Path) -> list[Path]:
    """List the images in a folder, as `dehazexl run` finds them; a Zarr is an image itself."""
    from dehazexl.cli.tasks import ALL, is_zarr

    try:
        return [folder] if is_zarr(folder) else list(ALL.walk(folder))
    except OSError:  # no folder, or not ours to read
        return []


def read(path: str | Sequence[str]) -> list[LayerData]:
    """Open images as lazy napari layers.

    A large image without overviews gets some: they are computed in the background, shown as soon as they are there,
    and kept in the user's cache folder for the next time. Meanwhile a blurred image from a few places stands for them.

    Parameters
    ----------
    path
        A path, or several. A folder stands for the images in it, without its subfolders.

    Returns
    -------
    list of tuple
        For each image, its colors as a multiscale ``rgb`` layer, with its alpha if it has one; and a hidden layer for
        each further band. ``metadata["dehazexl"]`` is a `LayerState`, whose ``image`` is the `dehazexl.Image`. A file
        with further axes, such as time or depth, is one layer with a slider for each.

    Raises
    ------
    FileNotFoundError, ValueError
        See `dehazexl.open_image`; of a folder, if none of the images can be opened, or if they are more than `MANY`.
    """
    paths = [path] if isinstance(path, str) else path
    return [layer for each in paths for layer in (_layers if _named_as_image(each) else _layers_in)(Path(each))]


def _layers_in(folder: Path) -> list[LayerData]:
    """Return the layers of all images in a folder; those that cannot be opened are told, and left out."""
    from napari.utils.notifications import show_warning

    files = images_of(folder)
    if len(files) > MANY:
        raise ValueError(
            f"{folder} has {len(files)} images, more than {MANY} layers: open some of them, or dehaze all by "
            f"dehazexl run {shlex.quote(str(folder))} OUTPUT"
        )
    layers, failed = [], []
    for file in files:
        try:
            layers += _layers(file)
        except (OSError, ValueError) as error:
            failed.append(str(error))
    if not layers:
        raise ValueError(failed[0] if failed else f"{folder} has no images")
    if failed:
        show_warning("\n".join(failed))
    return layers


def _layers(path: Path) -> list[LayerData]:
    """Return the layers of a file; one with sliders if it has further axes."""
    from dehazexl import open_image
    from dehazexl.viewing.stacks import open_stack

    try:
        return layers_of(open_image(path))
    except ValueError as error:
        if "has the axes" not in str(error):
            raise
    stack, plane = open_stack(path), open_image(path, page=1)
    labels = stack.axes[: len(stack.axes) - stack.colors_last]
    sliders = len(labels) - 2
    attributes = placed(plane, plane.name) | {"rgb": stack.colors_last, "axis_labels": labels}
    attributes["scale"], attributes["translate"] = (1,) * sliders + plane.scale, (0,) * sliders + plane.translate
    attributes["units"] = ("pixel",) * sliders + attributes["units"]
    return [(FullSizeData(list(stack.levels)), attributes, "image")]


def layers_of(image: Image) -> list[LayerData]:
    """Return the layers of an image, see `read`."""
    from dehazexl.image.image import value_range
    from dehazexl.viewing.overviews import needs_overviews, with_tail

    limits = value_range(image)  # as on the command line, which has no further overviews
    image = with_kept_overviews(image)
    report(image, None)
    builder = build(image) if needs_overviews(image) else None
    image = with_tail(image) if builder is None else image
    source, white = shown(image, builder), 255 if image.levels[0].dtype == "uint8" else 1
    state = LayerState(image, overviews=builder, value_range=limits)
    colors = placed(image, image.name) | {"rgb": True, "contrast_limits": (0, white)}
    layers = [layer_of(source.colors(limits), colors, state)]
    for band in (band for band in range(len(image.bands)) if band not in (*image.rgb, image.alpha)):
        state = LayerState(image, overviews=builder, band=band)
        further = placed(image, f"{image.name} {image.bands[band]}") | {"visible": False}
        further["contrast_limits"] = value_range(replace(image, rgb=(band, band, band)))
        layers.append(layer_of(source.band(band), further, state))
    return layers


def layer_of(levels: list[Any], attributes: dict[str, Any], state: LayerState) -> LayerData:
    """Return the data of a layer of some levels, finest first, with its state."""
    return FullSizeData(levels), attributes | {"metadata": {KEY: replace(state, finest=levels[0].name)}}, "image"


def placed(image: Image, name: str) -> dict[str, Any]:
    """Return the attributes that all layers of an image have in common."""
    return {
        "name": name,
        "multiscale": True,
        "scale": image.scale,
        "translate": image.translate,
        "units": (image.units, image.units),
        "cache": False,
    }
