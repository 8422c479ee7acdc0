"""Border of one value around an image, which no metadata declares: the collar of a map sheet, a mosaic or a scan."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.grid import Window, reflect

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Border:
    """A border of one value.

    Attributes
    ----------
    value
        Value of all colors.
    cells
        Map ``(y, x)`` of the whole image: True where pixels of this value belong to the border.
    share
        Share of the image that the border covers.
    cell
        Height and width of a cell, as a share of the image.
    """

    value: float
    share: float
    cell: tuple[float, float]
    cells: NDArray[np.bool_] = field(repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the map in compressed form: recipes for other processes are small."""
        packed = zlib.compress(np.packbits(self.cells).tobytes())
        return _unpacked, (self.value, self.share, self.cell, self.cells.shape, packed)

    def mask(self, colors: NDArray[Any], window: Window, height: int, width: int) -> NDArray[np.bool_]:
        """Return the pixels ``(y, x)`` of a window of a level, with its colors ``(y, x, 3)``, that are border.

        The level is continued by reflection.
        """
        rows, cols = (
            np.minimum((reflect(np.arange(start, stop), size) + 0.5) / size / cell, count - 1).astype(int)
            for start, stop, size, cell, count in (
                (window.y0, window.y1, height, self.cell[0], self.cells.shape[0]),
                (window.x0, window.x1, width, self.cell[1], self.cells.shape[1]),
            )
        )
        near = self.cells[rows[:, None], cols]
        if not near.any():
            return near
        return near & (colors == self.value).all(axis=-1)


def _unpacked(value: float, share: float, cell: tuple[float, float], shape: tuple[int, int], packed: bytes) -> Border:
    """Return a border from its pickled form."""
    bits = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=shape[0] * shape[1])
    return Border(value, share, cell, bits.reshape(shape).astype(bool))
