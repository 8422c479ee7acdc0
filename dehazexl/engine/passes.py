"""The passes over a picture's tiles: where its arrays meet the network.

``encode`` every tile, ``fuse`` all tokens, ``decode`` any window. See `engine.dehaze.dehaze` for their order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dehazexl.engine.memory import TilesAtOnce
from dehazexl.engine.tokens import TokenStore
from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import SIDE, TOKEN, TileGrid, Window
from dehazexl.image.image import Image, colors, valid_mask
from dehazexl.image.nodata import next_valid_value, nodata_as_dtype
from dehazexl.image.value_scale import ValueScale, to_dtype
from dehazexl.model import DehazeXL
from dehazexl.model.context import Airlight, ContextLayer
from dehazexl.model.field import CELL, KEPT, WINDOW, Field, windows
from dehazexl.model.network import grid_to_tiles, mean_colors, tiles_to_grid
from dehazexl.model.spec import MAPS, Spec
from dehazexl.model.windows import Local, repeat_edges

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")

# One network computes at a time: two would only share the same cores, or the memory of the same device.
_network = threading.Lock()


@contextmanager
def _computing() -> Iterator[None]:
    """Compute alone, and without what training needs."""
    with _network, torch.inference_mode():
        yield


@dataclass(frozen=True)
class Job:
    """A picture to be dehazed, and how.

    Attributes
    ----------
    image, grid, model
        The picture, how it is cut, and the network in eval mode.
    value_range
        The values of the picture that the network sees as 0 and 1.
    memory
        How many tiles are computed at once.
    strength
        0 returns the input, 1 the network's answer.
    keep
        Bytes: a picture whose feature maps fit in them is encoded once; a larger one again while decoding.
    """

    image: Image
    grid: TileGrid
    model: DehazeXL
    value_range: tuple[float, float]
    memory: TilesAtOnce
    strength: float = 1.0
    keep: int = 512 * 2**20

    @cached_property
    def pixels(self) -> ChunkCache:
        """The finest level, to be read in windows."""
        return ChunkCache(self.image.levels[0])

    @cached_property
    def kept(self) -> dict[tuple[int, int], list[Tensor]]:
        """Feature maps ``(h, w, c)`` of encoded tiles by row and column, if the picture is small."""
        return {}

    @property
    def caches_features(self) -> bool:
        """Whether the feature maps of all tiles fit in the memory allowed for them."""
        spec = self.model.spec
        maps = list(zip(spec.widths, MAPS, strict=True))
        if spec.head_stride == 4:
            maps.append((3 + len(spec.inputs), MAPS[0]))  # the input channels, see `DehazeXL.encode`
        numbers = sum(channels * side**2 for channels, side in maps)
        return self.grid.count * numbers * self.model.dtype.itemsize <= self.keep

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is merely cached behind when sent to another process."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @property
    def scale(self) -> ValueScale:
        """Between the picture's values and those that the network sees."""
        return ValueScale(*self.value_range)

    @property
    def channels(self) -> int:
        """Channels of a token."""
        return self.model.spec.channels

    @property
    def token_dtype(self) -> type[np.floating[Any]]:
        """How tokens are kept: half where the network computes in half, of either kind."""
        return np.float16 if self.model.dtype.itemsize == 2 else np.float32


