"""Lazy images: the form that every source is opened as, its valid pixels and its value range."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.grid import Window
from dehazexl.image.nodata import nodata_as_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import dask.array as da
    from numpy.typing import NDArray

    from dehazexl.image.border import Border
    from dehazexl.image.georeference import Geo

COARSE_AREA = 512 * 512  # pixels of the smallest overview that still represents the value range of an image
SAMPLES = ((8, 128), (16, 64))
"""Windows along each axis and their side in pixels: a million pixels, then smaller windows if those hold no data."""
PERCENTILES = (0.1, 99.9)
"""Percentiles of the colors that are taken as black and white."""


@dataclass(frozen=True)
class Holes:
    """Parts of an image that its file does not contain, such as chunks of a Zarr that were never written.

    Attributes
    ----------
    level
        Name of the dask array that they are holes of; it changes with the pixels.
    value
        Value of the pixels there.
    missing
        Function that returns whether nothing of a window of pixels is in the file.
    origin
        Row and column of the image's first pixel in the file.
    """

    level: str
    value: float
    missing: Callable[[Window], bool]
    origin: tuple[int, int] = (0, 0)

    def contains(self, window: Window) -> bool:
        """Return whether nothing of a window of the image is in the file."""
        y, x = self.origin
        return self.missing(Window(window.y0 + y, window.y1 + y, window.x0 + x, window.x1 + x))

    def cropped(self, before: str, after: str, y: int, x: int) -> Holes | None:
        """Return the holes of a level that begins at row y and column x of another, given the names of both."""
        if self.level != before:
            return None
        return replace(self, level=after, origin=(self.origin[0] + y, self.origin[1] + x))


@dataclass(frozen=True)
class Image:
    """An image that is opened but not read.

    Attributes
    ----------
    levels
        Lazy dask arrays ``(y, x, c)`` of one dtype, finest first. ``levels[0]`` is the full image; the others
        are the overviews of the file, each smaller than the one before. A chunk holds all bands.
    name
        A short name for display: the file name without suffixes, or ``"array"`` for arrays.
    bands
        One name per channel, e.g. ``("red", "green", "blue", "nir")`` or ``("band 1", ...)``.
    rgb
        Indices of the red, green and blue channels. An image of one band repeats it: ``(0, 0, 0)``.
    alpha
        Index of the alpha or mask channel (0 where there is no image), or None.
    nodata
        The value that marks pixels without data, or None. NaN and infinities always mark pixels without data.
    scale, translate, units
        Size of a pixel and position of the center of the first pixel, both ``(y, x)``, in ``units``
        ("pixel" if the file has none).
    geo
        Georeference, or None.
    path
        The file or Zarr that was opened, or None for arrays.
    fingerprint
        A string that changes whenever the pixels may have changed: a hash of path, size and modification time of a
        file, or of the content of an array. See `open_image`.
    guard
        Function that raises OSError if the files of the image are no longer those that were opened, or None; called
        with ``surely=True``, it never leaves out the look. Zarr silently reads missing chunks as zeros.
    metadata
        Further metadata by name, such as description, software and date of a TIFF.
    masked
        Whether the alpha band is a mask of the file rather than one of its bands; a TIFF is written with a mask.
    guessed
        Whether `rgb` are the first three bands because nothing tells the colors; they are then not written as colors.
    basis
        What tells the colors, such as the names of the bands; empty if the format does.
    notes
        A line for the user about each decision that was made in opening the image.
    zero
        Value of the pixels at which the measured quantity is 0, from scale and offset: 1000 for reflectance
        ``1e-4 * value - 0.1``.
    bits
        Bits of a value if they are fewer than the dtype has, such as 12 in uint16; or None.
    border
        Border of one value without a declaration, which is treated as pixels without data; or None.
    crops
        Windows that the image was cropped to after it was opened, one after the other.
    holes
        Parts of the finest level that the file does not contain, or None if that is not known.
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
    guard: Callable[..., None] | None = field(default=None, compare=False, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    masked: bool = False
    guessed: bool = False
    basis: str = field(default="", compare=False)
    notes: tuple[str, ...] = ()
    zero: float = 0.0
    bits: int | None = None
    border: Border | None = field(default=None, compare=False, repr=False)
    crops: tuple[Window, ...] = ()
    holes: Holes | None = field(default=None, compare=False, repr=False)

    def cropped(self, window: Window) -> Image:
        """Crop the image, its overviews and its georeference to a window.

        Parameters
        ----------
        window
            Rows and columns of the finest level.

        Returns
        -------
        Image
            Lazy. Overviews are cropped at whole pixels of their own and may cover slightly more.

        Raises
        ------
        ValueError
            If the window is empty or extends beyond the image.
        """
        height, width, _ = self.levels[0].shape
        y0, y1, x0, x1 = window.y0, window.y1, window.x0, window.x1
        if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
            raise ValueError(
                f"region {y0}:{y1},{x0}:{x1} (rows, columns) does not lie in the image {self.name}: "
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
            border=None,
            crops=(*self.crops, window),
            holes=self.holes and self.holes.cropped(self.levels[0].name, levels[0].name, y0, x0),
        )

    def is_hole(self, window: Window) -> bool:
        """Return whether it is known, without reading, that the file contains no data in a window of pixels.

        Raises
        ------
        OSError
            If the files of the image were changed after it was opened.
        """
        return self.holes is not None and not valid_mask(self.fill(1, 1), self).any() and self.is_missing(window)

    def is_missing(self, window: Window) -> bool:
        """Return whether it is known, without reading, that the file lacks a window of pixels, see `fill`.

        Raises
        ------
        OSError
            If the files of the image were changed after it was opened.
        """
        if self.holes is None or self.holes.level != self.levels[0].name or not self.holes.contains(window):
            return False
        if self.guard is not None:
            self.guard()  # what was removed meanwhile is no hole
        return True

    def fill(self, height: int, width: int) -> NDArray[Any]:
        """Return the pixels ``(y, x, c)`` of a hole."""
        assert self.holes is not None
        return np.full((height, width, self.levels[0].shape[2]), self.holes.value, self.levels[0].dtype)


def colors(pixels: NDArray[Any], image: Image) -> NDArray[Any]:
    """Select the color bands ``(y, x, 3)`` of a block ``(y, x, c)``; a view if the bands are adjacent."""
    first = image.rgb[0]
    if image.rgb == (first, first + 1, first + 2):
        return pixels[..., first : first + 3]
    return pixels.take(image.rgb, axis=-1)  # indexing with a list would make color the slowest axis in memory


def valid_mask(
    pixels: NDArray[Any], image: Image, window: Window | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Return the mask of pixels that hold data.

    Parameters
    ----------
    pixels
        A block ``(y, x, c)`` of ``image``, all bands.
    image
        The image that the block belongs to.
    window, size
        The window of the block, and height and width of its level, for the border of the image: None leaves it out.

    Returns
    -------
    numpy.ndarray
        ``(y, x)``, False in `Image.border`, where a color band is NaN or infinite, where the color bands equal
        ``image.nodata`` (all three for integers, where it is often 0; any of them for floats), or where the alpha band
        is 0.
    """
    rgb = colors(pixels, image)
    valid = np.isfinite(rgb).all(axis=-1) if rgb.dtype.kind == "f" else np.ones(rgb.shape[:2], bool)
    nodata = nodata_as_dtype(image.nodata, rgb.dtype)
    if nodata is not None:
        differs = rgb != nodata
        valid &= differs.all(axis=-1) if rgb.dtype.kind == "f" else differs.any(axis=-1)
    if image.alpha is not None:
        valid &= pixels[..., image.alpha] != 0
    if image.border is not None and window is not None:
        valid &= ~image.border.mask(rgb, window, *(size or image.levels[0].shape[:2]))
    return valid


def check_range(value_range: Sequence[float]) -> tuple[float, float]:
    """Validate a value range.

    Parameters
    ----------
    value_range
        The values of black and white.

    Returns
    -------
    tuple of float
        Black and white.

    Raises
    ------
    ValueError
        Unless `value_range` is a pair of finite, rising numbers.
    """
    try:
        low, high = (float(value) for value in value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value range must be two rising numbers (black, white), not {value_range}")
    return low, high


def check_strength(strength: float) -> float:
    """Validate the share of the haze that is removed.

    Raises
    ------
    ValueError
        If it is not between 0 and 1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be between 0 and 1, not {strength}")
    return strength


def value_range(image: Image) -> tuple[float, float]:
    """Estimate the values of black and white, one pair for the whole image.

    Parameters
    ----------
    image
        The image. Up to a million pixels are read: the coarsest overview of at least 512 x 512 pixels,
        or 64 evenly spaced windows of 128 x 128; if none of them holds data, 256 of 64 x 64. The sample is
        deterministic.

    Returns
    -------
    tuple of float
        ``(0, 255)`` for uint8 of 8 bits. Otherwise `Image.zero`, or percentile 0.1 if that is lower, and percentile
        99.9 of the valid pixels of the three color bands together. If the percentiles are equal, or no valid pixel was
        read, from 0 to the white of the dtype for integers and ``(0, 1)`` for floats.
    """
    dtype = image.levels[0].dtype
    if dtype == np.uint8 and image.bits is None:
        return 0.0, 255.0
    samples = (_sample_colors(image, *windows) for windows in SAMPLES)
    values = next((values for values in samples if values.size), None)
    if values is not None:
        low, high = (float(value) for value in np.percentile(values, PERCENTILES))
        if low < high:
            # Black is 0 where possible: haze lifts the darkest values, and stretching the range would hide that.
            return (min(image.zero, low), high) if image.zero < high else (low, high)
    return (0.0, float(most_of(image))) if dtype.kind in "iu" else (0.0, 1.0)


def most_of(image: Image) -> int:
    """Return the largest value that the pixels of an image of integers can have."""
    most = int(np.iinfo(image.levels[0].dtype).max)
    return most if image.bits is None else min(most, 2**image.bits - 1)


def _sample_colors(image: Image, count: int, side: int) -> NDArray[np.float64]:
    """Read the colors of a sparse, even sample of the valid pixels, see `SAMPLES`."""
    import dask.array as da

    level = next((a for a in reversed(image.levels) if a.shape[0] * a.shape[1] >= COARSE_AREA), image.levels[0])
    height, width = level.shape[:2]
    windows = list(_sample_windows(height, width, count, side))
    blocks = da.compute(*(level[window] for window in windows))
    rgb = [
        colors(block, image)[valid_mask(block, image, _at(window, block), (height, width))].ravel()
        for window, block in zip(windows, blocks, strict=True)
    ]
    return np.concatenate(rgb).astype(np.float64)


def _at(place: tuple[slice, slice], block: NDArray[Any]) -> Window:
    """Return the window of a block that was cut out at two slices."""
    y, x = place[0].start, place[1].start
    return Window(y, y + block.shape[0], x, x + block.shape[1])


def _sample_windows(height: int, width: int, count: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Yield the sample windows; a small image is one window."""
    if height * width <= (count * side) ** 2:
        yield slice(0, height), slice(0, width)
        return
    for top in _window_starts(height, count, side):
        for left in _window_starts(width, count, side):
            yield slice(top, top + side), slice(left, left + side)


def _window_starts(length: int, count: int, side: int) -> list[int]:
    """Return evenly spaced, distinct starts of windows along an axis."""
    last = max(length - side, 0)
    return sorted({round(last * step / (count - 1)) for step in range(count)})
