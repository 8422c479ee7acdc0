"""Saving from a real napari window: by the widget's button, and by File > Save."""

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import dehazexl

pytest.importorskip("napari")

from window import *  # noqa: F403
from window import camera, click, close_dock, dock, save_as, saved, workers

from napari_dehazexl._state import state_of


@pytest.fixture
def long(opened, scene, widget) -> Any:
    """A layer of two blocks of tokens, chosen in the widget: 48 tiles and 6."""
    viewer, _ = opened
    layer = viewer.add_image(np.concatenate([scene, scene])[:2200], rgb=True, name="long")
    widget.input.value, widget.overlap.value = layer, 0
    return layer


def answers(picture: Path, pixels: np.ndarray, weights: Path, **options: Any) -> bool:
    """Tell whether a file holds what dehaze makes of pixels."""
    wanted = dehazexl.dehaze(pixels, dehazexl.load_model(weights, dtype="float32"), **options)
    found = np.asarray(dehazexl.open_image(picture).levels[0])
    return int(np.abs(found.astype(int) - wanted.compute()).max()) <= 1


def test_cancel_and_go_on(widget, long, gate, weights, tmp_path, monkeypatch, qtbot) -> None:
    path = tmp_path / "saved.tif"
    save_as(widget, path, monkeypatch)
    qtbot.waitUntil(gate.reached.is_set, timeout=60_000)
    click(widget.cancel)
    gate.go.set()
    saved(widget, qtbot)
    done = sum(gate.tiles)
    assert 0 < done < 48 and not path.exists()  # it ended within a batch, not within a block of 48 tiles
    save_as(widget, path, monkeypatch)
    saved(widget, qtbot)
    assert sum(gate.tiles) == 54, f"{done} tiles were encoded, of them some once more"
    assert answers(path, long.data, weights, overlap=0) and not list(tmp_path.glob(".*"))


def test_the_dock_takes_its_save_with_it(widget, opened, long, gate, weights, tmp_path, monkeypatch, qtbot, errors):
    viewer, _ = opened
    path = tmp_path / "saved.tif"
    save_as(widget, path, monkeypatch)
    qtbot.waitUntil(gate.reached.is_set, timeout=60_000)
    close_dock(viewer, widget)
    again = dock(viewer, weights, qtbot)
    again.input.value = long
    save_as(again, path, monkeypatch)
    saved(again, qtbot)
    assert "is being written" in errors.pop() and not errors
    gate.go.set()
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)
    assert not path.exists()
    save_as(again, path, monkeypatch)
    saved(again, qtbot)
    assert answers(path, long.data, weights, overlap=0) and not errors


def test_the_window_takes_its_save_with_it(widget, opened, long, gate, tmp_path, monkeypatch, qtbot) -> None:
    viewer, _ = opened
    save_as(widget, tmp_path / "saved.tif", monkeypatch)
    qtbot.waitUntil(gate.reached.is_set, timeout=60_000)
    viewer.close()
    qtbot.wait(100)
    gate.go.set()
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)
    assert not (tmp_path / "saved.tif").exists() and (tmp_path / ".saved.tif.tokens").exists()


@pytest.mark.parametrize("replies", [["Cancel"], ["Close", "Close"]])
def test_the_window_asks_before_it_stops_a_save(
    widget, opened, long, gate, weights, tmp_path, monkeypatch, qtbot, replies
) -> None:
    from napari._qt.dialogs.confirm_close_dialog import ConfirmCloseDialog
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication, QLabel, QPushButton

    viewer, _ = opened
    window, path = viewer.__wrapped__.window._qt_window, tmp_path / "saved.tif"
    save_as(widget, path, monkeypatch)
    qtbot.waitUntil(gate.reached.is_set, timeout=60_000)
    asked: list[str] = []

    def reply() -> None:
        dialog = QApplication.activeModalWidget()
        if isinstance(dialog, ConfirmCloseDialog):
            asked.append("\n".join(label.text() for label in dialog.findChildren(QLabel)))
            (button,) = (each for each in dialog.findChildren(QPushButton) if each.text() == replies[len(asked) - 1])
            button.click()

    timer = QTimer()
    timer.timeout.connect(reply)
    timer.start(50)
    close_by_frame(window)
    qtbot.waitUntil(lambda: len(asked) == len(replies), timeout=10_000)
    qtbot.wait(200)
    timer.stop()
    assert "saving saved.tif (closing stops it; saving it again continues)" in asked[0]
    if replies == ["Cancel"]:
        assert window.isVisible() and widget._saving is not None
        gate.go.set()
        saved(widget, qtbot)
        assert answers(path, long.data, weights, overlap=0) and not list(tmp_path.glob(".*"))
    else:
        del viewer.__wrapped__.window._qt_window  # the fixture would close it once more
        gate.go.set()
        qtbot.waitUntil(lambda: not workers(), timeout=60_000)
        assert not path.exists() and (tmp_path / ".saved.tif.tokens").exists()


