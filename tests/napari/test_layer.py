"""Layers of the plugin: what the reader opens, and what dehazes it, in real windows and without any."""

import gc
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import tifffile
import torch
from window import camera

import dehazexl
from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import Window
from dehazexl.model import SPECS, DehazeXL
from dehazexl.model.weights import save_model

pytest.importorskip("napari")

from napari_dehazexl._state import state_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of overviews of the test's own."""
    monkeypatch.setattr("napari_dehazexl._overviews.cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return save_model(DehazeXL(SPECS["tiny"]), tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def dehaze(weights) -> Iterator[Callable[..., Any]]:
    """`dehaze_layer` with small weights; what it starts is ended with the test."""
    from napari_dehazexl import dehaze_layer

    made = []

    def start(layer, **kwargs):
        made.append(dehaze_layer(layer, **{"weights": weights, "dtype": "float32"} | kwargs))
        return made[-1]

    yield start
    for layer in made:
        if (session := state_of(layer).session) is not None:
            session.close(60)


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What the user is told went wrong, or may."""
    from napari.utils.notifications import NotificationSeverity, notification_manager

    messages: list[str] = []

    def listen(notification: Any) -> None:
        if notification.severity >= NotificationSeverity.WARNING:
            messages.append(notification.message)

    notification_manager.notification_ready.connect(listen)
    yield messages
    notification_manager.notification_ready.disconnect(listen)


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    y, x = np.mgrid[:1100, :1300]
    return np.stack([y % 256, x % 256, (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.fixture
def large(tmp_path) -> Path:
    """A tiled TIFF of four bands, too large to be shown without overviews."""
    y, x = np.mgrid[:2500, :2600]
    pixels = np.stack([y // 10, x // 11, (x + y) // 21, x // 3], axis=-1).astype(np.uint16)
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", extrasamples=["unspecified"])
    return path


@pytest.fixture
def tiled(tmp_path, scene) -> Path:
    """A tiled TIFF."""
    tifffile.imwrite(tmp_path / "scene.tif", scene, tile=(256, 256), photometric="rgb")
    return tmp_path / "scene.tif"


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Overviews are only made when this is set."""
    from dehazexl.viewing import overviews

    event, make = threading.Event(), overviews.make_overviews
    monkeypatch.setattr(overviews, "make_overviews", lambda *args: event.wait(60) and make(*args))
    return event


def opened(viewer: Any, path: Path) -> Any:
    return viewer.open(str(path), plugin="napari-dehazexl")[0]


def workers() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("dehaze ", "paint ", "overviews "))
    ]


def canvas(viewer: Any) -> np.ndarray:
    """What the canvas shows, without the word that it is approximate."""
    text = viewer.canvas.overlays.text if hasattr(viewer, "canvas") else viewer.text_overlay
    shown, text.visible = text.visible, False
    pixels = viewer.screenshot(flash=False)[..., :3].astype(int)
    text.visible = shown
    return pixels


def hidden(layer: Any, viewer: Any, qtbot: Any) -> np.ndarray:
    """What the canvas shows without a layer."""
    layer.visible = False
    qtbot.wait(300)
    shown = canvas(viewer)
    layer.visible = True
    return shown


# What is read, and with which limits


