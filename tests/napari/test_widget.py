"""The plugin in a real napari window: opening, dehazing, the widget's choices."""

import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from shutil import copy

import numpy as np
import pytest
import tifffile

import dehazexl

pytest.importorskip("napari")

from window import *  # noqa: F403
from window import camera, click, close_dock, save_as, saved, workers

from napari_dehazexl._state import state_of


def test_manifest_is_valid() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "npe2", "validate", "napari-dehazexl", "--imports"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_manifest_promises_what_the_code_reads_and_writes() -> None:
    from npe2 import PluginManifest

    from napari_dehazexl._reader import get_reader
    from napari_dehazexl._save import SUFFIXES

    manifest = PluginManifest.from_file(Path(__file__).parents[2] / "napari.yaml")
    (reader,), (writer, folder) = manifest.contributions.readers, manifest.contributions.writers
    assert all(get_reader(pattern.replace("*", "scene")) for pattern in reader.filename_patterns)
    assert {".tif", ".zarr"} < set(writer.filename_extensions) <= set(SUFFIXES)
    assert "image+" in folder.layer_types and not folder.filename_extensions
    for key in (sample.key for sample in manifest.contributions.sample_data):
        assert key in ("scene", "large"), "a sample that no test opens"


def test_tiff_opens_as_multiscale_rgb(make_napari_viewer_proxy, tmp_path, scene) -> None:
    tifffile.imwrite(tmp_path / "scene.tif", scene, tile=(256, 256), photometric="rgb")
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open(str(tmp_path / "scene.tif"), plugin="napari-dehazexl")
    assert layer.rgb and layer.multiscale
    assert layer.name == "scene"
    assert max(layer.data[-1].shape[:2]) <= 64
    np.testing.assert_array_equal(np.asarray(layer.data[0]), scene)


def test_zarr_with_scale_and_units(make_napari_viewer_proxy, tmp_path, scene) -> None:
    from dataclasses import replace

    image = replace(dehazexl.open_image(scene), scale=(0.5, 0.5), units="meter")
    dehazexl.to_zarr(scene, tmp_path / "scene.ome.zarr", like=image)
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open(str(tmp_path / "scene.ome.zarr"), plugin="napari-dehazexl")
    assert tuple(layer.scale) == (0.5, 0.5)
    assert [str(unit) for unit in layer.units] == ["meter", "meter"]
    np.testing.assert_array_equal(np.asarray(layer.data[0]), scene)


def test_further_bands_are_a_hidden_layer(make_napari_viewer_proxy, tmp_path, scene) -> None:
    bands = np.concatenate([scene, scene[..., :1]], axis=-1)
    tifffile.imwrite(tmp_path / "four.tif", bands, tile=(256, 256), photometric="rgb", extrasamples=["unspecified"])
    viewer = make_napari_viewer_proxy()
    colors, further = viewer.open(str(tmp_path / "four.tif"), plugin="napari-dehazexl")
    assert colors.visible and not further.visible
    np.testing.assert_array_equal(np.asarray(further.data[0]), scene[..., 0])


def test_sixteen_bits_are_shown_by_their_range(make_napari_viewer_proxy, tmp_path, scene) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", scene.astype(np.uint16) * 10 + 500, tile=(256, 256), photometric="rgb")
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open(str(tmp_path / "deep.tif"), plugin="napari-dehazexl")
    shown = np.asarray(layer.data[0])
    assert shown.dtype == np.float32
    assert shown.min() == pytest.approx(500 / 3050) and shown.max() == 1  # from 0 to the brightest


def test_reader_declines_what_is_no_picture() -> None:
    from napari_dehazexl._reader import get_reader

    assert get_reader("notes.txt") is None
    assert get_reader(["a.tif", "b.txt"]) is None
    assert get_reader([]) is None


