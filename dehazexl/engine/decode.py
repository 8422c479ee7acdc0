"""The last pass: decode any window of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dehazexl.engine.job import Job, computing
from dehazexl.engine.tiles import Tiles
from dehazexl.engine.tokens import TokenStore
from dehazexl.image.grid import SIDE, TileGrid, Window
from dehazexl.image.nodata import next_valid_value, nodata_as_dtype
from dehazexl.image.value_scale import to_dtype
from dehazexl.model.heads import Affine
from dehazexl.model.network import crop

if TYPE_CHECKING:
    from numpy.typing import NDArray


def decode(
    job: Job, store: TokenStore, window: Window, on_progress: Callable[[int], object] | None = None
) -> NDArray[Any]:
    """Dehaze a window of the image. The result does not depend on the windows that were decoded before.

    Parameters
    ----------
    job, store
        The image, and its fused tokens.
    window
        Pixels of the image.
    on_progress
        Called with the number of tiles after each batch, in the thread that decodes; an exception that it raises ends
        the work. A tile counts again if it has to be decoded again because it was not kept.

    Returns
    -------
    ndarray
        ``(y, x, c)``, with dtype, bands and value range of the image.
    """
    return _decode(job, store, window, on_progress, maps=False)[0]


def decode_with_haze(
    job: Job, store: TokenStore, window: Window, on_progress: Callable[[int], object] | None = None
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Dehaze a window of the image with a head of the scattering model, and return its haze, too.

    Parameters
    ----------
    job, store, window, on_progress
        See `decode`.

    Returns
    -------
    pixels : ndarray
        See `decode`.
    haze : ndarray
        ``(y, x, 6)``: transmission of red, green and blue, then the airlight's red, green and blue on the unit scale,
        blended as the pixels are; NaN where there is no data, or no airlight of the whole image.
    """
    return _decode(job, store, window, on_progress, maps=True)


