"""The dehazed layer: it appears at once above its source, and improves where it is viewed."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.image import check_strength
from dehazexl.viewing.renderer import Renderer
from dehazexl.viewing.session import CACHE, DehazeSession
from napari_dehazexl._levels import FullSizeData
from napari_dehazexl._overviews import viewers
from napari_dehazexl._source import part_of, range_of, source_of
from napari_dehazexl._state import (
    KEY,
    LayerState,
    original_of,
    session_of_layer,
    shows_as_read,
    state_of,
    update_state,
)
from napari_dehazexl._watch import Watch, refresh, replace_levels
from napari_dehazexl._write import in_full

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.image.grid import Window
    from dehazexl.model import DehazeXL
    from dehazexl.viewing.local import LocalStrength

SETTLE = 1024
"""Tiles of an image at most that is dehazed in full size for a view that is left alone."""

PATIENCE = 0.02
"""Seconds that a window may stand still while a console waits."""

PLACE = ("scale", "translate", "rotate", "shear", "affine", "units")  # attributes that place a layer in the world


def dehaze_layer(
    layer: napari.layers.Image | str,
    *,
    strength: float = 1.0,
    overlap: int | None = None,
    weights: str | Path = "compact",
    device: str = "auto",
    dtype: str = "auto",
    value_range: tuple[float, float] | None = None,
    region: Sequence[int] | None = None,
    context: str = "all",
    name: str | None = None,
    cache: int = CACHE,
    viewer: Any = None,
) -> napari.layers.Image:
    """Dehaze a layer.

    Parameters
    ----------
    layer
        An image layer of the viewer, or its name: RGB, gray, or with an axis of colors. Of further axes, the plane in
        view is dehazed. A dehazed layer stands for its source.
    strength
        Fraction of the haze to remove, 0 to 1. `set_strength` changes it without running the network again.
    overlap
        Overlap of tiles in pixels, 0 to 128. None takes the default of the weights.
    weights, device, dtype
        See `dehazexl.load_model`. The network is loaded after the layer is added. If that fails, a viewer shows the
        error and removes the layer; without a viewer, ``error`` of the session holds it.
    value_range
        Values of the image that are black and white. None takes `dehazexl.image.image.value_range`, as the command
        line does. The contrast limits of the layer are for display only.
    region
        Rows and columns to dehaze, ``(y0, y1, x0, x1)``. None takes the whole image.
    context
        What takes part in dehazing a region: ``"all"`` of the image, or the ``"region"`` alone. In a window the region
        alone comes first.
    name
        Name of the new layer.
    cache
        Bytes of dehazed tiles to keep.
    viewer
        The viewer to add the layer to, above its source. None takes the current viewer if it shows the source. Without
        a viewer, as in a script, the layer is only returned.

    Returns
    -------
    napari.layers.Image
        A multiscale RGB layer with the position, scale and units of its source. Its levels return the hazy pixels, then
        those dehazed by a small and by a larger overview, then the dehazed tiles; in a window at once, blurred until
        the pixels are read. ``layer.metadata["dehazexl"].session`` is the
        `dehazexl.viewing.session.DehazeSession` behind it: ``wait()`` for it, ``close()`` it, ``read()`` pixels that
        are not blurred.

    Raises
    ------
    ValueError
        If there is no such layer, its overviews are still being computed, or an argument is out of range.
    TypeError
        If it is not an image layer.
    """
    if context not in ("all", "region"):
        raise ValueError(f"context must be all or region, not {context!r}: save with others by the command line")
    viewer = _viewer(viewer)
    layer = _found(layer, viewer)
    placed = place_of(layer)
    window, whole = None if region is None else window_of(region), None
    if window is None:
        image, black_and_white = source_of(layer, viewer)
    else:
        image, whole = part_of(layer, window, viewer)
        black_and_white = range_of(layer, whole)
        placed["translate"] = _moved(placed, window)
    shown = viewer is not None and layer in viewer.layers
    in_window = shown and hasattr(viewer, "window")
    added = threading.Event()  # a network that loads meanwhile would slow down the window that adds the layer
    load = partial(network, str(weights), device, dtype, written(weights), after=added)
    if len(image.levels) == 1:  # napari never refreshes the last of several levels
        image = replace(image, levels=(image.levels[0], image.levels[0][::2, ::2]))
    session = (WindowSession if in_window else DehazeSession)(
        image, load, overlap=overlap, strength=strength, value_range=value_range or black_and_white, cache=cache,
        settle=SETTLE if in_window else 0, region=window, whole=whole, context=context,
    )  # fmt: skip
    if shown:
        Watch(viewer, session)
    try:
        dehazed = _layer_of(session, layer, name or f"{layer.name} dehazed", placed, in_window)
        if shown:
            viewer.layers.insert(viewer.layers.index(layer) + 1, dehazed)
    finally:
        added.set()
    return dehazed


class WindowSession(DehazeSession):
    """A session of a layer in a window, which stays responsive while a console waits."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as `DehazeSession.wait` does."""
        from qtpy.QtWidgets import QApplication

        if threading.current_thread() is not threading.main_thread() or QApplication.instance() is None:
            return super().wait(timeout)
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not super().wait(max(0.0, min(PATIENCE, end - time.monotonic()))):
            if not self.running or time.monotonic() >= end:
                return False
            QApplication.processEvents()
        return True


def _viewer(viewer: Any) -> Any:
    """Return a viewer, the current one for None, or None if there is none."""
    import napari

    return viewer if viewer is not None else napari.current_viewer()


