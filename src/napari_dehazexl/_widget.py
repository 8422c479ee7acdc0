"""The dock widget: choose a layer, see it dehazed, save it."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Shapes
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info

from dehazexl.viewing.choices import PRESETS, Choices
from dehazexl.viewing.meter import in_words
from dehazexl.viewing.model_info import ModelInfo
from dehazexl.viewing.overviews import ENOUGH
from napari_dehazexl._ask import ask_file, ask_folder, suffix_of
from napari_dehazexl._compare import Divider, results_in, show_original_on_key
from napari_dehazexl._estimate import estimated
from napari_dehazexl._form import Form, format_range, parse_range
from napari_dehazexl._items import items_of, layers_to_save
from napari_dehazexl._layer import dehaze_layer, paused_in, set_local_strength, set_strength, written
from napari_dehazexl._local import local_strength
from napari_dehazexl._main_thread import call_later
from napari_dehazexl._messages import report
from napari_dehazexl._prepare import devices, get_ready, look_up
from napari_dehazexl._region import drawn, middle_of, on_screen
from napari_dehazexl._request import DehazeRequest, network_of
from napari_dehazexl._save_worker import Named
from napari_dehazexl._saver import Saver
from napari_dehazexl._selection import (
    chosen_sources,
    current_results,
    dehazed_layers,
    selected_sources,
    working_layers,
)
from napari_dehazexl._settings import Settings
from napari_dehazexl._source import OverviewsPending, contrast_of, image_in, planes_of, range_of
from napari_dehazexl._state import choices_of, original_of, session_of_layer, state_of, update_state

if TYPE_CHECKING:
    import napari.viewer

    from dehazexl.viewing.overviews import OverviewBuilder
    from napari_dehazexl._items import SaveItem
    from napari_dehazexl._region import Region
    from napari_dehazexl._save_worker import Saving

SETTINGS = ("weights", "device", "precision", "overlap", "strength", "context", "cache")
"""Widgets whose values are remembered. A value range is not: it suits one image only."""

INTERVAL = 300
"""Milliseconds between two changes of the estimate and the status, at least."""


class Dehaze(Form):
    """Dehaze images in the viewer, and save them.

    Parameters
    ----------
    napari_viewer
        The viewer that the widget is docked in.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__(napari_viewer)
        self._gone = False
        self._model: ModelInfo | str | None = None
        self._ranges: weakref.WeakKeyDictionary[Image, str] = weakref.WeakKeyDictionary()  # entered, by layer
        self._divider = Divider(self.viewer)
        self._waiting: dict[Image, OverviewBuilder] = {}  # to be dehazed once they have overviews
        self._settings = Settings(self.native)
        self._saver = Saver(self.viewer, self.bar, self._settings)
        self._factory = {name: getattr(self, name).value for name in SETTINGS}
        self._set(self._settings.values)
        self._connect()
        self._find_devices()
        self._look_up()

    @property
    def _saving(self) -> Saving | None:
        """The save under way."""
        return self._saver.worker

    def _connect(self) -> None:
        from superqt.utils import qthrottled

        buttons = {
            "dehaze": self._dehaze, "preview": self._preview, "save_as": self._ask_and_save, "explain": self._explain,
            "cancel": self._cancel, "defaults": self._restore, "draw": self._draw, "contrast": self._take_contrast,
            "script": partial(self._copy, "as_script"), "command": partial(self._copy, "as_command"),
        }  # fmt: skip
        for name, slot in buttons.items():
            getattr(self, name).changed.connect(slot)
        self.strength.changed.connect(self._set_strength)
        for name in SETTINGS:
            getattr(self, name).changed.connect(self._remember)
        for widget in (self.weights, self.device, self.precision):
            widget.changed.connect(self._look_up)
        self._spare_soon = qthrottled(self._show_spared, timeout=INTERVAL, leading=False, parent=self.native)
        self._update_soon = qthrottled(self._update, timeout=INTERVAL, leading=False, parent=self.native)
        for each in (self.region, self.overlap, self.context, self.planes):
            each.changed.connect(self._changed)
        self.preset.changed.connect(self._take_preset)
        self.spare.changed.connect(self._follow_spare)
        self.divide.changed.connect(self._divide)
        show_original_on_key(self.viewer)
        self.input.changed.connect(self._show_range)
        self.limits.changed.connect(self._enter_range)
        self.viewer.layers.events.connect(self._changed)  # of each layer: shapes that are drawn, names, visibility
        self.viewer.layers.selection.events.changed.connect(self._follow)
        self._follow()
        self._show_range()
        self.native_parent_changed.connect(self._moved)
        self.native.destroyed.connect(self._leave)

    # Input and settings

    def _follow(self, event: Any = None) -> None:
        """Let the input and the strength follow the selected layers."""
        if self._gone:
            return
        self.input.reset_choices()
        self.spare.reset_choices()
        selected = selected_sources(self.viewer)
        if selected and self.input.value not in selected:
            self.input.value = selected[-1]
        self._show_strength()
        self._changed()

    def _show_strength(self) -> None:
        """Show the strength of the dehazed layer that the slider is for, and thumbnails of others."""
        sessions = [session_of_layer(layer) for layer in current_results(self.viewer, self.input.value)]
        self.thumbnails.show_of(sessions[-1] if sessions else None)
        for layer in current_results(self.viewer, self.input.value)[-1:]:
            session = session_of_layer(layer) or paused_in(layer)
            if session is not None and session.strength != self.strength.value:
                with self.strength.changed.blocked():
                    self.strength.value = session.strength

    def _set_strength(self, strength: float) -> None:
        for layer in current_results(self.viewer, self.input.value):
            if session_of_layer(layer) is not None or paused_in(layer) is not None:
                set_strength(layer, strength)

    def _show_range(self) -> None:
        """Show the values of black and white of the input: those entered, or in gray those of the image."""
        layer = self.input.value
        with self.limits.changed.blocked():
            self.limits.value = "" if layer is None else self._ranges.get(layer, "")
        self.limits.native.setPlaceholderText("" if layer is None else self._own_range(layer))
        self.planes.visible = layer is not None and len(planes_of(layer)) > 1
        self._changed()

    def _own_range(self, layer: Image) -> str:
        """Return the values of black and white of the image of a layer, unless reading them would take long."""
        own = state_of(layer).value_range
        at_once = own is not None or isinstance(layer.data, np.ndarray) or layer.dtype == np.uint8
        try:
            return format_range(own or range_of(layer, image_in(layer, self.viewer))) if at_once else "the image's own"
        except (ValueError, OSError):  # a click on a button shows why
            return ""

    def _enter_range(self, text: str) -> None:
        """Keep what was entered for the input: it suits no other image."""
        if self.input.value is not None:
            self._ranges[self.input.value] = text

    def _take_contrast(self) -> None:
        """Take over the contrast limits of the input as black and white."""
        with reported():
            self.limits.value = format_range(contrast_of(self._source()))

    def _take_preset(self, name: str | None) -> None:
        """Take over the settings of a preset."""
        for setting, value in PRESETS.get(name or "", {}).items():
            getattr(self, setting).value = value

    def _divide(self, shown: bool) -> None:
        """Show or hide the line between the original and the dehazed layers."""
        with reported():
            if not shown:
                self._divider.hide()
                return
            try:
                if not results_in(self.viewer):
                    raise ValueError("there is nothing to compare: dehaze an image first")
                self._divider.show()
            except ValueError:
                self.divide.value = False
                raise

    # Local strength

    def _follow_spare(self) -> None:
        """Follow what is painted in the layer that spares parts of the image."""
        layer = self.spare.value
        for name in ("paint", "labels_update", "set_data", "data"):
            if layer is not None and hasattr(layer.events, name):
                getattr(layer.events, name).connect(self._spared)
        self._spared()

    def _spared(self, event: Any = None) -> None:
        if not self._gone:
            self._spare_soon()

    def _show_spared(self) -> None:
        """Show the dehazed layers of the input with the local strength of now."""
        painted = self.spare.value
        for layer in current_results(self.viewer, self.input.value):
            set_local_strength(layer, None if painted is None else local_strength(painted, layer))

    def _choices(self, layer: Image, region: Region | None) -> Choices:
        """Return the settings to dehaze a layer with."""
        weights, device, dtype = self._network()
        entered = parse_range(self._ranges.get(layer, ""))
        return Choices(
            weights, device, dtype, self.overlap.value, self.strength.value, entered, region, self.context.value
        )

    def _network(self) -> tuple[str, str, str]:
        """Return weights, device and dtype."""
        return self.chosen_weights(), self.device.value, self.precision.value

    def _source(self) -> Image:
        layer = self.input.value
        if layer is None:
            raise ValueError("there is no image layer: open an image first")
        return layer

    def _sources(self) -> list[Image]:
        """Return the layers to dehaze: all that are selected, if the input is one of them."""
        return chosen_sources(self.viewer, self._source())

    # Regions

    def _region(self, layer: Image) -> Region | None:
        return None if self.region.value is None else drawn(self.viewer, self.region.value, layer)

    def _draw(self) -> None:
        """Add a layer to draw a rectangle in, and let it be the region."""
        with reported():
            source = self._source()
            edge = max(1.0, max(source.extent.world[1] - source.extent.world[0]) / 300)
            shapes = self.viewer.add_shapes(
                ndim=2, name="region", face_color="transparent", edge_color="#ffb000", edge_width=edge,
                units=source.units[-2:],
            )  # fmt: skip
            self.region.reset_choices()
            self.region.value = shapes
            shapes.mode = "add_rectangle"
            self.viewer.status = "Draw a rectangle on the canvas, then press Dehaze."

    # Dehazing

    def _dehaze(self) -> None:
        """Add dehazed layers, or show and restart those that exist."""
        for layer in self._reported_sources():
            self._dehaze_one(layer)

    def _reported_sources(self) -> list[Image]:
        with reported():
            return self._sources()
        return []

    def _dehaze_one(self, layer: Image) -> None:
        """Dehaze a layer, at once or when it has overviews."""
        with reported():
            self._check_weights()
            try:
                self._show_or_add(layer)
            except OverviewsPending as pending:
                self._wait_for(layer, pending.builder)

    def _show_or_add(self, layer: Image) -> None:
        """Show and restart a dehazed layer of the same settings, or add one."""
        request = self._request(layer)
        there = [(each, s) for each, s in dehazed_layers(self.viewer) if state_of(each).preview_of is None]
        alike = [(each, s) for each, s in there if original_of(each) is layer and request.fits(s)]
        if not alike:
            self._add(layer, request.choices, self._name(layer, request.choices))
            return
        dehazed, session = alike[-1]
        report(request.image, None)
        session.restart()
        dehazed.visible = True
        self.viewer.layers.selection.active = dehazed

    def _check_weights(self) -> None:
        """Check the weights before a layer is added that they could not dehaze."""
        if self._model is None and "torch" in sys.modules:
            self._model = look_up(*self._network())  # the header of a file
        if isinstance(self._model, str):
            raise ValueError(self._model)

    def _wait_for(self, layer: Image, builder: OverviewBuilder) -> None:
        """Dehaze a layer when its overviews are there."""
        self._waiting[layer] = builder
        builder.finished.connect(self._overviews_finished)
        if not builder.running:  # just now
            self._overviews_finished()
        show_info(f"{layer.name} is dehazed as soon as its overviews are there; Preview and Save work at once")
        self._changed()

    def _overviews_finished(self) -> None:
        """Start what has waited; called in the thread that computes."""
        call_later(self._start_waiting)

    def _start_waiting(self) -> None:
        ready = [layer for layer, builder in self._waiting.items() if not builder.running]
        for layer in ready:
            del self._waiting[layer]
            if not self._gone and layer in self.viewer.layers:
                self._dehaze_one(layer)

    def _preview(self) -> None:
        """Add a preview; it replaces the last one of the layer, unless there is an error."""
        with reported():
            layer = self._source()
            self._check_weights()
            region = self._region(layer) or on_screen(self.viewer, layer)
            name = f"{layer.name} preview"
            try:
                added = self._add(layer, self._choices(layer, region), name)
            except OverviewsPending:  # the middle of the view needs none
                added = self._add(layer, self._choices(layer, middle_of(region, ENOUGH)), name)
            for old in [old for old in self.viewer.layers if _previewed_by(old) is layer]:
                self.viewer.layers.remove(old)
            update_state(added, preview_of=weakref.ref(layer))
            added.name = name

    def _add(self, layer: Image, choices: Choices, name: str) -> Image:
        """Add a layer, above those that were dehazed before: they would hide it."""
        added = dehaze_layer(
            layer, strength=choices.strength, overlap=choices.overlap, weights=choices.weights, device=choices.device,
            dtype=choices.dtype, value_range=choices.value_range, region=choices.region, context=choices.context,
            name=name, cache=self.cache.value * 2**20, viewer=self.viewer,
        )  # fmt: skip
        self._spared()
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

    def _request(self, layer: Image) -> DehazeRequest:
        """Return the request to dehaze a layer with the current settings."""
        choices, image = self._choices(layer, self._region(layer)), image_in(layer, self.viewer)
        return DehazeRequest(image, choices, choices.value_range or range_of(layer, image), written(choices.weights))

    def _cancel(self) -> None:
        """Stop the save; or else what is waited for, dehazed and explained: in the selected layers, or in all."""
        if self._saver.cancel():
            return
        self._waiting.clear()
        working = working_layers(self.viewer)
        selected = [each for each in working if each[0] in self.viewer.layers.selection]
        for _, session in selected or working:
            session.close()
        self._changed()

    # Explaining

    def _explain(self) -> None:
        """Add a map of what contributes to the rectangle in the dehazed layer, the active or the topmost one."""
        from napari_dehazexl._explain import explain_layer  # torch, which is imported in a thread by now

        with reported():
            dehazed = [layer for layer, _ in dehazed_layers(self.viewer) if layer.visible]
            if not dehazed:
                raise ValueError("there is no dehazed layer in view: dehaze an image first")
            active = self.viewer.layers.selection.active
            layer = active if active in dehazed else dehazed[-1]
            drawings = [each for each in self.viewer.layers if isinstance(each, Shapes) and len(each.data)]
            shapes = self.region.value or (drawings[-1] if drawings else None)
            if shapes is None:
                raise ValueError("there is no region to explain: draw a rectangle in a Shapes layer")
            added = explain_layer(layer, drawn(self.viewer, shapes, layer), viewer=self.viewer)
            self.viewer.layers.selection.active = added

    # Saving

    def _ask_and_save(self) -> None:
        with reported():
            if self._saving is not None:
                raise ValueError("an image is being saved: wait for it, or cancel it")
            self._check_weights()
            files = self._files_to_save()
            if files:
                model = self._model if isinstance(self._model, ModelInfo) else None
                self._saver.start(files, model, self._changed)

    def _files_to_save(self) -> list[tuple[SaveItem, Path]]:
        """Ask where to save the selected layers, or all planes of them."""
        layers, every = layers_to_save(self.viewer, self._source()), self.planes.value == "all"
        # Requests are made first, to report errors before a name is asked for.
        items = [item for layer in layers for item in items_of(layer, self._request_to_save, every)]
        if len(items) > 1:
            return ask_folder(self.native, items)
        path = ask_file(self.native, items[0])
        return [] if path is None else [(items[0], path)]

    def _request_to_save(self, layer: Image) -> DehazeRequest:
        """Return the request to dehaze a layer with the current settings, and with what is painted to be spared."""
        request, painted = self._request(layer), self.spare.value
        if painted is None:
            return request
        return replace(request, local=local_strength(painted, layer, request.choices.region))

    def _copy(self, kind: str) -> None:
        """Copy lines that do what Save as does, for a terminal or a script."""
        from qtpy.QtWidgets import QApplication

        with reported():
            layer = self._source()
            request = self._request(layer)
            source = request.image.path
            if source is None:
                raise ValueError(f"{layer.name!r} is in no file: save it first, then open and dehaze that file")
            if len(planes_of(layer)) > 1:
                raise ValueError(f"{layer.name!r} has several planes: save them here, or see dehazexl run --page")
            output = source.with_name(f"{source.name.partition('.')[0]}-dehazed{suffix_of(source)}")
            choices = replace(request.choices, value_range=request.value_range)
            text = getattr(choices, kind)(source, output)
            clipboard = QApplication.clipboard()
            assert clipboard is not None
            clipboard.setText(text)
            show_info("copied")

    def _moved(self, parent: Any) -> None:
        """Cancel the save when the dock is closed: there is no button any more."""
        if self.native.parent() is None:
            self._divider.hide()
            self._saver.cancel()
            self._settings.write()

    def _leave(self) -> None:
        """Cancel the save when the window is gone."""
        self._gone = True
        self._saver.leave()
        self._settings.write()

    def _while_here(self, slot: Callable[..., None]) -> Callable[..., None]:
        """Return a slot that does nothing once the window is gone."""
        return lambda *values: None if self._gone else slot(*values)

    # Estimate and status

    def _changed(self, event: Any = None) -> None:
        """Update the estimate and the status soon."""
        if not self._gone:
            self._update_soon()

    def _progressed(self) -> None:
        """Update them for a session; called in the thread that computes."""
        call_later(self._changed)

    def _update(self) -> None:
        """Update the estimate, and the status to that of the topmost visible layer."""
        working = working_layers(self.viewer)
        for _, session in working:
            session.progressed.connect(self._progressed, unique=True)  # before its status is read: none is missed
        shown = [f"{layer.name}: {in_words(session.status)}" for layer, session in working if layer.visible]
        _set_text(self.status, self._waited_for() or (shown[-1] if shown else ""))
        for _, session in dehazed_layers(self.viewer):
            if math.isfinite(rate := session.rate):  # read once: another thread changes it
                self._settings.measured(network_of(session), 1 / rate, replace=False)
        self._show_strength()
        _set_text(self.estimate, self._estimate())

    def _waited_for(self) -> str:
        """Return how far the overviews are that a layer waits for, and show it in the bar; asks again soon."""
        if self._saving is None:
            self.bar.visible = bool(self._waiting)
        for layer, builder in self._waiting.items():
            if self._saving is None:
                self.bar.value = int(100 * builder.progress)
                self.bar.native.setFormat("%p%  overviews")
            self._changed()
            return f"{layer.name} is dehazed when its overviews are there, {builder.progress:.0%} are"
        return ""

    def _estimate(self) -> str:
        """Return the estimate, or why there is none."""
        layer = self.input.value
        if layer is None:
            return "Open an image, or drop a file on the window."
        if isinstance(self._model, str):
            return self._model
        if self._model is None:
            return "..."
        level = layer.data[0] if layer.multiscale else layer.data
        height, width = level.shape[layer.ndim - 2 : layer.ndim]
        try:
            region = self._region(layer)
        except ValueError as error:
            return str(error)
        if region is not None and self.context.value == "region":
            height, width = region[1] - region[0], region[3] - region[2]
        speed = self._settings.speed(self._network())
        line = estimated(self._model.grid(height, width, self.overlap.value), self._model, speed)
        planes = len(planes_of(layer)) if self.planes.value == "all" else 1
        return line if planes == 1 else f"{line}, for each of {planes} planes"

    def _look_up(self) -> None:
        """Read the properties of the chosen network, in a thread: importing torch takes seconds."""
        wanted = self._network()
        self._model = None
        self._changed()

        def found(model: ModelInfo | str) -> None:
            if wanted == self._network():
                self._model = model
                self._changed()

        worker: Any = create_worker(Named("reading the weights", look_up), *wanted)
        worker.returned.connect(self._while_here(found))
        worker.start()

    def _find_devices(self) -> None:
        worker: Any = create_worker(Named("looking for devices", devices))
        wanted = self._settings.values.get("device")
        worker.returned.connect(self._while_here(partial(self._list_devices, wanted)))
        worker.start()

    def _list_devices(self, wanted: str | None, found: list[tuple[str, str]]) -> None:
        """List the available devices, and choose the one that is remembered."""
        self.device.choices = found
        if wanted in [name for _, name in found]:
            self.device.value = wanted
        create_worker(Named("loading the network", get_ready), *self._network()).start()

    # Settings

    def _restore(self) -> None:
        self._set(self._factory)
        self.limits.value = ""

    def _set(self, values: dict[str, Any]) -> None:
        for name in SETTINGS:
            try:
                getattr(self, name).value = values.get(name, self._factory[name])
            except (ValueError, TypeError):  # a missing device, or a value of another version
                getattr(self, name).value = self._factory[name]

    def _remember(self) -> None:
        """Remember the settings."""
        values = {name: getattr(self, name).value for name in SETTINGS}
        weights = self.chosen_weights()
        self._settings.remember(**values | {"weights": None if weights == "compact" else weights})


def _previewed_by(layer: Any) -> Any:
    """Return the layer that a preview previews, None for any other layer."""
    source = state_of(layer).preview_of
    return None if source is None else source()


def _set_text(label: Any, text: str) -> None:
    if label.value != text:
        label.value = text


@contextmanager
def reported() -> Iterator[None]:
    """Show an error as a notification."""
    try:
        yield
    except (ValueError, OSError) as error:
        show_error(str(error))
