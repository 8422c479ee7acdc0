"""Saving several images at once from a real napari window: all planes of a stack, and all selected layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import dehazexl
from dehazexl.io.write import to_photo

pytest.importorskip("napari")

from window import *  # noqa: F403
from window import click, dock, saved

from napari_dehazexl._state import session_of_layer, state_of


@pytest.fixture
def scene() -> np.ndarray:
    """A small picture."""
    y, x = np.mgrid[:300, :400]
    return np.stack([y % 256, x % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def save_into(widget: Any, folder: Path, monkeypatch: Any, answer: str = "") -> None:
    """Press Save as, choose a folder, and answer whether files are replaced."""
    from qtpy.QtWidgets import QFileDialog, QMessageBox

    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: pytest.fail("one file was asked for"))
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(folder))
    monkeypatch.setattr(QMessageBox, "question", lambda *_: getattr(QMessageBox.StandardButton, answer))
    click(widget.save_as)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(dehazexl.open_image(path).levels[0]).astype(int)


def test_all_planes_of_a_stack_are_saved(
    make_napari_viewer_proxy, weights, scene, tmp_path, monkeypatch, qtbot, errors
):
    stack = np.stack([scene, scene[::-1], scene[:, ::-1]]).astype(np.uint16) * np.array([10, 5, 8])[:, None, None, None]
    said = {"axes": "TYXS", "Description": "over a day"} | {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"}
    said |= {"PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(tmp_path / "time.tif", stack.astype(np.uint16), photometric="rgb", metadata=said, ome=True)
    monkeypatch.setattr("napari_dehazexl._saver.TICK", 1)
    viewer = make_napari_viewer_proxy(show=True)
    viewer.open(str(tmp_path / "time.tif"), plugin="napari-dehazexl")
    plain = viewer.add_image(scene, rgb=True, name="plain", units=("um", "um"))
    widget = dock(viewer, weights, qtbot)
    assert not widget.planes.visible
    viewer.layers.selection.active = viewer.layers["time"]
    assert widget.planes.visible and widget.planes.value == "one"
    viewer.dims.set_point(0, 1)
    click(widget.dehaze)
    dehazed = viewer.layers["time dehazed"]
    limits = session_of_layer(dehazed).value_range
    widget.planes.value = "all"
    qtbot.waitUntil(lambda: "for each of 3 planes" in widget.estimate.value, timeout=60_000)
    folder = tmp_path / "planes"
    folder.mkdir()
    save_into(widget, folder, monkeypatch)
    files = [folder / f"time dehazed t{step}.tif" for step in range(3)]
    seen: list[tuple[str, int]] = []

    def first_is_there() -> bool:
        seen.append((widget.bar.native.format(), widget.bar.value))
        return files[0].exists()

    qtbot.waitUntil(first_is_there, timeout=120_000)
    click(widget.cancel)
    saved(widget, qtbot)
    assert not files[2].exists() and not errors
    assert "file 1 of 3: " in " ".join(text for text, _ in seen)
    values = [value for text, value in seen if "file" in text]
    assert values == sorted(values) and values[-1] <= 67, "the bar is not over all planes"
    before = files[0].stat().st_mtime_ns
    save_into(widget, folder, monkeypatch, "No")
    saved(widget, qtbot)
    assert files[0].stat().st_mtime_ns == before, "a plane that was there was saved again"
    network = dehazexl.load_model(weights, dtype="float32")
    for file, plane in zip(files, stack, strict=True):
        wanted = dehazexl.dehaze(plane.astype(np.uint16), network, value_range=limits).compute()
        assert np.abs(pixels(file) - wanted).max() <= 1
        image = dehazexl.open_image(file)
        assert (image.scale, image.units) == ((0.25, 0.5), "micrometer"), "pixels have lost their size"
        assert "over a day" in image.metadata["ome_xml"] and 'Namespace="DEHAZEXL"' in image.metadata["ome_xml"]
    assert tuple(dehazed.scale) == (0.25, 0.5)
    assert sorted(folder.iterdir()) == files and not errors
    assert state_of(dehazed).session is None, "the plane in view does not read from its file"
    viewer.layers.selection.active = plain
    assert not widget.planes.visible


def test_selected_layers_are_saved_each_with_its_settings(
    make_napari_viewer_proxy, weights, scene, tmp_path, monkeypatch, qtbot, errors
) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    for name, image in (("one", scene), ("two", scene[::-1]), ("three", scene[:, ::-1])):
        viewer.add_image(image, rgb=True, name=name)
    widget = dock(viewer, weights, qtbot)
    viewer.layers.selection = {viewer.layers["one"], viewer.layers["two"]}
    click(widget.dehaze)
    viewer.layers.selection.active = viewer.layers["one dehazed"]
    widget.strength.value = 0.5
    viewer.layers.selection.active = viewer.layers["two dehazed"]
    widget.strength.value = 0.25
    widget.overlap.value = 64  # for those that are not dehazed yet
    precious = tmp_path / "two dehazed.ome.zarr" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("mine")
    viewer.layers.selection = {viewer.layers[name] for name in ("one", "one dehazed", "two dehazed", "three")}
    save_into(widget, tmp_path, monkeypatch, "Yes")
    saved(widget, qtbot)
    assert len(errors) == 1 and "is a folder of other files" in errors[0] and precious.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {
        *("one dehazed.ome.zarr", "two dehazed.ome.zarr", "three dehazed.ome.zarr")
    }
    network = dehazexl.load_model(weights, dtype="float32")
    one = dehazexl.dehaze(scene, network, strength=0.5).compute()
    three = dehazexl.dehaze(scene[:, ::-1], network, strength=0.25, overlap=64).compute()
    assert np.abs(pixels(tmp_path / "one dehazed.ome.zarr") - one).max() <= 1
    assert np.abs(pixels(tmp_path / "three dehazed.ome.zarr") - three).max() <= 1
    assert session_of_layer(viewer.layers["one dehazed"]) is None
    assert session_of_layer(viewer.layers["two dehazed"]) is not None


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
def test_what_is_too_large_for_napari_s_own_kinds_leaves_nothing(
    make_napari_viewer_proxy, scene, weights, tmp_path, monkeypatch, suffix
) -> None:
    from napari_dehazexl import dehaze_layer

    dehazexl.to_tiff(scene, tmp_path / "scene.tif")
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open(str(tmp_path / "scene.tif"), plugin="napari-dehazexl")
    dehazed = dehaze_layer(layer, weights=weights, viewer=viewer)
    monkeypatch.setattr("napari_dehazexl._levels.MOST", scene.nbytes - 1)
    there = tmp_path / f"there{suffix}"
    there.write_bytes(b"something else")
    for each in (layer, dehazed):
        for path in (tmp_path / f"out{suffix}", there):
            with pytest.raises(
                OSError, match=r"an image of 0.00036 GB does not fit into .*: choose the kind"
            ) as raised:
                each.save(str(path), plugin="napari")
            assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == {"scene.tif", there.name}
    assert there.read_bytes() == b"something else"


def test_a_folder_is_opened_image_by_image(make_napari_viewer_proxy, scene, tmp_path, monkeypatch, errors) -> None:
    from napari_dehazexl import _reader

    folder = tmp_path / "images"
    folder.mkdir()
    assert _reader.get_reader(str(folder)) is None and _reader.get_reader(str(tmp_path / "none")) is None
    dehazexl.to_tiff(scene, folder / "b.tif")
    dehazexl.to_zarr(scene[::-1], folder / "a.ome.zarr")
    to_photo(scene[:, ::-1], folder / "c.png")
    (folder / "broken.tif").write_bytes(b"II*\0")
    (folder / "notes.txt").write_text("no image")
    viewer = make_napari_viewer_proxy()
    opened = viewer.open(str(folder), plugin="napari-dehazexl")
    assert [layer.name for layer in opened] == ["a", "b", "c"] and all(layer.multiscale for layer in opened)
    for layer, wanted in zip(opened, (scene[::-1], scene, scene[:, ::-1]), strict=True):
        assert state_of(layer).image is not None
        np.testing.assert_array_equal(np.asarray(layer.data[0]), wanted)
    assert len(errors) == 1 and "broken.tif" in errors[0] and "\n" not in errors[0]
    monkeypatch.setattr(_reader, "MANY", 3)
    with pytest.raises(
        ValueError, match=r"has 4 images, more than 3 layers: open some .* dehazexl run .*images OUTPUT"
    ):
        _reader.read(str(folder))


def test_file_save_writes_selected_layers_into_a_folder(
    make_napari_viewer, scene, weights, tmp_path, monkeypatch, errors
) -> None:
    import npe2
    from qtpy.QtWidgets import QFileDialog

    from napari_dehazexl import dehaze_layer

    dehazexl.to_tiff(scene, tmp_path / "scene.tif")
    viewer = make_napari_viewer()
    (layer,) = viewer.open(str(tmp_path / "scene.tif"), plugin="napari-dehazexl")
    dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer, name="a: b")
    viewer.add_image(np.stack([scene, scene[::-1]]), rgb=True, name="stack")
    viewer.add_image(scene, rgb=True, name="there")
    viewer.add_labels(np.ones((30, 40), np.uint8), name="labels")
    folder = tmp_path / "out"
    (folder / "there.ome.zarr").mkdir(parents=True)
    kinds: list[str] = []

    def chosen(*_: Any, filter: str, **__: Any) -> tuple[str, str]:
        kinds.extend(filter.split(";;"))
        return str(folder), "DehazeXL Images with pyramids, into a folder (*.*)"

    monkeypatch.setattr(QFileDialog, "getSaveFileName", chosen)
    viewer.layers.selection = {*viewer.layers}
    viewer.window._qt_viewer._save_layers_dialog(selected=True)
    into_folders = [kind for kind in kinds if "older (" in kind]
    assert "Save to Folder" in into_folders[0], "napari's own kind is no longer the first"
    assert {path.name for path in folder.iterdir()} == {
        *("scene.tif", "a- b.tif", "stack.tif", "labels.tif", "there.ome.zarr")
    }
    np.testing.assert_array_equal(pixels(folder / "scene.tif"), scene)
    wanted = dehazexl.dehaze(scene, dehazexl.load_model(weights, dtype="float32")).compute()
    assert np.abs(pixels(folder / "a- b.tif") - wanted).max() <= 1
    np.testing.assert_array_equal(tifffile.imread(folder / "stack.tif"), viewer.layers["stack"].data)
    assert len(errors) == 1 and "there.ome.zarr exists: remove it" in errors[0]
    again = [layer.as_layer_data_tuple() for layer in (viewer.layers["there"], viewer.layers["scene"])]
    with pytest.raises(OSError, match=r"there.ome.zarr exists(.|\n)*scene.tif exists"):
        npe2.write(folder, again, plugin_name="napari-dehazexl")


def test_files_of_several_layers_have_names_of_their_own() -> None:
    from napari_dehazexl._ask import _distinct, file_name

    assert _distinct(["a.tif", "A.tif", "b.tif", "a.TIF"]) == ["a.tif", "2 A.tif", "b.tif", "3 a.TIF"]
    assert file_name('a/b: "c"', Path("x.TIFF")) == "a-b- -c-.tif" and file_name("a", None) == "a.ome.zarr"
