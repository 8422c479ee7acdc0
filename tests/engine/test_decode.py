"""Decoding windows: each tile once, gradients through all passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reference import interleaved, picture, randomised, relative

from dehazexl.engine.decode import DecodedTiles, add, decode
from dehazexl.engine.dehaze import CHUNK, decode_lazily, open_tokens, prepare
from dehazexl.engine.encode import encode
from dehazexl.engine.fuse import fuse
from dehazexl.image.grid import TileGrid, Window
from dehazexl.model import SPECS, DehazeXL
from dehazexl.model.network import crop, grid_to_tiles, pad, tiles_to_grid, to_tiles

SMALLEST = replace(SPECS["tiny"], depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1), inputs=())


def windows(height: int, width: int, side: int) -> list[Window]:
    corners = [(y, x) for y in range(0, height, side) for x in range(0, width, side)]
    return [Window(y, min(y + side, height), x, min(x + side, width)) for y, x in corners]


# ---- Each tile once ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overlap", "backwards"), [(0, False), (32, True), (128, False)])
def test_windows_that_cover_an_image_decode_each_tile_once(overlap: int, backwards: bool) -> None:
    model, pixels = randomised(SMALLEST), interleaved(picture(600, 700))
    job = prepare(pixels, model, overlap, value_range=(0, 1))
    store = open_tokens(job)
    sum(encode(job, store))
    sum(fuse(job, store))
    told: list[int] = []
    out = np.empty_like(pixels)
    for window in sorted(windows(600, 700, 300), key=lambda w: (w.y0, w.x0), reverse=backwards):
        out[window.y0 : window.y1, window.x0 : window.x1] = decode(job, store, window, told.append)
    assert sum(told) == job.grid.count
    alone = replace(job, keep=0)  # another job, which keeps nothing
    again: list[int] = []
    whole = decode(alone, store, Window(0, 600, 0, 700), again.append)
    assert sum(again) == job.grid.count
    assert np.array_equal(out, whole)  # to the bit, whatever was kept
    again.clear()
    for window in windows(600, 700, 300):
        decode(alone, store, window, again.append)
    assert sum(again) > 1.2 * job.grid.count or overlap == 0


def test_what_is_kept_is_bounded() -> None:
    pixels = interleaved(picture(600, 900))
    job = replace(prepare(pixels, randomised(SMALLEST), 32, value_range=(0, 1)), keep=2 * 256 * 256 * 12)
    store = open_tokens(job)
    sum(encode(job, store))
    sum(fuse(job, store))
    told: list[int] = []
    for window in windows(600, 900, 300):
        decode(job, store, window, told.append)
        assert job.remainders.nbytes <= job.keep
    assert sum(told) > job.grid.count


def test_a_large_image_decodes_each_tile_once() -> None:
    # 16384 x 16384 at an overlap of 32: 5329 tiles. The network is left out, the windows and the bytes are real.
    grid = TileGrid(16384, 16384, 32)
    whole = Window(0, grid.height, 0, grid.width)
    job = prepare(np.zeros((8, 8, 3), np.float32), randomised(SMALLEST), 32, value_range=(0, 1))
    decoded, share = 0, torch.zeros(3, grid.side, grid.side)
    for window in windows(grid.height, grid.width, CHUNK):
        for cell in grid.tiles_touching(window).cells():
            tile = grid.tile(*cell)
            if job.remainders.get(cell, tile.intersection(window)) is None:
                decoded += 1
                job.remainders.put(cell, tile, share, window, whole)
    assert grid.count == 5329 and decoded <= 1.05 * grid.count


def test_two_threads_decode_each_tile_once() -> None:
    pixels = interleaved(picture(600, 900))
    job = prepare(pixels, randomised(SMALLEST), 32, value_range=(0, 1))
    store = open_tokens(job)
    sum(encode(job, store))
    sum(fuse(job, store))
    told: list[int] = []
    clear = decode_lazily(job, store, told.append).rechunk((300, 300, 3))
    expected = decode(replace(job, keep=0), store, Window(0, 600, 0, 900))
    assert relative(clear.compute(num_workers=4), expected) < 1e-6
    assert sum(told) == job.grid.count


# ---- Gradients -------------------------------------------------------------------------------------------


def stages(model: DehazeXL, x: torch.Tensor, window: Window) -> torch.Tensor:
    """Dehaze a window ``(3, height, width)`` of an image ``(1, 3, h, w)`` by the stages that the passes call."""
    grid = TileGrid(x.shape[2], x.shape[3], 0, model.spec.tile)
    tiles = to_tiles(pad(x, model.spec.halo, grid.side), model.spec.halo, grid.side)
    maps = model.encode(tiles)
    fused = grid_to_tiles(model.fuse(tiles_to_grid(maps[-1], grid.rows, grid.cols)))
    total = torch.zeros(3, window.height, window.width)
    seen = list(grid.tiles_touching(window).cells())
    own = [row * grid.cols + col for row, col in seen]
    affine = model.decode(fused[own], [each[own] for each in maps], tiles[own])
    batch = DecodedTiles(seen, crop(tiles[own], model.spec.halo), affine)
    for _, tile, weighted in batch.weighted(grid, batch.clear):
        add(weighted, tile, total, window)
    return total


@pytest.mark.parametrize("spec", ["tiny", "tiny-field"])
def test_gradients_flow_through_all_passes(spec: str) -> None:
    model = randomised(spec)
    side = model.spec.tile
    window = Window(side // 2, side - 10, 10, side // 2 - 10)
    x = torch.from_numpy(picture(side + 150, side // 2))[None].requires_grad_()
    stages(model, x, window).square().sum().backward()
    streamed, x.grad = x.grad, None
    whole = model(x)[0, :, window.y0 : window.y1, window.x0 : window.x1]
    whole.square().sum().backward()
    assert streamed is not None and x.grad is not None
    assert relative(streamed, x.grad) < 1e-4
    # Pixels of a tile that the window does not touch count through the context alone.
    assert float(x.grad[..., side + 50 :, :].abs().max()) > 0
