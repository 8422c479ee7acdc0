"""What a window is shown while the pixels are still read: from memory, at once, and soon the best there is."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import zarr

import dehazexl
from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import Window
from dehazexl.model import DehazeXL
from dehazexl.viewing.renderer import Renderer
from dehazexl.viewing.session import DehazeSession

VIEW = (slice(100, 500), slice(300, 900))
SIDES = 2200, 3000


@pytest.fixture(scope="module")
def hazy() -> np.ndarray:
    y, x = np.mgrid[: SIDES[0], : SIDES[1]]
    waves = [np.sin(y / 300) * np.cos(x / period) for period in (400, 500, 600)]
    return (170 + 40 * np.stack(waves, axis=-1)).astype(np.uint8)


class Disk:
    """A slow disk: reads wait until the gate is open."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels, self.gate = pixels, threading.Event()
        self.gate.set()
        self.broken = False

    def level(self, step: int) -> da.Array:
        pixels = self.pixels[::step, ::step]

        def read(block_info=None) -> np.ndarray:
            assert self.gate.wait(60)
            if self.broken:
                raise OSError("the disk is away")
            (y0, y1), (x0, x1), _ = block_info[None]["array-location"]
            return pixels[y0:y1, x0:x1]

        chunks = da.core.normalize_chunks((512, 512, 3), pixels.shape)
        return da.map_blocks(read, chunks=chunks, dtype=pixels.dtype, meta=np.empty((0, 0, 0), pixels.dtype))

    def image(self) -> dehazexl.Image:
        small = tuple(da.from_array(self.pixels[::step, ::step]) for step in (4, 8, 16))
        image = dehazexl.open_image(self.pixels)
        return replace(image, levels=(self.level(1), self.level(2), *small))


@pytest.fixture
def start(model) -> Iterator[Callable[..., tuple[DehazeSession, Renderer, Disk]]]:
    made: list[DehazeSession] = []

    def begin(pixels: np.ndarray, network: Callable[[], DehazeXL] = lambda: model, **options):
        disk = Disk(pixels)
        made.append(DehazeSession(disk.image(), network, **options))
        return made[-1], Renderer(made[-1]), disk

    yield begin
    for live in made:
        live.close(60)


def painted(painter: Renderer) -> None:
    """Wait until all is painted, and its thread has ended."""
    deadline = time.monotonic() + 60
    while painter._due() is not None or painter._worker is not None:
        assert time.monotonic() < deadline
        painter.paint()
        time.sleep(0.005)


def test_blurred_at_once_then_as_the_picture_has_it(start, hazy) -> None:
    live, painter, disk = start(hazy)
    disk.gate.clear()
    level = painter.levels[0]
    first = level[VIEW]  # with the disk waiting this would never come from there
    assert first.shape == (400, 600, 3) and first.dtype == np.uint8
    assert np.abs(first.astype(int) - hazy[VIEW]).mean() < 30
    disk.gate.set()
    assert live.wait(60)
    painted(painter)
    np.testing.assert_array_equal(level[VIEW], live.levels[0][VIEW])
    assert not any(thread.name.startswith("paint ") for thread in threading.enumerate())


def test_before_the_network_it_is_the_hazy_picture(start, hazy) -> None:
    gate = threading.Event()
    _, painter, disk = start(hazy, lambda: gate.wait(60) and None)
    disk.gate.clear()
    blurred = painter.levels[0][VIEW]
    assert np.abs(blurred.astype(int) - hazy[VIEW]).max() <= 4  # the waves are long: hardly anything is lost
    disk.gate.set()
    painted(painter)
    np.testing.assert_array_equal(painter.levels[0][VIEW], hazy[VIEW])
    gate.set()


