"""The dock widget: choose a layer, see it dehazed, save it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Shapes
from napari.utils.notifications import show_info

from dehazexl.viewing.choices import PRESETS
from dehazexl.viewing.device_memory import in_use
from dehazexl.viewing.meter import in_words
from dehazexl.viewing.model_info import ModelInfo
from napari_dehazexl._ask import ask_file, ask_folder, suffix_of
from napari_dehazexl._chosen import Chosen
from napari_dehazexl._compare import Divider, results_in, show_original_on_key
from napari_dehazexl._dehazing import Dehazing
from napari_dehazexl._estimate import estimated
from napari_dehazexl._form import Form
from napari_dehazexl._items import items_of, layers_to_save
from napari_dehazexl._layer import paused_in, set_local_strength, set_strength
from napari_dehazexl._main_thread import call_later
from napari_dehazexl._messages import reported
from napari_dehazexl._network import Network
from napari_dehazexl._region import drawn
from napari_dehazexl._request import DehazeRequest, network_of
from napari_dehazexl._saver import Saver
from napari_dehazexl._selection import current_results, dehazed_layers, selected_sources, working_layers
from napari_dehazexl._settings import Settings
from napari_dehazexl._source import planes_of
from napari_dehazexl._state import is_result, session_of_layer

if TYPE_CHECKING:
    import napari.viewer

    from napari_dehazexl._items import SaveItem
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
        self._chosen = Chosen(self)
        self._network = Network(self._chosen, self._changed)
        self._dehazing = Dehazing(self._chosen, self._network, self._spared, self._changed)
        self._divider = Divider(self.viewer)
        self._settings = Settings(self.native)
        self._saver = Saver(self.viewer, self.bar, self._settings)
        self._factory = {name: getattr(self, name).value for name in SETTINGS}
        self._set(self._settings.values)
        self._connect()
        self._network.find_devices(self._settings.values.get("device"))
        self._network.look_up()

    @property
    def _saving(self) -> Saving | None:
        """The save under way."""
        return self._saver.worker

    def _connect(self) -> None:
        from superqt.utils import qthrottled

        buttons = {
            "dehaze": self._dehaze, "preview": self._preview, "save_as": self._ask_and_save, "explain": self._explain,
            "undo": self._undo, "cancel": self._cancel, "defaults": self._restore, "draw": self._draw,
            "contrast": self._take_contrast, "script": partial(self._copy, "as_script"),
            "command": partial(self._copy, "as_command"), "maps": self._map,
        }  # fmt: skip
        for name, slot in buttons.items():
            getattr(self, name).changed.connect(slot)
        self.strength.changed.connect(self._set_strength)
        for name in SETTINGS:
            getattr(self, name).changed.connect(self._remember)
        for widget in (self.weights, self.device, self.precision):
            widget.changed.connect(self._network.look_up)
        self._spare_soon = qthrottled(self._show_spared, timeout=INTERVAL, leading=False, parent=self.native)
        self._update_soon = qthrottled(self._update, timeout=INTERVAL, leading=False, parent=self.native)
        for each in (self.region, self.overlap, self.context, self.planes):
            each.changed.connect(self._changed)
        self.preset.changed.connect(self._take_preset)
        self.spare.changed.connect(self._follow_spare)
        self.divide.changed.connect(self._divide)
        show_original_on_key(self.viewer)
        self.input.changed.connect(self._show_range)
        self.limits.changed.connect(self._chosen.enter_range)
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
        """Show the values of black and white of the input."""
        self._chosen.show_range()
        layer = self.input.value
        self.planes.visible = layer is not None and len(planes_of(layer)) > 1
        self._changed()

    def _take_contrast(self) -> None:
        """Take over the contrast limits of the input as black and white."""
        with reported():
            self._chosen.take_contrast()

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
        for layer in current_results(self.viewer, self.input.value):
            set_local_strength(layer, self._chosen.local(layer))

    # Regions

    def _draw(self) -> None:
        """Add a layer to draw a rectangle in, and let it be the region."""
        with reported():
            source = self._chosen.source()
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
        with reported():
            self._dehazing.dehaze(self._chosen.sources())

    def _preview(self) -> None:
        """Add a preview of what is on screen, or of the region."""
        with reported():
            self._dehazing.preview()

    def _undo(self) -> None:
        """Take back the last press of Dehaze."""
        with reported():
            self._dehazing.undo()

    def _cancel(self) -> None:
        """Stop the save; or else what is waited for, dehazed and explained: in the selected layers, or in all."""
        if self._saver.cancel():
            return
        self._dehazing.waiting.clear()
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
            layer = self._in_view()
            drawings = [each for each in self.viewer.layers if isinstance(each, Shapes) and len(each.data)]
            shapes = self.region.value or (drawings[-1] if drawings else None)
            if shapes is None:
                raise ValueError("there is no region to explain: draw a rectangle in a Shapes layer")
            added = explain_layer(layer, drawn(self.viewer, shapes, layer), viewer=self.viewer)
            self.viewer.layers.selection.active = added

    def _in_view(self) -> Image:
        """Return the dehazed layer in view, the active or the topmost one."""
        dehazed = [layer for layer, _ in dehazed_layers(self.viewer) if layer.visible]
        if not dehazed:
            raise ValueError("there is no dehazed layer in view: dehaze an image first")
        active = self.viewer.layers.selection.active
        return active if active in dehazed else dehazed[-1]

    def _map(self) -> None:
        """Add maps of the haze of the dehazed layer, the active or the topmost one."""
        from napari_dehazexl._maps import show_maps  # torch, see `_explain`

        with reported():
            show_maps(self.viewer, self._in_view())

    # Saving

    def _ask_and_save(self) -> None:
        with reported():
            if self._saving is not None:
                raise ValueError("an image is being saved: wait for it, or cancel it")
            self._network.check()
            files = self._files_to_save()
            if files:
                info = self._network.info
                self._saver.start(files, info if isinstance(info, ModelInfo) else None, self._changed)

    def _files_to_save(self) -> list[tuple[SaveItem, Path]]:
        """Ask where to save the selected layers, or all planes of them."""
        layers, every = layers_to_save(self.viewer, self._chosen.source()), self.planes.value == "all"
        # Requests are made first, to report errors before a name is asked for.
        items = [item for layer in layers for item in items_of(layer, self._request_to_save, every)]
        if len(items) > 1:
            return ask_folder(self.native, items)
        path = ask_file(self.native, items[0])
        return [] if path is None else [(items[0], path)]

    def _request_to_save(self, layer: Image) -> DehazeRequest:
        """Return the request to dehaze a layer with the current settings, and with what is painted to be spared."""
        request = self._chosen.request(layer)
        return replace(request, local=self._chosen.local(layer, request.choices.region))

    def _copy(self, kind: str) -> None:
        """Copy lines that do what Save as does, for a terminal or a script."""
        from qtpy.QtWidgets import QApplication

        with reported():
            layer = self._chosen.source()
            request = self._chosen.request(layer)
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
        self._gone = self._network.gone = self._dehazing.gone = True
        self._saver.leave()
        self._settings.write()

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
        _set_text(self.status, self._waited_for() or (shown[-1] + self._memory() if shown else ""))
        for _, session in dehazed_layers(self.viewer):
            if math.isfinite(rate := session.rate):  # read once: another thread changes it
                self._settings.measured(network_of(session), 1 / rate, replace=False)
        if self.divide.value and not any(is_result(layer) for layer in self.viewer.layers):
            self.divide.value = False
        self._show_strength()
        _set_text(self.estimate, self._estimate())

    def _memory(self) -> str:
        """Return the memory of the device while something is computed, to follow the status."""
        busy = any(session.hurried for _, session in dehazed_layers(self.viewer))
        words = in_use(self.device.value) if busy and isinstance(self._network.info, ModelInfo) else ""
        return f"; {words}" if words else ""

    def _waited_for(self) -> str:
        """Return how far the overviews are that a layer waits for, and show it in the bar; asks again soon."""
        if self._saving is None:
            self.bar.visible = bool(self._dehazing.waiting)
        for layer, (builder, _) in self._dehazing.waiting.items():
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
        info = self._network.info
        if isinstance(info, str):
            return info
        if info is None:
            return "..."
        level = layer.data[0] if layer.multiscale else layer.data
        height, width = level.shape[layer.ndim - 2 : layer.ndim]
        try:
            region = self._chosen.region(layer)
        except ValueError as error:
            return str(error)
        if region is not None and self.context.value == "region":
            height, width = region[1] - region[0], region[3] - region[2]
        speed = self._settings.speed(self._chosen.network())
        line = estimated(info.grid(height, width, self.overlap.value), info, speed)
        planes = len(planes_of(layer)) if self.planes.value == "all" else 1
        return line if planes == 1 else f"{line}, for each of {planes} planes"

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


def _set_text(label: Any, text: str) -> None:
    if label.value != text:
        label.value = text
