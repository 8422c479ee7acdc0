"""Write images as OME-Zarr: the finest level block by block, then the overviews."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from dehazexl.image.nodata import as_json
from dehazexl.io.level0 import Fill, Level0, put
from dehazexl.io.pyramid import Levels, Tile, halve
from dehazexl.io.zarr_metadata import further, packed
from dehazexl.io.zarr_place import write_place

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    import zarr
    from numpy.typing import NDArray

    from dehazexl.image.image import Image

Ngff = Literal["0.5", "0.4"]

_COLORS = ("FF0000", "00FF00", "0000FF")
# Units of NGFF that images have; NGFF has no angles.
_UNITS = ("nanometer", "micrometer", "millimeter", "centimeter", "meter", "kilometer", "inch", "foot", "yard", "mile")


def write_ome_zarr(
    path: Path, target: Image, ngff: Ngff, at_once: int, marks: Path, fill: Fill | None = None
) -> Generator[int, None, None]:
    """Write an image as OME-Zarr: its finest level block by block, then the overviews from it.

    The arrays are ``(c, y, x)``: NGFF puts channels before space. Each chunk is all channels of 512 x 512 pixels. The
    finest level, ``0``, is beside its coordinates ``x`` and ``y`` and the grid mapping ``spatial_ref`` of CF, with
    which xarray, rioxarray and GDAL open it in its place; the overviews, whose axes have other lengths, are in groups.

    Parameters
    ----------
    path
        Path of the group; an unfinished one is continued.
    target
        The image; the blocks of its first level are computed.
    ngff
        ``"0.5"`` (Zarr version 3) or ``"0.4"`` (Zarr version 2).
    at_once
        Number of blocks computed at the same time.
    marks
        Path of the marks of finished tiles, see `Level0`.
    fill
        Writes the finest level; None computes the blocks here.

    Yields
    ------
    int
        Number of pixels of each block; 0 while the overviews are computed.
    """
    height, width, _ = target.levels[0].shape
    levels = Levels(height, width)
    group = _open_group(path, marks, 3 if ngff == "0.5" else 2)
    # Validated before anything is computed; the window of values follows at the end.
    _describe(group, target, levels, ngff, np.zeros((target.levels[0].shape[2], 0, 0), target.levels[0].dtype))
    arrays = [_array(group, target, levels, level) for level in range(len(levels.sizes))]
    write_place(group, arrays[0], target)
    level0 = Level0(arrays[0], marks, levels)
    yield from fill(level0) if fill else level0.fill(target.levels[0], at_once)
    averaged = partial(halve, nodata=target.nodata, alpha=target.alpha)
    for level, (below, above) in enumerate(pairwise(arrays), 1):
        yield from _overview(below, above, levels.tile, averaged, marks / f"level{level}")
    _describe(group, target, levels, ngff, np.asarray(arrays[-1][:]))


def write_level0(
    path: Path, target: Image, at_once: int, marks: Path, fill: Fill | None = None
) -> Generator[int, None, Level0]:
    """Write the finest level of an image only; parameters and yields as in `write_ome_zarr`."""
    height, width, _ = target.levels[0].shape
    levels = Levels(height, width)
    group = _open_group(path, marks, 3)
    level0 = Level0(_array(group, target, levels, 0), marks, levels)
    yield from fill(level0) if fill else level0.fill(target.levels[0], at_once)
    return level0


def _open_group(path: Path, marks: Path, zarr_format: Literal[2, 3]) -> zarr.Group:
    """Open an unfinished group, or create it; marks without their tiles are removed."""
    import zarr

    if marks.exists() and not (path / "0").exists():
        shutil.rmtree(marks)
    return zarr.open_group(path, mode="a" if marks.exists() else "w", zarr_format=zarr_format)


def _overview(
    below: zarr.Array[Any],
    above: zarr.Array[Any],
    side: int,
    halve: Callable[[NDArray[Any]], NDArray[Any]],
    marks: Path,
) -> Iterator[int]:
    """Compute an overview from the next finer level, a row of tiles at a time; yield 0 after each.

    A file in the folder `marks` marks each row whose tiles are on the disk: it is not computed again.
    """
    _, height, width = above.shape
    marks.mkdir(exist_ok=True)

    def compute(col: int, row: int) -> None:
        y, x = 2 * side * row, 2 * side * col
        source = np.moveaxis(np.asarray(below[:, y : y + 2 * side, x : x + 2 * side]), 0, 2)
        put(above, side, Tile(0, row, col, halve(source)))

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for row in range(-(-height // side)):
            mark = marks / str(row)
            if not mark.exists():
                list(pool.map(partial(compute, row=row), range(-(-width // side))))
                mark.touch()
            yield 0


def _array(group: zarr.Group, target: Image, levels: Levels, level: int) -> zarr.Array[Any]:
    """Create the array of a level, or open an existing one."""
    name = level_path(level)
    if name in group:
        return cast("zarr.Array[Any]", group[name])
    new = group.metadata.zarr_format == 3
    bands, dtype = target.levels[0].shape[2], target.levels[0].dtype
    blosc: dict[str, Any] = {"cname": "zstd", "clevel": 3}
    codec: dict[str, Any] = {"name": "blosc", "configuration": {**blosc, "shuffle": "bitshuffle"}}
    return group.create_array(
        name,
        shape=(bands, *levels.sizes[level]),
        chunks=(bands, levels.tile, levels.tile),
        dtype=dtype.newbyteorder("="),
        compressors=codec if new else {"id": "blosc", **blosc, "shuffle": 2},
        fill_value=dtype.type(target.nodata or 0).item(),
        dimension_names=("c", "y", "x") if new else None,
        chunk_key_encoding={"name": "default" if new else "v2", "separator": "/"},
    )


def _describe(group: zarr.Group, target: Image, levels: Levels, ngff: Ngff, coarsest: NDArray[Any]) -> None:
    """Write the attributes: those of NGFF, the georeference, and further metadata."""
    from yaozarrs import v04, v05

    version = v05 if ngff == "0.5" else v04
    image = version.Image.model_validate(
        {"multiscales": [_multiscale(target, levels)], "omero": _rendering(target, coarsest)}
    )
    said = image.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    attributes: dict[str, Any] = {"ome": {**said, "version": "0.5"}} if ngff == "0.5" else said
    own = {"alpha": target.alpha, "metadata": packed(target.metadata), "masked": target.masked, "bits": target.bits}
    attributes["dehazexl"] = own if target.guessed else {"rgb": list(target.rgb), **own}
    if target.nodata is not None:
        attributes["nodata"] = as_json(target.nodata)
    kept = further(target.metadata.get("attributes") or {})
    group.attrs.update(kept | attributes | (target.geo.to_attributes() if target.geo else {}))


def level_path(level: int) -> str:
    """Return the path of the array of a level in its group."""
    return f"overviews/{level}/{level}" if level else "0"


def _multiscale(target: Image, levels: Levels) -> dict[str, Any]:
    unit = {"unit": target.units} if target.units in _UNITS else {}
    return {
        "name": os.fsencode(target.name).decode("utf-8", "replace"),  # names of files need not be text
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
            {"path": level_path(level), "coordinateTransformations": _transformations(target, 2**level)}
            for level in range(len(levels.sizes))
        ],
    }


def _transformations(target: Image, factor: int) -> list[dict[str, Any]]:
    """Return the transformations of a level, whose pixel centers lie between those of the averaged pixels."""
    scale = [size * factor for size in target.scale]
    center = [start + size * (factor - 1) / 2 for start, size in zip(target.translate, target.scale, strict=True)]
    return [{"type": "scale", "scale": [1.0, *scale]}, {"type": "translation", "translation": [0.0, *center]}]


def _rendering(target: Image, coarsest: NDArray[Any]) -> dict[str, Any]:
    """Return the rendering of the channels: R, G and B on, with one window of values, the others off."""
    window = _window(target, coarsest)
    gray = len(set(target.rgb)) == 1
    # Colors that were guessed would be taken for a fact by the next program.
    colors = dict(zip(target.rgb, ("FFFFFF",) * 3 if gray or target.guessed else _COLORS, strict=True))
    channels = [
        {"label": name, "color": colors.get(band, "FFFFFF"), "active": band in colors, "window": window}
        for band, name in enumerate(target.bands)
    ]
    return {"channels": channels, "rdefs": {"model": "greyscale" if gray else "color"}}


def _window(target: Image, coarsest: NDArray[Any]) -> dict[str, float]:
    """Return the values that viewers show as black and white."""
    colors = coarsest[list(target.rgb)]
    valid = np.isfinite(colors) if target.nodata is None else np.isfinite(colors) & (colors != target.nodata)
    values = colors[valid]
    low, high = (float(v) for v in np.percentile(values, (0.1, 99.9))) if values.size else (0.0, 1.0)
    if coarsest.dtype.kind in "iu":
        info = np.iinfo(coarsest.dtype)
        least, most = float(info.min), float(info.max)
    else:
        least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if coarsest.dtype == np.uint8 or low >= high:
        low, high = least, most
    return {"min": least, "max": most, "start": low, "end": high}
