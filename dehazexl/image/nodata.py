"""Nodata values: conversion to a dtype, the nearest valid value, and the JSON form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def nodata_as_dtype(nodata: float | None, dtype: np.dtype[Any]) -> float | None:
    """Convert a nodata value to a dtype.

    For example, -3.4028234663852886e+38 in a file is the lowest float32, and -9999 does not exist in uint8.

    Returns
    -------
    float or None
        None if there is no nodata value, or pixels of the dtype cannot hold it.
    """
    if nodata is None:
        return None
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            rounded = float(dtype.type(nodata))
        return rounded if math.isfinite(rounded) == math.isfinite(nodata) else None
    info = np.iinfo(dtype)
    return nodata if info.min <= nodata <= info.max and nodata == int(nodata) else None


def next_valid_value(nodata: float, dtype: np.dtype[Any]) -> Any:
    """Return the value nearest to a nodata value, for valid pixels whose result equals it.

    Parameters
    ----------
    nodata
        A nodata value that the dtype can hold.
    dtype
        Data type of the pixels.

    Returns
    -------
    numpy scalar
        The neighbor of `nodata` towards 0, or above 0, of type `dtype`.
    """
    mark = dtype.type(nodata)
    if dtype.kind == "f":
        return np.nextafter(mark, dtype.type(0 if mark else 1))
    return mark - dtype.type(1) if mark > 0 else mark + dtype.type(1)


def as_json(nodata: float) -> float | str:
    """Convert a nodata value to JSON, spelling NaN and infinities as Zarr does in its fill value."""
    if math.isfinite(nodata):
        return nodata
    return "NaN" if math.isnan(nodata) else "Infinity" if nodata > 0 else "-Infinity"
