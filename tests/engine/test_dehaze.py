"""Dehazing in passes: equal to the whole picture at once, whatever its size, chunks, dtype or holes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import torch
import zarr
from oracle import plainly
from reference import interleaved, picture, randomised, relative, whole

import dehazexl
from dehazexl.engine.decode import decode
from dehazexl.engine.dehaze import decode_lazily, open_tokens, prepare
from dehazexl.engine.encode import encode
from dehazexl.engine.fuse import fuse
from dehazexl.engine.tokens import FORMAT
from dehazexl.image.grid import Window
from dehazexl.image.image import Image, value_range
from dehazexl.io.open import open_image
from dehazexl.model import SPECS, DehazeXL


def hazy(height: int, width: int, bands: int = 3, seed: int = 0) -> np.ndarray:
    """Draw a picture ``(y, x, bands)`` in [0, 1]."""
    parts = [interleaved(picture(height, width, seed + i)) for i in range(0, bands, 3)]
    return np.ascontiguousarray(np.concatenate(parts, axis=2)[..., :bands])


def dehazed(source: Any, model: Any, **options: Any) -> np.ndarray:
    options = {"overlap": 0, "value_range": (0, 1), **options}
    return dehazexl.dehaze(source, model, **options).compute()


@contextmanager
def counted(*modules: torch.nn.Module) -> Iterator[list[int]]:
    """Count the tiles that go through each module."""
    tiles = [0] * len(modules)

    def count(i: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            tiles[i] += len(inputs[0])

        return hook

    hooks = [module.register_forward_pre_hook(count(i)) for i, module in enumerate(modules)]
    yield tiles
    for hook in hooks:
        hook.remove()


# ---- Equality with the whole picture ----------------------------------------------------------------

SIZES = [(768, 512), (700, 1000), (1, 1), (2, 300), (100, 255), (257, 513)]


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("size", SIZES)
def test_streaming_equals_the_whole_picture(tiny: DehazeXL, size: tuple[int, int], batch: int) -> None:
    pixels = hazy(*size)
    # As an Image, because an array of 1 x 1 x 3 may as well have its bands first.
    image = Image((da.from_array(pixels, chunks=-1),), "small", ("red", "green", "blue"), (0, 1, 2))
    assert relative(dehazed(image, tiny, batch=batch), whole(tiny, pixels)) < 1e-5


def test_streaming_equals_the_whole_picture_with_the_official_network(official: DehazeXL) -> None:
    pixels = hazy(300, 500)
    assert relative(dehazed(pixels, official, batch=3), whole(official, pixels)) < 1e-5


DETAIL = {"prior": True, "guided": True, "local": 3, "airlight": "picture"}


@pytest.mark.parametrize("change", [{"context_pool": 1}, {"head": "gain", "head_stride": 1}, {"inputs": ()}, DETAIL])
def test_streaming_equals_the_whole_picture_in_other_specs(change: dict[str, Any]) -> None:
    model, pixels = randomised(replace(SPECS["tiny"], **change)), hazy(300, 600)
    assert relative(dehazed(pixels, model), whole(model, pixels)) < 1e-5


def test_streaming_equals_the_whole_picture_with_normalized_weights() -> None:
    model = randomised(replace(SPECS["tiny"], mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)))
    pixels = hazy(300, 300)
    assert relative(dehazed(pixels, model), whole(model, pixels)) < 1e-5


CHUNKS = [(100, 170, 3), (700, 333, 1), ((1, 299, 400), (256, 44, 300, 400), (2, 1)), (256, 256, 3)]


@pytest.mark.parametrize("chunks", CHUNKS)
def test_dask_chunks_make_no_difference(tiny: DehazeXL, chunks: Any) -> None:
    pixels = hazy(700, 1000)
    assert relative(dehazed(da.from_array(pixels, chunks=chunks), tiny), whole(tiny, pixels)) < 1e-5


def to_zarr(pixels: np.ndarray, folder: Path) -> Any:
    array = zarr.create_array(folder / "a.zarr", shape=pixels.shape, chunks=(100, 300, 3), dtype=pixels.dtype)
    array[:] = pixels
    return array


def to_zarr_path(pixels: np.ndarray, folder: Path) -> Path:
    to_zarr(pixels, folder)
    return folder / "a.zarr"


def to_tiff_path(pixels: np.ndarray, folder: Path) -> str:
    tifffile.imwrite(folder / "a.tif", pixels, tile=(128, 128), photometric="rgb")
    return str(folder / "a.tif")


SOURCES: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "numpy": lambda pixels, _: pixels,
    "numpy, bands first": lambda pixels, _: pixels.transpose(2, 0, 1),
    "dask": lambda pixels, _: da.from_array(pixels, chunks=(90, 400, 3)),
    "zarr": to_zarr,
    "Path": to_zarr_path,
    "str": to_tiff_path,
    "Image": lambda pixels, _: open_image(pixels),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_is_dehazed_alike(tiny: DehazeXL, kind: str, tmp_path: Path) -> None:
    pixels = hazy(300, 500)
    out = dehazexl.dehaze(SOURCES[kind](pixels, tmp_path), tiny, overlap=0, value_range=(0, 1))
    assert isinstance(out, da.Array)
    assert out.shape == pixels.shape
    assert out.dtype == pixels.dtype
    assert relative(out.compute(), whole(tiny, pixels)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(dtype: torch.dtype) -> None:
    full, pixels = randomised("tiny"), hazy(300, 500)
    expected = whole(full, pixels)
    assert relative(dehazed(pixels, full.to(dtype)), expected) < 5e-2


# ---- Overlap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overlap", "size"), [(0, (300, 257)), (1, (300, 600)), (16, (520, 300)), (32, (700, 500))])
def test_overlap_equals_the_plain_way(tiny: DehazeXL, overlap: int, size: tuple[int, int]) -> None:
    pixels = hazy(*size)
    assert relative(dehazed(pixels, tiny, overlap=overlap), plainly(tiny, pixels, overlap)) < 1e-5


@pytest.mark.parametrize("size", [(513, 300), (384, 385), (5, 5)])
def test_the_largest_overlap_equals_the_plain_way(tiny: DehazeXL, size: tuple[int, int]) -> None:
    pixels = hazy(*size)
    assert relative(dehazed(pixels, tiny, overlap=128), plainly(tiny, pixels, 128)) < 1e-5


def test_windows_of_any_place_equal_the_whole(tiny: DehazeXL) -> None:
    clear = dehazexl.dehaze(hazy(400, 500), tiny, overlap=32, value_range=(0, 1))
    expected = clear.compute()
    for part in (np.s_[:], np.s_[0:1, 0:1], np.s_[220:230, 499:], np.s_[::7, 5:400:50], np.s_[399, 3], np.s_[3:3]):
        assert np.allclose(clear[part].compute(), expected[part], atol=1e-5)
    for part in (  # type: ignore[assignment]
        np.s_[..., 1],
        np.s_[100, :, ::2],
        np.s_[::-1],
        np.s_[[5, 2, 2]],
        np.s_[None, :3, 4],
        np.s_[-1, -1, -1],
    ):
        assert np.allclose(clear[part].compute(), expected[part], atol=1e-5)


def test_chunks_are_joined_without_a_seam(tiny: DehazeXL) -> None:
    pixels = np.tile(hazy(300, 300), (1, 8, 1))[:, :2200]
    clear = dehazexl.dehaze(pixels, tiny, overlap=32, value_range=(0, 1))
    assert clear.numblocks == (1, 2, 1)
    assert relative(clear.compute(), plainly(tiny, pixels, 32)) < 1e-5


# ---- Strength and values ----------------------------------------------------------------------------

DTYPES = ["uint8", "uint16", "float16", "float32", "float64"]


def in_dtype(pixels: np.ndarray, dtype: str) -> np.ndarray:
    """Turn [0, 1] into the values such pictures have."""
    scale = {"uint8": 255, "uint16": 10_000}.get(dtype, 3.7)
    return (np.rint(pixels * scale) if dtype.startswith("u") else pixels * scale - 0.5).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_no_strength_returns_the_input_exactly(tiny: DehazeXL, dtype: str, bands: int) -> None:
    pixels = in_dtype(hazy(100, 300, bands), dtype)
    assert np.array_equal(dehazexl.dehaze(pixels, tiny, strength=0).compute(), pixels)


def test_half_the_strength_is_the_mean(tiny: DehazeXL) -> None:
    pixels = hazy(300, 300)
    assert relative(dehazed(pixels, tiny, strength=0.5), (pixels + whole(tiny, pixels)) / 2) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_come_back_in_their_dtype(tiny: DehazeXL, dtype: str) -> None:
    pixels = in_dtype(hazy(300, 400), dtype)
    low, high = -0.5, 12_000.0 if dtype == "uint16" else 300.0 if dtype == "uint8" else 3.2
    out = dehazed(pixels, tiny, value_range=(low, high))
    assert out.dtype == pixels.dtype
    assert relative(out, pixels) > 0.1, "the network does nothing"
    scaled = (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    expected = plainly(tiny, np.clip(scaled, 0, 1)) * (high - low) + low
    if dtype.startswith("u"):
        expected = np.clip(np.rint(expected), 0, np.iinfo(dtype).max)
        assert np.abs(out - expected).max() <= 1
        assert (out != expected).mean() < 1e-2  # those that were next to a half
        assert {out.min(), out.max()} & {0, np.iinfo(dtype).max}  # this network makes values that must be clipped
    else:
        assert relative(out, expected) < (1e-3 if dtype == "float16" else 1e-5)
        assert out.min() < low or out.max() > high


def test_values_beyond_the_range_are_dehazed_by_the_same_rule(tiny: DehazeXL) -> None:
    # The network sees [0, 1]; what lies above keeps its detail, as the answer is affine in the pixels.
    pixels = hazy(200, 200) * 1.5 - 0.2
    x = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        gain, offset, _ = tiny.predict_affine(x.clamp(0, 1))
    assert relative(dehazed(pixels, tiny), interleaved((gain * x + offset)[0].numpy())) < 1e-5


def test_half_precision_pictures_stay_finite() -> None:
    model = randomised("tiny")
    pixels = (hazy(100, 100) * 60_000).astype(np.float16)
    out = dehazed(pixels, model, value_range=(0, 60_000))
    assert np.isfinite(out).all()
    assert np.abs(out).max() == np.finfo(np.float16).max


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_the_range_is_that_of_the_picture_unless_it_is_given(tiny: DehazeXL, dtype: str) -> None:
    pixels = in_dtype(hazy(300, 300), dtype)
    limits = value_range(open_image(pixels))
    assert limits == pytest.approx(tuple(np.percentile(pixels, (0.1, 99.9))))
    found = dehazexl.dehaze(pixels, tiny, overlap=0).compute()
    assert np.array_equal(found, dehazed(pixels, tiny, value_range=limits))
    assert not np.array_equal(found, dehazed(pixels, tiny, value_range=(limits[0], 2 * limits[1])))


def test_bytes_have_the_range_of_bytes(tiny: DehazeXL) -> None:
    pixels = in_dtype(hazy(200, 200), "uint8")
    assert np.array_equal(
        dehazexl.dehaze(pixels, tiny, overlap=0).compute(), dehazed(pixels, tiny, value_range=(0, 255))
    )


# ---- Bands ------------------------------------------------------------------------------------------


def test_gray_is_dehazed_as_three_equal_colors(tiny: DehazeXL) -> None:
    gray = hazy(200, 300, 1)
    expected = whole(tiny, np.repeat(gray, 3, axis=2)).mean(2, keepdims=True)
    assert relative(dehazed(gray, tiny), expected) < 1e-5
    flat = dehazed(gray[..., 0], tiny)
    assert flat.shape == (200, 300, 1)
    assert np.array_equal(flat, dehazed(gray, tiny))


def test_gray_keeps_its_alpha(tiny: DehazeXL) -> None:
    pixels = np.maximum(hazy(200, 300, 2), 0.01)  # where alpha is 0 is no data
    out = dehazed(pixels, tiny)
    assert relative(out[..., :1], dehazed(pixels[..., :1], tiny)) < 1e-5
    assert np.array_equal(out[..., 1], pixels[..., 1])


@pytest.mark.parametrize(
    ("bands", "rgb", "used"),
    [(4, None, [0, 1, 2]), (8, None, [0, 1, 2]), (8, [4, 3, 2], [3, 2, 1]), (5, ["band 5", 1, 3], [4, 0, 2])],
)
def test_further_bands_pass_through(tiny: DehazeXL, bands: int, rgb: Any, used: list[int]) -> None:
    pixels = hazy(200, 300, bands)
    out = dehazed(pixels, tiny, bands=rgb)
    assert relative(out[..., used], whole(tiny, pixels[..., used])) < 1e-5
    rest = [band for band in range(bands) if band not in used]
    assert np.array_equal(out[..., rest], pixels[..., rest])


@pytest.mark.parametrize("bands", [[2, 2, 1], [1, 2, 1], [3, 3, 3]])
def test_a_band_that_is_several_colors_gets_their_mean(tiny: DehazeXL, bands: list[int]) -> None:
    pixels = hazy(200, 300)
    used = [band - 1 for band in bands]
    answer = whole(tiny, pixels[..., used])
    out = dehazed(pixels, tiny, bands=bands)
    for band in range(3):
        seen = [i for i, own in enumerate(used) if own == band]
        expected = answer[..., seen].mean(2) if seen else pixels[..., band]
        assert relative(out[..., band], expected) < 1e-5


# ---- Pixels without data ----------------------------------------------------------------------------


def bits(pixels: np.ndarray) -> np.ndarray:
    return pixels.view(f"u{pixels.dtype.itemsize}")


def with_holes(height: int = 520, width: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture, and where it has data: not in a tile, some tokens, and scattered pixels."""
    valid = np.random.default_rng(0).random((height, width)) > 0.02
    valid[256:512, :256] = False
    valid[:100, 300:450] = False
    valid[500:, 450:] = False
    return hazy(height, width), valid


