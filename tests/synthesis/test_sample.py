"""The sample image: a photograph of any size, haze that a seed decides, and weights that remove it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from skimage.metrics import peak_signal_noise_ratio

import dehazexl
from dehazexl.synthesis.sample import AIRLIGHT, HEIGHT, PHOTOGRAPH, WIDTH, add_haze, clear_sample


def test_the_photograph_is_small_and_names_its_licence() -> None:
    assert PHOTOGRAPH.stat().st_size <= 400_000
    notice = PHOTOGRAPH.with_name("sample-LICENSE.txt")
    assert "CC0" in notice.read_text()
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"dehazexl/synthesis/{notice.name}" in project["license-files"]


def test_the_photograph_comes_as_it_is() -> None:
    with PIL.Image.open(PHOTOGRAPH) as photograph:
        np.testing.assert_array_equal(clear_sample(), np.asarray(photograph))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (270, 320), (1300, 200)])
def test_it_is_cropped_about_its_center_and_resized(height: int, width: int) -> None:
    pixels = clear_sample(height, width)
    assert pixels.shape == (height, width, 3)
    scale = min(HEIGHT / height, WIDTH / width)
    y, x = ((full - side * scale) / 2 for full, side in ((HEIGHT, height), (WIDTH, width)))
    part = clear_sample()[round(y) : round(y + height * scale), round(x) : round(x + width * scale)]
    np.testing.assert_allclose(pixels.mean((0, 1)), part.mean((0, 1)), atol=3)


def test_haze_draws_each_pixel_towards_the_airlight() -> None:
    clear = clear_sample(270, 320)
    hazy = add_haze(clear)
    air = np.multiply(AIRLIGHT, 255)
    np.testing.assert_array_equal(hazy, add_haze(clear, 3))
    assert (hazy != add_haze(clear, 4)).mean() > 0.5
    before, after = air - clear, air - hazy
    assert np.all(np.abs(after) <= np.abs(before) + 0.5)
    assert np.all(after * np.sign(before) >= -0.5)


def test_the_bundled_weights_remove_the_haze() -> None:
    clear = clear_sample(450, 600)
    hazy = add_haze(clear)
    found = np.asarray(dehazexl.dehaze(hazy, dehazexl.load_model(device="cpu", dtype="float32")))
    before, after = (peak_signal_noise_ratio(clear, pixels) for pixels in (hazy, found))
    assert after > before + 6 and after > 20
