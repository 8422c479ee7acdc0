"""The dehazed layer: it appears at once above its source, and gets better where it is looked at."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.live import CACHE, Live
from dehazexl.overviews import SMALLEST
from dehazexl.painter import Painter
from napari_dehazexl._reader import GROWING, IMAGE, LIMITS, shows_what_was_read, tell_unreadable

if TYPE_CHECKING:
    import dask.array as da
    import napari.layers
    from numpy.typing import NDArray

    from dehazexl.grid import Window
    from dehazexl.image import Image
    from dehazexl.model import DehazeXL
    from dehazexl.overviews import Growing

LIVE = "dehazexl-live"
"""Under this name a dehazed layer's metadata hold its `dehazexl.live.Live`."""

INTERVAL = 100  # milliseconds between looks at what has become better
HASHED = 16 * 2**20  # bytes of an array in memory by which it is known again
PLACE = ("scale", "translate", "rotate", "shear", "affine", "units")  # what places a layer in the world

_watches: set[Watch] = set()  # those at work: napari and Qt hold only weak references to what they call


def dehaze_layer(
    layer: napari.layers.Image,
    *,
    strength: float = 1.0,
    overlap: int = 32,
    weights: str | Path = "compact",
    device: str = "auto",
    dtype: str = "auto",
    value_range: tuple[float, float] | None = None,
    region: Sequence[int] | None = None,
    name: str | None = None,
    cache: int = CACHE,
    viewer: Any = None,
) -> napari.layers.Image:
    """Dehaze a layer.

    Parameters
    ----------
    layer
        An RGB image layer of two dimensions, multiscale or not.
    strength
        From 0 (the input) to 1; later `set_strength` changes it without running the network again.
    overlap
        Pixels by which tiles overlap, 0 to 128.
    weights, device, dtype
        See `dehazexl.load_model`. The network is loaded when the layer is there already.
    value_range
        The values of the picture that are black and white. None takes the layer's contrast limits.
    region
        First and last row and column to dehaze, ``(y0, y1, x0, x1)``; None takes all.
    name
        Of the new layer.
    cache
        Bytes of dehazed tiles that are kept.
    viewer
        Where to add it, above its source. None takes the current viewer, if it shows the source; without one, as in a
        script, the layer is only returned.

    Returns
    -------
    napari.layers.Image
        A multiscale RGB layer with the place, scale and units of its source. Its levels answer with the best there is:
        the hazy pixels, then what an overview taught, then the dehazed tiles; in a window at once, with a blurred
        picture until the pixels are read. ``layer.metadata["dehazexl-live"]`` is the work: ``wait()`` for it,
        ``close()`` it, ``read()`` pixels that are not blurred.

    Raises
    ------
    ValueError
        If the layer is not RGB or not of two dimensions, or an argument is out of range.
    """
    import napari
    from napari.layers import Image as ImageLayer
    from napari.utils.transforms import Affine

    layer = getattr(layer, "__wrapped__", layer)  # plugins may be handed a proxy
    image, limits = source_of(layer)
    placed = {name: getattr(layer, name) for name in PLACE}
    if region is not None:
        window = window_of(region)
        image = _part(image, window)
        linear = {name: placed[name] for name in ("scale", "rotate", "shear", "translate")}
        placed["translate"] = Affine(**linear)((window.y0, window.x0))
    load = partial(network, weights, device, dtype)
    if len(image.levels) == 1:  # napari never shows the last level of several anew
        image = replace(image, levels=(image.levels[0], image.levels[0][::2, ::2]))
    live = Live(image, load, overlap=overlap, strength=strength, limits=value_range or limits, cache=cache)
    viewer = viewer if viewer is not None else napari.current_viewer()
    shown = viewer is not None and layer in viewer.layers
    # A window must not wait for pixels; a script has to.
    levels = Painter(live).levels if shown and hasattr(viewer, "window") else live.levels
    metadata = {IMAGE: image, LIVE: live}
    dehazed = ImageLayer(
        list(levels), multiscale=True, rgb=True, name=name or f"{layer.name} dehazed", cache=False,
        contrast_limits=(0, 255 if live.dtype == "uint8" else 1), metadata=metadata, **placed,
    )  # fmt: skip
    if shown:
        viewer.layers.insert(viewer.layers.index(layer) + 1, dehazed)
        Watch(viewer, live)
    return dehazed


def set_strength(layer: napari.layers.Image, strength: float) -> None:
    """Change how much haze is removed in a dehazed layer, 0 to 1; the network does not run again."""
    live_of(layer).strength = strength
    refresh(layer)


def live_of(layer: napari.layers.Image) -> Live:
    """Return the work behind a dehazed layer.

    Raises
    ------
    ValueError
        If it is no dehazed layer, or reads from a file by now.
    """
    live: Live | None = layer.metadata.get(LIVE)
    if live is None:
        raise ValueError(f"the layer {layer.name!r} is not being dehazed: select one that dehaze_layer made")
    return live