@dataclass(frozen=True)
class Tiles:
    """Pixels of a rectangle of tiles, read at once.

    Attributes
    ----------
    raw
        ``(y, x, c)`` as the picture has them, with the network's halo.
    rgb
        ``(y, x, 3)``, float32: colors on the scale of the network.
    valid
        ``(y, x)``: pixels with data.
    window
        Where they lie.
    """

    raw: NDArray[Any]
    rgb: NDArray[np.float32]
    valid: NDArray[np.bool_]
    window: Window

    @classmethod
    def read(cls, job: Job, tiles: Window) -> Tiles:
        """Read a rectangle of tiles."""
        window = job.grid.tile_window(tiles).expand(job.model.spec.halo)
        raw = job.pixels.read(window)
        rgb = job.scale.to_unit(colors(raw, job.image))
        valid = valid_mask(raw, job.image)
        rgb[~valid] = 0  # so that NaN and infinities go nowhere
        return cls(raw, rgb, valid, window)

    def tile(self, job: Job, row: int, col: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Cut out a tile with its halo: ``(y, x, 3)`` without holes, and its validity ``(y, x)``."""
        inside = job.grid.tile(row, col).expand(job.model.spec.halo).to_slices(self.window)
        rgb, valid = self.rgb[inside], self.valid[inside]
        if not valid.all():
            # Holes get the tile's mean, so that they say nothing. It depends on the tile alone.
            mean = rgb[valid].mean(0) if valid.any() else np.float32(0.5)
            rgb = np.where(valid[..., None], rgb, mean)
        return rgb, valid

    def stack(self, job: Job, cells: list[tuple[int, int]]) -> tuple[Tensor, NDArray[np.bool_]]:
        """Return some tiles ``(n, 3, side, side)`` on the network's device, and their validity ``(n, side, side)``.

        They are on the unit scale, not clipped to it, and have the network's halo.
        """
        cut = [self.tile(job, row, col) for row, col in cells]
        x = torch.from_numpy(np.stack([rgb for rgb, _ in cut])).permute(0, 3, 1, 2)
        return x.to(job.model.device), np.stack([valid for _, valid in cut])


def encode(job: Job, store: TokenStore) -> Iterator[int]:
    """Encode all tiles that the store does not hold yet.

    Yields
    ------
    int
        Tiles done since the last, whether computed now or found in the store.
    """
    blocks = list(job.grid.blocks(job.grid.block))
    missing = [block for block in blocks if not store.done(block)]
    if found := job.grid.count - sum(block.height * block.width for block in missing):
        yield found
    for block, tiles in _read_ahead(job, missing):
        tokens, valid, cells = [], [], list(block.cells())
        for part, (maps, valid_pixels) in job.memory.each(len(cells), partial(_encode_batch, job, tiles, cells)):
            if job.caches_features:
                job.kept.update((cell, [m[i] for m in maps]) for i, cell in enumerate(cells[part]))
            tokens.append(_to_numpy(maps[-1], job))
            valid.append(_valid_tokens(valid_pixels, job.model.spec))
            yield part.stop - part.start
        shape = (block.height, block.width, SIDE * SIDE)
        store.put(block, np.concatenate(tokens).reshape(*shape, -1), np.concatenate(valid).reshape(shape))


def _encode_batch(
    job: Job, tiles: Tiles, cells: list[tuple[int, int]], part: slice
) -> tuple[list[Tensor], NDArray[np.bool_]]:
    """Return the feature maps of some tiles, see `DehazeXL.encode`, and the validity of their pixels."""
    x, valid = tiles.stack(job, cells[part])
    with _computing():
        return job.model.encode(x.clamp(0, 1)), valid


def _read_ahead(job: Job, blocks: list[Window]) -> Iterator[tuple[Window, Tiles]]:
    """Yield blocks with their pixels; the next are read while one is in use."""
    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(Tiles.read, job, block) for block in blocks[:1]]
        for block, following in zip(blocks, [*blocks[1:], None], strict=False):
            tiles = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(Tiles.read, job, following))
            yield block, tiles


def _to_numpy(tokens: Tensor, job: Job) -> NDArray[Any]:
    """Bring tokens ``(n, 8, 8, c)`` to the form in which they are kept, ``(n, 64, c)``."""
    return tokens.flatten(1, 2).float().cpu().numpy().astype(job.token_dtype)


def _valid_tokens(valid: NDArray[np.bool_], spec: Spec) -> NDArray[np.bool_]:
    """Tell which tokens ``(n, 64)`` have a pixel with data, from tiles ``(n, side, side)``."""
    inner = valid[:, spec.halo : spec.halo + spec.tile, spec.halo : spec.halo + spec.tile]
    side = spec.scale * TOKEN
    return inner.reshape(-1, SIDE, side, SIDE, side).any((2, 4)).reshape(-1, SIDE * SIDE)


def fuse(job: Job, store: TokenStore) -> Iterator[int]:
    """Let the tokens of all tiles attend to each other, exactly, some tiles' queries at a time.

    On the device lie the keys and values of one layer and the tokens of some tiles; tokens without data are
    nobody's keys.

    Yields
    ------
    int
        Tiles done since the last; each tile is done once a layer.
    """
    context = job.model.context
    if store.fused():
        yield job.grid.count * len(context.layers)
        return
    array, valid = store.tokens()
    # (tiles, 8, 8, c), sharing memory with the array where it is of the network's precision: features, then colors,
    # which what is found out of the haze takes the place of
    width = job.model.spec.widths[-1]
    x, colors = torch.from_numpy(array).view(-1, SIDE, SIDE, job.channels).split([width, job.channels - width], -1)
    seen = torch.from_numpy(valid).view(-1, SIDE, SIDE)
    if not seen.any():
        seen = torch.ones_like(seen)
    overview = None
    if job.model.spec.overview:
        with _computing():
            overview, shown = _overview(job, colors, seen)
            whole = context.embed_overview(overview[..., :width], job.grid.rows * SIDE, job.grid.cols * SIDE)
    # Torch's inference mode is entered batch by batch: left on at a yield, it would be on for whoever works meanwhile.
    for chunk, embedded in _chunks(job, lambda chunk: _embedded(job, _on_device(x[chunk], job), chunk.start)):
        x[chunk] = embedded.to(x)
    for layer in cast("Iterable[ContextLayer]", context.layers):
        if layer.local is not None:
            _convolve(job, layer.local, x)
        keys, values = _keys_values(job, layer, x, seen)
        if overview is not None:
            with _computing():
                whole = whole if layer.local is None else layer.local(whole)
                more = layer.keys_values(whole, None if bool(shown.all()) else shown, side=1)
                keys, values = torch.cat([keys, more[0]], dim=2), torch.cat([values, more[1]], dim=2)
                whole = layer(whole.flatten(1, 2), keys, values).view(whole.shape)
        for chunk, fused in _chunks(job, partial(_attended, job, layer, x, keys, values)):
            x[chunk] = fused.to(x)
            yield len(fused)
    if context.airlight is not None:
        airlight = context.airlight
        votes = [
            some for _, some in _chunks(job, lambda chunk: _votes(job, airlight, x[chunk], colors[chunk], seen[chunk]))
        ]
        colors[:] = airlight.elected(torch.cat(votes, dim=1)).to(colors)
    if job.model.field is not None:
        others = () if overview is None else ((whole[shown][None], overview[..., width:][shown][None]),)
        _find_haze(job, job.model.field, x, colors, seen, others)
    store.put_fused(array)


def _chunks(job: Job, compute: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
    """Compute all tiles while fusing, some at a time."""

    def alone(chunk: slice) -> T:
        with _computing():
            return compute(chunk)

    return job.memory.each(job.grid.count, alone, "fuse")


def _attended(job: Job, layer: ContextLayer, x: Tensor, keys: Tensor, values: Tensor, chunk: slice) -> Tensor:
    """Let some tiles' tokens ``(n, 8, 8, c)`` ask the keys and values of all."""
    queries = _on_device(x[chunk], job)
    fused: Tensor = layer(queries.reshape(1, -1, queries.shape[-1]), keys, values)
    return fused.view(queries.shape)


def _overview(job: Job, colors: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Encode the picture, shrunk to one tile, from the colors ``(tiles, 8, 8, c)`` of its tokens.

    Tokens without data show the mean color of the others. Returns tokens ``(1, 8, 8, c)``, and which of them show any
    data ``(1, 8, 8)``.
    """
    grid = tiles_to_grid(colors, job.grid.rows, job.grid.cols)
    known = tiles_to_grid(seen[..., None], job.grid.rows, job.grid.cols)[..., 0]
    if not known.all():
        mean = mean_colors(grid[known]).mean(0).repeat(grid.shape[-1] // 3)
        grid = torch.where(known[..., None], grid, mean.to(grid))
    shown = F.adaptive_max_pool2d(known[:, None].float(), SIDE)[:, 0] > 0
    return job.model.encode_overview(_on_device(grid, job)), shown.to(job.model.device)


def _convolve(job: Job, local: Local, x: Tensor) -> None:
    """Convolve tokens ``(tiles, 8, 8, c)`` over their grid in place, a row of tiles at a time."""
    margin = local.conv.kernel_size[0] // 2
    rows = x.view(job.grid.rows, job.grid.cols, *x.shape[1:])
    above = None  # the last tokens of the row above, as they were before
    for row in range(job.grid.rows):
        with _computing():
            here = tiles_to_grid(rows[row], 1, job.grid.cols)
            last = row + 1 == job.grid.rows
            below = here[:, -1:].expand(-1, margin, -1, -1) if last else tiles_to_grid(rows[row + 1], 1, job.grid.cols)
            above = here[:, :1].expand(-1, margin, -1, -1) if above is None else above
            band = torch.cat([above, here, below[:, :margin]], dim=1)
            above = here[:, -margin:].clone()
            wide = repeat_edges(_on_device(band, job), margin)[:, margin:-margin]
            rows[row] = grid_to_tiles(local.inside(wide)).to(x)


def _find_haze(
    job: Job, field: Field, fused: Tensor, colors: Tensor, seen: Tensor, others: tuple[tuple[Tensor, Tensor], ...]
) -> None:
    """Let all tokens vote on the haze, and replace their colors by what they keep of it, see `field.KEPT`.

    `others` are the tokens ``(1, tokens, c)`` of the overview that show data, and their colors, if it takes part.
    """

    def voters(chunk: slice) -> tuple[Tensor, Tensor]:
        mask = seen[chunk].to(job.model.device)
        some, theirs = (_on_device(part[chunk], job)[mask][None] for part in (fused, colors))
        return some, mean_colors(theirs)

    flat = [(some, mean_colors(theirs)) for some, theirs in others]
    scores = [each for _, each in _chunks(job, lambda chunk: field.scores(*voters(chunk)))]
    with _computing():
        scores += [field.scores(some, theirs) for some, theirs in flat]
        weights = torch.cat(scores, dim=1).softmax(1)
    # Where each tile's voters begin among all.
    first = np.concatenate([[0], np.cumsum(seen.flatten(1).sum(1).numpy())])
    opinions = [
        each
        for _, each in _chunks(
            job, lambda chunk: field.opinions(weights[:, first[chunk.start] : first[chunk.stop]], *voters(chunk))
        )
    ]
    cells = [each for _, each in _chunks(job, lambda chunk: field.cells(_on_device(fused[chunk], job)).cpu())]
    with _computing():
        at = int(first[-1])
        for some, theirs in flat:
            opinions.append(field.opinions(weights[:, at : at + some.shape[1]], some, theirs))
            at += some.shape[1]
        values = field.elected(torch.stack(opinions).sum(0)).cpu()
        whole = tiles_to_grid(torch.cat(cells)[..., None], job.grid.rows, job.grid.cols)[..., 0]
        own = grid_to_tiles(windows(whole, job.grid.overlap / (CELL * job.model.spec.scale)))
        colors[..., : WINDOW**2] = own.to(colors)
        colors[..., WINDOW**2 : KEPT] = values.to(colors)
        colors[..., KEPT:] = 0


def _on_device(tokens: Tensor, job: Job) -> Tensor:
    """Bring tokens to the network's device and precision."""
    return tokens.to(job.model.device, job.model.dtype)


def _embedded(job: Job, tokens: Tensor, first: int) -> Tensor:
    """Project tokens of consecutive tiles ``(n, 8, 8, c)`` and add their positions in the picture."""
    tiles = torch.arange(first, first + len(tokens), device=tokens.device)
    inside = torch.arange(SIDE, device=tokens.device)
    rows = (tiles // job.grid.cols * SIDE)[:, None, None] + inside[:, None]  # (n, 8, 1)
    cols = (tiles % job.grid.cols * SIDE)[:, None, None] + inside  # (n, 1, 8)
    rows, cols = torch.broadcast_tensors(rows, cols)
    return job.model.context.embed(tokens, rows, cols)


def _keys_values(job: Job, layer: ContextLayer, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the keys and values ``(1, heads, tokens, channels)`` of all tokens that hold data."""

    def compute(chunk: slice) -> tuple[Tensor, Tensor] | None:
        mask = seen[chunk].to(job.model.device)
        if not mask.any():
            return None
        # Tiles one above the other are a grid, too.
        column = _on_device(x[chunk], job).reshape(1, -1, SIDE, x.shape[-1])
        return layer.keys_values(column, None if bool(mask.all()) else mask.reshape(1, -1, SIDE))

    parts = [pair for _, pair in _chunks(job, compute) if pair is not None]
    keys, values = zip(*parts, strict=True)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def _votes(job: Job, airlight: Airlight, fused: Tensor, mean: Tensor, seen: Tensor) -> Tensor:
    """Let the tokens ``(n, 8, 8, c)`` of some tiles that hold data vote on the airlight, given their mean colors."""
    some, theirs = (_on_device(part, job)[seen.to(job.model.device)][None] for part in (fused, mean))
    return airlight.votes(some, theirs)


def decode(job: Job, store: TokenStore, window: Window, tell: Callable[[int], object] | None = None) -> NDArray[Any]:
    """Dehaze a window of the picture: a pure function of its pixels, the fused tokens and the weights.

    Parameters
    ----------
    job, store
        The picture, and its fused tokens.
    window
        Pixels of the picture.
    tell
        Called with the number of tiles after each batch, from the thread that decodes; what it raises ends the work.

    Returns
    -------
    ndarray
        ``(y, x, c)``, dtype, bands and range of the picture.
    """
    tiles = job.grid.tiles_touching(window)
    read = Tiles.read(job, tiles)
    with _computing():
        clear = torch.zeros(3, window.height, window.width, device=job.model.device)
    for batch in decoded(job, store, read, tiles, tell):
        with _computing():
            blend(job.grid, window, batch, clear)
    inside = window.to_slices(read.window)
    return _finished(job, read.raw[inside], clear, read.valid[inside])


@dataclass(frozen=True)
class DecodedTiles:
    """Some tiles as the network answers to them, on its device.

    Attributes
    ----------
    cells
        Row and column of each.
    pixels
        ``(n, 3, side, side)``, on the unit scale, not clipped to it; holes hold the tile's mean.
    gain, bias
        ``(n, 3, side, side)``, float32: the dehazed tile is gain times its pixels plus bias.
    """

    cells: list[tuple[int, int]]
    pixels: Tensor
    gain: Tensor
    bias: Tensor

    @property
    def clear(self) -> Tensor:
        """The dehazed tiles ``(n, 3, side, side)``, on the unit scale, not clipped to it."""
        return torch.addcmul(self.bias, self.gain, self.pixels)


def decoded(
    job: Job, store: TokenStore, read: Tiles, tiles: Window, tell: Callable[[int], object] | None = None
) -> Iterator[DecodedTiles]:
    """Decode a rectangle of tiles that has been read, batch by batch; `tell` as in `decode`."""
    fused = store.get_fused(tiles).reshape(tiles.height, tiles.width, SIDE, SIDE, job.channels)
    halo = job.model.spec.halo
    cells = list(tiles.cells())

    def compute(part: slice) -> DecodedTiles:
        some = cells[part]
        x, _ = read.stack(job, some)
        own = np.stack([fused[row - tiles.y0, col - tiles.x0] for row, col in some])
        with _computing():
            gain, bias = _decode_batch(job, some, x.clamp(0, 1), own)
            return DecodedTiles(some, x[..., halo : x.shape[-2] - halo, halo : x.shape[-1] - halo], gain, bias)

    for part, batch in job.memory.each(len(cells), compute):
        yield batch
        if tell is not None:
            tell(part.stop - part.start)


def _decode_batch(job: Job, cells: list[tuple[int, int]], x: Tensor, fused: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Return gain and bias ``(n, 3, side, side)`` of tiles."""
    tokens = torch.from_numpy(fused).to(job.model.device)
    kept = [job.kept[cell] for cell in cells if cell in job.kept]
    whole = len(kept) == len(cells)
    maps = [torch.stack(level) for level in zip(*kept, strict=True)] if whole else job.model.encode(x)
    return job.model.decode(tokens, maps, x)


def blend(grid: TileGrid, window: Window, batch: DecodedTiles, total: Tensor) -> None:
    """Add the share of dehazed tiles in the pixels of a window to their sum ``(3, height, width)``."""
    for (row, col), clear in zip(batch.cells, batch.clear, strict=True):
        tile = grid.tile(row, col)
        part = tile.intersection(window)
        inside, target = part.to_slices(tile), part.to_slices(window)
        weight = torch.from_numpy(grid.blend_weight(row, col)[inside]).to(clear.device)
        total[:, target[0], target[1]] += weight * clear[:, inside[0], inside[1]]


def _finished(
    job: Job,
    raw: NDArray[Any],
    clear: Tensor,
    valid: NDArray[np.bool_],
) -> NDArray[Any]:
    """Go back to the picture's values, weaken the change, and keep what is not to be dehazed.

    `clear` ``(3, y, x)`` is on the unit scale, on the network's device, and is overwritten.
    """
    with _computing():
        job.scale.from_unit(clear)
        # Finished pixels are a quarter of what would leave the device.
        if raw.dtype == np.uint8 and job.strength == 1 and len(set(job.image.rgb)) == 3:
            clear = clear.nan_to_num_().round_().clamp_(0, 255).to(torch.uint8)
        colors = clear.permute(1, 2, 0).cpu().numpy()
    out = raw.copy()
    for band in dict.fromkeys(job.image.rgb):
        seen = [i for i, shown in enumerate(job.image.rgb) if shown == band]
        # A band that is seen as several colors gets their mean.
        color = (colors[..., seen[0]] if len(seen) == 1 else colors[..., seen].mean(-1, dtype=np.float32))[valid]
        own = raw[..., band][valid]
        if job.strength != 1:
            color = job.strength * color + (1 - job.strength) * own.astype(np.result_type(raw.dtype, np.float32))
        answer = color if color.dtype == np.uint8 else to_dtype(color, raw.dtype)
        out[valid, band] = _around_nodata(answer, own, job.image.nodata)
    return out


def _around_nodata(values: NDArray[Any], before: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    """Keep a band's nodata where it was, and move other values that came to lie on it by the least step away.

    Readers such as GDAL mask each band by itself.
    """
    mark = nodata_as_dtype(nodata, values.dtype)
    if mark is None:
        return values
    return np.where(before == mark, before, np.where(values == mark, next_valid_value(mark, values.dtype), values))