def test_napari_starts_without_torch() -> None:
    code = (
        "import sys, napari, npe2; npe2.PluginManager.instance().discover();"
        "npe2.PluginManager.instance().get_manifest('napari-dehazexl');"
        "import napari_dehazexl._reader, napari_dehazexl._widget; assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def alike(layer, pixels: np.ndarray, part) -> bool:
    """Whether a part of a layer differs from pixels by a gray level at most."""
    return np.abs(layer.data[0][part].astype(int) - pixels[part]).max() <= 1


def test_hazy_pixels_first_dehazed_after(widget, opened, weights, scene, tmp_path, monkeypatch, qtbot) -> None:
    viewer, layer = opened
    wanted = dehazexl.dehaze(scene, dehazexl.load_model(weights, dtype="float32")).compute()
    loading, load = threading.Event(), dehazexl.load_model
    monkeypatch.setattr(dehazexl, "load_model", lambda *args: loading.wait(60) and load(*args))
    widget.weights.value = copy(weights, tmp_path / "late.safetensors")  # a network that is not kept yet
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    assert viewer.layers.index(dehazed) == viewer.layers.index(layer) + 1
    assert dehazed.rgb and dehazed.multiscale and tuple(dehazed.scale) == tuple(layer.scale)
    view = np.s_[200:600, 300:700]
    qtbot.waitUntil(lambda: np.array_equal(dehazed.data[0][view], scene[view]), timeout=10_000)

    loading.set()
    live = state_of(dehazed).session
    for part in (view, np.s_[700:1100, 900:1300]):  # and where one pans to
        dehazed.data[0][part]
        qtbot.waitUntil(lambda: live.wait(0.01), timeout=60_000)
        qtbot.waitUntil(partial(alike, dehazed, wanted, part), timeout=10_000)
        assert np.abs(wanted[part].astype(int) - scene[part]).mean() > 2, "the network does nothing"


def test_the_canvas_shows_what_has_become_better(opened, weights, qtbot) -> None:
    from napari_dehazexl import dehaze_layer

    viewer, layer = opened
    hazy = viewer.screenshot(flash=False)
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    live = state_of(dehazed).session
    qtbot.waitUntil(lambda: live.wait(0.01), timeout=60_000)

    def changed() -> None:
        assert np.abs(viewer.screenshot(flash=False).astype(int) - hazy).mean() > 2

    qtbot.waitUntil(changed, timeout=10_000)


def test_the_widget_s_buttons(widget, opened, scene, weights, tmp_path, monkeypatch, qtbot) -> None:
    viewer, _ = opened
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    live = state_of(dehazed).session
    widget.strength.value = 0.5
    assert live.strength == 0.5

    camera(viewer).zoom = 4
    for center in ((300, 300), (800, 1000)):
        camera(viewer).center = (0, *center)
        qtbot.wait(200)
        qtbot.waitUntil(lambda: live.status == "all in view is dehazed", timeout=60_000)
        qtbot.waitUntil(lambda: "all in view" in widget.status.value, timeout=5_000)
        assert live._view is not None
        level, window = live._view
        assert level == 0 and window.y0 < center[0] < window.y1 and window.x0 < center[1] < window.x1
    click(widget.preview)
    shown = viewer.layers["scene preview"]
    height, width, _ = shown.data[0].shape
    assert height < 1100 and width < 1300
    row, col = (int(place) for place in shown.translate)
    state_of(shown).session.strength = 0
    np.testing.assert_array_equal(shown.data[0][:], scene[row : row + height, col : col + width])

    path = tmp_path / "saved.ome.zarr"
    save_as(widget, path, monkeypatch)
    saved(widget, qtbot)
    wanted = dehazexl.dehaze(scene, dehazexl.load_model(weights, dtype="float32"), strength=0.5).compute()
    pixels = np.asarray(dehazexl.open_image(path).levels[0])
    assert np.abs(pixels.astype(int) - wanted).max() <= 1
    assert state_of(dehazed).session is None and not live.running
    np.testing.assert_array_equal(np.asarray(dehazed.data[0]), pixels)
    assert state_of(shown).session is not None, "only a part of what was saved"
    (again,) = viewer.open(str(path), plugin="napari-dehazexl")
    np.testing.assert_array_equal(np.asarray(again.data[0]), pixels)
    assert not list(tmp_path.glob(".*")), "something was left behind"


def test_dehaze_goes_on_after_cancel(widget, opened, qtbot) -> None:
    viewer, _ = opened
    click(widget.dehaze)
    live = state_of(viewer.layers["scene dehazed"]).session
    click(widget.cancel)
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)
    assert not live._worker._thread.is_alive()
    click(widget.dehaze)
    assert live.running and len(viewer.layers) == 2
    qtbot.waitUntil(lambda: live.wait(0.01), timeout=60_000)
    click(widget.cancel)
    widget.overlap.value = 64
    click(widget.dehaze)
    assert not live.running, "another order is another layer"
    assert [each.name for each in viewer.layers] == ["scene", "scene dehazed", "scene dehazed (overlap 64)"]


