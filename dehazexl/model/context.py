"""Context: attention over the tokens of all tiles, the one stage that sees the whole picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dehazexl.image.grid import SIDE
from dehazexl.model.spec import Spec
from dehazexl.model.windows import Local

SHARPNESS = 40.0
"""How much more tokens weigh in the airlight, the brighter their darkest color: by a factor of e for each 1/40."""

SATURATED = 0.98
"""Tokens that are brighter throughout tell nothing of haze: borders of scans, clouds, what the camera has blown out."""


def positions(rows: Tensor, cols: Tensor, width: int) -> Tensor:
    """Sine-cosine code of token positions.

    Parameters
    ----------
    rows, cols
        Position of each token in the grid of the whole picture, any equal shape ``(...)``, in tokens.
    width
        Channels; the first half codes the column, the second the row, each as sines then cosines.

    Returns
    -------
    Tensor
        ``(..., width)``, float32, in [-1, 1].
    """
    quarter = width // 4
    # In float64 and so on the CPU: in float32 the angles of large pictures are off, and MPS knows no other.
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
        return y.view(n, tokens, count, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``(n, heads, tokens, channels)`` of tokens ``(n, tokens, c)``."""
        k, v = self._project(x, 1, 2)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from tokens ``(n, queries, c)`` to keys and values ``(n, heads, tokens, channels)``."""
        (q,) = self._project(x, 0, 1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


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
        """Return what other tokens attend to.

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

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Update tokens ``(n, queries, c)``, given the keys and values of all tokens."""
        x = x + self.attn(self.input_layernorm(x), k, v)
        return x + self.mlp(self.post_attention_layernorm(x))


class Airlight(nn.Module):
    """One airlight for the whole picture: all tokens vote, and the haziest weigh most.

    Haze that is thick enough has the airlight's color, wherever in the picture it lies; the dark channel prior
    takes it from there, too (He, Sun and Tang, 2011). How a token's vote differs from its color, and its weight from
    its haze, is learned.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, 4)

    def votes(self, fused: Tensor, colors: Tensor) -> Tensor:
        """Return each token's vote.

        Parameters
        ----------
        fused
            Fused tokens ``(n, tokens, c)``.
        colors
            Their mean colors ``(n, tokens, 3)`` in [0, 1].

        Returns
        -------
        Tensor
            ``(n, tokens, 4)``, float32: the logarithm of the vote's weight, and logits of the airlight.
        """
        with torch.autocast(fused.device.type, enabled=False):
            colors = colors.float()
            learned = F.linear(self.norm(fused).float(), self.output.weight.float(), self.output.bias.float())
            darkest = colors.amin(-1, keepdim=True)
            hazy = SHARPNESS * darkest * (darkest < SATURATED)
            return learned + torch.cat([hazy, torch.logit(colors.clamp(0.02, 0.98))], dim=-1)

    @staticmethod
    def elected(votes: Tensor) -> Tensor:
        """Count votes ``(n, tokens, 4)``: logits of the airlight ``(n, 1, 3)``, float32."""
        weights = votes[..., :1].softmax(1)
        return (weights * votes[..., 1:]).sum(1, keepdim=True)


class Context(nn.Module):
    """The bottleneck: project, add positions, a few layers of global attention; with them, the airlight."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        width = spec.widths[-1]
        self.input_proj = nn.Linear(width, width)
        self.layers = nn.ModuleList(
            ContextLayer(width, spec.context_heads, spec.context_pool, spec.context_local)
            for _ in range(spec.context_layers)
        )
        self.whole = nn.Parameter(torch.zeros(width)) if spec.overview else None
        self.airlight = Airlight(width) if spec.airlight == "picture" else None

    def embed(self, tokens: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Project tokens ``(..., c)`` and add the code of their rows and columns ``(...)``."""
        x: Tensor = self.input_proj(tokens)
        return x + positions(rows, cols, x.shape[-1]).to(x.dtype)

    def embed_overview(self, tokens: Tensor, h: int, w: int, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """Project the tokens ``(n, 8, 8, c)`` of the shrunk image; their positions are spread over its h x w tokens."""
        assert self.whole is not None
        place = torch.arange(SIDE, device=tokens.device)
        rows, cols = (first + (2 * place + 1) * size // (2 * SIDE) for first, size in zip(offset, (h, w), strict=True))
        rows, cols = torch.meshgrid(rows, cols, indexing="ij")
        return self.embed(tokens, rows, cols) + self.whole

    def attend(
        self, tokens: Tensor, offset: tuple[int, int] = (0, 0), overview: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Let all tokens of a picture attend to each other.

        Parameters
        ----------
        tokens
            ``(n, h, w, c)``: the grid of tokens of the whole picture.
        offset
            Row and column of the first token. Training varies it, so that the network meets the
            positions of pictures larger than its crops.
        overview
            Tokens ``(n, 8, 8, c)`` of the whole picture shrunk to one tile, which take part.

        Returns
        -------
        fused, overview
            Of the same shapes.
        """
        _, h, w, _ = tokens.shape
        rows, cols = torch.meshgrid(
            torch.arange(h, device=tokens.device) + offset[0],
            torch.arange(w, device=tokens.device) + offset[1],
            indexing="ij",
        )
        grids = [self.embed(tokens, rows, cols)]
        if overview is not None:
            grids.append(self.embed_overview(overview, h, w, offset))
        for layer in cast("Iterable[ContextLayer]", self.layers):
            if layer.local is not None:
                grids = [layer.local(grid) for grid in grids]
            sides = (None, 1)
            pairs = [layer.keys_values(grid, side=side) for grid, side in zip(grids, sides, strict=False)]
            keys, values = (torch.cat(some, dim=2) for some in zip(*pairs, strict=True))
            grids = [layer(grid.flatten(1, 2), keys, values).view(grid.shape) for grid in grids]
        return grids[0], None if overview is None else grids[1]

    def forward(self, tokens: Tensor, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """Fuse all tokens of a picture at once, see `attend`.

        Where the spec's airlight is the picture's, three more channels of the tokens hold their colors; in their
        place stand the logits of the airlight, everywhere the same.
        """
        width = self.input_proj.in_features
        fused, _ = self.attend(tokens[..., :width], offset)
        if self.airlight is None:
            return fused
        votes = self.airlight.votes(fused.flatten(1, 2), tokens[..., width:].flatten(1, 2))
        airlight = self.airlight.elected(votes)[:, None].expand(*fused.shape[:3], -1)
        return torch.cat([fused, airlight.to(fused.dtype)], dim=-1)