@pytest.mark.parametrize(("value", "overlap"), [(np.nan, 0), (np.nan, 32), (np.inf, 0), (-np.inf, 32)])
def test_pixels_that_are_no_numbers_stay_and_reach_no_one(tiny: DehazeXL, value: float, overlap: int) -> None:
    pixels, valid = with_holes()
    pixels[~valid, 1] = value
    out = dehazed(pixels, tiny, overlap=overlap)
    assert np.array_equal(bits(out[~valid]), bits(pixels[~valid]))
    assert np.isfinite(out[valid]).all()
    expected = plainly(tiny, pixels, overlap, valid)
    assert relative(out[valid], expected[valid]) < 1e-5
    assert relative(plainly(tiny, np.nan_to_num(pixels, posinf=0, neginf=0), overlap)[valid], expected[valid]) > 1e-3


@pytest.mark.parametrize("batch", [1, 3])  # of which the tokens fused at a time depend
def test_pixels_without_data_do_not_vote_on_the_airlight(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dehazexl.engine.memory.FUSE_SHARE", 1)
    model, (pixels, valid) = randomised(replace(SPECS["tiny"], airlight="picture")), with_holes()
    torch.nn.init.normal_(model.head.airlight.output.bias)
    filled = np.where(valid[..., None], pixels, np.nan)
    expected = plainly(model, filled, 32, valid)
    assert relative(dehazed(filled, model, overlap=32, batch=batch)[valid], expected[valid]) < 1e-5
    assert relative(plainly(model, pixels, 32)[valid], expected[valid]) > 1e-4


def test_pixels_without_data_stay_by_value(tiny: DehazeXL) -> None:
    pixels, valid = with_holes()
    pixels[~valid] = -9999
    image = replace(open_image(pixels), nodata=-9999.0)
    out = dehazed(image, tiny)
    assert np.array_equal(out[~valid], pixels[~valid])
    assert relative(out[valid], plainly(tiny, pixels, 0, valid)[valid]) < 1e-5


def test_pixels_without_data_stay_by_alpha(tiny: DehazeXL) -> None:
    pixels, valid = with_holes()
    four = np.concatenate([pixels, valid[..., None].astype(np.float32)], axis=2)
    out = dehazed(replace(open_image(four), alpha=3), tiny)
    assert np.array_equal(out[~valid], four[~valid])
    assert np.array_equal(out[..., 3], four[..., 3])
    assert relative(out[valid][:, :3], plainly(tiny, pixels, 0, valid)[valid]) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_a_picture_without_data_comes_back_as_it_is(tiny: DehazeXL, dtype: str) -> None:
    pixels = np.zeros((300, 300, 3), dtype)
    out = dehazexl.dehaze(replace(open_image(pixels), nodata=0.0), tiny).compute()
    assert np.array_equal(out, pixels)
    nothing = np.full((300, 300, 3), np.nan, np.float32)
    assert np.array_equal(bits(dehazexl.dehaze(nothing, tiny).compute()), bits(nothing))


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("uint8", 255), ("uint16", 0), ("uint16", 65535)])
def test_no_pixel_comes_to_lie_on_the_nodata_value(dtype: str, nodata: int) -> None:
    model = randomised("tiny")
    top = np.iinfo(dtype).max
    pixels = np.clip(hazy(200, 300) * top, 1, top - 1).astype(dtype)
    pixels[:50, :50] = nodata
    image: Image = replace(open_image(pixels), nodata=float(nodata))
    # With a wide range and the same in all bands, much of the answer is clipped to either end.
    plain = dehazed(pixels, model, value_range=(0.4 * top, 0.6 * top))
    assert (plain[50:] == nodata).all(-1).any()
    out = dehazed(image, model, value_range=(0.4 * top, 0.6 * top))
    empty = (out == nodata).all(-1)
    assert empty[:50, :50].all()
    assert empty.sum() == 2500


