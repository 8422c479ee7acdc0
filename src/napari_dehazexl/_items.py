"""What Save as writes: one image, or several, each into a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image

from napari_dehazexl._request import DehazeRequest, request_of
from napari_dehazexl._selection import chosen_sources
from napari_dehazexl._source import image_at, planes_of
from napari_dehazexl._state import is_result, original_of, session_of_layer, state_of

if TYPE_CHECKING:
    from napari_dehazexl._save import Steps


@dataclass(frozen=True)
class SaveItem:
    """An image to save.

    Attributes
    ----------
    name
        Name of its file, without a suffix.
    source
        The file that the image was opened from, or None.
    make
        Returns the request to dehaze it. Called when its turn comes, in a thread: the planes of a stack are many.
    """

    name: str
    source: Path | None
    make: Callable[[], DehazeRequest]

    @cached_property
    def request(self) -> DehazeRequest:
        """The request to dehaze the image."""
        return self.make()

    def steps(self, path: Path, stopped: Callable[[], bool]) -> Steps:
        """Return the steps of saving the dehazed image; a file at the path is replaced."""
        return self.request.steps(path, stopped)


def layers_to_save(viewer: Any, layer: Image) -> list[Image]:
    """Return the layers that Save as is for: the input, or all that are selected.

    Of several, a dehazed layer is saved with its own settings, and its source is left out. A single one stands for its
    source, as it does for Dehaze.
    """
    sources = chosen_sources(viewer, layer)
    selected = [each for each in viewer.layers if each in viewer.layers.selection and isinstance(each, Image)]
    dehazed = [each for each in selected if _work_of(each) is not None and original_of(each) in (*sources, None)]
    rest = [source for source in sources if all(original_of(each) is not source for each in dehazed)]
    return [*rest, *dehazed] if len(rest) + len(dehazed) > 1 else sources


def items_of(layer: Image, request: Callable[[Image], DehazeRequest], all_planes: bool) -> list[SaveItem]:
    """Return what is to be saved of a layer.

    Parameters
    ----------
    layer
        The layer. A dehazed one has its own settings.
    request
        Returns the request for any other layer, with the settings of the widget.
    all_planes
        Whether all planes of a stack are to be saved, instead of the one in view. All have the values of black and
        white of that one: the brightness of a series must not jump.
    """
    if (session := _work_of(layer)) is not None:
        return [SaveItem(layer.name, session.whole.path, partial(request_of, session))]
    asked, name = request(layer), f"{layer.name} dehazed"
    planes = planes_of(layer) if all_planes else {}
    if len(planes) < 2:
        return [SaveItem(name, asked.image.path or _path_of(layer), lambda: asked)]
    return [
        SaveItem(f"{name} {place}", _path_of(layer), partial(_of_plane, asked, layer, plane))
        for place, plane in planes.items()
    ]


def _of_plane(request: DehazeRequest, layer: Image, plane: Any) -> DehazeRequest:
    """Return the request for another plane of a layer."""
    return replace(request, image=image_at(layer, plane))


def _work_of(layer: Image) -> Any:
    """Return the session of a dehazed layer, also of one that reads from its file by now; None for other layers."""
    return (session_of_layer(layer) or state_of(layer).paused) if is_result(layer) else None


def _path_of(layer: Image) -> Path | None:
    """Return the file that a layer was opened from, None if there is none on this machine."""
    path = getattr(layer.source, "path", None)
    return Path(path) if path is not None and Path(path).exists() else None
