"""The plugin in a real napari window."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

import dehazexl

pytest.importorskip("napari")


@pytest.fixture
def scene() -> np.ndarray:
    y, x = np.mgrid[:700, :900]
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