def test_torch_is_not_imported_by_looking_at_pictures(tmp_path, scene) -> None:
    tifffile.imwrite(tmp_path / "scene.tif", scene, tile=(256, 256), photometric="rgb")
    code = (
        "import sys, napari; viewer = napari.Viewer(show=False);"
        f"viewer.open({str(tmp_path / 'scene.tif')!r}, plugin='napari-dehazexl'); viewer.close();"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_limits_are_those_of_the_whole_picture(make_napari_viewer_proxy, dehaze, tmp_path, scene) -> None:
    deep = scene.astype(np.uint16) * 10
    deep[:300, :300] = 60000
    tifffile.imwrite(tmp_path / "deep.tif", deep, tile=(256, 256), photometric="rgb")
    viewer = make_napari_viewer_proxy()
    layer = opened(viewer, tmp_path / "deep.tif")
    assert tuple(layer.contrast_limits) == (0, 1)
    whole = dehaze(layer, viewer=viewer, strength=0)
    part = dehaze(layer, viewer=viewer, strength=0, region=(500, 900, 600, 1100))
    assert state_of(part).session.value_range == state_of(whole).session.value_range == (0, 60000)
    np.testing.assert_array_equal(
        state_of(part).session.levels[0][:], state_of(whole).session.levels[0][500:900, 600:1100]
    )
    layer.contrast_limits = (0.25, 0.5)
    assert state_of(dehaze(layer, viewer=viewer)).session.value_range == (0, 60000), "display only"


def test_a_layer_with_other_pixels_is_dehazed_from_those(make_napari_viewer_proxy, dehaze, tiled) -> None:
    viewer = make_napari_viewer_proxy()
    layer = opened(viewer, tiled)
    inverted = 255 - np.asarray(layer.data[0])
    layer.data = [inverted[:: 2**i, :: 2**i] for i in range(len(layer.data))]
    np.testing.assert_array_equal(state_of(dehaze(layer, strength=0)).session.levels[0][:], inverted)


def test_a_tiny_picture_is_shown_dehazed(make_napari_viewer_proxy, dehaze, scene, qtbot) -> None:
    """napari never shows the last of several levels anew: there must be one more."""
    viewer = make_napari_viewer_proxy(show=True)
    dehazed = dehaze(viewer.add_image(scene[:60, :60], rgb=True), viewer=viewer)
    assert state_of(dehazed).session.wait(60)
    clear = state_of(dehazed).session.levels[0][:].astype(int)
    assert np.abs(clear - scene[:60, :60]).mean() > 2, "the network does nothing"
    qtbot.waitUntil(lambda: np.array_equal(np.asarray(dehazed._slice.image.view), clear), timeout=20_000)


def test_what_is_on_screen_of_a_turned_layer(make_napari_viewer_proxy, scene) -> None:
    from napari_dehazexl._region import on_screen

    viewer = make_napari_viewer_proxy(show=True)
    layer = viewer.add_image(scene, rgb=True)
    camera(viewer).zoom = 2
    upright = on_screen(viewer, layer)
    layer.rotate = 45
    camera(viewer).center = (0, *layer.data_to_world((550, 650)))
    y0, y1, x0, x1 = on_screen(viewer, layer)
    width, height = (upright[3] - upright[2]), (upright[1] - upright[0])
    side = (width + height) / 2**0.5  # of the square around what is seen, as long as the layer fills it
    assert y1 - y0 == pytest.approx(min(side, 1100), abs=3) and x1 - x0 == pytest.approx(min(side, 1300), abs=3)


def test_what_is_on_screen_of_a_transposed_view(make_napari_viewer_proxy) -> None:
    from napari_dehazexl._region import on_screen

    viewer = make_napari_viewer_proxy(show=True)
    layer = viewer.add_image(np.zeros((400, 2000, 3), np.uint8), rgb=True)
    viewer.dims.transpose()
    viewer.reset_view()
    y0, y1, x0, x1 = on_screen(viewer, layer)
    assert (y0, y1) == (0, 400) and x0 < 10 and x1 > 1990


def test_regions_of_a_layer_in_other_units_than_the_view(make_napari_viewer_proxy) -> None:
    from napari_dehazexl._region import drawn, on_screen

    viewer = make_napari_viewer_proxy(show=True)
    viewer.add_image(np.zeros((1000, 1000, 3), np.uint8), rgb=True, units=("micrometer",) * 2)
    placed = {"units": ("millimeter",) * 2, "scale": (0.002, 0.002)}
    coarse = viewer.add_image(np.zeros((500, 500, 3), np.uint8), rgb=True, **placed)
    rectangle = [[200, 300], [200, 500], [400, 500], [400, 300]]
    shapes = viewer.add_shapes([np.array(rectangle)], units=("micrometer",) * 2)
    assert drawn(viewer, shapes, coarse) == pytest.approx((100, 200, 150, 250), abs=1)
    viewer.reset_view()
    assert on_screen(viewer, coarse) == (0, 500, 0, 500)
    viewer.add_image(np.zeros((500, 500, 3), np.uint8), rgb=True)  # of pixels: the view has no unit any more
    shapes.data = [np.array(rectangle) * 0.002]
    assert drawn(viewer, shapes, coarse) == pytest.approx((200, 400, 300, 500), abs=1)


@pytest.mark.parametrize("name", ["scene.ome.zarr", "scene.tif"])
def test_a_file_that_was_written_again_is_read_again(
    make_napari_viewer_proxy, tmp_path, scene, told, qtbot, name
) -> None:
    from napari_dehazexl._source import source_of

    path, put = tmp_path / name, dehazexl.to_tiff if name.endswith("tif") else dehazexl.to_zarr
    put(scene, path)
    layer = opened(make_napari_viewer_proxy(), path)
    part = np.s_[100:200, 300:400]
    np.testing.assert_array_equal(np.asarray(layer.data[0][part]), scene[part])
    noise = np.random.default_rng(0).integers(0, 255, scene.shape, np.uint8)  # no tile lies where it lay
    put(noise, path, overwrite=True)
    np.testing.assert_array_equal(np.asarray(layer.data[0][part]), noise[part])
    assert abs(float(np.asarray(layer.data[-1]).mean()) - noise.mean()) < 3 and not told
    np.testing.assert_array_equal(np.asarray(source_of(layer)[0].levels[0]), noise)
    layer.save(str(tmp_path / "copy.tif"), plugin="napari-dehazexl")
    np.testing.assert_array_equal(np.asarray(dehazexl.open_image(tmp_path / "copy.tif").levels[0]), noise)
    put(scene[:300], path, overwrite=True)
    with pytest.raises(ValueError, match="another image was written there"):
        source_of(layer)
    assert not np.asarray(layer.data[0][part]).any()
    qtbot.waitUntil(lambda: bool(told), timeout=5_000)
    assert "another image was written there: open it again" in told[0] and len(told) == 1


def test_a_file_that_was_away_has_its_overviews_again(large, cache, told, qtbot) -> None:
    from dehazexl.viewing.overviews import make_overviews
    from napari_dehazexl._reader import layers_of

    list(make_overviews(dehazexl.open_image(large), cache))
    half = layers_of(dehazexl.open_image(large))[0][0][1]
    pixels = np.asarray(half)
    large.rename(away := large.with_name("away.tif"))
    assert not np.asarray(half[:9]).any()
    away.rename(large)
    np.testing.assert_array_equal(np.asarray(half), pixels)
    qtbot.waitUntil(lambda: bool(told), timeout=5_000)  # in a thread of its own


def test_layers_with_coarse_levels_in_memory_are_told_apart(dehaze) -> None:
    from napari.layers import Image

    def layer(value: int) -> Image:
        fine = da.full((600, 600, 3), value, dtype=np.uint8, chunks=300)
        return Image([fine, np.full((300, 300, 3), value, np.uint8)], rgb=True, contrast_limits=(0, 255))

    both = [dehaze(layer(value), strength=0) for value in (10, 200)]
    assert [[int(level[:].max()) for level in each.data] for each in both] == [[10] * 5, [200] * 5]


def test_an_array_that_cannot_be_pickled_is_known_again() -> None:
    from napari.layers import Image

    from napari_dehazexl._source import source_of

    class Locked:
        """What reads a picture, one at a time."""

        shape, dtype, ndim, lock = (600, 500, 3), np.dtype(np.uint8), 3, threading.Lock()

        def __getitem__(self, index: Any) -> np.ndarray:
            return np.zeros(self.shape, self.dtype)[index]

    one, other = (Image(Locked(), rgb=True, contrast_limits=(0, 255)) for _ in range(2))
    known = [source_of(layer)[0].fingerprint for layer in (one, one, other)]
    assert known[0] == known[1] != known[2]
    one.data = Locked()
    assert source_of(one)[0].fingerprint not in known


def test_short_memory_while_painting_is_no_unreadable_file(
    make_napari_viewer_proxy, dehaze, tiled, told, monkeypatch, qtbot
) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    dehazed = dehaze(opened(viewer, tiled), viewer=viewer)

    def short(*args: Any) -> Any:
        raise MemoryError("Unable to allocate 9 GB")

    monkeypatch.setattr(state_of(dehazed).session._tiles, "dehaze", short)
    camera(viewer).zoom = 3
    qtbot.waitUntil(lambda: bool(told), timeout=20_000)
    assert told == ["scene dehazed: Unable to allocate 9 GB"]


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_the_range_is_the_image_s_own(dehaze, scene, dtype) -> None:
    """By the rule of the command line: contrast limits, whoever chose them, are for display."""
    from napari.layers import Image

    from dehazexl.image.image import value_range

    pixels = scene.astype(dtype) * 8 + 1000
    own = value_range(dehazexl.open_image(pixels))
    assert state_of(dehaze(Image(pixels, rgb=True))).session.value_range == own
    assert state_of(dehaze(Image(pixels, rgb=True, contrast_limits=(900, 4000)))).session.value_range == own


def test_limits_of_eight_bits_are_for_display(dehaze, scene) -> None:
    from napari.layers import Image

    layer = Image(scene, rgb=True, contrast_limits=(30, 200))
    shown = dehaze(layer, strength=0)
    assert state_of(shown).session.value_range == (0, 255)
    np.testing.assert_array_equal(shown.data[0][:], scene)


def test_bands_are_known_by_their_place(make_napari_viewer_proxy, large, gate, told, qtbot) -> None:
    viewer = make_napari_viewer_proxy()
    colors, further = viewer.open(str(large), plugin="napari-dehazexl")
    assert tuple(further.contrast_limits) == pytest.approx((0, 866), abs=9) and not further.visible
    further.name = "red"
    gate.set()
    qtbot.waitUntil(lambda: state_of(further).overviews is None, timeout=60_000)
    np.testing.assert_array_equal(np.asarray(further.data[0][:2]), tifffile.imread(large)[:2, :, 3])
    assert tuple(further.contrast_limits) == pytest.approx((0, 866), abs=9)
    assert state_of(colors).overviews is None and not told


def test_alpha_is_shown_as_such(make_napari_viewer_proxy, dehaze, tmp_path, scene, qtbot) -> None:
    alpha = np.full((*scene.shape[:2], 1), 255, np.uint8)
    alpha[:500] = 0
    pixels = np.concatenate([scene, alpha], axis=-1)
    tifffile.imwrite(tmp_path / "alpha.tif", pixels, tile=(256, 256), photometric="rgb", extrasamples=["unassalpha"])
    viewer = make_napari_viewer_proxy()
    layers = viewer.open(str(tmp_path / "alpha.tif"), plugin="napari-dehazexl")
    assert len(layers) == 1, "alpha is no further band"
    np.testing.assert_array_equal(np.asarray(layers[0].data[0]), pixels)
    for source in (layers[0], viewer.add_image(pixels, rgb=True, name="array")):
        shown = dehaze(source, viewer=viewer)
        assert shown.rgb
        shown.data[0][:]
        live = state_of(shown).session
        qtbot.waitUntil(lambda live=live: live.wait(0.01), timeout=60_000)
        np.testing.assert_array_equal(shown.data[0][:500], pixels[:500])
        np.testing.assert_array_equal(shown.data[0][500:, :, 3], alpha[500:, :, 0])


def test_an_array_is_known_again(scene) -> None:
    from napari.layers import Image

    from napari_dehazexl._source import source_of

    layer = Image(scene, rgb=True)
    token = source_of(layer)[0].fingerprint
    assert token and source_of(layer)[0].fingerprint == token
    assert source_of(Image(scene[::-1], rgb=True))[0].fingerprint != token


# Overviews of large pictures


def test_it_goes_on_to_grow_behind_another_window(make_napari_viewer_proxy, large, gate, qtbot) -> None:
    behind = make_napari_viewer_proxy()
    layer = opened(behind, large)
    qtbot.wait(500)
    make_napari_viewer_proxy()
    qtbot.wait(500)
    assert state_of(layer).overviews.running
    gate.set()
    qtbot.waitUntil(lambda: state_of(layer).overviews is None, timeout=60_000)


def test_without_a_window_the_overviews_are_used(large) -> None:
    from napari.layers import Image

    from napari_dehazexl._reader import layers_of
    from napari_dehazexl._source import source_of

    data, kwargs, _ = layers_of(dehazexl.open_image(large))[0]
    layer = Image(data, **kwargs)
    growing = state_of(layer).overviews
    assert growing.wait(60)
    image, _ = source_of(layer)
    half = tifffile.imread(large)[:, :, :3].reshape(1250, 2, 1300, 2, 3).astype(float).mean((1, 3))
    assert np.abs(np.asarray(image.levels[1])[..., :3] - half).max() <= 0.5
    assert np.asarray(layer.data[1]).std() > 0.1


def test_without_overviews_it_is_dehazed_all_the_same(
    make_napari_viewer_proxy, dehaze, large, cache, told, qtbot
) -> None:
    cache.write_text("in the way")
    viewer = make_napari_viewer_proxy(show=True)
    layer = opened(viewer, large)
    qtbot.waitUntil(lambda: state_of(layer).overviews is None, timeout=60_000)
    assert len(told) == 1 and "without overviews" in told[0]
    dehazed = dehaze(layer, viewer=viewer)
    live = state_of(dehazed).session
    dehazed.data[0][:300, :300]
    qtbot.waitUntil(lambda: live.wait(0.01), timeout=60_000)
    assert len(told) == 1


def test_a_lazy_array_gets_overviews_too(dehaze) -> None:
    import dask.array as da
    from napari.layers import Image

    pixels = np.random.default_rng(0).integers(0, 255, (2100, 300, 3), np.uint8)
    layer = Image(da.from_array(pixels, chunks=(512, 100, 1)), rgb=True, contrast_limits=(0, 255))
    with pytest.raises(ValueError, match="are being computed"):
        dehaze(layer)
    assert state_of(layer).overviews.wait(60)
    live = state_of(dehaze(layer)).session
    live.levels[0][:300]
    assert live.wait(60)
    assert max(live.levels[-1].shape[:2]) <= 64


def test_overviews_of_a_lazy_array_end_with_its_layer(make_napari_viewer_proxy, dehaze, gate, qtbot) -> None:
    viewer = make_napari_viewer_proxy()
    pixels = da.zeros((2100, 300, 3), chunks=(512, 100, 1), dtype=np.uint8)
    layer = viewer.add_image(pixels, rgb=True, contrast_limits=(0, 255))
    with pytest.raises(ValueError, match="are being computed"):
        dehaze(layer, viewer=viewer)
    qtbot.wait(500)
    viewer.layers.remove(layer)
    qtbot.waitUntil(lambda: not state_of(layer).overviews.running, timeout=5_000)
    gate.set()


def test_pixels_that_were_replaced_while_it_grows_stay(make_napari_viewer_proxy, large, gate, qtbot) -> None:
    layer = opened(make_napari_viewer_proxy(), large)
    growing = state_of(layer).overviews
    layer.data = [np.full((*level.shape[:2], 3), 7, np.uint8) for level in layer.data]
    gate.set()
    assert growing.wait(60)
    qtbot.wait(500)
    assert np.unique(layer.data[0]) == [7]


def test_many_threads_call_the_window(qapp, qtbot) -> None:
    from napari_dehazexl._main_thread import call_later

    called: list[threading.Thread] = []

    def call() -> None:
        for _ in range(2000):
            call_later(lambda: called.append(threading.current_thread()))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    qtbot.waitUntil(lambda: len(called) == 8000, timeout=60_000)
    assert set(called) == {threading.main_thread()}
    for thread in threads:
        thread.join()


# The dehazed layer in a window


@pytest.fixture
def reads(monkeypatch) -> dict[bool, list[int]]:
    """Pixels of each window of a file or array that is read, in the window's thread (True) and in others (False)."""
    counts: dict[bool, list[int]] = {True: [], False: []}
    read = ChunkCache.read

    def counted(self: ChunkCache, window: Window) -> np.ndarray:
        counts[threading.current_thread() is threading.main_thread()].append(window.height * window.width)
        return read(self, window)

    monkeypatch.setattr(ChunkCache, "read", counted)
    return counts


def test_the_window_s_thread_reads_a_tiny_level_only(make_napari_viewer_proxy, dehaze, reads, monkeypatch, qtbot):
    computed: list[bool] = []
    encode = DehazeXL.encode

    def noted(self: DehazeXL, tiles: torch.Tensor) -> Any:
        computed.append(threading.current_thread() is threading.main_thread())
        return encode(self, tiles)

    monkeypatch.setattr(DehazeXL, "encode", noted)
    viewer = make_napari_viewer_proxy(show=True)
    pixels = np.random.default_rng(0).integers(0, 255, (5000, 7000, 3), np.uint8)
    dehazed = dehaze(viewer.add_image(pixels, rgb=True), viewer=viewer)
    assert sum(reads[True]) <= 256 * 256, "adding the layer reads more"
    assert max(dehazed.data[-1].shape[:2]) <= 64
    session = state_of(dehazed).session
    qtbot.waitUntil(lambda: session._tiles.overview is not None, timeout=60_000)
    for zoom in (1, 0.3, 2):
        before = len(reads[False])
        camera(viewer).zoom = zoom
        qtbot.waitUntil(lambda before=before: len(reads[False]) > before, timeout=60_000)
    assert max(reads[False]) > 256 * 256, "the view was never read"
    assert sum(reads[True]) <= 256 * 256, "the view is read while the window waits"
    assert computed and not any(computed), "the window computes"
    assert session.running and session.error is None


def test_refreshes_are_few_however_often_it_is_painted(make_napari_viewer_proxy, dehaze, scene, monkeypatch, qtbot):
    """Each takes the window's thread: what comes within a moment is shown at once."""
    viewer = make_napari_viewer_proxy(show=True)
    dehazed = dehaze(viewer.add_image(scene, rgb=True), viewer=viewer)
    session, renderer = state_of(dehazed).session, dehazed.data[0].renderer
    qtbot.waitUntil(lambda: session.wait(0.01) and session.exact and renderer.fresh, timeout=120_000)
    qtbot.wait(500)
    refreshed: list[bool] = []
    monkeypatch.setattr("napari_dehazexl._watch.refresh", lambda layer, thumbnail: refreshed.append(thumbnail))
    for number in range(50):
        renderer.painted.emit(number == 0)
    qtbot.waitUntil(lambda: bool(refreshed), timeout=5_000)
    qtbot.wait(500)
    assert refreshed == [True], "what was painted whole has its thumbnail renewed"


def test_source_pixels_first_dehazed_pixels_after(make_napari_viewer_proxy, dehaze, scene, monkeypatch, qtbot) -> None:
    from napari_dehazexl import _layer

    gate, load = threading.Event(), _layer.network
    monkeypatch.setattr(_layer, "network", lambda *args, **more: gate.wait(60) and load(*args, **more))
    viewer = make_napari_viewer_proxy(show=True)
    dehazed = dehaze(viewer.add_image(scene, rgb=True), viewer=viewer)
    hazy = hidden(dehazed, viewer, qtbot)
    viewer.layers[0].visible = False
    qtbot.wait(300)
    assert np.abs(canvas(viewer) - hazy).mean() < 1
    gate.set()
    qtbot.waitUntil(lambda: np.abs(canvas(viewer) - hazy).mean() > 2, timeout=60_000)
    camera(viewer).zoom = 3  # what comes into view is dehazed, too
    live = state_of(dehazed).session
    qtbot.waitUntil(lambda: live._view is not None and live.wait(0.01), timeout=60_000)
    view = live._view
    assert view is not None and view[0] == 0
    assert live.status == "all in view is dehazed"


def test_async_slicing(make_napari_viewer_proxy, dehaze, scene, monkeypatch, qtbot) -> None:
    from napari.settings import get_settings

    viewer = make_napari_viewer_proxy(show=True)
    dehazed = dehaze(viewer.add_image(scene, rgb=True), viewer=viewer)
    # Now, not before: a slicing thread that disconnects while the window makes a layer's controls may lock PySide up.
    monkeypatch.setattr(get_settings().experimental, "async_", True)
    assert not viewer.__wrapped__._layer_slicer._force_sync
    hazy = hidden(dehazed, viewer, qtbot)
    qtbot.waitUntil(lambda: np.abs(canvas(viewer) - hazy).mean() > 2, timeout=60_000)
    assert state_of(dehazed).session.wait(60)
    qtbot.wait(500)  # a slice that is under way when the test ends would hold the window
    gc.collect()


def test_short_memory_is_said_once(make_napari_viewer_proxy, dehaze, scene, told, monkeypatch, qtbot) -> None:
    encode = DehazeXL.encode

    def short(self: DehazeXL, tiles: torch.Tensor) -> Any:
        if len(tiles) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(self, tiles)

    monkeypatch.setattr(DehazeXL, "encode", short)
    viewer = make_napari_viewer_proxy(show=True)
    live = state_of(dehaze(viewer.add_image(scene, rgb=True), viewer=viewer)).session
    qtbot.waitUntil(lambda: live.wait(0.01), timeout=60_000)
    qtbot.wait(500)
    assert len(told) == 1 and "memory ran out: 2 tiles" in told[0]


def test_it_lies_on_its_source(make_napari_viewer_proxy, dehaze, scene) -> None:
    viewer = make_napari_viewer_proxy()
    affine = np.array([[1, 0.2, 1000], [0, 1, 2000], [0, 0, 1]])
    layer = viewer.add_image(
        scene, rgb=True, scale=(2, 3), translate=(5, 6), rotate=30, shear=[0.1], affine=affine, units=("um", "um")
    )
    whole = dehaze(layer, viewer=viewer)
    part = dehaze(layer, viewer=viewer, region=(100, 400, 200, 700))
    np.testing.assert_allclose(whole.data_to_world((150, 290)), layer.data_to_world((150, 290)))
    np.testing.assert_allclose(part.data_to_world((50, 90)), layer.data_to_world((150, 290)))
    assert whole.units == part.units == layer.units


def test_what_is_refused(make_napari_viewer_proxy, dehaze, scene) -> None:
    viewer = make_napari_viewer_proxy()
    layer = viewer.add_image(scene, rgb=True)
    with pytest.raises(ValueError, match="two rising numbers"):
        dehaze(layer, value_range=(10, 5), viewer=viewer)
    with pytest.raises(ValueError, match="context must be all or region, not 'pooled:2'"):
        dehaze(layer, context="pooled:2", viewer=viewer)
    for wrong, error in (("hazy", ValueError), (viewer.add_points([[1, 1]]), TypeError)):
        with pytest.raises(error, match="pass "):
            dehaze(wrong, viewer=viewer)
    assert len(viewer.layers) == 2


def test_a_dehazed_layer_stands_for_its_source(make_napari_viewer_proxy, dehaze, scene) -> None:
    viewer = make_napari_viewer_proxy()
    layer = viewer.add_image(scene, rgb=True, name="scene")
    dehazed = dehaze("scene", viewer=viewer)
    again = dehaze(dehazed, viewer=viewer, strength=0, region=(100, 200, 300, 500))
    np.testing.assert_array_equal(state_of(again).session.levels[0][:], scene[100:200, 300:500])
    viewer.layers.remove(layer)
    whole = state_of(dehaze(dehazed, viewer=viewer, strength=0)).session
    np.testing.assert_array_equal(whole.levels[0][:], scene)


def test_layers_share_the_network(dehaze, scene, qtbot) -> None:
    from napari.layers import Image

    layer = Image(scene[:300, :300], rgb=True)
    lives = [state_of(dehaze(layer)).session for _ in range(2)]
    assert all(live.wait(60) for live in lives)
    assert lives[0]._model is lives[1]._model


# What goes while it is at work


def test_a_zarr_that_vanishes_is_said_once(make_napari_viewer_proxy, dehaze, tmp_path, scene, told, qtbot) -> None:
    path = tmp_path / "scene.ome.zarr"
    dehazexl.to_zarr(scene, path)
    viewer = make_napari_viewer_proxy(show=True)
    layer = opened(viewer, path)
    dehazed = dehaze(layer, viewer=viewer)
    qtbot.wait(300)
    shutil.rmtree(path)
    for center in ((0, 300, 300), (0, 800, 900)):
        camera(viewer).zoom, camera(viewer).center = 2, center
        qtbot.wait(500)
    qtbot.waitUntil(lambda: bool(told) and not state_of(dehazed).session.running, timeout=60_000)
    assert len(told) == 1 and "scene cannot be read" in told[0]
    assert not np.asarray(layer.data[0][:300, :300]).any()
    assert dehazed.data[0][:300, :300].any(), "what was seen of it has gone, too"


def test_a_tiff_that_is_cut_short_is_said_once(make_napari_viewer_proxy, dehaze, tmp_path, told, qtbot) -> None:
    path = tmp_path / "noise.tif"
    dehazexl.to_tiff(np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), np.uint8), path)
    viewer = make_napari_viewer_proxy(show=True)
    dehaze(opened(viewer, path), viewer=viewer)
    qtbot.wait(300)
    os.truncate(path, 1000)
    for center in ((0, 300, 300), (0, 1500, 1500)):
        camera(viewer).zoom, camera(viewer).center = 2, center
        qtbot.wait(500)
    qtbot.waitUntil(lambda: bool(told), timeout=60_000)
    assert len(told) == 1 and "noise cannot be read" in told[0]


