"""The head ``field``: one field of haze over the whole image, and its removal."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import dehazexl
from dehazexl.engine.dehaze import open_tokens, prepare
from dehazexl.engine.run import stages
from dehazexl.image.grid import Window
from dehazexl.model import SPECS, DehazeXL
from dehazexl.model import haze as h
from dehazexl.model.heads import field as f
from dehazexl.synthesis.srgb import from_linear, to_linear

TINY = SPECS["tiny-field"]


def randomized(spec=TINY, seed: int = 0) -> DehazeXL:
    torch.manual_seed(seed)
    model = DehazeXL(spec)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model.requires_grad_(False).eval()


def uneven(height: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    light = np.linspace(0.2, 1, height)[:, None, None] * np.linspace(1, 0.6, width)[None, :, None]
    return (random.random((height, width, 3)) * light).astype(np.float32)


def whole(model: DehazeXL, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


def even_haze(thickness: torch.Tensor, airlight: float) -> h.Haze:
    return h.Haze(thickness, torch.full((1, 3, 1, 1), airlight), torch.ones(1, 3, 1, 1), torch.ones(1, 1, 1, 1))


# ---- The scattering model ------------------------------------------------------------------------------


@pytest.mark.parametrize("tone", [0.0, 0.3, 1.0])
def test_removal_is_the_inverse_of_the_scattering_model(tone: float) -> None:
    torch.manual_seed(0)
    clear = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    airlight = torch.tensor([0.9, 0.85, 0.8], dtype=torch.float64).view(1, 3, 1, 1).expand(2, -1, -1, -1)
    exponents = torch.tensor([0.8, 1.0, 1.3], dtype=torch.float64).view(1, 3, 1, 1).expand(2, -1, -1, -1)
    light = torch.full((2, 1, 1, 1), tone, dtype=torch.float64)
    haze = h.Haze(2 * torch.rand(2, 1, 40, 40, dtype=torch.float64), airlight, exponents, light)
    t = torch.exp(-exponents * haze.thickness)
    hazy = h.from_light(h.to_light(clear, light) * t + h.to_light(airlight, light) * (1 - t), light)
    gain, bias = haze.removal(hazy)
    assert torch.allclose(gain * hazy + bias, clear, atol=3e-5)  # next to the airlight the tangent serves


def test_without_haze_pixels_stay() -> None:
    x = torch.rand(1, 3, 16, 16)
    haze = even_haze(torch.zeros(1, 1, 16, 16), 0.9)
    gain, bias = haze.removal(x)
    assert torch.allclose(gain * x + bias, x, atol=1e-5)


def test_pixels_as_bright_as_the_air_have_a_finite_gain() -> None:
    x = torch.full((1, 3, 1, 3), 0.7) + torch.tensor([0.0, 1e-4, 2e-3])
    haze = even_haze(torch.ones(1, 1, 1, 3), 0.7)
    gain, _ = haze.removal(x)
    assert torch.allclose(gain, torch.tensor(math.e), rtol=0.01)


def test_light_is_srgbs_for_values_above_its_linear_part() -> None:
    x = torch.linspace(0.05, 1, 50).view(1, 1, 1, -1)
    tone = torch.ones(1, 1, 1, 1)
    assert torch.allclose(h.to_light(x, tone), to_linear(x), atol=1e-6)
    assert torch.allclose(h.from_light(to_linear(x), tone), x, atol=1e-5)
    assert torch.allclose(from_linear(to_linear(x)), x, atol=1e-6)


@pytest.mark.parametrize("tone", [0.0, 0.5, 1.0])
def test_values_below_black_come_back(tone: float) -> None:
    x = torch.linspace(-0.2, 1.3, 60, dtype=torch.float64).view(1, 1, 1, -1)
    light = torch.full((1, 1, 1, 1), tone, dtype=torch.float64)
    y = h.to_light(x, light)
    assert (y.diff() > 0).all()
    assert torch.allclose(h.from_light(y, light), x, atol=1e-9)


# ---- One field over all tiles --------------------------------------------------------------------------


def test_windows_hold_what_lies_around_a_tile() -> None:
    cells = torch.rand(2, 32, 48)
    around = torch.nn.functional.pad(cells[None], (1, 1, 1, 1), mode="replicate")[0]
    own = f.windows(cells)
    for row in range(2):
        for col in range(3):
            tile = own[:, 8 * row : 8 * row + 8, 8 * col : 8 * col + 8]
            assert torch.equal(f.join(tile), around[:, 16 * row : 16 * row + 18, 16 * col : 16 * col + 18])


@pytest.mark.parametrize("overlap", [1, 2, 2.5, 6])
def test_windows_of_overlapping_tiles_follow_the_ground(overlap: float) -> None:
    # Cells that tell their own place on the ground, which tiles that overlap have in common.
    place = torch.cat([torch.arange(16.0) + row * (16 - overlap) for row in range(3)])
    down = f.windows(place[None, :, None].expand(1, 48, 16).contiguous(), overlap)
    middle = f.join(down[:, 8:16])[0, :, 5]
    assert torch.allclose(middle, torch.arange(-1.0, 17) + (16 - overlap))


def test_the_spline_keeps_what_is_even_and_what_rises_evenly() -> None:
    matrix = f.spline(16, 16, torch.device("cpu"))
    assert torch.allclose(matrix.sum(1), torch.ones(256), atol=1e-6)
    ramp = matrix @ torch.arange(-1.0, 17)
    assert torch.allclose(ramp, (torch.arange(256) + 0.5) / 16 - 0.5, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_field_has_no_step_between_tiles(scale: int) -> None:
    # Where the image has no detail, neither field nor slopes step at a border more than elsewhere.
    model = randomized(replace(TINY, scale=scale))
    side = model.spec.tile
    y, x = np.mgrid[0 : 2 * side, 0 : 2 * side] / (2 * side)
    pixels = np.stack([0.4 + 0.3 * y, 0.5 + 0.2 * x, 0.6 + 0.1 * y * x]).astype(np.float32)
    with torch.inference_mode():
        change = model.predict_affine(torch.from_numpy(pixels)[None])
    assert change.haze is not None
    jumps = change.haze.thickness.diff(dim=3).abs().mean((0, 1, 2))
    assert jumps[side - 1] < 3 * jumps.median()
    assert change.haze.thickness.std() > 1e-3


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("overview", [True, False])
@pytest.mark.parametrize("size", [(1300, 1100), (300, 200), (512, 1024)])
def test_streamed_equals_one_forward_of_the_whole(scale: int, overview: bool, size: tuple[int, int]) -> None:
    model, pixels = randomized(replace(TINY, scale=scale, overview=overview)), uneven(*size)
    streamed = np.asarray(dehazexl.dehaze(pixels, model, overlap=0, value_range=(0, 1), batch=2))
    assert np.abs(streamed - whole(model, pixels)).max() < 1e-5
    assert np.abs(streamed - pixels).mean() > 0.01


def test_the_overview_takes_part() -> None:
    pixels = uneven(600, 600)
    model = randomized()
    blind = DehazeXL(replace(TINY, overview=False)).requires_grad_(False).eval()
    blind.load_state_dict(model.state_dict(), strict=False)
    assert np.abs(whole(model, pixels) - whole(blind, pixels)).mean() > 1e-4


def test_recomputed_activations_and_parts_change_nothing() -> None:
    model = randomized()
    x = torch.from_numpy(uneven(600, 700)).permute(2, 0, 1)[None]
    assert torch.equal(model.predict_affine(x).gain, model.predict_affine(x, part=1).gain)


def test_gradients_reach_every_weight() -> None:
    model = randomized().requires_grad_(True).train()
    change = model.predict_affine(torch.from_numpy(uneven(600, 700)).permute(2, 0, 1)[None])
    (change.gain.mean() + change.bias.square().mean()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("overlap", [0, 32])
def test_what_has_no_data_says_nothing(overlap: int) -> None:
    model, scene = randomized(), 0.3 * uneven(1024, 1024)
    alone = prepare(scene, model, overlap, value_range=(0, 1))
    around = np.full((2048, 2048, 3), np.nan, np.float32)
    around[:1024, :1024] = scene
    airlights = []
    for job in (alone, prepare(around, model, overlap, value_range=(0, 1))):
        store = open_tokens(job)
        for stage in stages(job, store):
            sum(stage.steps)
        kept = store.get_fused(Window(0, 1, 0, 1))[0, 0, 0, model.spec.widths[-1] :]
        airlights.append(1 / (1 + np.exp(-kept[f.WINDOW**2 : f.WINDOW**2 + 3])))
    assert airlights[1] == pytest.approx(airlights[0], abs=0.05)


def test_an_image_without_data_stays() -> None:
    nothing = np.full((700, 600, 3), np.nan, np.float32)
    assert np.isnan(np.asarray(dehazexl.dehaze(nothing, randomized(), value_range=(0, 1)))).all()


def test_the_airlight_is_a_color_however_images_are_normalized() -> None:
    pixels = torch.from_numpy(uneven(512, 512)).permute(2, 0, 1)[None]
    plain = randomized(replace(TINY, inputs=()))
    shifted = DehazeXL(replace(plain.spec, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))).requires_grad_(False).eval()
    shifted.load_state_dict(plain.state_dict())
    colors = [model.encode(pixels)[-1][..., model.spec.widths[-1] :] for model in (plain, shifted)]
    assert torch.equal(*colors) and colors[0].min() >= 0 and colors[0].max() <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_says_about_the_same(dtype: torch.dtype) -> None:
    model, pixels = randomized(), uneven(600, 700)
    exact = whole(model, pixels)
    half = np.asarray(dehazexl.dehaze(pixels, model.to(dtype), overlap=0, value_range=(0, 1)))
    assert np.abs(half - exact).mean() < 0.02 * np.abs(exact - pixels).mean()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"head_stride": 1}, "needs head_stride 4"),
        ({"head": "scattering"}, "need the head 'field'"),
        ({"scale": 3}, "scale is 1, 2 or 4, not 3"),
        ({"context_local": 4}, "context_local is 0, 3, 5 or 7, not 4"),
    ],
)
def test_specs_that_cannot_be(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DehazeXL(replace(TINY, **wrong))


# ---- The dark channel prior ------------------------------------------------------------------------------


@pytest.mark.parametrize("tone", [0.0, 1.0])
def test_prior_is_the_thickness_that_leaves_black_at_black(tone: float) -> None:
    thickness = torch.tensor([0.1, 0.7, 1.5]).view(1, 1, 3, 1)
    values = torch.tensor([[2.0, 1.5, 1.0, -0.2, 0.3, 100.0 if tone else -100.0]])
    found = f.haze(thickness, values)
    air = h.to_light(found.airlight, found.tone)
    black = h.from_light(air * (1 - torch.exp(-found.exponents * thickness)), found.tone)  # (1, 3, 3, 1)
    logits = f.prior(black.permute(0, 2, 3, 1)[:, :, None], values)
    removed = torch.nn.functional.softplus(logits).flatten()
    # All but 5 % of the haze is removed, of the color in which that is the thinnest.
    t = torch.exp(-found.exponents * thickness)
    expected = (-torch.log(1 - f.KEPT * (1 - t)) / found.exponents).amin(1).flatten()
    assert torch.allclose(removed, expected, rtol=1e-3)


def test_tokens_decide_how_far_to_trust_the_prior() -> None:
    model, other = randomized(), randomized()
    other.head.trust.weight.data.zero_()
    other.head.trust.bias.data.zero_()
    without = DehazeXL(replace(TINY, prior=False)).eval()
    without.load_state_dict({k: v for k, v in other.state_dict().items() if "trust" not in k})
    pixels = uneven(600, 700)
    assert np.abs(whole(other, pixels) - whole(without, pixels)).max() < 1e-5
    assert np.abs(whole(model, pixels) - whole(other, pixels)).max() > 1e-2
