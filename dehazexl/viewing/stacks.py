"""Images with further axes, such as time, depth and channel: lazy arrays for a viewer's sliders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Stack:
    """An image with further axes.

    Attributes
    ----------
    levels
        Lazy arrays with the same axes, finest first.
    axes
        Name of each axis, in lower case; y and x are the last two, or the last two before colors.
    colors_last
        Whether the last axis is one of three or four colors.
    """

    levels: tuple[da.Array, ...]
    axes: tuple[str, ...]
    colors_last: bool


def open_stack(path: Path) -> Stack:
    """Open a TIFF or an OME-Zarr with further axes without reading its pixels.

    Raises
    ------
    OSError, ValueError
        If the file is neither, or its last axes are not y and x.
    """
    levels, axes = _tiff(path) if path.is_file() else _zarr(path)
    colors = len(axes) > 2 and axes[-1] in ("s", "c") and levels[0].shape[-1] in (3, 4)
    if axes[len(axes) - 2 - colors : len(axes) - colors] != ("y", "x"):
        raise ValueError(f"{path} has the axes {', '.join(axes)}: save one with y and x last")
    return Stack(tuple(levels), axes, colors)


class Pages:
    """A level of a TIFF, read page by page; the file is open only meanwhile.

    Parameters
    ----------
    path, level
        The file, and the number of the level.
    shape, dtype
        Shape of the level, whose last axes are those of a page.
    page
        Shape of a page.
    """

    def __init__(self, path: Path, level: int, shape: tuple[int, ...], dtype: Any, page: tuple[int, ...]) -> None:
        self.path, self.level, self.shape, self.dtype, self.page = path, level, shape, np.dtype(dtype), page
        self.ndim = len(shape)
        self.leading = shape[: len(shape) - len(page)]

    def __getitem__(self, index: tuple[slice | int, ...]) -> NDArray[Any]:
        """Return the elements at slices and integers, one for each axis."""
        import tifffile

        count = len(self.leading)
        which = [np.arange(size)[part] for size, part in zip(self.leading, index[:count], strict=True)]
        pages = [int(np.ravel_multi_index(place, self.leading)) for place in product(*map(np.atleast_1d, which))]
        read = [tifffile.imread(self.path, series=0, level=self.level, key=page)[index[count:]] for page in pages]
        return np.stack(read).reshape(*(size for steps in which for size in steps.shape), *read[0].shape)


def _tiff(path: Path) -> tuple[list[da.Array], tuple[str, ...]]:
    """Return the levels of the first series of a TIFF, and its axes."""
    import dask.array as da
    import tifffile

    levels = []
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        for number, level in enumerate(series.levels):
            page = level.keyframe.shape
            leading = level.shape[: len(level.shape) - len(page)]
            if level.shape[len(leading) :] != page or math.prod(leading) != len(level.pages):
                raise ValueError(f"{path} has planes in other places than its pages: save it as OME-TIFF")
            array: Any = Pages(path, number, level.shape, level.dtype, page)
            levels.append(
                da.from_array(
                    array, chunks=(*(1 for _ in leading), *page), name=False, meta=np.empty((0,), level.dtype)
                )
            )
        return levels, tuple(axis.lower() for axis in series.axes)


def _zarr(path: Path) -> tuple[list[da.Array], tuple[str, ...]]:
    """Return the levels of an OME-Zarr, and their axes."""
    import dask.array as da
    import zarr

    group = zarr.open_group(path, mode="r")
    attributes: Any = group.attrs.get("ome", group.attrs)
    scales = attributes.get("multiscales")
    if not isinstance(scales, list) or not scales:
        raise ValueError(f"{path} is no OME-Zarr: pass one plane of it")
    axes = tuple(str(axis["name"]).lower() for axis in scales[0]["axes"])
    return [da.from_zarr(group[dataset["path"]]) for dataset in scales[0]["datasets"]], axes