def _found(layer: Any, viewer: Any) -> napari.layers.Image:
    """Return an image layer, given itself, by name or as a proxy; the source of a dehazed one, if it is there."""
    from napari.layers import Image as ImageLayer

    if isinstance(layer, str):
        names = [] if viewer is None else [each.name for each in viewer.layers]
        if layer not in names:
            raise ValueError(f"there is no layer {layer!r} among {names}: pass the layer itself, or one of these names")
        layer = viewer.layers[layer]
    layer = getattr(layer, "__wrapped__", layer)
    if not isinstance(layer, ImageLayer):
        raise TypeError(f"{layer!r} is not an image layer: pass one of the viewer, such as viewer.layers[0]")
    return original_of(layer) or layer


def _layer_of(
    session: DehazeSession, source: napari.layers.Image, name: str, placed: dict[str, Any], in_window: bool
) -> napari.layers.Image:
    """Return the layer of a session, which is not in a viewer yet."""
    from napari.layers import Image as ImageLayer

    # A window must not wait for pixels, a script has to.
    levels = Renderer(session).levels if in_window else session.levels
    return ImageLayer(
        FullSizeData(list(levels), partial(in_full, session)), multiscale=True, rgb=True, name=name, cache=False,
        contrast_limits=(0, 255 if session.dtype == "uint8" else 1),
        metadata={KEY: LayerState(session.image, session, source=weakref.ref(source))}, **placed,
    )  # fmt: skip


def place_of(layer: napari.layers.Image) -> dict[str, Any]:
    """Return the attributes that place the last two axes of a layer in the world."""
    placed = {name: getattr(layer, name) for name in PLACE}
    if layer.ndim > 2:
        affine = np.asarray(layer.affine.affine_matrix)[-3:, -3:]
        placed = {name: placed[name][-2:] for name in ("scale", "translate", "units")} | {"affine": affine}
    return placed


def _moved(placed: dict[str, Any], window: Window) -> Any:
    """Return the translation that places a region of a layer."""
    from napari.utils.transforms import Affine

    linear = {name: placed[name] for name in ("scale", "rotate", "shear", "translate") if name in placed}
    return Affine(**linear)((window.y0, window.x0))


def set_strength(layer: napari.layers.Image, strength: float) -> None:
    """Set the fraction of the haze that is removed in a dehazed layer, 0 to 1; the network does not run again.

    A layer that reads from the file it was saved to is dehazed again; the file stays as it is.

    Raises
    ------
    ValueError
        If the layer was not dehazed, or the strength is out of range.
    """
    if session_of_layer(layer) is None and (paused := paused_in(layer)) is not None:
        if check_strength(strength) == paused.strength:
            return
        _take_up(layer, paused)
    session_of(layer).strength = strength
    refresh(layer)


def set_local_strength(layer: napari.layers.Image, local: LocalStrength | None) -> None:
    """Set the local strength of a dehazed layer, see `dehazexl.viewing.local`; as `set_strength` does."""
    if session_of_layer(layer) is None and (paused := paused_in(layer)) is not None:
        if local == paused.local:
            return
        _take_up(layer, paused)
    session = session_of(layer)
    if local != session.local:
        session.local = local
        refresh(layer)


def paused_in(layer: napari.layers.Image) -> DehazeSession | None:
    """Return the session of a dehazed layer that reads from its file by now, or None."""
    return state_of(layer).paused if shows_as_read(layer) else None


def _take_up(layer: napari.layers.Image, session: DehazeSession) -> None:
    """Let a layer that was saved show its session again."""
    viewer = next((viewer for viewer in viewers() if layer in viewer.layers), None)
    in_window = viewer is not None and hasattr(viewer, "window")
    update_state(layer, session=session, image=session.image, paused=None, finest=None, value_range=None)
    replace_levels(layer, list(Renderer(session).levels if in_window else session.levels), partial(in_full, session))
    session.restart()
    if viewer is not None:
        Watch(viewer, session).follow(layer)


def session_of(layer: napari.layers.Image) -> DehazeSession:
    """Return the session behind a dehazed layer.

    Raises
    ------
    ValueError
        If the layer was not dehazed, or reads from a file by now.
    """
    session = session_of_layer(layer)
    if session is None:
        raise ValueError(f"the layer {layer.name!r} is not being dehazed: select one that dehaze_layer made")
    return session


def network(weights: str, device: str, dtype: str, changed: int, *, after: threading.Event | None = None) -> DehazeXL:
    """Load a network, see `dehazexl.load_model`. The last one is cached: layers and previews share it.

    `changed` is the result of `written` for the weights; `after` is waited for first.
    """
    if after is not None:
        after.wait()
    with _loading:
        return _network(weights, device, dtype, changed)


def written(weights: str | Path) -> int:
    """Return when a weights file was last written, in nanoseconds; 0 for the bundled weights."""
    path = Path(weights)
    return path.stat().st_mtime_ns if path.is_file() else 0


_loading = threading.Lock()


@lru_cache(maxsize=1)
def _network(weights: str, device: str, dtype: str, changed: int) -> DehazeXL:
    from dehazexl import load_model

    return load_model(weights, device, dtype)


def window_of(region: Sequence[int]) -> Window:
    """Return the window of a region ``(y0, y1, x0, x1)``."""
    from dehazexl.image.grid import Window

    if len(region) != 4:
        raise ValueError(f"region is (y0, y1, x0, x1), not {tuple(region)}")
    return Window(*(int(edge) for edge in region))
