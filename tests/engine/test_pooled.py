"""Attention to pooled keys of tiles far away: equal to the plain definition, whole or in blocks, interrupted or not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import sines
from reference import randomised, relative

import dehazexl
from dehazexl.engine.dehaze import open_tokens, prepare
from dehazexl.engine.encode import encode
from dehazexl.engine.fuse import StreamedTokens, fuse
from dehazexl.engine.job import Job
from dehazexl.engine.tokens import TokenStore
from dehazexl.model import SPECS, DehazeXL

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1, 1)}
SPEC = {
    "tiny": replace(SPECS["tiny"], **SMALL),
    "tiny-field": replace(SPECS["tiny-field"], **SMALL, scale=1),
    "each token a key": replace(SPECS["tiny"], **SMALL, context_pool=1),
    "voting": replace(SPECS["tiny"], **SMALL, airlight="picture", context_local=3),
}


@pytest.fixture(autouse=True)
def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 x 2 tiles, in batches of 3 tiles."""
    monkeypatch.setattr("dehazexl.image.grid.BLOCK", 512)
    monkeypatch.setattr("dehazexl.engine.memory.FUSE_TILES", 3)


def scene(holes: bool = False) -> np.ndarray:
    """Draw a picture of 5 x 5 tiles, so of 3 x 3 blocks; without data in a block, a tile and some tokens."""
    pixels = np.random.default_rng(0).random((1100, 1200, 3)) * np.linspace(0.2, 1, 1200)[:, None]
    if holes:
        pixels[:512, 1024:] = pixels[:256, 512:768] = pixels[:100, :300] = np.nan
    return pixels.astype(np.float32)


def job_of(spec: str, pooled: int, holes: bool = False) -> Job:
    return prepare(scene(holes), randomised(SPEC[spec]), 0, value_range=(0, 1), batch=2, pooled=pooled)