class ClientMessage(ctypes.Structure):
    """A message of X11 from one program to another."""

    _fields_ = (
        ("type", ctypes.c_int), ("serial", ctypes.c_ulong), ("send_event", ctypes.c_int), ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong), ("message_type", ctypes.c_ulong), ("format", ctypes.c_int),
        ("data", ctypes.c_long * 5), ("rest", ctypes.c_long * 16),
    )  # fmt: skip


def close_by_frame(window: Any) -> None:
    """Do what the cross in the frame of a window does: napari asks only then, not when ``close`` is called."""
    from qtpy.QtGui import QGuiApplication

    if QGuiApplication.platformName() != "xcb":
        pytest.skip("there is no X11")
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype, x11.XInternAtom.restype = ctypes.c_void_p, ctypes.c_ulong
    display = ctypes.c_void_p(x11.XOpenDisplay(None))
    number, kind = int(window.winId()), x11.XInternAtom(display, b"WM_PROTOCOLS", 0)
    message = ClientMessage(type=33, display=display, window=number, message_type=kind, format=32)
    message.data[0] = x11.XInternAtom(display, b"WM_DELETE_WINDOW", 0)
    assert x11.XSendEvent(display, ctypes.c_ulong(number), 0, ctypes.c_long(0), ctypes.byref(message))
    x11.XFlush(display)
    x11.XCloseDisplay(display)


def test_a_renamed_source_is_known(widget, opened, tmp_path, monkeypatch, qtbot) -> None:
    viewer, layer = opened
    click(widget.dehaze)
    layer.name = "renamed"
    save_as(widget, tmp_path / "saved.tif", monkeypatch)
    saved(widget, qtbot)
    assert state_of(viewer.layers["scene dehazed"]).session is None


def test_what_was_dehazed_otherwise_is_left_alone(widget, opened, tmp_path, monkeypatch, qtbot) -> None:
    viewer, _ = opened
    click(widget.dehaze)
    widget.overlap.value = 64
    save_as(widget, tmp_path / "saved.tif", monkeypatch)
    saved(widget, qtbot)
    assert state_of(viewer.layers["scene dehazed"]).session is not None


@pytest.mark.parametrize("answer", ["Yes", "No"])
def test_a_name_without_suffix_gets_that_of_the_filter(widget, tmp_path, monkeypatch, qtbot, answer) -> None:
    from qtpy.QtWidgets import QMessageBox

    there = tmp_path / "saved 1.5.tif"
    there.write_text("something else")
    monkeypatch.setattr(QMessageBox, "question", lambda *_: getattr(QMessageBox.StandardButton, answer))
    save_as(widget, tmp_path / "saved 1.5", monkeypatch, "TIFF (*.tif *.tiff)")
    saved(widget, qtbot)
    assert (there.read_bytes() == b"something else") == (answer == "No")


def test_what_is_there_is_replaced_as_the_dialog_asked(widget, tmp_path, monkeypatch, qtbot, errors) -> None:
    (tmp_path / "saved.tif").write_text("something else")
    save_as(widget, tmp_path / "saved.tif", monkeypatch)
    saved(widget, qtbot)
    assert dehazexl.open_image(tmp_path / "saved.tif").levels[0].shape == (1100, 1300, 3) and not errors


def test_the_file_has_the_range_of_the_layer_on_show(widget, opened, tmp_path, monkeypatch, qtbot) -> None:
    """Contrast limits that were moved since are for looking at the hazy picture."""
    viewer, layer = opened
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    layer.contrast_limits = (60, 200)
    save_as(widget, tmp_path / "saved.tif", monkeypatch)
    saved(widget, qtbot)
    assert state_of(dehazed).session is None, "it does not read from its file"
    network = dehazexl.load_model(widget.weights.value, dtype="float32")
    wanted = dehazexl.dehaze(dehazexl.open_image(tmp_path / "scene.tif"), network).compute()
    assert np.abs(np.asarray(dehazed.data[0]).astype(int) - wanted).max() <= 1


def test_what_is_wrong_is_said_before_a_name_is_asked_for(widget, opened, monkeypatch, errors) -> None:
    from qtpy.QtWidgets import QFileDialog

    viewer, _ = opened
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: pytest.fail("a name was asked for"))
    viewer.layers.clear()
    click(widget.save_as)
    assert errors == ["there is no image layer: open an image first"]


