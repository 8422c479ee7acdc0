"""Evaluation with reference images: scores against scikit-image, seams, and the command."""

from __future__ import annotations

import csv
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import pytest
from numpy.typing import NDArray
from reference import interleaved, picture
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dehazexl.cli.app import main
from dehazexl.evaluation.paired import (
    Case,
    dark_channel_prior,
    evaluate,
    pair_cases,
    scores,
    seam_ratio,
    synthesize_cases,
)
from dehazexl.training.datasets import LEVELS, Dataset

if TYPE_CHECKING:
    from dehazexl import DehazeXL

CLEAR = interleaved(picture(300, 280))


def case(clear: np.ndarray, hazy: np.ndarray | None = None) -> Case:
    return Case("one", "veil", clear, clear * 0.5 + 0.4 if hazy is None else hazy)


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels * 255).astype(np.uint8)


# ---- Scores -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("height", [7, 40, 512, 518, 519, 1100])
def test_scores_are_those_of_scikit_image(height: int) -> None:
    clear, out = interleaved(picture(height, 60)), interleaved(picture(height, 60, 1)) * 1.3 - 0.1
    found = scores(case(clear), out)
    truth, seen = clear.astype(np.float64), np.clip(out, 0, 1).astype(np.float64)
    assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(truth, seen, data_range=1), rel=1e-9)
    assert found["ssim"] == pytest.approx(structural_similarity(truth, seen, data_range=1, channel_axis=2), rel=1e-9)
    assert found["ciede2000"] == pytest.approx(deltaE_ciede2000(rgb2lab(truth), rgb2lab(seen)).mean(), rel=1e-9)


def test_an_image_of_nan_is_not_the_best() -> None:
    clear = np.full((9, 9, 3), 0.5)
    out = clear.copy()
    out[0, 0, 0] = np.nan
    assert np.isnan(scores(case(clear), out)["psnr"])


def test_the_clear_image_has_perfect_scores() -> None:
    found = scores(case(CLEAR), CLEAR)
    assert found["psnr"] == 100
    assert found["ssim"] == 1
    assert found["ciede2000"] == 0


@pytest.mark.parametrize("size", [(1, 1), (6, 50), (50, 6)])
def test_the_smallest_images_have_no_ssim(size: tuple[int, int]) -> None:
    found = scores(case(picture(50)[0, : size[0], : size[1], None].repeat(3, 2)), np.zeros((*size, 3), np.float32))
    assert math.isnan(found["ssim"])
    assert math.isfinite(found["psnr"])


