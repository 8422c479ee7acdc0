"""Attention in windows of a feature map: what the encoder and the decoder share.

Feature maps are ``(n, h, w, c)``: channels last, as linear layers and layer norms want them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def partition(x: Tensor, window: int) -> Tensor:
    """Cut maps ``(n, h, w, c)`` into windows ``(n, windows, window * window, c)``, row-major."""
    n, h, w, c = x.shape
    x = x.view(n, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(n, -1, window * window, c)


def unpartition(windows: Tensor, h: int, w: int) -> Tensor:
    """Put windows ``(n, windows, window * window, c)`` back into maps ``(n, h, w, c)``."""
    n, _, cells, c = windows.shape
    window = int(cells**0.5)
    x = windows.view(n, h // window, w // window, window, window, c)
    return x.transpose(2, 3).reshape(n, h, w, c)


def window_and_shift(size: int, window: int, index: int) -> tuple[int, int]:
    """Return window and shift of block number `index` on a map of side `size`.

    Odd blocks shift by half a window; a map no larger than the window is one window, never shifted.
    """
    return (size, 0) if size <= window else (window, window // 2 * (index % 2))


def shift_mask(size: int, window: int, shift: int) -> Tensor:
    """Return what is added to the logits of shifted windows: ``(windows, cells, cells)``.

    A cyclic shift brings cells from opposite borders into one window; -100 keeps them apart.
    """
    edges = torch.zeros(size)
    edges[size - window :] = 1
    edges[size - shift :] = 2
    region = partition((edges[:, None] * 3 + edges)[None, :, :, None], window)[0, :, :, 0]
    return torch.where(region[:, None, :] == region[:, :, None], 0.0, -100.0)


def in_windows(x: Tensor, window: int, shift: int, attention: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `attention` to each (shifted) window of maps ``(n, h, w, c)``."""
    _, h, w, _ = x.shape
    x = torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
    x = unpartition(attention(partition(x, window)), h, w)
    return torch.roll(x, (shift, shift), (1, 2)) if shift else x


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float | None) -> Tensor:
    """Softmax attention within windows.

    Parameters
    ----------
    q, k, v
        ``(n, windows, heads, cells, channels)``.
    bias
        Added to the logits: ``(1 or windows, heads, cells, cells)``.
    scale
        Factor on the logits; None for one over the root of the channels.

    Returns
    -------
    Tensor
        ``(n, windows, cells, heads * channels)``.
    """
    n, windows, heads, cells, _ = q.shape
    # Fused attention wants four axes: a bias that differs between windows joins them to the heads.
    start = 0 if len(bias) == 1 else 1
    bias = bias if len(bias) == 1 else bias.flatten(0, 1)[None]
    q, k, v = (t.flatten(start, start + 1) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=scale)
    return out.view(n, windows, heads, cells, -1).transpose(2, 3).flatten(3)


class CachedBias(nn.Module):
    """A position bias that is computed at every call in training, and once in eval mode."""

    cached: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cached", None, persistent=False)

    def train(self, mode: bool = True) -> CachedBias:
        """Drop the cached bias: the weights may change."""
        self.cached = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any) -> None:
        """Drop the cached bias: the weights change."""
        self.cached = None
        super()._load_from_state_dict(*args)

    def compute(self) -> Tensor:
        """Compute the bias ``(1 or windows, heads, cells, cells)`` from the weights."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """Return the bias ``(1 or windows, heads, cells, cells)``."""
        if self.training:
            return self.compute()
        if self.cached is None:
            with torch.inference_mode(False), torch.no_grad():
                self.cached = self.compute()
        return self.cached


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., width)`` to the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class Local(nn.Module):
    """A depthwise convolution added to its input: what lies near, which windows of attention learn slowly.

    It starts as no change. Borders repeat, so that a tile's border does not look like one.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, side, groups=width)
        nn.init.zeros_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(n, h, w, c)`` to the same shape."""
        margin = self.conv.kernel_size[0] // 2
        return x + self.conv(repeat_edges(x, margin).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def inside(self, x: Tensor) -> Tensor:
        """Map features ``(n, h, w, c)`` with a margin of half the convolution's side to those within it."""
        margin = self.conv.kernel_size[0] // 2
        return x[:, margin:-margin, margin:-margin] + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def repeat_edges(x: Tensor, margin: int) -> Tensor:
    """Repeat the outermost cells of maps ``(n, h, w, c)`` by `margin` more on each side."""
    # Not torch's padding: what the compiler makes of its backward pass fails.
    for axis in (1, 2):
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
        shape = [margin if a == axis else -1 for a in range(4)]
        x = torch.cat([first.expand(shape), x, last.expand(shape)], dim=axis)
    return x
