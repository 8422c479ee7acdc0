"""Evaluation without reference images: scores of images with known results, and the command."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import pytest
from PIL import Image as Pillow
from reference import interleaved, picture
from skimage.color import lab2rgb

from dehazexl.cli.app import main
from dehazexl.evaluation.fade import fog_density
from dehazexl.evaluation.paired import seam_ratio
from dehazexl.evaluation.real import (
    clipped_share,
    evaluate_real,
    mean_lab,
    noise_level,
    real_scores,
    shrink,
    to_uint8,
)

if TYPE_CHECKING:
    from dehazexl import DehazeXL

HAZY = interleaved(picture(300, 280)) * np.float32(0.5) + np.float32(0.4)


def of_lab(a: float, b: float, rows: int = 600) -> np.ndarray:
    """Return an image ``(rows, 40, 3)`` with constant a* and b*, and L* from 40 to 60."""
    lightness = np.linspace(40, 60, rows)[:, None].repeat(40, axis=1)
    return lab2rgb(np.stack([lightness, np.full_like(lightness, a), np.full_like(lightness, b)], axis=2))


# ---- Scores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(0, 0), (12, 0), (0, -9), (-8, 6)])
def test_the_cast_is_the_distance_from_neutral(a: float, b: float) -> None:
    scores = real_scores(of_lab(0, 0), of_lab(a, b))
    assert scores["cast"] == pytest.approx(math.hypot(a, b), abs=0.05)
    assert scores["lightness"] == pytest.approx(50, abs=0.05)


def test_opposite_casts_cancel() -> None:
    both = np.concatenate([of_lab(10, 5), of_lab(-10, -5)], axis=1)
    assert real_scores(both, both)["cast"] < 0.05


def test_lab_is_the_same_in_strips() -> None:
    pixels = to_uint8(interleaved(picture(1100, 30)))
    thirds = [mean_lab(part) for part in (pixels[:300], pixels[300:])]
    np.testing.assert_allclose(mean_lab(pixels), (np.array(thirds[0]) * 3 + np.array(thirds[1]) * 8) / 11, rtol=1e-9)


def test_only_newly_clipped_pixels_count() -> None:
    hazy = np.full((10, 10, 3), 100, np.uint8)
    hazy[0] = 255  # clipped before: a row of 10
    out = hazy.copy()
    out[0, :, 1] = 0  # a color that changed from one end to the other
    out[1, :4] = 0
    out[2, 0, 2] = 255
    out[3] = (1, 254, 100)
    assert clipped_share(hazy, out) == pytest.approx(0.05)
    assert clipped_share(out, out) == 0


def test_colors_beyond_the_range_count_as_clipped() -> None:
    out = HAZY.copy()
    out[:30] = 1.2
    out[30:45] = -0.1
    assert real_scores(HAZY, out)["clipped"] == pytest.approx(45 / 300)


@pytest.mark.parametrize("sigma", [0.004, 0.02, 0.1])
def test_noise_is_found_on_ramps_and_edges(sigma: float) -> None:
    y, x = np.mgrid[0:200, 0:200] / 200
    truth = np.stack([0.3 * x + 0.2 * y, 0.5 - 0.3 * x, 0.4 + 0.2 * (x > 0.5)], axis=2)
    assert noise_level(truth) == 0
    noisy = truth + sigma * np.random.default_rng(0).standard_normal(truth.shape)
    assert noise_level(noisy) == pytest.approx(sigma / math.sqrt(3), rel=0.03)  # of the mean of three colors


@pytest.mark.parametrize("factor", [0.5, 1, 2, 3])
def test_noise_is_relative_to_the_input(factor: float) -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal((200, 200, 3))
    assert real_scores(0.5 + noise, 0.4 + factor * noise)["noise"] == pytest.approx(factor, rel=1e-6)


def test_without_noise_there_is_nothing_to_amplify() -> None:
    flat = np.full((40, 40, 3), 0.5, np.float32)
    assert math.isnan(real_scores(flat, HAZY[:40, :40])["noise"])
    assert math.isnan(real_scores(HAZY[:2, :2], HAZY[:2, :2])["noise"])


def test_fog_and_seams_are_scored_in_8_bits() -> None:
    out = (HAZY - 0.4) * 2.4 - 0.1
    scores = real_scores(HAZY, out, overlap=32)
    assert scores["fade"] == fog_density(np.rint(np.clip(out, 0, 1) * 255).astype(np.uint8))
    assert scores["seam"] == seam_ratio(np.clip(out, 0, 1) - HAZY, 32)
    assert scores["fade"] < real_scores(HAZY, HAZY)["fade"]


def test_nan_has_no_score() -> None:
    out = HAZY.copy()
    out[0, 0, 0] = np.nan
    assert all(math.isnan(value) for value in real_scores(HAZY, out).values())


def test_the_input_and_each_method_are_scored() -> None:
    pixels = to_uint8(HAZY)
    found = list(evaluate_real([("a", pixels), ("b", pixels[:40])], {"darker": lambda hazy: hazy - 0.1}))
    assert [(name, method) for name, method, _, _ in found] == [
        (name, method) for name in "ab" for method in ("hazy input", "darker")
    ]
    (_, _, hazy, before), (_, _, out, after) = found[:2]
    assert np.array_equal(to_uint8(hazy), pixels)
    assert np.array_equal(out, hazy - 0.1)
    assert before["noise"] == 1 and before["clipped"] == 0
    assert after["lightness"] < before["lightness"] - 5


@pytest.mark.parametrize(
    ("shape", "size", "becomes"),
    [((300, 200), 150, (150, 100)), ((200, 300), 100, (67, 100)), ((90, 80), 90, (90, 80)), ((900, 2), 90, (90, 1))],
)
def test_only_larger_images_shrink(shape: tuple[int, int], size: int, becomes: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), 7, np.uint8)
    assert shrink(pixels, size).shape[:2] == becomes
    assert shrink(pixels, None) is pixels
    assert (shrink(pixels, size) == 7).all()


# ---- The command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tiny: DehazeXL, tmp_path_factory: pytest.TempPathFactory) -> str:
    from dehazexl.model.weights import save_model

    return str(save_model(tiny, tmp_path_factory.mktemp("weights") / "tiny.safetensors"))


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_photographs(tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in" / "one.png", to_uint8(HAZY))
    (tmp_path / "in" / "more").mkdir()
    Pillow.fromarray(to_uint8(HAZY[:100, :120])).save(tmp_path / "in" / "more" / "one.jpg")
    out = tmp_path / "new" / "scores"
    given = ["evaluate", "--real", str(tmp_path / "in"), "--weights", weights, "--out", str(out), "--device", "cpu"]
    for _ in range(2):  # the second run replaces the files
        assert main(given) == 0
    output = capsys.readouterr().out
    for word in ("one.png", "more/one.jpg", "dark channel prior", "tiny", "fade", "means of 2 images, at full size"):
        assert word in output
    rows = read(out / "real.csv")
    assert [(row["image"], row["method"]) for row in rows] == [
        (name, method)
        for name in ("more/one.jpg", "one.png")
        for method in ("hazy input", "dark channel prior", "tiny")
    ]
    expected = real_scores(to_uint8(HAZY) / np.float32(255), to_uint8(HAZY) / np.float32(255))
    assert float(rows[3]["fade"]) == expected["fade"]
    assert float(rows[3]["cast"]) == expected["cast"]
    summary = {row["method"]: row for row in read(out / "real-summary.csv")}
    own = [float(row["fade"]) for row in rows if row["method"] == "tiny"]
    assert float(summary["tiny"]["fade"]) == pytest.approx(sum(own) / 2)
    # The smaller image has no tile borders and no seam score.
    assert [math.isnan(float(row["seam"])) for row in rows if row["method"] == "tiny"] == [True, False]
    assert summary["tiny"]["seam"] == rows[5]["seam"]
    assert imagecodecs.imread(out / "real.png").shape == (2 * (256 + 16), 3 * 256, 3)


def test_larger_photographs_shrink_to_a_size(tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "one.png", to_uint8(HAZY))
    given = ["evaluate", "--real", str(tmp_path), "--weights", weights, "--size", "90", "--device", "cpu"]
    assert main(given) == 0
    output = capsys.readouterr().out
    assert "at most 90 pixels" in output
    assert f"{fog_density(shrink(to_uint8(HAZY), 90)):.3f}" in output


def test_unreadable_images_are_reported_and_skipped(
    tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.png", to_uint8(HAZY)[:64, :64, 0])
    write(tmp_path / "b.png", to_uint8(HAZY)[:64, :64])
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes()[:400])
    (tmp_path / "d.jpg").write_text("no image")
    assert main(["evaluate", "--real", str(tmp_path), "--weights", weights, "--device", "cpu"]) == 2
    output = capsys.readouterr()
    assert "means of 1 images" in output.out
    errors = [line[line.index("dehazexl: error") :] for line in output.err.splitlines() if "dehazexl: error" in line]
    assert len(errors) == 4
    for name, error in zip(("a.png", "c.png", "d.jpg", "could not be scored: 3, see above"), errors, strict=True):
        assert name in error
    (tmp_path / "b.png").unlink()
    assert main(["evaluate", "--real", str(tmp_path), "--weights", weights, "--device", "cpu"]) == 2
    assert "none of the 3 images in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--real", "missing"], "missing: no such folder of images"),
        (["--real", "empty"], "no images in empty: files need one of the suffixes"),
        (["--real", "in", "in"], "pass either FOLDER"),
        (["--real", "in", "--overlap", "200"], "overlap must be between 0 and 128"),
        (["--real", "in", "--out", "in/scores"], "choose a folder next to them"),
        (["--real", "in", "--light", "both"], "--hold-out and --light do not apply to --real"),
        (["--real", "in", "--hold-out", "*"], "--hold-out and --light do not apply to --real"),
        (["--real", "in", "--weights", "frob"], "no weights 'frob'"),
    ],
)
def test_invalid_arguments_of_evaluate_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("in/one.png"), to_uint8(HAZY))
    Path("empty").mkdir()
    assert main(["evaluate", "--out", "out", *given]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("dehazexl: error: ") and message in error and "\n" not in error
    assert not Path("out").exists() and not Path("in/scores").exists()
