"""Reader: TIFF and Zarr of any size become a lazy, multiscale RGB layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehazexl.image.windowed_array import WindowedArray, check_there
from napari_dehazexl._main_thread import call_later
from napari_dehazexl._state import KEY, LayerState, shows_as_read, state_of, update_state

if TYPE_CHECKING:
    import dask.array as da
    import numpy as np
    from numpy.typing import NDArray

    from dehazexl.image.grid import Window
    from dehazexl.image.image import Image
    from dehazexl.viewing.overviews import GrowingLevel, OverviewBuilder

    LayerData = tuple[list[Any], dict[str, Any], str]
    Limits = tuple[float, float]

SUFFIXES = (".tif", ".tiff", ".zarr")

OTHER = "another picture was written there: open it anew"

CHUNK = 1024  # pixels: how overviews that are being made are cut

_told: set[str] = set()  # pictures that were said to be unreadable
_growths: set[Growth] = set()  # those at work: napari and psygnal hold only weak references to what they call


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
        For each picture, its colors as a multiscale ``rgb`` layer, with its alpha if it has one; and a hidden
        layer for each further band. ``metadata["dehazexl"]`` is a `LayerState`, whose ``image`` is the
        `dehazexl.Image`.

    Raises
    ------
    FileNotFoundError, ValueError
        See `dehazexl.open_image`.
    """
    from dehazexl import open_image

    paths = [path] if isinstance(path, str) else path
    return [layer for each in paths for layer in layers_of(open_image(Path(each)))]


def layers_of(image: Image) -> list[LayerData]:
    """Return the layers of a picture, see `read`."""
    from dehazexl.image.image import value_range
    from dehazexl.viewing.overviews import OverviewBuilder, needs_overviews, with_tail

    image = with_overviews(image)
    tell_again(image)
    growing = None
    limits = value_range(image)
    if needs_overviews(image):
        growing = OverviewBuilder(image, cache_folder())
        show_growth(growing)
    else:
        image = with_tail(image)
    white = 255 if image.levels[0].dtype == "uint8" else 1
    state = LayerState(image, overviews=growing, value_range=limits)
    colors = placed(image, image.name) | {"rgb": True, "contrast_limits": (0, white)}
    layers = [layer_of(colors_of(image, growing, limits), colors, state)]
    for band in (band for band in range(len(image.bands)) if band not in (*image.rgb, image.alpha)):
        state = LayerState(image, overviews=growing, band=band)
        further = placed(image, f"{image.name} {image.bands[band]}") | {"visible": False}
        further["contrast_limits"] = value_range(replace(image, rgb=(band, band, band)))
        layers.append(layer_of(band_of(image, band, growing), further, state))
    return layers


def layer_of(levels: list[da.Array], about: dict[str, Any], state: LayerState) -> LayerData:
    """Return the data of a layer of some levels, finest first, with its state."""
    return levels, about | {"metadata": {KEY: replace(state, finest=levels[0].name)}}, "image"


def cache_folder() -> Path:
    """Where overviews are kept."""
    from platformdirs import user_cache_path

    return user_cache_path("napari-dehazexl") / "overviews"


def placed(image: Image, name: str) -> dict[str, Any]:
    """Return the attributes that the layers of a picture have in common: name and position."""
    return {
        "name": name,
        "multiscale": True,
        "scale": image.scale,
        "translate": image.translate,
        "units": (image.units, image.units),
        "cache": False,
    }


def colors_of(image: Image, growing: OverviewBuilder | None = None, limits: Limits | None = None) -> list[da.Array]:
    """Return the colors of each level, and their alpha, as napari shows them.

    Parameters
    ----------
    image
        The picture.
    growing
        The same while its overviews are being made.
    limits
        The values that are shown as 0 and 1 unless the picture is of uint8, which is shown as it is. None takes those
        of `dehazexl.image.value_range`; `LayerState.value_range` keeps others.

    Returns
    -------
    list of dask.array.Array
        ``(y, x, 3)`` or ``(y, x, 4)``, uint8 or float32; where the picture cannot be read they are 0.
    """
    import numpy as np

    from dehazexl.image.image import colors, value_range
    from dehazexl.viewing.display import shown_dtype, with_alpha

    dtype = shown_dtype(image)
    low, high = limits or value_range(image)

    def render(pixels: NDArray[Any]) -> NDArray[Any]:
        rgb = colors(pixels, image)
        if dtype != np.uint8:
            rgb = ((rgb.astype(np.float32) - np.float32(low)) / np.float32(high - low)).clip(0, 1)
        return with_alpha(rgb, pixels, image)

    return _shown(image, growing, render, (3 if image.alpha is None else 4,), dtype)


