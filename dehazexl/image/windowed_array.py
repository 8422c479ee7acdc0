"""Images that are read by window and indexed like arrays, for viewers of lazy data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.grid import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray


class WindowedArray(ABC):
    """An array ``(y, x, c)`` or ``(y, x)`` whose pixels are read by window.

    Attributes
    ----------
    shape, dtype
        Shape and data type of the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def read(self, window: Window) -> NDArray[Any]:
        """Return the pixels of a window."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return the elements at slices and integers; only the window that encloses them is read."""
        parts = _full_index(index, self.ndim)
        rows, cols = (np.arange(size)[part] for size, part in zip(self.shape[:2], parts[:2], strict=True))
        if not rows.size * cols.size:
            return np.broadcast_to(np.zeros((), self.dtype), self.shape)[parts]
        window = Window(int(rows.min()), int(rows.max()) + 1, int(cols.min()), int(cols.max()) + 1)
        pixels = self.read(window)[(slice(None), slice(None), *parts[2:])]
        if all(isinstance(part, slice) and part.step in (None, 1) for part in parts[:2]):
            return np.asarray(pixels)
        return np.asarray(pixels[rows - window.y0].take(cols - window.x0, axis=rows.ndim))

    def __deepcopy__(self, memo: dict[int, Any]) -> WindowedArray:
        # Viewers copy the data of a layer to duplicate it, but the source is read-only and cannot be copied.
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


def _full_index(index: Any, ndim: int) -> tuple[Any, ...]:
    """Expand an index to `ndim` parts."""
    parts: Sequence[Any] = index if isinstance(index, tuple) else (index,)
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    before, after = parts[:at], parts[at + 1 :]
    return (*before, *[slice(None)] * (ndim - len(before) - len(after)), *after)


def check_there(path: Path | None) -> None:
    """Check that the file of an image still exists, because Zarr silently reads missing chunks as zeros.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist anymore.
    """
    if path is not None and not path.exists():
        raise FileNotFoundError(f"{path} is gone: restore it, or open the image again")
