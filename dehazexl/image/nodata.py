"""The value that marks pixels without data: what it is in a dtype, which value is next to it, how JSON spells it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def held(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """Return a nodata value as pixels of a dtype hold it, or None if they cannot.

    -3.4028234663852886e+38 in a file means float32's lowest; pixels of uint8 are never -9999.
    """
    if nodata is None:
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            rounded = float(dtype.type(nodata))
        return rounded if math.isfinite(rounded) == math.isfinite(nodata) else None
    limits = np.iinfo(dtype)
    return nodata if limits.min <= nodata <= limits.max and nodata == int(nodata) else None


def beside(nodata: float, dtype: np.dtype[Any]) -> Any:
    """Return the value next to one that a dtype holds, for pixels with data that came to lie on it: towards 0, or up.

    Returns
    -------
    numpy scalar
        Of `dtype`.
    """
    mark = dtype.type(nodata)
    if dtype.kind == "f":
        return np.nextafter(mark, dtype.type(0 if mark else 1))
    return mark - dtype.type(1) if mark > 0 else mark + dtype.type(1)


def as_json(nodata: float) -> float | str:
    """Return a nodata value as JSON can hold it, which has no NaN: as Zarr spells it in its fill value."""
    if math.isfinite(nodata):
        return nodata
    return "NaN" if math.isnan(nodata) else "Infinity" if nodata > 0 else "-Infinity"