def test_a_name_in_a_zarr_is_refused(widget, tmp_path, monkeypatch, errors) -> None:
    """Dialogs step into a Zarr that is chosen to be replaced, for it is a folder."""
    save_as(widget, tmp_path / "old.ome.zarr" / "scene dehazed.tif", monkeypatch)
    assert "lies in a Zarr: choose a name next to old.ome.zarr" in errors[0] and widget._saving is None


def test_the_name_that_is_proposed_lies_beside_the_picture(widget, opened, tmp_path, monkeypatch) -> None:
    from qtpy.QtWidgets import QFileDialog

    names: list[str] = []
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *given: (names.append(given[2]), ("", ""))[1])
    opened[1].name = "a/b: c"
    click(widget.save_as)
    assert names == [str(tmp_path / "a-b- c dehazed.tif")]


def test_a_save_that_was_stopped_at_once_leaves_nothing(widget, tmp_path, monkeypatch, qtbot) -> None:
    save_as(widget, tmp_path / "saved.tif", monkeypatch)
    click(widget.cancel)
    saved(widget, qtbot)
    assert [each.name for each in tmp_path.iterdir()] == ["scene.tif"]


def test_a_failure_says_how_to_go_on(widget, tmp_path, monkeypatch, qtbot, errors) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("dehazexl.io.write.write", full)
    save_as(widget, tmp_path / "saved.tif", monkeypatch)
    saved(widget, qtbot)
    assert "no space left" in errors[0] and "continues from" in errors[0] and len(errors) == 1


def test_short_of_memory_saves_with_fewer_tiles(widget, scene, weights, tmp_path, monkeypatch, qtbot, errors):
    from dehazexl.model import DehazeXL

    encode = DehazeXL.encode

    def short(self: Any, x: Any) -> Any:
        if len(x) > 1:
            raise RuntimeError("CUDA out of memory")
        return encode(self, x)

    monkeypatch.setattr(DehazeXL, "encode", short)
    save_as(widget, tmp_path / "saved.tif", monkeypatch)
    saved(widget, qtbot)
    monkeypatch.setattr(DehazeXL, "encode", encode)
    assert len(errors) == 1 and "memory ran out" in errors[0]
    assert answers(tmp_path / "saved.tif", scene, weights)


# The steps themselves


def stepped(scene: np.ndarray, weights: Path, path: Path, stop_at: str = "never") -> bool:
    from napari_dehazexl._save import save

    at = [""]
    steps = save(
        dehazexl.open_image(scene), path, lambda: dehazexl.load_model(weights), stopped=lambda: at[0] == stop_at
    )
    try:
        while True:
            step = next(steps)
            at[0] = "last" if step.stage == "decoding" and step.share == 1 else step.stage
    except StopIteration as end:
        return bool(end.value)


def test_a_cancel_after_the_last_step_is_too_late(scene, weights, tmp_path) -> None:
    assert stepped(scene[:300, :300], weights, tmp_path / "whole.tif", stop_at="last")
    assert (tmp_path / "whole.tif").exists()
    assert not stepped(scene, weights, tmp_path / "part.tif", stop_at="encoding")
    assert not (tmp_path / "part.tif").exists()


def test_work_left_at_the_last_step_leaves_no_tokens(scene, weights, tmp_path) -> None:
    from napari_dehazexl._save import save

    steps = save(dehazexl.open_image(scene[:300, :300]), tmp_path / "out.tif", lambda: dehazexl.load_model(weights))
    for step in steps:
        if step.stage == "decoding" and step.share == 1:
            break
    steps.close()
    assert [path.name for path in tmp_path.iterdir()] == ["out.tif"]


def test_a_folder_of_someone_else_is_not_deleted(scene, weights, tmp_path) -> None:
    precious = tmp_path / ".out.tif.tokens" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    with pytest.raises(ValueError, match="holds no tokens"):
        stepped(scene[:300, :300], weights, tmp_path / "out.tif")
    assert precious.read_text() == "mine"
    assert not stepped(scene, weights, tmp_path / "other.tif", stop_at="encoding")
    assert stepped(scene[:300, :400], weights, tmp_path / "other.tif")
    assert (tmp_path / "other.tif").exists(), "tokens of another picture are ours to delete"


# File > Save


def test_file_save_writes_dehazed(opened, weights, scene, tmp_path) -> None:
    from napari_dehazexl import dehaze_layer

    viewer, layer = opened
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    path = tmp_path / "written.ome.zarr"
    assert dehazed.save(str(path), plugin="napari-dehazexl") == [str(path)]
    wanted = dehazexl.dehaze(scene, dehazexl.load_model(weights, dtype="float32")).compute()
    written = np.asarray(dehazexl.open_image(path).levels[0])
    assert np.abs(written.astype(int) - wanted).max() <= 1
    assert state_of(dehazed).session is None, "it does not read from its file"


