"""The image in a Zarr group: one array, one array for each band, or the finest of several groups."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.io.bands import choose_bands

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

DEPTH = 6
"""Groups below each other that are searched."""
MOST = 1000
"""Groups that are searched."""
TEXTS = frozenset({"vlen-utf8"})
"""Codecs of texts."""
SEVERAL = "is a Zarr group with several members: open one of them by its path"


@dataclass(frozen=True)
class Found:
    """An image in a group.

    Attributes
    ----------
    group
        The group, or None for an array alone.
    arrays
        One array with all bands, or one array for each band.
    attributes
        Attributes of group and array, those of the grid mapping as ``spatial_ref``.
    notes
        A line for each choice that was made.
    """

    group: zarr.Group | None
    arrays: tuple[zarr.Array[Any], ...]
    attributes: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str | None]:
        """Names of the bands, of one array each; or of the coordinate of its axis of bands; None where unknown."""
        if len(self.arrays) > 1:
            return [str(array.attrs.get("long_name") or array.basename) for array in self.arrays]
        labels = _long_names(self.attributes)
        if not labels and self.group is not None:
            axes = [name for name in dimension_names(self.arrays[0]) if name in ("band", "variable", "channel", "c")]
            labels = _labels(self.group, axes[0]) if axes else []
        return list(labels)

    def coordinates(self, letters: Mapping[str, Sequence[str]]) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
        """Return the coordinates x and y of the pixel centers, or None."""
        names = {
            letter: next((d for d in dimension_names(self.arrays[0]) if d.lower() in letters[letter]), "")
            for letter in "xy"
        }
        lengths = dict(zip(dimension_names(self.arrays[0]), self.arrays[0].shape, strict=False))
        found = [_numbers(self.group, names[letter], lengths.get(names[letter], 0)) for letter in "xy"]
        return found[0], found[1]


def dimension_names(array: zarr.Array[Any]) -> list[str]:
    """Return the names of the axes of an array; empty if it has none."""
    names: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    return [str(name or "") for name in names] if len(names) == array.ndim else []


def _member(group: zarr.Group | None, name: str) -> zarr.Array[Any] | None:
    """Return a one-dimensional array of a group by its name, if only known codecs decode it."""
    import zarr

    from dehazexl.io.zarr_store import CODECS, codec_names

    if group is None or not name or name not in group:
        return None
    array = group[name]
    if not isinstance(array, zarr.Array) or array.ndim != 1:
        return None
    return array if set(codec_names(array.metadata)) <= CODECS | TEXTS else None


def _numbers(group: zarr.Group | None, name: str, length: int) -> NDArray[Any] | None:
    """Return the values of a coordinate; None if it has another length."""
    array = _member(group, name)
    if array is None or array.shape != (length,) or array.dtype.kind not in "iuf":
        return None
    return np.asarray(array[:])


def _labels(group: zarr.Group, name: str) -> list[str]:
    """Return the values of a coordinate of texts; numbers are no names."""
    array = _member(group, name)
    # Texts of version 2 may be stored as objects, whose codec can run code.
    if array is None or array.dtype.kind in "iufcbMm" or (array.metadata.zarr_format == 2 and array.dtype.kind == "O"):
        return []
    return [str(value) for value in np.asarray(array[:])]


def _long_names(attributes: Mapping[str, Any]) -> list[str]:
    """Return the names that rioxarray writes."""
    names = attributes.get("long_name")
    return [str(name) for name in names] if isinstance(names, (list, tuple)) else []


def find_image(group: zarr.Group, where: str) -> Found:
    """Find the image in a group without OME metadata.

    Raises
    ------
    ValueError
        If there is none, or several between which nothing decides.
    """
    here = _in_group(group, where)
    if here is not None:
        return here
    candidates = [found for child in _below(group) if (found := _in_group(child, where, strict=False)) is not None]
    if not candidates:
        inside = ", ".join(sorted(set(group.group_keys()))[:8])
        raise ValueError(
            f"{where} is a Zarr group without an image: it has no array and no multiscales {inside}".rstrip()
        )
    colored = [found for found in candidates if _has_colors(found)]
    pool = colored or candidates
    best = max(pool, key=lambda found: found.arrays[0].shape[-1] * found.arrays[0].shape[-2])
    if len(pool) > 1 and not colored:
        inside = ", ".join(str(found.group.path) for found in pool[:8] if found.group is not None)
        raise ValueError(f"{where} {SEVERAL}, {where}/NAME with {inside}")
    assert best.group is not None
    note = f"the group {best.group.path} is opened; another is opened by its path" if len(candidates) > 1 else ""
    return Found(best.group, best.arrays, best.attributes, (note,) if note else ())


def _below(group: zarr.Group) -> Iterator[zarr.Group]:
    """Yield the groups below a group, breadth first."""
    level, seen = [group], 0
    for _ in range(DEPTH):
        level = [child for parent in level for _, child in sorted(parent.groups())]
        for child in level:
            seen += 1
            if seen > MOST:
                return
            yield child


def _in_group(group: zarr.Group, where: str, strict: bool = True) -> Found | None:
    """Return the image of the arrays of a group itself; None if it has no arrays of two or more axes.

    Raises
    ------
    ValueError
        If there are several with three or more axes, and `strict`.
    """
    arrays = {
        name: array
        for name, array in sorted(group.arrays(), key=_natural)
        if array.ndim >= 2 and array.dtype.kind in "iufbc"
    }
    if not arrays:
        return None
    stacks = [name for name, array in arrays.items() if sum(length > 1 for length in array.shape) > 2]
    names = list(arrays)
    if len(arrays) > 1 and len(stacks) != 1:
        names = _alike(arrays) if not stacks else []
        if not names:
            if not strict:
                return None
            inside = ", ".join(sorted(arrays)[:8])
            raise ValueError(f"{where} {SEVERAL}, {where}/NAME with {inside}")
    elif stacks:
        names = stacks
    chosen = tuple(arrays[name] for name in names)
    left = sorted(set(arrays) - set(names))
    note = (f"{', '.join(left[:8])} of the Zarr is not opened",) if left else ()
    return Found(group, chosen, with_mapping(group, chosen[0]), note)


def _natural(item: tuple[str, Any]) -> list[Any]:
    """Sort B2 before B10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", item[0])]


def _alike(arrays: Mapping[str, zarr.Array[Any]]) -> list[str]:
    """Return the names of the largest arrays of the same shape and dtype; of colors, if there are some."""
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for name, array in arrays.items():
        kinds.setdefault((array.shape, str(array.dtype)), []).append(name)
    many = [names for names in kinds.values() if len(names) > 1]
    colored = [names for names in many if _colors_of(names)]
    return max(colored or many, key=lambda names: (arrays[names[0]].size, len(names)), default=[])


def _colors_of(names: Sequence[str | None]) -> bool:
    """Return whether names of bands tell which are red, green and blue."""
    return len(names) >= 3 and not choose_bands(names, ["undefined"] * len(names)).guessed


def _has_colors(found: Found) -> bool:
    return _colors_of(found.names)


def with_mapping(group: zarr.Group, array: zarr.Array[Any]) -> dict[str, Any]:
    """Return the attributes of a group and an array, and those of the grid mapping that the array names."""
    attributes = {**group.attrs, **array.attrs}
    mapping = str(attributes.get("grid_mapping", "spatial_ref"))
    if mapping in group:
        attributes["spatial_ref"] = dict(group[mapping].attrs)
    return attributes
