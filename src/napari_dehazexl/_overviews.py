"""Overviews of large images: computed in the background, shown as they come, kept for the next time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_dehazexl._main_thread import call_later
from napari_dehazexl._messages import report
from napari_dehazexl._state import shows_as_read, state_of, update_state

if TYPE_CHECKING:
    from dehazexl.image.image import Image
    from dehazexl.viewing.overviews import OverviewBuilder
    from dehazexl.viewing.shown import ShownImage

_builds: set[Build] = set()  # those under way: napari and psygnal hold only weak references to what they call


def cache_folder() -> Path:
    """Return the user's folder for overviews."""
    from platformdirs import user_cache_path

    return user_cache_path("napari-dehazexl") / "overviews"


def shown(image: Image, builder: OverviewBuilder | None = None) -> ShownImage:
    """Return an image whose levels napari can show."""
    from dehazexl.viewing.shown import ShownImage

    return ShownImage(image, cache_folder(), report, builder)


def with_kept_overviews(image: Image) -> Image:
    """Return an image with its own overviews, or those that were kept of it."""
    from dehazexl.viewing.overviews import with_overviews

    return with_overviews(image, cache_folder())


def reopened(image: Image) -> Image:
    """Return an image as its file holds it now: it may have been written again since it was opened.

    Raises
    ------
    ValueError
        If the file holds another image, or none, now.
    """
    from dehazexl import open_image
    from dehazexl.viewing.shown import CHANGED

    if image.path is None or not image.path.exists():
        return image
    again = open_image(image.path)
    if again.fingerprint == image.fingerprint:
        return image
    if (again.levels[0].shape, again.levels[0].dtype) != (image.levels[0].shape, image.levels[0].dtype):
        raise ValueError(f"{image.name}: {CHANGED}")
    return replace(image, levels=with_kept_overviews(again).levels, fingerprint=again.fingerprint)


def build(image: Image, folder: Path | None = None) -> OverviewBuilder:
    """Compute the overviews of an image in the background, and show in the viewers what there is of them.

    Without Qt nothing is refreshed, but layers answer with the overviews from then on.
    """
    from qtpy.QtWidgets import QApplication

    from dehazexl.viewing.overviews import OverviewBuilder

    builder = OverviewBuilder(image, folder or cache_folder())
    if QApplication.instance() is not None:
        Build(builder)
    builder.start()
    return builder


class Build:
    """Refreshes the layers of an image whose overviews are computed; ends that when the last layer is removed."""

    def __init__(self, builder: OverviewBuilder) -> None:
        self.builder, self.seen = builder, False
        builder.updated.connect(self.changed)
        builder.finished.connect(self.changed)
        for viewer in viewers():
            viewer.layers.events.removed.connect(self.changed)
        _builds.add(self)

    def layers(self) -> list[Any]:
        """List the layers that wait for the overviews, in any viewer."""
        return [layer for viewer in viewers() for layer in viewer.layers if state_of(layer).overviews is self.builder]

    def changed(self, event: Any = None) -> None:
        """Show what has changed, from whatever thread."""
        call_later(self.show)

    def show(self) -> None:
        """Refresh the layers, or end."""
        layers = self.layers()
        self.seen = self.seen or bool(layers)
        if self.builder.done or (self.seen and not layers):
            self.end(layers)
            return
        for layer in filter(shows_as_read, layers):
            layer.refresh(extent=False, thumbnail=False, highlight=False)

    def end(self, layers: list[Any]) -> None:
        """Let the layers read the overviews, or what stands for them."""
        from napari.utils.notifications import show_error, show_info

        if self not in _builds:
            return
        _builds.discard(self)
        self.builder.close()
        for layer in layers:
            if shows_as_read(layer):  # not if it was given other pixels meanwhile
                take_over(layer, self.builder)
            elif state_of(layer).image is None:
                show_info(f"{layer.name} can be dehazed now")
        if self.builder.error is not None and layers:
            show_error(f"{self.builder.image.name} stays blurred from afar, without overviews: {self.builder.error}")


def viewers() -> list[Any]:
    """List the open viewers."""
    import napari

    # The current one alone would not do: overviews are computed for a window that lies behind another, too.
    known = getattr(napari.Viewer, "_instances", [napari.current_viewer()])
    return [viewer for viewer in known if viewer is not None]


def take_over(layer: Any, builder: OverviewBuilder) -> None:
    """Let a layer read the overviews that were computed for it."""
    from napari_dehazexl._levels import set_levels

    image, limits, state = builder.image, layer.contrast_limits, state_of(layer)
    levels = shown(image).colors(state.value_range) if state.band is None else shown(image).band(state.band)
    update_state(layer, image=image, overviews=None, finest=levels[0].name)
    set_levels(layer, levels)
    layer.contrast_limits = limits