def test_a_saved_layer_may_have_fewer_levels_than_before(
    make_napari_viewer_proxy, weights, scene, tmp_path, qtbot
) -> None:
    """The source's own overviews are smaller than those that are written."""
    from napari_dehazexl import dehaze_layer

    with tifffile.TiffWriter(tmp_path / "deep.tif") as tiff:
        tiff.write(scene, tile=(256, 256), photometric="rgb", subifds=6)
        for level in range(1, 7):
            tiff.write(scene[:: 2**level, :: 2**level].copy(), tile=(256, 256), photometric="rgb", subfiletype=1)
    viewer = make_napari_viewer_proxy(show=True)
    (layer,) = viewer.open(str(tmp_path / "deep.tif"), plugin="napari-dehazexl")
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    camera(viewer).zoom = 0.005
    qtbot.waitUntil(lambda: dehazed.data_level == 6)
    dehazed.save(str(tmp_path / "written.tif"), plugin="napari-dehazexl")
    written = dehazexl.open_image(tmp_path / "written.tif")
    np.testing.assert_array_equal(np.asarray(dehazed.data[0]), np.asarray(written.levels[0]))
    assert len(dehazed.data) == (6 if hasattr(dehazed, "_reset_data_level") else 7)


def test_file_save_lives_and_can_be_cancelled(opened, weights, gate, tmp_path, qtbot) -> None:
    from napari._qt.widgets.qt_progress_bar import QtLabeledProgressBar
    from napari.utils import progress
    from qtpy.QtCore import QTimer
    from qtpy.QtWidgets import QApplication

    from napari_dehazexl import dehaze_layer

    viewer, layer = opened
    dehazed = dehaze_layer(layer, weights=weights, viewer=viewer)
    ticks = []
    timer = QTimer()
    timer.timeout.connect(lambda: ticks.append(gate.reached.is_set()))
    timer.timeout.connect(lambda: sum(ticks) == 5 and cancel())
    timer.start(20)

    def cancel() -> None:
        bars = [each for each in QApplication.allWidgets() if isinstance(each, QtLabeledProgressBar)]
        (bar,) = (each for each in bars if each.progress in progress._all_instances)
        bar.cancel_button.click()
        gate.go.set()

    with pytest.raises(OSError, match="was cancelled: saving it again continues"):
        dehazed.save(str(tmp_path / "written.tif"), plugin="napari-dehazexl")
    timer.stop()
    assert sum(ticks) >= 5, "the window stood still"
    assert not (tmp_path / "written.tif").exists() and state_of(dehazed).session is not None


def test_a_layer_whose_strength_moved_meanwhile_goes_on(opened, weights, gate, tmp_path, qtbot) -> None:
    from qtpy.QtCore import QTimer

    from napari_dehazexl import dehaze_layer, set_strength

    viewer, layer = opened
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    timer = QTimer()
    timer.timeout.connect(lambda: gate.reached.is_set() and (set_strength(dehazed, 0), gate.go.set()))
    timer.start(20)
    dehazed.save(str(tmp_path / "written.tif"), plugin="napari-dehazexl")
    timer.stop()
    assert state_of(dehazed).session.strength == 0
    wanted = dehazexl.dehaze(np.asarray(layer.data[0]), dehazexl.load_model(weights, dtype="float32")).compute()
    written = np.asarray(dehazexl.open_image(tmp_path / "written.tif").levels[0])
    assert np.abs(written.astype(int) - wanted).max() <= 1


def test_file_save_ends_with_the_window(opened, weights, gate, tmp_path, qtbot) -> None:
    from qtpy.QtCore import QTimer

    from napari_dehazexl import dehaze_layer

    viewer, layer = opened
    dehazed = dehaze_layer(layer, weights=weights, viewer=viewer)

    def close() -> None:
        viewer.close()
        gate.go.set()

    timer = QTimer()
    timer.timeout.connect(lambda: gate.reached.is_set() and (timer.stop(), close()))
    timer.start(20)
    with pytest.raises(OSError, match="was cancelled"):
        dehazed.save(str(tmp_path / "written.tif"), plugin="napari-dehazexl")
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)
    assert not (tmp_path / "written.tif").exists()


