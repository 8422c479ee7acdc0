"""Levels of a layer that any writer of napari saves in full size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from napari.layers._multiscale_data import MultiScaleData

MOST = 4 * 2**30
"""Bytes of an image at most that is handed over as one array."""

REMEDY = 'choose the kind "DehazeXL Image with pyramid", which writes any size block by block'

UNSAVED_MAP = "a map in the viewer holds only what was viewed: dehazexl run --maps writes it in full"
"""Why a map is not saved."""


class FullSizeData(MultiScaleData):  # type: ignore[misc]
    """Levels, finest first. Writers that ask for one array get the finest level, where napari has the coarsest.

    Parameters
    ----------
    levels
        The levels.
    compute
        Returns the pixels of the finest level, if converting it to an array does not.
    """

    def __init__(self, levels: list[Any], compute: Callable[[], np.ndarray] | None = None) -> None:
        super().__init__(levels)
        self.compute = compute

    @property
    def nbytes(self) -> int:
        """Bytes of the finest level, see `_size`: tifffile asks for them before it makes a file."""
        return self._size()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self._size()
        return np.asarray(self[0] if self.compute is None else self.compute(), dtype=dtype)

    def _size(self) -> int:
        """Return the bytes of the finest level, or raise OSError if they are more than `MOST`."""
        size = math.prod(self[0].shape) * int(self[0].dtype.itemsize)
        if size > MOST:
            raise OSError(f"an image of {size / 1e9:.3g} GB does not fit into this kind of file: {REMEDY}")
        return size


def set_levels(layer: Any, levels: list[Any], compute: Callable[[], np.ndarray] | None = None) -> None:
    """Replace the levels of a multiscale layer, finest first; `compute` is that of `FullSizeData`."""
    layer.data = levels
    if isinstance(layer.data, MultiScaleData):  # the setter has wrapped them
        layer._data = FullSizeData(levels, compute)
