"""The whole of DehazeXL once more, as plainly as can be: tile by tile, with no batches, stores or windows.

It shares the network's encoder and decoder with the engine and nothing else.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from dehazexl import DehazeXL


def plainly(model: DehazeXL, pixels: np.ndarray, overlap: int = 0, valid: np.ndarray | None = None) -> np.ndarray:
    """Dehaze a picture ``(y, x, 3)`` in [0, 1]; pixels that are not valid ``(y, x)`` say nothing."""
    height, width, _ = pixels.shape
    valid = np.ones((height, width), bool) if valid is None else valid
    halo, stride = model.spec.halo, 256 - overlap
    rows, cols = (1 + max(0, math.ceil((size - 256) / stride)) for size in (height, width))
    far = [(halo, (n - 1) * stride + 256 - size + halo) for n, size in ((rows, height), (cols, width))]
    wide = np.pad(np.where(valid[..., None], pixels, np.nan), [*far, (0, 0)], mode="reflect")
    tile_window, maps, tokens, seen = (
        {},
        {},
        np.zeros((rows * 8, cols * 8, model.channels), np.float32),
        np.zeros((rows, cols, 64)),
    )
    for row, col in np.ndindex(rows, cols):
        y, x = row * stride, col * stride
        tile = wide[y : y + 256 + 2 * halo, x : x + 256 + 2 * halo]
        holes = np.isnan(tile).any(2)
        filling = 0.5 if holes.all() else tile[~holes].mean(0)
        filled = np.clip(np.where(holes[..., None], filling, tile), 0, 1).astype(np.float32)
        tile_window[row, col] = torch.from_numpy(filled).permute(2, 0, 1)[None]
        maps[row, col] = model.encode(tile_window[row, col])
        tokens[row * 8 : row * 8 + 8, col * 8 : col * 8 + 8] = maps[row, col][-1][0]
        inner = ~holes[halo : halo + 256, halo : halo + 256]
        for i in range(64):
            seen[row, col, i] = inner[i // 8 * 32 : i // 8 * 32 + 32, i % 8 * 32 : i % 8 * 32 + 32].any()
    keys = seen.reshape(rows, cols, 8, 8).transpose(0, 2, 1, 3).reshape(rows * 8, cols * 8) > 0
    fused = attended(model, torch.from_numpy(tokens), keys if keys.any() else ~keys)
    total, weights = np.zeros((height + 512, width + 512, 3)), np.zeros((height + 512, width + 512, 1))
    for row, col in np.ndindex(rows, cols):
        y, x = row * stride, col * stride
        own = fused[None, row * 8 : row * 8 + 8, col * 8 : col * 8 + 8]
        gain, offset, _ = model.decode(own, maps[row, col], tile_window[row, col])
        inner = wide[y + halo : y + halo + 256, x + halo : x + halo + 256]
        answer = gain[0].permute(1, 2, 0).numpy() * np.nan_to_num(inner) + offset[0].permute(1, 2, 0).numpy()
        weight = (
            tent(overlap, row == 0, row == rows - 1)[:, None, None] * tent(overlap, col == 0, col == cols - 1)[:, None]
        )
        total[y : y + 256, x : x + 256] += weight * answer
        weights[y : y + 256, x : x + 256] += weight
    return (total[:height, :width] / weights[:height, :width]).astype(np.float32)


def tent(overlap: int, first: bool, last: bool) -> np.ndarray:
    """Weigh the pixels of a tile along an axis, less towards its ends where it has neighbors."""
    middle = np.arange(256) + 0.5
    rise = np.full(256, np.inf) if first else middle
    fall = np.full(256, np.inf) if last else 256 - middle
    distance = np.minimum(np.minimum(rise, fall), max(overlap, 1))
    return 1 - np.cos(np.pi * distance / max(overlap, 1))


def attended(model: DehazeXL, tokens: torch.Tensor, keys: np.ndarray) -> torch.Tensor:
    """Let all tokens ``(h, w, c)`` attend to those that are keys ``(h, w)``, or to the means of squares of them.

    Colors among their channels become the airlight.
    """
    c = model.spec.widths[-1]
    tokens, colors = tokens[..., :c], tokens[..., c:]
    h, w, _ = tokens.shape
    x = model.context.input_proj(tokens) + torch.from_numpy(sines(h, w, c))
    pool = model.spec.context_pool
    for layer in model.context.layers:
        y = layer.input_layernorm(x)
        asked = []
        for r in range(0, h, pool):
            for s in range(0, w, pool):
                square = y[r : r + pool, s : s + pool][torch.from_numpy(keys[r : r + pool, s : s + pool])]
                if len(square):
                    asked.append(square.mean(0))
        q, _, _ = layer.attn.qkv(y.reshape(-1, c)).chunk(3, dim=1)
        _, k, v = layer.attn.qkv(torch.stack(asked)).chunk(3, dim=1)
        answers = []
        for a, b, d in zip(*(t.chunk(layer.attn.heads, dim=1) for t in (q, k, v)), strict=True):
            answers.append(torch.softmax(a @ b.T / a.shape[1] ** 0.5, dim=1) @ d)
        x = x + layer.attn.proj(torch.cat(answers, dim=1)).view(h, w, c)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    if not colors.numel():
        return x
    seen = torch.from_numpy(keys)
    return torch.cat([x, airlight(model, x[seen], colors[seen]).expand(h, w, 3)], dim=2)


def airlight(model: DehazeXL, fused: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """Weigh the tokens' ``(n, c)`` votes: their colors ``(n, 3)``, as logits, with what their features add."""
    module = model.head.airlight
    learned = module.output(fused * module.norm.weight / (fused.square().mean(1, keepdim=True) + 1e-5).sqrt())
    darkest = colors.min(1).values
    weight = torch.exp(torch.where(darkest < 0.98, 40 * darkest, 0) + learned[:, 0])
    logits = torch.log(colors.clamp(0.02, 0.98) / (1 - colors.clamp(0.02, 0.98))) + learned[:, 1:]
    return (weight[:, None] * logits).sum(0) / weight.sum()


def sines(h: int, w: int, c: int) -> np.ndarray:
    """Code the positions of tokens ``(h, w, c)``: half the channels tell the column, half the row."""
    speed = 1 / 10000 ** (np.arange(c // 4) / (c // 4))
    y, x = np.mgrid[0:h, 0:w][..., None] * speed
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=2).astype(np.float32)
