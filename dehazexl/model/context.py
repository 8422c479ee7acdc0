"""Context: attention over the tokens of all tiles, the one stage that sees the whole image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dehazexl.image.grid import SIDE
from dehazexl.model.spec import Spec
from dehazexl.model.windows import Local


def positions(rows: Tensor, cols: Tensor, width: int) -> Tensor:
    """Sine-cosine code of token positions.

    Parameters
    ----------
    rows, cols
        Position of each token in the grid of the whole image, any equal shape ``(...)``, in tokens.
    width
        Channels; the first half codes the column, the second the row, each as sines then cosines.

    Returns
    -------
    Tensor
        ``(..., width)``, float32, in [-1, 1].
    """
    quarter = width // 4
    # In float64 and so on the CPU: in float32 the angles of large images are inaccurate, and MPS has no float64.
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(int(torch.maximum(rows, cols).max()) + 1)[:, None] * frequency
    code = torch.cat([angles.sin(), angles.cos()], dim=-1).float().to(rows.device)  # of each row or column
    return torch.cat([code[cols], code[rows]], dim=-1)


class RMSNorm(nn.Module):
    """Divide by the root mean square over channels, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(..., width)``."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)
        return self.weight * y.to(x.dtype)


class GlobalAttention(nn.Module):
    """Exact softmax attention; queries and keys may come in different chunks."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def _project(self, x: Tensor, first: int, count: int) -> tuple[Tensor, ...]:
        """Apply `count` of the query, key and value projections: each ``(n, heads, tokens, channels)``."""
        n, tokens, c = x.shape
        rows = slice(first * c, (first + count) * c)
        y = F.linear(x, self.qkv.weight[rows], self.qkv.bias[rows])
        return y.view(n, tokens, count, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``(n, heads, tokens, channels)`` of tokens ``(n, tokens, c)``."""
        k, v = self._project(x, 1, 2)
        return k, v

    def forward(self, x: Tensor, keys_values: Iterable[tuple[Tensor, ...]]) -> Tensor:
        """Attend from tokens ``(n, queries, c)`` to keys and values in blocks, see `attend`."""
        (q,) = self._project(x, 0, 1)
        return self.proj(attend(q, keys_values).transpose(1, 2).flatten(2))


SCORES = 2**22
"""Scores that are computed at once where keys and values come in several blocks: 16 MB, near what caches hold."""


def attend(q: Tensor, keys_values: Iterable[tuple[Tensor, ...]]) -> Tensor:
    """Exact softmax attention to keys and values that come in blocks.

    The blocks are merged by a running log-sum-exp (Rabe and Staats, Self-attention does not need O(n^2) memory, 2021).

    Parameters
    ----------
    q
        Queries ``(n, heads, queries, channels)``.
    keys_values
        Blocks of keys and values, each ``(n, heads, tokens, channels)``; any number of tokens. A third tensor
        ``(1, 1, 1, tokens)``, if there is one, is the logarithm of how often each of them counts. One block is attended
        to by torch, and the others come into memory one by one.

    Returns
    -------
    Tensor
        Like `q`.
    """
    blocks = iter(keys_values)
    first, second = next(blocks), next(blocks, None)
    if second is None:
        k, v, *log_counts = first
        return F.scaled_dot_product_attention(q, k, v, log_counts[0] if log_counts else None)
    mean, log_sum = _attend_block(q, *first)
    for block in chain([second], blocks):
        other, other_sum = _attend_block(q, *block)
        both = torch.logaddexp(log_sum, other_sum)
        mean = mean * (log_sum - both).exp() + other * (other_sum - both).exp()
        log_sum = both
    return mean.to(q.dtype)