def test_the_source_is_removed(make_napari_viewer_proxy, dehaze, scene, told, qtbot) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    layer = viewer.add_image(scene, rgb=True)
    live = state_of(dehaze(layer, viewer=viewer)).session
    viewer.layers.remove(layer)
    qtbot.waitUntil(lambda: live.wait(0.01), timeout=60_000)
    assert not told


def test_a_duplicate_shows_the_same_work(make_napari_viewer, dehaze, scene, qtbot) -> None:
    from napari.layers._layer_actions import _duplicate_layer

    viewer = make_napari_viewer()
    dehazed = dehaze(viewer.add_image(scene, rgb=True), viewer=viewer)
    viewer.layers.selection = {dehazed}
    _duplicate_layer(viewer.layers)
    live, copy = state_of(dehazed).session, viewer.layers[-1]
    assert state_of(copy).session is live and copy.data[0].session is live
    viewer.layers.remove(dehazed)
    assert live.running
    viewer.layers.remove(copy)
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)


def test_a_removed_layer_s_tiles_go(make_napari_viewer_proxy, dehaze, scene, qtbot) -> None:
    viewer = make_napari_viewer_proxy(show=True)
    dehazed = dehaze(viewer.add_image(scene, rgb=True), viewer=viewer)
    live = state_of(dehazed).session
    camera(viewer).zoom = 3
    qtbot.waitUntil(lambda: bool(len(live._tiles)), timeout=60_000)
    viewer.layers.remove(dehazed)
    assert not len(live._tiles) and live._tiles.overview is None and live._model is None
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)


