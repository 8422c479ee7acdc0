"""DehazeXL: the whole network, and its three stages for pictures that are taken tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dehazexl.image.grid import SIDE, TILE, TOKEN, reflect
from dehazexl.model.context import Context
from dehazexl.model.decoder import Decoder
from dehazexl.model.encoder import Encoder
from dehazexl.model.field import CORRECTION, KEPT, WINDOW, Field, Haze, haze_of, join, thickness, windows
from dehazexl.model.heads import HEADS, Head
from dehazexl.model.spec import DARK_RADIUS, PATCHES, Spec

AIRLIGHT = 1.4
"""Logit of the transmission that the scattering head starts from, 0.8; its airlight starts there, too, unless it is the
picture's."""


def pad(x: Tensor, halo: int, tile: int = TILE) -> Tensor:
    """Reflect-pad pictures ``(n, c, h, w)`` to whole tiles at the far sides, then by `halo` all around."""
    for axis in (2, 3):
        size = x.shape[axis]
        whole = math.ceil(size / tile) * tile
        index = torch.from_numpy(reflect(np.arange(-halo, whole + halo), size))
        x = x.index_select(axis, index.to(x.device))
    return x


def to_tiles(x: Tensor, halo: int = 0, tile: int = TILE) -> Tensor:
    """Cut padded pictures ``(n, c, h, w)`` into tiles ``(n * tiles, c, tile + 2 halo, tile + 2 halo)``, row-major."""
    side = tile + 2 * halo
    tiles = x.unfold(2, side, tile).unfold(3, side, tile)  # (n, c, rows, cols, side, side)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def from_tiles(tiles: Tensor, rows: int, cols: int) -> Tensor:
    """Join tiles ``(n * rows * cols, c, side, side)`` to pictures ``(n, c, rows * side, cols * side)``."""
    _, c, side, _ = tiles.shape
    x = tiles.view(-1, rows, cols, c, side, side).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, c, rows * side, cols * side)


class Change(NamedTuple):
    """What is done to pictures: the dehazed ones are gain times the pixels in [0, 1] plus offset.

    Attributes
    ----------
    gain, offset
        ``(n, 3, h, w)``, float32.
    haze
        The haze that is taken away, where the head is ``field``.
    """

    gain: Tensor
    offset: Tensor
    haze: Haze | None = None


def mean_colors(colors: Tensor) -> Tensor:
    """Return the mean colors ``(..., 3)`` of tokens from those of their patches ``(..., 3 * PATCHES * PATCHES)``."""
    return colors.float().unflatten(-1, (PATCHES**2, 3)).mean(-2)