def test_what_stays_in_view_stays_sharp(start, hazy) -> None:
    live, painter, disk = start(hazy + (np.indices(SIDES).sum(0) % 2 * 9).astype(np.uint8)[..., None])
    painter.levels[0][VIEW]
    assert live.wait(60)
    painted(painter)
    sharp = painter.levels[0][VIEW]
    disk.gate.clear()
    moved = painter.levels[0][200:600, 300:900]
    np.testing.assert_array_equal(moved[:300], sharp[100:])
    assert np.abs(np.diff(moved[300:].astype(int), axis=1)).mean() < np.abs(np.diff(sharp.astype(int), axis=1)).mean()
    inner = painter.levels[0][250:260, 400:410]  # in the view of before and in that of now
    np.testing.assert_array_equal(inner, sharp[150:160, 100:110])
    disk.gate.set()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_strength_is_shown(start, hazy, dtype: str) -> None:
    pixels = hazy.astype(dtype)
    live, painter, _ = start(pixels, value_range=(0, 255))
    painter.levels[1][VIEW]
    assert live.wait(60)
    live.strength = 0
    painter.levels[1][VIEW]
    painted(painter)
    wanted = pixels[::2, ::2][VIEW]
    if dtype == "uint16":
        wanted = (wanted / 255).astype(np.float32)
    np.testing.assert_allclose(painter.levels[1][VIEW], wanted, atol=1e-6)
    np.testing.assert_allclose(painter.levels[2][:], live.levels[2][:], atol=1e-6)


def counted(painter: Renderer) -> list[bool]:
    """What a renderer paints from now on: True for the whole, False for the view."""
    frames: list[bool] = []
    painter.painted.connect(lambda whole: frames.append(whole))
    return frames


def test_what_is_painted_is_told_once(start, hazy) -> None:
    live, painter, _ = start(hazy)
    frames = counted(painter)
    painter.levels[0][VIEW]
    assert live.wait(60)
    painted(painter)
    assert set(frames) == {True, False}
    frames.clear()
    painter.levels[0][VIEW]
    painted(painter)
    assert not frames, "the same was painted again"


def test_a_new_strength_is_painted_unasked(start, hazy) -> None:
    """Nobody looks now and then whether something is to be painted."""
    live, painter, _ = start(hazy)
    painter.levels[0][VIEW]
    assert live.wait(60)
    painted(painter)
    done = threading.Event()
    painter.painted.connect(lambda whole: whole and done.set())
    live.strength = 0
    assert done.wait(60)  # the view is painted before the whole
    np.testing.assert_array_equal(painter._view.pixels, hazy[VIEW])


def test_a_lost_picture_is_shown_as_it_was(start, hazy) -> None:
    live, painter, disk = start(hazy)
    painter.levels[0][VIEW]
    assert live.wait(60)
    painted(painter)
    sharp = painter.levels[0][VIEW]
    disk.broken = True
    for pixels in live._pixels:
        pixels.forget()
    away = painter.levels[0][1500:2000, 2000:2600]
    painted(painter)
    assert live.lost and isinstance(live.error, OSError)
    np.testing.assert_array_equal(painter.levels[0][1500:2000, 2000:2600], away)
    np.testing.assert_array_equal(painter.levels[0][VIEW], sharp)
    disk.broken = False
    live.restart()
    painter.levels[0][1500:2000, 2000:2600]
    assert live.wait(60)
    painted(painter)
    there = Window(1500, 2000, 2000, 2600)
    np.testing.assert_array_equal(painter.levels[0][1500:2000, 2000:2600], live.read(0, there))


def test_a_copy_is_looked_at_by_itself(start, hazy) -> None:
    """A layer and its moved duplicate show different windows: both get sharp, and then rest."""
    live, painter, _ = start(hazy)
    levels = copy.deepcopy(painter.levels)
    other = levels[0].renderer
    assert other is not painter and all(level.renderer is other and level.session is live for level in levels)
    for _ in range(2):
        painter.levels[0][VIEW], levels[0][1500:2000, 2000:2600]
        assert live.wait(60)
        painted(painter), painted(other)
    frames = counted(painter), counted(other)
    np.testing.assert_array_equal(painter.levels[0][VIEW], live.levels[0][VIEW])
    there = Window(1500, 2000, 2000, 2600)
    np.testing.assert_array_equal(levels[0][1500:2000, 2000:2600], live.read(0, there))
    assert not any(frames), "both are at rest"


def test_what_lies_around_the_view_is_read_before_the_view_moves_there(start, hazy) -> None:
    live, painter, disk = start(hazy)
    painter.levels[0][VIEW]
    assert live.wait(60)
    painted(painter)
    disk.gate.clear()  # else a source layer's window would wait for the disk, too
    pixels = ChunkCache.of(live.image.levels[0]).read(Window(0, 1012, 0, 1412))
    np.testing.assert_array_equal(pixels, hazy[:1012, :1412])
    disk.gate.set()