def test_float_pixels_leave_a_nodata_value_of_zero(tiny: DehazeXL) -> None:
    model = randomised(replace(SPECS["tiny"], head="gain"))
    torch.nn.init.zeros_(model.head.output.weight)
    with torch.no_grad():
        model.head.output.bias.copy_(torch.tensor([-1.0, -1, -1, 0, 0, 0]))  # out = 0
    image = replace(open_image(hazy(50, 50)), nodata=0.0)
    out = dehazed(image, model)
    assert not (out == 0).all(-1).any()
    assert np.abs(out).max() < 1e-30


# ---- Laziness ---------------------------------------------------------------------------------------


def test_nothing_is_decoded_until_asked_and_then_no_more_than_asked(tiny: DehazeXL) -> None:
    with counted(tiny.encoder, tiny.decoder) as tiles:
        clear = dehazexl.dehaze(hazy(1200, 1000), tiny, overlap=32, value_range=(0, 1))
        assert tiles == [6 * 5, 0]
        clear[0:100, 0:100].compute()
        assert tiles[1] == 1
        clear[600:700, 600:660].compute()  # rows 600..699 lie in tiles 2 and 3, columns 600..659 in 2
        assert tiles[1] == 1 + 2
        clear[5, 5].compute()
        assert tiles[1] == 1 + 2 + 1
        clear.compute()
        assert tiles == [6 * 5, 1 + 2 + 1 + 6 * 5]


