"""The layers that the widget works on: those that are selected in the list of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.layers import Image

from napari_dehazexl._state import is_result, original_of, session_of_layer, state_of

if TYPE_CHECKING:
    from dehazexl.viewing.explaining import ExplainSession
    from dehazexl.viewing.mapping import MapSession
    from dehazexl.viewing.session import DehazeSession


def chosen_sources(viewer: Any, layer: Image | None) -> list[Image]:
    """Return the images to dehaze: the selected ones if the chosen layer is one of them, else that layer alone."""
    selected = selected_sources(viewer)
    return selected if layer in selected else [] if layer is None else [layer]


def selected_sources(viewer: Any) -> list[Image]:
    """Return the selected images, from the lowest; dehazed layers stand for their source."""
    selected = [each for each in viewer.layers if each in viewer.layers.selection and isinstance(each, Image)]
    sources = [source for each in selected if (source := original_of(each)) is not None and source in viewer.layers]
    return list(dict.fromkeys(sources))


def dehazed_layers(viewer: Any) -> list[tuple[Image, DehazeSession]]:
    """List the layers with a session, running or stopped, from the lowest, and the sessions."""
    both = [(layer, session_of_layer(layer)) for layer in viewer.layers]
    return [(layer, session) for layer, session in both if session is not None]


def working_layers(viewer: Any) -> list[tuple[Image, DehazeSession | ExplainSession | MapSession]]:
    """List the layers that are dehazed, explained or mapped, from the lowest, and the sessions, running or stopped."""
    both = [(layer, session_of_layer(layer) or state_of(layer).about) for layer in viewer.layers]
    return [(layer, session) for layer, session in both if session is not None]


def current_results(viewer: Any, source: Image | None) -> list[Image]:
    """Return the dehazed layers that the slider of the strength is for.

    They are the selected ones, or else the topmost visible one of the chosen source. Saved layers count: they can be
    dehazed again.
    """
    results = [each for each in viewer.layers if isinstance(each, Image) and is_result(each)]
    results = [each for each in results if state_of(each).about is None]
    selected = [each for each in results if each in viewer.layers.selection]
    of_source = [each for each in results if each.visible and original_of(each) is source]
    return selected or of_source[-1:]