def _attend_block(q: Tensor, k: Tensor, v: Tensor, log_counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attend to some of the keys; return the means of their values, and the logarithms of their weights' sums."""
    parts = []
    for some in (q * q.shape[-1] ** -0.5).split(max(1, SCORES // (q.shape[1] * k.shape[2])), dim=2):
        scores = (some @ k.transpose(2, 3)).float()
        if log_counts is not None:
            scores = scores + log_counts
        largest = scores.amax(-1, keepdim=True)
        weights = (scores - largest).exp()
        total = weights.sum(-1, keepdim=True)
        parts.append(((weights.to(v.dtype) @ v).float() / total, largest + total.log()))
    means, log_sums = zip(*parts, strict=True)
    return torch.cat(means, dim=2), torch.cat(log_sums, dim=2)


class GatedMlp(nn.Module):
    """``down(GELU(gate(x)) * up(x))``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to the same shape."""
        return self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))


def pool(x: Tensor, side: int, valid: Tensor | None = None) -> Tensor:
    """Average tokens over squares.

    Parameters
    ----------
    x
        Grids of tokens ``(n, h, w, c)``.
    side
        Side of the squares; h and w are multiples of it.
    valid
        ``(n, h, w)``: tokens that count. Squares without any are left out of the result, so n must be 1.

    Returns
    -------
    Tensor
        ``(n, squares, c)``, row-major.
    """
    n, h, w, c = x.shape
    x = x.view(n, h // side, side, w // side, side, c)
    if valid is None:
        return x.mean((2, 4)).flatten(1, 2)
    share = valid.view(n, h // side, side, w // side, side, 1).to(x.dtype)
    count = share.sum((2, 4))
    mean = (x * share).sum((2, 4)) / count.clamp(min=1)
    return mean[count[..., 0] > 0][None]


class ContextLayer(nn.Module):
    """Global attention, then a gated MLP; the norm comes before each."""

    def __init__(self, width: int, heads: int, pool: int, local: int) -> None:
        super().__init__()
        self.pool = pool
        self.local = Local(width, local) if local else None
        self.input_layernorm = RMSNorm(width)
        self.attn = GlobalAttention(width, heads)
        self.post_attention_layernorm = RMSNorm(width)
        self.mlp = GatedMlp(width, 4 * width)

    def keys_values(self, x: Tensor, valid: Tensor | None = None, side: int | None = None) -> tuple[Tensor, Tensor]:
        """Return keys and values for the attention of other tokens.

        Parameters
        ----------
        x
            Grids of tokens ``(n, h, w, c)``, of whole tiles.
        valid
            ``(1, h, w)``: tokens that may be attended to, or None for all.
        side
            Of the squares of tokens that share a key and a value; None takes the spec's.

        Returns
        -------
        keys, values : Tensor
            ``(n, heads, tokens, channels)``.
        """
        return self.attn.keys_values(pool(self.input_layernorm(x), side or self.pool, valid))

    def forward(self, x: Tensor, keys_values: Iterable[tuple[Tensor, ...]]) -> Tensor:
        """Update tokens ``(n, queries, c)``, given the keys and values of all tokens in blocks, see `attend`."""
        x = x + self.attn(self.input_layernorm(x), keys_values)
        return x + self.mlp(self.post_attention_layernorm(x))


class Context(nn.Module):
    """The bottleneck: project, add positions, a few layers of global attention; see `dehazexl.model.fusing.fuse`."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        width = spec.widths[-1]
        self.input_proj = nn.Linear(width, width)
        self.layers = nn.ModuleList(
            ContextLayer(width, spec.context_heads, spec.context_pool, spec.context_local)
            for _ in range(spec.context_layers)
        )
        self.whole = nn.Parameter(torch.zeros(width)) if spec.overview else None

    def __iter__(self) -> Iterator[ContextLayer]:
        """Iterate over the layers."""
        return iter(cast("list[ContextLayer]", self.layers))

    def embed(self, features: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Project features of tokens ``(n, h, w, c)`` and add the code of their positions ``(h, w)``, in tokens."""
        x: Tensor = self.input_proj(features)
        return x + positions(rows, cols, x.shape[-1]).to(x.dtype)

    def embed_overview(self, features: Tensor, size: tuple[int, int], origin: tuple[int, int]) -> Tensor:
        """Embed the tokens ``(n, 8, 8, c)`` of a shrunk image of h x w tokens, and add a learned code that marks them.

        `origin` is the row and column of the first token.
        """
        assert self.whole is not None
        return self.embed(features, *overview_positions(*size, origin, features.device)) + self.whole


def overview_positions(h: int, w: int, origin: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows and columns ``(8, 8)`` of an overview's tokens, spread over the image's h x w tokens."""
    place = torch.arange(SIDE, device=device)
    rows, cols = (first + (2 * place + 1) * size // (2 * SIDE) for first, size in zip(origin, (h, w), strict=True))
    rows, cols = torch.meshgrid(rows, cols, indexing="ij")
    return rows, cols
