"""Pixels of tiles, read a rectangle of tiles at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dehazexl.engine.job import Job
from dehazexl.image.grid import Window, reflect
from dehazexl.image.image import colors, valid_mask

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Tiles:
    """Pixels of a rectangle of tiles.

    Attributes
    ----------
    raw
        ``(y, x, c)`` as in the image, with the network's halo.
    rgb
        ``(y, x, 3)``, float32: colors on the scale of the network.
    valid
        ``(y, x)``: pixels with data.
    tiles
        Rows and columns of the tiles.
    window
        Their pixels, with the halo and the margin.
    """

    raw: NDArray[Any]
    rgb: NDArray[np.float32]
    valid: NDArray[np.bool_]
    tiles: Window
    window: Window

    @classmethod
    def read(cls, job: Job, tiles: Window, margin: int = 0) -> Tiles:
        """Read a rectangle of tiles, with some pixels around the halo as a margin.

        Raises
        ------
        OSError
            If the files of the image were changed after it was opened.
        """
        window = job.grid.tile_window(tiles).expand(job.model.spec.halo + margin)
        raw = job.pixels.read(window)
        if job.image.guard is not None:
            job.image.guard()
        rgb = job.scale.to_unit(colors(raw, job.image))
        valid = valid_mask(raw, job.image, window)
        rgb[~valid] = 0  # removes NaN and infinities
        return cls(raw, rgb, valid, tiles, window)

    def tile(self, job: Job, row: int, col: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return a tile with its halo ``(y, x, 3)``, its pixels without data filled, and its validity ``(y, x)``."""
        inside = job.grid.tile(row, col).expand(job.model.spec.halo).to_slices(self.window)
        rgb, valid = self.rgb[inside], self.valid[inside]
        if not valid.all():
            # Pixels without data get the mean of the tile, which shows no structure and depends on the tile alone.
            mean = rgb[valid].mean(0) if valid.any() else np.float32(0.5)
            rgb = np.where(valid[..., None], rgb, mean)
        return rgb, valid

    @staticmethod
    def are_holes(job: Job, tiles: Window) -> bool:
        """Return whether it is known, without reading, that a rectangle of tiles has no data."""
        window, (height, width) = job.grid.tile_window(tiles), (job.grid.height, job.grid.width)
        ys, xs = reflect(np.arange(window.y0, window.y1), height), reflect(np.arange(window.x0, window.x1), width)
        return job.image.is_hole(Window(int(ys.min()), int(ys.max()) + 1, int(xs.min()), int(xs.max()) + 1))

    def has_data(self, job: Job, row: int, col: int) -> bool:
        """Return whether any pixel of a tile has data, apart from its halo."""
        return bool(self.valid[job.grid.tile(row, col).to_slices(self.window)].any())

    def stack(self, job: Job, cells: list[tuple[int, int]]) -> tuple[Tensor, NDArray[np.bool_]]:
        """Return tiles ``(n, 3, side, side)`` on the network's device and their validity ``(n, side, side)``.

        They are on the unit scale, not clipped, and have the network's halo.
        """
        cut = [self.tile(job, row, col) for row, col in cells]
        x = torch.from_numpy(np.stack([rgb for rgb, _ in cut])).permute(0, 3, 1, 2)
        return x.to(job.model.device), np.stack([valid for _, valid in cut])
