"""Maps of the haze: those of the whole image at once, whatever is decoded first; lazy, decoded once with the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from dask.base import compute
from reference import interleaved, picture, randomised, relative

import dehazexl
from dehazexl.engine.decode import decode
from dehazexl.engine.dehaze import open_tokens, prepare
from dehazexl.engine.job import Job
from dehazexl.engine.maps import MAPS, decode_maps, maps_of
from dehazexl.engine.run import stages
from dehazexl.engine.tokens import TokenStore
from dehazexl.image.grid import Window
from dehazexl.model import SPECS, DehazeXL
from dehazexl.model.haze import FLOOR

COMPACT = replace(SPECS["tiny"], prior=True, guided=True, local=3, airlight="picture")
GAIN = replace(SPECS["tiny"], head="gain", inputs=())
HEIGHT, WIDTH = 300, 520


def fused(source: Any, model: DehazeXL, **options: Any) -> tuple[Job, TokenStore]:
    job = prepare(source, model, **{"overlap": 0, "value_range": (0, 1), **options})
    store = open_tokens(job)
    for stage in stages(job, store):
        for _ in stage.steps:
            pass
    return job, store


def whole(height: int = HEIGHT, width: int = WIDTH) -> Window:
    return Window(0, height, 0, width)


@pytest.mark.parametrize("spec", [COMPACT, SPECS["tiny-field"]], ids=["compact", "field"])
def test_maps_are_those_of_the_whole_image_at_once(spec: Any) -> None:
    model, x = randomised(spec), interleaved(picture(HEIGHT, WIDTH))
    pixels, maps = decode_maps(*fused(x, model), whole())
    with torch.inference_mode():
        gain, bias, haze = model.predict_affine(torch.from_numpy(x).permute(2, 0, 1)[None])[:3]
    if haze is None:
        transmission = 1 / gain
    else:
        transmission = torch.exp(-haze.exponents * haze.thickness.clamp(max=3)).clamp(min=FLOOR)
    t = transmission[0].permute(1, 2, 0).numpy()
    assert relative(maps["transmission"], t) < 1e-5
    assert relative(maps["removed"][..., 0], 100 * (1 - t.mean(-1))) < 1e-5
    assert t.min() > 0 and t.max() <= 1 and t.std() > 1e-3
    # The scattering model solved for the scene, of which gain and bias are an equivalent.
    sure = (gain - 1).abs()[0].permute(1, 2, 0).numpy() > 0.05
    airlight = (bias / (1 - gain))[0].permute(1, 2, 0).numpy()
    assert sure.mean() > 0.2 and np.abs(maps["airlight"] - airlight)[sure].max() < 1e-3
    assert relative(pixels, (gain * torch.from_numpy(x).permute(2, 0, 1) + bias)[0].permute(1, 2, 0).numpy()) < 1e-5


@pytest.mark.parametrize("overlap", [0, 32])
def test_windows_have_the_maps_of_the_whole_whatever_was_decoded_before(overlap: int) -> None:
    model, x = randomised(COMPACT), interleaved(picture(HEIGHT, WIDTH))
    job, store = fused(x, model, overlap=overlap)
    pixels, maps = decode_maps(replace(job, keep=0), store, whole())
    plain = decode(job, store, Window(0, 200, 0, 300))  # keeps parts of tiles without maps
    assert np.array_equal(plain, pixels[:200, :300])
    for window in (Window(0, HEIGHT, 300, WIDTH), Window(200, HEIGHT, 0, 300), Window(0, 200, 0, 300)):
        inside = window.to_slices(whole())
        part, found = decode_maps(job, store, window)
        assert np.array_equal(part, pixels[inside])
        assert all(np.array_equal(found[name], maps[name][inside]) for name in MAPS)
    assert np.array_equal(decode(job, store, whole()), pixels)


def test_values_are_those_of_the_image_and_the_strength_counts() -> None:
    model, x = randomised(COMPACT), interleaved(picture(HEIGHT, WIDTH))
    x[:20] = np.nan
    x[250:, 400:, 1] = np.nan
    _, unit = decode_maps(*fused(x, model), whole())
    counts = np.where(np.isfinite(x), 1000 + 3000 * x, np.nan).astype(np.float32)
    _, maps = decode_maps(*fused(counts, model, value_range=(1000, 4000), strength=0.5), whole())
    assert relative(maps["airlight"][20:250], 1000 + 3000 * unit["airlight"][20:250]) < 1e-4
    assert relative(maps["removed"][20:250], 50 * (1 - unit["transmission"][20:250].mean(-1, keepdims=True))) < 1e-4
    assert relative(maps["transmission"][20:250], unit["transmission"][20:250]) < 1e-4
    valid = np.isfinite(x).all(-1)
    assert all((np.isfinite(values) == valid[..., None]).all() for values in maps.values())


def test_a_gray_image_has_maps_of_one_band() -> None:
    model, x = randomised(COMPACT), interleaved(picture(200, 210))[..., :1]
    _, maps = decode_maps(*fused(x, model), whole(200, 210))
    _, three = decode_maps(*fused(np.repeat(x, 3, 2), model), whole(200, 210))
    assert maps["transmission"].shape == maps["airlight"].shape == maps["removed"].shape == (200, 210, 1)
    assert relative(maps["transmission"][..., 0], three["transmission"].mean(-1)) < 1e-5


def test_lazy_maps_are_decoded_once_together_with_the_image() -> None:
    model, x = randomised(COMPACT), interleaved(picture(HEIGHT, WIDTH))
    region = (40, 290, 30, 500)
    tiles: list[int] = []
    model.head.register_forward_hook(lambda module, inputs, output: tiles.append(len(inputs[0])))
    names = ["removed", "transmission"]
    clear, maps = dehazexl.dehaze_with_maps(x, names, model, 0, value_range=(0, 1), region=region)
    assert not tiles and list(maps) == names
    assert clear.shape == (250, 470, 3) and maps["removed"].shape == (250, 470, 1)
    found, removed, transmission = compute(clear, maps["removed"], maps["transmission"])
    assert sum(tiles) == 4
    pixels, expected = decode_maps(*fused(x, model), Window(*region))
    assert np.array_equal(found, pixels) and np.array_equal(removed, expected["removed"])
    assert np.array_equal(transmission, expected["transmission"])
    assert np.array_equal(maps["removed"][100:120, 5:9].compute(), expected["removed"][100:120, 5:9])


def test_a_network_whose_airlight_differs_from_pixel_to_pixel_gives_the_other_maps() -> None:
    model, x = randomised("tiny"), interleaved(picture(200, 210))
    assert maps_of(model) == ("transmission", "removed")
    _, maps = decode_maps(*fused(x, model), whole(200, 210), maps_of(model))
    with torch.inference_mode():
        gain = model.predict_affine(torch.from_numpy(x).permute(2, 0, 1)[None]).gain
    assert relative(maps["transmission"], (1 / gain)[0].permute(1, 2, 0).numpy()) < 1e-5


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (GAIN, "the head 'gain' of these weights gives no maps"),
        (SPECS["tiny"], "transmission, removed, not airlight"),
    ],
)
def test_a_head_without_a_map_says_so(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dehazexl.dehaze_with_maps(interleaved(picture(70)), ["airlight"], randomised(spec))


def test_an_unknown_map_is_named(tiny: DehazeXL) -> None:
    with pytest.raises(ValueError, match="unknown map 'depth': choose among transmission, airlight, removed"):
        dehazexl.dehaze_with_maps(interleaved(picture(70)), ["depth"], tiny)
