"""The response of a detector to a window of the dehazed image, and its gradient with respect to all pixels.

The gradient is that of the whole image at once; the passes bound its memory:

1. All tiles are encoded without gradients, and their tokens kept.
2. The tokens are fused; the features of each layer are kept, all else is computed again in the backward pass.
3. The window is decoded without gradients, and the detector's gradient taken there; then its tiles are decoded again,
   batch by batch, with gradients with respect to their fused tokens and, through feature maps, to their pixels.
4. The gradient of the fused tokens goes back through the context to the tokens of all tiles.
5. Each tile is encoded again, batch by batch, with gradients, which carry that of its tokens to its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dehazexl.engine.decode import DecodedTiles, add
from dehazexl.engine.encode import valid_tokens
from dehazexl.engine.explain.detectors import Detector
from dehazexl.engine.job import Job, computing
from dehazexl.engine.tiles import Tiles
from dehazexl.image.grid import SIDE, Window, reflect
from dehazexl.model.fusing import KeysValues, TokenTensor, join_keys_values
from dehazexl.model.network import crop, grid_to_tiles, tiles_to_grid
from dehazexl.model.tokens import Tokens, Votes

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")

Cell = tuple[int, int]

Baseline = Callable[[Tiles], "NDArray[np.float32]"]
"""Returns the colors ``(y, x, 3)`` of the baseline, on the unit scale, where tiles of the image were read."""


@dataclass(frozen=True)
class Pair:
    """The same tiles at the end and at the start of a straight path.

    Attributes
    ----------
    job
        The image.
    image, baseline
        The tiles at the end and at the start.
    speed
        See `Path`.
    """

    job: Job
    image: Tiles
    baseline: Tiles
    speed: float = 1.0

    def between(self, cells: list[Cell], shares: NDArray[np.float32]) -> Tensor:
        """Return tiles ``(n, 3, side, side)`` between the baseline and the image, on the network's device.

        They have the network's halo and are on the unit scale, not clipped. `shares` ``(n,)`` is 0 for the baseline and
        1 for the image. Pixels without data get the mean of the tile, as in `Tiles.tile`.
        """
        start, _ = self.baseline.stack(self.job, cells)
        end, _ = self.image.stack(self.job, cells)
        return torch.lerp(start, end, torch.from_numpy(shares).to(end).view(-1, 1, 1, 1))

    def contribute(self, cells: list[Cell], gradients: Tensor, total: NDArray[np.float32]) -> None:
        """Add gradients of tiles ``(n, 3, side, side)`` times the path's derivative, summed over colors.

        `total` ``(y, x)`` holds the pixels that were read; those without data get nothing.
        """
        halo = self.job.model.spec.halo
        for cell, gradient in zip(cells, gradients.float().permute(0, 2, 3, 1).cpu().numpy(), strict=True):
            inside = self.job.grid.tile(*cell).expand(halo).to_slices(self.image.window)
            valid = self.image.valid[inside]
            # Hazy minus baseline, for a path in one piece.
            derivative = np.float32(self.speed) * (self.image.rgb[inside] - self.baseline.rgb[inside])
            total[inside] += (unfilled(gradient, valid) * derivative).sum(-1)


def unfilled(gradient: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give the gradient ``(y, x, 3)`` of filled pixels to those whose mean they were filled with, see `Tiles.tile`."""
    if valid.all():
        return gradient
    filling = gradient[~valid].sum(0) / max(int(valid.sum()), 1)
    return np.where(valid[..., None], gradient + filling, np.float32(0))


def add_reflected(part: NDArray[np.float32], window: Window, total: NDArray[np.float32]) -> None:
    """Add values ``(y, x)`` of a window to those of the image, whose pixels are repeated beyond it by reflection."""
    for axis, (start, stop) in enumerate(((window.y0, window.y1), (window.x0, window.x1))):
        index = reflect(np.arange(start, stop), total.shape[axis])
        first = int(index.min())
        folded = np.zeros((int(index.max()) + 1 - first, part.shape[1]), np.float32)
        np.add.at(folded, index - first, part)
        part = folded.T
        window = replace(window, **{("y0", "x0")[axis]: first, ("y1", "x1")[axis]: first + len(folded)})
    total[window.y0 : window.y1, window.x0 : window.x1] += part