@cache
def encoded(spec: str, holes: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of all tiles, and their validity."""
    job = job_of(spec, 0, holes)
    store = open_tokens(job)
    sum(encode(job, store))
    return store.get(job.grid.tiles)


def store_of(spec: str, job: Job, holes: bool = False, path: Path | None = None) -> TokenStore:
    store = open_tokens(job, path)
    store.put(job.grid.tiles, *encoded(spec, holes))
    return store


def fused(job: Job, store: TokenStore) -> np.ndarray:
    assert sum(fuse(job, store)) == job.grid.count * len(job.model.context.layers)
    return store.get_fused(job.grid.tiles)


def as_rows(tokens: np.ndarray) -> np.ndarray:
    """Arrange tokens of tiles ``(rows, cols, 64, c)`` as ``(8 rows, 8 cols, c)``."""
    rows, cols, _, c = tokens.shape
    return tokens.reshape(rows, cols, 8, 8, c).transpose(0, 2, 1, 3, 4).reshape(8 * rows, 8 * cols, c)


def plainly_pooled(model: DehazeXL, tokens: np.ndarray, seen: np.ndarray, side: int, block: int = 16) -> torch.Tensor:
    """Fuse tokens ``(h, w, c)`` key by key; those that are ``seen`` ``(h, w)`` are keys. A block has 16 x 16 tokens."""
    h, w, c = tokens.shape
    pool, per_block = model.spec.context_pool, block // model.spec.context_pool
    x = model.context.input_proj(torch.from_numpy(tokens)) + torch.from_numpy(sines(h, w, c))
    for layer in model.context:
        y = layer.input_layernorm(x)
        keys: dict[tuple[int, int], torch.Tensor] = {}
        for r, s in np.ndindex(h // pool, w // pool):
            square = np.s_[r * pool : (r + 1) * pool, s * pool : (s + 1) * pool]
            if seen[square].any():
                keys[r, s] = y[square][torch.from_numpy(seen[square])].mean(0)
        answer = torch.zeros_like(x)
        for u, v in np.ndindex(-(-h // block), -(-w // block)):
            together: dict[Any, list[torch.Tensor]] = {}
            for (r, s), key in keys.items():
                (p, i), (q, j) = divmod(r, per_block), divmod(s, per_block)
                near = max(abs(p - u), abs(q - v)) <= 1
                together.setdefault((r, s) if near else (p, q, i // side, j // side), []).append(key)
            projected = [layer.attn.qkv(torch.stack(each)).chunk(3, dim=1) for each in together.values()]
            k, d = (torch.stack([each[n].mean(0) for each in projected]) for n in (1, 2))
            counts = torch.tensor([float(len(each)) for each in together.values()])
            own = np.s_[u * block : (u + 1) * block, v * block : (v + 1) * block]
            a = layer.attn.qkv(y[own]).chunk(3, dim=-1)[0]
            parts = zip(*(t.chunk(layer.attn.heads, dim=-1) for t in (a, k, d)), strict=True)
            weights = [(torch.exp(a @ k.T / a.shape[-1] ** 0.5) * counts, d) for a, k, d in parts]
            answer[own] = torch.cat([each @ d / each.sum(-1, keepdim=True) for each, d in weights], dim=-1)
        x = x + layer.attn.proj(answer)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return x


# ---- Equality ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("spec", SPEC)
def test_squares_of_one_key_are_exact(spec: str, holes: bool) -> None:
    exact, one, many = (job_of(spec, pooled, holes) for pooled in (0, 1, 100))
    wanted = fused(exact, store_of(spec, exact, holes))
    assert relative(fused(one, store_of(spec, one, holes)), wanted) < 1e-5
    assert relative(fused(many, store_of(spec, many, holes)), wanted) > 1e-4


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("spec", "side"), [("tiny", 2), ("tiny", 3), ("tiny", 100), ("each token a key", 5)])
def test_pooled_keys_are_those_of_the_definition(spec: str, side: int, holes: bool) -> None:
    job = job_of(spec, side, holes)
    (tokens, valid), width = encoded(spec, holes), job.model.spec.widths[-1]
    assert valid.all() != holes
    seen = as_rows(valid[..., None])[..., 0]
    wanted = plainly_pooled(job.model, as_rows(tokens[..., :width]), seen, side)
    found = torch.from_numpy(as_rows(fused(job, store_of(spec, job, holes))[..., :width]))
    shown = as_rows(np.broadcast_to(valid.any(2)[..., None, None], (*valid.shape, 1)))[..., 0]
    assert relative(found[shown], wanted[shown]) < 1e-5


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("spec", ["tiny", "tiny-field"])
def test_pooled_keys_that_do_not_fit_come_in_blocks(
    spec: str, holes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(spec, 2, holes)
    wanted = fused(job, store_of(spec, job, holes))
    monkeypatch.setattr("dehazexl.engine.memory.SHARE", 0)
    store = store_of(spec, job, holes, tmp_path / "t")
    assert not StreamedTokens(job, store).keys_fit
    assert relative(fused(job, store), wanted) < 1e-5


# ---- Going on ---------------------------------------------------------------------------------------


def test_pooled_fusing_interrupted_anywhere_ends_with_the_same_bits(tmp_path: Path) -> None:
    job = job_of("tiny-field", 3, holes=True)
    wanted = store_of("tiny-field", job, holes=True)
    steps = len(list(fuse(job, wanted)))
    store_of("tiny-field", job, True, tmp_path / "t")
    for stop in range(1, steps, 7):
        passing = fuse(job, open_tokens(job, tmp_path / "t"))
        list(islice(passing, stop))
        passing.close()  # type: ignore[attr-defined]
    store = open_tokens(job, tmp_path / "t")
    sum(fuse(job, store))
    assert np.array_equal(store.get_fused(job.grid.tiles), wanted.get_fused(job.grid.tiles))


def test_tokens_of_another_context_are_refused_by_name(tmp_path: Path) -> None:
    model = randomised(SPEC["tiny"])
    options: dict[str, Any] = {"value_range": (0, 1), "tokens": tmp_path / "t"}
    pooled = dehazexl.dehaze(scene(), model, 0, context="pooled:100", **options).compute()
    again = dehazexl.dehaze(scene(), model, 0, context="pooled:100", **options).compute()
    assert np.array_equal(pooled, again)
    for other in ("pooled:2", "all"):
        with pytest.raises(ValueError, match=r"these differ: context\)"):
            dehazexl.dehaze(scene(), model, 0, context=other, **options)
    options["tokens"] = tmp_path / "exact"
    exact = dehazexl.dehaze(scene(), model, 0, **options).compute()
    assert relative(pooled, exact) > 1e-5
