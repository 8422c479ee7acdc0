"""The dehazed layer: it appears at once above its source, and gets better where it is looked at."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehazexl.viewing.overviews import SMALLEST
from dehazexl.viewing.renderer import Renderer
from dehazexl.viewing.session import CACHE, DehazeSession
from napari_dehazexl._source import source_of
from napari_dehazexl._state import KEY, LayerState, state_of
from napari_dehazexl._watch import Watch, refresh

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.image.grid import Window
    from dehazexl.image.image import Image
    from dehazexl.model import DehazeXL

PLACE = ("scale", "translate", "rotate", "shear", "affine", "units")  # what places a layer in the world


def dehaze_layer(
    layer: napari.layers.Image,
    *,
    strength: float = 1.0,
    overlap: int | None = None,
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
        Pixels by which tiles overlap, 0 to 128; None takes what suits the weights.
    weights, device, dtype
        See `dehazexl.load_model`. The network is loaded when the layer is there already; if it cannot be, a viewer says
        why and takes the layer away again, and without a viewer ``error`` of the work holds the reason.
    value_range
        The values of the picture that are black and white. None takes the layer's contrast limits,
        or those of `dehazexl.image.value_range` where napari itself chose them for a picture that is not of uint8.
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
        the hazy pixels, then what a small overview taught, and a larger one, then the dehazed tiles; in a window at
        once, with a blurred picture until the pixels are read. ``layer.metadata["dehazexl"].session`` is the
        `dehazexl.viewing.session.DehazeSession` behind it: ``wait()`` for it, ``close()`` it, ``read()`` pixels that
        are not blurred.

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
    added = threading.Event()  # to load the network while the window adds the layer would make the window wait
    load = partial(network, str(weights), device, dtype, written(weights), after=added)
    if len(image.levels) == 1:  # napari never shows the last level of several anew
        image = replace(image, levels=(image.levels[0], image.levels[0][::2, ::2]))
    live = DehazeSession(image, load, overlap=overlap, strength=strength, limits=value_range or limits, cache=cache)
    viewer = viewer if viewer is not None else napari.current_viewer()
    shown = viewer is not None and layer in viewer.layers
    if shown:
        Watch(viewer, live)
    try:
        # A window must not wait for pixels; a script has to.
        levels = Renderer(live).levels if shown and hasattr(viewer, "window") else live.levels
        metadata = {KEY: LayerState(image, live)}
        dehazed = ImageLayer(
            list(levels), multiscale=True, rgb=True, name=name or f"{layer.name} dehazed", cache=False,
            contrast_limits=(0, 255 if live.dtype == "uint8" else 1), metadata=metadata, **placed,
        )  # fmt: skip
        if shown:
            viewer.layers.insert(viewer.layers.index(layer) + 1, dehazed)
    finally:
        added.set()
    return dehazed


def set_strength(layer: napari.layers.Image, strength: float) -> None:
    """Change how much haze is removed in a dehazed layer, 0 to 1; the network does not run again."""
    live_of(layer).strength = strength
    refresh(layer)


def live_of(layer: napari.layers.Image) -> DehazeSession:
    """Return the work behind a dehazed layer.

    Raises
    ------
    ValueError
        If it is no dehazed layer, or reads from a file by now.
    """
    live = state_of(layer).session
    if live is None:
        raise ValueError(f"the layer {layer.name!r} is not being dehazed: select one that dehaze_layer made")
    return live


def network(weights: str, device: str, dtype: str, changed: int, *, after: threading.Event | None = None) -> DehazeXL:
    """Load a network, see `dehazexl.load_model`; the last one is kept, so that layers and previews share it.

    `changed` is what `written` said of the weights; `after` is waited for first.
    """
    if after is not None:
        after.wait()
    with _loading:
        return _network(weights, device, dtype, changed)


def written(weights: str | Path) -> int:
    """Tell when a file of weights was last written, in nanoseconds; 0 for bundled ones."""
    path = Path(weights)
    return path.stat().st_mtime_ns if path.is_file() else 0


_loading = threading.Lock()


@lru_cache(maxsize=1)
def _network(weights: str, device: str, dtype: str, changed: int) -> DehazeXL:
    from dehazexl import load_model

    return load_model(weights, device, dtype)


def _part(image: Image, window: Window) -> Image:
    """Crop a picture; of its tiny levels only the first is kept."""
    part = image.cropped(window)
    sides = [max(level.shape[:2]) for level in part.levels]
    enough = next((number for number, side in enumerate(sides, start=1) if side <= SMALLEST), len(sides))
    return replace(part, levels=part.levels[:enough])


def window_of(region: Sequence[int]) -> Window:
    """Return the window of rows and columns ``(y0, y1, x0, x1)``."""
    from dehazexl.image.grid import Window

    if len(region) != 4:
        raise ValueError(f"region is (y0, y1, x0, x1), not {tuple(region)}")
    return Window(*(int(edge) for edge in region))