def test_a_preview_that_fails_leaves_the_last_one(widget, opened, errors) -> None:
    viewer, layer = opened
    click(widget.preview)
    first = viewer.layers["scene preview"]
    widget.limits.value = "9, 3"
    click(widget.preview)
    assert "does not rise" in errors.pop() and not errors
    assert first in viewer.layers
    widget.limits.value = ""
    layer.name = "renamed"
    click(widget.preview)
    assert [each.name for each in viewer.layers] == ["renamed", "renamed preview"] and first not in viewer.layers


def test_a_rectangle_is_a_region(widget, opened, weights, tmp_path, monkeypatch, qtbot) -> None:
    viewer, _ = opened
    shapes = viewer.add_shapes([[[100, 200], [100, 599], [399, 599], [399, 200]]], shape_type="rectangle")
    widget.region.value = shapes
    assert "30 tiles" in widget.estimate.value, "the whole image takes part"
    click(widget.dehaze)
    part = viewer.layers["scene dehazed"]
    assert part.data[0].shape == (300, 400, 3) and tuple(part.translate) == (100, 200)
    save_as(widget, tmp_path / "part.tif", monkeypatch)
    saved(widget, qtbot)
    pixels = dehazexl.open_image(tmp_path / "part.tif").levels[0]
    assert pixels.shape == (300, 400, 3)
    assert state_of(part).session is None, "it does not read from its file"
    np.testing.assert_array_equal(np.asarray(part.data[0]), np.asarray(pixels))
    whole = dehazexl.dehaze(tmp_path / "scene.tif", dehazexl.load_model(weights, dtype="float32")).compute()
    assert np.abs(np.asarray(pixels).astype(int) - whole[100:400, 200:600]).max() <= 1, "other pixels than of the whole"
    widget.context.value = "region"
    qtbot.waitUntil(lambda: "4 tiles" in widget.estimate.value, timeout=5_000)
    shapes.add_rectangles([[0, 0], [0, 900], [900, 900], [900, 0]])
    qtbot.waitUntil(lambda: "16 tiles" in widget.estimate.value, timeout=5_000)


def test_the_estimate_is_there_before_anything_has_run(widget, opened, settings, tmp_path, monkeypatch, qtbot) -> None:
    viewer, _ = opened
    assert "30 tiles" in widget.estimate.value and "on a CPU" in widget.estimate.value
    widget.overlap.value = 0
    viewer.add_image(np.zeros((3000, 3000, 3), np.uint8), name="larger")
    widget.input.value = viewer.layers["larger"]
    qtbot.waitUntil(lambda: "144 tiles" in widget.estimate.value, timeout=5_000)
    widget.input.value = viewer.layers["scene"]
    save_as(widget, tmp_path / "saved.tif", monkeypatch)
    saved(widget, qtbot)
    qtbot.waitUntil(lambda: "on a CPU" not in widget.estimate.value, timeout=5_000)
    qtbot.waitUntil(lambda: settings.exists() and "seconds_per_tile" in settings.read_text(), timeout=5_000)


def kept(settings: Path) -> dict[str, object]:
    """What a file of settings holds; Qt itself would answer from memory."""
    lines = settings.read_text().splitlines()[1:]
    pairs = [line.split("=", 1) for line in lines if line]
    return {name: json.loads(value.replace('\\"', '"')) for name, value in pairs}


def test_settings_are_remembered_and_restored(widget, opened, settings, qtbot) -> None:
    viewer, _ = opened
    qtbot.waitUntil(settings.exists, timeout=5_000)
    before = settings.read_text()
    for strength in np.linspace(0.9, 0.1, 50):
        widget.strength.value = strength
    widget.overlap.value, widget.cache.value = 64, 100
    assert settings.read_text() == before, "written at each step of a slider"
    qtbot.waitUntil(lambda: settings.read_text() != before, timeout=5_000)
    assert kept(settings)["overlap"] == 64
    widget.overlap.value = 16
    close_dock(viewer, widget)
    assert kept(settings)["overlap"] == 16, "closing the dock lost the last change"
    from napari_dehazexl._widget import Dehaze

    again = Dehaze(viewer)
    assert (again.overlap.value, again.cache.value, again.precision.value) == (16, 100, "float32")
    assert again.strength.value == pytest.approx(0.1)
    click(again.defaults)
    assert again.overlap.value is None and again.weights.value in (None, Path("."))
    qtbot.waitUntil(lambda: len(again.device.choices) >= 2, timeout=60_000)


