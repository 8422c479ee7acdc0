"""Pictures out as OME-Zarr: a pyramid of chunked arrays, written block by block."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dehazexl.image.nodata import as_json
from dehazexl.io.pyramid import Levels, Pyramid, Tile

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from dehazexl.image.image import Image
    from dehazexl.io.blocks import Block

Ngff = Literal["0.5", "0.4"]

_COLORS = ("FF0000", "00FF00", "0000FF")
# Those of NGFF's units that pictures come in; NGFF has no angles.
_UNITS = ("nanometer", "micrometer", "millimeter", "centimeter", "meter", "kilometer", "inch", "foot", "yard", "mile")


def write_ome_zarr(blocks: Iterable[Block], path: Path, target: Image, ngff: Ngff) -> Generator[int, None, None]:
    """Write blocks into an OME-Zarr with a pyramid, as they come.

    The arrays are ``(c, y, x)``: NGFF puts channels before space. Each chunk is all channels of 512 x 512
    pixels and is written once and whole, so no two writes ever meet in one chunk.

    Parameters
    ----------
    blocks
        Row, column and pixels ``(y, x, c)`` of blocks that cover the picture once.
    path
        Folder to make; a Zarr that is there is overwritten.
    target
        The picture: shape and dtype are those of its first level.
    ngff
        ``"0.5"`` (Zarr version 3) or ``"0.4"`` (Zarr version 2).

    Yields
    ------
    int
        Pixels of the picture that each block brought.
    """
    import zarr

    height, width, _ = target.levels[0].shape
    levels = Levels(height, width)
    pyramid = Pyramid(levels, target.nodata, target.alpha)
    group = zarr.open_group(path, mode="w", zarr_format=3 if ngff == "0.5" else 2)
    # At once, so that what NGFF refuses is known before anything is computed; the values' window comes last.
    _describe(group, target, levels, ngff, np.zeros((target.levels[0].shape[2], 0, 0), target.levels[0].dtype))
    arrays = [_array(group, target, levels, level) for level in range(len(levels.sizes))]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for y, x, block in blocks:
            for _ in pool.map(partial(_put, arrays, levels.tile), pyramid.paste(y, x, block)):
                pass
            yield block.shape[0] * block.shape[1]
    _describe(group, target, levels, ngff, np.asarray(arrays[-1][:]))


def _array(group: zarr.Group, target: Image, levels: Levels, level: int) -> zarr.Array[Any]:
    """Make the empty array of one level."""
    new = group.metadata.zarr_format == 3
    bands, dtype = target.levels[0].shape[2], target.levels[0].dtype
    blosc: dict[str, Any] = {"cname": "zstd", "clevel": 3}
    codec: dict[str, Any] = {"name": "blosc", "configuration": {**blosc, "shuffle": "bitshuffle"}}
    return group.create_array(
        str(level),
        shape=(bands, *levels.sizes[level]),
        chunks=(bands, levels.tile, levels.tile),
        dtype=dtype.newbyteorder("="),
        compressors=codec if new else {"id": "blosc", **blosc, "shuffle": 2},
        fill_value=dtype.type(target.nodata or 0).item(),
        dimension_names=("c", "y", "x") if new else None,
        chunk_key_encoding={"name": "default" if new else "v2", "separator": "/"},
    )


def _put(arrays: list[zarr.Array[Any]], side: int, tile: Tile) -> None:
    height, width = tile.pixels.shape[:2]
    y, x = tile.row * side, tile.col * side
    arrays[tile.level][:, y : y + height, x : x + width] = np.moveaxis(tile.pixels, 2, 0)


def _describe(group: zarr.Group, target: Image, levels: Levels, ngff: Ngff, coarsest: NDArray[Any]) -> None:
    """Write the attributes: NGFF's, the georeference, and what neither has a place for."""
    from yaozarrs import v04, v05

    version = v05 if ngff == "0.5" else v04
    image = version.Image.model_validate(
        {"multiscales": [_multiscale(target, levels)], "omero": _rendering(target, coarsest)}
    )
    said = image.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    attributes: dict[str, Any] = {"ome": {**said, "version": "0.5"}} if ngff == "0.5" else said
    texts = {name: value for name, value in target.metadata.items() if isinstance(value, str)}
    attributes["dehazexl"] = {"rgb": list(target.rgb), "alpha": target.alpha, "metadata": texts}
    if target.nodata is not None:
        attributes["nodata"] = as_json(target.nodata)
    group.attrs.update(attributes | (target.geo.to_attributes() if target.geo else {}))


def _multiscale(target: Image, levels: Levels) -> dict[str, Any]:
    unit = {"unit": target.units} if target.units in _UNITS else {}
    return {
        "name": target.name,
        "type": "mean",
        "metadata": {
            "description": "mean of 2 x 2 pixels, without missing ones",
            "method": "dehazexl.io.pyramid.halve",
        },
        "axes": [
            {"name": "c", "type": "channel"},
            {"name": "y", "type": "space", **unit},
            {"name": "x", "type": "space", **unit},
        ],
        "datasets": [
            {"path": str(level), "coordinateTransformations": _transformations(target, 2**level)}
            for level in range(len(levels.sizes))
        ],
    }


def _transformations(target: Image, factor: int) -> list[dict[str, Any]]:
    """Place a level: its first pixel's center lies between those of the pixels that it is the mean of."""
    scale = [size * factor for size in target.scale]
    center = [start + size * (factor - 1) / 2 for start, size in zip(target.translate, target.scale, strict=True)]
    return [{"type": "scale", "scale": [1.0, *scale]}, {"type": "translation", "translation": [0.0, *center]}]


def _rendering(target: Image, coarsest: NDArray[Any]) -> dict[str, Any]:
    """Say how viewers show the channels: the picture's R, G, B on, in one window of values, the others off."""
    window = _window(target, coarsest)
    gray = len(set(target.rgb)) == 1
    colors = dict(zip(target.rgb, ("FFFFFF",) * 3 if gray else _COLORS, strict=True))
    channels = [
        {"label": name, "color": colors.get(band, "FFFFFF"), "active": band in colors, "window": window}
        for band, name in enumerate(target.bands)
    ]
    return {"channels": channels, "rdefs": {"model": "greyscale" if gray else "color"}}


def _window(target: Image, coarsest: NDArray[Any]) -> dict[str, float]:
    """Choose the values that viewers show as black and white."""
    colors = coarsest[list(target.rgb)]
    valid = np.isfinite(colors) if target.nodata is None else np.isfinite(colors) & (colors != target.nodata)
    values = colors[valid]
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9))) if values.size else (0.0, 1.0)
    if coarsest.dtype.kind in "iu":
        limits = np.iinfo(coarsest.dtype)
        least, most = float(limits.min), float(limits.max)
    else:
        least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if coarsest.dtype == np.uint8 or low >= high:
        low, high = least, most
    return {"min": least, "max": most, "start": low, "end": high}