def test_x_on_one_of_two_windows(make_napari_viewer, dehaze, scene, qtbot) -> None:
    from napari_dehazexl._watch import _watches

    make_napari_viewer(show=True)
    viewer = make_napari_viewer(show=True)
    live = state_of(dehaze(viewer.add_image(scene, rgb=True), viewer=viewer)).session
    assert live.running
    viewer.window._qt_window.close()
    qtbot.waitUntil(lambda: not workers(), timeout=60_000)
    assert not [watch for watch in _watches if watch.session() is live]  # nor a timer, though the viewer is still held
    del viewer.window._qt_window  # so that the fixture does not close it once more


def test_without_a_window_nothing_is_left_either(dehaze, scene) -> None:
    from napari.components import ViewerModel

    viewer = ViewerModel()
    live = state_of(dehaze(viewer.add_image(scene, rgb=True), viewer=viewer)).session
    viewer.layers.pop()
    live._worker.join(60)
    assert not live._worker._thread.is_alive()


def test_without_a_viewer_either(weights, scene) -> None:
    from napari.layers import Image

    from napari_dehazexl import dehaze_layer

    dehazed = dehaze_layer(Image(scene, rgb=True), weights=weights)
    thread = state_of(dehazed).session._worker._thread
    assert thread.is_alive()
    del dehazed
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
