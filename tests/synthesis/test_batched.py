"""Synthetic haze for batches on the device of the training."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dehazexl.synthesis.batched import Draw, Synthesis, jpeg, synthesize
from dehazexl.synthesis.images import Images
from dehazexl.synthesis.srgb import from_linear, to_linear

PLAIN = Synthesis(clear=0, dark=0, pale=0, collar=0, soften=0, grade=0, noise=0, jpeg=0, local=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clear_images(n: int, h: int = 64, w: int = 96) -> torch.Tensor:
    return torch.nn.functional.interpolate(torch.rand(n, 3, 8, 8, generator=seeded(9)), size=(h, w), mode="bilinear")


def test_the_same_seed_makes_the_same_haze() -> None:
    clear, upright = clear_images(4), torch.zeros(4, dtype=torch.bool)
    one, same, other = (synthesize(clear, upright, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.hazy, same.hazy) and torch.equal(one.optical, same.optical)
    assert not torch.equal(one.hazy, other.hazy)
    assert all(torch.isfinite(part).all() for part in (one.hazy, one.optical, one.airlight))
    assert one.hazy.min() >= 0 and one.hazy.max() <= 1 and one.optical.min() >= 0


@pytest.mark.parametrize("linear", [0.0, 1.0])
def test_haze_is_that_of_the_scattering_model(linear: float) -> None:
    clear = clear_images(16)
    made = synthesize(clear, torch.zeros(16, dtype=torch.bool), seeded(), replace(PLAIN, linear=linear))
    t = torch.exp(-made.optical)
    if linear:
        expected = from_linear(to_linear(clear) * t + to_linear(made.airlight) * (1 - t))
    else:
        expected = clear * t + made.airlight * (1 - t)
    assert torch.allclose(made.hazy, expected, atol=0.5 / 255 + 1e-6)
    assert (made.tone == linear).all()
    assert (made.optical.flatten(1).amax(1) > 0.01).all()


def test_a_share_of_the_images_stays_clear() -> None:
    clear = clear_images(200, 16, 16)
    made = synthesize(clear, torch.zeros(200, dtype=torch.bool), seeded(), replace(PLAIN, clear=0.4, noise=1.0))
    free = (made.optical == 0).flatten(1).all(1)
    assert 0.3 < free.float().mean() < 0.5
    assert torch.equal(made.hazy[free], made.clear[free]) and not torch.equal(made.clear[free], clear[free])


def test_haze_of_a_batch_has_many_kinds() -> None:
    clear = clear_images(100, 64, 64)
    made = synthesize(clear, torch.zeros(100, dtype=torch.bool), seeded(), PLAIN)
    field = made.optical[:, 1].flatten(1)
    even, patchy = field.amin(1) > 0.7 * field.amax(1), field.quantile(0.3, 1) < 0.05 * field.amax(1)
    assert 3 < even.sum() < 60 and 3 < patchy.sum() < 60


def test_haze_of_upright_images_mostly_thickens_upwards() -> None:
    draw, clear = Draw(400, seeded()), clear_images(400, 32, 32)
    made = synthesize(clear, torch.ones(400, dtype=torch.bool), draw.generator, PLAIN)
    top, bottom = (made.optical[:, 1, rows].mean((1, 2)) for rows in (slice(0, 8), slice(24, 32)))
    assert (top > 1.2 * bottom).sum() > 2 * (bottom > 1.2 * top).sum()


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_compression_errs_as_much_as_a_codec(quality: int) -> None:
    random = torch.rand(1, 3, 64, 80, generator=seeded())
    image = torch.nn.functional.interpolate(random[..., :16, :20], size=(64, 80), mode="bicubic").clamp(0, 1)
    file = io.BytesIO()
    pixels = (image[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    decoded = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    ours = jpeg(image, torch.full((1, 1, 1, 1), float(quality)))
    error, theirs = ((each - image).square().mean().sqrt() for each in (ours, decoded))
    assert 0.5 * theirs < error < 2 * theirs


def test_packed_images_are_cut_upright_or_turned(tmp_path: Path) -> None:
    up = np.zeros((40, 60, 3), np.uint8)
    up[:10] = 255  # the top is bright
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as pack:
        index = []
        for split, upright in (("train", True), ("valid", False)):
            file = io.BytesIO()
            Image.fromarray(up).save(file, "WEBP", lossless=True)
            pack.writestr(f"{split}.webp", file.getvalue())
            index.append({"file": f"{split}.webp", "source": "one", "split": split, "upright": upright})
        pack.writestr("index.json", json.dumps(index))
    random = np.random.default_rng(0)
    for split, upright in (("train", True), ("valid", False)):
        images = Images.load(tmp_path / "pack.zip", split, torch.device("cpu"))
        assert len(images.pixels) == 1
        cut = [images.crop(40, 40, random, whole=1.0) for _ in range(60)]
        assert all(crop.shape == (3, 40, 40) for crop, _ in cut)
        bright_up = np.array([bool(crop[:, :5].mean() > 0.9) for crop, _ in cut])
        said = np.array([up for _, up in cut])
        assert bright_up[said].all()
        assert (said.mean() > 0.6) == upright
        clear, tops = images.crops(9, 32, 64, random, whole=0.5)
        assert clear.shape == (9, 3, 32, 64) and tops.shape == (9,)
        assert clear.min() >= 0 and clear.max() <= 1


def test_collars_are_of_one_value_without_haze() -> None:
    clear = clear_images(60, 64, 64)
    made = synthesize(clear, torch.zeros(60, dtype=torch.bool), seeded(), replace(PLAIN, collar=0.5, thickness=(1, 2)))
    border = (made.clear != clear).all(1, keepdim=True)
    some = border.flatten(1).any(1)
    assert 15 < some.sum() < 45 and border[some].float().mean() > 0.1
    assert torch.equal(made.clear[border.expand_as(clear)], made.hazy[border.expand_as(clear)])
    assert (made.optical[border.expand_as(clear)] == 0).all()
    values = [made.clear[i, 0][border[i, 0]] for i in range(60) if some[i]]
    assert all((each == each[0]).all() for each in values) and {0.0, 1.0} <= {float(each[0]) for each in values}
