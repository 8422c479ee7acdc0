"""The dehazed layer: it appears at once above its source, and gets better where it is looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehazexl.live import CACHE
from napari_dehazexl._reader import GROWING, LIMITS, pyramid

if TYPE_CHECKING:
    import napari.layers
    import napari.viewer

    from dehazexl.grid import Window
    from dehazexl.image import Image
    from dehazexl.live import Live
    from dehazexl.model import DehazeXL

LIVE = "dehazexl-live"
"""Under this name a dehazed layer's metadata hold its `dehazexl.live.Live`."""

INTERVAL = 100  # milliseconds between looks at what has become better

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
        A multiscale RGB layer with the place, scale and units of its source. Its levels answer at once: with the hazy
        pixels, then with what an overview taught, then with the dehazed tiles. ``layer.metadata["dehazexl-live"]`` is
        the work: ``wait()`` for it, ``close()`` it.

    Raises
    ------
    ValueError
        If the layer is not RGB or not of two dimensions, or an argument is out of range.
    """
    import napari
    from napari.layers import Image as ImageLayer

    from dehazexl.live import Live

    image, limits = source_of(layer)
    scale, translate = tuple(layer.scale), tuple(layer.translate)
    if region is not None:
        window = window_of(region)
        image = image.cropped(window)
        image = replace(image, levels=tuple(pyramid(image)))
        translate = (translate[0] + window.y0 * scale[0], translate[1] + window.x0 * scale[1])

    load = partial(network, weights, device, dtype)
    live = Live(image, load, overlap=overlap, strength=strength, limits=value_range or limits, cache=cache)
    metadata = {"dehazexl": image, LIVE: live, "dehazexl-source": layer.name}
    dehazed = ImageLayer(
        list(live.levels), multiscale=True, rgb=True, name=name or f"{layer.name} dehazed", scale=scale,
        translate=translate, units=layer.units, cache=False, metadata=metadata,
    )  # fmt: skip
    viewer = viewer if viewer is not None else napari.current_viewer()
    if viewer is not None and layer in viewer.layers:
        viewer.layers.insert(viewer.layers.index(layer) + 1, dehazed)
        if hasattr(viewer, "window"):  # a ViewerModel has none
            Watch(viewer, dehazed, live)
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
        If the layer is not RGB, has further dimensions, or its overviews are still being made.
    """
    if not getattr(layer, "rgb", False):
        raise ValueError(f"the layer {layer.name!r} is not RGB: select an RGB image, or open the file with DehazeXL")
    if layer.ndim != 2:
        raise ValueError(f"the layer {layer.name!r} has {layer.ndim} dimensions: select a picture of two")
    if LIVE in layer.metadata:
        raise ValueError(f"the layer {layer.name!r} is dehazed already: select its source")
    growing = layer.metadata.get(GROWING)
    if growing is not None and not growing.ready:
        raise ValueError(
            f"the overviews of {layer.name!r} are being made, {growing.share:.0%} are there: dehaze it when they are"
        )
    image: Image | None = layer.metadata.get("dehazexl")
    image = image or _picture_of(layer)
    return replace(image, levels=tuple(pyramid(image))), _limits_of(layer, image)


def _picture_of(layer: napari.layers.Image) -> Image:
    """Describe the picture in a layer that this plugin has not read."""
    import dask.array as da

    from dehazexl import open_image

    data = [*layer.data] if layer.multiscale else [layer.data]
    levels = tuple(level if isinstance(level, da.Array) else da.from_array(level, name=False) for level in data)
    return replace(
        open_image(levels[0].rechunk({2: -1})), levels=levels, name=layer.name,
        alpha=3 if levels[0].shape[2] == 4 else None,
        scale=tuple(layer.scale), translate=tuple(layer.translate), units=str(layer.units[0]),
    )  # fmt: skip


def _limits_of(layer: napari.layers.Image, image: Image) -> tuple[float, float]:
    """Return a layer's contrast limits in the values of its picture."""
    from dehazexl.image import value_range

    first, last = (float(limit) for limit in layer.contrast_limits)
    if "dehazexl" not in layer.metadata or image.levels[0].dtype == "uint8":
        return first, last
    # The reader shows such pictures from 0 to 1.
    low, high = layer.metadata.get(LIMITS) or value_range(image)
    return low + first * (high - low), low + last * (high - low)


def window_of(region: Sequence[int]) -> Window:
    """Return the window of rows and columns ``(y0, y1, x0, x1)``."""
    from dehazexl.grid import Window

    if len(region) != 4:
        raise ValueError(f"region is (y0, y1, x0, x1), not {tuple(region)}")
    return Window(*(int(edge) for edge in region))


def refresh(layer: napari.layers.Image) -> None:
    """Show a layer's pixels anew; its extent, thumbnail and highlight are as they were."""
    layer.refresh(extent=False, thumbnail=False, highlight=False)


class Watch:
    """Shows what has become better in a dehazed layer, says once what went wrong, and ends the work with the layer.

    It looks now and then, in the window's own thread, so that the thread that computes never touches the window.
    """

    def __init__(self, viewer: Any, layer: napari.layers.Image, live: Live) -> None:
        from qtpy.QtCore import QTimer
        from qtpy.QtWidgets import QApplication

        self.viewer, self.layer, self.live = viewer, layer, live
        self.shown, self.told, self.notes = live.version, False, 0
        self.timer = QTimer()
        self.timer.setSingleShot(True)
        self.timer.timeout.connect(self.look)
        self.timer.start(INTERVAL)
        viewer.layers.events.removed.connect(self.removed)
        application = QApplication.instance()
        assert application is not None
        application.aboutToQuit.connect(self.stop)
        _watches.add(self)

    def look(self) -> None:
        """Show what is new, and look again: the slower the window, the later."""
        started = time.perf_counter()
        if self.live.version != self.shown:
            self.shown = self.live.version
            refresh(self.layer)
        self.tell()
        if self.layer.metadata.get(LIVE) is not self.live:  # it reads from a file by now
            self.stop()
        elif self.live.running:
            self.timer.start(max(INTERVAL, int(4000 * (time.perf_counter() - started))))

    def tell(self) -> None:
        """Report what the user should know, each thing once."""
        from napari.utils.notifications import show_error, show_warning

        for note in self.live.notes[self.notes :]:
            show_warning(f"{self.layer.name}: {note}")
        self.notes = len(self.live.notes)
        if self.live.error is not None and not self.told:
            self.told = True
            show_error(f"{self.layer.name}: {self.live.error}")

    def removed(self, event: Any) -> None:
        """End the work when its layer is gone."""
        if event.value is self.layer:
            self.stop()

    def stop(self) -> None:
        """End the work; the thread is gone within a batch of tiles."""
        if self not in _watches:
            return
        _watches.discard(self)
        self.timer.stop()
        self.live.close()
        self.viewer.layers.events.removed.disconnect(self.removed)
