"""Local strength: where a user has painted, such as over sky, clouds or snow, less of the haze is removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.image import valid_mask
from dehazexl.image.value_scale import to_dtype
from dehazexl.image.windowed_array import WindowedArray
from dehazexl.viewing.display import upsample_window

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray

    from dehazexl.image.grid import Window
    from dehazexl.image.image import Image

SIDE = 1024
"""Pixels: longest side of a map of local strength."""

SOFT = 4
"""Pixels of the map over which its edges are softened."""


@dataclass(frozen=True, eq=False)
class LocalStrength:
    """Fractions of the effect that remain, 0 to 1, on a map over the whole of an image.

    Attributes
    ----------
    map
        ``(y, x)`` of float32, smaller than the image.
    """

    map: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStrength) and np.array_equal(self.map, other.map)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def painted(cls, mask: NDArray[Any], remaining: float = 0.0) -> LocalStrength:
        """Return the map that leaves a fraction of the effect where a mask ``(y, x)`` is not 0, with soft edges."""
        from PIL import Image as Pillow
        from PIL import ImageFilter

        height, width = mask.shape
        factor = min(1.0, SIDE / max(height, width))
        size = max(1, round(width * factor)), max(1, round(height * factor))
        soft = Pillow.fromarray(np.where(mask != 0, 255, 0).astype(np.uint8)).resize(size, Pillow.Resampling.BOX)
        share = np.asarray(soft.filter(ImageFilter.GaussianBlur(SOFT)), np.float32) / 255
        return cls(np.asarray(1 - share * np.float32(1 - remaining), np.float32))

    def of(self, window: Window, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the fractions ``(y, x, 1)`` of a window of a level of a shape."""
        return np.asarray(upsample_window(self.map, window, shape), np.float32)[..., None]


class Weakened(WindowedArray):
    """A dehazed image ``(y, x, c)`` with a local strength.

    Parameters
    ----------
    clear
        The dehazed image, of dask or numpy.
    image
        The hazy one, of the same shape.
    local
        The local strength.
    """

    def __init__(self, clear: da.Array | NDArray[Any], image: Image, local: LocalStrength) -> None:
        self.clear, self.image, self.local = clear, image, local
        self.shape, self.dtype = clear.shape, clear.dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Return the pixels of a window."""
        part = np.s_[window.y0 : window.y1, window.x0 : window.x1]
        clear, hazy = _computed(self.clear[part]), _computed(self.image.levels[0][part])
        bands = sorted(set(self.image.rgb))
        change = (clear[..., bands].astype(np.float64) - hazy[..., bands]) * self.local.of(window, self.shape)
        change[~valid_mask(hazy, self.image)] = 0
        mixed = clear.copy()
        mixed[..., bands] = to_dtype(hazy[..., bands] + change, self.dtype, self.image.bits)
        return mixed


def _computed(pixels: Any) -> NDArray[Any]:
    """Return pixels of dask or numpy in memory."""
    return np.asarray(pixels.compute(scheduler="synchronous") if hasattr(pixels, "compute") else pixels)


def weakened(clear: da.Array, image: Image, local: LocalStrength) -> da.Array:
    """Return a dehazed image with a local strength, lazily; see `Weakened`."""
    import dask.array as da

    return da.from_array(Weakened(clear, image, local), chunks=clear.chunks, name=False, meta=clear._meta)
