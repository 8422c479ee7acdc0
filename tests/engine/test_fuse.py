"""Fusing a store of tokens: interrupted anywhere it goes on to the same bits, and keys come in blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import randomised, relative, whole

from dehazexl.engine.dehaze import decode_lazily, open_tokens, prepare
from dehazexl.engine.encode import encode
from dehazexl.engine.fuse import StreamedTokens, fuse
from dehazexl.engine.job import Job
from dehazexl.engine.tokens import FUSED, TokenStore
from dehazexl.image.grid import Window
from dehazexl.model import SPECS, DehazeXL
from dehazexl.model.context import GlobalAttention, attend

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1, 1)}
SPEC = {
    "tiny": replace(SPECS["tiny"], **SMALL),
    "tiny-field": replace(SPECS["tiny-field"], **SMALL, scale=1),
    "no layers": replace(SPECS["tiny"], **SMALL, context_layers=0),
    "voting": replace(SPECS["tiny"], **SMALL, airlight="picture", context_local=3, context_pool=1),
}


def scene(height: int, width: int, holes: bool = False) -> np.ndarray:
    """Draw a picture ``(y, x, 3)``, without data in a block, a tile and some tokens."""
    pixels = np.random.default_rng(0).random((height, width, 3)).astype(np.float32)
    if holes:
        pixels[512:, 256:800] = pixels[:100, :300] = np.nan
    return pixels


@pytest.fixture
def in_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 x 2 tiles, fused one after the other in batches of 3 tiles."""
    monkeypatch.setattr("dehazexl.image.grid.BLOCK", 512)
    monkeypatch.setattr("dehazexl.engine.fuse.FUSE_TILES", 4)
    monkeypatch.setattr("dehazexl.engine.memory.FUSE_TILES", 3)


def job_of(spec: str, pixels: np.ndarray) -> Job:
    return prepare(pixels, randomised(SPEC[spec]), 0, value_range=(0, 1), batch=2)


def fused(job: Job, store: TokenStore) -> np.ndarray:
    assert sum(encode(job, store)) == job.grid.count
    assert sum(fuse(job, store)) == job.grid.count * len(job.model.context.layers)
    return store.get_fused(job.grid.tiles)


# ---- Equality ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("spec", SPEC)
def test_groups_of_blocks_equal_the_whole_image(spec: str, kept: bool, tmp_path: Path, in_many_groups: None) -> None:
    pixels = scene(700, 1100)
    job = job_of(spec, pixels)
    store = open_tokens(job, tmp_path / "t" if kept else None)
    assert len(StreamedTokens(job, store).groups) == 4
    fused(job, store)
    assert relative(decode_lazily(job, store).compute(), whole(job.model, pixels)) < 1e-5