def test_two_docks_keep_each_other_s_settings(settings, qapp) -> None:
    from napari_dehazexl._settings import Settings

    shown = {"overlap": None, "strength": 1.0, "cache": 512}
    first = Settings()
    first.remember(**shown)
    first.write()
    one, other = (Settings(), dict(shown)), (Settings(), dict(shown))
    changes = ({"overlap": 64}, {"strength": 0.5}, {"cache": 100}, {"strength": 0.4})
    for (each, values), change in zip((one, other, one, other), changes, strict=True):
        values |= change  # type: ignore[call-overload]
        each.remember(**values)  # a dock hands over all that it shows
        each.write()
    assert kept(settings) == {"overlap": 64, "strength": 0.4, "cache": 100}
    assert Settings().values == kept(settings)


def test_settings_that_cannot_be_written_are_said_once(widget, settings, errors, qtbot) -> None:
    shutil.rmtree(settings.parent, ignore_errors=True)  # there once the speed of the network was remembered
    settings.parent.write_text("a file where the folder should be")
    for overlap in (16, 64):
        widget.overlap.value = overlap
        qtbot.wait(800)
    assert len(errors) == 1 and "settings are not remembered" in errors[0]


def test_the_slider_s_number_has_room(widget) -> None:
    from qtpy.QtWidgets import QDoubleSpinBox

    number = widget.strength.native.findChild(QDoubleSpinBox)
    line = number.lineEdit()
    assert line.width() >= line.fontMetrics().horizontalAdvance("1.00")


def test_everything_says_what_it_is(widget) -> None:
    assert widget.region.native.currentText() == "the whole image"
    every = [*widget.fields, *widget.more]
    assert len(every) > 20
    rows = {row: [row.tooltip] if row.tooltip else [each.tooltip for each in row] for row in every}
    assert all(all(tooltips) for tooltips in rows.values()), rows


def test_what_cannot_be_dehazed_is_said_once(widget, opened, errors) -> None:
    viewer, layer = opened
    mask = viewer.add_image(np.zeros((300, 300), bool), name="mask")
    before = len(viewer.layers)
    click(widget.dehaze)
    assert "mask" in errors.pop() and not errors
    viewer.layers.selection.active = layer
    assert widget.input.value == layer != mask
    widget.limits.value = "20, 10"
    click(widget.dehaze)
    assert "does not rise" in errors.pop() and not errors
    assert len(viewer.layers) == before


def test_weights_that_are_none_are_said_once(widget, opened, errors, tmp_path, qtbot) -> None:
    viewer, _ = opened
    (tmp_path / "no.safetensors").write_text("nothing")
    inserted: list[str] = []
    viewer.layers.events.inserted.connect(lambda event: inserted.append(event.value.name))
    widget.weights.value = tmp_path / "no.safetensors"
    click(widget.dehaze)
    assert len(errors) == 1 and "not a safetensors file" in errors[0] and not inserted
    assert [layer.name for layer in viewer.layers] == ["scene"], "a layer stays that no network will dehaze"
    qtbot.waitUntil(lambda: not workers(), timeout=30_000)  # the weights are looked up in a thread, too


def test_pressed_again_the_layer_that_is_there_is_shown(widget, opened, qtbot) -> None:
    viewer, layer = opened
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    click(widget.cancel)
    qtbot.waitUntil(lambda: not workers(), timeout=30_000)
    dehazed.visible = False
    viewer.layers.selection.active = layer
    click(widget.dehaze)
    assert len(viewer.layers) == 2 and dehazed.visible
    assert viewer.layers.selection.active.name == "scene dehazed"
    assert state_of(dehazed).session.running
    click(widget.dehaze)
    assert len(viewer.layers) == 2


