"""The state of a layer that DehazeXL has read or dehazed, kept in the layer's metadata."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.image.image import Image
    from dehazexl.viewing.choices import Choices
    from dehazexl.viewing.explaining import ExplainSession
    from dehazexl.viewing.mapping import MapSession
    from dehazexl.viewing.overviews import OverviewBuilder
    from dehazexl.viewing.session import DehazeSession

KEY = "dehazexl"
"""The entry of ``layer.metadata`` that holds a `LayerState`."""


@dataclass(frozen=True)
class LayerState:
    """State of a layer, ``layer.metadata["dehazexl"]``.

    Attributes
    ----------
    image : dehazexl.Image or None
        The image that the layer shows: the one that was read, or the hazy source of a dehazed layer. None for layers
        of other origin.
    session : dehazexl.viewing.session.DehazeSession or None
        The work behind a dehazed layer, until the layer reads from a file. Other layers may have a copy of the
        metadata, see `session_of_layer`.
    overviews : dehazexl.viewing.overviews.OverviewBuilder or None
        The overviews of the image while they are computed.
    value_range : tuple of float or None
        Values of the image that the layer shows as 0 and 1. None where the layer holds the values of the image.
    finest : str or None
        Name of the finest level as read: a layer with other data was given other pixels since.
    band : int or None
        Index of the band in a layer of one band.
    paused : dehazexl.viewing.session.DehazeSession or None
        The work behind a dehazed layer that reads from a file by now; another strength takes it up again.
    source : weakref.ref or None
        The layer that a dehazed layer was made from; also once it reads from a file.
    preview_of : weakref.ref or None
        The layer that a preview previews.
    explanation : dehazexl.viewing.explaining.ExplainSession or None
        The work behind a layer that `explain_layer` made, with the numbers of its map, ``found.numbers``.
    maps : dehazexl.viewing.mapping.MapSession or None
        The work behind a layer that `map_layer` made.
    """

    image: Image | None = None
    session: DehazeSession | None = None
    overviews: OverviewBuilder | None = None
    value_range: tuple[float, float] | None = None
    finest: str | None = None
    band: int | None = None
    paused: DehazeSession | None = None
    source: weakref.ref[napari.layers.Image] | None = None
    preview_of: weakref.ref[napari.layers.Image] | None = None
    explanation: ExplainSession | None = None
    maps: MapSession | None = None

    @property
    def about(self) -> ExplainSession | MapSession | None:
        """The work behind a layer that shows something about a dehazed image: an explanation, or a map of its haze."""
        return self.explanation or self.maps

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerState:
        return self  # napari copies a layer's metadata to duplicate it; the copy shows the same work

    def is_as_read(self, finest: Any) -> bool:
        """Return whether a layer's finest level is the one that was read."""
        return self.finest is not None and getattr(finest, "name", None) == self.finest


def state_in(metadata: Mapping[str, Any]) -> LayerState:
    """Return the state in a layer's metadata, an empty one if there is none."""
    state = metadata.get(KEY)
    return state if isinstance(state, LayerState) else LayerState()


def state_of(layer: Any) -> LayerState:
    """Return the state of a layer, an empty one if there is none."""
    return state_in(layer.metadata)


def session_of_layer(layer: Any) -> DehazeSession | None:
    """Return the session whose pixels a layer shows, or None.

    Metadata alone does not tell: napari copies it to the layers that it makes of a dehazed one, such as by Split RGB.
    """
    session = state_of(layer).session
    finest = layer.data[0] if session is not None and layer.multiscale else None
    return session if session is not None and getattr(finest, "session", None) is session else None


def choices_of(session: DehazeSession) -> Choices:
    """Return the settings of a session of `dehaze_layer`."""
    from dehazexl.viewing.choices import Choices

    weights, device, dtype = (str(each) for each in getattr(session.load, "args", ("compact", "auto", "auto"))[:3])
    region = session.region
    corners = None if region is None else (region.y0, region.y1, region.x0, region.x1)
    return Choices(
        weights, device, dtype, session.overlap, session.strength, session.value_range, corners, session.context
    )


def shows_as_read(layer: Any) -> bool:
    """Return whether a layer still shows the levels that were read."""
    return bool(getattr(layer, "multiscale", False)) and state_of(layer).is_as_read(layer.data[0])


def is_result(layer: Any) -> bool:
    """Return whether a layer shows what was computed: a dehazed image, also a saved one, or something about it."""
    state = state_of(layer)
    saved = state.source is not None and shows_as_read(layer)
    return saved or state.about is not None or session_of_layer(layer) is not None


def original_of(layer: Any) -> Any:
    """Return the layer that a dehazed layer was made from, None if that is gone; any other layer itself."""
    if not is_result(layer):
        return layer
    source = state_of(layer).source
    return None if source is None else source()


def update_state(layer: Any, **changes: Any) -> None:
    """Replace some attributes of a layer's state."""
    layer.metadata[KEY] = replace(state_of(layer), **changes)
