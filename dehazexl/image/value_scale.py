"""The one scale between an image's values and those that a network sees."""

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
    """Values of an image that a network sees as 0 and 1.

    Attributes
    ----------
    low, high
        Black and white, in the image's values.
    """

    low: float
    high: float

    def to_unit(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Bring values of any dtype to the unit scale, as a new array of float32; `from_unit` is the inverse."""
        unit = values.astype(np.float32)
        unit -= np.float32(self.low)
        unit /= np.float32(self.high - self.low)
        return unit

    def from_unit(self, unit: Values) -> Values:
        """Bring numbers of the unit scale back to the image's values, in place."""
        values: Any = unit
        values *= float(np.float32(self.high - self.low))
        values += float(np.float32(self.low))
        return unit


def to_dtype(values: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Round and clip values to an integer dtype; floats only stay finite, as infinities would be no data."""
    if dtype.kind == "f":
        return np.clip(values, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(np.nan_to_num(values)), limits.min, limits.max).astype(dtype)
