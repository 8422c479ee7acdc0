"""The dock widget: choose a layer, see it dehazed, save it."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FileEdit,
    FloatSlider,
    Label,
    LineEdit,
    ProgressBar,
    PushButton,
    SpinBox,
    create_widget,
)
from napari.layers import Image, Shapes
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info

from napari_dehazexl._layer import LIVE, dehaze_layer, set_strength, source_of, window_of
from napari_dehazexl._reader import colours_of
from napari_dehazexl._save import Progress, save

if TYPE_CHECKING:
    import napari.viewer

    Region = tuple[int, int, int, int]

FILTER = "Pictures (*.ome.zarr *.zarr *.tif *.tiff *.png *.jpg)"

SETTINGS = ("weights", "device", "precision", "overlap", "strength")
"""Widgets whose values are remembered."""


class Dehaze(Container):  # type: ignore[type-arg]
    """Dehaze an RGB layer in the viewer, and save it.

    Parameters
    ----------
    napari_viewer
        The viewer it is docked in.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        self.viewer = napari_viewer
        self.input: Any = create_widget(
            annotation=Image, label="Input", options={"tooltip": "The RGB layer to dehaze, of two dimensions."}
        )
        self.region: Any = create_widget(
            annotation=Shapes | None,
            label="Region",
            options={"tooltip": "A Shapes layer: only what its selected (or last) rectangle covers is dehazed."},
        )
        self.weights = FileEdit(
            label="Weights", nullable=True, value=None, filter="*.safetensors *.pth",
            tooltip="A weights file of dehazexl train, or an official .pth. Empty: the bundled weights.",
        )  # fmt: skip
        self.device = ComboBox(
            label="Device", choices=["auto"], value="auto",
            tooltip="Where the network runs, with its memory. auto: a GPU if there is one.",
        )  # fmt: skip
        self.precision = ComboBox(
            label="Precision", choices=["auto", "float32", "bfloat16", "float16"], value="auto",
            tooltip="What the network computes in. auto: half precision where that is faster.",
        )  # fmt: skip
        self.overlap = SpinBox(
            label="Overlap", value=32, min=0, max=128,
            tooltip="Pixels by which tiles of 256 x 256 overlap and are blended. 0 is the official network's tiling.",
        )  # fmt: skip
        self.strength = FloatSlider(
            label="Strength", value=1.0, min=0.0, max=1.0,
            tooltip="Share of the haze that is removed, 0 to 1. Moves dehazed layers at once.",
        )  # fmt: skip
        self.limits = LineEdit(
            label="Value range", value="",
            tooltip="Black and white in the picture's values, e.g. 0, 3000. Empty: as the layer has them.",
        )  # fmt: skip
        self.estimate = Label(value="")
        self.preview = PushButton(text="Preview view", tooltip="Dehaze what is on screen, into a layer of its own.")
        self.dehaze = PushButton(text="Dehaze", tooltip="Add a dehazed layer; what is on screen comes first.")
        self.save_as = PushButton(text="Save as...", tooltip="Dehaze all of it (or the region) into a file.")
        self.cancel = PushButton(text="Cancel", tooltip="Stop dehazing and saving. A save goes on when asked again.")
        self.defaults = PushButton(text="Restore defaults", tooltip="Set everything as it was at first.")
        self.replace = CheckBox(text="Replace files that exist", value=False)
        self.bar = ProgressBar(value=0, min=0, max=100, visible=False)
        self.status = Label(value="")
        buttons = [
            Container(widgets=row, layout="horizontal", labels=False)
            for row in ([self.preview, self.dehaze], [self.save_as, self.cancel])
        ]
        for row in buttons:
            row.margins = (0, 0, 0, 0)
        super().__init__(
            widgets=[
                self.input, self.region, self.weights, self.device, self.precision, self.overlap, self.strength,
                self.limits, self.estimate, *buttons, self.replace, self.defaults, self.bar, self.status,
            ]
        )  # fmt: skip
        for label in (self.estimate, self.status):
            label.native.setWordWrap(True)
        self._saving: Any = None
        self._stopped = threading.Event()
        self._factory = {name: getattr(self, name).value for name in SETTINGS}
        self._settings = read_settings()
        self._remember(self._settings)
        self._connect()
        self._find_devices()
        self._estimate()

    def _connect(self) -> None:
        self.dehaze.changed.connect(self._dehaze)
        self.preview.changed.connect(self._preview)
        self.save_as.changed.connect(self._ask_and_save)
        self.cancel.changed.connect(self._cancel)
        self.defaults.changed.connect(self._restore)
        self.strength.changed.connect(self._set_strength)
        for widget in (self.input, self.region, self.overlap):
            widget.changed.connect(self._estimate)
        for name in SETTINGS:
            getattr(self, name).changed.connect(self._write_settings)
        self._timer = _every(300, self._show_status, self.native)

    # What the user asks for

    def _options(self) -> dict[str, Any]:
        """Return the arguments of `dehaze_layer`."""
        return {
            "strength": self.strength.value,
            "overlap": self.overlap.value,
            "weights": self._weights(),
            "device": self.device.value,
            "dtype": self.precision.value,
            "value_range": parse_range(self.limits.value),
        }

    def _weights(self) -> str:
        path = self.weights.value
        return "compact" if path is None or str(path) in ("", ".") else str(path)

    def _source(self) -> Image:
        layer = self.input.value
        if layer is None:
            raise ValueError("there is no image layer: open a picture first")
        if LIVE in layer.metadata:
            raise ValueError(f"the layer {layer.name!r} is dehazed already: select its source")
        return layer

    def _region(self, layer: Image) -> Region | None:
        """Return the rows and columns of the layer that the region's rectangle covers."""
        shapes = self.region.value
        if shapes is None:
            return None
        if not len(shapes.data):
            raise ValueError(f"the layer {shapes.name!r} holds no shape: draw a rectangle")
        number = max(shapes.selected_data) if shapes.selected_data else len(shapes.data) - 1
        corners = [layer.world_to_data(shapes.data_to_world(corner)) for corner in shapes.data[number]]
        return clipped([corner[-2:] for corner in corners], layer)

    def _view(self, layer: Image) -> Region:
        """Return the rows and columns of the layer that are on screen."""
        if hasattr(self.viewer, "canvas"):  # since napari 0.9
            camera, size = self.viewer.scene.camera, self.viewer.canvas.size
            reach = [side / camera.zoom / 2 for side in size]
            middle = camera.center[-2:]
            return clipped(
                [layer.world_to_data([m + sign * r for m, r in zip(middle, reach, strict=True)]) for sign in (-1, 1)],
                layer,
            )
        # Before, napari tells it of the level on show, widened to the picture's chunks.
        level = layer.data_level if layer.multiscale else 0
        factors = layer.downsample_factors[level][-2:] if layer.multiscale else (1, 1)
        return clipped(layer.corner_pixels[:, -2:] * factors, layer)

    def _dehaze(self) -> Image | None:
        with reported():
            layer = self._source()
            return dehaze_layer(layer, region=self._region(layer), viewer=self.viewer, **self._options())
        return None

    def _preview(self) -> Image | None:
        with reported():
            layer = self._source()
            name = f"{layer.name} preview"
            for old in [old for old in self.viewer.layers if old.name == name and LIVE in old.metadata]:
                self.viewer.layers.remove(old)
            region = self._region(layer) or self._view(layer)
            return dehaze_layer(layer, region=region, name=name, viewer=self.viewer, **self._options())
        return None

    def _ask_and_save(self) -> None:
        from qtpy.QtWidgets import QFileDialog

        path, _ = QFileDialog.getSaveFileName(self.native, "Save the dehazed picture", "", FILTER)
        if path:
            self.save(Path(path))

    def save(self, path: Path) -> None:
        """Begin to save the input layer (or the region), dehazed, under a name; `sink.write` knows the suffixes."""
        with reported():
            if self._saving is not None:
                raise ValueError("a picture is being saved: wait for it, or cancel it")
            layer = self._source()
            image, limits = source_of(layer)
            if (region := self._region(layer)) is not None:
                image = image.cropped(window_of(region))
            options = self._options()
            weights, device, dtype = (options.pop(name) for name in ("weights", "device", "dtype"))
            limits = options.pop("value_range") or limits

            def load() -> Any:
                from dehazexl import load_model

                return load_model(weights, device, dtype)

            self._stopped = threading.Event()
            options |= {"limits": limits, "overwrite": self.replace.value, "stopped": self._stopped}
            whole = region is None
            self._saving = create_worker(_run, save(image, path, load, **options))
            self._saving.yielded.connect(self._show_progress)
            self._saving.returned.connect(lambda error: self._saved(layer, path, whole, error))
            self._saving.finished.connect(self._end_saving)
            self.bar.visible = True
            self._saving.start()

    def _saved(self, layer: Image, path: Path, whole: bool, error: str) -> None:
        """Let the dehazed layer read from the file, or say what went wrong."""
        if error:
            show_error(f"{path.name}: {error}")
            return
        if self._stopped.is_set():
            show_info(f"{path.name} was stopped; Save as... with the same settings goes on")
            return
        from dehazexl import open_image

        image = open_image(path)
        for dehazed in self.viewer.layers if whole else ():
            if LIVE not in dehazed.metadata or dehazed.metadata["dehazexl-source"] != layer.name:
                continue
            live = dehazed.metadata[LIVE]
            if live.image.levels[0].shape == image.levels[0].shape:
                live.close()
                dehazed.metadata = {"dehazexl": image}
                dehazed.data = colours_of(image)
        show_info(f"{path} is complete")

    def _end_saving(self) -> None:
        self._saving = None
        self.bar.visible = False

    def _cancel(self) -> None:
        """Stop saving, and dehazing layers; what is dehazed stays."""
        self._stopped.set()
        for layer in self.viewer.layers:
            if LIVE in layer.metadata:
                layer.metadata[LIVE].close()

    def _set_strength(self, strength: float) -> None:
        for layer in self.viewer.layers:
            if LIVE in layer.metadata:
                set_strength(layer, strength)

    def _restore(self) -> None:
        self._remember(self._factory)
        self.limits.value = ""
        self.replace.value = False

    # What the user sees

    def _show_progress(self, progress: Progress) -> None:
        self.bar.value = int(100 * progress.share)
        self.bar.label = progress.stage

    def _show_status(self) -> None:
        shown = [layer for layer in self.viewer.layers if LIVE in layer.metadata]
        self.status.value = f"{shown[-1].name}: {shown[-1].metadata[LIVE].status}" if shown else ""
        rates = [layer.metadata[LIVE].rate for layer in shown]
        if rates and math.isfinite(rates[-1]) and rates[-1] != self._rate:
            self._rate = rates[-1]
            self._estimate()

    _rate = math.nan

    def _estimate(self) -> None:
        """Say how many tiles, how much memory and how long, before anything is run."""
        from dehazexl.grid import TileGrid

        layer = self.input.value
        if layer is None or not getattr(layer, "rgb", False) or layer.ndim != 2:
            self.estimate.value = "Select an RGB picture of two dimensions."
            return
        level = layer.data[0] if layer.multiscale else layer.data
        height, width = level.shape[:2]
        try:
            if (region := self._region(layer)) is not None:
                height, width = region[1] - region[0], region[3] - region[2]
        except ValueError as error:
            self.estimate.value = str(error)
            return
        grid = TileGrid(height, width, self.overlap.value)
        tiles = grid.rows * grid.cols
        memory = tiles * 64 * 256 * 4 / 2**20
        rate = f"about {duration(tiles / self._rate)}" if math.isfinite(self._rate) else "time: known after a few tiles"
        self.estimate.value = f"{tiles} tiles, {memory:.0f} MB of tokens, {rate}"

    def _find_devices(self) -> None:
        """List the devices when torch, which takes seconds to import, has been asked."""
        worker = create_worker(_devices)
        worker.returned.connect(self._list_devices)
        worker.start()

    def _list_devices(self, devices: list[tuple[str, str]]) -> None:
        chosen = self.device.value
        self.device.choices = devices
        wanted = self._settings.get("device", chosen)
        if wanted in [name for _, name in devices]:
            self.device.value = wanted

    # What is remembered

    def _remember(self, settings: dict[str, Any]) -> None:
        for name in SETTINGS:
            try:
                getattr(self, name).value = settings.get(name, self._factory[name])
            except (ValueError, TypeError):  # a device that is not there any more, or another version's value
                getattr(self, name).value = self._factory[name]

    def _write_settings(self) -> None:
        values = {name: getattr(self, name).value for name in SETTINGS}
        values["weights"] = None if self._weights() == "compact" else self._weights()
        settings_file().write_text(json.dumps(values))


