"""The buttons Dehaze, Preview and Undo: layers are added, shown again, and taken back."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_info

from dehazexl.viewing.overviews import ENOUGH
from napari_dehazexl._layer import dehaze_layer
from napari_dehazexl._main_thread import call_later
from napari_dehazexl._messages import report, reported
from napari_dehazexl._region import middle_of, on_screen
from napari_dehazexl._selection import dehazed_layers
from napari_dehazexl._source import OverviewsPending
from napari_dehazexl._state import choices_of, original_of, session_of_layer, state_of, update_state

if TYPE_CHECKING:
    from napari.layers import Image

    from dehazexl.viewing.choices import Choices
    from dehazexl.viewing.overviews import OverviewBuilder
    from napari_dehazexl._chosen import Chosen
    from napari_dehazexl._network import Network


@dataclass(frozen=True, eq=False)
class Press:
    """What one press of Dehaze has changed. Layers that are gone drop out.

    Attributes
    ----------
    visible
        The images and whether they were visible; of dehazed layers, those that were hidden.
    added, resumed
        Dehazed layers that were added, and those whose work had been stopped.
    """

    visible: weakref.WeakKeyDictionary[Any, bool] = field(default_factory=weakref.WeakKeyDictionary)
    added: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    resumed: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)


class Dehazing:
    """Adds dehazed layers to a viewer, and takes them back.

    Parameters
    ----------
    chosen
        The choices of the form.
    network
        The chosen network.
    added
        Called after a layer was added.
    changed
        Called when a layer starts to wait for its overviews.

    Attributes
    ----------
    waiting : dict
        The overviews that a layer waits for before it is dehazed, and the press that asked for it.
    gone : bool
        Whether the form is gone.
    """

    def __init__(
        self, chosen: Chosen, network: Network, added: Callable[[], None], changed: Callable[[], None]
    ) -> None:
        self.chosen, self.viewer, self.network = chosen, chosen.viewer, network
        self.added, self.changed = added, changed
        self.waiting: dict[Image, tuple[OverviewBuilder, Press]] = {}
        self.gone = False
        self._presses: list[Press] = []

    def dehaze(self, layers: list[Image]) -> None:
        """Add dehazed layers, or show and restart those that exist."""
        press = Press()
        self._presses.append(press)
        for layer in layers:
            self._dehaze(layer, press)

    def _dehaze(self, layer: Image, press: Press) -> None:
        """Dehaze a layer, at once or when it has overviews."""
        with reported():
            self.network.check()
            press.visible[layer] = layer.visible
            try:
                self._show_or_add(layer, press)
            except OverviewsPending as pending:
                self._wait_for(layer, pending.builder, press)

    def _show_or_add(self, layer: Image, press: Press) -> None:
        """Show and restart a dehazed layer of the same settings, or add one."""
        request = self.chosen.request(layer)
        there = [(each, s) for each, s in dehazed_layers(self.viewer) if state_of(each).preview_of is None]
        alike = [(each, s) for each, s in there if original_of(each) is layer and request.fits(s)]
        if not alike:
            press.added.add(self._add(layer, request.choices, self._name(layer, request.choices)))
            return
        dehazed, session = alike[-1]
        if not session.running:
            press.resumed.add(dehazed)
        if not dehazed.visible:
            press.visible[dehazed] = False
        report(request.image, None)
        session.restart()
        dehazed.visible = True
        self.viewer.layers.selection.active = dehazed

    def _wait_for(self, layer: Image, builder: OverviewBuilder, press: Press) -> None:
        """Dehaze a layer when its overviews are there."""
        self.waiting[layer] = builder, press
        builder.finished.connect(self._overviews_finished)
        if not builder.running:  # just now
            self._overviews_finished()
        show_info(f"{layer.name} is dehazed as soon as its overviews are there; Preview and Save work at once")
        self.changed()

    def _overviews_finished(self) -> None:
        """Start what has waited; called in the thread that computes."""
        call_later(self._start_waiting)

    def _start_waiting(self) -> None:
        for layer in [layer for layer, (builder, _) in self.waiting.items() if not builder.running]:
            _, press = self.waiting.pop(layer)
            if not self.gone and layer in self.viewer.layers:
                self._dehaze(layer, press)

    def undo(self) -> None:
        """Take back the last press of Dehaze that has changed anything.

        Raises
        ------
        ValueError
            If there is none.
        """
        while self._presses:
            if self._take_back(self._presses.pop()):
                return
        raise ValueError("there is nothing to undo: no layer is left that Dehaze has added")

    def _take_back(self, press: Press) -> bool:
        """Stop the work of a press, remove its layers, and show the others as before; return whether it had any."""
        layers = self.viewer.layers
        added, resumed = ([each for each in layers if each in some] for some in (press.added, press.resumed))
        waiting = [layer for layer, (_, by) in self.waiting.items() if by is press]
        hidden = [each for each in dehazed_layers(self.viewer) if each[0] in press.visible and each[0].visible]
        if not added and not resumed and not waiting and not hidden:
            return False
        for layer in waiting:
            del self.waiting[layer]
        for layer in resumed:
            if (session := session_of_layer(layer)) is not None:
                session.close()
        for layer in added:
            layers.remove(layer)  # its work ends with it
        for layer in layers:
            layer.visible = press.visible.get(layer, layer.visible)
        sources = [each for each in layers if each in press.visible and original_of(each) is each]
        layers.selection = set(sources) or layers.selection
        self.changed()
        return True

    def preview(self) -> None:
        """Add a preview; it replaces the last one of the layer, unless there is an error."""
        layer = self.chosen.source()
        self.network.check()
        region = self.chosen.region(layer) or on_screen(self.viewer, layer)
        name = f"{layer.name} preview"
        try:
            added = self._add(layer, self.chosen.choices(layer, region), name)
        except OverviewsPending:  # the middle of the view needs none
            added = self._add(layer, self.chosen.choices(layer, middle_of(region, ENOUGH)), name)
        for old in [old for old in self.viewer.layers if _previewed_by(old) is layer]:
            self.viewer.layers.remove(old)
        update_state(added, preview_of=weakref.ref(layer))
        added.name = name

    def _add(self, layer: Image, choices: Choices, name: str) -> Image:
        """Add a layer, above those that were dehazed before: they would hide it."""
        added = dehaze_layer(
            layer, strength=choices.strength, overlap=choices.overlap, weights=choices.weights, device=choices.device,
            dtype=choices.dtype, value_range=choices.value_range, region=choices.region, context=choices.context,
            name=name, cache=self.chosen.form.cache.value * 2**20, viewer=self.viewer,
        )  # fmt: skip
        self.added()
        layers = self.viewer.layers
        layers.move(layers.index(added), max(layers.index(each) for each, _ in dehazed_layers(self.viewer)) + 1)
        return added

    def _name(self, layer: Image, choices: Choices) -> str:
        """Return the name of a dehazed layer: with what tells it from the others of its source."""
        others = [
            choices_of(session)
            for each, session in dehazed_layers(self.viewer)
            if original_of(each) is layer and state_of(each).preview_of is None
        ]
        # Without an own range all have that of the image.
        same = choices.value_range is None
        label = choices.label([replace(each, value_range=None) if same else each for each in others])
        return f"{layer.name} dehazed ({label})" if label else f"{layer.name} dehazed"


def _previewed_by(layer: Any) -> Any:
    """Return the layer that a preview previews, None for any other layer."""
    source = state_of(layer).preview_of
    return None if source is None else source()
