"""Explaining a region in a real napari window: the map of a rectangle, its numbers, cancelling."""

import numpy as np
import pytest

import dehazexl

pytest.importorskip("napari")

from window import *  # noqa: F403
from window import camera, click, workers

from napari_dehazexl import dehaze_layer, explain_layer
from napari_dehazexl._state import state_of

RECTANGLE = [[100, 140], [100, 180], [150, 180], [150, 140]]


@pytest.fixture
def small(widget, opened, qtbot):
    """A dehazed image of two tiles and a rectangle in it, scaled; the viewer and the dehazed layer."""
    viewer, _ = opened
    viewer.layers.clear()
    y, x = np.mgrid[:200, :400]
    pixels = np.stack([y, x % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    widget.input.value = viewer.add_image(pixels, rgb=True, name="small", scale=(2, 2))
    click(widget.dehaze)
    dehazed = viewer.layers["small dehazed"]
    qtbot.waitUntil(lambda: state_of(dehazed).session.wait(0.01), timeout=60_000)
    viewer.add_shapes([RECTANGLE], shape_type="rectangle", scale=(2, 2), name="there")
    return viewer, dehazed


def test_a_rectangle_is_explained(widget, small, weights, qtbot) -> None:
    viewer, dehazed = small
    click(widget.explain)
    explained = viewer.layers["small dehazed explained"]
    session = state_of(explained).explanation
    qtbot.waitUntil(lambda: explained.data.shape == (200, 400), timeout=120_000)
    assert viewer.layers.selection.active == explained
    qtbot.waitUntil(lambda: "explaining, step" in widget.status.value or session.complete, timeout=60_000)
    qtbot.waitUntil(lambda: session.complete, timeout=300_000)
    model = dehazexl.load_model(weights, dtype="float32")
    expected = dehazexl.explain(dehazed.data[0].session.image, (100, 151, 140, 181), model, steps=20, with_curves=False)

    def shown() -> None:
        assert np.allclose(explained.data, expected.attribution, rtol=1e-4, atol=1e-6)
        assert "% outside the tiles of the region" in widget.status.value

    qtbot.waitUntil(shown, timeout=10_000)
    assert session.found.numbers["completeness"] == pytest.approx(1, abs=0.05)
    assert tuple(explained.scale) == (2, 2) and tuple(explained.translate) == tuple(dehazed.translate)
    low, high = explained.contrast_limits
    assert low == -high and high == pytest.approx(session.found.limit)
    np.testing.assert_allclose(explained.colormap.map([0.5])[0, 3], 0, atol=0.01)  # transparent at zero
    blue, orange = explained.colormap.map([0.0, 1.0])
    assert blue[2] > blue[0] and orange[0] > orange[2] and blue[3] == orange[3] == 1


def test_a_coarse_map_lies_where_the_image_does(widget, opened, weights, qtbot) -> None:
    viewer, layer = opened
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    explained = explain_layer(dehazed, (100, 200, 300, 400), steps=2, viewer=viewer)
    session = state_of(explained).explanation
    qtbot.waitUntil(lambda: explained.data.shape != (1, 1), timeout=120_000)
    assert session.found.numbers["level"] > 0 and max(explained.data.shape) <= 512
    np.testing.assert_allclose(explained.extent.world, layer.extent.world, atol=2)
    click(widget.cancel)  # of what is selected
    qtbot.waitUntil(lambda: not [name for name in workers() if name.startswith("explain ")], timeout=60_000)
    qtbot.waitUntil(lambda: "stopped after step 0 of 2" in widget.status.value, timeout=10_000)
    assert not session.running and explained in viewer.layers
    assert state_of(dehazed).session.running, "the dehazed layer was stopped, too"


def test_a_layer_removed_at_work_leaves_no_worker(opened, weights, qtbot) -> None:
    viewer, layer = opened
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    explained = explain_layer(dehazed, (0, 100, 0, 100), viewer=viewer)
    session = state_of(explained).explanation
    viewer.layers.remove(explained)
    viewer.layers.remove(dehazed)
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)
    assert not session.complete


def test_what_cannot_be_explained_is_said_once(widget, opened, errors, weights, tmp_path, qtbot) -> None:
    viewer, layer = opened
    click(widget.explain)
    dehazed = dehaze_layer(layer, weights=weights, dtype="float32", viewer=viewer)
    click(widget.explain)
    assert [text.split(":")[0] for text in errors] == [
        "there is no dehazed layer in view", "there is no region to explain",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="is not being dehazed"):
        explain_layer(layer, (0, 10, 0, 10))
    with pytest.raises(ValueError, match="does not lie in the image"):
        explain_layer(dehazed, (0, 10, 0, 9999))
    assert [each.name for each in viewer.layers] == ["scene", "scene dehazed"]
    camera(viewer).zoom = 1


def test_scripts_need_no_window(scene, weights) -> None:
    from napari.layers import Image

    dehazed = dehaze_layer(Image(scene[:200, :200], rgb=True), weights=weights, dtype="float32")
    explained = explain_layer(dehazed, (10, 60, 20, 90), steps=2, baseline="black")
    assert state_of(explained).explanation.wait(120)
    assert state_of(explained).explanation.found.values.any()
    state_of(dehazed).session.close(60)


def test_a_viewer_closed_at_work_leaves_no_worker(make_napari_viewer_proxy, weights, scene, qtbot) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    dehazed = dehaze_layer(viewer.add_image(scene, rgb=True), weights=weights, viewer=viewer)
    session = state_of(explain_layer(dehazed, (0, 100, 0, 100), viewer=viewer)).explanation
    viewer.close()
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)
    assert not session.complete