def band_of(image: Image, band: int, growing: OverviewBuilder | None = None) -> list[da.Array]:
    """Return one band of each level, ``(y, x)``; where the picture cannot be read it is 0."""
    return _shown(image, growing, itemgetter((..., band)), (), image.levels[0].dtype)


def _shown(
    image: Image,
    growing: OverviewBuilder | None,
    render: Callable[[NDArray[Any]], NDArray[Any]],
    channels: tuple[int, ...],
    dtype: np.dtype[Any],
) -> list[da.Array]:
    import dask.array as da
    import numpy as np

    from dehazexl.viewing.overviews import with_tail

    levels: Sequence[da.Array | GrowingLevel] = growing.levels if growing else with_tail(image).levels
    return [
        da.from_array(
            Shown(image, number, level, render, (*level.shape[:2], *channels), dtype),
            chunks=(*getattr(level, "chunks", (CHUNK, CHUNK))[:2], *channels),
            name=False,
            meta=np.empty((0,) * (2 + len(channels)), dtype),
        )
        for number, level in enumerate(levels)
    ]


class Shown(WindowedArray):
    """A level as napari shows it: cut, it never raises, for napari would paint garbage, or show half a layer."""

    def __init__(
        self,
        image: Image,
        number: int,
        level: da.Array | GrowingLevel,
        render: Callable[[NDArray[Any]], NDArray[Any]],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        import dask.array as da

        from dehazexl.image.chunk_cache import ChunkCache

        self.image, self.number, self.render, self.shape, self.dtype = image, number, render, shape, dtype
        # A window that moves a little needs most chunks again, and waits for them.
        self.level = ChunkCache.of(level) if isinstance(level, da.Array) else level
        self.changed = _changed(image)

    def read(self, window: Window) -> NDArray[Any]:
        """Read a window; zeros, and one message, if that fails."""
        import numpy as np

        try:
            check_there(self.image.path)
            self.renew()
            return self.render(self.level.read(window))
        except Exception as error:
            if isinstance(error, FileNotFoundError):
                self.changed = 0  # when it is back it is another file
            tell_unreadable(self.image, error)
            return np.zeros((window.height, window.width, *self.shape[2:]), self.dtype)

    def renew(self) -> None:
        """Read from the file anew if it was written again: nothing in it lies where it lay.

        Raises
        ------
        ValueError
            If it holds another picture now.
        """
        from dehazexl.image.chunk_cache import ChunkCache

        changed = _changed(self.image)
        if changed == self.changed or not isinstance(self.level, ChunkCache):
            return
        assert self.image.path is not None
        levels = _opened_anew(self.image.path, changed)
        if self.number >= len(levels) or levels[self.number].shape != self.level.array.shape:
            raise ValueError(OTHER)
        self.level, self.changed = ChunkCache.of(levels[self.number]), changed
        tell_again(self.image)  # not after each window: a damaged one lies among good ones


@lru_cache(maxsize=1)
def _opened_anew(path: Path, changed: int) -> tuple[da.Array, ...]:
    """Return the levels of a file that was written again: once for all of them."""
    from dehazexl import open_image
    from dehazexl.viewing.overviews import with_tail

    return with_tail(with_overviews(open_image(path))).levels


def with_overviews(image: Image) -> Image:
    """Return the picture with its own overviews, or those that were kept of it."""
    from dehazexl.viewing.overviews import kept_overviews, needs_overviews, without_gaps

    image = without_gaps(image)
    return (kept_overviews(image, cache_folder()) if needs_overviews(image) else None) or image


def renewed(image: Image) -> Image:
    """Return a picture as its file holds it by now: it may have been written again since it was opened.

    Raises
    ------
    ValueError
        If the file holds another picture, or none, now.
    """
    from dehazexl import open_image

    if image.path is None or not image.path.exists():
        return image
    again = open_image(image.path)
    if again.fingerprint == image.fingerprint:
        return image
    if (again.levels[0].shape, again.levels[0].dtype) != (image.levels[0].shape, image.levels[0].dtype):
        raise ValueError(f"{image.name}: {OTHER}")
    return replace(image, levels=with_overviews(again).levels, fingerprint=again.fingerprint)


def _changed(image: Image) -> int:
    """Tell when a picture's file was written last."""
    return image.path.stat().st_mtime_ns if image.path is not None and image.path.exists() else 0


def tell_unreadable(image: Image, error: Exception) -> None:
    """Say once, from whatever thread, that a picture cannot be read."""
    from napari.utils.notifications import show_error

    if _key(image) in _told:
        return
    _told.add(_key(image))
    call_later(show_error, f"{image.name} cannot be read: {error}")


def tell_again(image: Image) -> None:
    """Say it again if a picture cannot be read, for somebody tries anew."""
    _told.discard(_key(image))


def _key(image: Image) -> str:
    return str(image.path or image.fingerprint)


def show_growth(growing: OverviewBuilder) -> None:
    """Make overviews in the background, and show in the viewers what there is of them.

    Without Qt nothing is shown anew, but layers answer with the overviews from then on.
    """
    from qtpy.QtWidgets import QApplication

    if QApplication.instance() is not None:
        Growth(growing)
    growing.start()


class Growth:
    """Shows a picture while its overviews are being made, and ends that when no viewer holds it any more."""

    def __init__(self, growing: OverviewBuilder) -> None:
        self.growing, self.seen = growing, False
        growing.updated.connect(self.look_later)
        growing.finished.connect(self.look_later)
        for viewer in viewers():
            viewer.layers.events.removed.connect(self.look_later)
        _growths.add(self)

    def layers(self) -> list[Any]:
        """List the layers that show it, in whatever viewer."""
        return [layer for viewer in viewers() for layer in viewer.layers if state_of(layer).overviews is self.growing]

    def look_later(self, event: Any = None) -> None:
        """Show what is new; called from any thread."""
        call_later(self.look)

    def look(self) -> None:
        """Show what is new."""
        layers = self.layers()
        self.seen = self.seen or bool(layers)
        if self.growing.done or (self.seen and not layers):
            self.end(layers)
            return
        for layer in filter(shows_as_read, layers):
            layer.refresh(extent=False, thumbnail=False, highlight=False)

    def end(self, layers: list[Any]) -> None:
        """Let the layers read what there is by now."""
        from napari.utils.notifications import show_error, show_info

        if self not in _growths:
            return
        _growths.discard(self)
        self.growing.close()
        for layer in layers:
            if shows_as_read(layer):  # not if its pixels were replaced meanwhile
                take_over(layer, self.growing)
            elif state_of(layer).image is None:
                show_info(f"{layer.name} can be dehazed now")
        if self.growing.error is not None and layers:
            show_error(f"{self.growing.image.name} stays blurred from afar, without overviews: {self.growing.error}")


def viewers() -> list[Any]:
    """List the viewers that are open."""
    import napari

    # The current one alone would not do: a picture goes on to grow in a window that lies behind another.
    known = getattr(napari.Viewer, "_instances", [napari.current_viewer()])
    return [viewer for viewer in known if viewer is not None]


def take_over(layer: Any, growing: OverviewBuilder) -> None:
    """Let a layer read the overviews that were made for it."""
    image, limits, state = growing.image, layer.contrast_limits, state_of(layer)
    levels = colors_of(image, limits=state.value_range) if state.band is None else band_of(image, state.band)
    update_state(layer, image=image, overviews=None, finest=levels[0].name)
    layer.data = levels
    layer.contrast_limits = limits