@pytest.mark.parametrize(("overlap", "at"), [(0, 256), (0, 512), (32, 224), (32, 256), (32, 448), (32, 480)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_jump_at_a_tile_border_is_a_seam(overlap: int, at: int, axis: int) -> None:
    slope = np.linspace(0, 1, 600)[:, None, None] + np.linspace(0, 1, 600)[None, :, None]
    smooth = np.broadcast_to(slope, (600, 600, 3)).copy()
    assert seam_ratio(smooth, overlap) == pytest.approx(1)
    beside = smooth.copy()
    (smooth if axis == 0 else smooth.swapaxes(0, 1))[at:] += 0.5
    (beside if axis == 0 else beside.swapaxes(0, 1))[at + 1 :] += 0.5
    assert seam_ratio(smooth, overlap) > 10
    assert seam_ratio(beside, overlap) < 1


@pytest.mark.parametrize(("size", "overlap"), [(256, 32), (250, 32), (256, 128), (480, 32)])
def test_no_border_after_the_last_tile(size: int, overlap: int) -> None:
    change = interleaved(picture(size))
    change[size - overlap :] += 5  # the last tile that fits reaches to the end: no border here
    jumps = seam_ratio(change, overlap)
    assert math.isnan(jumps) if size <= 256 else jumps < 1


def test_no_seam_without_borders_or_change() -> None:
    assert math.isnan(seam_ratio(np.zeros((600, 600, 3))))
    assert math.isnan(seam_ratio(interleaved(picture(200))))
    assert math.isnan(seam_ratio(np.zeros((1, 1, 3))))


# ---- Cases ------------------------------------------------------------------------------------------


def test_synthesized_haze_is_always_the_same() -> None:
    images = [("a", eight_bits(CLEAR)), ("b", eight_bits(CLEAR)[::-1])]
    one, again = list(synthesize_cases(images, 64)), list(synthesize_cases(images, 64))
    assert [(c.name, c.kind) for c in one[:4]] == [("a", k) for k in ("veil", "patches", "depth", "ridges")]
    assert len(one) == 8
    assert all(c.clear.shape == c.hazy.shape == (64, 64, 3) for c in one)
    assert all(np.array_equal(c.hazy, other.hazy) for c, other in zip(one, again, strict=True))


def test_haze_on_linear_light_is_the_same_haze() -> None:
    images = [("a", eight_bits(CLEAR)), ("b", eight_bits(CLEAR)[::-1])]
    values, linear = (list(synthesize_cases(images, 64, linear=each)) for each in (False, True))
    assert {c.light for c in values} == {"values"} and {c.light for c in linear} == {"linear"}
    for one, other in zip(values, linear, strict=True):
        assert (one.name, one.kind) == (other.name, other.kind)
        assert np.array_equal(one.clear, other.clear)
        # In linear light the airlight is more visible in mixtures; areas without haze are unchanged.
        assert (other.hazy >= one.hazy - 1e-6).mean() > 0.95
        assert other.hazy.mean() > one.hazy.mean() + 0.01
    assert all(np.array_equal(c.hazy, np.rint(c.hazy * 255) / np.float32(255)) for c in linear)


def test_pairs_are_scored_at_full_size() -> None:
    clear = eight_bits(CLEAR)
    (only,) = pair_cases(Dataset([clear], [clear // 2], ["cloud_L2/0001"]))
    assert only.kind == "cloud_L2"
    assert np.array_equal(eight_bits(only.clear), clear)
    assert np.array_equal(eight_bits(only.hazy), clear // 2)


def test_each_method_is_scored_on_each_case() -> None:
    cases = list(synthesize_cases([("a", eight_bits(CLEAR))], 128))

    def slow(hazy: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(0.2)
        return cases[0].clear

    outcomes = list(evaluate(iter(cases), {"dark channel prior": dark_channel_prior, "truth": slow}))
    assert [method for _, method, _, _ in outcomes] == ["hazy input", "dark channel prior", "truth"] * 4
    hazy, prior, truth = (values for _, _, _, values in outcomes[:3])
    assert prior["psnr"] > hazy["psnr"] + 2
    assert truth["psnr"] == 100
    assert prior["seconds"] > 0 and truth["seconds"] >= 0.2
    if sys.platform != "win32":
        assert all(50 < values["memory_mb"] < 100_000 for values in (hazy, prior, truth))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not forget the highest memory")
def test_memory_is_measured_for_each_method() -> None:
    (first, *_) = synthesize_cases([("a", eight_bits(CLEAR))], 128)
    methods = {"large": lambda hazy: np.ones(2**28, np.uint8)[0] * hazy, "small": lambda hazy: hazy}
    hazy, large, small = (values["memory_mb"] for _, _, _, values in evaluate([first], methods))
    assert large > hazy + 200
    assert small < large - 200


@pytest.mark.parametrize("size", [(7, 9), (47, 60), (90, 41)])
def test_the_dark_channel_prior_follows_the_papers(size: tuple[int, int]) -> None:
    hazy = interleaved(picture(*size)).astype(np.float64) * 0.5 + 0.3

    def windows(x: np.ndarray, reach: int) -> np.ndarray:
        x = np.pad(x, reach, mode="symmetric")
        return np.lib.stride_tricks.sliding_window_view(x, (2 * reach + 1, 2 * reach + 1))

    def box(x: np.ndarray) -> np.ndarray:
        return windows(x, 40).mean((2, 3))

    dark = windows(hazy.min(2), 7).min((2, 3))
    places = sorted(np.ndindex(size), key=lambda place: dark[place])[-max(1, dark.size // 1000) :]
    brightest = max(hazy[place].mean() for place in places)
    airlight = np.mean([hazy[place] for place in places if hazy[place].mean() > brightest - 1e-9], axis=0)
    rough = 1 - 0.95 * windows((hazy / airlight).min(2), 7).min((2, 3))
    gray = hazy.mean(2)
    slope = (box(gray * rough) - box(gray) * box(rough)) / (box(gray * gray) - box(gray) ** 2 + 1e-3)
    t = np.maximum(box(slope) * gray + box(box(rough) - slope * box(gray)), 0.1)[..., None]
    np.testing.assert_allclose(dark_channel_prior(hazy), (hazy - airlight) / t + airlight, atol=1e-9)


def test_a_black_image_stays_black() -> None:
    assert not dark_channel_prior(np.zeros((40, 40, 3))).any()


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


def test_clear_images(tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in" / "Zürich.png", eight_bits(CLEAR))
    out = tmp_path / "new" / "scores"
    for _ in range(2):  # the second run replaces the files
        given = ["evaluate", tmp_path / "in", "--weights", weights, "--size", "264", "--out", out, "--device", "cpu"]
        assert main([str(arg) for arg in given]) == 0
    output = capsys.readouterr().out
    for word in ("hazy input", "dark channel prior", "tiny", "psnr", "ciede2000", "data range 1", "peak memory"):
        assert word in output
    for light in ("on the values of the file", "on linear light", "on both"):
        assert f"haze {light}\n" in output
    rows = read(out / "scores.csv")
    assert len(rows) == 2 * 4 * 3
    assert {row["picture"] for row in rows} == {"Zürich"}
    summary = {(row["light"], row["haze"], row["method"]): row for row in read(out / "summary.csv")}
    assert len(summary) == 3 * (1 + 4) * 3
    for light in ("values", "linear", "both"):
        own = [float(row["ssim"]) for row in rows if row["method"] == "tiny" and light in (row["light"], "both")]
        assert float(summary[light, "all", "tiny"]["ssim"]) == pytest.approx(np.mean(own))
        veiled = [float(row["psnr"]) for row in rows if row["haze"] == "veil" and light in (row["light"], "both")]
        methods = ("hazy input", "dark channel prior", "tiny")
        found = [float(summary[light, "veil", method]["psnr"]) for method in methods]
        assert np.mean(found) == pytest.approx(np.mean(veiled))
    sheet = imagecodecs.imread(out / "sheet.png")
    assert sheet.shape == (6 * (256 + 16), 4 * 256, 3)
    assert sheet.std() > 20


@pytest.mark.parametrize("light", ["values", "linear"])
def test_one_light_of_two(tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str], light: str) -> None:
    write(tmp_path / "in" / "one.png", eight_bits(CLEAR))
    given = ["evaluate", str(tmp_path / "in"), "--weights", weights, "--size", "64", "--light", light]
    assert main([*given, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert output.count("hazy input") == 1
    assert {"values": "haze, on the values of the file;", "linear": "haze, on linear light;"}[light] in output
    rows = [row for row in read(tmp_path / "out" / "scores.csv") if row["method"] == "hazy input"]
    assert {row["light"] for row in rows} == {light}
    cases = synthesize_cases([("one", eight_bits(CLEAR))], 64, linear=light == "linear")
    assert [float(row["psnr"]) for row in rows] == [pytest.approx(scores(c, c.hazy)["psnr"]) for c in cases]


def test_pairs_and_two_weights(tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    for i, (height, width) in enumerate([(300, 280), (70, 520)]):
        pixels = eight_bits(interleaved(picture(height, width, i)))
        write(tmp_path / "clear" / f"{i}.png", pixels)
        write(tmp_path / "hazy" / f"{i}.png", pixels // 2 + 90)
    (tmp_path / "other.safetensors").write_bytes(Path(weights).read_bytes())
    chosen = ["--weights", weights, "--weights", str(tmp_path / "other.safetensors"), "--overlap", "0"]
    assert main(["evaluate", str(tmp_path), *chosen, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "means of 2 pairs" in capsys.readouterr().out
    rows = {(row["picture"], row["method"]): row for row in read(tmp_path / "out" / "scores.csv")}
    assert len(rows) == 2 * 4
    clear, hazy = (imagecodecs.imread(tmp_path / name / "0.png") / 255 for name in ("clear", "hazy"))
    psnr = peak_signal_noise_ratio(clear, hazy, data_range=1)
    assert float(rows["hazy/0", "hazy input"]["psnr"]) == pytest.approx(psnr, abs=1e-4)  # pixels are float32
    assert rows["hazy/0", "tiny"]["psnr"] == rows["hazy/0", "other"]["psnr"]


def test_one_image_of_8kdehaze_is_enough(tmp_path: Path, weights: str) -> None:
    for name in ("clear", "cloud_L3"):
        write(tmp_path / name / "only.png", eight_bits(CLEAR[:40, :50]))
    assert main(["evaluate", str(tmp_path), "--weights", weights, "--device", "cpu"]) == 0


def test_8kdehaze_is_scored_on_the_held_out_images(tmp_path: Path, weights: str) -> None:
    for i in range(7):
        for level, name in enumerate(("clear", *LEVELS)):
            write(tmp_path / name / f"{i}.png", np.full((20, 30, 3), 10 * i + 30 * level, np.uint8))
    out = tmp_path / "out"
    assert main(["evaluate", str(tmp_path), "--weights", weights, "--out", str(out), "--device", "cpu"]) == 0
    rows = read(out / "scores.csv")
    assert len({Path(row["picture"]).name for row in rows}) == 1
    assert {row["haze"] for row in rows} == set(LEVELS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["missing"], "no such folder"),
        (["empty"], "no images"),
        (["in", "--overlap", "200"], "overlap must be between 0 and 128"),
        (["in", "--weights", "frob"], "no weights 'frob'"),
        (["in", "--size", "3"], "--size"),
        (["in", "--out", "in/scores"], "choose a folder next to them"),
        (["in", "--light", "sun"], "--light must be one of values, linear, both, not 'sun'"),
        (["pairs", "--light", "linear"], "--light linear is for clear images"),
        ([], "FOLDER"),
    ],
)
def test_invalid_arguments_of_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("in/one.png"), eight_bits(CLEAR))
    for half in ("hazy", "clear"):
        write(Path("pairs", half, "one.png"), eight_bits(CLEAR))
    Path("empty").mkdir()
    assert main(["evaluate", "--out", "out", *given]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("dehazexl: error: ") and message in error and "\n" not in error
    assert not Path("out").exists() and not Path("in/scores").exists()


def test_missing_scikit_image_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)  # type: ignore[arg-type]
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "pip install napari-dehazexl[evaluate]" in capsys.readouterr().err
