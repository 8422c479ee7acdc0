"""Head ``field``: one field of haze over the whole image, removed pixel by pixel, see `dehazexl.model.haze`.

All tokens vote on the numbers of the whole image. The low frequencies of the field come from the tokens, as one number
for each 16 x 16 pixels, and are interpolated over the whole grid of tiles by a quadratic B-spline, so that tiles meet
without a step. The decoder adds what is finer, which fades out at the borders of its tile, and lets the field follow
the edges of the image by a local linear model of the colors (He, Sun and Tang, Guided image filtering, 2013).

With ``prior``, each number of the field is that of its token plus a share, which the token sets, of what the dark
channel prior says under the airlight and tone that all tokens voted for (He, Sun and Tang, Single image haze removal
using dark channel prior, 2011).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dehazexl.image.grid import SIDE, TILE, TOKEN
from dehazexl.model.haze import Haze, to_light
from dehazexl.model.heads.base import Affine, Head, convolution, enlarge, haziness, linear, logits
from dehazexl.model.spec import CELLS, PATCHES
from dehazexl.model.tokens import Tokens, Votes, count_votes

if TYPE_CHECKING:
    from dehazexl.model.spec import Spec

CELL = TOKEN // CELLS
"""Side of a cell, in pixels as the network sees them."""

WINDOW = CELLS + 2
"""Side of the window of cells that a token carries to the decoder: its own and one around them."""

BLOCK = 8
"""Side of the blocks whose darkest values the prior uses, in pixels as the network sees them."""

KEPT = 0.95
"""Share of the haze that the prior removes."""

STRIDE = 4
"""Side of a cell of the decoder's correction, in pixels as the network sees them."""

FADE = 4
"""Cells of the correction that fade out at a tile's border."""

VALUES = 6
"""Numbers of the whole image: logits of the airlight (3), logarithms of the exponents of red and blue, the tone."""

CORRECTION = 4
"""Numbers of the correction: its own, and its slopes by red, green and blue."""

VOTERS = 4
"""Ways to weigh the tokens when they vote."""