def test_each_chunk_is_decoded_once_for_many_slices(tiny: DehazeXL) -> None:
    clear = dehazexl.dehaze(hazy(500, 500), tiny, overlap=0, value_range=(0, 1))
    with counted(tiny.decoder) as tiles:
        clear.rechunk((100, 100, 3)).compute()
    assert tiles == [4]


def test_the_picture_is_not_read_before_it_must(tiny: DehazeXL) -> None:
    read: list[object] = []

    def block(part: np.ndarray, block_info: Any = None) -> np.ndarray:
        read.append(block_info)
        return part

    source = da.map_blocks(
        block, da.from_array(hazy(300, 300), chunks=(300, 100, 3)), dtype=np.float32, meta=np.empty(0)
    )
    prepare(source, tiny, value_range=(0, 1))
    assert read == []
    dehazexl.dehaze(source, tiny, value_range=(0, 1))
    assert len(read) == 3


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_a_pickled_result_computes_the_same(tiny: DehazeXL, scheduler: str) -> None:
    clear = dehazexl.dehaze(hazy(300, 500), tiny, value_range=(0, 1))
    expected = clear.compute()
    copy = cloudpickle.loads(cloudpickle.dumps(clear))
    with dask.config.set(scheduler=scheduler):
        assert np.allclose(copy.compute(), expected, atol=1e-5)


