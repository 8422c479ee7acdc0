"""The scale between an image's values and those that a network sees."""

import numpy as np
import pytest
import torch

from dehazexl.image.value_scale import ValueScale, to_dtype


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_round_trip(dtype: str) -> None:
    scale = ValueScale(100, 3000) if dtype != "uint8" else ValueScale(0, 255)
    values = np.arange(256).astype(dtype)
    unit = scale.to_unit(values)
    assert unit.dtype == np.float32 and np.array_equal(values, np.arange(256).astype(dtype))
    assert unit == pytest.approx((values - np.float64(scale.low)) / (scale.high - scale.low), abs=1e-6)
    back = scale.from_unit(unit)
    assert back is unit
    assert np.array_equal(to_dtype(back, np.dtype("uint16")), np.arange(256))


def test_tensors_are_scaled_like_arrays() -> None:
    scale, unit = ValueScale(-2.5, 7.0), np.linspace(-0.1, 1.1, 50, dtype=np.float32)
    assert np.array_equal(scale.from_unit(torch.from_numpy(unit.copy())).numpy(), scale.from_unit(unit.copy()))


def test_integers_are_rounded_and_clipped_and_floats_stay_finite() -> None:
    values = np.array([-3, 0.49, 0.5, 1.5, 300, np.nan, np.inf], np.float32)
    assert to_dtype(values, np.dtype("uint8")).tolist() == [0, 0, 0, 2, 255, 0, 255]
    assert np.isfinite(to_dtype(np.array([1e6, -np.inf], np.float32), np.dtype("float16"))).all()
