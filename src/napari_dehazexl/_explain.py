"""The layer of an explanation: what parts of an image contribute to a region of its dehazed layer."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image import diverging
from dehazexl.viewing.explaining import STEPS, ExplainSession
from napari_dehazexl._layer import PLACE, network, session_of, window_of
from napari_dehazexl._main_thread import call_later
from napari_dehazexl._state import KEY, LayerState, state_of

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.viewing.explaining import AttributionMap
    from dehazexl.viewing.session import DehazeSession

OPAQUE = 0.5
"""Absolute value, as a share of the contrast limits, from which a map hides the image below it."""

_displays: set[Display] = set()  # those at work: napari and psygnal hold only weak references to what they call


def explain_layer(
    layer: napari.layers.Image,
    rectangle: Sequence[int],
    *,
    detector: str = "sum",
    baseline: str | Path = "dehazed",
    steps: int = STEPS,
    name: str | None = None,
    viewer: Any = None,
) -> napari.layers.Image:
    """Explain which parts of the image a network used for a region of a dehazed layer.

    The Dehazing Attribution Map of the paper, by integrated gradients, see `dehazexl.explain`.

    Parameters
    ----------
    layer
        A layer of `dehaze_layer`.
    rectangle
        Rows and columns of the layer, ``(y0, y1, x0, x1)``.
    detector, baseline, steps
        See `dehazexl.explain`.
    name
        Name of the new layer.
    viewer
        The viewer to add the layer to, on top. None takes the current viewer if it shows the dehazed layer. Without a
        viewer, as in a script, the layer is only returned.

    Returns
    -------
    napari.layers.Image
        The map, transparent where nothing is attributed. First that of a small overview, then that of the image (of
        its finest level of at most 4096 pixels), better after each step.
        ``layer.metadata["dehazexl"].explanation`` is the `dehazexl.viewing.explaining.ExplainSession` behind it:
        ``wait()`` for it, ``close()`` it, or read ``found.numbers``.

    Raises
    ------
    ValueError
        If the layer was not dehazed, the rectangle does not lie in it, or an argument is out of range.
    """
    import napari
    from napari.layers import Image as ImageLayer

    layer = getattr(layer, "__wrapped__", layer)  # plugins may be handed a proxy
    dehazing = session_of(layer)
    session = ExplainSession(
        dehazing.image, _load(dehazing), window_of(rectangle), overlap=dehazing.overlap,
        value_range=dehazing.value_range, detector=detector, baseline=baseline, steps=steps,
    )  # fmt: skip
    viewer = viewer if viewer is not None else napari.current_viewer()
    explained = ImageLayer(
        np.zeros((1, 1), np.float32), name=name or f"{layer.name} explained", colormap=colormap(),
        contrast_limits=(-1, 1), interpolation2d="nearest", metadata={KEY: LayerState(explanation=session)},
    )  # fmt: skip
    display = Display(session, layer, explained)
    if viewer is not None and layer in viewer.layers:
        viewer.layers.append(explained)
        display.follow(viewer)
    session.start()
    return explained


def colormap() -> Any:
    """Return the diverging colormap: transparent at zero, blue below, orange above."""
    from napari.utils import Colormap

    colors = diverging.table()
    opacity = np.clip(np.abs(np.linspace(-1, 1, len(colors))) / OPAQUE, 0, 1)
    return Colormap(np.column_stack([colors / 255, opacity]), name="attribution")


def _load(dehazing: DehazeSession) -> Any:
    """Return a function that loads the network of a session in float32."""
    weights, device, _, changed = dehazing.load.args  # type: ignore[attr-defined]
    return partial(network, weights, device, "float32", changed)


class Display:
    """Shows the map of a session in its layer as it improves, and ends the session with the layer.

    Parameters
    ----------
    session
        The work behind the layer.
    source, layer
        The dehazed layer, whose place is taken, and the layer of the map.
    """

    def __init__(self, session: ExplainSession, source: napari.layers.Image, layer: napari.layers.Image) -> None:
        self.session, self.layer = session, weakref.ref(layer)
        self.placed = {name: getattr(source, name) for name in PLACE}
        self.size = source.data[0].shape[:2]
        self.limits: tuple[float, float] | None = None
        self.layers: Any = None
        weakref.finalize(layer, session.close).atexit = False
        _displays.add(self)
        session.updated.connect(self.updated)
        session.failed.connect(self.failed)
        session.progressed.connect(self.progressed)
        self._place(*self.size)

    def follow(self, viewer: Any) -> None:
        """End the session with the layer, or with the window."""
        viewer = getattr(viewer, "__wrapped__", viewer)
        self.layers = weakref.ref(viewer.layers)
        viewer.layers.events.removed.connect(self.removed)
        if hasattr(viewer, "window"):
            from qtpy.QtWidgets import QApplication

            application = QApplication.instance()
            assert application is not None
            for end in (viewer.window._qt_window.destroyed, application.aboutToQuit):
                end.connect(self.end)

    def updated(self) -> None:
        """Show the map soon; called in the thread that computes."""
        call_later(self._show)

    def progressed(self) -> None:
        """Let go of the session at its end; called in the thread that computes."""
        if not self.session.running:
            call_later(_displays.discard, self)

    def failed(self, error: Exception) -> None:
        """Show the error; called in the thread that computes."""
        call_later(self._fail, error)

    def removed(self, event: Any = None) -> None:
        """End the session when its last layer is gone."""
        layers = self.layers()
        if layers is None or not any(state_of(layer).explanation is self.session for layer in layers):
            self.end()

    def end(self, event: Any = None) -> None:
        """Stop within a batch of tiles."""
        self.session.close()
        _displays.discard(self)

    def _show(self) -> None:
        layer, found = self.layer(), self.session.found
        if layer is None or found is None:
            return
        layer.data = found.values
        self._place(*found.side)
        self._set_limits(layer, found)

    def _place(self, down: float, across: float) -> None:
        """Place a map with cells of this height and width above the dehazed layer."""
        from napari.utils.transforms import Affine

        layer = self.layer()
        if layer is None:
            return
        linear = {name: self.placed[name] for name in ("scale", "rotate", "shear", "translate")}
        for name in ("rotate", "shear", "affine", "units"):
            setattr(layer, name, self.placed[name])
        layer.scale = np.multiply(self.placed["scale"], (down, across))
        layer.translate = Affine(**linear)(((down - 1) / 2, (across - 1) / 2))

    def _set_limits(self, layer: napari.layers.Image, found: AttributionMap) -> None:
        """Adapt the contrast limits, unless the user has set them."""
        if self.limits is None or tuple(layer.contrast_limits) == self.limits:
            layer.contrast_limits_range = (-10 * found.limit, 10 * found.limit)
            layer.contrast_limits = (-found.limit, found.limit)
            self.limits = tuple(layer.contrast_limits)

    def _fail(self, error: Exception) -> None:
        from napari.utils.notifications import show_error

        layer = self.layer()
        if layer is None:
            return
        show_error(f"{layer.name}: {error or 'out of memory'}")
        layers = None if self.layers is None else self.layers()
        if self.session.found is None and layers is not None and layer in layers:
            layers.remove(layer)
