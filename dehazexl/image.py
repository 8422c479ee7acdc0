"""Pictures in: every source becomes one lazy `Image`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import dask.array as da

    from dehazexl.geo import Geo


@dataclass(frozen=True)
class Image:
    """A picture that has been opened but not read.

    Attributes
    ----------
    levels
        Lazy arrays ``(y, x, c)`` of one dtype, finest first. ``levels[0]`` is the picture; the others
        are the overviews that the file holds, each smaller than the one before.
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
        Size of a pixel, position of the centre of the first pixel, both ``(y, x)``, in ``units``
        ("pixel" when the file says nothing).
    geo
        Georeference, or None.
    path
        The file or Zarr that was opened, or None for arrays.
    fingerprint
        Changes whenever the pixels may have changed: path, size and modification time of a file, or a
        hash of an array.
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
