"""Decoder: a Swin that turns a tile's fused tokens and feature maps into the head's parameters.

Swin Transformer, Liu et al., ICCV 2021: pre-norm blocks and a learned table of position biases.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dehazexl.image.grid import SIDE, TILE
from dehazexl.model.encoder import relative_index
from dehazexl.model.field import CELL, STRIDE, WINDOW, join, upsample
from dehazexl.model.spec import Spec
from dehazexl.model.windows import CachedBias, Local, Mlp, attend, in_windows, shift_mask, window_and_shift

KNOWN = 5
"""What the decoder is told of the haze at each place: the field from the tokens, the airlight and the tone."""


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
        bias = self.table[self.index].permute(2, 0, 1)[None]  # (1, heads, cells, cells)
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
    """Four levels from the tokens' 8 x 8 up to 64 x 64, then the head's parameters for every pixel."""

    def __init__(self, spec: Spec, parameters: int) -> None:
        super().__init__()
        widths = [2 * w for w in reversed(spec.widths)]
        self.width, self.airlight, self.field = spec.widths[-1], spec.airlight, spec.head == "field"
        self.levels = nn.ModuleList(
            Level(width, depth, heads, SIDE * 2**i, spec.decoder_window, spec.local)
            for i, (width, depth, heads) in enumerate(zip(widths, spec.decoder_depths, spec.decoder_heads, strict=True))
        )
        learned = widths if spec.head_stride == 1 else widths[:-1]
        self.expands = nn.ModuleList(Expand(width) for width in learned)
        self.upscale = Expand(widths[-1] // 4) if spec.head_stride == 1 else nn.Identity()
        features = widths[-1] // 16 if spec.head_stride == 1 else widths[-1]
        # At stride 4 the head also sees the input channels themselves: layer norms hide from the features how
        # bright a place is, and haze is brightness.
        seen = 3 + len(spec.inputs) + (KNOWN if self.field else 0)
        self.mix = None if spec.head_stride == 1 else nn.Linear(features + seen, features)
        self.prior = spec.prior
        parameters -= 3 if spec.airlight == "picture" else 0
        self.output = nn.Conv2d(features, parameters, kernel_size=1, bias=spec.head != "residual")
        self.slopes = nn.Conv2d(features, 3, kernel_size=1) if spec.guided else None

    def forward(self, fused: Tensor, maps: list[Tensor], colors: Tensor | None = None) -> Tensor:
        """Decode tiles.

        Parameters
        ----------
        fused
            Fused tokens ``(n, 8, 8, c)``, with the logits of the airlight where that is the picture's.
        maps
            The maps ``(n, h, w, c)`` of the same tiles, see `DehazeXL.encode`.
        colors
            The tiles' own pixels ``(n, 3, 256, 256)``, normalized, float32.

        Returns
        -------
        Tensor
            Parameters of the head ``(n, parameters, 256, 256)``, float32.
        """
        x, airlight = fused[..., : self.width].to(maps[-1].dtype), fused[..., self.width :]
        if self.field:
            return self._correction(x, maps, known(airlight))
        x = self._up(x, maps)
        if self.mix is not None:
            x = F.gelu(self.mix(torch.cat([x, maps[0]], dim=-1)))
        x = self.upscale(x)
        # The last layers are in float32 whatever the precision of the rest.
        with torch.autocast(x.device.type, enabled=False):
            features = x.permute(0, 3, 1, 2).float()
            parameters = last_layer(self.output, features)
            if self.airlight == "picture":
                logits = enlarge(airlight.permute(0, 3, 1, 2).float(), parameters.shape[-1])
                parameters = torch.cat([parameters, logits], dim=1)
            if self.prior:
                parameters = add_prior(parameters, maps[0][..., 3].float()[:, None])
            if self.slopes is None:
                return enlarge(parameters)
            assert colors is not None
            return add_detail(enlarge(parameters), enlarge(last_layer(self.slopes, features)), colors)

    def _up(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """Go up the levels from fused tokens ``(n, 8, 8, c)`` to features ``(n, 64, 64, c)``."""
        skips = [maps[-1][..., : self.width], *reversed(maps[-4:-1])]
        for i, (level, skip) in enumerate(zip(self.levels, skips, strict=True)):
            x = level(x, skip)
            x = self.expands[i](x) if i < len(self.expands) else x
        return x

    def _correction(self, x: Tensor, maps: list[Tensor], known: Tensor) -> Tensor:
        """Return the correction of the field ``(n, CORRECTION, 64, 64)``, float32, given what is `known` of it."""
        assert self.mix is not None
        x = F.gelu(self.mix(torch.cat([self._up(x, maps), maps[0], known.to(x.dtype)], dim=-1)))
        with torch.autocast(x.device.type, enabled=False):
            return last_layer(self.output, x.permute(0, 3, 1, 2).float())


def known(kept: Tensor) -> Tensor:
    """Return what fused tokens ``(n, 8, 8, KEPT)`` hold of the haze, ``(n, 64, 64, KNOWN)``."""
    windows, values = kept.float().split([WINDOW**2, kept.shape[-1] - WINDOW**2], dim=-1)
    field = upsample(join(windows), CELL // STRIDE)[..., None]
    whole = torch.sigmoid(values[:, :1, :1, [0, 1, 2, 5]])
    return torch.cat([field, whole.expand(*field.shape[:3], -1)], dim=-1)


def last_layer(layer: nn.Conv2d, features: Tensor) -> Tensor:
    """Apply a layer in float32 to features ``(n, c, h, w)``."""
    return F.conv2d(features, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def enlarge(x: Tensor, size: int = TILE) -> Tensor:
    """Interpolate ``(n, c, h, w)`` to ``(n, c, size, size)``, a tile's full size."""
    return x if x.shape[-1] == size else F.interpolate(x, size=(size, size), mode="bilinear")


def add_detail(parameters: Tensor, slopes: Tensor, colors: Tensor) -> Tensor:
    """Let the scattering head's transmission follow the edges of the picture between its cells of 4 x 4 pixels.

    A local linear model of the colors, as the guided filter's (He, Sun and Tang, 2013), with learned slopes.

    Parameters
    ----------
    parameters
        Logits of transmission and airlight ``(n, 6, h, w)``.
    slopes, colors
        ``(n, 3, h, w)``.
    """
    detail = colors - enlarge(F.avg_pool2d(colors, 4))
    logits, airlight = parameters.chunk(2, dim=1)
    return torch.cat([logits + (slopes * detail).sum(1, keepdim=True), airlight], dim=1)


def add_prior(parameters: Tensor, dark: Tensor) -> Tensor:
    """Add the logits of the dark channel prior's transmission to those of the scattering head.

    He, Sun and Tang, Single image haze removal using dark channel prior, 2011: t = 1 - 0.95 dark / A.

    Parameters
    ----------
    parameters
        Logits of transmission and airlight ``(n, 6, h, w)``.
    dark
        Dark channel ``(n, 1, h, w)`` in [0, 1].
    """
    logits, airlight = parameters.chunk(2, dim=1)
    prior = 1 - 0.95 * dark / torch.sigmoid(airlight)
    return torch.cat([logits + torch.logit(prior.clamp(0.05, 0.98)), airlight], dim=1)
