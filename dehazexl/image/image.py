"""Pictures in: every source becomes one lazy `Image`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.nodata import held

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import dask.array as da
    from numpy.typing import NDArray

    from dehazexl.image.georeference import Geo
    from dehazexl.image.grid import Window

COARSE_AREA = 512 * 512  # pixels: the smallest overview that still shows a picture's range of values
SAMPLES = ((8, 128), (16, 64))
"""Windows a side, and their pixels a side: one million pixels; more and smaller ones if the first hold no data."""
PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True)
class Image:
    """A picture that has been opened but not read.

    Attributes
    ----------
    levels
        Lazy arrays ``(y, x, c)`` of one dtype, finest first. ``levels[0]`` is the picture; the others
        are the overviews that the file holds, each smaller than the one before. All bands of a place
        lie in one chunk.
    name
        A short name for people (a file's name without its suffixes; ``"array"`` for arrays).
    bands
        One name per channel, e.g. ``("red", "green", "blue", "nir")`` or ``("band 1", ...)``.
    rgb
        The three channels that the network sees as R, G, B. A picture of one band repeats it: ``(0, 0, 0)``.
    alpha
        The channel that is an alpha or mask band (0 where there is no picture), or None.
    nodata
        The value that marks pixels without data, or None. NaN and infinities are always without data.
    scale, translate, units
        Size of a pixel, position of the center of the first pixel, both ``(y, x)``, in ``units``
        ("pixel" when the file says nothing).
    geo
        Georeference, or None.
    path
        The file or Zarr that was opened, or None for arrays.
    fingerprint
        Changes whenever the pixels may have changed: path, size and modification time of a file, or a
        hash of an array. See `open_image`.
    metadata
        Anything else worth keeping, by name (the TIFF's description, software, date...).
    """

    levels: tuple[da.Array, ...]
    name: str
    bands: tuple[str, ...]
    rgb: tuple[int, int, int]
    alpha: int | None = None
    nodata: float | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    translate: tuple[float, float] = (0.0, 0.0)
    units: str = "pixel"
    geo: Geo | None = None
    path: Path | None = None
    fingerprint: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def cropped(self, window: Window) -> Image:
        """Return a part of the picture as a picture of its own, with its place on the ground and its overviews.

        Parameters
        ----------
        window
            Rows and columns of the finest level.

        Returns
        -------
        Image
            Lazy. Overviews are cut at whole pixels of theirs, so they may show a little more.

        Raises
        ------
        ValueError
            If the window is empty or reaches outside.
        """
        height, width, _ = self.levels[0].shape
        y0, y1, x0, x1 = window.y0, window.y1, window.x0, window.x1
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise ValueError(
                f"region {y0}:{y1},{x0}:{x1} (rows, columns) does not lie in the picture {self.name}: "
                f"it has {height} rows and {width} columns"
            )
        levels = [self.levels[0][y0:y1, x0:x1]]
        for level in self.levels[1:]:
            fy, fx = level.shape[0] / height, level.shape[1] / width
            part = level[int(y0 * fy) : math.ceil(y1 * fy), int(x0 * fx) : math.ceil(x1 * fx)]
            if math.prod(part.shape) < math.prod(levels[-1].shape):
                levels.append(part)
        return replace(
            self,
            levels=tuple(levels),
            translate=(self.translate[0] + y0 * self.scale[0], self.translate[1] + x0 * self.scale[1]),
            geo=self.geo.moved(y0, x0) if self.geo else None,
            fingerprint=f"{self.fingerprint}[{y0}:{y1},{x0}:{x1}]",
        )


def colors(pixels: NDArray[Any], image: Image) -> NDArray[Any]:
    """Take the colors ``(y, x, 3)`` out of a block ``(y, x, c)`` of a picture; a view where they lie side by side."""
    first = image.rgb[0]
    if image.rgb == (first, first + 1, first + 2):
        return pixels[..., first : first + 3]
    return pixels.take(image.rgb, axis=-1)  # an index of lists would leave color the slowest axis in memory


def valid_mask(pixels: NDArray[Any], image: Image) -> NDArray[np.bool_]:
    """Tell which pixels hold data.

    Parameters
    ----------
    pixels
        A block ``(y, x, c)`` of ``image``, all bands.
    image
        The picture that the block is from.

    Returns
    -------
    numpy.ndarray
        ``(y, x)``, False where a color band is NaN or infinite, where the color bands equal ``image.nodata``
        (all three for integers, for which it is often 0; any for floats), or where the alpha band is 0.
    """
    rgb = colors(pixels, image)
    valid = np.isfinite(rgb).all(axis=-1) if rgb.dtype.kind == "f" else np.ones(rgb.shape[:2], bool)
    mark = held(image.nodata, rgb.dtype)
    if mark is not None:
        other = rgb != mark
        valid &= other.all(axis=-1) if rgb.dtype.kind == "f" else other.any(axis=-1)
    if image.alpha is not None:
        valid &= pixels[..., image.alpha] != 0
    return valid


def check_range(limits: Sequence[float]) -> tuple[float, float]:
    """Return what is given for black and white, if it is a pair of rising, finite numbers; else ValueError."""
    try:
        low, high = (float(value) for value in limits)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value range must be two rising numbers (black, white), not {limits}")
    return low, high


def check_strength(strength: float) -> float:
    """Return the share of the haze that is removed, if it is from 0 to 1; else ValueError."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be between 0 and 1, not {strength}")
    return strength


def value_range(image: Image) -> tuple[float, float]:
    """Find the values that stand for black and white, one pair for the whole picture.

    Parameters
    ----------
    image
        The picture. Up to a million pixels are read: the coarsest overview of at least 512 x 512 pixels
        or 64 evenly spaced windows of 128 x 128; if none of them holds data, 256 of 64 x 64. The choice never varies.

    Returns
    -------
    tuple of float
        ``(0, 255)`` for uint8; else 0, or the percentile 0.1 where that is negative, and the percentile 99.9 of the
        three color bands together, without pixels that hold no data. A picture whose percentiles do not differ, or
        without data where it was read, gives the dtype's range for integers and ``(0, 1)`` for floats.
    """
    dtype = image.levels[0].dtype
    if dtype == np.uint8:
        return 0.0, 255.0
    samples = (_sample(image, *windows) for windows in SAMPLES)
    values = next((values for values in samples if values.size), None)
    if values is not None:
        low, high = (float(value) for value in np.percentile(values, PERCENTILES))
        if low < high:
            # Black is 0 where it can be: haze is what lifts the darkest values, and must not be stretched away.
            return min(0.0, low), high
    return (0.0, float(np.iinfo(dtype).max)) if dtype.kind == "u" else (0.0, 1.0)


def _sample(image: Image, count: int, side: int) -> NDArray[np.float64]:
    """Read the colors of a sparse, even sample of the picture's valid pixels, see `SAMPLES`."""
    import dask.array as da

    level = next((a for a in reversed(image.levels) if a.shape[0] * a.shape[1] >= COARSE_AREA), image.levels[0])
    height, width = level.shape[:2]
    blocks = da.compute(*(level[window] for window in _windows(height, width, count, side)))
    rgb = [colors(block, image)[valid_mask(block, image)].ravel() for block in blocks]
    return np.concatenate(rgb).astype(np.float64)


def _windows(height: int, width: int, count: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Place the sample windows; a small picture is taken whole."""
    if height * width <= (count * side) ** 2:
        yield slice(0, height), slice(0, width)
        return
    for top in _starts(height, count, side):
        for left in _starts(width, count, side):
            yield slice(top, top + side), slice(left, left + side)


def _starts(length: int, count: int, side: int) -> list[int]:
    """Spread window starts evenly over an axis, each once."""
    last = max(length - side, 0)
    return sorted({round(last * step / (count - 1)) for step in range(count)})