def network(weights: str | Path = "compact", device: str = "auto", dtype: str = "auto") -> DehazeXL:
    """Load a network, see `dehazexl.load_model`; the last one is kept, so that layers and previews share it."""
    path = Path(weights)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    with _loading:
        return _network(str(weights), device, dtype, changed)


_loading = threading.Lock()


@lru_cache(maxsize=1)
def _network(weights: str, device: str, dtype: str, changed: int) -> DehazeXL:
    from dehazexl import load_model

    return load_model(weights, device, dtype)


def source_of(layer: napari.layers.Image) -> tuple[Image, tuple[float, float]]:
    """Return the picture in a layer, and which of its values the layer's contrast limits make black and white.

    Raises
    ------
    ValueError
        If the layer is not RGB, has further dimensions, is dehazed already, or its overviews are still being made.
    """
    from dehazexl.overviews import with_tail

    if not getattr(layer, "rgb", False):
        raise ValueError(f"the layer {layer.name!r} is not RGB: select an RGB image, or open the file with DehazeXL")
    if layer.ndim != 2:
        raise ValueError(f"the layer {layer.name!r} has {layer.ndim} dimensions: select a picture of two")
    if LIVE in layer.metadata:
        raise ValueError(f"the layer {layer.name!r} is dehazed already: select its source")
    as_read = layer.multiscale and shows_what_was_read(layer.data[0], layer.metadata)
    image: Image = layer.metadata[IMAGE] if as_read else _picture_of(layer)
    growing = _growing(layer, image)
    if growing is not None and growing.running:
        raise ValueError(
            f"the overviews of {layer.name!r} are being made, {growing.share:.0%} are there: dehaze it when they are"
        )
    return with_tail(image if growing is None else growing.image), _limits_of(layer, image)


def _growing(layer: napari.layers.Image, image: Image) -> Growing | None:
    """Return the layer's picture while, or after, its overviews are made; begin to make them if it needs some."""
    from dehazexl.overviews import Growing, needs_overviews

    growing: Growing | None = layer.metadata.get(GROWING)
    if growing is not None and growing.image.fingerprint == image.fingerprint:
        return growing
    if not needs_overviews(image):
        return None
    layer.metadata[GROWING] = growing = Growing(image, _scratch())
    return growing