def settings_file() -> Path:
    """Where the settings are kept: in the user's folder for such."""
    from platformdirs import user_config_path

    return user_config_path("napari-dehazexl", ensure_exists=True) / "dehaze.json"


def read_settings() -> dict[str, Any]:
    """Return what was remembered, or nothing."""
    try:
        settings = json.loads(settings_file().read_text())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def parse_range(text: str) -> tuple[float, float] | None:
    """Read two rising numbers with a comma between, or None from nothing."""
    if not text.strip():
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"value range {text!r} is not two numbers: write black, white, e.g. 0, 3000") from None
    if not low < high:
        raise ValueError(f"value range {text!r} does not rise: write black, white, e.g. 0, 3000")
    return low, high


def clipped(corners: Any, layer: Image) -> Region:
    """Return the rows and columns ``(y0, y1, x0, x1)`` of a layer between corners ``(y, x)``."""
    level = layer.data[0] if layer.multiscale else layer.data
    edges = []
    for axis in (0, 1):
        values = [float(corner[axis]) for corner in corners]
        start = max(0, math.floor(min(values) + 0.5))
        stop = min(int(level.shape[axis]), math.ceil(max(values) + 0.5))
        if start >= stop:
            raise ValueError(f"the region lies outside the layer {layer.name!r}")
        edges += [start, stop]
    return edges[0], edges[1], edges[2], edges[3]


def duration(seconds: float) -> str:
    """Write a time for people."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


@contextmanager
def reported() -> Iterator[None]:
    """Show what the user did wrong as one notification."""
    try:
        yield
    except (ValueError, OSError) as error:
        show_error(str(error))


def _run(steps: Iterator[Progress]) -> Generator[Progress, None, str]:
    """Do the steps; return what went wrong, or nothing, for the window to show once."""
    try:
        yield from steps
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


def _devices() -> list[tuple[str, str]]:
    """List names for people and for torch of the devices that are there."""
    import psutil
    import torch

    found = [("auto", "auto"), (f"cpu, {psutil.virtual_memory().total / 2**30:.0f} GB", "cpu")]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append((f"{about.name}, {about.total_memory / 2**30:.0f} GB", f"cuda:{number}"))
    if torch.backends.mps.is_available():
        found.append(("Apple GPU (mps)", "mps"))
    return found


def _every(milliseconds: int, call: Any, parent: Any) -> Any:
    """Call something again and again while a Qt widget lives."""
    from qtpy.QtCore import QTimer

    timer = QTimer(parent)
    timer.timeout.connect(call)
    timer.start(milliseconds)
    return timer