@dataclass(frozen=True)
class Path:
    """The straight path from a baseline to an image, or a straight piece of a longer path between them.

    Attributes
    ----------
    job
        The image.
    baseline
        Where the path starts.
    end
        Where it ends; None for the image.
    speed
        Number of such pieces in the whole path, whose derivative is that many times end minus start.
    """

    job: Job
    baseline: Baseline
    end: Baseline | None = None
    speed: float = 1.0

    def read(self, tiles: Window) -> Pair:
        """Read a rectangle of tiles at both ends."""
        image = Tiles.read(self.job, tiles)
        start, end = (image if place is None else _placed(image, place(image)) for place in (self.baseline, self.end))
        return Pair(self.job, end, start, self.speed)


def _placed(image: Tiles, rgb: NDArray[np.float32]) -> Tiles:
    """Return tiles with other colors; pixels without data have none."""
    rgb[~image.valid] = 0
    return replace(image, rgb=rgb)


class RecomputedTokens(TokenTensor):
    """The tokens of one image; what is computed of them is computed again in the backward pass, a row of tiles each.

    Tiles without data are left out, as in `dehazexl.engine.fuse.StreamedTokens`.

    Parameters
    ----------
    tokens, width
        See `TokenTensor`.
    valid
        Tokens with data ``(1, h, w)``; without any, all count.
    overlap
        Overlap of the tiles, in pixels as the network sees them.
    """

    def __init__(self, tokens: Tensor, width: int, valid: Tensor, overlap: float) -> None:
        has_gaps = bool(valid.any()) and not bool(valid.all())
        self.valid = valid if has_gaps else None
        self._shown = by_tile(valid) if has_gaps else None
        super().__init__(tokens if self._shown is None else torch.where(self._shown, tokens, 0), width)
        self.overlap = overlap

    def bands(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See `TokenGrid.bands`."""
        yield self.extra, self.valid

    def embed(self, compute: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """See `TokenGrid.embed`."""
        super().embed(compute)
        if self._shown is not None:
            self.features = torch.where(self._shown, self.features, 0)

    def keys_values(
        self, compute: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]], further: tuple[Tensor, Tensor] | None
    ) -> Generator[int, None, KeysValues]:
        """See `TokenGrid.keys_values`."""
        parts = []
        for rows in self._rows():
            valid = self._valid(rows)
            if valid is None or bool(valid.any()):
                parts.append(_recomputed(compute, self.features[:, rows], valid))
            yield 0
        return [join_keys_values(parts if further is None else [*parts, further])]

    def update(
        self, compute: Callable[[KeysValues, Tensor], Tensor], keys_values: KeysValues
    ) -> Generator[int, None, None]:
        """See `TokenGrid.update`."""
        parts = []
        for rows in self._rows():
            parts.append(_recomputed(partial(compute, keys_values), self.features[:, rows]))
            yield self.shape[2] // SIDE
        features = torch.cat(parts, dim=1)
        self.features = features if self._shown is None else torch.where(self._shown, features, 0)

    def vote(self, compute: Callable[[Tokens], Votes]) -> Generator[int, None, list[Votes]]:
        """See `TokenGrid.vote`."""
        votes = []
        for rows in self._rows():
            valid = self._valid(rows)
            if valid is None or bool(valid.any()):
                votes.append(_recomputed(_count, compute, self.features[:, rows], self.extra[:, rows], valid))
            yield 0
        return votes

    def _rows(self) -> Iterator[slice]:
        """Yield the rows of tokens of each row of tiles."""
        for row in range(0, self.shape[1], SIDE):
            yield slice(row, row + SIDE)

    def _valid(self, rows: slice) -> Tensor | None:
        """Return which of some rows' tokens have data; None for all."""
        return None if self.valid is None or bool(self.valid[:, rows].all()) else self.valid[:, rows]


def by_tile(valid: Tensor) -> Tensor:
    """Return which tokens ``(1, h, w, 1)`` lie in tiles with data, from which tokens ``(1, h, w)`` have data."""
    tiles = valid.unflatten(2, (-1, SIDE)).unflatten(1, (-1, SIDE)).any(4).any(2)
    return tiles.repeat_interleave(SIDE, 1).repeat_interleave(SIDE, 2)[..., None]


def _count(compute: Callable[[Tokens], Votes], features: Tensor, extra: Tensor, valid: Tensor | None) -> Votes:
    """Count the votes of some tokens, which are passed as tensors on their own, for `checkpoint`."""
    return compute(Tokens(features, extra, valid))


def _recomputed(compute: Callable[..., T], *inputs: Any) -> T:
    """Compute something, and with gradients again in the backward pass."""
    if not torch.is_grad_enabled():
        return compute(*inputs)
    result: T = checkpoint(compute, *inputs, use_reentrant=False)
    return result


class Response:
    """The response D(F(x)) of a detector D to a window of the dehazed image F(x), for images x on a path.

    All methods take the shares ``(tiles,)`` of the image in each tile, 0 for the baseline and 1 for the image, in the
    order of rows. A tile's halo and overlap follow the tile. They yield the number of tiles after each part of the
    work, and 0 after parts that do not count; an exception thrown in there ends the work.

    Parameters
    ----------
    path
        The image and the baseline.
    window
        Pixels of the image.
    detector
        The detector.
    """

    def __init__(self, path: Path, window: Window, detector: Detector) -> None:
        self.path, self.job, self.window, self.detector = path, path.job, window, detector
        self._touched = self.job.grid.tiles_touching(window)
        self._valid = torch.zeros(self.job.grid.count, SIDE, SIDE, dtype=torch.bool)

    def tokens(self, shares: NDArray[np.float32]) -> Generator[int, None, Tensor]:
        """Encode all tiles without gradients: ``(tiles, 8, 8, channels)`` on the network's device."""
        model, grid = self.job.model, self.job.grid
        with torch.inference_mode(False):
            tokens = torch.zeros(grid.count, SIDE, SIDE, self.job.channels, device=model.device, dtype=model.dtype)
        for block in grid.blocks(grid.block):
            pair, cells = self.path.read(block), list(block.cells())
            for part, (found, valid) in self.job.memory.each(len(cells), partial(self._encode, pair, cells, shares)):
                places = self._places(cells[part])
                with torch.no_grad():
                    tokens[places] = found
                self._valid[places] = valid
                yield part.stop - part.start
        return tokens

    def _encode(self, pair: Pair, cells: list[Cell], shares: NDArray[np.float32], part: slice) -> tuple[Tensor, Tensor]:
        """Return tokens ``(n, 8, 8, channels)`` of some tiles, and which of them have data ``(n, 8, 8)``."""
        model = self.job.model
        _, valid = pair.image.stack(self.job, cells[part])
        with computing():
            x = pair.between(cells[part], shares[self._places(cells[part])])
            found = model.encode(x.clamp(0, 1))[-1]
        return found, torch.from_numpy(valid_tokens(valid, model.spec)).view(-1, SIDE, SIDE)

    def value(self, tokens: Tensor, shares: NDArray[np.float32]) -> Generator[int, None, float]:
        """Return the response to tiles with these tokens."""
        fused = yield from self._fuse(tokens)
        output = yield from self._output(fused, shares)
        return float(self.detector(output, self._valid_window()))

    def gradient(self, shares: NDArray[np.float32], total: NDArray[np.float32]) -> Generator[int, None, None]:
        """Add the gradient of the response times the derivative of the path to `total` ``(y, x)``.

        Tiles are counted twice: once when they are encoded, once when their gradient is.
        """
        tokens = yield from self.tokens(shares)
        fused = yield from self._fuse(tokens.requires_grad_())
        slope = self._slope((yield from self._output(fused.detach(), shares)))
        own = torch.zeros_like(fused)
        yield from self._decode_backward(fused.detach(), shares, slope, own, total)
        with computing(gradients=True):
            (passed,) = torch.autograd.grad(fused, tokens, own)
        del fused, own
        yield from self._encode_backward(shares, passed, total)

    def _places(self, cells: list[Cell]) -> NDArray[np.int_]:
        """Return the numbers of tiles in the order of rows."""
        rows, cols = np.array(cells).T
        return np.asarray(rows * self.job.grid.cols + cols)

    def _valid_window(self) -> Tensor:
        """Return which pixels of the window hold data."""
        read = Tiles.read(self.job, self._touched)
        return torch.from_numpy(read.valid[self.window.to_slices(read.window)])

    def _fuse(self, tokens: Tensor) -> Generator[int, None, Tensor]:
        """Fuse tokens, with gradients if they require them."""
        grid, model, gradients = self.job.grid, self.job.model, tokens.requires_grad
        with computing(gradients):
            valid = tiles_to_grid(self._valid[..., None], grid.rows, grid.cols)[..., 0].to(tokens.device)
            joined = tiles_to_grid(tokens, grid.rows, grid.cols)
            all_tokens = RecomputedTokens(joined, model.spec.widths[-1], valid, grid.overlap / model.spec.scale)
        steps = model.fuse_grid(all_tokens)
        while True:
            # Leave the mode at each yield; otherwise it would stay on in the caller.
            with computing(gradients):
                if next(steps, None) is None:
                    return grid_to_tiles(all_tokens.tokens())
            yield 0

    def _decoded(self, cells: list[Cell], x: Tensor, fused: Tensor) -> Tensor:
        """Dehaze tiles ``(n, 3, side, side)``."""
        model, seen = self.job.model, x.clamp(0, 1)
        affine = model.decode(fused, model.encode(seen), seen)
        return DecodedTiles(cells, crop(x, model.spec.halo), affine).clear

    def _output(self, fused: Tensor, shares: NDArray[np.float32]) -> Generator[int, None, Tensor]:
        """Dehaze the window: ``(3, y, x)``, float64, in the processor's memory."""
        total = torch.zeros(3, self.window.height, self.window.width)
        pair, cells = self.path.read(self._touched), list(self._touched.cells())

        def decode(part: slice) -> Tensor:
            places = self._places(cells[part])
            with computing():
                return self._decoded(cells[part], pair.between(cells[part], shares[places]), fused[places]).cpu()

        for part, clear in self.job.memory.each(len(cells), decode):
            with torch.no_grad():
                for cell, tile in zip(cells[part], clear, strict=True):
                    weight = torch.from_numpy(self.job.grid.blend_weight(*cell))
                    add(weight * tile, self.job.grid.tile(*cell), total, self.window)
            yield 0
        return total.double()

    def _slope(self, output: Tensor) -> Tensor:
        """Return the gradient ``(3, y, x)`` of the detector at the output of the window."""
        with computing(gradients=True):
            output = output.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.detector(output, self._valid_window()), output)
        return slope.float()

    def _slope_of(self, cells: list[Cell], slope: Tensor) -> Tensor:
        """Return the gradient ``(n, 3, side, side)`` of the detector for tiles, which are blended in the window."""
        side = self.job.grid.side
        result = torch.zeros(len(cells), 3, side, side)
        for cell, own in zip(cells, result, strict=True):
            tile = self.job.grid.tile(*cell)
            add(slope, self.window, own, tile)
            own *= torch.from_numpy(self.job.grid.blend_weight(*cell))
        return result

    def _decode_backward(
        self,
        fused: Tensor,
        shares: NDArray[np.float32],
        slope: Tensor,
        own: Tensor,
        total: NDArray[np.float32],
    ) -> Iterator[int]:
        """Decode the tiles of the window with gradients: those of their fused tokens go into `own`."""
        pair, cells = self.path.read(self._touched), list(self._touched.cells())
        contributions = np.zeros(pair.image.valid.shape, np.float32)

        def gradients(part: slice) -> tuple[Tensor, ...]:
            places = self._places(cells[part])
            with computing(gradients=True):
                x = pair.between(cells[part], shares[places]).requires_grad_()
                tokens = fused[places].requires_grad_()
                clear = self._decoded(cells[part], x, tokens)
                return torch.autograd.grad(clear, [x, tokens], self._slope_of(cells[part], slope).to(clear))

        for part, (pixels, tokens) in self.job.memory.each(len(cells), gradients):
            own[self._places(cells[part])] = tokens
            pair.contribute(cells[part], pixels, contributions)
            yield 0
        add_reflected(contributions, pair.image.window, total)

    def _encode_backward(
        self, shares: NDArray[np.float32], passed: Tensor, total: NDArray[np.float32]
    ) -> Iterator[int]:
        """Encode all tiles with gradients, given those of their tokens."""
        grid = self.job.grid
        for block in grid.blocks(grid.block):
            pair, cells = self.path.read(block), list(block.cells())
            contributions = np.zeros(pair.image.valid.shape, np.float32)
            gradients = partial(self._encoded_gradients, pair, cells, shares, passed)
            for part, pixels in self.job.memory.each(len(cells), gradients):
                pair.contribute(cells[part], pixels, contributions)
                yield part.stop - part.start
            add_reflected(contributions, pair.image.window, total)

    def _encoded_gradients(
        self, pair: Pair, cells: list[Cell], shares: NDArray[np.float32], passed: Tensor, part: slice
    ) -> Tensor:
        """Return the gradient ``(n, 3, side, side)`` of some tiles, given those of all tokens."""
        places = self._places(cells[part])
        with computing(gradients=True):
            x = pair.between(cells[part], shares[places]).requires_grad_()
            (pixels,) = torch.autograd.grad(self.job.model.encode(x.clamp(0, 1))[-1], x, passed[places])
        return pixels