def test_processes_compute_the_same(tmp_path: Path) -> None:
    model = randomised("tiny")
    tokens = tmp_path / "tokens"
    clear = dehazexl.dehaze(hazy(256, 300), model, value_range=(0, 1), tokens=tokens)
    expected = clear.compute()
    # num_workers=1: the tests are to be light.
    assert np.allclose(clear.compute(scheduler="processes", num_workers=1), expected, atol=1e-5)


# ---- Going on ---------------------------------------------------------------------------------------


def test_kept_tokens_are_not_encoded_again(tiny: DehazeXL, tmp_path: Path) -> None:
    pixels = hazy(300, 600)
    options: dict[str, Any] = {"overlap": 32, "value_range": (0, 1), "tokens": tmp_path / "tokens"}
    first = dehazexl.dehaze(pixels, tiny, **options).compute()
    with counted(tiny.encoder, tiny.context.layers[0]) as tiles:
        again = dehazexl.dehaze(pixels, tiny, **options)
    assert tiles == [0, 0]
    assert np.allclose(again.compute(), first, atol=1e-5)
    assert np.allclose(dehazed(pixels, tiny, overlap=32), first, atol=1e-5)


@pytest.mark.parametrize(("stop", "encoded", "kept"), [(5, 67, True), (64 + 2, 6, True), (64 + 2, 6, False)])
def test_encoding_goes_on_after_it_was_stopped(tmp_path: Path, stop: int, encoded: int, kept: bool) -> None:
    # 9 x 8 tiles are two blocks; the smallest network there is, as they are many.
    spec = replace(SPECS["tiny"], depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1), inputs=())
    model, pixels = randomised(spec), np.tile(hazy(256, 256), (9, 8, 1))
    job = prepare(pixels, model, 0, value_range=(0, 1), batch=1)
    assert job.grid.block == 8
    folder = tmp_path / "tokens" if kept else None
    store = open_tokens(job, folder)
    passing = encode(job, store)
    list(islice(passing, stop))
    passing.close()  # type: ignore[attr-defined]
    if folder:
        store = open_tokens(prepare(pixels, model, 0, value_range=(0, 1)), folder)
    with counted(model.encoder) as tiles:
        assert sum(encode(job, store)) == 72
    assert tiles == [encoded]
    for _ in fuse(job, store):
        pass
    x = torch.from_numpy(hazy(256, 256).transpose(2, 0, 1).copy())[None]
    with torch.inference_mode():
        expected = model.fuse(model.encode(x)[-1].tile(1, 9, 8, 1)).view(9, 8, 8, 8, -1).transpose(1, 2)
    assert relative(store.get_fused(job.grid.tiles), expected.reshape(9, 8, 64, -1)) < 1e-5


