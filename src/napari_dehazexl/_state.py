"""The state of a layer that DehazeXL has read or dehazed, kept in the layer's metadata."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.image.image import Image
    from dehazexl.viewing.explaining import ExplainSession
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
        The work behind a dehazed layer, until the layer reads from a file.
    overviews : dehazexl.viewing.overviews.OverviewBuilder or None
        The overviews of the image while they are computed.
    value_range : tuple of float or None
        Values of the image that the layer shows as 0 and 1. None where the layer holds the values of the image.
    finest : str or None
        Name of the finest level as read: a layer with other data was given other pixels since.
    band : int or None
        Index of the band in a layer of one band.
    preview_of : weakref.ref or None
        The layer that a preview previews.
    explanation : dehazexl.viewing.explaining.ExplainSession or None
        The work behind a layer that `explain_layer` made, with the numbers of its map, ``found.numbers``.
    """

    image: Image | None = None
    session: DehazeSession | None = None
    overviews: OverviewBuilder | None = None
    value_range: tuple[float, float] | None = None
    finest: str | None = None
    band: int | None = None
    preview_of: weakref.ref[napari.layers.Image] | None = None
    explanation: ExplainSession | None = None

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


def shows_as_read(layer: Any) -> bool:
    """Return whether a layer still shows the levels that were read."""
    return bool(layer.multiscale) and state_of(layer).is_as_read(layer.data[0])


def update_state(layer: Any, **changes: Any) -> None:
    """Replace some attributes of a layer's state."""
    layer.metadata[KEY] = replace(state_of(layer), **changes)
