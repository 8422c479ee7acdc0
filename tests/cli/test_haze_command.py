"""`dehazexl haze`: pairs of files that differ only by haze."""

from __future__ import annotations

import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Pillow

from dehazexl.cli.app import main
from dehazexl.cli.haze import with_haze
from dehazexl.io.open import open_image
from dehazexl.synthesis.haze import LEVELS, add_haze
from dehazexl.synthesis.procedural import procedural
from dehazexl.training.datasets import open_datasets


def write(path: Path, seed: int = 1) -> np.ndarray:
    pixels = procedural(80, 100, seed)
    path.write_bytes(imagecodecs.png_encode(pixels))
    return pixels


def test_a_folder_becomes_pairs_to_train_on(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    truth = write(source / "one.png")
    Pillow.fromarray(procedural(80, 100, 2)).save(source / "two.jpg")
    assert main(["haze", str(source), str(tmp_path / "pairs"), "--level", "2"]) == 0
    training, held = open_datasets([tmp_path / "pairs"], ["two*"])
    assert (len(training), len(held)) == (1, 1)
    assert np.array_equal(training.clear[0][:, :], truth)
    assert training.hazy is not None
    assert training.hazy[0][:, :].mean() > truth.mean()


def test_outputs_have_writable_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "big.btf", procedural(80, 100, 1), photometric="rgb")
    assert main(["haze", str(tmp_path / "in"), str(tmp_path / "pairs")]) == 0
    assert open_image(tmp_path / "pairs" / "hazy" / "big.tif").levels[0].shape == (80, 100, 3)


def test_levels_rise_in_density_and_the_seed_decides(tmp_path: Path) -> None:
    truth = write(tmp_path / "clear.png").astype(float)
    made = {}
    for name, options in {
        "1": ["1"],
        "2": ["2"],
        "3": ["3"],
        "4": ["4"],
        "same": ["4"],
        "other": ["4", "--seed", "5"],
    }.items():
        out = tmp_path / f"{name}.png"
        arguments = ["haze", str(tmp_path / "clear.png"), str(out), "--kind", "veil", "--level", *options]
        assert main(arguments) == 0
        made[name] = imagecodecs.imread(out).astype(float)
    distances = [np.abs(made[level] - truth).mean() for level in "1234"]
    assert distances == sorted(distances)
    assert np.array_equal(made["4"], made["same"])
    assert not np.array_equal(made["4"], made["other"])


def test_haze_on_linear_light_is_the_same_haze(tmp_path: Path) -> None:
    truth = write(tmp_path / "clear.png")
    made = {}
    for option in ("", "--no-linear", "--linear"):
        out = tmp_path / f"hazy{option}.png"
        given = ["haze", str(tmp_path / "clear.png"), str(out), "--kind", "fog", *([option] if option else [])]
        assert main(given) == 0
        made[option] = imagecodecs.imread(out) / 255
    assert np.array_equal(made[""], made["--no-linear"])
    clear = torch.from_numpy(truth / np.float32(255)).permute(2, 0, 1)[None]
    generator = torch.Generator().manual_seed(zlib.crc32(b"0 clear.png"))
    level = LEVELS[3]
    drawn = add_haze(clear, generator, ["fog"], level.thickness, level.brightness, clear_share=0, camera=False)
    t, air = (x[0].permute(1, 2, 0).double().numpy() for x in (drawn.transmission, drawn.airlight))
    np.testing.assert_allclose(made[""], truth / 255 * t + air * (1 - t), atol=0.51 / 255)

    def light(x: np.ndarray) -> np.ndarray:
        return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)

    expected = light(truth / 255) * t + light(air) * (1 - t)
    np.testing.assert_allclose(light(made["--linear"]), expected, atol=0.005)
    assert np.abs(made["--linear"] - made[""]).mean() > 0.03