@pytest.mark.parametrize("spec", ["tiny", "tiny-field", "voting"])
def test_keys_that_do_not_fit_are_read_in_blocks(
    spec: str, tmp_path: Path, in_many_groups: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = scene(700, 1100)
    job = job_of(spec, pixels)
    wanted = fused(job, open_tokens(job))
    monkeypatch.setattr("dehazexl.engine.memory.SHARE", 0)
    sizes: list[int] = []
    read = StreamedTokens.read_keys
    monkeypatch.setattr(StreamedTokens, "read_keys", lambda *args: sizes.append(0) or read(*args))
    found = fused(job, open_tokens(job, tmp_path / "t"))
    assert len(sizes) > 2 * 4 and relative(found, wanted) < 1e-5


@pytest.mark.parametrize("splits", [[7, 1, 40, 52], [1, 99], [50, 50]])
def test_attention_to_blocks_is_exact(splits: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dehazexl.model.context.SCORES", 2 * 52 * 9)  # queries in parts, too
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 2, 30, 8) * 6, torch.randn(1, 2, 100, 8) * 6, torch.randn(1, 2, 100, 8)
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    found = attend(q, zip(k.split(splits, 2), v.split(splits, 2), strict=True))
    assert relative(found, exact) < 1e-5


# ---- Going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPEC)
def test_fusing_interrupted_at_every_step_ends_with_the_same_bits(
    spec: str, tmp_path: Path, in_many_groups: None
) -> None:
    job = job_of(spec, scene(700, 900, holes=True))
    wanted = fused(job, open_tokens(job))
    store = open_tokens(job, tmp_path / "t")
    sum(encode(job, store))
    steps = len(list(fuse(job, open_tokens(job, tmp_path / "t"))))
    assert np.array_equal(open_tokens(job, tmp_path / "t").get_fused(job.grid.tiles), wanted)
    folder = tmp_path / "again"
    sum(encode(job, open_tokens(job, folder)))
    for stop in range(1, steps):
        # Another store object each time, as another process has.
        passing = fuse(job, open_tokens(job, folder))
        list(islice(passing, stop))
        passing.close()  # type: ignore[attr-defined]
    store = open_tokens(job, folder)
    assert sum(fuse(job, store)) == job.grid.count * len(job.model.context.layers)
    assert np.array_equal(store.get_fused(job.grid.tiles), wanted)


def test_what_is_fused_is_not_fused_again(tmp_path: Path, in_many_groups: None) -> None:
    job = job_of("tiny-field", scene(700, 900))
    sum(encode(job, open_tokens(job, tmp_path / "t")))
    asked: list[int] = []
    for layer in job.model.context.layers:
        layer.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].shape[1] // 64))
    runs = 0
    while not open_tokens(job, tmp_path / "t").fused():
        passing = fuse(job, open_tokens(job, tmp_path / "t"))
        before = len(asked)
        for done in passing:
            # Left once a group of tiles has been computed and stored.
            if done and len(asked) > before + 2:
                break
        passing.close()  # type: ignore[attr-defined]
        runs += 1
    tiles, layers = job.grid.count, len(job.model.context.layers)
    assert runs > 4 and sum(asked) < (tiles + 1 + 3 * runs) * layers


CHUNKS: dict[str, Callable[[Path], bool]] = {
    "tokens": lambda path: "tokens/c" in str(path),
    "features": lambda path: "features1/c" in str(path),
    "keys": lambda path: "keys1/c" in str(path),
    "overview": lambda path: "overview1/c" in str(path),
    "metadata of features": lambda path: str(path).endswith("features1/zarr.json"),
    "metadata of tokens": lambda path: str(path).endswith("tokens/zarr.json"),
}


@pytest.mark.parametrize("damage", ["lost", "cut short"])
@pytest.mark.parametrize("kind", CHUNKS)
def test_what_is_damaged_half_way_is_computed_again(
    kind: str, damage: str, tmp_path: Path, in_many_groups: None
) -> None:
    job = job_of("tiny-field", scene(700, 900))
    wanted = fused(job, open_tokens(job))
    store = open_tokens(job, tmp_path / "t")
    sum(encode(job, store))
    done = 0
    for tiles in fuse(job, store):
        done += tiles
        if done >= job.grid.count + 4:  # in the second layer
            break
    paths = [path for path in (tmp_path / "t").rglob("*") if path.is_file() and CHUNKS[kind](path)]
    path = sorted(paths)[0]
    path.unlink() if damage == "lost" else path.write_bytes(path.read_bytes()[:20])
    assert np.array_equal(fused(job, open_tokens(job, tmp_path / "t")), wanted)


def test_tokens_damaged_after_they_were_encoded_are_named(tmp_path: Path, in_many_groups: None) -> None:
    job = job_of("tiny", scene(700, 900))
    store = open_tokens(job, tmp_path / "t")
    sum(encode(job, store))
    (tmp_path / "t" / "tokens" / "c" / "1" / "1" / "0" / "0").unlink()
    with pytest.raises(OSError, match=rf"{tmp_path}/t: tokens of 2 tiles are lost .* row 1, column 2: run it again"):
        sum(fuse(job, store))