def test_file_save_keeps_a_layer_s_place(make_napari_viewer_proxy, scene, tmp_path) -> None:
    viewer = make_napari_viewer_proxy()
    layer = viewer.add_image(scene, rgb=True, scale=(2, 2), translate=(5, 6), units=("um", "um"))
    layer.save(str(tmp_path / "plain.ome.zarr"), plugin="napari-dehazexl")
    image = dehazexl.open_image(tmp_path / "plain.ome.zarr")
    assert (image.scale, image.translate, image.units) == ((2, 2), (5, 6), "micrometer")
    np.testing.assert_array_equal(np.asarray(image.levels[0]), scene)


def test_file_save_gives_a_name_its_suffix(make_napari_viewer_proxy, scene, tmp_path) -> None:
    """The dialog hands the chosen writer the name as it was typed."""
    from napari_dehazexl._write import write_layer

    layer = make_napari_viewer_proxy().add_image(scene[:300, :300], rgb=True)
    data, meta, _ = layer.as_layer_data_tuple()
    assert write_layer(str(tmp_path / "scene"), data, meta) == [str(tmp_path / "scene.ome.zarr")]
    with pytest.raises(OSError, match="type the whole name to replace it"):
        write_layer(str(tmp_path / "scene"), data, meta)


def test_file_save_keeps_bands_and_values(make_napari_viewer_proxy, scene, tmp_path) -> None:
    pixels = np.dstack([scene, scene[..., 0]]).astype(np.uint16) * 10
    tifffile.imwrite(tmp_path / "four.tif", pixels, tile=(256, 256), photometric="rgb", extrasamples=["unspecified"])
    viewer = make_napari_viewer_proxy()
    colors, band = viewer.open(str(tmp_path / "four.tif"), plugin="napari-dehazexl")
    colors.save(str(tmp_path / "all.tif"), plugin="napari-dehazexl")
    np.testing.assert_array_equal(np.asarray(dehazexl.open_image(tmp_path / "all.tif").levels[0]), pixels)
    band.save(str(tmp_path / "band.tif"), plugin="napari-dehazexl")
    np.testing.assert_array_equal(np.asarray(dehazexl.open_image(tmp_path / "band.tif").levels[0]), pixels[..., 3:])
    with pytest.raises(OSError, match="is the input"):
        band.save(str(tmp_path / "four.tif"), plugin="napari-dehazexl")


def test_file_save_writes_what_took_the_picture_s_place(opened, scene, tmp_path) -> None:
    _, layer = opened
    layer.data = [np.full_like(scene[:: 2**i, :: 2**i], 7) for i in range(len(layer.data))]
    layer.save(str(tmp_path / "new.tif"), plugin="napari-dehazexl")
    assert np.unique(np.asarray(dehazexl.open_image(tmp_path / "new.tif").levels[0])) == [7]


def test_file_save_while_overviews_are_made(make_napari_viewer_proxy, tmp_path, monkeypatch, qtbot) -> None:
    from dehazexl.viewing import overviews

    pixels = np.random.default_rng(0).integers(0, 255, (2500, 2600, 4), np.uint8)
    tifffile.imwrite(tmp_path / "big.tif", pixels, tile=(256, 256), photometric="rgb", extrasamples=["unspecified"])
    gate, make = threading.Event(), overviews.make_overviews
    monkeypatch.setattr(overviews, "make_overviews", lambda *args: (gate.wait(60), (yield from make(*args))))
    viewer = make_napari_viewer_proxy()
    layer, band = viewer.open(str(tmp_path / "big.tif"), plugin="napari-dehazexl")
    assert state_of(layer).overviews is not None
    for each, wanted in ((layer, pixels), (band, pixels[..., 3:])):
        each.save(str(tmp_path / "out.tif"), plugin="napari-dehazexl")
        np.testing.assert_array_equal(np.asarray(dehazexl.open_image(tmp_path / "out.tif").levels[0]), wanted)
    gate.set()
    qtbot.waitUntil(lambda: state_of(layer).overviews is None, timeout=60_000)


def test_file_save_refuses_stacks(make_napari_viewer_proxy, tmp_path) -> None:
    viewer = make_napari_viewer_proxy()
    stack = viewer.add_image(np.zeros((5, 300, 400), np.uint8), name="stack")
    with pytest.raises(OSError, match="'stack' has 3 dimensions"):
        stack.save(str(tmp_path / "stack.tif"), plugin="napari-dehazexl")
    assert not list(tmp_path.iterdir())
    gray = viewer.add_image(np.full((300, 400), 9, np.uint8), name="gray")
    gray.save(str(tmp_path / "gray.tif"), plugin="napari-dehazexl")
    assert dehazexl.open_image(tmp_path / "gray.tif").levels[0].shape == (300, 400, 1)
