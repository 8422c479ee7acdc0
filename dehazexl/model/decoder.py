"""Decoder: a Swin that turns a tile's fused tokens and feature maps into the head's parameters.

Swin Transformer, Liu et al., ICCV 2021: pre-norm blocks and a learned table of position biases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dehazexl.image.grid import SIDE
from dehazexl.model.encoder import relative_index
from dehazexl.model.spec import Spec
from dehazexl.model.windows import CachedBias, Local, Mlp, attend, in_windows, shift_mask, window_and_shift


class TableBias(CachedBias):
    """Swin's position bias: one learned number per head and offset."""

    index: Tensor
    mask: Tensor | None

    def __init__(self, heads: int, window: int, mask: Tensor | None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("index", relative_index(window), persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def compute(self) -> Tensor:
        """Compute the bias ``(1 or windows, heads, cells, cells)``."""
        bias = F.embedding(self.index, self.table).permute(2, 0, 1)[None]  # (1, heads, cells, cells)
        return bias if self.mask is None else bias + self.mask[:, None]


class WindowAttention(nn.Module):
    """Scaled dot-product attention within windows."""

    def __init__(self, width: int, heads: int, window: int, mask: Tensor | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = TableBias(heads, window, mask)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows ``(n, windows, cells, c)``."""
        n, windows, cells, c = x.shape
        qkv = self.qkv(x).view(n, windows, cells, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (n, windows, heads, cells, channels)
        return self.proj(attend(q, k, v, self.bias(), scale=None))


class DecoderBlock(nn.Module):
    """Window attention, then an MLP; the norm comes before each."""

    def __init__(self, width: int, heads: int, size: int, window: int, index: int, local: int) -> None:
        super().__init__()
        self.local = Local(width, local) if local else nn.Identity()
        self.window, self.shift = window_and_shift(size, window, index)
        mask = shift_mask(size, self.window, self.shift) if self.shift else None
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, self.window, mask)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(n, h, w, c)`` to the same shape."""
        x = self.local(x)
        x = x + in_windows(self.norm1(x), self.window, self.shift, self.attn)
        return x + self.mlp(self.norm2(x))


class Expand(nn.Module):
    """A 2 x 2 transposed convolution of stride 2: twice the size, a quarter of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(n, h, w, c)`` to ``(n, 2 h, 2 w, c / 4)``."""
        return self.expand(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Level(nn.Module):
    """Join the features from below with the encoder's map of the same size, and run a few blocks."""

    def __init__(self, width: int, depth: int, heads: int, size: int, window: int, local: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, size, window, i, local) for i in range(depth))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map two ``(n, h, w, c)`` to ``(n, h, w, 2 c)``."""
        x = torch.cat([x, skip], dim=-1)
        for block in self.blocks:
            x = block(x)
        return x


class Decoder(nn.Module):
    """Four levels from the tokens' 8 x 8 up to 64 x 64, then the features that the head's last layer takes."""

    def __init__(self, spec: Spec, known: int) -> None:
        super().__init__()
        widths = [2 * w for w in reversed(spec.widths)]
        self.width = spec.widths[-1]
        self.levels = nn.ModuleList(
            Level(width, depth, heads, SIDE * 2**i, spec.decoder_window, spec.local)
            for i, (width, depth, heads) in enumerate(zip(widths, spec.decoder_depths, spec.decoder_heads, strict=True))
        )
        learned = widths if spec.head_stride == 1 else widths[:-1]
        self.expands = nn.ModuleList(Expand(width) for width in learned)
        self.upscale = Expand(widths[-1] // 4) if spec.head_stride == 1 else nn.Identity()
        # At stride 4 the head also sees the input channels themselves: layer norms hide from the features how
        # bright a place is, and haze is brightness.
        seen = spec.features + 3 + len(spec.inputs) + known
        self.mix = None if spec.head_stride == 1 else nn.Linear(seen, spec.features)

    def forward(self, x: Tensor, maps: list[Tensor], known: Tensor | None = None) -> Tensor:
        """Decode tiles.

        Parameters
        ----------
        x
            Features of their fused tokens ``(n, 8, 8, c)``.
        maps
            Their feature maps ``(n, h, w, c)``, see `DehazeXL.encode`.
        known
            What the head tells the decoder ``(n, 64, 64, known)``, see `Head.guide`.

        Returns
        -------
        Tensor
            Features ``(n, c, 256 / stride, 256 / stride)``.
        """
        x = x.to(maps[-1].dtype)
        skips = [maps[-1][..., : self.width], *reversed(maps[-4:-1])]
        for i, (level, skip) in enumerate(zip(self.levels, skips, strict=True)):
            x = level(x, skip)
            x = self.expands[i](x) if i < len(self.expands) else x
        if self.mix is not None:
            seen = [x, maps[0]] if known is None else [x, maps[0], known.to(x.dtype)]
            x = F.gelu(self.mix(torch.cat(seen, dim=-1)))
        return self.upscale(x).permute(0, 3, 1, 2)