def test_sixteen_bits_further_bands_and_nodata_stay(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(500, 4000, (64, 64, 4), np.uint16)
    pixels[:8, :8] = 0
    tifffile.imwrite(
        tmp_path / "four.tif",
        pixels,
        photometric="rgb",
        extrasamples=["unspecified"],
        extratags=[(42113, "s", 0, "0", True)],
    )
    assert main(["haze", str(tmp_path / "four.tif"), str(tmp_path / "hazy.tif")]) == 0
    hazy = tifffile.imread(tmp_path / "hazy.tif")
    assert hazy.dtype == np.uint16
    assert np.array_equal(hazy[..., 3], pixels[..., 3])
    assert not hazy[:8, :8].any()
    assert hazy[8:, 8:, :3].mean() != pixels[8:, 8:, :3].mean()


def test_holes_in_floats_stay_holes(tmp_path: Path) -> None:
    holes = np.random.default_rng(0).random((64, 64, 3), np.float32)
    holes[:8, :8], holes[8:9] = np.nan, np.inf
    for seed in range(12):
        hazy = with_haze(open_image(holes), LEVELS[3], None, seed)
        np.testing.assert_array_equal(hazy[:8, :8], holes[:8, :8])
        assert np.isfinite(hazy[9:]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "7"], "--level must be one of 1, 2, 3, 4, not 7"),
        (["--kind", "smog"], "--kind must be one of veil, patches, ridges, depth, layers, fog, not 'smog'"),
    ],
)
def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    write(tmp_path / "clear.png")
    assert main(["haze", str(tmp_path / "clear.png"), str(tmp_path / "x.png"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


def test_existing_outputs_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "clear.png")
    write(tmp_path / "x.png", 2)
    before = (tmp_path / "x.png").read_bytes()
    assert main(["haze", str(tmp_path / "clear.png"), str(tmp_path / "x.png")]) == 2
    assert "x.png exists: choose another output, or pass --overwrite" in capsys.readouterr().err
    assert (tmp_path / "x.png").read_bytes() == before
    assert main(["haze", str(tmp_path / "clear.png"), str(tmp_path / "x.png"), "--overwrite"]) == 0
    assert np.array_equal(imagecodecs.imread(tmp_path / "clear.png"), truth)


def test_values_above_white_follow_the_law(tmp_path: Path) -> None:
    pixels = np.full((64, 64, 3), 0.2, np.float32)
    pixels[5, 5] = 4.0  # beyond the percentile that counts as white
    tifffile.imwrite(tmp_path / "in.tif", pixels, photometric="rgb")
    assert main(["haze", str(tmp_path / "in.tif"), str(tmp_path / "out.tif"), "--level", "1", "--kind", "veil"]) == 0
    hazy = tifffile.imread(tmp_path / "out.tif")
    t = (hazy[5, 5] - hazy[5, 6]) / (pixels[5, 5] - pixels[5, 6])
    assert ((t > 0.5) & (t < 1)).all()


def test_duplicate_names_and_existing_halves_of_pairs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write(source / "a.png")
    Pillow.fromarray(procedural(80, 100, 2)).save(source / "a.jpg")
    write(source / "b.png")
    assert main(["haze", str(source), str(out)]) == 1
    said = capsys.readouterr().err
    assert f"{source}/a.jpg, {source}/a.png would be written to the same {out}/hazy/a.png" in said
    assert sorted(path.name for path in out.rglob("*.png")) == ["b.png"] * 2
    for path in (source / "a.jpg", source / "b.png", out / "hazy" / "b.png", out / "clear" / "b.png"):
        path.unlink()
    assert main(["haze", str(source), str(out)]) == 0
    (out / "hazy" / "a.png").unlink()  # as after an interruption between the two
    assert main(["haze", str(source), str(out)]) == 2
    assert "clear/a.png exists: choose another output, or pass --overwrite" in capsys.readouterr().err
    assert main(["haze", str(source), str(out), "--overwrite"]) == 0
    assert (out / "hazy" / "a.png").exists()
