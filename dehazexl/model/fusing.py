"""Fusing: the tokens of all tiles attend to each other, and the haze of the whole image is found.

`fuse` is written once, for tokens that lie in one tensor (`TokenTensor`, with gradients) and for tokens that are
streamed through a device a few tiles at a time (`dehazexl.engine.fuse.StreamedTokens`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dehazexl.image.grid import SIDE
from dehazexl.model.context import Context, ContextLayer
from dehazexl.model.heads import Head
from dehazexl.model.tokens import Tokens, merge
from dehazexl.model.windows import Local

T = TypeVar("T")

OverviewEncoder = Callable[[Tensor, Tensor | None, tuple[int, int]], Tokens]
"""See `DehazeXL.encode_overview`."""


class TokenGrid(Protocol):
    """All tokens of an image, wherever they are. Its methods yield after each part of the work."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, rows and columns of tokens."""

    @property
    def overlap(self) -> float:
        """Overlap of the tiles, in pixels as the network sees them."""

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the first token."""

    def map(self, compute: Callable[[Tokens], T]) -> Generator[int, None, list[T]]:
        """Yield the number of tiles of each part; return what `compute` makes of all parts, in order."""

    def update(self, compute: Callable[[Tokens], Tensor]) -> Generator[int, None, None]:
        """Replace the features by what `compute` makes of them; yield the number of tiles of each part."""

    def convolve(self, layer: Local) -> Iterator[int]:
        """Convolve the features over the whole grid; yield 0 after each part."""

    def join(self, parts: list[Tensor]) -> Tensor:
        """Join the tensors ``(n, h, w, k)`` that `map` returned to the grid of the whole image."""

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """Return extra channels ``(n, h, w, k)`` and validity ``(n, h, w)`` of the whole image."""

    def put(self, extra: Tensor) -> None:
        """Replace the extra channels of all tokens by ``(n, h, w, k)``, k at most as many as before."""


class TokenTensor:
    """The tokens of whole images in one tensor ``(n, h, w, channels)``, the first `width` of them features.

    Parameters
    ----------
    tokens, width
        See above.
    origin
        Row and column of the first token in the image.
    """

    overlap = 0.0

    def __init__(self, tokens: Tensor, width: int, origin: tuple[int, int] = (0, 0)) -> None:
        self.origin, self.shape = origin, (tokens.shape[0], tokens.shape[1], tokens.shape[2])
        self.features, self.extra = tokens.split([width, tokens.shape[-1] - width], dim=-1)
        places = (
            torch.arange(size, device=tokens.device) + first
            for size, first in zip(tokens.shape[1:3], origin, strict=True)
        )
        self.rows, self.cols = torch.meshgrid(*places, indexing="ij")

    def map(self, compute: Callable[[Tokens], T]) -> Generator[int, None, list[T]]:
        """See `TokenGrid.map`."""
        result = compute(Tokens(self.features, self.extra, self.rows, self.cols))
        yield self.rows.numel() // SIDE**2
        return [result]

    def update(self, compute: Callable[[Tokens], Tensor]) -> Generator[int, None, None]:
        """See `TokenGrid.update`."""
        (self.features,) = yield from self.map(compute)

    def convolve(self, layer: Local) -> Iterator[int]:
        """See `TokenGrid.convolve`."""
        self.features = layer(self.features)
        yield 0

    def join(self, parts: list[Tensor]) -> Tensor:
        """See `TokenGrid.join`."""
        (whole,) = parts
        return whole

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """See `TokenGrid.whole`."""
        return self.extra, None

    def put(self, extra: Tensor) -> None:
        """See `TokenGrid.put`."""
        self.extra = F.pad(extra, (0, self.extra.shape[-1] - extra.shape[-1]))

    def tokens(self) -> Tensor:
        """Return the tokens ``(n, h, w, channels)``."""
        if not self.extra.shape[-1]:
            return self.features
        return torch.cat([self.features.to(self.extra.dtype), self.extra], dim=-1)


def fuse(context: Context, head: Head, grid: TokenGrid, encode_overview: OverviewEncoder | None) -> Iterator[int]:
    """Let all tokens attend to each other, then find the haze of the whole image.

    Parameters
    ----------
    context, head, grid
        Parts of the network, and the tokens, which are replaced.
    encode_overview
        Returns the tokens of the image shrunk to one tile, which take part, from `TokenGrid.whole`; None for none.

    Yields
    ------
    int
        Tiles that are done, each once a layer; 0 after other parts of the work.
    """
    overview = None if encode_overview is None else encode_overview(*grid.whole(), grid.origin)
    yield from idle(grid.update(context.embed))
    if overview is not None:
        overview = overview._replace(features=context.embed_overview(overview))
    for layer in context:
        if layer.local is not None:
            yield from grid.convolve(layer.local)
            overview = overview and overview._replace(features=layer.local(overview.features))
        parts = yield from idle(grid.map(partial(_keys_values, layer)))
        if overview is not None:
            parts.append(layer.keys_values(overview.features, overview.valid, side=1))
        keys, values = (torch.cat(part, dim=2) for part in zip(*parts, strict=True))
        attend = partial(_attend, layer, keys, values)
        overview = overview and overview._replace(features=attend(overview))
        yield from grid.update(attend)
    if head.surveys:
        surveys = yield from idle(grid.map(head.survey))
        votes = [survey.votes for survey in surveys] + ([head.survey(overview).votes] if overview else [])
        cells = [survey.cells for survey in surveys if survey.cells is not None]
        grid.put(head.carried(merge(votes), grid.join(cells) if cells else None, grid.shape, grid.overlap))


def _keys_values(layer: ContextLayer, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Return the keys and values of some tokens."""
    return layer.keys_values(tokens.features, tokens.valid)


def _attend(layer: ContextLayer, keys: Tensor, values: Tensor, tokens: Tokens) -> Tensor:
    """Update the features of some tokens, given keys and values of all."""
    return layer(tokens.features.flatten(1, 2), keys, values).view(tokens.features.shape)


def idle(steps: Generator[int, None, T]) -> Generator[int, None, T]:
    """Go through steps whose tiles do not count as progress."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        yield 0
