"""Reader of Zarr (versions 2 and 3) and OME-Zarr."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehazexl.image.image import Image
from dehazexl.io.bands import OME_COLORS, SENSOR_NAMES, Bands, array_roles, choose_bands
from dehazexl.io.source import (
    Guard,
    as_number,
    axes_by_shape,
    check_pixels,
    lazy,
    report_damage,
    short_name,
)
from dehazexl.io.zarr_find import Found, find_image, with_mapping
from dehazexl.io.zarr_geo import read_geo
from dehazexl.io.zarr_metadata import cf_metadata, unpacked
from dehazexl.io.zarr_source import further_axes, is_unsigned, stacked, zarr_holes, zarr_levels, zarr_token

if TYPE_CHECKING:
    import zarr

METADATA_FILES = ("zarr.json", ".zgroup", ".zarray")

AXES = {
    "y": ("y", "lat", "latitude", "row", "rows", "northing", "height"),
    "x": ("x", "lon", "longitude", "col", "cols", "column", "columns", "easting", "width"),
    "c": ("c", "s", "channel", "channels", "band", "bands", "sample", "samples", "wavelength", "rgb", "variable"),
}
"""Names of the axes y, x and c in Zarr metadata."""


def open_zarr_path(path: Path, page: int | None = None) -> Image:
    """Open a Zarr folder or zip file.

    Raises
    ------
    ValueError
        If it is damaged, does not contain exactly one image, or is not safe to read, see `zarr_store`.
    """
    import zarr

    from dehazexl.io.zarr_store import RefusedError, open_store

    try:
        node = zarr.open(open_store(path), mode="r", path=root_in_zip(path))
    except (MemoryError, RefusedError):
        raise
    except Exception as error:  # zarr trusts its metadata: a nested one is a RecursionError, a list an AttributeError
        raise ValueError(f"{path} is not a readable Zarr ({error}): check its zarr.json or .zarray") from error
    return open_zarr(node, path, page=page)


def root_in_zip(path: Path) -> str:
    """Return the folder of a zip file that is a Zarr: many programs put the folder into the file, not its contents."""
    if not path.is_file():
        return ""
    with zipfile.ZipFile(path) as file:
        roots = [name.rpartition("/")[0] for name in file.namelist() if name.rpartition("/")[2] in METADATA_FILES]
    return min(roots, key=lambda root: (root.count("/") + bool(root), root), default="")


def open_zarr(
    node: zarr.Array[Any] | zarr.Group, path: Path | None = None, where: str = "", page: int | None = None
) -> Image:
    """Describe a zarr array, a group with one image, or an OME-Zarr group.

    `where` is its name for messages; `page` is a plane along axes other than y, x and bands, from 1.
    """
    where = where or str(path or node.store_path)
    # Reading from a remote store can fail for reasons other than damage.
    with nullcontext() if path is None else report_damage(where, "Zarr"):
        return describe_node(node, path, where, page)


def describe_node(node: zarr.Array[Any] | zarr.Group, path: Path | None, where: str, page: int | None = None) -> Image:
    """Describe a Zarr node according to its kind."""
    import zarr

    attrs: dict[str, Any] = dict(node.attrs)
    if isinstance(node, zarr.Array):
        found = Found(parent_of(node), (node,), attrs)
        if found.group is not None:
            found = replace(found, attributes=with_mapping(found.group, node))
        axes = array_axes(node, where, page)
        return describe_zarr([node], axes, found.attributes, path, where, found=found, page=page)
    ome: Any = attrs.get("ome", attrs)
    if isinstance(ome.get("multiscales"), list):
        return open_ngff(node, ome, path, where, page)
    if "bioformats2raw.layout" in ome:
        return open_series(node, path, where, page)
    found = find_image(node, where)
    axes = array_axes(found.arrays[0], where, page)
    image = describe_zarr(found.arrays[:1], axes, found.attributes, path, where, found=found, page=page)
    return replace(image, notes=(*found.notes, *image.notes))


def parent_of(array: zarr.Array[Any]) -> zarr.Group | None:
    """Return the group of an array, which has its coordinates; None for an array alone."""
    import zarr

    try:
        if array.path:
            return zarr.open_group(array.store, path=array.path.rpartition("/")[0], mode="r")
        if isinstance(array.store, zarr.storage.LocalStore):
            kind = array.metadata.zarr_format
            return zarr.open_group(Path(array.store.root).parent, mode="r", zarr_format=kind, use_consolidated=False)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return None


def open_series(root: zarr.Group, path: Path | None, where: str, page: int | None = None) -> Image:
    """Open the first image of several, as bioformats2raw writes them."""
    listed: Any = root["OME"].attrs if "OME" in root else {}
    names = list(listed.get("ome", listed).get("series") or sorted(set(root.group_keys()) - {"OME"}, key=_number))
    if not names:
        raise ValueError(f"{where} is a Zarr of bioformats2raw without an image: write it again")
    group: Any = root[names[0]]
    attrs = dict(group.attrs)
    image = open_ngff(group, attrs.get("ome", attrs), path, where, page)
    if len(names) == 1:
        return image
    note = (
        f"the Zarr has {len(names)} images, of which {names[0]} is opened; another is opened by its path, {where}/NAME"
    )
    return replace(image, notes=(note, *image.notes))


def _number(name: str) -> tuple[int, str]:
    return (int(name) if name.isdecimal() else 0), name


def open_ngff(
    group: zarr.Group, ome: Mapping[str, Any], path: Path | None, where: str, page: int | None = None
) -> Image:
    """Describe an OME-Zarr image of version 0.4 (zarr 2) or 0.5 (zarr 3)."""
    image = ome["multiscales"][0] if ome["multiscales"] else None
    if not image or not image["datasets"]:
        raise ValueError(f"{where} is an OME-Zarr without an image: its multiscales list no level; write it again")
    for dataset in image["datasets"]:
        if ".." in str(dataset["path"]).split("/"):
            raise ValueError(f"{where} lists the level {dataset['path']!r}, which leaves the Zarr: write it again")
        if not str(dataset["path"]).strip("/") or "." in str(dataset["path"]).split("/"):
            raise ValueError(f"{where} lists the level {dataset['path']!r}, which names no array: write it again")
    try:
        arrays: list[Any] = [group[dataset["path"]] for dataset in image["datasets"]]
    except KeyError as error:
        raise ValueError(f"{where} lists a level {error} that it does not contain: write it again") from error
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in image.get("axes", "tczyx"[-arrays[0].ndim :])]
    letters = named_axes(axes, arrays[0].shape, where, page) or axes_by_shape(arrays[0].shape, where)
    attrs, channels = dict(group.attrs) | dict(arrays[0].attrs), ome.get("omero", {}).get("channels", [])
    described = describe_zarr(arrays, letters, attrs, path, where, channels, page=page)
    y, x = letters.index("y"), letters.index("x")
    scale, translate = ngff_transform(image, len(axes), where)
    units = [axis.get("unit", "pixel") for axis in image.get("axes", []) if isinstance(axis, dict)]
    return replace(
        described,
        scale=(scale[y], scale[x]),
        translate=(translate[y], translate[x]),
        units=units[x] if units and units[x] == units[y] else "pixel",
    )


def ngff_transform(image: Mapping[str, Any], ndim: int, where: str) -> tuple[list[float], list[float]]:
    """Return scale and translation of the finest level, combined with those of the whole image, for each axis."""
    scale, translate = [1.0] * ndim, [0.0] * ndim
    for step in (image["datasets"][0], image):
        for transform in step.get("coordinateTransformations", []):
            kind = transform["type"]
            if kind not in ("scale", "translation"):
                continue
            steps = transform[kind]
            if len(steps) != ndim:
                raise ValueError(f"{where} has a {kind} of {len(steps)} numbers for its {ndim} axes: write it again")
            if kind == "scale":
                scale = [a * b for a, b in zip(scale, steps, strict=True)]
                translate = [a * b for a, b in zip(translate, steps, strict=True)]
            else:
                translate = [a + b for a, b in zip(translate, steps, strict=True)]
    return scale, translate


def describe_zarr(
    arrays: Sequence[zarr.Array[Any]],
    axes: str,
    attrs: Mapping[str, Any],
    path: Path | None,
    where: str,
    channels: Sequence[Mapping[str, Any]] = (),
    found: Found | None = None,
    page: int | None = None,
) -> Image:
    """Describe an image from zarr arrays and their attributes.

    Parameters
    ----------
    arrays
        The image and its overviews, finest first.
    axes
        One letter for each axis, see `named_axes`.
    attrs
        Attributes of array and group.
    path
        The Zarr, or None if it is not a local file.
    where
        Name of the Zarr for messages.
    channels
        Channels in OME metadata.
    found
        The group of the image, with its coordinates, and all arrays if there is one for each band.
    page
        Plane along the axes -, from 1; None if there is one.

    Returns
    -------
    Image
        Lazy ``(y, x, c)`` levels.
    """
    finest = arrays[0]
    levels = zarr_levels(arrays, axes, where, page)
    if found is not None and len(found.arrays) > 1:
        levels = [stacked([zarr_levels([array], axes, where, page)[0] for array in found.arrays])]
    count = levels[0][0].shape[2]
    token = zarr_token(finest)
    suffix = f"-{page}" if page else ""
    names = found.names if found is not None else []
    named, roles = zarr_bands(attrs, channels, count, names)
    chosen = choose_bands(named, roles, sensor=sensor_text(attrs, path))
    bands, rgb, alpha = chosen.names, chosen.rgb, chosen.alpha
    saved = attrs.get("dehazexl") or {}
    geo, notes = read_geo(attrs, *((None, None) if found is None else found.coordinates(AXES)))
    meters = geo.meters if geo else None
    one_each = found is not None and len(found.arrays) == count
    by_band = [dict(array.attrs) for array in found.arrays] if found is not None and one_each else [attrs] * count
    if saved:
        rgb, alpha = saved_bands(saved, count, where, rgb)
    return Image(
        levels=tuple(lazy(*level, f"zarr-{token}{suffix}-{number}") for number, level in enumerate(levels)),
        name=short_name(path or Path(finest.name or "")) or "array",
        bands=bands,
        rgb=rgb,
        alpha=alpha,
        nodata=zarr_nodata(finest, attrs),
        geo=geo,
        scale=meters or (1.0, 1.0),
        units="meter" if meters else "pixel",
        path=path,
        fingerprint=token + suffix,
        guard=None if path is None else Guard(path, token, partial(zarr_token, finest)),
        metadata=unpacked(saved["metadata"])
        if "metadata" in saved
        else unstated(chosen, count) | ({"descriptions": named} if any(named) else {}) | cf_metadata(attrs, by_band),
        masked=bool(saved.get("masked")),
        guessed=chosen.guessed and "rgb" not in saved,
        basis="the colors that the file states" if "rgb" in saved else chosen.basis,
        notes=(*notes, *(() if "rgb" in saved else chosen.notes)),
        zero=zarr_zero(finest, attrs),
        bits=saved.get("bits"),
        holes=zarr_holes(finest, axes, f"zarr-{token}{suffix}-0"),
    )


def saved_bands(
    saved: Mapping[str, Any], count: int, where: str, found: tuple[int, int, int]
) -> tuple[tuple[int, int, int], int | None]:
    """Read the indices of red, green and blue, and of alpha, from the attribute that `zarr_write` writes.

    Raises
    ------
    ValueError
        If they are not bands of the image.
    """
    # Colors that were guessed are not written.
    rgb, alpha = saved.get("rgb", found), saved["alpha"]
    known = all(type(band) is int and 0 <= band < count for band in [*rgb, 0 if alpha is None else alpha])
    if len(rgb) != 3 or not known:
        raise ValueError(f"{where} has an attribute dehazexl with bands that do not exist: remove the attribute")
    return (rgb[0], rgb[1], rgb[2]), alpha


def unstated(chosen: Bands, count: int) -> dict[str, Any]:
    """Return the metadata of bands whose colors the file does not state, so that no output states them."""
    return {"colorinterp": ["gray", *["undefined"] * (count - 1)]} if chosen.guessed or chosen.coded else {}


def zarr_zero(array: zarr.Array[Any], attrs: Mapping[str, Any]) -> float:
    """Return the value at which the quantity of CF's scale_factor and add_offset is 0."""
    scale, offset = (as_number(attrs.get(name)) for name in ("scale_factor", "add_offset"))
    return 0.0 - offset / (scale or 1.0) if offset else 0.0


