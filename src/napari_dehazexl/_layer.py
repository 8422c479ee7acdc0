"""The dehazed layer: it appears at once above its source, and improves where it is viewed."""

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

PLACE = ("scale", "translate", "rotate", "shear", "affine", "units")  # attributes that place a layer in the world


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
        Fraction of the haze to remove, 0 to 1. `set_strength` changes it without running the network again.
    overlap
        Overlap of tiles in pixels, 0 to 128. None takes the default of the weights.
    weights, device, dtype
        See `dehazexl.load_model`. The network is loaded after the layer is added. If that fails, a viewer shows the
        error and removes the layer; without a viewer, ``error`` of the session holds it.
    value_range
        Values of the image that are black and white. None takes the contrast limits of the layer, or
        `dehazexl.image.value_range` if napari chose those for an image that is not of uint8.
    region
        Rows and columns to dehaze, ``(y0, y1, x0, x1)``. None takes the whole image.
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
    added = threading.Event()  # a network that loads meanwhile would slow down the window that adds the layer
    load = partial(network, str(weights), device, dtype, written(weights), after=added)
    if len(image.levels) == 1:  # napari never refreshes the last of several levels
        image = replace(image, levels=(image.levels[0], image.levels[0][::2, ::2]))
    session = DehazeSession(
        image, load, overlap=overlap, strength=strength, value_range=value_range or limits, cache=cache
    )
    viewer = viewer if viewer is not None else napari.current_viewer()
    shown = viewer is not None and layer in viewer.layers
    if shown:
        Watch(viewer, session)
    try:
        # A window must not wait for pixels, a script has to.
        levels = Renderer(session).levels if shown and hasattr(viewer, "window") else session.levels
        metadata = {KEY: LayerState(image, session)}
        dehazed = ImageLayer(
            list(levels), multiscale=True, rgb=True, name=name or f"{layer.name} dehazed", cache=False,
            contrast_limits=(0, 255 if session.dtype == "uint8" else 1), metadata=metadata, **placed,
        )  # fmt: skip
        if shown:
            viewer.layers.insert(viewer.layers.index(layer) + 1, dehazed)
    finally:
        added.set()
    return dehazed


def set_strength(layer: napari.layers.Image, strength: float) -> None:
    """Set the fraction of the haze that is removed in a dehazed layer, 0 to 1; the network does not run again."""
    session_of(layer).strength = strength
    refresh(layer)


def session_of(layer: napari.layers.Image) -> DehazeSession:
    """Return the session behind a dehazed layer.

    Raises
    ------
    ValueError
        If the layer was not dehazed, or reads from a file by now.
    """
    session = state_of(layer).session
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


def _part(image: Image, window: Window) -> Image:
    """Crop an image; of its tiny levels only the first is kept."""
    part = image.cropped(window)
    sides = [max(level.shape[:2]) for level in part.levels]
    enough = next((number for number, side in enumerate(sides, start=1) if side <= SMALLEST), len(sides))
    return replace(part, levels=part.levels[:enough])


def window_of(region: Sequence[int]) -> Window:
    """Return the window of a region ``(y0, y1, x0, x1)``."""
    from dehazexl.image.grid import Window

    if len(region) != 4:
        raise ValueError(f"region is (y0, y1, x0, x1), not {tuple(region)}")
    return Window(*(int(edge) for edge in region))
