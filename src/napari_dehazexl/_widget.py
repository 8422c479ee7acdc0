"""The dock widget: choose a layer, see it dehazed, save it."""

from __future__ import annotations

import math
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Shapes
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info, show_warning

from dehazexl.viewing.model_info import ModelInfo
from napari_dehazexl._estimate import Clock, estimated
from napari_dehazexl._explain import explain_layer
from napari_dehazexl._form import Form, parse_range
from napari_dehazexl._layer import dehaze_layer, set_strength, window_of, written
from napari_dehazexl._main_thread import call_later
from napari_dehazexl._messages import report
from napari_dehazexl._prepare import devices, get_ready, look_up
from napari_dehazexl._region import drawn, on_screen
from napari_dehazexl._request import DehazeRequest, network_of
from napari_dehazexl._save import SUFFIXES, Progress, read_from_file, tokens_of
from napari_dehazexl._save_worker import SaveResult, Saving, in_thread
from napari_dehazexl._settings import Settings
from napari_dehazexl._source import source_of
from napari_dehazexl._state import state_of, update_state

if TYPE_CHECKING:
    import napari.viewer

    from dehazexl.viewing.explaining import ExplainSession
    from dehazexl.viewing.session import DehazeSession
    from napari_dehazexl._region import Region

SAVE = "Save the dehazed image"

FILTERS = {
    "OME-Zarr (*.ome.zarr *.zarr)": ".ome.zarr",
    "TIFF (*.tif *.tiff)": ".tif",
    "PNG or JPEG, for small images (*.png *.jpg *.jpeg)": ".png",
}
"""Filters of the file dialog, and the suffix for a name without one."""

SETTINGS = ("weights", "device", "precision", "overlap", "strength", "cache")
"""Widgets whose values are remembered. A value range is not: it suits one image only."""

INTERVAL = 300
"""Milliseconds between two changes of the estimate and the status, at least."""