class Field(Head):
    """One field of optical thickness over the whole image, and its airlight, exponents and tone."""

    outputs = CORRECTION
    scattering = True
    known = 5  # logits of the thickness, the airlight, the tone
    votes = True

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        width = spec.widths[-1]
        self.norm = nn.LayerNorm(width)
        self.coarse = nn.Linear(width, CELLS**2)
        self.trust = nn.Linear(width, CELLS**2) if spec.prior else None
        self.score = nn.Linear(width, VOTERS)
        self.elect = nn.Sequential(nn.Linear(VOTERS * (width + 3), width), nn.GELU(), nn.Linear(width, VALUES))

    @classmethod
    def check(cls, spec: Spec) -> None:
        """See `Head.check`."""
        if spec.head_stride != 4:
            raise ValueError("the head 'field' needs head_stride 4")
        if spec.guided or spec.airlight != "pixels":
            raise ValueError(f"guided and airlight need the head 'scattering', not {spec.head!r}")

    def initialize(self) -> None:
        """Start with a thin haze, and an airlight a little brighter than the haziest places."""
        super().initialize()
        nn.init.normal_(self.coarse.weight, std=0.02)
        nn.init.constant_(self.coarse.bias, -1.0)
        if self.trust is not None:
            nn.init.zeros_(self.trust.weight)
            nn.init.zeros_(self.trust.bias)
        nn.init.zeros_(self.score.weight)
        last = self.elect[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        last.bias.data = torch.tensor([0.5, 0.5, 0.5, 0.0, 0.0, 0.0])

    def describe(self, tiles: Tensor) -> Tensor | None:
        """Return the mean colors of 4 x 4 patches of each token, and with the prior the darkest values of its cells.

        See `Head.describe`.
        """
        tiles = tiles.float()
        found = [by_token(F.avg_pool2d(tiles, TOKEN // PATCHES), PATCHES)]
        if self.trust is not None:
            darkest = -F.max_pool2d(-tiles, BLOCK)
            found.append(by_token(F.avg_pool2d(darkest, CELL // BLOCK), CELLS))
        return torch.cat(found, dim=-1)

    def colors(self, extra: Tensor) -> Tensor:
        """See `Head.colors`: a pixel for each patch."""
        n, h, w, _ = extra.shape
        colors = patches(extra).float().view(n, h, w, PATCHES, PATCHES, 3).permute(0, 5, 1, 3, 2, 4)
        return colors.reshape(n, 3, h * PATCHES, w * PATCHES)

    def vote(self, tokens: Tokens) -> Votes:
        """Let tokens vote on the numbers of the whole image, see `Head.vote`."""
        with torch.autocast(tokens.features.device.type, enabled=False):
            features, extra = tokens.select()
            features, colors = self.normalized_features(features), mean_colors(patches(extra))
            weights = linear(self.score, features) + F.pad(haziness(colors), (0, VOTERS - 1))
            return count_votes(weights, torch.cat([features, logits(colors)], dim=-1))

    def normalized_features(self, fused: Tensor) -> Tensor:
        """Normalize fused tokens ``(..., c)``, in float32."""
        weight, bias = self.norm.weight.float(), self.norm.bias.float()
        return F.layer_norm(fused.float(), self.norm.normalized_shape, weight, bias)

    def carried(self, votes: Tensor, tokens: Tokens, overlap: float) -> Tensor:
        """Return the window of cells around each token, and the numbers of the whole image, see `Head.carried`."""
        n, h, w, _ = tokens.features.shape
        with torch.autocast(votes.device.type, enabled=False):
            features = self.normalized_features(tokens.features)
            cells = linear(self.coarse, features)
            first, _, last = self.elect
            assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
            values = linear(last, F.gelu(linear(first, votes.flatten(1))))
            values = torch.cat([values[:, :3] + votes[:, 0, -3:], values[:, 3:]], dim=1)
            if self.trust is not None:
                darkest = tokens.extra[..., 3 * PATCHES**2 :].float().unflatten(-1, (CELLS**2, 3))
                cells = cells + linear(self.trust, features) * prior(darkest, values)
            field = cells.unflatten(-1, (CELLS, CELLS)).transpose(2, 3).reshape(n, h * CELLS, w * CELLS)
            return torch.cat([windows(field, overlap / CELL), values[:, None, None].expand(n, h, w, -1)], dim=-1)

    def guide(self, carried: Tensor) -> Tensor | None:
        """Return the field as the tokens predict it, the airlight and the tone, see `Head.guide`."""
        cells, values = unpacked(carried)
        field = upsample(cells, CELL // STRIDE)[..., None]
        whole = torch.sigmoid(values[:, None, None, [0, 1, 2, 5]])
        return torch.cat([field, whole.expand(*field.shape[:3], -1)], dim=-1)

    def air(self, carried: Tensor) -> Tensor | None:
        """See `Head.air`."""
        return torch.sigmoid(unpacked(carried)[1][:, :3, None, None])

    def forward(self, features: Tensor, carried: Tensor, inputs: Tensor, tiles: Tensor) -> Affine:
        """See `Head.forward`."""
        cells, values = unpacked(carried)
        found = haze(thickness(cells, convolution(self.output, features), tiles), values)
        return Affine(*found.removal(tiles), found)


def by_token(pixels: Tensor, side: int) -> Tensor:
    """Give each token its square of a shrunk image ``(n, 3, 8 side, 8 side)``: ``(n, 8, 8, side * side * 3)``."""
    return pixels.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 4, 5, 1).flatten(3)


def patches(extra: Tensor) -> Tensor:
    """Return the colors of the patches out of what tokens carry ``(..., extra)``."""
    return extra[..., : 3 * PATCHES**2]


def prior(darkest: Tensor, values: Tensor) -> Tensor:
    """Return the field according to the dark channel prior, as the logits of `thickness`.

    Parameters
    ----------
    darkest
        Darkest values of the cells ``(n, h, w, cells, 3)``.
    values
        Numbers of the image ``(n, VALUES)``.

    Returns
    -------
    Tensor
        ``(n, h, w, cells)``: the largest thickness for which no color of the cell becomes negative.
    """
    _, airlight, exponents, tone = haze(values, values)
    air, seen = to_light(airlight, tone), to_light(darkest.flatten(1, 3).transpose(1, 2)[..., None], tone)
    density = KEPT * (seen / air).clamp(1 - KEPT, 1)
    thickest = (-torch.log1p(-density) / exponents).amin(1)  # (n, h * w * cells, 1)
    return torch.log(torch.expm1(thickest)).view(darkest.shape[:-1])


def mean_colors(patches: Tensor) -> Tensor:
    """Return the mean colors ``(..., 3)`` of tokens from those of their patches ``(..., 3 * PATCHES * PATCHES)``."""
    return patches.float().unflatten(-1, (PATCHES**2, 3)).mean(-2)


def unpacked(carried: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cells ``(n, 18, 18)`` and the numbers of the whole image ``(n, VALUES)`` that tokens carry."""
    carried = carried[..., : WINDOW**2 + VALUES].float()
    return join(carried[..., : WINDOW**2]), carried[:, 0, 0, WINDOW**2 :]


def windows(cells: Tensor, overlap: float = 0) -> Tensor:
    """Give each token its own cells and a border of one cell; `join` is the inverse, for the tokens of one tile.

    Parameters
    ----------
    cells
        Of grids of tiles ``(n, 16 rows, 16 cols)``.
    overlap
        Of the tiles, in cells: what lies beyond a tile's border is taken from its neighbor, where the neighbor has it.

    Returns
    -------
    Tensor
        ``(n, 8 rows, 8 cols, WINDOW * WINDOW)``; beyond the image its outermost cells are repeated.
    """
    side = SIDE * CELLS
    tiles = cells.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (n, rows, 16, cols, 16)
    tiles = bordered(bordered(tiles, 1, overlap), 3, overlap)  # (n, rows, 18, cols, 18)
    own = tiles.unfold(2, WINDOW, CELLS).unfold(4, WINDOW, CELLS)  # (n, rows, 8, cols, 8, WINDOW, WINDOW)
    return own.reshape(len(cells), cells.shape[1] // CELLS, cells.shape[2] // CELLS, WINDOW**2)


def bordered(tiles: Tensor, axis: int, overlap: float) -> Tensor:
    """Add a cell of its neighbors to both ends of each tile.

    Parameters
    ----------
    tiles
        Tiles along `axis`, their cells along the axis after it.
    axis, overlap
        See `windows`.
    """
    count, side = tiles.shape[axis : axis + 2]

    def between(tiles: Tensor, place: float) -> Tensor:
        low = min(int(place), side - 2)
        return torch.lerp(tiles.narrow(axis + 1, low, 1), tiles.narrow(axis + 1, low + 1, 1), place - low)

    before = [tiles.narrow(axis, 0, 1).narrow(axis + 1, 0, 1)]
    after = [tiles.narrow(axis, count - 1, 1).narrow(axis + 1, side - 1, 1)]
    if count > 1:
        before.append(between(tiles.narrow(axis, 0, count - 1), side - 1 - overlap))
        after.insert(0, between(tiles.narrow(axis, 1, count - 1), overlap))
    return torch.cat([torch.cat(before, axis), tiles, torch.cat(after, axis)], axis + 1)


def join(windows: Tensor) -> Tensor:
    """Put the windows of tiles' tokens ``(n, 8, 8, WINDOW * WINDOW)`` together: ``(n, 18, 18)`` cells."""
    cells = torch.arange(SIDE * CELLS + 2, device=windows.device)
    token = ((cells - 1).div(CELLS, rounding_mode="floor")).clamp(0, SIDE - 1)
    place = cells - CELLS * token
    # Flattened: the gradient of indexing by several axes is summed by several threads, in any order.
    index = ((token[:, None] * SIDE + token) * WINDOW + place[:, None]) * WINDOW + place
    return windows.flatten(1).index_select(1, index.flatten()).unflatten(1, index.shape)


@lru_cache
def spline(cells: int, ratio: int, device: torch.device) -> Tensor:
    """Return the matrix ``(ratio * cells, cells + 2)`` that interpolates cells with one more at each end.

    Quadratic B-spline: it and its slope are continuous, and it depends only on adjacent cells.
    """
    place = (torch.arange(ratio, dtype=torch.float64) + 0.5) / ratio - 0.5  # within a cell, from its middle
    weights = torch.stack([(0.5 - place) ** 2 / 2, 0.75 - place**2, (0.5 + place) ** 2 / 2], dim=1)
    matrix = torch.zeros(cells, ratio, cells + 2, dtype=torch.float64)
    for cell in range(cells):
        matrix[cell, :, cell : cell + 3] = weights
    return matrix.flatten(0, 1).float().to(device)


@lru_cache
def fade(device: torch.device) -> Tensor:
    """Return the weight ``(64, 64)`` of the decoder's correction: 1 inside a tile, less towards its border."""
    side = TILE // STRIDE
    place = torch.arange(side, dtype=torch.float32) + 0.5
    rise = torch.sin(torch.pi / 2 * (torch.minimum(place, side - place) / FADE).clamp(max=1)) ** 2
    return (rise[:, None] * rise).to(device)


def upsample(cells: Tensor, ratio: int) -> Tensor:
    """Interpolate cells ``(n, h + 2, w + 2)`` to ``(n, ratio h, ratio w)``, see `spline`."""
    with torch.inference_mode(False):  # training uses the cached matrices, too
        down, across = (spline(size - 2, ratio, cells.device) for size in cells.shape[1:])
    return down @ cells @ across.T


def thickness(cells: Tensor, correction: Tensor, colors: Tensor) -> Tensor:
    """Return the thickness of tiles' haze.

    Parameters
    ----------
    cells
        Of tiles, with one around them ``(n, 18, 18)``.
    correction
        The decoder's answer ``(n, CORRECTION, 64, 64)``.
    colors
        Pixels of the tiles ``(n, 3, side, side)``, float32.

    Returns
    -------
    Tensor
        ``(n, 1, side, side)``.
    """
    side = colors.shape[-1]
    ratio = CELL // STRIDE
    with torch.inference_mode(False):
        inside = fade(correction.device)
    added, slopes = correction.split([1, CORRECTION - 1], dim=1)
    # Low frequencies are left to the cells; a single tile cannot determine them.
    low = F.pad(F.avg_pool2d(added, ratio), (1, 1, 1, 1), mode="replicate")
    # Faded out last: tiles meet where nothing of the correction is left.
    added, slopes = (added - upsample(low[:, 0], ratio)[:, None]) * inside, slopes * inside
    scale = side // added.shape[-1]
    detail = colors - enlarge(F.avg_pool2d(colors, scale), side)
    logits = upsample(cells, side // (SIDE * CELLS))[:, None] + enlarge(added, side)
    return F.softplus(logits + (enlarge(slopes, side) * detail).sum(1, keepdim=True))


def haze(thickness: Tensor, values: Tensor) -> Haze:
    """Put haze together from its thickness ``(n, 1, h, w)`` and the numbers of the image ``(n, VALUES)``."""
    airlight, red, blue, tone = values[:, :, None, None].split([3, 1, 1, 1], dim=1)
    exponents = torch.cat([red, torch.zeros_like(red), blue], dim=1).clamp(-1, 1).exp()
    return Haze(thickness, torch.sigmoid(airlight), exponents, torch.sigmoid(tone))
