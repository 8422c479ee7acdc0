"""Numbers of attribution maps, on maps of which they are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dehazexl.engine.explain.measures import area, gini, radius, share_outside, squares
from dehazexl.image.grid import Window


def test_squares_sum_a_map_over_rectangles() -> None:
    values = np.random.default_rng(0).normal(size=(600, 70)).astype(np.float32)
    sums = squares(values, [0, 300, 599], [0, 64])
    assert sums.shape == (3, 2)
    assert sums[1, 1] == pytest.approx(values[300:599, 64:].sum(dtype=float))
    assert sums.sum() == pytest.approx(values.sum(dtype=float))


def test_the_share_outside_a_window_counts_both_signs() -> None:
    values = np.zeros((300, 300), np.float32)
    values[10, 10], values[280, 10], values[10, 280] = -3, 2, -1
    assert share_outside(values, Window(0, 256, 0, 256)) == pytest.approx(0.5)
    assert share_outside(values, Window(-20, 400, 0, 400)) == 0
    assert math.isnan(share_outside(np.zeros_like(values), Window(0, 9, 0, 9)))


def test_the_radius_is_the_distance_from_the_window() -> None:
    values = np.zeros((400, 300), np.float32)
    values[120, 120], values[109, 100], values[390, 100] = -6, 3, 1
    window = Window(110, 130, 110, 130)
    assert radius(values, window, 0.5) == 0
    assert radius(values, window, 0.9) == math.ceil(math.hypot(1, 10))
    assert radius(values, window, 1) == math.ceil(math.hypot(261, 10))
    assert math.isnan(radius(np.zeros_like(values), window, 0.5))


def test_the_gini_coefficient_tells_one_from_all() -> None:
    assert gini(np.ones(100)) == pytest.approx(0)
    assert gini(np.eye(1, 100)) == pytest.approx(0.99)
    values = np.random.default_rng(0).normal(size=50)
    pairs = np.abs(np.abs(values)[:, None] - np.abs(values)).sum() / (2 * 50 * np.abs(values).sum())
    assert gini(values) == pytest.approx(pairs)
    assert math.isnan(gini(np.zeros(3)))


def test_the_area_under_a_line_is_that_of_its_triangle() -> None:
    assert area([0, 0.3, 1], [1, 0.7, 0]) == pytest.approx(0.5)