@pytest.mark.parametrize("kept", [True, False])
def test_fusing_goes_on_after_it_was_stopped(tiny: DehazeXL, tmp_path: Path, kept: bool) -> None:
    pixels = hazy(300, 600)
    job = prepare(pixels, tiny, 0, value_range=(0, 1))
    store = open_tokens(job, tmp_path / "tokens" if kept else None)
    sum(encode(job, store))
    passing = fuse(job, store)
    next(passing)
    passing.close()  # type: ignore[attr-defined]
    assert not store.fused()
    assert sum(encode(job, store)) == 6
    assert sum(fuse(job, store)) == 6 * len(tiny.context.layers)
    assert relative(decode_lazily(job, store).compute(), whole(tiny, pixels)) < 1e-5


def test_two_pictures_are_fused_in_turn_by_one_thread(tiny: DehazeXL) -> None:
    pictures = [hazy(300, 600), hazy(600, 300, seed=3)]
    jobs = [prepare(pixels, tiny, 0, value_range=(0, 1), batch=1) for pixels in pictures]
    stores = [open_tokens(job) for job in jobs]
    for job, store in zip(jobs, stores, strict=True):
        sum(encode(job, store))
    first, second = (fuse(job, store) for job, store in zip(jobs, stores, strict=True))
    next(first)
    assert not torch.is_inference_mode_enabled()
    next(second)
    sum(first)
    sum(second)
    for job, store, pixels in zip(jobs, stores, pictures, strict=True):
        assert relative(decode_lazily(job, store).compute(), whole(tiny, pixels)) < 1e-5


