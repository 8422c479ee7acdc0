"""Haze: the scattering law, its inverse, and fields of every kind within their range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dehazexl.synthesis.haze import (
    KINDS,
    LEVELS,
    add_haze,
    compress_jpeg,
    degrade,
    invert_scatter,
    noise,
    ramp,
    scatter,
    scatter_light,
    wavelength_law,
)

SIZES = [(1, 1), (1, 40), (33, 20), (64, 64)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clear_images(count: int = 3, height: int = 48, width: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=seeded(7))


# ---- Fields -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_kind_stays_in_range(kind: str, size: tuple[int, int]) -> None:
    for seed in range(40):
        field = KINDS[kind](*size, seeded(seed))
        assert field.shape == size
        assert field.min() >= 0  # also excludes NaN
        assert field.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_one_field(kind: str) -> None:
    one, same, other = (KINDS[kind](30, 50, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_varies(kind: str) -> None:
    spans = [float(field.max() - field.min()) for field in (KINDS[kind](64, 64, seeded(s)) for s in range(10))]
    assert max(spans) > 0.1


def test_noise_spans_its_range() -> None:
    field = noise(40, 60, 20, 3, seeded())
    assert field.min() == 0
    assert field.max() == 1


def test_a_ramp_is_plane_and_reaches_both_ends() -> None:
    for seed in range(20):
        field = ramp(41, 31, seeded(seed))
        assert field.diff(n=2, dim=0).abs().max() < 1e-5
        assert field.diff(n=2, dim=1).abs().max() < 1e-5
        assert field.min() == pytest.approx(0, abs=1e-6)
        assert field.max() == pytest.approx(1, abs=1e-6)


# ---- The law ----------------------------------------------------------------------------------------


def test_clear_sight_undoes_scatter() -> None:
    clear = clear_images().double()
    transmission = 0.05 + 0.95 * torch.rand(clear.shape, generator=seeded(1), dtype=torch.float64)
    airlight = torch.rand(3, 3, 1, 1, generator=seeded(2), dtype=torch.float64)
    hazy = scatter(clear, transmission, airlight)
    assert torch.allclose(invert_scatter(hazy, transmission, airlight), clear, atol=1e-12)
    assert torch.allclose(
        scatter(invert_scatter(clear, transmission, airlight), transmission, airlight), clear, atol=1e-12
    )


def test_haze_is_the_law() -> None:
    clear, t, a = torch.tensor(0.2), torch.tensor(0.25), torch.tensor(0.8)
    assert scatter(clear, t, a) == pytest.approx(0.2 * 0.25 + 0.8 * 0.75)


def test_clear_air_changes_nothing_and_dense_haze_hides_all() -> None:
    clear = clear_images()
    airlight = torch.full((3, 3, 1, 1), 0.8)
    assert torch.equal(scatter(clear, torch.ones_like(clear), airlight), clear)
    assert torch.equal(scatter(clear, torch.zeros_like(clear), airlight), airlight.expand_as(clear))


def light_of(values: torch.Tensor) -> np.ndarray:
    """Return the linear light of sRGB values according to the standard."""
    x = values.double().numpy()
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def values_of(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def test_haze_in_light_is_the_law_of_light() -> None:
    clear, t = clear_images(), 0.99 * torch.rand(3, 3, 48, 64, generator=seeded(1))
    airlight = torch.rand(3, 3, 1, 1, generator=seeded(2))
    expected = values_of(light_of(clear) * t.numpy() + light_of(airlight) * (1 - t.numpy()))
    np.testing.assert_allclose(scatter_light(clear, t, airlight), expected, atol=1e-5)
    assert torch.equal(scatter_light(clear, torch.ones_like(t), airlight), clear)
    # Half the light of white and half of black: 0.735 in values, not 0.5.
    half = scatter_light(torch.zeros(1), torch.tensor([0.5]), torch.ones(1))
    assert half.item() == pytest.approx(0.7354, abs=1e-4)


def test_long_waves_pass_better_and_thicker_haze_passes_less() -> None:
    t = torch.linspace(0.01, 1, 500)[None]
    red, green, blue = wavelength_law(t)
    assert torch.allclose(blue, t)
    assert torch.all(red >= green - 1e-7)
    assert torch.all(green >= blue - 1e-7)
    for band in (red, green, blue):
        assert torch.all(band.diff() > 0)
        assert band[0, -1] == 1
    thin, thick = t[0] > 0.8, t[0] < 0.1
    assert (red / blue)[0][thin].max() > 1.05
    assert torch.allclose(red[0][thick], blue[0][thick], rtol=0.2)


# ---- Synthesis --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(48, 64), (300, 257)])
def test_synthesis_keeps_shapes_and_ranges(kind: str, size: tuple[int, int]) -> None:
    clear = clear_images(2, *size)
    for seed in range(8):
        hazy = add_haze(clear, seeded(seed), [kind])
        assert hazy.pixels.shape == hazy.transmission.shape == clear.shape
        assert hazy.airlight.shape == (2, 3, 1, 1)
        assert 0 <= hazy.pixels.min() <= hazy.pixels.max() <= 1
        assert 0 < hazy.transmission.min() <= hazy.transmission.max() <= 1
        assert 0.3 <= hazy.airlight.min() <= hazy.airlight.max() <= 1


def test_a_seed_makes_one_haze_of_one_image_and_its_own_for_the_next() -> None:
    clear = clear_images(1).expand(2, -1, -1, -1)
    one, same, other = (add_haze(clear, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(one.pixels, same.pixels)
    assert torch.equal(one.transmission, same.transmission)
    assert not torch.equal(one.pixels, other.pixels)
    assert not torch.equal(one.transmission[0], one.transmission[1])


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_camera_hazy_images_are_the_law(kind: str) -> None:
    clear = clear_images()
    for seed in range(4):
        hazy = add_haze(clear, seeded(seed), [kind], camera=False, clear_share=0)
        assert (hazy.transmission < 1).flatten(1).any(1).all()
        assert torch.equal(hazy.pixels, scatter(clear, hazy.transmission, hazy.airlight))
        assert torch.allclose(invert_scatter(hazy.pixels, hazy.transmission, hazy.airlight), clear, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_haze_in_light_is_drawn_as_that_on_values(kind: str) -> None:
    clear = clear_images()
    for seed in range(3):
        values = add_haze(clear, seeded(seed), [kind], camera=False, clear_share=0.3)
        light = add_haze(clear, seeded(seed), [kind], camera=False, clear_share=0.3, linear=True)
        assert torch.equal(light.transmission, values.transmission)
        assert torch.equal(light.airlight, values.airlight)
        t = values.transmission.double().numpy()
        expected = values_of(light_of(clear) * t + light_of(values.airlight) * (1 - t))
        np.testing.assert_allclose(light.pixels, expected, atol=1e-5)
        assert torch.equal(light.pixels[t == 1], clear[t == 1])


def test_cameras_see_haze_in_light_too() -> None:
    clear = torch.full((1, 3, 32, 32), 0.3)
    for seed in range(20):
        values, light = (add_haze(clear, seeded(seed), clear_share=0, linear=linear) for linear in (False, True))
        assert torch.equal(light.transmission, values.transmission)
        assert (light.pixels - scatter_light(clear, light.transmission, light.airlight)).abs().max() < 0.12


def test_hazy_images_obey_the_law_up_to_what_a_camera_adds() -> None:
    clear = torch.full((1, 3, 32, 32), 0.3)  # unchanged by blur
    means = []
    for seed in range(60):
        hazy = add_haze(clear, seeded(seed), clear_share=0)
        error = hazy.pixels - scatter(clear, hazy.transmission, hazy.airlight)
        assert error.abs().max() < 0.12  # gains of 3 %, gamma of 8 %, noise of 0.01
        means.append(float(error.abs().mean()))
    assert max(means) < 0.06
    assert sorted(means)[30] < 0.01  # most images are hardly degraded


def test_some_images_stay_clear() -> None:
    clear = torch.full((40, 3, 16, 16), 0.3)
    hazy = add_haze(clear, seeded(), clear_share=0.5)
    free = (hazy.transmission == 1).flatten(1).all(1)
    assert 8 < free.sum() < 32
    assert torch.equal(hazy.pixels[free], clear[free])  # images without haze are not degraded
    assert (add_haze(clear, seeded(), clear_share=1).transmission == 1).all()


def test_thickness_bounds_the_haze() -> None:
    hazy = add_haze(clear_images(30, 32, 32), seeded(), ["veil"], thickness=(1.0, 1.0), clear_share=0)
    thickest = hazy.transmission.flatten(1).amin(1)
    assert thickest.min() > 0.36 * 0.7  # a thin veil may be added
    assert thickest.max() < 0.6  # the veil is nearly uniform


def test_airlight_is_nearly_gray_and_within_the_brightness_range() -> None:
    airlight = add_haze(clear_images(60, 8, 8), seeded(), brightness=(0.7, 0.9)).airlight.flatten(1)
    assert (airlight.amax(1) / airlight.amin(1)).max() < 1.35
    assert 0.6 < airlight.min() < airlight.max() <= 1
    assert airlight.std() > 0.03


def test_some_airlights_are_tinted() -> None:
    clear = clear_images(40, 8, 8)
    airlight = add_haze(clear, seeded(), clear_share=0, tinted_share=1.0).airlight.flatten(1)
    assert (airlight.amax(1) / airlight.amin(1)).max() > 1.4
    brown = airlight[:, 0] > airlight[:, 2]
    assert 20 < brown.sum() < 40
    plain = add_haze(clear, seeded(), clear_share=0).airlight.flatten(1)
    assert (plain.amax(1) / plain.amin(1)).max() < 1.35


# ---- Presets and cameras ----------------------------------------------------------------------------


def test_the_presets_rise_in_density() -> None:
    means = []
    for level in LEVELS.values():
        made = add_haze(clear_images(8), seeded(), level.kinds, level.thickness, level.brightness, clear_share=0)
        means.append(float(made.transmission.mean()))
    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > 0.3


def test_jpeg_changes_little_and_less_at_high_quality() -> None:
    smooth = torch.nn.functional.avg_pool2d(clear_images(1, 96, 96), 9, stride=1, padding=4)[0]
    errors = [float((compress_jpeg(smooth, quality) - smooth).abs().mean()) for quality in (30, 95)]
    assert 0 < errors[1] < errors[0] < 0.05


def test_a_camera_keeps_to_the_range_and_is_seeded() -> None:
    smooth = torch.nn.functional.avg_pool2d(clear_images(1, 96, 96), 9, stride=1, padding=4)[0]
    made = [degrade(smooth, seeded(seed)) for seed in range(40)]
    changes = [float((image - smooth).abs().mean()) for image in made]
    assert all(image.min() >= 0 and image.max() <= 1 for image in made)
    assert 10 < sum(change > 0 for change in changes) < 40  # sometimes, not always
    assert max(changes) < 0.06
    assert torch.equal(made[3], degrade(smooth, seeded(3)))