class Dehaze(Form):
    """Dehaze an RGB layer in the viewer, and save it.

    Parameters
    ----------
    napari_viewer
        The viewer that the widget is docked in.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self.viewer = napari_viewer
        self._saving: Saving | None = None
        self._cancelled = threading.Event()
        self._gone = False
        self._model: ModelInfo | str | None = None
        self._settings = Settings(self.native)
        self._factory = {name: getattr(self, name).value for name in SETTINGS}
        self._set(self._settings.values)
        self._connect()
        self._find_devices()
        self._look_up()

    def _connect(self) -> None:
        from superqt.utils import qthrottled

        self.dehaze.changed.connect(self._dehaze)
        self.preview.changed.connect(self._preview)
        self.save_as.changed.connect(self._ask_and_save)
        self.explain.changed.connect(self._explain)
        self.cancel.changed.connect(self._cancel)
        self.defaults.changed.connect(self._restore)
        self.strength.changed.connect(self._set_strength)
        for name in SETTINGS:
            getattr(self, name).changed.connect(self._remember)
        for widget in (self.weights, self.device, self.precision):
            widget.changed.connect(self._look_up)
        self._update_soon = qthrottled(self._update, timeout=INTERVAL, leading=False, parent=self.native)
        for widget in (self.input, self.region, self.overlap):
            widget.changed.connect(self._changed)
        self.viewer.layers.events.connect(self._changed)  # of each layer: shapes that are drawn, names, visibility
        self._changed()
        self.native_parent_changed.connect(self._moved)
        self.native.destroyed.connect(self._leave)

    # Dehazing

    def _options(self) -> dict[str, Any]:
        """Return the arguments of `dehaze_layer`."""
        weights, device, dtype = self._network()
        return {
            "strength": self.strength.value,
            "overlap": self.overlap.value,
            "weights": weights,
            "device": device,
            "dtype": dtype,
            "value_range": parse_range(self.limits.value),
        }

    def _network(self) -> tuple[str, str, str]:
        """Return weights, device and dtype."""
        return self.chosen_weights(), self.device.value, self.precision.value

    def _source(self) -> Image:
        layer = self.input.value
        if layer is None:
            raise ValueError("there is no image layer: open an image first")
        return layer

    def _region(self, layer: Image) -> Region | None:
        return None if self.region.value is None else drawn(self.viewer, self.region.value, layer)

    def _dehaze(self) -> None:
        """Add a dehazed layer, or show and restart the one that exists."""
        with reported():
            layer = self._source()
            request = self._request(layer)
            there = [(each, session) for each, session in self._dehazed() if state_of(each).preview_of is None]
            alike = [(each, session) for each, session in there if request.fits(session)]
            if alike:
                dehazed, session = alike[-1]
                report(request.image, None)
                session.restart()
                dehazed.visible = True
                self.viewer.layers.selection.active = dehazed
            else:
                self._add(layer, self._region(layer), f"{layer.name} dehazed")

    def _preview(self) -> None:
        """Add a preview; it replaces the last one of the layer, unless there is an error."""
        with reported():
            layer = self._source()
            region = self._region(layer) or on_screen(self.viewer, layer)
            added = self._add(layer, region, name := f"{layer.name} preview")
            for old in [old for old in self.viewer.layers if _previewed_by(old) is layer]:
                self.viewer.layers.remove(old)
            update_state(added, preview_of=weakref.ref(layer))
            added.name = name

    def _add(self, layer: Image, region: Region | None, name: str) -> Image:
        """Add a layer, above those that were dehazed before: they would hide it."""
        options = self._options() | {"cache": self.cache.value * 2**20}
        added = dehaze_layer(layer, region=region, name=name, viewer=self.viewer, **options)
        layers = self.viewer.layers
        layers.move(layers.index(added), max(layers.index(each) for each, _ in self._dehazed()) + 1)
        return added

    def _request(self, layer: Image) -> DehazeRequest:
        """Return the request to dehaze a layer with the current settings."""
        image, limits = source_of(layer)
        if (region := self._region(layer)) is not None:
            image = image.cropped(window_of(region))
        chosen, changed = self._options(), written(self._network()[0])
        how = chosen["overlap"], chosen["strength"], chosen["value_range"] or limits
        return DehazeRequest(image, self._network(), changed, *how)

    def _request_to_save(self, layer: Image) -> DehazeRequest:
        """Return the request for a file: with the value range of the dehazed layer, unless one was entered."""
        request = self._request(layer)
        if self._options()["value_range"] is not None:
            return request
        alike = [
            each
            for session in self._sessions()
            if (each := replace(request, value_range=session.value_range)).fits(session)
        ]
        return alike[-1] if alike else request

    def _dehazed(self) -> list[tuple[Image, DehazeSession]]:
        """List the layers with a session, running or stopped, and the sessions."""
        both = [(layer, state_of(layer).session) for layer in self.viewer.layers]
        return [(layer, session) for layer, session in both if session is not None]

    def _sessions(self) -> list[DehazeSession]:
        return [session for _, session in self._dehazed()]

    def _cancel(self) -> None:
        """Stop saving, dehazing and explaining; dehazed tiles, and the maps so far, are kept."""
        self._cancelled.set()
        for _, session in self._working():
            session.close()
        self._changed()

    # Explaining

    def _explain(self) -> None:
        """Add a map of what contributes to the rectangle in the dehazed layer, the active or the topmost one."""
        with reported():
            dehazed = [layer for layer, _ in self._dehazed() if layer.visible]
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

    def _working(self) -> list[tuple[Image, DehazeSession | ExplainSession]]:
        """List the layers that are dehazed or explained, from the lowest, and the sessions, running or stopped."""
        states = [(layer, state_of(layer)) for layer in self.viewer.layers]
        both = [(layer, state.session or state.explanation) for layer, state in states]
        return [(layer, session) for layer, session in both if session is not None]

    def _set_strength(self, strength: float) -> None:
        for layer, _ in self._dehazed():
            set_strength(layer, strength)

    def _restore(self) -> None:
        self._set(self._factory)
        self.limits.value = ""

    # Saving

    def _ask_and_save(self) -> None:
        from qtpy.QtWidgets import QFileDialog

        with reported():
            if self._saving is not None:
                raise ValueError("an image is being saved: wait for it, or cancel it")
            layer = self._source()
            request = self._request_to_save(layer)  # report errors before asking for a name
            answer, kind = QFileDialog.getSaveFileName(self.native, SAVE, proposed(layer, request), ";;".join(FILTERS))
            if not answer:
                return
            path = named(Path(answer), kind)
            # The dialog has asked about the name as typed, not about the one with a suffix.
            if path == Path(answer) or self._may_replace(path):
                self._save(request, path)

    def _may_replace(self, path: Path) -> bool:
        """Ask before a file is replaced."""
        from qtpy.QtWidgets import QMessageBox

        question = f"{path.name} exists already. Replace it?"
        yes = QMessageBox.StandardButton.Yes
        return not path.exists() or QMessageBox.question(self.native, SAVE, question) == yes

    def _save(self, request: DehazeRequest, path: Path) -> None:
        """Start a save; a file at the path is replaced."""
        self._cancelled = threading.Event()
        self._clock = Clock(complete=not tokens_of(path).exists())
        self._saving = in_thread(partial(request.steps, path), self._cancelled.is_set)
        self._saving.yielded.connect(self._while_here(self._show_progress))
        self._saving.returned.connect(self._while_here(partial(self._saved, request, path)))
        self._saving.finished.connect(self._while_here(self._end_saving))
        self.bar.visible = True
        self._saving.start()

    def _show_progress(self, progress: Progress) -> None:
        self._clock.see(progress)
        self.bar.value = int(100 * progress.share)
        self.bar.label = progress.stage
        if progress.note:
            show_warning(progress.note)

    def _saved(self, request: DehazeRequest, path: Path, result: SaveResult) -> None:
        """Let the layers of the same request read from the file; or show the error, and how to continue."""
        if result.complete:
            model = self._model if request.network == self._network() else None
            if (seconds := self._clock.seconds()) is not None and isinstance(model, ModelInfo):
                self._settings.measured(request.network, seconds / request.count_tiles(model), replace=True)
                self._changed()
            for layer, session in self._dehazed():
                if request.fits(session) and session.strength == request.strength:
                    read_from_file(layer, path)
            show_info(f"{path.name} is complete")
            return
        kept = tokens_of(path)
        rest = f"; saving it again with the same settings continues from {kept}" if kept.exists() else ""
        if result.error is None:
            show_info(f"{path.name} was stopped{rest}")
        else:
            show_error(f"{path.name}: {result.error or type(result.error).__name__}{rest}")

    def _end_saving(self) -> None:
        self._saving = None
        self.bar.visible = False

    def _moved(self, parent: Any) -> None:
        """Cancel the save when the dock is closed: there is no button any more."""
        if self.native.parent() is None:
            self._cancelled.set()
            self._settings.write()

    def _leave(self) -> None:
        """Cancel the save when the window is gone."""
        self._gone = True
        self._cancelled.set()
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
        working = self._working()
        for _, session in working:
            session.progressed.connect(self._progressed, unique=True)  # before its status is read: none is missed
        shown = [f"{layer.name}: {session.status}" for layer, session in working if layer.visible]
        _set_text(self.status, shown[-1] if shown else "")
        for session in self._sessions():
            if math.isfinite(rate := session.rate):  # read once: another thread changes it
                self._settings.measured(network_of(session), 1 / rate, replace=False)
        _set_text(self.estimate, self._estimate())

    def _estimate(self) -> str:
        """Return the estimate, or why there is none."""
        layer = self.input.value
        if layer is None or not getattr(layer, "rgb", False) or layer.ndim != 2:
            return "Select a two-dimensional RGB image."
        level = layer.data[0] if layer.multiscale else layer.data
        height, width = level.shape[:2]
        try:
            if (region := self._region(layer)) is not None:
                height, width = region[1] - region[0], region[3] - region[2]
        except ValueError as error:
            return str(error)
        if isinstance(self._model, str):
            return self._model
        speed = self._settings.speed(self._network())
        if self._model is None:
            return "..."
        return estimated(self._model.grid(height, width, self.overlap.value), self._model, speed)

    def _look_up(self) -> None:
        """Read the properties of the chosen network, in a thread: importing torch takes seconds."""
        wanted = self._network()
        self._model = None
        self._changed()

        def found(model: ModelInfo | str) -> None:
            if wanted == self._network():
                self._model = model
                self._changed()

        worker: Any = create_worker(look_up, *wanted)
        worker.returned.connect(self._while_here(found))
        worker.start()

    def _find_devices(self) -> None:
        worker: Any = create_worker(devices)
        wanted = self._settings.values.get("device")
        worker.returned.connect(self._while_here(partial(self._list_devices, wanted)))
        worker.start()

    def _list_devices(self, wanted: str | None, found: list[tuple[str, str]]) -> None:
        """List the available devices, and choose the one that is remembered."""
        self.device.choices = found
        if wanted in [name for _, name in found]:
            self.device.value = wanted
        create_worker(get_ready, *self._network()).start()

    # Settings

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


def proposed(layer: Image, request: DehazeRequest) -> str:
    """Return a file name next to the file of the image, without characters that a system forbids."""
    name = re.sub(r'[\\/:*?"<>|]', "-", f"{layer.name} dehazed")
    return name if request.image.path is None else str(request.image.path.parent / name)


def named(path: Path, kind: str) -> Path:
    """Return a path with a suffix, that of the chosen filter if there is none.

    Raises
    ------
    ValueError
        If it lies in a Zarr: a Zarr is a folder, and file dialogs open folders.
    """
    zarr = next((folder for folder in path.parents if folder.suffix.lower() == ".zarr"), None)
    if zarr is not None:
        raise ValueError(f"{path} lies in a Zarr: choose a name next to {zarr.name}")
    if path.name.lower().endswith(SUFFIXES):
        return path
    return path.with_name(path.name + FILTERS.get(kind, SUFFIXES[0]))


@contextmanager
def reported() -> Iterator[None]:
    """Show an error as a notification."""
    try:
        yield
    except (ValueError, OSError) as error:
        show_error(str(error))
