"""Linear scale between the values of an image and the unit range of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Values = TypeVar("Values")
"""A numpy array or a torch tensor of float32."""


@dataclass(frozen=True)
class ValueScale:
    """Values of an image that map to 0 and 1 in the network.

    Attributes
    ----------
    low, high
        Values of black and white in the image.
    """

    low: float
    high: float

    def to_unit(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Map image values of any dtype to the unit range, in a new array of float32; `from_unit` is the inverse."""
        unit = values.astype(np.float32)
        unit -= np.float32(self.low)
        unit /= np.float32(self.high - self.low)
        return unit

    def from_unit(self, unit: Values) -> Values:
        """Map values of the unit range back to image values, in place."""
        values: Any = unit
        values *= float(np.float32(self.high - self.low))
        values += float(np.float32(self.low))
        return unit


def to_dtype(values: NDArray[np.floating[Any]], dtype: np.dtype[Any], bits: int | None = None) -> NDArray[Any]:
    """Round and clip values to an integer dtype, of fewer bits if given, or clip them to the finite range of a float.

    Infinities would mark pixels without data.
    """
    if dtype.kind == "f":
        return np.clip(values, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
    info = np.iinfo(dtype)
    most = info.max if bits is None else min(info.max, 2**bits - 1)
    if dtype.itemsize > 2:
        values = values.astype(np.float64)  # float32 rounds the largest integers of 32 bits beyond their range
    return np.clip(np.rint(np.nan_to_num(values)), info.min, most).astype(dtype)
