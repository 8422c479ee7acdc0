"""Fusing: the tokens of all tiles attend to each other, and the haze of the whole image is found.

`fuse` is written once, for tokens that lie in one tensor (`TokenTensor`, with gradients) and for tokens that are
streamed from a store through a device some tiles at a time (`dehazexl.engine.fuse.StreamedTokens`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dehazexl.image.grid import SIDE
from dehazexl.model.context import Context, ContextLayer
from dehazexl.model.heads import Head
from dehazexl.model.tokens import Tokens, Votes, merge
from dehazexl.model.windows import Local

T = TypeVar("T")

Bands = Callable[[], Iterator[tuple[Tensor, "Tensor | None"]]]
"""Function that yields bands of an image's tokens, from top to bottom: what they carry ``(n, h, w, extra)``, and which
of them have data ``(n, h, w)``, None for all."""

KeysValues = Iterable[tuple[Tensor, ...]]
"""Keys and values in blocks, each ``(n, heads, tokens, channels)``, and possibly how often they count, see `attend`."""


class TokenGrid(Protocol):
    """All tokens of an image, wherever they are. Methods that go over them yield after each part of the work."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, rows and columns of tokens."""

    @property
    def overlap(self) -> float:
        """Overlap of the tiles, in pixels as the network sees them."""

    @property
    def origin(self) -> tuple[int, int]:
        """Row and column of the first token."""

    def bands(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See `Bands`."""

    def embed(self, compute: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """Replace the features by what `compute` makes of them, their rows and their columns."""

    def convolve(self, layer: Local) -> None:
        """Convolve the features over the whole grid."""

    def keys_values(
        self, compute: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], further: tuple[Tensor, Tensor] | None
    ) -> Generator[int, None, KeysValues]:
        """Return what `compute` makes of features and validity, and further keys and values."""

    def update(
        self, compute: Callable[[KeysValues, Tensor], Tensor], keys_values: KeysValues
    ) -> Generator[int, None, None]:
        """Replace the features by what `compute` makes of `keys_values` and them; yield the tiles of each part."""

    def remember(self, compute: Callable[[], Tensor]) -> Tensor:
        """Return the overview's features ``(1, 8, 8, c)`` after the layer, computed now or by an interrupted run."""

    def vote(self, compute: Callable[[Tokens], Votes]) -> Generator[int, None, list[Votes]]:
        """Return what `compute` makes of all parts of the tokens."""

    def carry(self, compute: Callable[[Tokens], Tensor]) -> Generator[int, None, None]:
        """Replace the extra channels by what `compute` makes of rectangles of tiles, at most as many as before."""


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

    def bands(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See `TokenGrid.bands`."""
        yield self.extra, None

    def embed(self, compute: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """See `TokenGrid.embed`."""
        places = (
            torch.arange(size, device=self.features.device) + first
            for size, first in zip(self.shape[1:], self.origin, strict=True)
        )
        self.features = compute(self.features, *torch.meshgrid(*places, indexing="ij"))

    def convolve(self, layer: Local) -> None:
        """See `TokenGrid.convolve`."""
        self.features = layer(self.features)

    def keys_values(
        self, compute: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], further: tuple[Tensor, Tensor] | None
    ) -> Generator[int, None, KeysValues]:
        """See `TokenGrid.keys_values`."""
        parts = [compute(self.features, None)] + ([] if further is None else [further])
        yield 0
        return [join_keys_values(parts)]

    def update(
        self, compute: Callable[[KeysValues, Tensor], Tensor], keys_values: KeysValues
    ) -> Generator[int, None, None]:
        """See `TokenGrid.update`."""
        self.features = compute(keys_values, self.features)
        yield self.shape[1] * self.shape[2] // SIDE**2

    def remember(self, compute: Callable[[], Tensor]) -> Tensor:
        """See `TokenGrid.remember`."""
        return compute()

    def vote(self, compute: Callable[[Tokens], Votes]) -> Generator[int, None, list[Votes]]:
        """See `TokenGrid.vote`."""
        yield 0
        return [compute(Tokens(self.features, self.extra))]

    def carry(self, compute: Callable[[Tokens], Tensor]) -> Generator[int, None, None]:
        """See `TokenGrid.carry`."""
        carried = compute(Tokens(self.features, self.extra))
        self.extra = F.pad(carried, (0, self.extra.shape[-1] - carried.shape[-1]))
        yield 0

    def tokens(self) -> Tensor:
        """Return the tokens ``(n, h, w, channels)``."""
        if not self.extra.shape[-1]:
            return self.features
        return torch.cat([self.features.to(self.extra.dtype), self.extra], dim=-1)


def join_keys_values(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Join blocks of keys and values to one."""
    keys, values = zip(*parts, strict=True)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def fuse(
    context: Context, head: Head, grid: TokenGrid, encode_overview: Callable[[Bands], Tokens] | None
) -> Iterator[int]:
    """Let all tokens attend to each other, then find the haze of the whole image.

    In each layer, the keys and values of all tokens come before the first of them changes.

    Parameters
    ----------
    context, head, grid
        Parts of the network, and the tokens, which are replaced.
    encode_overview
        Returns the tokens of the image shrunk to one tile, which take part, see `DehazeXL.encode_overview`; None for
        none.

    Yields
    ------
    int
        Tiles that are done, each once a layer; 0 after other parts of the work.
    """
    overview = None if encode_overview is None else encode_overview(grid.bands)
    grid.embed(context.embed)
    if overview is not None:
        embedded = context.embed_overview(overview.features, grid.shape[1:], grid.origin)
        overview = overview._replace(features=embedded)
    for layer in context:
        further = None
        if layer.local is not None:
            grid.convolve(layer.local)
            overview = overview and overview._replace(features=layer.local(overview.features))
        if overview is not None:
            further = layer.keys_values(overview.features, overview.valid, side=1)
        keys_values = yield from idle(grid.keys_values(layer.keys_values, further))
        attend = partial(_attend, layer)
        if overview is not None:
            overview = overview._replace(features=grid.remember(partial(attend, keys_values, overview.features)))
        yield from grid.update(attend, keys_values)
    if not context.layers:
        yield from idle(grid.update(lambda _, features: features, []))  # embedded, at least
    if head.votes:
        votes = yield from idle(grid.vote(head.vote))
        decided = merge(votes if overview is None else [*votes, head.vote(overview)])
        yield from idle(grid.carry(partial(head.carried, decided, overlap=grid.overlap)))


def _attend(layer: ContextLayer, keys_values: KeysValues, features: Tensor) -> Tensor:
    """Update the features ``(n, h, w, c)`` of some tokens, given keys and values of all."""
    updated: Tensor = layer(features.flatten(1, 2), keys_values)
    return updated.view(features.shape)


def idle(steps: Generator[int, None, T]) -> Generator[int, None, T]:
    """Go through steps whose tiles do not count as progress."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value
        yield 0
