"""FADE: scores of the release, and properties stated in the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dehazexl.evaluation.fade import distances, entropy, fog_density, patches, statistics, variance

SCORES = {
    "clear": 0.22380880488256763,
    "hazy": 1.6580521570867208,
    "gray": 0.3403455734440197,
    "partly white and black": 0.662055228567062,
}
"""Scores of `images` by fade-python 1.0.0, which agrees with the MATLAB release."""


def scene(seed: int = 0) -> np.ndarray:
    """Return cells of color with noise, ``(130, 166, 3)``, from integers only, identical on all machines."""
    random = np.random.RandomState(seed)
    cells = np.kron(random.randint(0, 256, (11, 14, 3)), np.ones((12, 12, 1), int))
    smooth = (cells[:-2, :-2] + cells[2:, 2:] + 2 * cells[1:-1, 1:-1]) // 4
    return np.clip(smooth + random.randint(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


def images() -> dict[str, np.ndarray]:
    clear = scene()
    partly = clear.copy()
    partly[:40], partly[-40:] = 255, 0
    return {
        "clear": clear,
        "hazy": (clear.astype(int) * 3 // 10 + 170).astype(np.uint8),
        "gray": np.repeat(clear[..., :1], 3, axis=2),
        "partly white and black": partly,
    }


@pytest.mark.parametrize("name", SCORES)
def test_scores_equal_those_of_the_release(name: str) -> None:
    assert fog_density(images()[name]) == pytest.approx(SCORES[name], rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_fade_python_where_it_is_installed(seed: int) -> None:
    pyfade = pytest.importorskip("pyfade")
    pixels = scene(seed)[: 130 - seed * 7, : 160 - seed * 5]
    assert fog_density(pixels) == pytest.approx(pyfade.fade_array(pixels), rel=1e-6)


def test_the_more_haze_the_higher_the_score() -> None:
    clear = scene(1).astype(float)
    found = [fog_density(np.rint(clear * t + 220 * (1 - t)).astype(np.uint8)) for t in (1, 0.8, 0.6, 0.4, 0.2)]
    assert found == sorted(found)
    assert found[-1] > 5 * found[0]


def test_rows_and_columns_beyond_whole_patches_do_not_count() -> None:
    pixels = scene()
    assert fog_density(pixels) == fog_density(pixels[:128, :160])


@pytest.mark.parametrize("level", [0, 200, 255])
def test_images_without_texture_have_no_score(level: int) -> None:
    assert math.isnan(fog_density(np.full((64, 64, 3), level, np.uint8)))


@pytest.mark.parametrize("shape", [(1, 1), (15, 100), (100, 15)])
def test_the_smallest_images_have_no_score(shape: tuple[int, int]) -> None:
    assert math.isnan(fog_density(scene()[: shape[0], : shape[1]]))
    assert math.isfinite(fog_density(scene()[:16, :16]))


def test_distances_are_those_of_the_mean_of_both_covariances() -> None:
    mean, covariance = statistics("fog-free")
    found = np.random.default_rng(0).random((20, 12))
    for features, distance in zip(found, distances(found, mean, covariance), strict=True):
        both = (covariance + features.var(ddof=1)) / 2
        away = features - mean
        assert distance == pytest.approx(math.sqrt(away @ np.linalg.solve(both, away)), rel=1e-9)


@pytest.mark.parametrize("kind", ["foggy", "fog-free"])
def test_statistics_are_covariances(kind: str) -> None:
    mean, covariance = statistics(kind)
    assert mean.shape == (12,)
    np.testing.assert_allclose(covariance, covariance.T, rtol=1e-12)
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_patches_variance_and_entropy() -> None:
    x = np.arange(16 * 24).reshape(16, 24)
    assert np.array_equal(patches(x)[1, 2], x[8:, 16:].ravel())
    some = np.array([[1.0, 2, 4, np.nan], [np.nan, np.nan, 3, np.nan], [np.nan] * 4])
    np.testing.assert_allclose(variance(some), np.array([np.var([1, 2, 4], ddof=1), 0, np.nan]))
    values = np.array([[[0, 0, 255, 255], [7, 7, 7, 7]], [[1, 2, 3, 4], [5, 5, 5, 9]]])
    quarters = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    np.testing.assert_allclose(entropy(values), np.array([[1, 0], [2, quarters]]), atol=1e-12)
