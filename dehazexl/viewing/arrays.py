"""The image in a viewer's own arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
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

CHANNELS = ("c", "channel", "channels", "band", "bands")
"""Names of an axis of colors."""

HASHED = 16 * 2**20
"""Bytes of an array in memory that its fingerprint is made of."""


@dataclass(frozen=True)
class Plane:
    """A plane of arrays with further axes, such as time or depth, before ``y, x`` or ``y, x, c``.

    Attributes
    ----------
    steps
        Index along each axis before ``y, x``, in order; None at the axis of the colors.
    """

    steps: tuple[int | None, ...] = ()

    def of(self, array: Any) -> Any:
        """Return the plane ``(y, x)`` or ``(y, x, c)`` of an array of numpy or dask; colors become the last axis."""
        index = tuple(slice(None) if step is None else step for step in self.steps)
        plane = array[index] if index else array
        return plane if None not in self.steps else np.moveaxis(plane, 0, -1)

    def __str__(self) -> str:
        return ", ".join(str(step) for step in self.steps if step is not None)

    def page(self, shape: Sequence[int]) -> int | None:
        """Return the number of the plane, see `dehazexl.open_image`; None if there are no further axes."""
        number = None
        for step, length in zip(self.steps, shape, strict=False):
            if step is not None:
                number = (number or 0) * length + step
        return None if number is None else number + 1

    def name(self, shape: Sequence[int], labels: Sequence[str]) -> str:
        """Return a name for files, such as ``t03 z1``, whose alphabetic order is that of the planes.

        Axes whose label is no word have their number alone; ``plane 03`` if there is no other axis.
        """
        axes = [(label, step, length) for label, step, length in zip(labels, self.steps, shape, strict=False)]
        places = [
            f"{label if label.isalpha() else ''}{step:0{len(str(length - 1))}}"
            for label, step, length in axes
            if step is not None
        ]
        return " ".join(places if any(place[0].isalpha() for place in places) else ["plane", *places])


def choose_plane(shape: Sequence[int], labels: Sequence[str], steps: Sequence[int], colors_last: bool) -> Plane:
    """Return the plane of an array at the steps of a viewer.

    Parameters
    ----------
    shape, labels
        Lengths and names of the axes without that of `colors_last`; the last two are y and x.
    steps
        Index along each axis.
    colors_last
        Whether the last axis of the array is one of colors that a viewer shows as such.

    Returns
    -------
    Plane
        Colors are the axis that is named so ("c", "channel", "band"), if it has at least three entries; else three or
        four entries before ``y, x``, unless the axis is named "t" or "z".
    """
    leading = [*range(len(shape) - 2)]
    named = [axis for axis in leading if labels[axis].lower() in CHANNELS and shape[axis] >= 3]
    guessed = [axis for axis in leading[-1:] if shape[axis] in (3, 4) and labels[axis].lower() not in ("t", "z")]
    colors = None if colors_last else next(iter([*named, *guessed]), None)
    return Plane(tuple(None if axis == colors else max(0, min(steps[axis], shape[axis] - 1)) for axis in leading))


def all_planes(shape: Sequence[int], labels: Sequence[str], colors_last: bool) -> list[Plane]:
    """List the planes of an array, see `choose_plane`; one for an array without further axes."""
    first = choose_plane(shape, labels, [0] * len(shape), colors_last)
    steps = [[None] if step is None else range(length) for step, length in zip(first.steps, shape, strict=False)]
    return [Plane(place) for place in product(*steps)]


def image_of_arrays(
    arrays: Sequence[Any],
    owner: Any = None,
    *,
    plane: Plane = Plane(),
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
        The last of four bands is alpha, unless their axis is a plane's.
    plane
        The plane of arrays with further axes.
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
    levels = [plane.of(level) for level in _wrapped(owner, [*arrays])]
    token = next((_hash(level) for level in levels if isinstance(level, np.ndarray)), "")
    if isinstance(levels[-1], np.ndarray):
        levels += _decimated(levels[-1])
    lazy_levels = tuple(_lazy(level, f"layer-{token}-{number}") for number, level in enumerate(levels))
    has_alpha = lazy_levels[0].shape[2] == 4 and None not in plane.steps
    return replace(
        open_image(lazy_levels[0]), levels=lazy_levels, name=name, alpha=3 if has_alpha else None, scale=scale,
        translate=translate, units=units,
    )  # fmt: skip


def described_by(image: Image, path: Path, page: int | None = None) -> Image:
    """Return the image in some arrays with the bands and the georeference of the file that they were read from.

    Parameters
    ----------
    image
        The image, see `image_of_arrays`.
    path, page
        The file, and the plane of a stack. If it cannot be opened, or has pixels of another shape or dtype, `image` is
        returned.
    """
    try:
        file = open_image(path, page=page)
    except (OSError, ValueError):
        return image
    finest, read = image.levels[0], file.levels[0]
    if (finest.shape, finest.dtype) != (read.shape, read.dtype):
        return image
    placed: dict[str, Any] = (
        {} if image.scale == (1, 1) else {"scale": image.scale, "translate": image.translate, "units": image.units}
    )
    return replace(
        file, levels=image.levels, name=image.name, fingerprint=image.fingerprint, guard=None, holes=None, **placed
    )


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
