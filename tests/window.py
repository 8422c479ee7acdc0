"""A real napari window with a picture and the widget in it, for the tests of the plugin."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dehazexl
from dehazexl.model import SPECS, DehazeXL
from dehazexl.model.weights import save_model

__all__ = ["errors", "gate", "opened", "scene", "settings", "weights", "widget"]


@pytest.fixture(autouse=True)
def settings(tmp_path_factory, monkeypatch) -> Path:
    """Settings and overviews of the test's own."""
    from qtpy.QtCore import QSettings

    path = tmp_path_factory.mktemp("settings") / "folder" / "dehaze.ini"
    monkeypatch.setattr("napari_dehazexl._overviews.cache_folder", lambda: path.parents[1] / "overviews")
    monkeypatch.setattr(
        "napari_dehazexl._settings.open_settings", lambda: QSettings(str(path), QSettings.Format.IniFormat)
    )
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A small network, as a file."""
    torch.manual_seed(0)
    return save_model(DehazeXL(SPECS["tiny"]), tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def scene() -> np.ndarray:
    """A picture of 30 tiles, or 54 without overlap is made of it in `long`."""
    y, x = np.mgrid[:1100, :1300]
    return np.stack([y % 256, x % 256, (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """What the user is told went wrong, or should be known."""
    from napari.utils.notifications import NotificationSeverity, notification_manager

    told: list[str] = []

    def listen(notification: Any) -> None:
        if notification.severity >= NotificationSeverity.WARNING:
            told.append(notification.message)

    notification_manager.notification_ready.connect(listen)
    yield told
    notification_manager.notification_ready.disconnect(listen)


def camera(viewer: Any) -> Any:
    return (viewer.scene if hasattr(viewer, "scene") else viewer).camera  # 0.9 moved it


@pytest.fixture
def opened(make_napari_viewer_proxy, tmp_path, scene) -> tuple[Any, Any]:
    """A viewer that shows a tiled TIFF with overviews, and its layer."""
    path = tmp_path / "scene.tif"
    dehazexl.to_tiff(scene, path)
    viewer = make_napari_viewer_proxy(show=True)
    (layer,) = viewer.open(str(path), plugin="napari-dehazexl")
    return viewer, layer


@pytest.fixture
def widget(opened, weights, qtbot) -> Any:
    """The widget, with its layer chosen and its devices listed."""
    viewer, _ = opened
    return dock(viewer, weights, qtbot)


def dock(viewer: Any, weights: Path, qtbot: Any) -> Any:
    """Open the widget, and wait until it knows the machine."""
    _, widget = viewer.window.add_plugin_dock_widget("napari-dehazexl", "Dehaze")
    widget.weights.value = weights
    widget.precision.value = "float32"
    qtbot.waitUntil(lambda: len(widget.device.choices) >= 2 and "GB" in widget.estimate.value, timeout=60_000)
    return widget


class Gate:
    """Where a save waits after its first batch of tokens, and how many tiles it has stored in each."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.tiles: list[int] = []

    def passed(self, cells: list[tuple[int, int]]) -> None:
        """Count the tiles of a batch, and wait at the first."""
        self.tiles.append(len(cells))
        self.reached.set()
        self.go.wait(60)


@pytest.fixture
def gate(monkeypatch) -> Iterator[Gate]:
    """A save that waits after its first batch of tokens until it is let go."""
    from dehazexl.engine import encode

    gate, keep = Gate(), encode._keep

    def recorded(store: Any, block: Any, tokens: Any, cells: Any, values: Any) -> None:
        keep(store, block, tokens, cells, values)
        if not threading.current_thread().name.startswith("dehaze "):  # a view goes first, and no save waits for it
            gate.passed(cells)

    monkeypatch.setattr(encode, "_keep", recorded)
    yield gate
    gate.go.set()


def click(button: Any) -> None:
    """Click a button of the widget."""
    button.native.click()


def save_as(widget: Any, path: Path, monkeypatch: Any, kind: str = "") -> None:
    """Press the button, and answer the dialog."""
    from qtpy.QtWidgets import QFileDialog

    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), kind))
    click(widget.save_as)


def saved(widget: Any, qtbot: Any) -> None:
    """Wait for the end of a save."""
    qtbot.waitUntil(lambda: widget._saving is None, timeout=120_000)


def close_dock(viewer: Any, widget: Any) -> None:
    """Click the cross of the dock."""
    from qtpy.QtWidgets import QDockWidget

    parent = widget.native.parent()
    while not isinstance(parent, QDockWidget):
        parent = parent.parent()
    parent.title.close_button.click()  # type: ignore[attr-defined]


def workers() -> list[str]:
    """List the threads that dehaze, explain, map or save."""
    from napari.qt.threading import WorkerBase

    names = ("dehaze ", "paint ", "explain ", "map ")
    dehazing = [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]
    return dehazing + [str(worker) for worker in WorkerBase._worker_set]