def array_axes(array: zarr.Array[Any], where: str, page: int | None = None) -> str:
    """Return one letter for each axis by its dimension name (zarr 3, xarray), else by the shape."""
    check_pixels(array.shape, array.dtype, where)
    names: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    axes = named_axes(names, array.shape, where, page) if names and len(names) == array.ndim else ""
    return axes or axes_by_shape(array.shape, where)


def named_axes(names: Sequence[str | None], shape: Sequence[int], where: str, page: int | None = None) -> str:
    """Convert axis names to letters: y, x, c, or - for further ones; an empty string if y or x is missing.

    Raises
    ------
    ValueError
        If there are several planes along further axes, and no page of them is chosen.
    """
    known = {name: letter for letter, names in AXES.items() for name in names}
    letters = [known.get((name or "").lower(), "-") for name in names]
    if not {"y", "x"} <= set(letters):
        return ""
    spare = any(letter == "-" and length > 1 for letter, length in zip(letters, shape, strict=True))
    if (spare and page is None) or any(letters.count(letter) > 1 for letter in "yxc"):
        named = ", ".join(f"{name} ({length})" for name, length in zip(names, shape, strict=True))
        count = math.prod(further_axes(shape, "".join(letters)))
        remedy = f"choose one of {count} planes with --page N" if spare else "pass one plane of it as an array"
        raise ValueError(f"{where} has the axes {named}: {remedy}")
    return "".join(letters)