def test_passes_count_every_tile(tiny: DehazeXL) -> None:
    job = prepare(hazy(600, 700), tiny, 32, value_range=(0, 1), batch=4)
    store = open_tokens(job)
    tiles = job.grid.count
    assert sum(encode(job, store)) == tiles
    assert sum(fuse(job, store)) == tiles * len(tiny.context.layers)
    told: list[int] = []
    decode(job, store, Window(0, 600, 0, 700), told.append)
    assert sum(told) == tiles


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "picture": lambda o: o | {"source": o["source"] + 0.1},
    "weights": lambda o: o | {"model": randomised("tiny", 1)},
    "spec": lambda o: o | {"model": randomised(replace(SPECS["tiny"], inputs=("dark",)))},
    "precision": lambda o: o | {"model": randomised("tiny").to(torch.bfloat16)},
    "overlap": lambda o: o | {"overlap": 16},
    "value range": lambda o: o | {"value_range": (0, 2)},
    "bands": lambda o: o | {"bands": [3, 2, 1]},
}


@pytest.mark.parametrize("what", CHANGES)
def test_tokens_of_something_else_are_refused(tiny: DehazeXL, tmp_path: Path, what: str) -> None:
    options: dict[str, Any] = {
        "source": hazy(100, 100),
        "model": tiny,
        "value_range": (0, 1),
        "tokens": tmp_path / "tokens",
    }
    dehazexl.dehaze(**options)
    with pytest.raises(ValueError, match="another image, other weights or settings"):
        dehazexl.dehaze(**CHANGES[what](options))


