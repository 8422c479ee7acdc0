"""The plugin in a real napari window."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

import dehazexl
from dehazexl.model import SPECS, DehazeXL
from dehazexl.weights import save_model

pytest.importorskip("napari")


@pytest.fixture(autouse=True)
def settings(tmp_path_factory, monkeypatch) -> Path:
    """Settings and overviews of the test's own."""
    path = tmp_path_factory.mktemp("settings") / "dehaze.json"
    monkeypatch.setattr("napari_dehazexl._reader.cache_folder", lambda: path.parent / "overviews")
    monkeypatch.setattr("napari_dehazexl._widget.settings_file", lambda: path)
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A small network, as a file."""
    torch.manual_seed(0)
    return save_model(DehazeXL(SPECS["tiny"]), tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """What the user is told went wrong."""
    from napari.utils.notifications import NotificationSeverity, notification_manager

    told: list[str] = []

    def listen(notification: Any) -> None:
        if notification.severity >= NotificationSeverity.ERROR:
            told.append(notification.message)

    notification_manager.notification_ready.connect(listen)
    yield told
    notification_manager.notification_ready.disconnect(listen)


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dehaze ")]


@pytest.fixture
def opened(make_napari_viewer_proxy, tmp_path, scene):
    """A viewer that shows a tiled TIFF with overviews, and its layer."""
    path = tmp_path / "scene.tif"
    dehazexl.to_tiff(scene, path)
    viewer = make_napari_viewer_proxy(show=True)
    (layer,) = viewer.open(str(path), plugin="napari-dehazexl")
    return viewer, layer


@pytest.fixture
def widget(opened, weights, qtbot):
    """The widget, with its layer chosen and its devices listed."""
    viewer, _ = opened
    _, widget = viewer.window.add_plugin_dock_widget("napari-dehazexl", "Dehaze")
    widget.weights.value = weights
    widget.precision.value = "float32"
    qtbot.waitUntil(lambda: len(widget.device.choices) >= 2, timeout=60_000)
    return widget


def click(button: Any) -> None:
    button.native.click()


@pytest.fixture
def scene() -> np.ndarray:
    y, x = np.mgrid[:1100, :1300]
    return np.stack([y % 256, x % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def test_manifest_is_valid() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "npe2", "validate", "napari-dehazexl", "--imports"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_top_level_manifest_is_the_package_s() -> None:
    root = Path(__file__).parents[1]
    assert (root / "napari.yaml").read_text() == (root / "src/napari_dehazexl/napari.yaml").read_text()


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
    colours, further = viewer.open(str(tmp_path / "four.tif"), plugin="napari-dehazexl")
    assert colours.visible and not further.visible
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
        "import napari_dehazexl._reader; assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hazy_pixels_first_dehazed_after(opened, weights, scene, qtbot) -> None:
    from napari_dehazexl import dehaze_layer

    viewer, layer = opened
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    assert viewer.layers.index(dehazed) == viewer.layers.index(layer) + 1
    assert dehazed.rgb and dehazed.multiscale and tuple(dehazed.scale) == tuple(layer.scale)
    live = dehazed.metadata["dehazexl-live"]
    view = np.s_[200:600, 300:700]
    live.close(60)
    assert np.abs(dehazed.data[0][view].astype(int) - scene[view]).max() <= 255  # whatever there is, it answers

    viewer.layers.remove(dehazed)
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    live = dehazed.metadata["dehazexl-live"]
    dehazed.data[0][view]
    assert live.wait(60)
    wanted = dehazexl.dehaze(scene, dehazexl.load_model(weights, dtype="float32"))[view].compute()
    assert np.abs(dehazed.data[0][view].astype(int) - wanted).max() <= 1
    assert np.abs(wanted.astype(int) - scene[view]).mean() > 2, "the network does nothing"


def test_the_canvas_shows_what_has_become_better(opened, weights, qtbot) -> None:
    from napari_dehazexl import dehaze_layer

    viewer, layer = opened
    hazy = viewer.screenshot(flash=False)
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    live = dehazed.metadata["dehazexl-live"]
    qtbot.waitUntil(lambda: live.wait(0.01), timeout=60_000)

    def changed() -> None:
        assert np.abs(viewer.screenshot(flash=False).astype(int) - hazy).mean() > 2

    qtbot.waitUntil(changed, timeout=10_000)


def test_the_widget_s_buttons(widget, opened, scene, weights, tmp_path, qtbot) -> None:
    viewer, _ = opened
    assert "30 tiles" in widget.estimate.value
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    live = dehazed.metadata["dehazexl-live"]
    dehazed.data[0][:400, :400]
    qtbot.waitUntil(lambda: live.wait(0.01), timeout=60_000)

    widget.strength.value = 0.5
    assert live.strength == 0.5

    (viewer.scene if hasattr(viewer, "scene") else viewer).camera.zoom = 4  # 0.9 moved it
    qtbot.wait(100)
    click(widget.preview)
    shown = viewer.layers["scene preview"]
    height, width, _ = shown.data[0].shape
    assert height < 1100 and width < 1300
    corner = np.array(shown.translate).astype(int)
    np.testing.assert_array_less(-1, corner)

    path = tmp_path / "saved.ome.zarr"
    widget.save(path)
    qtbot.waitUntil(lambda: widget._saving is None, timeout=120_000)
    model = dehazexl.load_model(weights, dtype="float32")
    wanted = dehazexl.dehaze(scene, model, strength=0.5).compute()
    saved = np.asarray(dehazexl.open_image(path).levels[0])
    assert np.abs(saved.astype(int) - wanted).max() <= 1
    assert "dehazexl-live" not in dehazed.metadata and not live.running
    np.testing.assert_array_equal(np.asarray(dehazed.data[0]), saved)
    assert not list(tmp_path.glob(".*")), "something was left behind"


def test_cancel_and_go_on(widget, opened, weights, tmp_path, qtbot) -> None:
    viewer, _ = opened
    click(widget.dehaze)
    path = tmp_path / "saved.tif"
    widget.save(path)
    click(widget.cancel)
    qtbot.waitUntil(lambda: widget._saving is None, timeout=60_000)
    assert not path.exists()
    assert not viewer.layers["scene dehazed"].metadata["dehazexl-live"].running
    widget.save(path)
    qtbot.waitUntil(lambda: widget._saving is None, timeout=120_000)
    assert path.exists() and not list(tmp_path.glob(".*"))


def test_a_rectangle_is_a_region(widget, opened, tmp_path, scene, qtbot) -> None:
    viewer, _ = opened
    shapes = viewer.add_shapes([[[100, 200], [100, 599], [399, 599], [399, 200]]], shape_type="rectangle")
    widget.region.value = shapes
    assert "4 tiles" in widget.estimate.value or "6 tiles" in widget.estimate.value
    click(widget.dehaze)
    part = viewer.layers["scene dehazed"]
    assert part.data[0].shape == (300, 400, 3) and tuple(part.translate) == (100, 200)
    path = tmp_path / "part.tif"
    widget.save(path)
    qtbot.waitUntil(lambda: widget._saving is None, timeout=120_000)
    assert dehazexl.open_image(path).levels[0].shape == (300, 400, 3)


def test_settings_are_remembered_and_restored(widget, opened, settings, qtbot) -> None:
    viewer, _ = opened
    widget.overlap.value = 64
    assert json.loads(settings.read_text())["overlap"] == 64
    viewer.window.remove_dock_widget(widget.native)
    from napari_dehazexl._widget import Dehaze

    again = Dehaze(viewer)
    assert again.overlap.value == 64 and again.precision.value == "float32"
    click(again.defaults)
    assert again.overlap.value == 32 and again.weights.value in (None, Path("."))
    qtbot.waitUntil(lambda: len(again.device.choices) >= 2, timeout=60_000)


def test_what_cannot_be_dehazed_is_said_once(widget, opened, errors, tmp_path, qtbot) -> None:
    viewer, layer = opened
    grey = viewer.add_image(np.zeros((300, 300), np.uint8), name="grey")
    stack = viewer.add_image(np.zeros((4, 300, 300, 3), np.uint8), rgb=True, name="stack")
    before = len(viewer.layers)
    for chosen, message in ((grey, "'grey' is not RGB"), (stack, "'stack' has 3 dimensions")):
        widget.input.value = chosen
        click(widget.dehaze)
        assert message in errors.pop() and not errors
    widget.input.value = layer
    widget.limits.value = "20, 10"
    click(widget.dehaze)
    assert "does not rise" in errors.pop() and not errors
    widget.limits.value = ""
    widget.save(tmp_path / "name.xyz")
    qtbot.waitUntil(lambda: widget._saving is None, timeout=60_000)
    assert ".xyz" in errors.pop() and not errors
    assert len(viewer.layers) == before


def test_weights_that_are_none_are_said_once(widget, opened, errors, tmp_path, qtbot) -> None:
    viewer, _ = opened
    (tmp_path / "no.safetensors").write_text("nothing")
    widget.weights.value = tmp_path / "no.safetensors"
    click(widget.dehaze)
    qtbot.waitUntil(lambda: bool(errors), timeout=60_000)
    qtbot.wait(500)
    assert len(errors) == 1 and "not a safetensors file" in errors[0]
    assert viewer.layers["scene dehazed"].data[0][:10, :10].any()


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
    live = dehazed.metadata["dehazexl-live"]
    dehazed.data[0][:300, :300]
    assert live.wait(60)
    assert list(viewer.layers) == [layer, dehazed] and tuple(dehazed.scale) == (2, 2)
    set_strength(dehazed, 0)
    np.testing.assert_array_equal(dehazed.data[0][:300, :300], scene[:300, :300])
    live.close(60)
    with pytest.raises(ValueError, match="is not being dehazed"):
        set_strength(layer, 0.5)


def test_file_save_writes_dehazed(opened, weights, scene, tmp_path) -> None:
    from napari_dehazexl import dehaze_layer

    viewer, layer = opened
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    path = tmp_path / "written.ome.zarr"
    assert dehazed.save(str(path), plugin="napari-dehazexl") == [str(path)]
    wanted = dehazexl.dehaze(scene, dehazexl.load_model(weights, dtype="float32")).compute()
    saved = np.asarray(dehazexl.open_image(path).levels[0])
    assert np.abs(saved.astype(int) - wanted).max() <= 1
    layer.save(str(tmp_path / "plain.tif"), plugin="napari-dehazexl")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "plain.tif"), scene)


@pytest.mark.parametrize(("key", "side"), [("scene", 1500), ("large", 16384)])
def test_sample_data(make_napari_viewer_proxy, key, side) -> None:
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open_sample("napari-dehazexl", key)
    finest = layer.data[0] if layer.multiscale else layer.data
    assert layer.rgb and finest.shape[0] == side
    pixels = np.asarray(finest[700:764, 300:364])
    assert pixels.std() > 2 and pixels.mean() > 100


def test_overviews_are_made_for_a_large_picture(make_napari_viewer_proxy, tmp_path, errors, qtbot, monkeypatch) -> None:
    from dehazexl import overviews
    from napari_dehazexl import dehaze_layer
    from napari_dehazexl._reader import GROWING

    y, x = np.mgrid[:2500, :2600]
    pixels = np.stack([y // 10, x // 11, (x + y) // 21, x % 7], axis=-1).astype(np.uint8)
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", extrasamples=["unspecified"])
    gate, make = threading.Event(), overviews.make_overviews
    monkeypatch.setattr(overviews, "make_overviews", lambda *args: gate.wait() and make(*args))
    viewer = make_napari_viewer_proxy(show=True)
    layer, further = viewer.open(str(path), plugin="napari-dehazexl")
    assert layer.metadata[GROWING].running
    with pytest.raises(ValueError, match="are being made"):
        dehaze_layer(layer, viewer=viewer)
    gate.set()
    qtbot.waitUntil(lambda: GROWING not in layer.metadata, timeout=60_000)
    coarse = np.asarray(layer.data[3])[:312, :324]
    assert np.abs(coarse - pixels[4:2500:8, 4:2596:8, :3].astype(int)).max() <= 2
    assert further.data[0].ndim == 2 and not further.visible
    (again, _) = viewer.open(str(path), plugin="napari-dehazexl")
    assert GROWING not in again.metadata, "made once more"
    assert not errors