def test_fused_tokens_damaged_while_decoding_are_named_and_fused_again(tmp_path: Path, in_many_groups: None) -> None:
    job = job_of("tiny-field", scene(700, 900))
    store = open_tokens(job, tmp_path / "t")
    wanted = fused(job, store)
    path = tmp_path / "t" / FUSED / "c" / "0" / "1" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        OSError, match="fused of 2 tiles are lost or damaged, the first in row 0, column 2: run it again"
    ):
        decode_lazily(job, store).compute()
    assert np.array_equal(fused(job, open_tokens(job, tmp_path / "t")), wanted)


def test_encoding_goes_on_with_the_batch_and_the_same_bits(tmp_path: Path, in_many_groups: None) -> None:
    job = job_of("tiny", scene(700, 900, holes=True))
    wanted = open_tokens(job)
    steps = len(list(encode(job, wanted)))
    encoded: list[int] = []
    job.model.encoder.register_forward_pre_hook(lambda _, inputs: encoded.append(len(inputs[0])))
    for stop in range(1, steps + 1):
        passing = encode(job, open_tokens(job, tmp_path / "t"))
        list(islice(passing, stop))
        passing.close()  # type: ignore[attr-defined]
    store = open_tokens(job, tmp_path / "t")
    assert sum(encode(job, store)) == job.grid.count
    assert sum(encoded) == 10  # of 12 tiles two have no data
    for found, expected in zip(store.get(job.grid.tiles), wanted.get(job.grid.tiles), strict=True):
        assert np.array_equal(found, expected)


# ---- Tiles without data -----------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["tiny", "tiny-field"])
def test_tiles_without_data_pass_no_network(spec: str, in_many_groups: None) -> None:
    pixels = scene(1024, 1024)
    pixels[:512] = np.nan
    pixels[512:, 512:768] = np.nan
    job = job_of(spec, pixels)
    calls = {"encoder": 0, "decoder": 0}

    def count(name: str, of: Callable[[Any], int]) -> Callable[..., None]:
        def hook(_: torch.nn.Module, inputs: Any) -> None:
            calls[name] = calls.get(name, 0) + of(inputs)

        return hook

    job.model.encoder.register_forward_pre_hook(count("encoder", lambda inputs: len(inputs[0])))
    job.model.decoder.register_forward_pre_hook(count("decoder", lambda inputs: len(inputs[0])))
    for number, layer in enumerate(job.model.context.layers):
        layer.register_forward_pre_hook(count(f"layer {number}", lambda inputs: inputs[0].shape[1] // 64))
    store = open_tokens(job)
    fused(job, store)
    told: list[int] = []
    clear = decode_lazily(job, store, told.append).compute()
    overview = int(job.model.spec.overview)
    assert calls == {"encoder": 6 + overview, "decoder": 6, "layer 0": 6 + overview, "layer 1": 6 + overview}
    assert sum(told) == 16
    assert np.array_equal(np.isnan(clear), np.isnan(pixels))


def test_a_batch_without_valid_tokens_has_no_keys(tiny: DehazeXL) -> None:
    attention = next(module for module in tiny.modules() if isinstance(module, GlobalAttention))
    channels = attention.qkv.in_features
    shape = (1, attention.heads, 0, channels // attention.heads)
    assert [each.shape for each in attention.keys_values(torch.zeros(1, 0, channels))] == [shape, shape]


def test_a_tile_without_data_counts_for_one_window(tiny: DehazeXL) -> None:
    pixels = np.full((600, 600, 3), np.nan, np.float32)
    pixels[:20, :20] = 0.5
    job = prepare(pixels, tiny, 32, value_range=(0, 1))
    store = open_tokens(job)
    fused(job, store)
    told: list[int] = []
    clear = decode_lazily(job, store, told.append)
    for window in (Window(0, 250, 0, 600), Window(250, 600, 0, 300), Window(250, 600, 300, 600)):
        np.asarray(clear[window.y0 : window.y1, window.x0 : window.x1])
    assert sum(told) == job.grid.count == 9
