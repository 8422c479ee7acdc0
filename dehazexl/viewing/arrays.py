"""The image in a viewer's own arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import dask.array as da
import numpy as np
from dask.base import tokenize

from dehazexl.io.open import open_image
from dehazexl.io.source import CHUNK, lazy, strided
from dehazexl.viewing.overviews import SMALLEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.image.image import Image

HASHED = 16 * 2**20
"""Bytes of an array in memory that its fingerprint is made of."""


def image_of_arrays(
    arrays: Sequence[Any],
    owner: Any = None,
    *,
    name: str = "image",
    scale: tuple[float, float] = (1, 1),
    translate: tuple[float, float] = (0, 0),
    units: str = "pixel",
) -> Image:
    """Return the image in some arrays, the levels of one image or a single one. Of arrays in memory nothing is copied.

    Parameters
    ----------
    arrays
        ``(y, x)`` or ``(y, x, c)``, finest first: of numpy, of dask, or anything with a shape, a dtype and an index.
        The last of four bands is alpha.
    owner
        The layer that the arrays belong to. Its image has the same fingerprint each time, even if dask cannot tell
        whether an array has changed.
    name, scale, translate, units
        See `dehazexl.Image`.

    Returns
    -------
    Image
        If the coarsest array is in memory, further levels follow, down to a tiny one.
    """
    levels = _wrapped(owner, [*arrays])
    token = next((_hash(level) for level in levels if isinstance(level, np.ndarray)), "")
    if isinstance(levels[-1], np.ndarray):
        levels += _decimated(levels[-1])
    lazy_levels = tuple(_lazy(level, f"layer-{token}-{number}") for number, level in enumerate(levels))
    return replace(
        open_image(lazy_levels[0]), levels=lazy_levels, name=name, alpha=3 if lazy_levels[0].shape[2] == 4 else None,
        scale=scale, translate=translate, units=units,
    )  # fmt: skip


# By owner: its arrays that are neither numpy's nor dask's, by their id, and the same in dask.
_known: WeakKeyDictionary[Any, dict[int, tuple[Any, da.Array]]] = WeakKeyDictionary()


def _wrapped(owner: Any, levels: list[Any]) -> list[Any]:
    """Wrap in dask what is neither dask's nor in memory, each array once.

    Wrapped again, an array that cannot be pickled would get another name, and an image is known by its name.
    """
    known = {} if owner is None else _known.get(owner, {})
    foreign = [level for level in levels if not isinstance(level, (np.ndarray, da.Array))]
    wrapped = {id(level): known.get(id(level)) or (level, da.from_array(level)) for level in foreign}
    if owner is not None:
        _known[owner] = wrapped
    return [wrapped[id(level)][1] if id(level) in wrapped else level for level in levels]


def _decimated(pixels: NDArray[Any]) -> list[NDArray[Any]]:
    """Return every second, fourth... pixel, down to a tiny image: at no cost, where means would block the window."""
    levels, step = [], 2
    while max(pixels.shape[:2]) * 2 > SMALLEST * step:
        steps = [min(step, side) for side in pixels.shape[:2]]
        levels.append(pixels[tuple(slice(each // 2, None, each) for each in steps)])
        step *= 2
    return levels


def _lazy(level: Any, name: str) -> da.Array:
    """Return an array as ``(y, x, c)`` in dask, all of c in one chunk; the name is for those in memory."""
    if isinstance(level, np.ndarray):  # dask would copy it
        return lazy(strided(level, "yxc"[: level.ndim]), (CHUNK, CHUNK), name)
    array: da.Array = level if level.ndim == 3 else level[..., None]
    return array.rechunk({2: -1})


def _hash(pixels: NDArray[Any]) -> str:
    """Hash an array, of a large one some rows: the window waits for it, a second a gigabyte."""
    return str(tokenize(pixels.shape, pixels[:: max(1, pixels.nbytes // HASHED)]))
