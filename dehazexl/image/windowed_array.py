"""What viewers of lazy arrays cut: pictures that are read in windows, indexed as arrays are."""

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
    """A picture ``(y, x, c)`` or ``(y, x)`` that reads windows of itself.

    Attributes
    ----------
    shape, dtype
        Of the picture.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def read(self, window: Window) -> NDArray[Any]:
        """Return a window's pixels."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Numbers in all."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Cut out what an index of slices and integers says; only the window around it is read."""
        parts = _whole(index, self.ndim)
        rows, cols = (np.arange(size)[part] for size, part in zip(self.shape[:2], parts[:2], strict=True))
        if not rows.size * cols.size:
            return np.broadcast_to(np.zeros((), self.dtype), self.shape)[parts]
        window = Window(int(rows.min()), int(rows.max()) + 1, int(cols.min()), int(cols.max()) + 1)
        pixels = self.read(window)[(slice(None), slice(None), *parts[2:])]
        if all(isinstance(part, slice) and part.step in (None, 1) for part in parts[:2]):
            return np.asarray(pixels)
        return np.asarray(pixels[rows - window.y0].take(cols - window.x0, axis=rows.ndim))

    def __deepcopy__(self, memo: dict[int, Any]) -> WindowedArray:
        # Viewers copy a layer's data to duplicate it; what it is read from can neither be copied nor changes.
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


def _whole(index: Any, ndim: int) -> tuple[Any, ...]:
    """Return an index of `ndim` parts."""
    parts: Sequence[Any] = index if isinstance(index, tuple) else (index,)
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    before, after = parts[:at], parts[at + 1 :]
    return (*before, *[slice(None)] * (ndim - len(before) - len(after)), *after)


def check_there(path: Path | None) -> None:
    """Raise if a picture's file is gone: Zarr takes chunks that are not there for zeros, without a word.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path` any more.
    """
    if path is not None and not path.exists():
        raise FileNotFoundError(f"{path} is gone: put it back, or open the picture anew")
