"""Reader: TIFF and Zarr of any size become a lazy, multiscale RGB layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dask.array as da

    from dehazexl.image import Image

    LayerData = tuple[list[da.Array], dict[str, Any], str]

SUFFIXES = (".tif", ".tiff", ".zarr")

SMALLEST = 64
"""Pixels of the last, tiny level, which napari computes in full when the layer is added."""


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return `read` if the path looks like a picture that it opens, else None. Never raises."""
    paths = [path] if isinstance(path, str) else list(path)
    fits = bool(paths) and all(str(p).rstrip("/\\").lower().endswith(SUFFIXES) for p in paths)
    return read if fits else None


def read(path: str | Sequence[str]) -> list[LayerData]:
    """Open pictures as lazy napari layers.

    Nothing is read here. When the layer is added napari computes its coarsest level: from the file's coarsest overview,
    or from the whole picture where it has none.

    Parameters
    ----------
    path
        A path, or several.

    Returns
    -------
    list of tuple
        For each picture, its colours as a multiscale ``rgb`` layer; and a second, hidden layer with its further
        bands, if there are any. `metadata` holds the `dehazexl.Image` under ``"dehazexl"``.

    Raises
    ------
    FileNotFoundError, ValueError
        See `dehazexl.open_image`.
    """
    from dehazexl import open_image

    layers = []
    for source in [path] if isinstance(path, str) else path:
        image = open_image(Path(source))
        levels = pyramid(image)
        layers.append((colours(image, levels), {**placed(image, image.name), "rgb": True}, "image"))
        if others := [band for band in range(len(image.bands)) if band not in image.rgb]:
            names = [f"{image.name} {image.bands[band]}" for band in others]
            further = {**placed(image, names), "channel_axis": 2, "visible": False}
            layers.append(([level[..., others] for level in levels], further, "image"))
    return layers


def placed(image: Image, name: str | list[str]) -> dict[str, Any]:
    """Return what layers of a picture have in common: name, position and where they come from."""
    return {
        "name": name,
        "multiscale": True,
        "scale": image.scale,
        "translate": image.translate,
        "units": (image.units, image.units),
        "cache": False,
        "metadata": {"dehazexl": image},
    }


def pyramid(image: Image) -> list[da.Array]:
    """Return the picture's levels ``(y, x, c)``, continued by halving until the last is tiny."""
    import dask.array as da
    import numpy as np

    levels = list(image.levels)
    while max(levels[-1].shape[:2]) > SMALLEST:
        last = levels[-1]
        axes = {axis: 2 for axis in (0, 1) if last.shape[axis] > 1}
        half = da.coarsen(np.mean, last, axes, trim_excess=True)
        rounded = half if last.dtype.kind == "f" else half.round()
        levels.append(rounded.astype(last.dtype).rechunk({0: "auto", 1: "auto", 2: -1}))
    return levels


def colours(image: Image, levels: list[da.Array]) -> list[da.Array]:
    """Return the R, G, B of each level as napari shows them: uint8, or float32 in [0, 1] from the value range."""
    import numpy as np

    from dehazexl.image import value_range

    rgb = [level[..., list(image.rgb)] for level in levels]
    if rgb[0].dtype == np.uint8:
        return rgb
    low, high = value_range(image)
    return [((level.astype(np.float32) - low) / (high - low)).clip(0, 1) for level in rgb]
