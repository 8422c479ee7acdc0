"""Attribution: equal to the gradient of the whole image at once, complete, resumable, nothing without data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
from reference import interleaved, picture, randomised, relative
from scipy.ndimage import gaussian_filter

import dehazexl
from dehazexl.engine.dehaze import prepare
from dehazexl.engine.explain.attribution import Attribution, Explanation, explain, order, prepare_float32
from dehazexl.engine.explain.baselines import of_array
from dehazexl.engine.explain.detectors import DETECTORS
from dehazexl.engine.explain.response import add_reflected
from dehazexl.image.grid import Window, reflect
from dehazexl.image.value_scale import to_dtype
from dehazexl.model import SPECS, DehazeXL

OFFICIAL = replace(
    SPECS["official"],
    widths=(8, 16, 32, 64),
    depths=(1, 1, 2, 1),
    heads=(1, 2, 4, 8),
    context_heads=2,
    decoder_depths=(1, 1, 1, 1),
    decoder_heads=(8, 4, 2, 1),
)
"""The official architecture, made tiny: every token is a key, the head computes each pixel, and nothing votes."""
COMPACT = replace(SPECS["tiny"], prior=True, guided=True, local=3, airlight="picture")
GAIN = replace(SPECS["tiny"], head="gain", inputs=(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
FIELD = replace(SPECS["tiny-field"], scale=1)


def autograd(model: DehazeXL, x: np.ndarray, b: np.ndarray, window: Window, detector: str, steps: int) -> np.ndarray:
    """Attribute the window to the pixels ``(y, x)`` of a whole image ``(y, x, 3)`` at once, on a straight path."""
    start, end = (torch.from_numpy(each.transpose(2, 0, 1).copy())[None] for each in (b, x))
    valid = torch.ones(window.height, window.width, dtype=torch.bool)
    total = torch.zeros(x.shape[:2])
    for step in range(steps):
        point = (start + (step + 0.5) / steps * (end - start)).requires_grad_()
        gain, bias, _ = model.predict_affine(point.clamp(0, 1))
        output = (gain * point + bias)[0, :, window.y0 : window.y1, window.x0 : window.x1]
        (slope,) = torch.autograd.grad(DETECTORS[detector](output.double(), valid), point)
        total += (slope * (end - start)).sum(1)[0] / steps
    return total.numpy()


def explained(source: Any, model: DehazeXL, window: tuple[int, int, int, int], **options: Any) -> Explanation:
    options = {"overlap": 0, "value_range": (0, 1), "with_curves": False, **options}
    return explain(source, window, model, **options)


# ---- Equality with the whole image at once -----------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("spec", [OFFICIAL, COMPACT, GAIN, FIELD], ids=["official", "compact", "gain", "field"])
def test_attribution_equals_that_of_the_whole_image_at_once(spec: Any, batch: int) -> None:
    model, x = randomised(spec), interleaved(picture(300, 520))
    window = Window(200, 290, 240, 270)  # in four tiles
    found = explained(x, model, (200, 290, 240, 270), baseline="black", steps=2, batch=batch)
    expected = autograd(model, x, np.zeros_like(x), window, "sum", 2)
    assert relative(found.attribution, expected) < 1e-4
    # Tiles that the window does not touch count through the context alone.
    assert np.abs(expected[:, 512:]).max() > 0


def test_attribution_of_a_network_that_sees_half_the_resolution() -> None:
    model, x = randomised("tiny-field"), interleaved(picture(530, 600))
    assert model.spec.scale == 2
    window = Window(490, 525, 480, 550)  # in four tiles of 512 pixels
    found = explained(x, model, (490, 525, 480, 550), baseline="black", steps=2)
    expected = autograd(model, x, np.zeros_like(x), window, "sum", 2)
    assert relative(found.attribution, expected) < 1e-4
    assert found.tiles.shape == (2, 2) and found.tokens.shape == (9, 10)
    assert found.tokens.sum() == pytest.approx(expected.sum(), rel=1e-3)


@pytest.mark.parametrize("detector", DETECTORS)
def test_each_detector_is_attributed(detector: str) -> None:
    model, x = randomised(COMPACT), interleaved(picture(260, 300))
    b = interleaved(picture(260, 300, seed=5))
    window = Window(100, 130, 230, 280)
    job = prepare_float32(x, model, 0, (0, 1))
    found = Attribution(job, window, detector, "black", 2, with_curves=False)
    found._baseline = of_array(job, b)
    for stage in found.stages():
        for _ in stage.steps:
            pass
    assert relative(found.attribution(), autograd(model, x, b, window, detector, 2)) < 1e-4


def test_a_smoothed_path_is_that_of_the_whole_image_at_once() -> None:
    # Without minima of neighborhoods: rounding decides which of two nearly equal pixels of a smooth image is the least.
    model, x = randomised(GAIN), interleaved(picture(300, 520))
    window, b = Window(200, 290, 240, 270), np.zeros_like(x)
    found = explained(x, model, (200, 290, 240, 270), baseline="black", steps=4, fold=2, sigma=8)
    between = b + gaussian_filter(x - b, 4, truncate=3, mode="mirror", axes=(0, 1)) / 2
    pieces = [autograd(model, end, start, window, "sum", 2) for start, end in ((b, between), (between, x))]
    assert relative(found.attribution, sum(pieces)) < 1e-4
    straight = explained(x, model, (200, 290, 240, 270), baseline="black", steps=4)
    assert relative(found.attribution, straight.attribution) > 0.01


def test_a_pixel_beyond_the_image_gives_its_gradient_to_its_reflection() -> None:
    values = np.random.default_rng(0).random((9, 30)).astype(np.float32)
    window, total = Window(-3, 6, -4, 26), np.zeros((5, 12), np.float32)
    expected = np.zeros_like(total)
    rows, cols = reflect(np.arange(-3, 6), 5), reflect(np.arange(-4, 26), 12)
    np.add.at(expected, (rows[:, None], cols), values)
    add_reflected(values, window, total)
    assert relative(total, expected) < 1e-6


# ---- Completeness ------------------------------------------------------------------------------------


def incomplete(found: Explanation) -> float:
    return float(abs(found.numbers["completeness"] - 1))


@pytest.mark.parametrize(("spec", "overlap"), [(OFFICIAL, 0), (COMPACT, 32), (FIELD, 0)])
def test_attributions_sum_to_the_difference_of_the_responses(spec: Any, overlap: int) -> None:
    torch.manual_seed(0)
    model, x = DehazeXL(spec).eval(), interleaved(picture(270, 300))
    found = [
        explained(x, model, (150, 250, 180, 280), baseline="blur", sigma=8, steps=steps, overlap=overlap)
        for steps in (2, 12)
    ]
    assert incomplete(found[1]) < 0.01
    assert incomplete(found[1]) < incomplete(found[0]) or incomplete(found[0]) < 1e-4
    assert found[1].numbers["sum"] == pytest.approx(found[1].tiles.sum())
    assert found[1].numbers["sum"] == pytest.approx(found[1].tokens.sum())


@pytest.mark.parametrize(("baseline", "steps", "fold"), [("black", 12, 6), ("blur", 48, 12)])
def test_a_smoothed_path_has_the_same_sum(baseline: str, steps: int, fold: int) -> None:
    torch.manual_seed(0)
    model, x = DehazeXL(COMPACT).eval(), interleaved(picture(200, 300))
    x[30:60, 40:50] = np.nan
    window = (100, 160, 180, 240)
    options: dict[str, Any] = {"baseline": baseline, "sigma": 8, "overlap": 32}
    straight = explained(x, model, window, steps=2, **options)
    smoothed = explained(x, model, window, steps=steps, fold=fold, **options)
    assert smoothed.numbers["difference"] == straight.numbers["difference"]
    assert incomplete(smoothed) < 0.01
    assert smoothed.numbers["error"] < 0.01


def test_where_attributions_cancel_the_completeness_is_not_given() -> None:
    model = DehazeXL(OFFICIAL).eval()
    torch.nn.init.zeros_(model.head.output.weight)  # the output is the input
    x = interleaved(picture(100, 90))
    job = prepare_float32(x, model, 0, (0, 1))
    work = Attribution(job, Window(20, 60, 10, 80), baseline="black", steps=2)
    flipped = x.copy()
    flipped[20:60] = x[20:60][::-1]  # as bright as the image in the window
    work._baseline = of_array(job, flipped)
    found = finish(work)
    assert math.isnan(found.numbers["completeness"]) and "hardly differ" in found.numbers["note"]
    assert found.numbers["absolute_sum"] > 1 and found.numbers["error"] < 1e-4
    assert found.to_dict()["completeness"] is None
    work = Attribution(job, Window(20, 60, 10, 80), baseline="black", steps=2)
    assert finish(work).numbers["completeness"] == pytest.approx(1)
    assert not work.result().numbers["note"]


def test_the_default_baseline_is_the_dehazed_image() -> None:
    model, x = randomised(COMPACT), interleaved(picture(200, 210))
    found = explained(x, model, (50, 60, 70, 90), steps=2)
    once = dehazexl.dehaze(x, model, 0, value_range=(0, 1)).compute()
    twice = dehazexl.dehaze(once, model, 0, value_range=(0, 1)).compute()
    assert found.numbers["response_to_image"] == pytest.approx(once[50:60, 70:90].sum(dtype=float), rel=1e-5)
    assert found.numbers["response_to_baseline"] == pytest.approx(twice[50:60, 70:90].sum(dtype=float), rel=1e-5)


def test_a_file_is_the_baseline(tmp_path: Path) -> None:
    x, b = (to_dtype(255 * interleaved(picture(70, 80, seed)), np.dtype(np.uint8)) for seed in (0, 1))
    dehazexl.to_tiff(b, tmp_path / "clear.tif")
    model = randomised(GAIN)
    found = explained(x, model, (5, 60, 7, 70), baseline=tmp_path / "clear.tif", steps=2, value_range=(0, 255))
    expected = autograd(model, x / np.float32(255), b / np.float32(255), Window(5, 60, 7, 70), "sum", 2)
    assert relative(found.attribution, expected) < 1e-4


# ---- Where attribution lies --------------------------------------------------------------------------


def test_a_network_without_context_uses_its_own_tile_alone() -> None:
    model, x = randomised("tiny"), interleaved(picture(300, 600))
    for layer in model.context:
        torch.nn.init.zeros_(layer.attn.proj.weight)
    found = explained(x, model, (20, 40, 300, 330), baseline="black", steps=2)
    halo = model.spec.halo
    elsewhere = found.attribution.copy()
    elsewhere[: 256 + halo, 256 - halo : 512 + halo] = 0
    assert not elsewhere.any()
    assert np.abs(found.attribution[:256, 256:512]).max() > 0
    assert found.numbers["radius_90"] < 260
    assert found.numbers["global_share"] < 0.2


def test_pixels_without_data_get_none_and_the_rest_sums_up() -> None:
    torch.manual_seed(0)
    model, x = DehazeXL(COMPACT).eval(), interleaved(picture(200, 600))
    x[:, 250:] = np.nan  # a whole tile, and the margin of another
    x[30:60, 40:50] = np.nan
    found = explained(x, model, (20, 100, 30, 120), baseline="black", steps=6)
    assert not found.attribution[~np.isfinite(x).all(2)].any()
    assert np.isfinite(found.attribution).all() and found.attribution.any()
    assert incomplete(found) < 0.01


@pytest.mark.parametrize("spec", [COMPACT, FIELD], ids=["compact", "field"])
def test_the_response_is_that_of_the_streamed_passes_where_tiles_have_no_data(spec: Any) -> None:
    model, x = randomised(spec), interleaved(picture(200, 600))
    x[:, 250:] = np.nan
    clear = dehazexl.dehaze(x, model, 0, value_range=(0, 1)).compute()[20:100, 180:280]
    work = Attribution(prepare_float32(x, model, 0, (0, 1)), Window(20, 100, 180, 280), baseline="black", steps=2)
    stage = next(work.stages())
    assert stage.name == "ends" and sum(stage.steps) == stage.total
    assert work._state["ends"][1] == pytest.approx(np.nansum(clear.astype(float)), rel=1e-6)


def test_exchanging_the_tile_that_counts_exchanges_the_response() -> None:
    model, x = randomised("tiny"), interleaved(picture(300, 600))
    for layer in model.context:
        torch.nn.init.zeros_(layer.attn.proj.weight)
    found = explained(x, model, (20, 40, 300, 330), baseline="black", steps=2, with_curves=True)
    for name, first in (("deletion", 1.0), ("insertion", 0.0)):
        curve = found.curves[name]
        assert curve.shares == pytest.approx([count / 6 for count in range(7)])
        assert curve.ordered == pytest.approx([first, *6 * [1 - first]])
        assert all(set(np.round(values, 6)) == {0, 1} for values in curve.random)
        assert len(curve.random_areas) == 10 and len(set(curve.random_areas)) > 1
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["deletion"]["area"] == pytest.approx(1 / 12)
    assert plain["insertion"]["area"] == pytest.approx(11 / 12)


# ---- Stopping and going on ---------------------------------------------------------------------------


def finish(work: Attribution) -> Explanation:
    for stage in work.stages():
        for _ in stage.steps:
            pass
    return work.result()


def make(folder: Path | None = None) -> Attribution:
    job = prepare_float32(interleaved(picture(200, 300)), randomised(COMPACT), 0, (0, 1), batch=1)
    return Attribution(job, Window(20, 60, 240, 280), "sum", "dehazed", 5, with_curves=False, folder=folder)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.75])
def test_work_goes_on_at_the_point_of_the_path_where_it_was_left(tmp_path: Path, part: float) -> None:
    work = make(tmp_path)
    for stage in work.stages():
        done = 0
        for step in stage.steps:
            done += step
            if stage.name == "path" and done >= part * stage.total:
                break
    again = make(tmp_path)
    assert again.done == work.done < 5
    stages = []
    for stage in again.stages():
        stages.append(stage.name)
        assert sum(stage.steps) == stage.total
    assert stages == ["path"]
    found, expected = again.result(), finish(make())
    assert np.array_equal(found.attribution, expected.attribution)
    assert found.numbers == expected.numbers


def test_a_full_disk_is_told_and_what_is_done_is_kept(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    work = make(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="make room"):
            finish(work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    assert finish(make(tmp_path)).attribution.any()


def test_a_map_is_an_estimate_before_it_is_complete() -> None:
    work = make()
    for stage in work.stages():
        for _ in stage.steps:
            if work.done == 2:
                break
    assert work.done == 2
    assert relative(work.attribution(), finish(make()).attribution) < 0.5


@pytest.mark.parametrize("steps", [2, 3, 10, 100, 64])
def test_each_point_of_a_path_is_visited_once_and_any_part_is_even(steps: int) -> None:
    points = order(steps)
    assert sorted(points) == list(range(steps))
    for count in range(1, steps):
        assert abs(np.mean([(point + 0.5) / steps for point in points[:count]]) - 0.5) <= 0.3


# ---- Bad requests ------------------------------------------------------------------------------------

BAD: list[tuple[tuple[int, int, int, int], dict[str, Any], str]] = [
    ((0, 300, 0, 10), {}, "does not lie in the image"),
    ((0, 10, 0, 10), {}, "holds no data"),
    ((20, 30, 20, 30), {"steps": 1}, "at least 2"),
    ((20, 30, 20, 30), {"detector": "median"}, "sum, mean-variance, gradient"),
    ((20, 21, 20, 30), {"detector": "gradient"}, "2 x 2"),
    ((20, 30, 20, 30), {"baseline": "blur", "sigma": 0}, "above 0"),
    ((20, 30, 20, 30), {"sigma": float("nan")}, "above 0"),
    ((20, 30, 20, 30), {"sigma": 1e6}, "at most 512 pixels"),
    ((20, 30, 20, 30), {"steps": 10**9}, "at most 100000"),
    ((20, 30, 20, 30), {"steps": 10, "fold": 4}, "divide the 10 steps"),
    ((20, 30, 20, 30), {"fold": 0}, "at least 1"),
]


@pytest.mark.parametrize(("window", "options", "message"), BAD)
def test_bad_requests_are_refused(model: DehazeXL, window: Any, options: Any, message: str) -> None:
    pixels = interleaved(picture(100, 100))
    pixels[:10, :10] = np.nan
    with pytest.raises(ValueError, match=message):
        explained(pixels, model, window, **options)


def test_baselines_of_another_size_or_type_are_refused(model: DehazeXL, tmp_path: Path) -> None:
    pixels = interleaved(picture(100, 100))
    dehazexl.to_tiff(pixels[:90], tmp_path / "small.tif")
    dehazexl.to_tiff((255 * pixels).astype(np.uint8), tmp_path / "bytes.tif")
    with pytest.raises(ValueError, match="100 x 90 pixels, the image 100 x 100"):
        explained(pixels, model, (0, 9, 0, 9), baseline=tmp_path / "small.tif")
    with pytest.raises(ValueError, match="uint8, the image float32"):
        explained(pixels, model, (0, 9, 0, 9), baseline=tmp_path / "bytes.tif")
    with pytest.raises(FileNotFoundError):
        explained(pixels, model, (0, 9, 0, 9), baseline="nowhere.tif")


def test_a_window_too_large_for_memory_is_refused(model: DehazeXL) -> None:
    image = da.zeros((8192, 8192, 3), chunks=2048, dtype=np.uint8)
    with pytest.raises(ValueError, match="at most 4096 x 4096"):
        explained(image, model, (0, 4097, 0, 4096))


def test_an_image_too_large_for_memory_is_refused(model: DehazeXL) -> None:
    image = da.zeros((400_000, 400_000, 3), chunks=8192, dtype=np.uint8)  # 640 GB a map
    job = prepare(image, model, 0, value_range=(0, 255))
    with pytest.raises(
        ValueError, match=r"GB of memory at least, and there are \d+ GB: explain a smaller window, or cut"
    ):
        Attribution(job, Window(0, 64, 0, 64))