@cache
def _scratch() -> Path:
    """Make a folder that lives as long as this process, for overviews of pictures that no file holds."""
    folder = TemporaryDirectory(prefix="napari-dehazexl-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _picture_of(layer: napari.layers.Image) -> Image:
    """Describe the picture in a layer that this plugin has not read. Of arrays in memory nothing is copied."""
    from dehazexl import open_image

    data = [*layer.data] if layer.multiscale else [layer.data]
    token = _hash(data[0]) if isinstance(data[0], np.ndarray) else ""
    if isinstance(data[-1], np.ndarray):
        data += _strided(data[-1])
    levels = tuple(_lazy(level, f"layer-{token}-{number}") for number, level in enumerate(data))
    return replace(
        open_image(levels[0]), levels=levels, name=layer.name, alpha=3 if levels[0].shape[2] == 4 else None,
        scale=tuple(layer.scale), translate=tuple(layer.translate), units=str(layer.units[0]),
    )  # fmt: skip


def _strided(pixels: NDArray[Any]) -> list[NDArray[Any]]:
    """Return every second, fourth... pixel, down to a tiny picture: at no cost, where means would stop the window."""
    levels, step = [], 2
    while max(pixels.shape[:2]) * 2 > SMALLEST * step:
        steps = [min(step, side) for side in pixels.shape[:2]]
        levels.append(pixels[tuple(slice(each // 2, None, each) for each in steps)])
        step *= 2
    return levels


def _lazy(level: Any, name: str) -> da.Array:
    """Wrap an array ``(y, x, c)`` in dask, all of c in one chunk; the name is for those in memory."""
    import dask.array as da

    from dehazexl.readers.source import CHUNK, lazy, strided

    if isinstance(level, np.ndarray):  # dask would copy it
        return lazy(strided(level, "yxc"), (CHUNK, CHUNK), name)
    return (level if isinstance(level, da.Array) else da.from_array(level)).rechunk({2: -1})


def _hash(pixels: NDArray[Any]) -> str:
    """Hash an array's pixels, of a large one some rows: the window waits for it, a second a gigabyte."""
    from dask.base import tokenize

    return str(tokenize(pixels.shape, pixels[:: max(1, pixels.nbytes // HASHED)]))


def _limits_of(layer: napari.layers.Image, image: Image) -> tuple[float, float]:
    """Return a layer's contrast limits in the values of its picture."""
    from dehazexl.image import value_range

    first, last = (float(limit) for limit in layer.contrast_limits)
    if layer.metadata.get(IMAGE) is not image or image.levels[0].dtype == np.uint8:
        return first, last
    # The reader shows such pictures from 0 to 1.
    low, high = layer.metadata.get(LIMITS) or value_range(image)
    return low + first * (high - low), low + last * (high - low)


def _part(image: Image, window: Window) -> Image:
    """Crop a picture; of its tiny levels only the first is kept."""
    part = image.cropped(window)
    sides = [max(level.shape[:2]) for level in part.levels]
    enough = next((number for number, side in enumerate(sides, start=1) if side <= SMALLEST), len(sides))
    return replace(part, levels=part.levels[:enough])


def window_of(region: Sequence[int]) -> Window:
    """Return the window of rows and columns ``(y0, y1, x0, x1)``."""
    from dehazexl.grid import Window

    if len(region) != 4:
        raise ValueError(f"region is (y0, y1, x0, x1), not {tuple(region)}")
    return Window(*(int(edge) for edge in region))


def refresh(layer: napari.layers.Image, thumbnail: bool = False) -> None:
    """Show a layer's pixels anew, and its thumbnail if asked to; its extent and highlight are as they were."""
    if thumbnail and hasattr(layer, "_reset_thumbnail_level_data"):  # since 0.9 napari keeps the level that it shows
        layer._reset_thumbnail_level_data()
    layer.refresh(extent=False, thumbnail=thumbnail, highlight=False)


class Watch:
    """Shows what has become better in a dehazed picture, says once what went wrong, and ends the work with its layers.

    It looks now and then, in the window's own thread, so that the thread that computes never touches the window. It
    holds neither the window nor the picture: both may go.
    """

    def __init__(self, viewer: Any, live: Live) -> None:
        viewer = getattr(viewer, "__wrapped__", viewer)  # plugins are handed a proxy, which nobody else holds
        self.layers, self.live = weakref.ref(viewer.layers), weakref.ref(live)
        self.seen: weakref.WeakKeyDictionary[Painter, tuple[int, int]] = weakref.WeakKeyDictionary()
        self.notes = 0
        self.error: Exception | None = None
        viewer.layers.events.removed.connect(self.removed)
        _watches.add(self)
        if hasattr(viewer, "window"):
            self.show(viewer.window._qt_window)
        else:  # a ViewerModel; the timer must not go in whatever thread drops the picture, nothing else minds
            weakref.finalize(live, _watches.discard, self)

    def show(self, window: Any) -> None:
        """Look now and then, until the window is closed."""
        from qtpy.QtCore import QTimer
        from qtpy.QtWidgets import QApplication

        self.timer = QTimer()
        self.timer.setSingleShot(True)
        self.timer.timeout.connect(self.look)
        self.timer.start(INTERVAL)
        application = QApplication.instance()
        assert application is not None
        for end in (window.destroyed, application.aboutToQuit):
            end.connect(self.end)

    def shown(self) -> list[napari.layers.Image]:
        """List the layers that show the picture: its own, and duplicates."""
        layers, live = self.layers() or (), self.live()
        return [layer for layer in layers if layer.metadata.get(LIVE) is live]

    def look(self) -> None:
        """Show what is new, and look again: the slower the window, the later."""
        started, live, layers = time.perf_counter(), self.live(), self.shown()
        if live is None or not layers:  # gone, or reads from a file by now
            _watches.discard(self)
            return
        for layer in layers:
            self.renew(layer)
        self.tell(live, layers[0].name)
        self.timer.start(max(INTERVAL, int(4000 * (time.perf_counter() - started))))

    def renew(self, layer: napari.layers.Image) -> None:
        """Show what was painted of a layer since the last look, and have it painted better if it can be."""
        painter: Painter | None = getattr(layer.data[0], "painter", None)
        if painter is None:
            return
        painter.paint()
        now, before = (painter.version, painter.renewed), self.seen.get(painter, (0, -1))
        if now != before:
            self.seen[painter] = now
            refresh(layer, thumbnail=now[1] != before[1])

    def tell(self, live: Live, name: str) -> None:
        """Report what the user should know, each thing once."""
        from napari.utils.notifications import show_error, show_warning

        for note in live.notes[self.notes :]:
            show_warning(f"{name}: {note}")
        self.notes = len(live.notes)
        if live.error is None or live.error is self.error:
            return
        self.error = live.error
        if live.lost:
            tell_unreadable(live.image, live.error)
        else:
            show_error(f"{name}: {live.error}")

    def removed(self, event: Any = None) -> None:
        """End the work when its last layer is gone."""
        if not self.shown():
            self.end()

    def end(self, event: Any = None) -> None:
        """End the work and drop what was computed; the thread is gone within a batch of tiles."""
        _watches.discard(self)
        if hasattr(self, "timer"):
            self.timer.stop()
        live = self.live()
        if live is not None:
            live.close()
            live.forget()