def zarr_bands(
    attrs: Mapping[str, Any], channels: Sequence[Mapping[str, Any]], count: int, labels: Sequence[str | None] = ()
) -> tuple[list[str | None], list[str | None]]:
    """Read names and roles of the bands from the channels of OME, the labels of an axis, or rioxarray's long names."""
    unknown: list[str | None] = list(array_roles(count)) if count == 2 else ["undefined"] * count
    if len(channels) == count:
        roles = [OME_COLORS.get(str(channel.get("color", "")).upper(), "undefined") for channel in channels]
        return [channel.get("label") or None for channel in channels], list(roles)
    long_names = attrs.get("long_name")
    if isinstance(long_names, (list, tuple)) and len(long_names) == count:
        return [str(name) for name in long_names], unknown
    return list(labels) if len(labels) == count else [None] * count, unknown


def sensor_text(attrs: Mapping[str, Any], path: Path | None) -> str:
    """Return the attributes that may name a satellite, and the name of the Zarr."""
    said = (text for name, text in attrs.items() if any(word in name.upper() for word in SENSOR_NAMES))
    return " ".join((*(text for text in said if isinstance(text, str)), path.name if path else ""))


def zarr_nodata(array: zarr.Array[Any], attrs: Mapping[str, Any]) -> float | None:
    """Read the nodata value, which xarray and GDAL store as the fill value in zarr 2."""
    beyond = 2 ** (8 * array.dtype.itemsize) if is_unsigned(array) else 0
    for name in ("_FillValue", "nodata", "missing_value"):
        if (value := as_number(attrs.get(name))) is not None:
            return value + beyond if value < 0 else value
    return as_number(array.fill_value) if array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in attrs else None