class DehazeXL(nn.Module):
    """DehazeXL of any spec.

    ``forward`` takes whole pictures and is what every streamed result is compared with. `encode`, `fuse` and
    `decode` are its stages; the streamed passes call the same ones.

    Tiles given to the stages carry a halo of ``spec.halo`` pixels on each side (none for the official spec).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.context = Context(spec)
        self.field = Field(spec.widths[-1]) if spec.head == "field" else None
        count, head = HEADS.get(spec.head, (CORRECTION, None))
        self.head: Head | None = head
        self.decoder = Decoder(spec, count)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        """Start from random weights that keep the scale of what passes; the answer starts as a slight change."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Centerd on mid-gray, so that the norm that follows keeps dark and bright apart.
        stem = self.encoder.patch_embed.proj
        assert stem.bias is not None
        nn.init.normal_(stem.weight, std=4 * stem.weight[0].numel() ** -0.5)
        nn.init.normal_(stem.bias, std=0.5)
        stem.bias.data -= 0.5 * stem.weight.data.sum((1, 2, 3))
        nn.init.normal_(self.decoder.output.weight, std=0.02)
        if self.decoder.slopes is not None:
            nn.init.zeros_(self.decoder.slopes.weight)
            assert self.decoder.slopes.bias is not None
            nn.init.zeros_(self.decoder.slopes.bias)
        if self.field is not None:
            self.field.initialize()
            assert self.decoder.output.bias is not None
            nn.init.zeros_(self.decoder.output.bias)
        elif self.decoder.output.bias is not None:
            # Transmission starts as airlight does, or else at the prior's.
            nn.init.constant_(self.decoder.output.bias, AIRLIGHT if self.spec.head == "scattering" else 0.0)
            if self.spec.prior:
                nn.init.zeros_(self.decoder.output.bias[:3])
        if self.context.airlight is not None:
            # To begin with, the airlight is a little brighter than the haziest places.
            nn.init.zeros_(self.context.airlight.output.weight)
            self.context.airlight.output.bias.data.copy_(torch.tensor([0, 0.5, 0.5, 0.5]))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.context.input_proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.context.input_proj.weight.device

    def inputs(self, tiles: Tensor) -> Tensor:
        """Compute the encoder's input channels.

        Parameters
        ----------
        tiles
            ``(n, 3, 256 + 2 halo, 256 + 2 halo)`` in [0, 1], as the network sees them: at 1 / scale of the resolution.

        Returns
        -------
        Tensor
            ``(n, 3 + inputs, 256, 256)``: normalized colors, then the spec's further inputs.
        """
        halo = self.spec.halo // self.spec.scale
        channels = [(crop(tiles, halo) - self.mean) / self.std]
        if "dark" in self.spec.inputs:
            channels.append(-local_max(-tiles.amin(1, keepdim=True)))
        if "bright" in self.spec.inputs:
            channels.append(local_max(tiles.amax(1, keepdim=True)))
        return torch.cat(channels, dim=1).to(self.dtype)

    def encode(self, tiles: Tensor) -> list[Tensor]:
        """Encode tiles ``(n, 3, tile + 2 halo, tile + 2 halo)`` in [0, 1], with tile and halo of the spec.

        Returns
        -------
        list of Tensor
            Feature maps ``(n, h, w, c)`` at strides 4, 8, 16, 32. The last ``(n, 8, 8, c)`` is the tokens, with their
            mean colors where the spec's airlight is the picture's. Where the spec's head has a stride of 4, the input
            channels at that stride come before them.
        """
        if self.spec.scale > 1:
            tiles = F.avg_pool2d(tiles, self.spec.scale)
        x = self.inputs(tiles)
        maps: list[Tensor] = self.encoder(x)
        if self.field is not None:
            inner = crop(tiles, self.spec.halo // self.spec.scale)
            colors = F.avg_pool2d(inner.float(), TOKEN // PATCHES).unfold(2, PATCHES, PATCHES)
            colors = colors.unfold(3, PATCHES, PATCHES).permute(0, 2, 3, 4, 5, 1).flatten(3)
            maps[-1] = torch.cat([maps[-1], colors.to(maps[-1].dtype)], dim=-1)
        if self.spec.airlight == "picture":
            colors = F.avg_pool2d(crop(tiles, self.spec.halo), TOKEN).permute(0, 2, 3, 1)
            maps[-1] = torch.cat([maps[-1], colors.to(maps[-1].dtype)], dim=-1)
        return maps if self.spec.head_stride == 1 else [F.avg_pool2d(x, 4).permute(0, 2, 3, 1), *maps]

    def fuse(self, tokens: Tensor, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """Fuse the grid of tokens ``(n, h, w, c)`` of whole pictures to the same shape, see `Context.forward`.

        With the head ``field`` what the tokens hold of the haze stands in place of their colors, see `field.KEPT`.
        """
        if self.field is None:
            return self.context(tokens, offset)
        width = self.spec.widths[-1]
        features, colors = tokens.split([width, tokens.shape[-1] - width], dim=-1)
        overview = self.encode_overview(colors) if self.spec.overview else None
        grids = [features] if overview is None else [features, overview[..., :width]]
        fused = self.context.attend(grids[0], offset, *grids[1:])
        with torch.autocast(tokens.device.type, enabled=False):
            everyone = torch.cat([grid.flatten(1, 2) for grid in fused if grid is not None], dim=1)
            seen = [colors] if overview is None else [colors, overview[..., width:]]
            theirs = torch.cat([mean_colors(part).flatten(1, 2) for part in seen], dim=1)
            weights = self.field.scores(everyone, theirs).softmax(1)
            values = self.field.elected(self.field.opinions(weights, everyone, theirs))
            return self.packed(fused[0], windows(self.field.cells(fused[0])), values)

    def encode_overview(self, colors: Tensor) -> Tensor:
        """Encode the whole picture, shrunk to one tile.

        Parameters
        ----------
        colors
            What the picture's tokens hold of its colors ``(n, h, w, 3 * PATCHES * PATCHES)``.

        Returns
        -------
        Tensor
            The tile's tokens ``(n, 8, 8, c)``.
        """
        n, h, w, _ = colors.shape
        picture = colors.float().view(n, h, w, PATCHES, PATCHES, 3).permute(0, 5, 1, 3, 2, 4)
        picture = picture.reshape(n, 3, h * PATCHES, w * PATCHES)
        picture = F.interpolate(picture, size=(TILE, TILE), mode="bilinear", antialias=True)
        halo = self.spec.halo // self.spec.scale
        x = self.inputs(F.pad(picture, (halo,) * 4, mode="reflect"))
        maps: list[Tensor] = self.encoder(x)
        colors = F.avg_pool2d(picture, TOKEN).permute(0, 2, 3, 1).repeat(1, 1, 1, PATCHES**2)
        return torch.cat([maps[-1], colors.to(maps[-1].dtype)], dim=-1)

    def packed(self, fused: Tensor, windows: Tensor, values: Tensor) -> Tensor:
        """Put what fused tokens ``(n, h, w, c)`` hold of the haze beside them, in place of their colors."""
        whole = values[:, None, None].expand(*fused.shape[:3], -1)
        kept = torch.cat([windows, whole], dim=-1)
        kept = F.pad(kept, (0, self.spec.channels - fused.shape[-1] - kept.shape[-1]))
        return torch.cat([fused.float(), kept], dim=-1)

    def decode(self, fused: Tensor, maps: list[Tensor], tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Decode tiles from their fused tokens ``(n, 8, 8, c)``, feature maps and pixels, as `encode` takes them.

        Returns
        -------
        gain, offset : Tensor
            ``(n, 3, tile, tile)``, float32, such that the dehazed tile is ``gain * tile + offset`` in [0, 1].
        """
        if self.field is not None:
            thickness, values = self.decode_haze(fused, maps, tiles)
            with torch.autocast(tiles.device.type, enabled=False):
                return haze_of(thickness, values).removal(crop(tiles, self.spec.halo).float())
        assert self.head is not None
        colors = (crop(tiles, self.spec.halo).float() - self.mean.float()) / self.std.float()
        gain, offset = self.head(self.decoder(fused, maps, colors))
        if self.spec.head == "scattering":
            return gain, offset  # its airlight is a color as pictures have it
        # The others speak of normalized pixels: y = gain (x - mean) / std + offset, out = y std + mean.
        return gain, offset * self.std.float() + (1 - gain) * self.mean.float()

    def decode_haze(self, fused: Tensor, maps: list[Tensor], tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Return the thickness ``(n, 1, tile, tile)`` of tiles' haze, and its numbers ``(n, field.VALUES)``."""
        width = self.spec.widths[-1]
        correction = self.decoder(fused, maps)
        with torch.autocast(tiles.device.type, enabled=False):
            kept = fused[..., width : width + KEPT].float()
            cells, values = join(kept[..., : WINDOW**2]), kept[:, 0, 0, WINDOW**2 :]
            return thickness(cells, correction, crop(tiles, self.spec.halo).float()), values

    def forward(self, x: Tensor, offset: tuple[int, int] = (0, 0)) -> Tensor:
        """Dehaze whole pictures at once.

        Parameters
        ----------
        x
            ``(n, 3, h, w)`` in [0, 1], any size; reflect-padded to whole tiles.
        offset
            Position of the picture's first token, see `Context.forward`.

        Returns
        -------
        Tensor
            ``(n, 3, h, w)``, float32, not clipped.
        """
        gain, shift, _ = self.change(x, offset)
        return gain * x.float() + shift

    def change(self, x: Tensor, offset: tuple[int, int] = (0, 0), part: int | None = None) -> Change:
        """Return what is done to pictures ``(n, 3, h, w)`` in [0, 1].

        With `part`, that many tiles are computed at once, and in training their activations are computed again in
        the backward pass rather than kept (gradient checkpointing), so that large crops fit.
        """
        h, w = x.shape[2:]
        tile, halo = self.spec.tile, self.spec.halo
        rows, cols = math.ceil(h / tile), math.ceil(w / tile)
        tiles = to_tiles(pad(x, halo, tile), halo, tile).split(part or x.shape[0] * rows * cols)
        run = self._recomputed if part and torch.is_grad_enabled() else self._kept
        maps = [run(self.encode, some) for some in tiles]
        fused = self.fuse(tiles_to_grid(torch.cat([m[-1] for m in maps]), rows, cols), offset)
        own = grid_to_tiles(fused).split([len(some) for some in tiles])
        decode = self.decode if self.field is None else self.decode_haze
        changes = [run(decode, *stage) for stage in zip(own, maps, tiles, strict=True)]
        one, other = (torch.cat(side) for side in zip(*changes, strict=True))
        if self.field is None:
            gain, shift = (from_tiles(side, rows, cols)[:, :, :h, :w] for side in (one, other))
            return Change(gain, shift)
        thickness = from_tiles(one, rows, cols)[:, :, :h, :w]
        with torch.autocast(x.device.type, enabled=False):
            haze = haze_of(thickness, other[:: rows * cols])
            gain, shift = haze.removal(x.float())
            return Change(gain, shift, haze)

    @staticmethod
    def _kept(stage: Callable[..., Any], *inputs: Any) -> Any:
        """Run a stage."""
        return stage(*inputs)

    @staticmethod
    def _recomputed(stage: Callable[..., Any], *inputs: Any) -> Any:
        """Run a stage, and again in the backward pass."""
        return checkpoint(stage, *inputs, use_reentrant=False)


def tiles_to_grid(tokens: Tensor, rows: int, cols: int) -> Tensor:
    """Arrange the tokens of tiles ``(n * rows * cols, 8, 8, c)`` as one grid ``(n, 8 rows, 8 cols, c)``."""
    _, side, _, c = tokens.shape
    grid = tokens.reshape(-1, rows, cols, side, side, c).transpose(2, 3)
    return grid.reshape(-1, rows * side, cols * side, c)


def grid_to_tiles(grid: Tensor) -> Tensor:
    """Cut a grid of tokens ``(n, 8 rows, 8 cols, c)`` into those of tiles ``(n * rows * cols, 8, 8, c)``."""
    n, h, w, c = grid.shape
    tiles = grid.view(n, h // SIDE, SIDE, w // SIDE, SIDE, c).transpose(2, 3)
    return tiles.reshape(-1, SIDE, SIDE, c)


def crop(x: Tensor, margin: int) -> Tensor:
    """Take `margin` pixels off each side of ``(n, c, h, w)``."""
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin]


def local_max(x: Tensor) -> Tensor:
    """Maximum over the 15 x 15 neighborhood; the result ``(n, c, h, w)`` is 7 pixels smaller on each side."""
    side = 2 * DARK_RADIUS + 1
    return F.max_pool2d(F.max_pool2d(x, (side, 1), stride=1), (1, side), stride=1)
