"""Maps of the haze while an image is viewed: at once and coarse, then as the engine has them."""

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from reference import interleaved, picture, randomised, relative

import dehazexl
from dehazexl.image.value_scale import to_dtype
from dehazexl.model import SPECS, DehazeXL
from dehazexl.viewing.local import LocalStrength
from dehazexl.viewing.mapping import MapSession
from dehazexl.viewing.session import DehazeSession

COMPACT = replace(SPECS["tiny"], prior=True, guided=True, local=3, airlight="picture")
VIEW = (slice(50, 290), slice(300, 700))


@pytest.fixture(scope="module")
def network() -> DehazeXL:
    return randomised(COMPACT)


@pytest.fixture(scope="module")
def hazy() -> np.ndarray:
    return to_dtype(255 * interleaved(picture(300, 1100)), np.dtype(np.uint8))


@pytest.fixture
def watch(hazy) -> Iterator[Callable[..., DehazeSession]]:
    """Return a function that dehazes a picture of three levels, the second of which is the overview."""
    opened, made = dehazexl.open_image(hazy), []

    def start(load, **options) -> DehazeSession:
        image = replace(opened, levels=tuple(opened.levels[0][::step, ::step].rechunk(512) for step in (1, 2, 4)))
        made.append(DehazeSession(image, load, **options))
        return made[-1]

    yield start
    for live in made:
        live.close(60)


def test_coarse_everywhere_then_as_the_engine_has_it_where_it_is_viewed(watch, hazy, network) -> None:
    live = watch(lambda: network)
    maps = MapSession(live)
    assert maps.names == ("transmission", "airlight", "removed")
    assert maps.wait(120)
    removed, coarser = maps.levels("removed")[0], maps.levels("removed")[2]
    assert removed.shape == (300, 1100) and coarser.shape == (75, 275)
    _, overview = dehazexl.dehaze_with_maps(hazy[::2, ::2], ["removed"], network)
    expected = overview["removed"].compute()[..., 0]
    assert relative(maps.levels("removed")[1][:], expected) < 1e-5
    assert relative(coarser[:], expected[1::2, 1::2]) < 1e-5
    assert relative(removed[:256], expected.repeat(2, 0).repeat(2, 1)[:256]) < 1e-5  # until it is viewed
    _, full = dehazexl.dehaze_with_maps(hazy, model=network)
    removed[VIEW]
    assert maps.wait(120) and maps.status == "all in view is mapped"
    assert relative(removed[VIEW], full["removed"][VIEW].compute()[..., 0]) < 1e-5
    transmission = full["transmission"][VIEW].compute()
    assert relative(maps.levels("transmission")[0][VIEW], transmission.mean(-1)) < 1e-5
    airlight = maps.levels("airlight")[0]
    assert airlight.shape == (300, 1100, 4)
    unit = full["airlight"][VIEW].compute() / 255
    assert relative(airlight[VIEW][..., :3], unit.clip(0, 1)) < 1e-4 and (airlight[VIEW][..., 3] == 1).all()
    assert len(np.unique(airlight[VIEW][..., :3].reshape(-1, 3), axis=0)) == 1


def test_what_is_removed_follows_the_strength(watch, network) -> None:
    live = watch(lambda: network)
    maps = MapSession(live, ["removed"])
    assert maps.wait(120)
    removed, told = maps.levels("removed")[1], []
    before = removed[:]
    maps.updated.connect(lambda: told.append(live.strength))
    live.strength = 0.25
    assert told == [0.25] and relative(removed[:], before / 4) < 1e-6
    mask = np.zeros((300, 1100))
    mask[:, 550:] = 1
    live.local = LocalStrength.painted(mask)
    assert relative(removed[:, :200], before[:, :200] / 4) < 1e-6
    assert not removed[:, 350:].any() and before[:, 350:].any()


def test_pixels_without_data_are_in_no_map(hazy, network) -> None:
    pixels = hazy.astype(np.float32)
    pixels[:40, :60] = np.nan
    image = dehazexl.open_image(pixels[:200, :300])
    live = DehazeSession(image, lambda: network, value_range=(0, 255))
    maps = MapSession(live)
    assert maps.wait(120)
    valid = np.isfinite(pixels[:200, :300]).all(-1)
    for name in ("transmission", "removed"):
        assert (np.isfinite(maps.levels(name)[0][:]) == valid).all()
    assert (maps.levels("airlight")[0][..., 3] == valid).all()
    live.close(60)


def test_a_network_without_a_map_says_so(watch) -> None:
    gain = randomised(replace(SPECS["tiny"], head="gain", inputs=()))
    with pytest.raises(ValueError, match="the head 'gain' of these weights gives no maps"):
        MapSession(watch(lambda: gain))
    live = watch(lambda: randomised("tiny"))
    assert MapSession(live).names == ("transmission", "removed")
    with pytest.raises(ValueError, match="not airlight"):
        MapSession(live, ["airlight"])


def test_work_stops_when_told_and_goes_on(watch, network) -> None:
    live = watch(lambda: network)
    assert live.wait(120)
    maps = MapSession(live, ["transmission"])
    maps.close(60)
    assert not maps.running and maps.status == "stopped"
    maps.restart()
    assert maps.wait(120) and np.isfinite(maps.levels("transmission")[1][:]).all()


def test_maps_wait_for_a_layer_that_is_stopped(watch, network) -> None:
    live = watch(lambda: network)
    maps = MapSession(live, ["transmission"])
    assert maps.wait(120)
    live.close(60)
    maps.levels("transmission")[0][VIEW]
    assert not maps.wait(60)
    assert maps.status == "waiting for the dehazed layer, which is stopped"
    live.restart()
    live.look_at(0, live._all_of(0)[1])
    maps.levels("transmission")[0][VIEW]
    assert live.wait(120) and maps.wait(120)


def test_a_file_that_is_gone_ends_the_work(hazy, network, tmp_path) -> None:
    dehazexl.to_tiff(hazy[:200, :300], tmp_path / "hazy.tif")
    live = DehazeSession(dehazexl.open_image(tmp_path / "hazy.tif"), lambda: network)
    assert live.wait(120)
    (tmp_path / "hazy.tif").unlink()
    errors: list[Exception] = []
    maps = MapSession(live)
    maps.failed.connect(errors.append)
    assert not maps.wait(60) and "is gone" in str(maps.error) and maps.status == "failed"
    live.close(60)


def test_maps_that_nobody_has_any_more_leave_no_thread(watch, network) -> None:
    maps = MapSession(watch(lambda: network))
    thread = maps._worker._thread
    del maps
    gc.collect()
    thread.join(60)
    assert not thread.is_alive() and thread is not threading.current_thread()
