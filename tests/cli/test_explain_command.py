"""`dehazexl explain`: from a file to a folder of maps, figures and numbers; resumable, and it loses nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from make_pictures import smooth, write_gdal
from PIL import Image as Pillow
from reference import randomised

from dehazexl.cli.app import main
from dehazexl.engine.explain.response import Response
from dehazexl.image import diverging
from dehazexl.io.open import open_image
from dehazexl.model.weights import save_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(randomised("tiny"), tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture
def command(weights: Path, tmp_path: Path) -> Callable[..., int]:
    """Return a function that explains a window of a small GeoTIFF into ``maps``."""
    write_gdal(tmp_path / "in.tif", smooth(4, "uint16", 300, 280), colors="red green blue undefined", nodata=0)
    fixed = ["--weights", str(weights), "--device", "cpu", "--out", str(tmp_path / "maps")]

    def run(*options: str) -> int:
        defaults = {"--window": "20:60,100:150", "--steps": "2"} | dict(zip(options[::2], options[1::2], strict=False))
        given = [word for pair in defaults.items() for word in pair if word]
        return main(["explain", str(tmp_path / "in.tif"), *fixed, *given])

    return run


def test_a_folder_gets_maps_figures_and_numbers(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    out = tmp_path / "maps"
    assert {each.name for each in out.iterdir()} == {
        "attribution.tif", "tiles.tif", "tokens.tif", "heatmap.png", "curves.png", "explanation.json",
    }  # fmt: skip
    assert not (tmp_path / ".maps.part").exists()
    numbers = json.loads((out / "explanation.json").read_text())
    with rasterio.open(tmp_path / "in.tif") as image, rasterio.open(out / "attribution.tif") as file:
        assert (file.shape, file.transform, file.crs) == (image.shape, image.transform, image.crs)
        assert file.dtypes == ("float32",)
        total = file.read().sum(dtype=float)
    assert total == pytest.approx(numbers["sum"], rel=1e-4)
    assert numbers["request"]["window"] == "20:60,100:150" and numbers["request"]["spec"]["head"] == "scattering"
    with rasterio.open(out / "tokens.tif") as file:
        assert file.res == (16, 16) and file.shape == (10, 9)  # 32 pixels of half a meter
        assert file.read().sum(dtype=float) == pytest.approx(total, rel=1e-4)
    printed = capsys.readouterr().out
    assert f"completeness:     {100 * numbers['completeness']:.2f} %" in printed
    assert ("more than 2 --steps" in printed) == (abs(numbers["completeness"] - 1) > 0.01)
    assert f"{100 * numbers['global_share']:.1f} % of the attribution" in printed
    sheet = np.asarray(Pillow.open(out / "heatmap.png"))
    assert sheet.shape[1] > 3 * 280 and len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000


def test_an_interrupted_command_goes_on(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Response.gradient
    points = []

    def stopped(self: Response, shares: np.ndarray, total: np.ndarray) -> object:
        points.append(float(shares[0]))
        if len(points) == 2:
            signal.raise_signal(signal.SIGTERM)
        return whole(self, shares, total)

    monkeypatch.setattr(Response, "gradient", stopped)
    assert command("--steps", "3", "--no-curves", "") == 143
    assert "the same command goes on, dehazexl clean" in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()
    assert main(["status", str(tmp_path / "maps")]) == 0
    assert "maps: path, " in capsys.readouterr().out
    assert command("--steps", "4", "--no-curves", "") == 2
    assert "differs in steps (3 then, 4 now)" in capsys.readouterr().err
    assert command("--steps", "3", "--no-curves", "") == 0
    assert "going on with" in capsys.readouterr().err
    assert sorted(points[:1] + points[2:]) == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    points.clear()
    resumed = open_image(tmp_path / "maps" / "attribution.tif").levels[0].compute()
    monkeypatch.setattr(Response, "gradient", whole)
    assert command("--steps", "3", "--no-curves", "", "--overwrite", "") == 0
    assert np.array_equal(resumed, open_image(tmp_path / "maps" / "attribution.tif").levels[0].compute())


@pytest.mark.parametrize("way", ["fresh", "clean"])
def test_unfinished_work_is_given_up(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Response, "gradient", lambda *_: signal.raise_signal(signal.SIGTERM) or iter([0]))
        assert command("--no-curves", "") == 143
    assert (tmp_path / ".maps.part").is_dir()
    if way == "clean":
        assert main(["clean", str(tmp_path), "--yes"]) == 0
        assert not (tmp_path / ".maps.part").exists()
    options = ("--window", "30:60,100:150", "--no-curves", "", "--format", "zarr")
    assert command(*options, *(["--fresh", ""] if way == "fresh" else [])) == 0
    assert json.loads((tmp_path / "maps" / "explanation.json").read_text())["window"] == [30, 60, 100, 150]
    assert not (tmp_path / ".maps.part").exists()
    image, found = (open_image(tmp_path / name) for name in ("in.tif", "maps/attribution.zarr"))
    assert found.levels[0].shape == (300, 280, 1) and found.levels[0].dtype == np.float32
    assert found.geo is not None and image.geo is not None
    assert found.geo.affine == image.geo.affine is not None and found.geo.epsg == image.geo.epsg is not None
    assert found.levels[0].compute().any()


def test_where_the_responses_hardly_differ_words_say_so(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = smooth(4, "uint16", 300, 280)
    write_gdal(tmp_path / "same.tif", pixels, colors="red green blue undefined", nodata=0)
    assert command("--baseline", str(tmp_path / "same.tif"), "--fold", "2", "--sigma", "3") == 0
    assert "completeness:     none, the responses to image and baseline hardly differ" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "maps" / "explanation.json").read_text())
    assert numbers["completeness"] is None and "hardly differ" in numbers["note"]
    assert numbers["fold"] == 2 and "deletion" not in numbers
    assert not (tmp_path / "maps" / "curves.png").exists()


BAD = [
    (("--window", "20:400,0:10"), "window 20:400,0:10 (rows, columns) does not lie in the image"),
    (("--window", "20,10"), "--window '20,10': write rows and columns"),
    (("--baseline", "nowhere.tif"), "nowhere.tif does not exist: name one of these, or a file"),
    (("--baseline", "clear"), "the baseline is none of dehazed, black, blur"),
    (("--steps", "1"), "steps must be at least 2"),
    (("--fold", "3"), "fold must be at least 1 and divide the 2 steps, not 3"),
    (("--detector", "median"), "sum, mean-variance, gradient"),
    (("--format", "png"), "tiff, zarr"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_requests_are_told_in_a_line_and_leave_nothing(
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    assert command(*options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line
    assert {each.name for each in tmp_path.iterdir()} == {"in.tif"}


@pytest.mark.parametrize("overwrite", [(), ("--overwrite", "")])
def test_a_folder_of_other_files_is_kept(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], overwrite: tuple[str, ...]
) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "notes.txt").write_text("kept")
    assert command(*overwrite) == 2
    assert "choose another name" in capsys.readouterr().err
    assert (tmp_path / "maps" / "notes.txt").read_text() == "kept"


def test_the_colormap_has_equal_steps_and_tells_signs_apart() -> None:
    from skimage.color import deltaE_ciede2000, rgb2lab

    lab = rgb2lab(diverging.table(41)[None] / 255)[0]
    steps = deltaE_ciede2000(lab[:-1], lab[1:])
    assert steps.max() < 1.6 * steps.min()
    assert np.allclose(lab[:, 0], lab[::-1, 0], atol=3)  # the same lightness for both signs
    blue, orange = diverging.colors(np.array([-1.0, 1.0])).astype(int)
    assert blue[2] > blue[0] + 60 and orange[0] > orange[2] + 60
    assert (diverging.colors(np.array([np.nan, -9.0])) == [[245] * 3, blue]).all()
