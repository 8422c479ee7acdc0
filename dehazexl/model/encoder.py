"""Encoder: a SwinV2 that turns a tile into feature maps at strides 4, 8, 16 and 32.

Swin Transformer V2, Liu et al., CVPR 2022: residual post-norm blocks, cosine attention and a continuous
position bias.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dehazexl.model.spec import MAPS, Spec
from dehazexl.model.windows import CachedBias, Local, Mlp, attend, in_windows, shift_mask, window_and_shift


class ContinuousBias(CachedBias):
    """SwinV2's position bias: an MLP of the log-spaced offset between two cells, in (0, 16)."""

    table: Tensor
    index: Tensor
    mask: Tensor | None

    def __init__(self, heads: int, window: int, mask: Tensor | None) -> None:
        super().__init__()
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, heads, bias=False))
        offset = torch.arange(1 - window, window, dtype=torch.float32) / (window - 1) * 8
        offset = offset.sign() * torch.log2(offset.abs() + 1) / 3
        table = torch.stack(torch.meshgrid(offset, offset, indexing="ij"), dim=-1)
        self.register_buffer("table", table, persistent=False)  # (2 w - 1, 2 w - 1, 2)
        self.register_buffer("index", relative_index(window), persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def compute(self) -> Tensor:
        """Compute the bias ``(1 or windows, heads, cells, cells)``."""
        table = self.cpb_mlp(self.table).flatten(0, 1)  # (offsets, heads)
        # Not by indexing: on a CPU its gradient is summed by several threads, in any order.
        bias = 16 * F.embedding(self.index, torch.sigmoid(table)).permute(2, 0, 1)[None]  # (1, heads, cells, cells)
        return bias if self.mask is None else bias + self.mask[:, None]


def relative_index(window: int) -> Tensor:
    """Return, for each pair of cells of a window, the row of the table of offsets: ``(cells, cells)``."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + window - 1
    dx = x[:, None] - x[None, :] + window - 1
    return dy * (2 * window - 1) + dx


class CosineAttention(nn.Module):
    """Attention whose logits are cosines times a learned scale of at most 100."""

    def __init__(self, width: int, heads: int, window: int, mask: Tensor | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10)))
        self.bias = ContinuousBias(heads, window, mask)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows ``(n, windows, cells, c)``."""
        n, windows, cells, c = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).view(n, windows, cells, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # each (n, windows, heads, cells, channels)
        q = F.normalize(q, dim=-1) * self.logit_scale.clamp(max=math.log(100)).exp().to(q.dtype)
        return self.proj(attend(q, F.normalize(k, dim=-1), v, self.bias(), scale=1.0))


class EncoderBlock(nn.Module):
    """Window attention, then an MLP; the norm comes after each (residual post-norm)."""

    def __init__(self, width: int, heads: int, size: int, window: int, index: int, local: int) -> None:
        super().__init__()
        self.local = Local(width, local) if local else nn.Identity()
        self.window, self.shift = window_and_shift(size, window, index)
        mask = shift_mask(size, self.window, self.shift) if self.shift else None
        self.attn = CosineAttention(width, heads, self.window, mask)
        self.norm1 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(n, h, w, c)`` to the same shape."""
        x = self.local(x)
        x = x + self.norm1(in_windows(x, self.window, self.shift, self.attn))
        return x + self.norm2(self.mlp(x))


class PatchEmbed(nn.Module):
    """Each 4 x 4 pixels become one feature vector."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels ``(n, channels, h, w)`` to features ``(n, h / 4, w / 4, width)``."""
        # Not rounded to bfloat16 while training: its steps near white are as large as what dense haze leaves to see.
        with torch.autocast(x.device.type, enabled=False):
            return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Each 2 x 2 cells become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(n, h, w, c)`` to ``(n, h / 2, w / 2, 2 c)``."""
        quarters = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.norm(self.reduction(torch.cat(quarters, dim=-1)))


class Stage(nn.Module):
    """Blocks at one stride; all stages but the first merge 2 x 2 cells before."""

    def __init__(self, width: int, depth: int, heads: int, size: int, window: int, merge: bool, local: int) -> None:
        super().__init__()
        self.downsample = PatchMerging(width // 2) if merge else nn.Identity()
        self.blocks = nn.ModuleList(EncoderBlock(width, heads, size, window, i, local) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Map the features of the stage before to this stage's ``(n, h, w, width)``."""
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class Encoder(nn.Module):
    """Four stages; the output of each is kept for the decoder, and that of the last is the tokens."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(3 + len(spec.inputs), spec.widths[0])
        self.stages = nn.ModuleList(
            Stage(width, depth, heads, size, spec.window, merge=i > 0, local=spec.local)
            for i, (width, depth, heads, size) in enumerate(
                zip(spec.widths, spec.depths, spec.heads, MAPS, strict=True)
            )
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Encode tiles.

        Parameters
        ----------
        x
            ``(n, channels, 256, 256)``, normalized colors and the spec's further inputs.

        Returns
        -------
        list of Tensor
            Feature maps ``(n, h, w, c)`` at strides 4, 8, 16, 32.
        """
        x = self.patch_embed(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
