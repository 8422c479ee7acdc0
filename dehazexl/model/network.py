"""DehazeXL: the whole network, and its three stages for images that are processed tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dehazexl.image.grid import SIDE, TILE, reflect
from dehazexl.model.context import Context
from dehazexl.model.decoder import Decoder
from dehazexl.model.encoder import Encoder
from dehazexl.model.fusing import Bands, TokenGrid, TokenTensor, fuse
from dehazexl.model.haze import Haze
from dehazexl.model.heads import Affine, head_of
from dehazexl.model.spec import DARK_RADIUS, Spec
from dehazexl.model.tokens import Tokens


def pad(x: Tensor, halo: int, tile: int = TILE) -> Tensor:
    """Reflect-pad images ``(n, c, h, w)`` to whole tiles at the far sides, then by `halo` all around."""
    for axis in (2, 3):
        size = x.shape[axis]
        whole = math.ceil(size / tile) * tile
        index = torch.from_numpy(reflect(np.arange(-halo, whole + halo), size))
        x = x.index_select(axis, index.to(x.device))
    return x


def to_tiles(x: Tensor, halo: int = 0, tile: int = TILE) -> Tensor:
    """Cut padded images ``(n, c, h, w)`` into tiles ``(n * tiles, c, tile + 2 halo, tile + 2 halo)``, row-major."""
    side = tile + 2 * halo
    tiles = x.unfold(2, side, tile).unfold(3, side, tile)  # (n, c, rows, cols, side, side)
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)


def from_tiles(tiles: Tensor, rows: int, cols: int) -> Tensor:
    """Join tiles ``(n * rows * cols, c, side, side)`` to images ``(n, c, rows * side, cols * side)``."""
    _, c, side, _ = tiles.shape
    x = tiles.view(-1, rows, cols, c, side, side).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, c, rows * side, cols * side)


class DehazeXL(nn.Module):
    """DehazeXL of any spec.

    ``forward`` processes whole images; it is the reference for every streamed result. `encode`, `fuse` and `decode` are
    its stages, which the streamed passes call as well.

    Tiles given to the stages carry a halo of ``spec.halo`` pixels on each side (none for the official spec).

    Raises
    ------
    ValueError
        If the spec does not suit its head.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        head = head_of(spec)
        self.encoder = Encoder(spec)
        self.context = Context(spec)
        self.decoder = Decoder(spec, head.known)
        self.head = head(spec)
        self.channels = spec.channels
        self._initialize()

    def _initialize(self) -> None:
        """Start from random weights that keep the scale of their input; the output starts as a slight change."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Centered on mid-gray, so that the norm that follows keeps dark and bright apart.
        stem = self.encoder.patch_embed.proj
        assert stem.bias is not None
        nn.init.normal_(stem.weight, std=4 * stem.weight[0].numel() ** -0.5)
        nn.init.normal_(stem.bias, std=0.5)
        stem.bias.data -= 0.5 * stem.weight.data.sum((1, 2, 3))
        self.head.initialize()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.context.input_proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
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
        channels = [(crop(tiles, self._halo) - self.head.mean) / self.head.std]
        if "dark" in self.spec.inputs:
            channels.append(-local_max(-tiles.amin(1, keepdim=True)))
        if "bright" in self.spec.inputs:
            channels.append(local_max(tiles.amax(1, keepdim=True)))
        return torch.cat(channels, dim=1).to(self.dtype)

    @property
    def _halo(self) -> int:
        """Halo of tiles, in pixels as the network sees them."""
        return self.spec.halo // self.spec.scale

    def encode(self, tiles: Tensor) -> list[Tensor]:
        """Encode tiles ``(n, 3, tile + 2 halo, tile + 2 halo)`` in [0, 1], with tile and halo of the spec.

        Returns
        -------
        list of Tensor
            Feature maps ``(n, h, w, c)`` at strides 4, 8, 16, 32. The last ``(n, 8, 8, channels)`` is the tokens, with
            what they carry for the head. Where the spec's head has a stride of 4, the input channels at that stride
            come before them.
        """
        if self.spec.scale > 1:
            tiles = F.avg_pool2d(tiles, self.spec.scale)
        x = self.inputs(tiles)
        maps: list[Tensor] = self.encoder(x)
        extra = self.head.describe(crop(tiles, self._halo))
        if extra is not None:
            maps[-1] = torch.cat([maps[-1], extra.to(maps[-1].dtype)], dim=-1)
        return maps if self.spec.head_stride == 1 else [F.avg_pool2d(x, 4).permute(0, 2, 3, 1), *maps]

    def fuse(self, tokens: Tensor, origin: tuple[int, int] = (0, 0)) -> Tensor:
        """Fuse the grid of tokens ``(n, h, w, channels)`` of whole images to the same shape, see `fusing.fuse`.

        `origin` is the row and column of the first token. Training varies it, so that the network meets the positions
        of images larger than its crops.
        """
        grid = TokenTensor(tokens, self.spec.widths[-1], origin)
        for _ in self.fuse_grid(grid):
            pass
        return grid.tokens()

    def fuse_grid(self, grid: TokenGrid) -> Iterator[int]:
        """Fuse the tokens of a grid step by step, see `fusing.fuse`."""
        return fuse(self.context, self.head, grid, self.encode_overview if self.spec.overview else None)

    def decode(self, fused: Tensor, maps: list[Tensor], tiles: Tensor) -> Affine:
        """Decode tiles from their fused tokens ``(n, 8, 8, channels)``, feature maps and pixels, as for `encode`.

        Returns
        -------
        Affine
            For each pixel of the tiles ``(n, 3, tile, tile)``.
        """
        features, carried = fused.split([self.decoder.width, fused.shape[-1] - self.decoder.width], dim=-1)
        with torch.autocast(tiles.device.type, enabled=False):
            known = self.head.guide(carried)
        features = self.decoder(features, maps, known)
        # The last layers are in float32 whatever the precision of the rest.
        with torch.autocast(tiles.device.type, enabled=False):
            output: Affine = self.head(features.float(), carried, maps[0], crop(tiles, self.spec.halo).float())
            return output

    def air(self, fused: Tensor) -> Tensor | None:
        """Return the airlight ``(n, 3, 1, 1)`` that the fused tokens of tiles carry, or None, see `Head.air`."""
        return self.head.air(fused[..., self.decoder.width :])

    def forward(self, x: Tensor, origin: tuple[int, int] = (0, 0)) -> Tensor:
        """Dehaze whole images at once.

        Parameters
        ----------
        x
            ``(n, 3, h, w)`` in [0, 1], any size; reflect-padded to whole tiles.
        origin
            Row and column of the first token in a larger image, see `fuse`.

        Returns
        -------
        Tensor
            ``(n, 3, h, w)``, float32, not clipped.
        """
        gain, bias, _ = self.predict_affine(x, origin)
        return gain * x.float() + bias

    def predict_affine(self, x: Tensor, origin: tuple[int, int] = (0, 0), part: int | None = None) -> Affine:
        """Return gain and bias of whole images ``(n, 3, h, w)`` in [0, 1].

        With `part`, that many tiles are computed at once, and in training their activations are computed again in
        the backward pass rather than kept (gradient checkpointing), so that large crops fit.
        """
        h, w = x.shape[2:]
        tile, halo = self.spec.tile, self.spec.halo
        rows, cols = math.ceil(h / tile), math.ceil(w / tile)
        tiles = to_tiles(pad(x, halo, tile), halo, tile).split(part or x.shape[0] * rows * cols)
        run = self._recomputed if part and torch.is_grad_enabled() else self._kept
        maps = [run(self.encode, some) for some in tiles]
        fused = self.fuse(tiles_to_grid(torch.cat([m[-1] for m in maps]), rows, cols), origin)
        own = grid_to_tiles(fused).split([len(some) for some in tiles])
        parts = [run(self.decode, *stage) for stage in zip(own, maps, tiles, strict=True)]

        def joined(tensors: Sequence[Tensor]) -> Tensor:
            return from_tiles(torch.cat(list(tensors)), rows, cols)[:, :, :h, :w]

        gain, bias = joined([each.gain for each in parts]), joined([each.bias for each in parts])
        if parts[0].haze is None:
            return Affine(gain, bias)
        thickness, *numbers = zip(*(each.haze for each in parts), strict=True)
        # The numbers of an image are those of any of its tiles.
        return Affine(gain, bias, Haze(joined(thickness), *(torch.cat(each)[:: rows * cols] for each in numbers)))

    def encode_overview(self, bands: Bands) -> Tokens:
        """Encode a whole image, shrunk to one tile.

        Parameters
        ----------
        bands
            What the image's tokens carry, see `Head.colors`. Tokens without data show the mean color of the others.

        Returns
        -------
        Tokens
            The shrunk image's ``(n, 8, 8, c)``, on the network's device.
        """
        image, shown = shrink(bands, self.head.colors)
        image = image.to(self.device)
        features = self.encoder(self.inputs(F.pad(image, (self._halo,) * 4, mode="reflect")))[-1]
        described = self.head.describe(image)
        assert described is not None
        return Tokens(features, described, None if shown is None else shown.to(self.device))

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


def shrink(bands: Bands, colors: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    """Shrink an image to one tile, a band at a time, where the tokens lie: it may be more than a device holds.

    Parameters
    ----------
    bands
        What the image's tokens carry.
    colors
        Returns the pixels of a band, see `Head.colors`.

    Returns
    -------
    image : Tensor
        ``(n, 3, 256, 256)``.
    shown : Tensor or None
        Whether there are data in each of its tokens ``(n, 8, 8)``; None for all.
    """
    mean = _mean_of_valid(bands)
    images, shown = [], []
    for extra, valid in bands():
        if valid is not None:
            extra = torch.where(valid[..., None], extra, mean.to(extra))
            shown.append(F.adaptive_max_pool2d(valid[:, None].float(), (valid.shape[1], SIDE)))
        image = colors(extra)
        images.append(F.interpolate(image, size=(image.shape[2], TILE), mode="bilinear", antialias=True))
    image = F.interpolate(torch.cat(images, dim=2), size=(TILE, TILE), mode="bilinear", antialias=True)
    seen = F.adaptive_max_pool2d(torch.cat(shown, dim=2), SIDE)[:, 0] > 0 if shown else None
    return image, None if seen is None or bool(seen.all()) else seen


def _mean_of_valid(bands: Bands) -> Tensor:
    """Return the mean of what tokens with data carry ``(extra,)``; NaN where all have data."""
    total, count = torch.zeros(()), 0
    for extra, valid in bands():
        if valid is not None:
            total = total + extra[valid].double().sum(0)
            count += int(valid.sum())
    return total / count


def crop(x: Tensor, margin: int) -> Tensor:
    """Take `margin` pixels off each side of ``(n, c, h, w)``."""
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin]


def local_max(x: Tensor) -> Tensor:
    """Maximum over the 15 x 15 neighborhood; the result ``(n, c, h, w)`` is 7 pixels smaller on each side."""
    side = 2 * DARK_RADIUS + 1
    return F.max_pool2d(F.max_pool2d(x, (side, 1), stride=1), (1, side), stride=1)
