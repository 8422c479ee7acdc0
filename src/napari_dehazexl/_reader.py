"""Reader: TIFF and Zarr of any size become a lazy, multiscale RGB layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehazexl.cut import Cut

if TYPE_CHECKING:
    import dask.array as da

    from dehazexl.grid import Window
    from dehazexl.image import Image
    from dehazexl.overviews import Growing, GrowingLevel

    LayerData = tuple[list[Any], dict[str, Any], str]

SUFFIXES = (".tif", ".tiff", ".zarr")

GROWING = "dehazexl-growing"
"""Under this name a layer's metadata hold the `dehazexl.overviews.Growing` picture while it is one."""

LIMITS = "dehazexl-limits"
"""Under this name a layer's metadata may hold the values that are shown as 0 and 1: else the picture's value range."""

_timers: set[Any] = set()  # at work

SMALLEST = 64
"""Pixels of the last, tiny level, which napari computes in full when the layer is added."""


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return `read` if the path looks like a picture that it opens, else None. Never raises."""
    paths = [path] if isinstance(path, str) else list(path)
    fits = bool(paths) and all(str(p).rstrip("/\\").lower().endswith(SUFFIXES) for p in paths)
    return read if fits else None


def read(path: str | Sequence[str]) -> list[LayerData]:
    """Open pictures as lazy napari layers.

    A large picture without overviews gets some: they are made in the background, shown when they are there, and kept
    in the user's cache folder for the next time. Meanwhile a blurred picture from a few places stands for them.

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
    from dehazexl.overviews import Growing, kept_overviews, needs_overviews

    layers = []
    for source in [path] if isinstance(path, str) else path:
        image, growing = open_image(Path(source)), None
        if needs_overviews(image):
            image = kept_overviews(image, cache_folder()) or image
        if needs_overviews(image):
            growing = Growing(image, cache_folder())
            show_growth(growing)
        layers.append((colours_of(image, growing), {**placed(image, image.name, growing), "rgb": True}, "image"))
        for band in (band for band in range(len(image.bands)) if band not in image.rgb):
            further = {**placed(image, f"{image.name} {image.bands[band]}", growing), "visible": False}
            layers.append((band_of(image, band, growing), further, "image"))
    return layers


def cache_folder() -> Path:
    """Where overviews are kept."""
    from platformdirs import user_cache_path

    return user_cache_path("napari-dehazexl") / "overviews"


def placed(image: Image, name: str, growing: Growing | None = None) -> dict[str, Any]:
    """Return what layers of a picture have in common: name, position and where they come from."""
    return {
        "name": name,
        "multiscale": True,
        "scale": image.scale,
        "translate": image.translate,
        "units": (image.units, image.units),
        "cache": False,
        "metadata": {"dehazexl": image} | ({GROWING: growing} if growing else {}),
    }


def pyramid(image: Image) -> list[da.Array]:
    """Return the picture's levels ``(y, x, c)``, continued by halving until the last is tiny."""
    from dehazexl.overviews import halved

    levels = list(image.levels)
    while max(levels[-1].shape[:2]) > SMALLEST:
        levels.append(halved(levels[-1]))
    return levels


def colours_of(image: Image, growing: Growing | None = None, limits: tuple[float, float] | None = None) -> list[Any]:
    """Return the R, G, B of each level as napari shows them: uint8 as they are, others as float32 in [0, 1] of limits.

    The limits are those of `dehazexl.image.value_range` by default; a layer's metadata keep others under `LIMITS`.
    """
    import numpy as np

    from dehazexl.image import value_range

    own = image.levels[0].dtype
    low, high = limits or value_range(image)

    def shown(pixels: Any) -> Any:
        rgb = pixels[..., list(image.rgb)]
        return rgb if own == np.uint8 else ((rgb.astype(np.float32) - low) / (high - low)).clip(0, 1)

    if growing is None:
        return [shown(level) for level in pyramid(image)]
    dtype = own if own == np.uint8 else np.dtype(np.float32)
    return [Shown(level, shown, (*level.shape[:2], 3), dtype) for level in growing.levels]


def band_of(image: Image, band: int, growing: Growing | None = None) -> list[Any]:
    """Return one band of each level."""
    if growing is None:
        return [level[..., band] for level in pyramid(image)]
    return [Shown(level, itemgetter((..., band)), level.shape[:2], level.dtype) for level in growing.levels]


class Shown(Cut):
    """What is shown of a level whose overviews are being made."""

    def __init__(self, level: GrowingLevel, show: Callable[[Any], Any], shape: tuple[int, ...], dtype: Any) -> None:
        self.level, self.show, self.shape, self.dtype = level, show, shape, dtype

    def read(self, window: Window) -> Any:
        """Read a window."""
        return self.show(self.level.read(window))


def show_growth(growing: Growing) -> None:
    """Show in the current viewer what there is of a picture's overviews, and in the end the overviews.

    Without Qt nothing is shown anew, but layers answer with the overviews from then on.
    """
    import napari
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    if QApplication.instance() is None:
        return
    timer, shown = QTimer(), [growing.version]

    def layers() -> list[Any]:
        viewer = napari.current_viewer()
        return [layer for layer in viewer.layers if layer.metadata.get(GROWING) is growing] if viewer else []

    def look() -> None:
        if growing.version != shown[0]:
            shown[0] = growing.version
            for layer in layers():
                if growing.ready:
                    take_over(layer, growing)
                else:
                    layer.refresh(extent=False, thumbnail=False, highlight=False)
        if growing.error is not None:
            from napari.utils.notifications import show_error

            show_error(f"no overviews of {growing.image.name}: {growing.error}")
        elif not growing.ready and (seen[0] is False or layers()):
            seen[0] = seen[0] or bool(layers())
            timer.start(200)
            return
        growing.close()
        _timers.discard(timer)

    seen = [False]
    timer.setSingleShot(True)
    timer.timeout.connect(look)
    timer.start(200)
    _timers.add(timer)


def take_over(layer: Any, growing: Growing) -> None:
    """Let a layer read the overviews that were made for it."""
    image = growing.image
    band = None if layer.rgb else next(i for i, name in enumerate(image.bands) if layer.name.endswith(name))
    layer.metadata = {"dehazexl": image}
    layer.data = colours_of(image) if band is None else band_of(image, band)
