"""What a user clicks who does not know the plugin: the selected image is dehazed, and saved as it is seen."""

from typing import Any

import numpy as np
import pytest
import tifffile

import dehazexl

pytest.importorskip("napari")

from window import *  # noqa: F403
from window import click, dock, save_as, saved

from napari_dehazexl._state import session_of_layer, state_of


@pytest.fixture
def scene() -> np.ndarray:
    """A small picture."""
    y, x = np.mgrid[:300, :400]
    return np.stack([y % 256, x % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def names(viewer: Any) -> list[str]:
    return [layer.name for layer in viewer.layers]


def test_contrast_limits_are_display(make_napari_viewer_proxy, weights, scene, tmp_path, monkeypatch, qtbot) -> None:
    path = tmp_path / "deep.tif"
    pixels = scene.astype(np.uint16) * 10 + 900
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(256, 256))
    viewer = make_napari_viewer_proxy(show=True)
    (layer,) = viewer.open(str(path), plugin="napari-dehazexl")
    widget = dock(viewer, weights, qtbot)
    assert widget.limits.native.placeholderText() == "0, 3450"
    layer.reset_contrast_limits()
    layer.contrast_limits = (0.4, 0.6)
    save_as(widget, tmp_path / "clear.tif", monkeypatch)
    saved(widget, qtbot)
    wanted = dehazexl.dehaze(path, dehazexl.load_model(weights, dtype="float32")).compute()
    found = dehazexl.open_image(tmp_path / "clear.tif")
    assert np.abs(np.asarray(found.levels[0]).astype(int) - wanted).max() <= 1
    assert found.metadata["domains"]["DEHAZEXL"]["strength"] == "1.0"
    click(widget.contrast)
    assert widget.limits.value == "1380, 2070"
    click(widget.dehaze)
    assert session_of_layer(viewer.layers["deep dehazed"]).value_range == (1380, 2070)


def test_the_input_follows_the_selection(make_napari_viewer_proxy, weights, scene, qtbot) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    first, second = (viewer.add_image(scene, rgb=True, name=name) for name in ("first", "second"))
    widget = dock(viewer, weights, qtbot)
    assert widget.input.value == second
    viewer.layers.selection.active = first
    assert widget.input.value == first
    viewer.layers.selection = {first, second}
    click(widget.dehaze)
    assert names(viewer) == ["first", "first dehazed", "second", "second dehazed"]
    viewer.layers.selection.active = viewer.layers["first dehazed"]
    assert widget.input.value == first
    assert set(widget.input.choices) == {first, second}
    widget.overlap.value = 64
    click(widget.dehaze)
    assert "first dehazed (overlap 64)" in names(viewer)
    # The slider is for the selected one.
    one, other = viewer.layers["first dehazed"], viewer.layers["first dehazed (overlap 64)"]
    widget.strength.value = 0.5
    assert (session_of_layer(one).strength, session_of_layer(other).strength) == (1, 0.5)
    viewer.layers.selection.active = one
    assert widget.strength.value == 1
    from napari_dehazexl import set_strength

    set_strength(one, 0.25)
    qtbot.waitUntil(lambda: widget.strength.value == 0.25, timeout=5_000)


def test_split_colors_of_a_dehazed_layer_are_images(make_napari_viewer, weights, scene, qtbot) -> None:
    from napari.layers._layer_actions import _split_rgb

    viewer = make_napari_viewer(show=True)
    viewer.add_image(scene, rgb=True, name="scene")
    widget = dock(viewer, weights, qtbot)
    click(widget.dehaze)
    viewer.layers.selection.active = viewer.layers["scene dehazed"]
    _split_rgb(viewer.layers)
    split = [layer for layer in viewer.layers if not layer.rgb]
    assert len(split) == 3 and not any(session_of_layer(layer) for layer in split)
    viewer.layers.selection.active = split[0]
    assert widget.input.value == split[0]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_napari_s_own_kinds_save_in_full_size(make_napari_viewer_proxy, weights, tmp_path, qtbot, suffix) -> None:
    from imageio.v3 import imread

    y, x = np.mgrid[:700, :900]
    scene = np.stack([y % 256, x % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    viewer = make_napari_viewer_proxy(show=True)
    dehazexl.to_tiff(scene, tmp_path / "scene.tif")
    (layer,) = viewer.open(str(tmp_path / "scene.tif"), plugin="napari-dehazexl")
    widget = dock(viewer, weights, qtbot)
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    for each, wanted in (
        (layer, scene),
        (dehazed, dehazexl.dehaze(scene, dehazexl.load_model(weights, dtype="float32")).compute()),
    ):
        path = tmp_path / f"{each.name} out{suffix}"
        assert each.save(str(path), plugin="napari") == [str(path)]
        assert np.abs(imread(path).astype(int) - wanted).max() <= 1


def test_a_strength_after_saving_dehazes_again(make_napari_viewer_proxy, weights, scene, tmp_path, monkeypatch, qtbot):
    viewer = make_napari_viewer_proxy(show=True)
    viewer.add_image(scene, rgb=True, name="scene")
    widget = dock(viewer, weights, qtbot)
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    save_as(widget, tmp_path / "saved.ome.zarr", monkeypatch)
    saved(widget, qtbot)
    assert session_of_layer(dehazed) is None and widget.input.value == viewer.layers["scene"]
    assert dehazexl.open_image(tmp_path / "saved.ome.zarr").metadata["domains"]["DEHAZEXL"]["weights"] == str(weights)
    viewer.layers.selection.active = dehazed
    widget.strength.value = 0
    session = session_of_layer(dehazed)
    assert session is not None and session.running
    np.testing.assert_array_equal(session.levels[0][:], scene)
    qtbot.waitUntil(lambda: np.array_equal(np.asarray(dehazed.data[0][:]), scene), timeout=20_000)


def test_a_geotiff_of_napari_s_own_reader_keeps_its_place(
    make_napari_viewer_proxy, weights, tmp_path, qtbot, monkeypatch
):
    import rasterio
    from rasterio import Affine

    path, pixels = tmp_path / "geo.tif", np.random.default_rng(0).integers(1, 255, (4, 300, 400), np.uint8)
    profile = {"driver": "GTiff", "height": 300, "width": 400, "count": 4, "dtype": "uint8", "nodata": 0}
    place = {"crs": "EPSG:32632", "transform": Affine(0.5, 0, 500000, 0, -0.5, 5600000)}
    with rasterio.open(path, "w", interleave="pixel", photometric="rgb", **profile, **place) as file:
        file.write(pixels)
        file.descriptions = ("red", "green", "blue", "nir")
    viewer = make_napari_viewer_proxy(show=True)
    (layer,) = viewer.open(str(path), plugin="napari")
    widget = dock(viewer, weights, qtbot)
    save_as(widget, tmp_path / "clear.tif", monkeypatch)
    saved(widget, qtbot)
    layer.save(str(tmp_path / "copy.tif"), plugin="napari-dehazexl")
    for name in ("clear.tif", "copy.tif"):
        with rasterio.open(tmp_path / name) as file:
            assert file.crs == place["crs"] and file.transform == place["transform"] and file.nodata == 0
            assert file.descriptions == ("red", "green", "blue", "nir")
            np.testing.assert_array_equal(file.read(4), pixels[3])


def test_stacks_and_other_axes_are_dehazed_as_seen(make_napari_viewer_proxy, weights, scene, qtbot, errors) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    stack = np.stack([scene, scene[::-1], scene[:, ::-1]])
    layers = {
        "gray": (viewer.add_image(scene[..., 0], name="gray"), np.repeat(scene[..., :1], 3, axis=2)),
        "int16": (viewer.add_image(scene.astype(np.int16) - 40, rgb=True, name="int16"), None),
        "int32": (viewer.add_image(scene.astype(np.int32) * 1000, rgb=True, name="int32"), None),
        "channels": (viewer.add_image(np.moveaxis(scene, -1, 0), name="channels"), scene),
        "time": (viewer.add_image(stack, rgb=True, name="time"), scene[::-1]),
        "t, c, z": (
            viewer.add_image(np.stack([np.moveaxis(stack, -1, 0)] * 2), name="t, c, z", axis_labels=[*"tczyx"]),
            scene[::-1],
        ),
    }
    widget = dock(viewer, weights, qtbot)
    for name, (layer, wanted) in layers.items():
        viewer.layers.selection.active = layer
        viewer.dims.set_point(viewer.dims.ndim - 3, 1)
        click(widget.dehaze)
        assert not errors, f"{name}: {errors}"
        session = session_of_layer(viewer.layers[f"{name} dehazed"])
        assert session is not None, name
        if wanted is not None:
            session.strength = 0
            np.testing.assert_array_equal(session.levels[0][:], wanted, err_msg=name)


def test_a_file_with_further_axes_has_sliders(
    make_napari_viewer_proxy, weights, scene, tmp_path, qtbot, errors
) -> None:
    stack = np.stack([scene, scene[::-1]])
    tifffile.imwrite(tmp_path / "time.tif", stack, photometric="rgb", metadata={"axes": "TYXS"}, ome=True)
    viewer = make_napari_viewer_proxy(show=True)
    (layer,) = viewer.open(str(tmp_path / "time.tif"), plugin="napari-dehazexl")
    assert layer.rgb and layer.ndim == 3 and viewer.dims.nsteps[0] == 2
    widget = dock(viewer, weights, qtbot)
    viewer.dims.set_point(0, 1)
    click(widget.dehaze)
    session = session_of_layer(viewer.layers["time dehazed"])
    session.strength = 0
    np.testing.assert_array_equal(session.levels[0][:], scene[::-1])
    assert not errors


def test_copied_lines_do_what_save_does(make_napari_viewer_proxy, weights, scene, tmp_path, qtbot) -> None:
    import runpy
    import shlex

    from qtpy.QtWidgets import QApplication

    from dehazexl.cli.app import main

    path = tmp_path / "scene.tif"
    dehazexl.to_tiff(scene, path)
    viewer = make_napari_viewer_proxy(show=True)
    viewer.open(str(path), plugin="napari-dehazexl")
    widget = dock(viewer, weights, qtbot)
    widget.strength.value, widget.overlap.value = 0.5, 16
    output = tmp_path / "scene-dehazed.tif"
    model = dehazexl.load_model(weights, dtype="float32")
    wanted = dehazexl.dehaze(path, model, overlap=16, strength=0.5).compute()
    click(widget.script)
    (tmp_path / "copied.py").write_text(QApplication.clipboard().text())
    runpy.run_path(str(tmp_path / "copied.py"))
    assert np.abs(np.asarray(dehazexl.open_image(output).levels[0]).astype(int) - wanted).max() <= 1
    output.unlink()
    click(widget.command)
    program, *words = shlex.split(QApplication.clipboard().text())
    assert program == "dehazexl"
    assert main(words) == 0
    assert np.abs(np.asarray(dehazexl.open_image(output).levels[0]).astype(int) - wanted).max() <= 1


def test_large_images_need_not_wait_for_overviews(
    make_napari_viewer_proxy, weights, tmp_path, monkeypatch, qtbot, errors
) -> None:
    import threading

    from dehazexl.viewing import overviews

    y, x = np.mgrid[:2100, :2300]
    pixels = np.stack([y // 10, x // 11, (x + y) // 21], axis=-1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "large.tif", pixels, tile=(256, 256), photometric="rgb")
    gate, make = threading.Event(), overviews.make_overviews
    monkeypatch.setattr(overviews, "make_overviews", lambda *args: (gate.wait(100), (yield from make(*args))))
    viewer = make_napari_viewer_proxy(show=True)
    (layer,) = viewer.open(str(tmp_path / "large.tif"), plugin="napari-dehazexl")
    widget = dock(viewer, weights, qtbot)
    click(widget.preview)
    assert names(viewer) == ["large", "large preview"]
    viewer.layers.selection.active = layer
    click(widget.dehaze)
    assert names(viewer) == ["large", "large preview"] and not errors
    qtbot.waitUntil(lambda: "when its overviews are there" in widget.status.value, timeout=5_000)
    assert widget.bar.visible and "overviews" in widget.bar.native.format()
    gate.set()
    qtbot.waitUntil(lambda: "large dehazed" in names(viewer), timeout=120_000)
    qtbot.waitUntil(lambda: not widget.bar.visible, timeout=10_000)
    assert state_of(layer).overviews is None and not errors


def test_drawing_a_region(make_napari_viewer_proxy, weights, scene, qtbot) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    layer = viewer.add_image(scene, rgb=True, name="scene")
    widget = dock(viewer, weights, qtbot)
    click(widget.draw)
    shapes = widget.region.value
    assert shapes == viewer.layers["region"] and str(shapes.mode) == "add_rectangle"
    assert widget.input.value == layer
    shapes.add_rectangles([[50, 60], [50, 160], [150, 160], [150, 60]])
    assert shapes.face_color[0, 3] == 0, "the result would be hidden"
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    session = session_of_layer(dehazed)
    assert session is not None and session.context == "all"
    whole = dehazexl.dehaze(scene, dehazexl.load_model(weights, dtype="float32")).compute()[50:151, 60:161]
    qtbot.waitUntil(lambda: session.exact, timeout=60_000)
    found = session.levels[0][:]
    assert found.shape == whole.shape and np.abs(found.astype(int) - whole).max() <= 1
    viewer.layers.remove(shapes)
    click(widget.dehaze)
    assert "scene dehazed (whole)" in names(viewer)


def test_a_newcomer_s_form_is_short(make_napari_viewer, weights, scene, qtbot) -> None:
    from qtpy.QtCore import QPoint, QPointF, Qt
    from qtpy.QtGui import QWheelEvent
    from qtpy.QtWidgets import QApplication

    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1280, 800)
    viewer.add_image(scene, rgb=True, name="scene")
    widget = dock(viewer, weights, qtbot)
    qtbot.wait(300)
    assert widget.more.native.visibleRegion().isEmpty() and not widget.strength.native.visibleRegion().isEmpty()
    assert 'href="https://' in widget.intro.value
    widget.fold.expand(animate=False)
    qtbot.wait(300)
    assert not widget.command.native.visibleRegion().isEmpty() and viewer.window._qt_window.height() <= 800
    before = widget.precision.value, widget.cache.value
    for each in (widget.precision.native, widget.cache.native):
        turned = QWheelEvent(
            QPointF(5, 5), QPointF(each.mapToGlobal(QPoint(5, 5))), QPoint(0, 0), QPoint(0, -120),
            Qt.MouseButton.NoButton, Qt.KeyboardModifier.NoModifier, Qt.ScrollPhase.NoScrollPhase, False,
        )  # fmt: skip
        QApplication.sendEvent(each, turned)
    assert (widget.precision.value, widget.cache.value) == before


def test_the_view_becomes_what_the_file_holds(make_napari_viewer_proxy, weights, tmp_path, qtbot) -> None:
    y, x = np.mgrid[:2200, :1300]
    scene = np.stack([y % 256, x % 256, (x * y) % 256], axis=-1).astype(np.uint8)
    dehazexl.to_tiff(scene, tmp_path / "scene.tif")
    viewer = make_napari_viewer_proxy(show=True)
    viewer.open(str(tmp_path / "scene.tif"), plugin="napari-dehazexl")
    widget = dock(viewer, weights, qtbot)
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    session = session_of_layer(dehazed)
    assert session is not None
    text = viewer.canvas.overlays.text if hasattr(viewer, "canvas") else viewer.text_overlay
    qtbot.waitUntil(lambda: text.text == "approximate" and text.visible, timeout=60_000)
    qtbot.waitUntil(lambda: session.exact, timeout=240_000)
    qtbot.waitUntil(lambda: not text.visible, timeout=10_000)
    level = dehazed.data_level
    assert level > 0
    dehazexl.to_tiff(
        dehazexl.dehaze(tmp_path / "scene.tif", dehazexl.load_model(weights, dtype="float32")), tmp_path / "clear.tif"
    )
    wanted = np.asarray(dehazexl.open_image(tmp_path / "clear.tif").levels[level]).astype(float)
    found = session.levels[level][:].astype(float)
    assert 10 * np.log10(255**2 / np.mean((found - wanted) ** 2)) > 40


def test_progress_only_rises(weights, scene, tmp_path) -> None:
    from napari_dehazexl._save import save

    shares = [
        step.share
        for step in save(dehazexl.open_image(scene), tmp_path / "out.tif", lambda: dehazexl.load_model(weights))
    ]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert len({*shares}) > 3


def canvas(viewer: Any) -> np.ndarray:
    return viewer.screenshot(flash=False)[..., :3].astype(int)


def test_before_and_after(make_napari_viewer, weights, scene, qtbot, errors) -> None:
    from window import camera

    viewer = make_napari_viewer(show=True)
    viewer.add_image(scene, rgb=True, name="scene")
    widget = dock(viewer, weights, qtbot)
    click(widget.divide)
    assert "nothing to compare" in errors.pop() and not widget.divide.value
    click(widget.dehaze)
    dehazed = viewer.layers["scene dehazed"]
    session = session_of_layer(dehazed)
    dehazed.visible = False
    qtbot.wait(300)
    hazy = canvas(viewer)
    dehazed.visible = True
    qtbot.waitUntil(lambda: session.exact and dehazed.data[0].renderer.fresh, timeout=60_000)
    qtbot.waitUntil(lambda: np.abs(canvas(viewer) - hazy).mean() > 2, timeout=60_000)
    qtbot.wait(500)
    clear, middle = canvas(viewer), hazy.shape[1] // 2
    click(widget.divide)
    both = canvas(viewer)
    assert np.abs(both - hazy)[:, : middle - 5].mean() < 0.5 < 2 < np.abs(both - clear)[:, : middle - 5].mean()
    assert np.abs(both - clear)[:, middle + 5 :].mean() < 0.5
    quarter = widget._divider.place - hazy.shape[1] / 4 / camera(viewer).zoom
    widget._divider.move(quarter)
    both = canvas(viewer)
    assert np.abs(both - clear)[:, hazy.shape[1] // 4 + 5 :].mean() < 0.5
    click(widget.divide)
    assert np.abs(canvas(viewer) - clear).mean() < 0.5


def test_what_is_painted_is_spared(make_napari_viewer_proxy, weights, scene, tmp_path, monkeypatch, qtbot) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    viewer.add_image(scene, rgb=True, name="scene")
    sky = viewer.add_labels(np.zeros(scene.shape[:2], np.uint8), name="sky")
    widget = dock(viewer, weights, qtbot)
    click(widget.dehaze)
    session = session_of_layer(viewer.layers["scene dehazed"])
    qtbot.waitUntil(lambda: session.wait(0.01), timeout=60_000)
    clear = session.levels[0][:].astype(int)
    widget.spare.value = sky
    sky.data_setitem((np.repeat(np.arange(150), 400), np.tile(np.arange(400), 150)), 1)
    qtbot.waitUntil(lambda: session.local is not None and session.local.map[:50].max() < 0.01, timeout=5_000)
    seen = session.levels[0][:]
    save_as(widget, tmp_path / "spared.tif", monkeypatch)
    saved(widget, qtbot)
    for found in (seen, np.asarray(dehazexl.open_image(tmp_path / "spared.tif").levels[0])):
        assert np.abs(found[:130].astype(int) - scene[:130]).max() <= 1, "the sky was changed"
        assert np.abs(found[170:].astype(int) - clear[170:]).max() <= 1
        assert np.abs(clear[170:] - scene[170:]).mean() > 2
    shapes = viewer.add_shapes([[[150, 0], [150, 400], [300, 400], [300, 0]]], name="snow")
    viewer.layers.selection.active = viewer.layers["scene dehazed"]
    widget.spare.value = shapes  # the saved layer is taken up again
    qtbot.waitUntil(lambda: session.local.map[200:].max() < 0.01 < session.local.map[:100].min(), timeout=5_000)
    assert session_of_layer(viewer.layers["scene dehazed"]) is session


def test_a_thumbnail_sets_the_strength(make_napari_viewer_proxy, weights, scene, qtbot) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    viewer.add_image(scene, rgb=True, name="scene")
    widget = dock(viewer, weights, qtbot)
    assert not widget.thumbnails.isVisible()
    click(widget.dehaze)
    qtbot.waitUntil(widget.thumbnails.isVisible, timeout=10_000)
    widget.thumbnails.buttons[1].click()
    assert session_of_layer(viewer.layers["scene dehazed"]).strength == widget.strength.value == 0.5
    widget.preset.value = "gentle"
    assert widget.overlap.value is None and widget.strength.value == 0.5


def test_undo_takes_back_what_dehaze_has_done(make_napari_viewer_proxy, weights, scene, qtbot, errors) -> None:
    from window import workers

    viewer = make_napari_viewer_proxy(show=True)
    first, second = (viewer.add_image(scene, rgb=True, name=name) for name in ("first", "second"))
    widget = dock(viewer, weights, qtbot)
    click(widget.undo)
    assert "nothing to undo" in errors.pop()
    click(widget.dehaze)
    alone = viewer.layers["second dehazed"]
    viewer.layers.selection = {first, second}
    widget.overlap.value = 64
    click(widget.dehaze)
    assert {*names(viewer)} == {
        "first", "first dehazed", "second", "second dehazed", "second dehazed (overlap 64)"
    }  # fmt: skip
    first.visible = False
    assert workers()
    click(widget.undo)
    assert names(viewer) == ["first", "second", "second dehazed"] and first.visible
    assert viewer.layers.selection == {first, second}
    click(widget.preview)
    # Shown and continued by a second press.
    viewer.layers.selection.active = alone
    session = session_of_layer(alone)
    session.close(None)
    alone.visible = False
    widget.overlap.value = None
    click(widget.dehaze)
    assert session.running and alone.visible
    click(widget.undo)
    assert not session.running and not alone.visible and "second dehazed" in names(viewer)
    click(widget.undo)
    assert names(viewer) == ["first", "second", "second preview"], "a preview, too"
    click(widget.undo)
    assert "nothing to undo" in errors.pop() and not errors
    viewer.layers.remove("second preview")
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)


def test_undo_ends_the_wait_for_overviews(make_napari_viewer_proxy, weights, tmp_path, monkeypatch, qtbot) -> None:
    import threading

    from dehazexl.viewing import overviews

    y, x = np.mgrid[:2100, :2300]
    pixels = np.stack([y // 10, x // 11, (x + y) // 21], axis=-1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "large.tif", pixels, tile=(256, 256), photometric="rgb")
    gate, make = threading.Event(), overviews.make_overviews
    monkeypatch.setattr(overviews, "make_overviews", lambda *args: (gate.wait(100), (yield from make(*args))))
    viewer = make_napari_viewer_proxy(show=True)
    (layer,) = viewer.open(str(tmp_path / "large.tif"), plugin="napari-dehazexl")
    widget = dock(viewer, weights, qtbot)
    click(widget.dehaze)
    qtbot.waitUntil(lambda: widget.bar.visible, timeout=5_000)
    click(widget.undo)
    qtbot.waitUntil(lambda: not widget.bar.visible and not widget.status.value, timeout=5_000)
    gate.set()
    qtbot.waitUntil(lambda: state_of(layer).overviews is None, timeout=60_000)
    qtbot.wait(300)
    assert names(viewer) == ["large"]


def test_the_status_tells_the_memory_of_the_device(
    make_napari_viewer_proxy, weights, scene, tmp_path, monkeypatch, qtbot
) -> None:
    import shutil
    import threading

    import psutil

    viewer = make_napari_viewer_proxy(show=True)
    viewer.add_image(scene, rgb=True, name="scene")
    widget = dock(viewer, weights, qtbot)
    widget.weights.value = shutil.copy(weights, tmp_path / "late.safetensors")  # a network that is not kept yet
    loading, load = threading.Event(), dehazexl.load_model
    monkeypatch.setattr(dehazexl, "load_model", lambda *args: loading.wait(60) and load(*args))
    click(widget.dehaze)
    whole = f"of {psutil.virtual_memory().total / 2**30:.0f} GB of memory in use"
    qtbot.waitUntil(lambda: whole in widget.status.value, timeout=10_000)
    assert "dehazing a small copy first" in widget.status.value
    loading.set()
    qtbot.waitUntil(lambda: "all in view" in widget.status.value, timeout=60_000)
    assert "GB" not in widget.status.value, "a number that is not renewed"


def test_the_help_leads_to_the_page_of_the_plugin(widget) -> None:
    import re
    from pathlib import Path

    root = Path(__file__).parents[2]
    settings = (root / "mkdocs.yml").read_text()
    (site,) = re.findall(r"^site_url: (\S+)$", settings, re.MULTILINE)
    assert f'<a href="{site}napari/"' in widget.intro.value
    assert (root / "docs" / "napari.md").exists() and ": napari.md" in settings