def _decode(
    job: Job, store: TokenStore, window: Window, on_progress: Callable[[int], object] | None, maps: bool
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Decode a window, see `decode_with_haze`; without `maps`, the haze has no channels."""
    tiles, channels = job.grid.tiles_touching(window), 9 if maps else 3
    if job.image.is_hole(window):
        if on_progress is not None:
            on_progress(len(_beginning(job, tiles, window)))
        nothing = np.full((window.height, window.width, channels - 3), np.nan, np.float32)
        return job.image.fill(window.height, window.width), nothing
    read = Tiles.read(job, tiles)
    total = _blended(job, store, window, read, on_progress, channels)
    inside = window.to_slices(read.window)
    haze = total[3:].permute(1, 2, 0).cpu().numpy()
    haze[~read.valid[inside]] = np.nan
    return _finished(job, read.raw[inside], total[:3], read.valid[inside]), haze


def _blended(
    job: Job,
    store: TokenStore,
    window: Window,
    read: Tiles,
    on_progress: Callable[[int], object] | None,
    channels: int,
) -> Tensor:
    """Return the dehazed pixels of a window, and with 9 channels their haze, ``(channels, y, x)``, on the unit scale.

    `read` are the tiles that touch the window.
    """
    tiles, whole = read.tiles, Window(0, job.grid.height, 0, job.grid.width)
    with job.remainders.lock:
        with computing():
            full = [cell for cell in read.tiles.cells() if read.has_data(job, *cell)]
            parts = {cell: part for cell in full if (part := _kept_part(job, cell, window, channels)) is not None}
            missing = [cell for cell in full if cell not in parts]
        if on_progress is not None:
            on_progress(sum(not read.has_data(job, *cell) for cell in _beginning(job, tiles, window)))
        for batch in decode_tiles(job, store, read, missing, on_progress):
            with computing():
                for cell, tile, weighted in batch.weighted(job.grid, batch.channels(channels)):
                    inner = tile.intersection(window).to_slices(tile)
                    parts[cell] = weighted[:, inner[0], inner[1]]
                    job.remainders.put(cell, tile, weighted, window, whole)
        with computing():
            total = torch.zeros(channels, window.height, window.width, device=job.model.device)
            for cell in full:  # in this order, so that sums do not depend on what was kept
                add(parts[cell], job.grid.tile(*cell).intersection(window), total, window)
    return total


def _beginning(job: Job, tiles: Window, window: Window) -> list[tuple[int, int]]:
    """Return the tiles whose first pixel lies in a window of pixels; in all windows of an image, each tile once."""
    corners = {cell: job.grid.tile(*cell) for cell in tiles.cells()}
    return [
        cell for cell, tile in corners.items() if window.y0 <= tile.y0 < window.y1 and window.x0 <= tile.x0 < window.x1
    ]


def _kept_part(job: Job, cell: tuple[int, int], window: Window, channels: int) -> Tensor | None:
    """Return the part of a tile in a window if it was decoded for another window, and kept; weighted."""
    kept = job.remainders.get(cell, job.grid.tile(*cell).intersection(window))
    return None if kept is None or len(kept) < channels else kept[:channels].to(job.model.device)


@dataclass(frozen=True)
class DecodedTiles:
    """Tiles with the output of the network, on its device.

    Attributes
    ----------
    cells
        Row and column of each.
    pixels
        ``(n, 3, side, side)``, on the unit scale, not clipped; pixels without data hold the mean of the tile.
    affine
        Gain and bias ``(n, 3, side, side)``, float32: the dehazed tile is gain times its pixels plus bias.
    airlight
        ``(n, 3, 1, 1)`` in [0, 1], if there is one for the whole image.
    """

    cells: list[tuple[int, int]]
    pixels: Tensor
    affine: Affine
    airlight: Tensor | None = None

    @property
    def clear(self) -> Tensor:
        """Dehazed tiles ``(n, 3, side, side)``, on the unit scale, not clipped."""
        return torch.addcmul(self.affine.bias, self.affine.gain, self.pixels)

    def channels(self, count: int) -> Tensor:
        """Return the dehazed tiles, and for 9 channels transmission and airlight: ``(n, count, side, side)``."""
        if count == 3:
            return self.clear
        airlight = torch.full_like(self.pixels, torch.nan) if self.airlight is None else self.airlight
        return torch.cat([self.clear, self.affine.transmission, airlight.expand_as(self.pixels)], dim=1)

    def weighted(self, grid: TileGrid, values: Tensor) -> Iterator[tuple[tuple[int, int], Window, Tensor]]:
        """Yield row and column of each tile, its window, and its values ``(n, c, side, side)``, weighted."""
        for cell, own in zip(self.cells, values, strict=True):
            weight = torch.from_numpy(grid.blend_weight(*cell)).to(own.device) if grid.overlap else 1
            yield cell, grid.tile(*cell), weight * own


def decode_tiles(
    job: Job,
    store: TokenStore,
    read: Tiles,
    cells: list[tuple[int, int]],
    on_progress: Callable[[int], object] | None = None,
) -> Iterator[DecodedTiles]:
    """Decode tiles that have been read, batch by batch; `on_progress` as in `decode`."""
    tiles, halo = read.tiles, job.model.spec.halo
    fused = store.get_fused(tiles).reshape(tiles.height, tiles.width, SIDE, SIDE, job.channels)

    def compute(part: slice) -> DecodedTiles:
        some = cells[part]
        x, _ = read.stack(job, some)
        own = torch.from_numpy(np.stack([fused[row - tiles.y0, col - tiles.x0] for row, col in some]))
        with computing():
            seen = x.clamp(0, 1)
            tokens = own.to(job.model.device)
            affine = job.model.decode(tokens, _maps(job, some, seen), seen)
            return DecodedTiles(some, crop(x, halo), affine, job.model.air(tokens))

    for part, batch in job.memory.each(len(cells), compute):
        yield batch
        if on_progress is not None:
            on_progress(part.stop - part.start)


def _maps(job: Job, cells: list[tuple[int, int]], x: Tensor) -> list[Tensor]:
    """Return the feature maps of tiles, from the cache if it has all of them."""
    kept = [job.feature_cache[cell] for cell in cells if cell in job.feature_cache]
    if len(kept) < len(cells):
        return job.model.encode(x)
    return [torch.stack(level).to(x.device) for level in zip(*kept, strict=True)]


def add(part: Tensor, place: Window, total: Tensor, window: Window) -> None:
    """Add pixels ``(c, height, width)`` of a window `place` to those of another window, where they overlap."""
    both = place.intersection(window)
    inside, target = both.to_slices(place), both.to_slices(window)
    total[:, target[0], target[1]] += part[:, inside[0], inside[1]]


def _finished(
    job: Job,
    raw: NDArray[Any],
    clear: Tensor,
    valid: NDArray[np.bool_],
) -> NDArray[Any]:
    """Convert dehazed colors to the values of the image, apply the strength, and keep all other bands and pixels.

    `clear` ``(3, y, x)`` is on the unit scale and on the network's device; it is overwritten.
    """
    with computing():
        job.scale.from_unit(clear)
        # uint8 is a quarter of the bytes to be copied from the device.
        if raw.dtype == np.uint8 and job.strength == 1 and len(set(job.image.rgb)) == 3:
            clear = clear.nan_to_num_().round_().clamp_(0, 255).to(torch.uint8)
        colors = clear.permute(1, 2, 0).cpu().numpy()
    out = raw.copy()
    for band in dict.fromkeys(job.image.rgb):
        seen = [i for i, shown in enumerate(job.image.rgb) if shown == band]
        # A band that is shown as several colors gets their mean.
        color = (colors[..., seen[0]] if len(seen) == 1 else colors[..., seen].mean(-1, dtype=np.float32))[valid]
        own = raw[..., band][valid]
        if job.strength != 1:
            color = job.strength * color + (1 - job.strength) * own.astype(np.result_type(raw.dtype, np.float32))
        output = color if color.dtype == np.uint8 else to_dtype(color, raw.dtype, job.image.bits)
        out[valid, band] = _around_nodata(output, own, job.image.nodata)
    return out


def _around_nodata(values: NDArray[Any], before: NDArray[Any], nodata: float | None) -> NDArray[Any]:
    """Keep the nodata value of a band where it was, and move other values that equal it to the next valid value.

    Readers such as GDAL mask each band separately.
    """
    mark = nodata_as_dtype(nodata, values.dtype)
    if mark is None:
        return values
    return np.where(before == mark, before, np.where(values == mark, next_valid_value(mark, values.dtype), values))