def test_what_could_not_be_kept_is_not_read_ahead(start, hazy, monkeypatch) -> None:
    monkeypatch.setattr("dehazexl.image.chunk_cache.CACHE", 0)
    monkeypatch.setattr("dehazexl.image.chunk_cache.REACH", 1024)  # 3 x 2 chunks are kept; the view touches 1 x 2
    live, painter, disk = start(hazy)
    painter.levels[0][VIEW]
    assert live.wait(60)
    painted(painter)
    disk.gate.clear()
    pixels = ChunkCache.of(live.image.levels[0]).read(Window(100, 500, 300, 900))
    np.testing.assert_array_equal(pixels, hazy[VIEW])  # else the chunks around would have taken its place
    disk.gate.set()


def test_zeros_of_a_file_that_is_gone_are_not_kept(tmp_path) -> None:
    path = tmp_path / "picture.zarr"
    zarr.create_array(path, data=np.full((1500, 3000, 3), 7, np.uint8), chunks=(256, 256, 3))
    live = DehazeSession(dehazexl.open_image(path), lambda: None)  # type: ignore[arg-type, return-value]
    path.rename(tmp_path / "away.zarr")
    for chunk in live.around(0, Window(0, 100, 0, 100)):
        live.read_ahead(0, chunk)
    (tmp_path / "away.zarr").rename(path)
    assert (ChunkCache.of(live.image.levels[0]).read(Window(0, 100, 0, 100)) == 7).all()
    live.close(60)


def test_the_view_is_painted_before_the_whole(start, hazy) -> None:
    """Else a slider that is dragged would show nothing of what it does until it rests."""
    live, painter, _ = start(hazy)
    painter.levels[0][VIEW]
    assert live.wait(60)
    painted(painter)
    live.strength = 0.5
    assert painter._unpainted() == (0, Window(100, 500, 300, 900))
    assert not painter.fresh


def test_short_of_memory_it_goes_on_later(start, hazy, monkeypatch) -> None:
    live, painter, _ = start(hazy)
    painter.levels[0][VIEW]
    assert live.wait(60)
    painted(painter)
    clear = live._tiles.dehaze
    tries = iter([MemoryError("Unable to allocate 9 GB")])

    def short(*args):
        for error in tries:
            raise error
        return clear(*args)

    monkeypatch.setattr(live._tiles, "dehaze", short)
    painter.levels[0][600:1000, 300:900]
    painted(painter)
    assert isinstance(live.error, MemoryError)
    live.restart()
    painter.levels[0][600:1000, 300:900]
    assert live.wait(60)
    painted(painter)
    np.testing.assert_array_equal(painter.levels[0][600:1000, 300:900], live.levels[0][600:1000, 300:900])


def test_as_an_array_it_is_all_of_the_picture(start, hazy) -> None:
    gate = threading.Event()
    _, painter, _ = start(hazy, lambda: gate.wait(60) and None)
    np.testing.assert_array_equal(np.asarray(painter.levels[0]), hazy)
    gate.set()


def test_alpha_is_enlarged_too(start, hazy) -> None:
    opaque = np.full((*SIDES, 1), 255, np.uint8)
    opaque[:300] = 0
    disk = Disk(np.concatenate([hazy, opaque], axis=-1))
    image = dehazexl.open_image(disk.pixels[:8, :8])
    levels = tuple(da.from_array(disk.pixels[::step, ::step], chunks=(512, 512, 4)) for step in (1, 4, 8))
    gate = threading.Event()
    live = DehazeSession(replace(image, levels=levels, alpha=3), lambda: gate.wait(60) and None)  # type: ignore[arg-type, return-value]
    shown = Renderer(live).levels[0][VIEW]
    assert shown.shape == (400, 600, 4) and not shown[:180, :, 3].any() and shown[220:, :, 3].min() == 255
    assert np.abs(shown[..., :3].astype(int) - hazy[VIEW]).max() <= 8, "what alpha hides has lost its colors"
    gate.set()
    live.close(60)
