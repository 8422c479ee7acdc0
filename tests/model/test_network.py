"""The network: equal to the official one's known outputs, in every spec, on pictures of any size."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import plainly
from reference import DATA, interleaved, official_state, picture, randomised, relative, whole
from scipy.ndimage import maximum_filter, minimum_filter

from dehazexl.image.grid import TILE
from dehazexl.model import SPECS, DehazeXL, Spec
from dehazexl.model.context import positions
from dehazexl.model.network import from_tiles, grid_to_tiles, pad, tiles_to_grid, to_tiles
from dehazexl.model.weights import OFFICIAL_MEAN, OFFICIAL_STD, from_official
from dehazexl.model.windows import CachedBias, partition, shift_mask, unpartition, window_and_shift

GOLDEN = np.load(DATA / "golden.npz")
TINY = SPECS["tiny"]


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def on_meta(spec: Spec) -> DehazeXL:
    with torch.device("meta"):
        return DehazeXL(spec)


def batch(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(picture(height, width, seed))[None]


# ---- The official network ---------------------------------------------------------------------------


def test_official_network_has_the_official_sizes() -> None:
    model = on_meta(SPECS["official"])
    assert parameters(model) == 125_484_996
    assert parameters(model.encoder) == 27_576_618
    assert parameters(model.context) == 19_474_176
    assert parameters(model.decoder) + parameters(model.head) == 78_434_202


def test_official_state_dict_fills_every_entry_and_no_other() -> None:
    entries = json.loads((DATA / "state_dict.json").read_text())
    assert len(entries) == 363
    shapes = {name: torch.empty(shape, device="meta") for name, shape, _ in entries}
    renamed = {name: value.shape for name, value in from_official(shapes).items()}
    assert renamed == {name: value.shape for name, value in on_meta(SPECS["official"]).state_dict().items()}


def test_official_weights_arrive_unchanged(official: DehazeXL) -> None:
    own = official.state_dict()
    assert all(torch.equal(own[name], value) for name, value in from_official(official_state(every=10)).items())


@pytest.mark.parametrize("side", [256, 512, 768])
def test_official_outputs_are_reproduced(official: DehazeXL, side: int) -> None:
    x = batch(side, side)
    rows, tiles = side // TILE, to_tiles(x)
    with torch.inference_mode():
        maps = official.encode(tiles)
        fused = official.fuse(tiles_to_grid(maps[-1], rows, rows))
        gain, offset, _ = official.decode(grid_to_tiles(fused), maps, tiles)
    out = from_tiles(gain * tiles + offset, rows, rows)
    step = 5 if side == 256 else 7
    assert relative(x[0, :, ::17, ::17], GOLDEN[f"in{side}"]) <= 1e-6
    assert relative(out[0, :, ::step, ::step], GOLDEN[f"out{side}"]) <= 1e-5
    assert relative(fused[0].permute(2, 0, 1)[::16, ::3, ::3], GOLDEN[f"ctx{side}"]) <= 1e-5
    if side == 256:
        for i, step in enumerate((7, 5, 3, 1)):
            assert relative(maps[i][0].permute(2, 0, 1)[::8, ::step, ::step], GOLDEN[f"enc256_{i}"]) <= 1e-5


def test_forward_is_the_three_stages(official: DehazeXL) -> None:
    with torch.inference_mode():
        out = official(batch(512, 512))
    assert relative(out[0, :, ::7, ::7], GOLDEN["out512"]) <= 1e-5


@pytest.mark.parametrize(("side", "step"), [(256, 5), (512, 7)])
def test_official_outputs_in_bfloat16(official: DehazeXL, side: int, step: int) -> None:
    model = copy.deepcopy(official).to(torch.bfloat16)
    with torch.inference_mode():
        out = model(batch(side, side))
    assert out.dtype == torch.float32
    assert relative(out[0, :, ::step, ::step], GOLDEN[f"out{side}"]) <= 2e-2


def test_positions_are_the_official_ones_on_squares() -> None:
    side, width = 16, 768
    index = np.arange(side, dtype=np.float64)[:, None] / 10000 ** (np.arange(192) / 192)
    code = np.concatenate([np.sin(index), np.cos(index)], axis=1)  # (side, 384)
    expected = np.concatenate(
        [np.broadcast_to(code[None], (side, side, 384)), np.broadcast_to(code[:, None], (side, side, 384))], axis=2
    )
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    assert np.allclose(positions(rows, cols, width), expected, atol=1e-7)


# ---- Specs ------------------------------------------------------------------------------------------

# Encoders of the Swin V2 paper have 28, 50, 88 and 197 million parameters with a classifier of 1000 classes.
ENCODERS = {"official": 27.6, "official-small": 49.0, "official-base": 86.9, "official-large": 195.2}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_have_the_sizes_of_the_paper(name: str) -> None:
    model = on_meta(SPECS[name])
    assert parameters(model.encoder) / 1e6 == pytest.approx(ENCODERS[name], abs=0.1)
    assert parameters(model.context) > 12 * model.spec.widths[-1] ** 2
    assert parameters(model.decoder) > 2 * parameters(model.encoder) / len(model.encoder.stages[2].blocks)  # type: ignore[arg-type]


def test_compact_network_fits_its_file() -> None:
    assert 2 * parameters(on_meta(SPECS["compact"])) < 32e6


VARIANTS = {
    "residual": replace(TINY, head="residual", head_stride=1, inputs=()),
    "gain": replace(TINY, head="gain", head_stride=1, inputs=("bright",)),
    "scattering": replace(TINY, head="scattering", head_stride=1, context_pool=1),
    "residual at stride 4": replace(TINY, head="residual", inputs=("dark",)),
    "gain at stride 4": replace(TINY, head="gain", context_pool=2),
    "pooled by 4": TINY,
    "prior": replace(TINY, prior=True),
    "guided": replace(TINY, prior=True, guided=True),
    "airlight": replace(TINY, prior=True, airlight="picture"),
    "local": replace(TINY, local=3),
    "pooled by 8": replace(TINY, context_pool=8),
    "no context": replace(TINY, context_layers=0),
    "normalized": replace(TINY, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_dehazes(name: str) -> None:
    model, x = randomised(VARIANTS[name]), batch(300, 260)
    out = model(x)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    assert relative(out, x) > 0.05


@pytest.mark.parametrize("name", VARIANTS)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    model, x = randomised(VARIANTS[name]).train().requires_grad_(True), batch(100, 260)
    (model(x) - x).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("head", ["gain", "scattering"])
def test_a_fresh_network_changes_little(head: str) -> None:
    torch.manual_seed(0)
    x = batch(256, 256)
    model = DehazeXL(replace(TINY, head=head)).eval().requires_grad_(False)
    assert relative(model(x), x) < 0.2


def test_a_fresh_network_with_the_prior_is_the_dark_channel_prior() -> None:
    torch.manual_seed(0)
    model = DehazeXL(replace(TINY, prior=True)).eval().requires_grad_(False)
    torch.nn.init.zeros_(model.head.output.weight)
    pixels = interleaved(picture(256, 256)) * 0.4 + 0.3
    dark = minimum_filter(pixels.min(2), 15, mode="mirror").reshape(64, 4, 64, 4).mean((1, 3))
    airlight = 1 / (1 + np.exp(-1.4))
    transmission = 0.05 + 0.95 * np.clip(1 - 0.95 * dark / airlight, 0.05, 0.98)
    gain, _, _ = model.predict_affine(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    # Where four cells of the head meet, interpolation leaves the logits' mean: compare where they are equal.
    logits = np.log((transmission - 0.05) / (1 - transmission))
    mean = (logits[:-1, :-1] + logits[1:, :-1] + logits[:-1, 1:] + logits[1:, 1:]) / 4
    expected = 1 / (0.05 + 0.95 / (1 + np.exp(-mean)))
    corners = gain[0, :, 3:-1, 3:-1].unfold(1, 2, 4).unfold(2, 2, 4).mean((3, 4))
    assert relative(corners, np.broadcast_to(expected, corners.shape)) < 0.02


def test_the_airlight_is_the_color_of_the_haziest_places_wherever_they_are() -> None:
    torch.manual_seed(0)
    model = DehazeXL(replace(TINY, airlight="picture")).eval().requires_grad_(False)
    x = 0.5 * batch(600, 700)
    x[..., 300:400, 500:600] = torch.tensor([0.7, 0.8, 0.9]).view(3, 1, 1)
    x[..., :96, :96] = 1  # a white border tells nothing
    gain, shift, _ = model.predict_affine(x)
    airlight = shift / (1 - gain)
    expected = torch.sigmoid(torch.logit(torch.tensor([0.7, 0.8, 0.9])) + 0.5)
    assert torch.allclose(airlight[0].mean((1, 2)), expected, atol=0.01)
    assert airlight.std((2, 3)).max() < 1e-4  # one for the whole picture


def test_a_head_at_stride_4_is_smooth_within_a_tile() -> None:
    gain, _, _ = randomised(VARIANTS["gain at stride 4"]).predict_affine(batch(256, 256))
    fine, _, _ = randomised(replace(VARIANTS["gain at stride 4"], head_stride=1)).predict_affine(batch(256, 256))
    assert gain.diff(n=2, dim=3).abs().mean() < 0.2 * fine.diff(n=2, dim=3).abs().mean()


def test_normalization_is_undone() -> None:
    # Weights that see (x - mean) / std and answer for it, on a picture, are those without, on the normalized one.
    plain = randomised(replace(TINY, head="residual", inputs=()))
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.1]).view(3, 1, 1)
    spec = replace(plain.spec, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1))
    model, x = randomised(spec), batch(256, 512)
    assert relative(model(x), plain((x - mean) / std) * std + mean) < 1e-6


def test_an_airlight_is_as_bright_however_pictures_are_normalized() -> None:
    plain = replace(TINY, head="scattering", airlight="pixels")
    for spec in (plain, replace(plain, mean=OFFICIAL_MEAN, std=OFFICIAL_STD)):
        model = randomised(spec)
        torch.nn.init.zeros_(model.head.output.weight)
        model.head.output.bias.data = torch.tensor([0.0, 0, 0, 4, 4, 4])
        gain, offset, _ = model.predict_affine(batch(256, 256))
        assert torch.allclose(offset / (1 - gain), torch.sigmoid(torch.tensor(4.0)), atol=1e-5)


@pytest.mark.parametrize("pool", [1, 2, 4, 8])
def test_pooled_keys_are_means_over_squares(pool: int) -> None:
    layer = randomised(replace(TINY, context_pool=pool)).context.layers[0]
    x = torch.randn(1, 16, 24, 64)
    y = layer.input_layernorm(x)
    squares = [y[0, r : r + pool, c : c + pool].mean((0, 1)) for r in range(0, 16, pool) for c in range(0, 24, pool)]
    expected = torch.nn.functional.linear(torch.stack(squares), layer.attn.qkv.weight, layer.attn.qkv.bias)
    keys, values = (t.transpose(1, 2).flatten(2)[0] for t in layer.keys_values(x))
    assert torch.allclose(torch.cat([keys, values], 1), expected[:, 64:], atol=1e-5)


@pytest.mark.parametrize("pool", [1, 2, 8])
def test_tokens_without_data_are_no_keys(pool: int) -> None:
    layer = randomised(replace(TINY, context_pool=pool)).context.layers[0]
    x, valid = torch.randn(1, 16, 8, 64), torch.rand(1, 16, 8) < 0.3
    valid[:, 8:10] = False
    other = torch.where(valid[..., None], x, torch.randn_like(x))
    for a, b in zip(layer.keys_values(x, valid), layer.keys_values(other, valid), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    squares = valid.view(1, 16 // pool, pool, 8 // pool, pool).any(4).any(2).sum()
    assert layer.keys_values(x, valid)[0].shape[2] == squares


# ---- Inputs -----------------------------------------------------------------------------------------


def dark_and_bright(pixels: np.ndarray) -> np.ndarray:
    """Filter a whole picture ``(3, h, w)``, continued by reflection to whole tiles, with scipy."""
    _, h, w = pixels.shape
    wide = np.pad(pixels, [(0, 0), (7, -h % TILE + 7), (7, -w % TILE + 7)], mode="reflect")
    dark, bright = minimum_filter(wide.min(0), 15), maximum_filter(wide.max(0), 15)
    return np.stack([dark, bright])[:, 7:-7, 7:-7]


@pytest.mark.parametrize("size", [(256, 256), (512, 300), (300, 700)])
def test_dark_and_bright_inputs_equal_filters_of_the_whole_picture(size: tuple[int, int]) -> None:
    pixels = picture(*size)
    model = randomised(TINY)
    rows, cols = (-(-n // TILE) for n in size)
    inputs = from_tiles(model.inputs(to_tiles(pad(torch.from_numpy(pixels)[None], 7), 7)), rows, cols)[0]
    assert np.array_equal(inputs[3:], dark_and_bright(pixels))
    assert np.array_equal(inputs[:3, : size[0], : size[1]], pixels)


@pytest.mark.parametrize("corner", [(0, 0), (100, 37), (256, 244)])
def test_inputs_do_not_depend_on_where_tiles_are_cut(corner: tuple[int, int]) -> None:
    pixels = picture(512, 500)
    y, x = corner
    wide = pad(torch.from_numpy(pixels)[None], 7)
    inputs = randomised(TINY).inputs(wide[:, :, y : y + TILE + 14, x : x + TILE + 14])[0]
    assert np.array_equal(inputs[3:], dark_and_bright(pixels)[:, y : y + TILE, x : x + TILE])


@pytest.mark.parametrize("inputs", [("dark",), ("bright",), ("dark", "bright"), ("bright", "dark")])
def test_inputs_come_in_one_order(inputs: tuple[str, ...]) -> None:
    model = randomised(replace(TINY, inputs=inputs))
    pixels = picture(256)
    channels = model.inputs(pad(torch.from_numpy(pixels)[None], 7))[0, 3:]
    wanted = [i for i, name in enumerate(("dark", "bright")) if name in inputs]
    assert np.array_equal(channels, dark_and_bright(pixels)[wanted])


# ---- Sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 2), (257, 5), (100, 513), (256, 512), (700, 300)])
def test_any_size_equals_the_plain_way(tiny: DehazeXL, size: tuple[int, int]) -> None:
    pixels = interleaved(picture(*size))
    out = whole(tiny, pixels)
    assert out.shape == pixels.shape
    assert relative(out, plainly(tiny, pixels)) < 1e-5


def test_pictures_of_a_batch_do_not_meet(tiny: DehazeXL) -> None:
    pair = torch.cat([batch(300, 260, 1), batch(300, 260, 2)])
    alone = torch.cat([tiny(pair[:1]), tiny(pair[1:])])
    assert relative(tiny(pair), alone) < 1e-5


def test_each_tile_depends_on_the_others(tiny: DehazeXL) -> None:
    x = batch(512, 256)
    other = x.clone()
    other[:, :, 300:] = batch(512, 256, 5)[:, :, 300:]
    assert relative(tiny(other)[:, :, :256], tiny(x)[:, :, :256]) > 1e-3


def test_an_offset_is_that_of_the_tokens_positions(tiny: DehazeXL) -> None:
    tokens = torch.randn(1, 8, 16, 64)
    wide = torch.zeros(1, 24, 24, 64)
    wide[:, 16:, 8:] = tokens
    rows, cols = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    embedded = tiny.context.embed(wide, rows, cols)
    x = embedded[:, 16:, 8:].flatten(1, 2)
    for layer in tiny.context.layers:
        x = layer(x, [layer.keys_values(x.view(1, 8, 16, 64))])
    assert relative(tiny.fuse(tokens, (16, 8)), x.view(1, 8, 16, 64)) < 1e-6
    assert relative(tiny.fuse(tokens), x.view(1, 8, 16, 64)) > 1e-3


# ---- Position biases --------------------------------------------------------------------------------


def biases(model: DehazeXL) -> list[CachedBias]:
    return [m for m in model.modules() if isinstance(m, CachedBias)]


def test_biases_are_computed_once_in_eval_and_dropped_for_training() -> None:
    model, x = randomised(TINY), batch(256, 256)
    with torch.inference_mode():
        first = model(x)
        cached = [bias.cached for bias in biases(model)]
        again = model(x)
    assert all(isinstance(c, torch.Tensor) for c in cached)
    assert all(bias.cached is c for bias, c in zip(biases(model), cached, strict=True))
    assert torch.equal(first, again)
    model.train()
    assert all(bias.cached is None for bias in biases(model))
    assert relative(model(x), first) < 1e-6


def test_new_weights_drop_the_biases() -> None:
    model, other, x = randomised(TINY, 0), randomised(TINY, 1), batch(256, 256)
    model(x)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), other(x))


def test_biases_are_not_part_of_the_weights() -> None:
    model = randomised(TINY)
    before = list(model.state_dict())
    model(batch(256, 256))
    assert list(model.state_dict()) == before


def test_biases_of_eval_mode_serve_a_gradient_to_the_picture() -> None:
    model = randomised(TINY)
    with torch.inference_mode():
        model(batch(256, 256))
    x = batch(256, 256).requires_grad_()
    model(x).mean().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


# ---- Maps and their inverses ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 16, 24, 3), (1, 8, 8, 5)])
def test_windows_go_back(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    windows = partition(x, 8)
    assert torch.equal(windows[0, 0], x[0, :8, :8].flatten(0, 1))
    assert torch.equal(unpartition(windows, shape[1], shape[2]), x)


@pytest.mark.parametrize("size", [(2, 3, 256, 512), (1, 3, 768, 256)])
def test_tiles_go_back(size: tuple[int, ...]) -> None:
    x = torch.randn(size)
    tiles = to_tiles(x)
    assert tiles.shape == (size[0] * size[2] * size[3] // TILE**2, 3, TILE, TILE)
    assert torch.equal(tiles[-1], x[-1, :, -TILE:, -TILE:])
    assert torch.equal(from_tiles(tiles, size[2] // TILE, size[3] // TILE), x)


def test_tiles_with_a_halo_overlap() -> None:
    x = torch.randn(2, 3, 256 + 14, 512 + 14)
    tiles = to_tiles(x, 7)
    assert tiles.shape == (4, 3, 270, 270)
    assert torch.equal(tiles[1], x[0, :, :, 256:])
    assert torch.equal(from_tiles(tiles[:, :, 7:-7, 7:-7], 1, 2), x[:, :, 7:-7, 7:-7])


def test_grids_of_tokens_go_back() -> None:
    tokens = torch.randn(2 * 2 * 3, 8, 8, 5)
    grid = tiles_to_grid(tokens, 2, 3)
    assert grid.shape == (2, 16, 24, 5)
    assert torch.equal(grid[1, 8:, 16:], tokens[-1])
    assert torch.equal(grid_to_tiles(grid), tokens)


@pytest.mark.parametrize("halo", [0, 7])
@pytest.mark.parametrize("size", [(1, 1), (5, 300), (256, 257)])
def test_padding_is_numpys_and_crops_back(size: tuple[int, int], halo: int) -> None:
    h, w = size
    x = torch.randn(2, 3, h, w)
    edges = [(0, 0), (0, 0), (halo, -h % TILE + halo), (halo, -w % TILE + halo)]
    assert np.array_equal(pad(x, halo), np.pad(x.numpy(), edges, mode="reflect"))
    assert torch.equal(pad(x, halo)[:, :, halo : halo + h, halo : halo + w], x)


@pytest.mark.parametrize(
    ("size", "window", "index", "expected"),
    [(64, 16, 0, (16, 0)), (64, 16, 1, (16, 8)), (16, 16, 1, (16, 0)), (8, 16, 1, (8, 0)), (16, 8, 3, (8, 4))],
)
def test_windows_never_exceed_the_map(size: int, window: int, index: int, expected: tuple[int, int]) -> None:
    assert window_and_shift(size, window, index) == expected


def test_shifted_windows_keep_opposite_borders_apart() -> None:
    mask = shift_mask(16, 8, 4)
    owner = torch.arange(16).roll(-4) // 4  # quarters of the map, in shifted order
    first_last = (owner == 0) | (owner == 3)
    assert mask.shape == (4, 64, 64)
    assert not mask[0].any()  # the first window was not wrapped around
    y, x = torch.meshgrid(torch.arange(8, 16), torch.arange(8, 16), indexing="ij")
    side = torch.stack([owner[y.flatten()], owner[x.flatten()]], 1)
    apart = (side[:, None] != side[None]).any(2)
    assert torch.equal(mask[3] == -100, apart)
    assert first_last[8:].all()


# ---- The spec as text -------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*SPECS.values(), *VARIANTS.values()])
def test_a_spec_comes_back_from_its_text(spec: Spec) -> None:
    assert Spec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "magic"}, "unknown head 'magic'"),
        ({"inputs": ("depth",)}, r"unknown inputs \['depth'\]"),
        ({"head_stride": 2}, "head_stride is 1 or 4, not 2"),
        ({"guided": True, "head": "gain"}, "prior, guided and airlight need the head 'scattering', not 'gain'"),
        ({"airlight": "stars"}, "airlight is one of pixels, picture, not 'stars'"),
        ({"airlight": "picture", "head": "gain"}, "prior, guided and airlight need the head"),
        ({"airlight": "picture", "head_stride": 1}, "airlight 'picture' needs head_stride 4"),
        ({"prior": True, "inputs": ()}, "prior needs 'dark' among the inputs"),
        ({"scale": 2}, "overview and scale need the head 'field', not 'scattering'"),
        ({"local": 4}, "local is 0, 3, 5 or 7, not 4"),
        ({"window": 12}, r"window must divide each of \(64, 32, 16, 8\) that is larger, and be 2 or more, not 12"),
        ({"window": 1}, "window must divide"),
        ({"decoder_window": 0}, "decoder_window must divide"),
        ({"context_pool": 3}, "context_pool is 1, 2, 4 or 8, not 3"),
        ({"depths": (1, 2, 3)}, "depths needs four numbers"),
        ({"widths": (8, 16, 32, 48)}, "widths must double"),
        ({"heads": (3, 2, 4, 8)}, "heads"),
        ({"decoder_heads": (8, 4, 2, 3)}, "decoder_heads"),
        ({"context_heads": 5}, "context_heads"),
        ({"mean": (0.5,)}, "mean"),
        ({"std": (0.5, 0.5, 0.0)}, "std"),
    ],
)
def test_specs_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DehazeXL(replace(TINY, **change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"color": 1}', '{"widths": 5}', '{"widths": ["a", 1, 2, 3]}'])
def test_text_that_is_no_spec(text: str) -> None:
    with pytest.raises(ValueError):
        Spec.from_json(text)
