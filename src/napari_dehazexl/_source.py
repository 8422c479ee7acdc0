"""The picture in a layer, whoever made the layer."""

from __future__ import annotations

import atexit
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from dehazexl.viewing.overviews import SMALLEST
from napari_dehazexl._reader import renewed, show_growth
from napari_dehazexl._state import shows_as_read, state_of, update_state

if TYPE_CHECKING:
    import dask.array as da
    import napari.layers
    from numpy.typing import NDArray

    from dehazexl.image.image import Image
    from dehazexl.viewing.overviews import OverviewBuilder

HASHED = 16 * 2**20  # bytes of an array in memory by which it is known again


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
        image = _picture_of(layer)
        limits = _limits_of(layer, image)
    else:
        limits = _limits_of(layer, image)
        image = renewed(image)
    growing = _growing(layer, image)
    if growing is not None and growing.running:
        raise ValueError(
            f"the overviews of {layer.name!r} are being made, {growing.share:.0%} are there: dehaze it when they are"
        )
    return with_tail(image if growing is None else growing.image), limits


def _growing(layer: napari.layers.Image, image: Image) -> OverviewBuilder | None:
    """Return the layer's picture while, or after, its overviews are made; begin to make them if it needs some."""
    from dehazexl.viewing.overviews import OverviewBuilder, needs_overviews

    growing = state_of(layer).overviews
    if growing is not None and growing.image.fingerprint == image.fingerprint:
        return growing
    if not needs_overviews(image):
        return None
    growing = OverviewBuilder(image, _scratch())
    update_state(layer, overviews=growing)
    show_growth(growing)  # it ends with the layer
    return growing


@cache
def _scratch() -> Path:
    """Make a folder that lives as long as this process, for overviews of pictures that no file holds."""
    folder = TemporaryDirectory(prefix="napari-dehazexl-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _picture_of(layer: napari.layers.Image) -> Image:
    """Describe the picture in a layer that this plugin has not read. Of arrays in memory nothing is copied."""
    from dehazexl import open_image

    data = [*layer.data] if layer.multiscale else [layer.data]
    data = _in_dask(layer, data)
    token = next((_hash(level) for level in data if isinstance(level, np.ndarray)), "")
    if isinstance(data[-1], np.ndarray):
        data += _strided(data[-1])
    levels = tuple(_lazy(level, f"layer-{token}-{number}") for number, level in enumerate(data))
    return replace(
        open_image(levels[0]), levels=levels, name=layer.name, alpha=3 if levels[0].shape[2] == 4 else None,
        scale=tuple(layer.scale), translate=tuple(layer.translate), units=str(layer.units[0]),
    )  # fmt: skip


# A layer's arrays that are neither numpy's nor dask's, by their id, and the same in dask.
_wrapped: WeakKeyDictionary[napari.layers.Image, dict[int, tuple[Any, da.Array]]] = WeakKeyDictionary()


def _in_dask(layer: napari.layers.Image, levels: list[Any]) -> list[Any]:
    """Wrap a layer's arrays in dask, each once, but for those in memory.

    Wrapped again, an array that cannot be pickled would get another name, and a picture is known by its name.
    """
    import dask.array as da

    foreign = [level for level in levels if not isinstance(level, (np.ndarray, da.Array))]
    known = _wrapped.get(layer, {})
    _wrapped[layer] = {id(level): known.get(id(level)) or (level, da.from_array(level)) for level in foreign}
    return [_wrapped[layer][id(level)][1] if id(level) in _wrapped[layer] else level for level in levels]


def _strided(pixels: NDArray[Any]) -> list[NDArray[Any]]:
    """Return every second, fourth... pixel, down to a tiny picture: at no cost, where means would stop the window."""
    levels, step = [], 2
    while max(pixels.shape[:2]) * 2 > SMALLEST * step:
        steps = [min(step, side) for side in pixels.shape[:2]]
        levels.append(pixels[tuple(slice(each // 2, None, each) for each in steps)])
        step *= 2
    return levels


def _lazy(level: Any, name: str) -> da.Array:
    """Wrap an array ``(y, x, c)`` in dask, all of c in one chunk; the name is for those in memory."""
    from dehazexl.io.source import CHUNK, lazy, strided

    if isinstance(level, np.ndarray):  # dask would copy it
        return lazy(strided(level, "yxc"), (CHUNK, CHUNK), name)
    rechunked: da.Array = level.rechunk({2: -1})
    return rechunked


def _hash(pixels: NDArray[Any]) -> str:
    """Hash an array's pixels, of a large one some rows: the window waits for it, a second a gigabyte."""
    from dask.base import tokenize

    return str(tokenize(pixels.shape, pixels[:: max(1, pixels.nbytes // HASHED)]))


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