def test_weights_that_were_written_again_are_others(widget, opened, tmp_path) -> None:
    viewer, _ = opened
    widget.weights.value = shutil.copy(widget.weights.value, tmp_path / "mine.safetensors")
    click(widget.dehaze)
    click(widget.dehaze)
    assert len(viewer.layers) == 2
    os.utime(tmp_path / "mine.safetensors")
    click(widget.dehaze)
    assert len(viewer.layers) == 3


def test_a_layer_removed_at_work_leaves_no_worker(opened, weights, qtbot) -> None:
    from napari_dehazexl import dehaze_layer

    viewer, layer = opened
    dehazed = dehaze_layer(layer, weights=weights, viewer=viewer)
    assert workers()
    viewer.layers.remove(dehazed)
    qtbot.waitUntil(lambda: not workers(), timeout=30_000)


def test_a_viewer_closed_at_work_leaves_no_worker(make_napari_viewer_proxy, weights, scene, qtbot) -> None:
    from napari_dehazexl import dehaze_layer

    viewer = make_napari_viewer_proxy()
    layer = viewer.add_image(scene, rgb=True)
    dehaze_layer(layer, weights=weights, viewer=viewer)
    assert workers()
    viewer.close()
    qtbot.waitUntil(lambda: not workers(), timeout=30_000)


def test_scripts_need_no_window(scene, weights) -> None:
    from napari.components import ViewerModel

    from napari_dehazexl import dehaze_layer, set_strength

    viewer = ViewerModel()
    layer = viewer.add_image(scene, rgb=True, name="scene", scale=(2, 2))
    dehazed = dehaze_layer(layer, strength=0.8, weights=weights, dtype="float32", viewer=viewer)
    live = dehazed.metadata["dehazexl"].session  # as the README has it
    dehazed.data[0][:300, :300]
    assert live.wait(60)
    assert list(viewer.layers) == [layer, dehazed] and tuple(dehazed.scale) == (2, 2)
    set_strength(dehazed, 0)
    np.testing.assert_array_equal(dehazed.data[0][:300, :300], scene[:300, :300])
    live.close(60)
    with pytest.raises(ValueError, match="is not being dehazed"):
        set_strength(layer, 0.5)


@pytest.mark.parametrize(("key", "side"), [("scene", 1200), ("large", 16384)])
def test_sample_data(make_napari_viewer_proxy, key, side) -> None:
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open_sample("napari-dehazexl", key)
    finest = layer.data[0] if layer.multiscale else layer.data
    assert layer.rgb and finest.shape[0] == side
    pixels = np.asarray(finest[700:764, 300:364])
    assert pixels.std() > 2 and pixels.mean() > 100
    if layer.multiscale:  # seen from afar it is the same picture
        small = np.asarray(layer.data[3][:8, :8])
        np.testing.assert_array_equal(small, np.asarray(finest[:64:8, :64:8]))


def test_overviews_are_made_for_a_large_picture(make_napari_viewer_proxy, tmp_path, errors, qtbot, monkeypatch) -> None:
    from dehazexl.viewing import overviews
    from napari_dehazexl import dehaze_layer

    y, x = np.mgrid[:2500, :2600]
    pixels = np.stack([y // 10, x // 11, (x + y) // 21, x % 7], axis=-1).astype(np.uint8)
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", extrasamples=["unspecified"])
    gate, make = threading.Event(), overviews.make_overviews
    monkeypatch.setattr(overviews, "make_overviews", lambda *args: gate.wait(60) and make(*args))
    viewer = make_napari_viewer_proxy(show=True)
    layer, further = viewer.open(str(path), plugin="napari-dehazexl")
    assert state_of(layer).overviews.running
    with pytest.raises(ValueError, match="are being computed"):
        dehaze_layer(layer, viewer=viewer)
    gate.set()
    qtbot.waitUntil(lambda: state_of(layer).overviews is None, timeout=60_000)
    coarse = np.asarray(layer.data[3])[:312, :324]
    assert np.abs(coarse - pixels[4:2500:8, 4:2596:8, :3].astype(int)).max() <= 2
    assert further.data[0].ndim == 2 and not further.visible
    (again, _) = viewer.open(str(path), plugin="napari-dehazexl")
    assert state_of(again).overviews is None, "made once more"
    assert not errors
