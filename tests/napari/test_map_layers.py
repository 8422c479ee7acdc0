"""Maps of the haze in a real napari window: by a click, where the dehazed layer is, of what the weights give."""

from dataclasses import replace

import numpy as np
import pytest
from reference import randomised

import dehazexl

pytest.importorskip("napari")

from window import *  # noqa: F403
from window import camera, click, workers

from dehazexl.model import SPECS
from dehazexl.model.weights import save_model
from napari_dehazexl import dehaze_layer, map_layer, set_strength
from napari_dehazexl._state import original_of, state_of

COMPACT = replace(SPECS["tiny"], prior=True, guided=True, local=3, airlight="picture")


@pytest.fixture(scope="session")
def compact(tmp_path_factory):
    """A small network that gives all maps, as a file."""
    return save_model(randomised(COMPACT), tmp_path_factory.mktemp("compact") / "compact.safetensors")


@pytest.fixture
def small(widget, opened, compact, qtbot):
    """A dehazed image of two tiles, scaled and moved; the viewer and the dehazed layer."""
    viewer, _ = opened
    viewer.layers.clear()
    y, x = np.mgrid[:200, :400]
    pixels = np.stack([y, x % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    widget.weights.value = compact
    widget.input.value = viewer.add_image(pixels, rgb=True, name="small", scale=(2, 2), translate=(30, 50))
    click(widget.dehaze)
    dehazed = viewer.layers["small dehazed"]
    qtbot.waitUntil(lambda: state_of(dehazed).session.wait(0.01), timeout=60_000)
    return viewer, dehazed


def test_a_click_adds_maps_of_what_is_dehazed(widget, small, compact, qtbot) -> None:
    viewer, dehazed = small
    click(widget.maps)
    names = ["small transmission", "small airlight", "small haze removed, %"]
    assert [each.name for each in viewer.layers] == ["small", "small dehazed", *names]
    transmission, airlight, removed = (viewer.layers[name] for name in names)
    assert viewer.layers.selection.active == removed
    assert [removed.visible, transmission.visible, airlight.visible] == [True, False, False]
    session = state_of(removed).maps
    qtbot.waitUntil(lambda: session.wait(0.01), timeout=120_000)
    model = dehazexl.load_model(compact, dtype="float32")
    _, maps = dehazexl.dehaze_with_maps(state_of(dehazed).session.image, model=model)
    expected = maps["removed"].compute()[..., 0]
    qtbot.waitUntil(
        lambda: np.allclose(removed.get_value((130, 250), world=True)[1], expected[50, 100]), timeout=10_000
    )
    assert np.allclose(removed.data[0][:], expected, atol=1e-3) and expected.std() > 1
    for layer in (transmission, airlight, removed):
        assert tuple(layer.scale) == (2, 2) and tuple(layer.translate) == (30, 50)
        np.testing.assert_allclose(layer.extent.world, dehazed.extent.world)
        assert original_of(layer) is None  # nothing to dehaze
    assert tuple(removed.contrast_limits) == (0, 100) and tuple(transmission.contrast_limits) == (0, 1)
    assert airlight.rgb and list(widget.input.choices) == [viewer.layers["small"]]
    qtbot.waitUntil(lambda: "all in view is mapped" in widget.status.value, timeout=10_000)
    set_strength(dehazed, 0.5)
    qtbot.waitUntil(
        lambda: np.allclose(removed.get_value((130, 250), world=True)[1], expected[50, 100] / 2), timeout=10_000
    )
    click(widget.cancel)
    assert not session.running
    viewer.layers.selection.active = dehazed
    click(widget.maps)  # shows those that are there
    assert len(viewer.layers) == 5 and session.running and viewer.layers.selection.active == removed
    for layer in (transmission, airlight, removed):
        viewer.layers.remove(layer)
    qtbot.waitUntil(lambda: not session.running, timeout=60_000)
    assert state_of(dehazed).session.running


def test_maps_are_sharper_where_one_looks(opened, compact, qtbot) -> None:
    viewer, layer = opened
    dehazed = dehaze_layer(layer, weights=compact, dtype="float32", viewer=viewer)
    (removed,) = map_layer(dehazed, ["removed"], viewer=viewer)
    session = state_of(removed).maps
    camera(viewer).zoom = 2
    qtbot.waitUntil(lambda: removed.data_level == 0 and session._view is not None, timeout=60_000)
    qtbot.waitUntil(lambda: session.wait(0.01), timeout=300_000)
    assert session._view is not None
    level, window = session._view
    assert level == 0
    model = dehazexl.load_model(compact, dtype="float32")
    _, maps = dehazexl.dehaze_with_maps(session.image, ["removed"], model)
    inside = np.s_[window.y0 : window.y0 + 64, window.x0 : window.x0 + 64]
    assert np.allclose(removed.data[0][inside], maps["removed"][inside].compute()[..., 0], atol=1e-3)
    viewer.layers.clear()
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)


def test_what_cannot_be_mapped_is_said_once(widget, opened, errors, tmp_path, qtbot) -> None:
    viewer, layer = opened
    click(widget.maps)
    gain = save_model(randomised(replace(SPECS["tiny"], head="gain", inputs=())), tmp_path / "gain.safetensors")
    dehaze_layer(layer, weights=gain, dtype="float32", viewer=viewer)
    click(widget.maps)
    assert [text.split(":")[0] for text in errors] == [
        "there is no dehazed layer in view",
        "the head 'gain' of these weights gives no maps, not transmission, airlight, removed",
    ]
    with pytest.raises(ValueError, match="is not being dehazed"):
        map_layer(layer)
    assert [each.name for each in viewer.layers] == ["scene", "scene dehazed"]


def test_a_map_is_not_saved_in_parts(small, tmp_path) -> None:
    viewer, dehazed = small
    (removed,) = map_layer(dehazed, ["removed"], viewer=viewer)
    with pytest.raises(OSError, match="dehazexl run --maps writes it in full"):
        removed.save(str(tmp_path / "map.tif"), plugin="napari-dehazexl")
    with pytest.raises(OSError, match="dehazexl run --maps writes it in full"):
        np.asarray(removed.data)
    assert not list(tmp_path.glob("map*"))


def test_scripts_need_no_window(scene, compact) -> None:
    from napari.layers import Image

    dehazed = dehaze_layer(Image(scene[:200, :200], rgb=True), weights=compact, dtype="float32")
    transmission, removed = map_layer(dehazed, ["transmission", "removed"])
    assert state_of(removed).maps is state_of(transmission).maps and state_of(removed).maps.wait(120)
    assert np.allclose(removed.data[0][:], 100 * (1 - transmission.data[0][:]), atol=1e-3)
    state_of(dehazed).session.close(60)


def test_a_viewer_closed_at_work_leaves_no_worker(make_napari_viewer_proxy, compact, scene, qtbot) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    dehazed = dehaze_layer(viewer.add_image(scene, rgb=True), weights=compact, viewer=viewer)
    session = state_of(map_layer(dehazed, viewer=viewer)[0]).maps
    viewer.close()
    qtbot.waitUntil(lambda: not workers() and not session.running, timeout=60_000)