def test_tokens_of_other_code_are_refused(tiny: DehazeXL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {
        "source": hazy(100, 100),
        "model": tiny,
        "value_range": (0, 1),
        "tokens": tmp_path / "tokens",
    }
    dehazexl.dehaze(**options)
    monkeypatch.setattr("dehazexl.engine.description.FORMAT", FORMAT + 1)
    with pytest.raises(ValueError, match="another version of dehazexl"):
        dehazexl.dehaze(**options)


@pytest.mark.parametrize("folder", ["picture.zarr", "picture.zarr/tokens", "."])
def test_tokens_stay_away_from_the_picture(tiny: DehazeXL, tmp_path: Path, folder: str) -> None:
    path = to_zarr_path(hazy(100, 100), tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="or around it: choose another folder"):
        dehazexl.dehaze(path, tiny, tokens=path.parent / folder.replace("picture.zarr", path.name))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("option", [{"batch": 7}, {"batch": np.int64(2)}, {"strength": 0.5}])
def test_tokens_serve_other_ways_of_decoding(tiny: DehazeXL, tmp_path: Path, option: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        "source": hazy(100, 100),
        "model": tiny,
        "value_range": (0, 1),
        "tokens": tmp_path / "tokens",
    }
    dehazexl.dehaze(**options)
    with counted(tiny.encoder) as tiles:
        dehazexl.dehaze(**options, **option)
    assert tiles == [0]


# ---- Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"overlap": -1}, "overlap must be between 0 and 128 pixels, not -1"),
        ({"overlap": 129}, "overlap must be between 0 and 128 pixels, not 129"),
        ({"overlap": 300}, "not 300"),
        ({"strength": 2}, "strength must be between 0 and 1, not 2"),
        ({"strength": -0.1}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"batch": 0}, "batch must be 'auto' or at least 1 tile, not 0"),
        ({"value_range": (1, 0)}, "value range must be two rising numbers"),
        ({"value_range": (1, 1)}, "value range"),
        ({"value_range": (0, float("nan"))}, "value range"),
        ({"value_range": (0, float("inf"))}, "value range"),
        ({"value_range": (0, 1, 2)}, "value range"),
        ({"value_range": 5}, "value range must be two rising numbers"),
        ({"batch": np.int64(0)}, "batch must be"),
        ({"bands": [1, 2, 4]}, "bands has 4, which this image does not have"),
        ({"bands": [0, 1, 2]}, "bands has 0"),
        ({"bands": ["nir", 1, 2]}, "bands has 'nir'"),
        ({"bands": [1, 2]}, "must list three bands"),
    ],
)
def test_arguments_out_of_range(tiny: DehazeXL, option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dehazexl.dehaze(hazy(50, 50), tiny, **option)


@pytest.mark.parametrize("source", [5, None, b"picture"])
def test_what_is_no_picture(tiny: DehazeXL, source: Any) -> None:
    with pytest.raises(TypeError, match="cannot open"):
        dehazexl.dehaze(source, tiny)


def test_weights_by_name_or_path(tiny: DehazeXL, tmp_path: Path) -> None:
    from dehazexl.model.weights import save_model

    pixels, path = hazy(50, 50), save_model(tiny, tmp_path / "tiny.safetensors")
    expected = dehazed(pixels, dehazexl.load_model(path))
    assert np.array_equal(dehazed(pixels, path), expected)
    assert np.array_equal(dehazed(pixels, str(path)), expected)
    assert dehazexl.dehaze(pixels, "compact").shape == pixels.shape
    with pytest.raises(FileNotFoundError):
        dehazexl.dehaze(pixels, "compat")
    with pytest.raises(TypeError, match="name or path of weights, not 5"):
        dehazexl.dehaze(pixels, 5)  # type: ignore[arg-type]


def test_a_file_that_is_not_there(tiny: DehazeXL, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        dehazexl.dehaze(tmp_path / "no.tif", tiny)


def test_sixteen_bits_are_dehazed_as_eight(tiny: DehazeXL) -> None:
    # A veil lifts all values far from 0; the range of the deep picture must not hide that from the network.
    hazy = np.clip(interleaved(picture(300, 280)) * 0.3 + 0.55, 0, 1)
    shallow = (hazy * 255).round().astype(np.uint8)
    shallow[:16, :16], shallow[-16:, -16:] = 0, 255
    deep = shallow.astype(np.uint16) * 257
    eight = np.asarray(dehazexl.dehaze(shallow, tiny)).astype(float) / 255
    sixteen = np.asarray(dehazexl.dehaze(deep, tiny)).astype(float) / 65535
    assert relative(sixteen, eight) < 0.01


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("uint16", 65535), ("float32", -9999.0)])
def test_nodata_of_each_band_is_kept_and_none_is_made(tiny: DehazeXL, dtype: str, nodata: float) -> None:
    pixels = interleaved(picture(300, 280))
    top = 1 if dtype == "float32" else np.iinfo(dtype).max
    pixels = (pixels * top).astype(dtype)
    pixels[pixels == nodata] = 9
    marked = np.zeros(pixels.shape, bool)
    marked[20:30, 40:90, 0] = marked[50:60, 40:90, 2] = marked[100:150, 100:150] = True
    pixels[marked] = nodata
    image = replace(open_image(pixels), nodata=nodata)
    out = np.asarray(dehazexl.dehaze(image, tiny, value_range=(0, top)))
    np.testing.assert_array_equal(out == nodata, marked)
