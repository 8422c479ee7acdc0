"""`dehazexl run` and `haze` with folders: which images are found, that one costs one, and the report."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import pytest
import rasterio
import tifffile
import zarr
from make_pictures import smooth, write_gdal

from dehazexl.cli.app import main
from dehazexl.cli.errors import one_of_several
from dehazexl.cli.tasks import Selection, find_images

if TYPE_CHECKING:
    from dehazexl import DehazeXL

PHOTO = smooth(3, "uint8", 40, 50)
COLUMNS = ["input", "output", "state", "seconds", "size", "message"]


@pytest.fixture(scope="module")
def weights(tiny: DehazeXL, tmp_path_factory: pytest.TempPathFactory) -> str:
    from dehazexl.model.weights import save_model

    return str(save_model(tiny, tmp_path_factory.mktemp("weights") / "tiny.safetensors", licence="BSD-3-Clause"))


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with subfolders, one of them hidden, and a link back to the first."""
    monkeypatch.chdir(tmp_path)
    for folder in ("in/north/deep", "in/.hidden"):
        Path(folder).mkdir(parents=True)
    tifffile.imwrite("in/a.tif", PHOTO, photometric="rgb")
    PIL.Image.fromarray(PHOTO).save("in/north/b.png")
    PIL.Image.fromarray(PHOTO).save("in/.hidden/x.png")
    zarr.create_array("in/north/deep/c.zarr", data=PHOTO)
    zarr.create_array("in/north/deep/no suffix", data=PHOTO)
    Path("in/north/again").symlink_to("..")
    return Path("in")


def found(source: Path, pattern: str = "", recursive: bool = False) -> list[str]:
    return [str(path.relative_to(source)) for path in find_images(source, Selection(pattern, recursive))]


def rows(path: str = "out.csv") -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.DictReader(file)
        assert table.fieldnames == COLUMNS
        return list(table)


def test_which_images_of_a_folder_are_found(tree: Path) -> None:
    every = ["a.tif", "north/b.png", "north/deep/c.zarr", "north/deep/no suffix"]
    assert found(tree) == ["a.tif"]
    assert found(tree, recursive=True) == every
    assert found(tree, "*.png", True) == ["north/b.png"]
    assert found(tree, "deep/*", True) == every[2:]
    (tree / "raw.xyz").write_bytes(b"")
    assert found(tree) == ["a.tif"]
    assert found(tree, "*.xyz") == ["raw.xyz"], "a suffix that is asked for"
    with pytest.raises(ValueError, match=r"in has no image that matches --glob '\*\.jp2'"):
        found(tree, "*.jp2", True)
    for path in (tree / "a.tif", tree / "north/deep/c.zarr"):
        with pytest.raises(ValueError, match="is one image: --glob and --recursive choose"):
            found(path, recursive=True)


def test_the_output_mirrors_the_input_and_a_report_lists_all(
    tree: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "north/cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    command = ["run", "in", "out", "--recursive", "--weights", weights, "--report", "out/report.csv"]
    assert main(command) == 1
    made = sorted(str(path.relative_to("out")) for path in Path("out").rglob("*") if path.suffix in (".png", ".tif"))
    assert made == ["a.tif", "north/b.png"] and Path("out/north/deep/c.zarr/zarr.json").exists()
    assert Path("out/north/deep/no suffix.zarr/zarr.json").exists()
    err = capsys.readouterr().err
    assert "1 of 5 images could not be dehazed: in/north/cut.png" in err and "Traceback" not in err
    table = {row["input"]: row for row in rows("out/report.csv")}
    assert {name: row["state"] for name, row in table.items()} == {
        "in/a.tif": "done", "in/north/b.png": "done", "in/north/cut.png": "failed", "in/north/deep/c.zarr": "done",
        "in/north/deep/no suffix": "done",
    }  # fmt: skip
    assert table["in/a.tif"]["size"] == "50x40" and float(table["in/a.tif"]["seconds"]) > 0
    assert table["in/north/b.png"]["output"] == "out/north/b.png"
    assert "cut.png is cut short" in table["in/north/cut.png"]["message"]
    assert main([*command, "--skip-existing"]) == 1
    assert sorted(row["state"] for row in rows("out/report.csv")) == ["failed", *["skipped"] * 4]


def test_a_clash_of_names_costs_the_images_that_clash(
    tree: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tifffile.imwrite("in/a.btf", PHOTO, photometric="rgb")
    PIL.Image.fromarray(PHOTO).save("in/b.png")
    command = ["run", "in", "out", "--weights", weights, "--report", "out.csv"]
    assert main(command) == 1
    assert [path.name for path in Path("out").iterdir()] == ["b.png"]
    clash = "would be written to the same out/a.tif: rename all but one"
    err = capsys.readouterr().err
    assert f"in/a.btf, in/a.tif {clash}" in err and "2 of 3 images could not be dehazed: in/a.btf, in/a.tif" in err
    table = {row["input"]: row for row in rows()}
    assert {name: row["state"] for name, row in table.items()} == {
        "in/a.btf": "failed", "in/a.tif": "failed", "in/b.png": "done",
    }  # fmt: skip
    assert clash in table["in/a.tif"]["message"]
    Path("out/a.tif").touch()
    assert main([*command, "--skip-existing"]) == 1, "an output of one of them is not that of both"
    assert [row["state"] for row in rows()] == ["failed", "failed", "skipped"]


def test_a_report_replaces_reports_alone(tree: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.csv").write_text("input,notes\n")
    assert main(["run", "in", "out", "--weights", weights, "--report", "notes.csv"]) == 2
    assert "notes.csv is not a report of dehazexl, and is kept" in capsys.readouterr().err
    assert Path("notes.csv").read_text() == "input,notes\n" and not Path("out").exists()
    assert main(["run", "in", "out", "--weights", weights, "--report", "none/out.csv"]) == 2
    assert "the folder none does not exist" in capsys.readouterr().err


def test_a_report_of_one_image(tree: Path, weights: str) -> None:
    write_gdal(Path("g.tif"), smooth(4, "uint16", 40, 50), photometric="MINISBLACK")
    assert main(["run", "g.tif", "h.tif", "--weights", weights, "--report", "out.csv"]) == 0
    (row,) = rows()
    assert (row["state"], row["output"]) == ("done", "h.tif") and "nothing tells the colors" in row["message"]
    assert main(["run", "none.tif", "h2.tif", "--weights", weights, "--report", "out.csv"]) == 2
    assert main(["run", "g.tif", "h.tif", "--weights", weights, "--report", "out.csv"]) == 2
    (row,) = rows()
    assert row["state"] == "failed" and "h.tif exists" in row["message"]


def test_any_error_costs_one_image(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    for raised in (KeyError("x"), RuntimeError("codec"), RecursionError(), ZeroDivisionError("division by zero")):
        with one_of_several(Path("a/b.tif"), said.append):
            raise raised
    assert said[0] == "a/b.tif: KeyError: 'x'" and said[3] == "a/b.tif: ZeroDivisionError: division by zero"
    assert capsys.readouterr() == ("", "")
    with pytest.raises(OSError, match="No space"), one_of_several(Path("a/b.tif"), said.append):
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyError), one_of_several(Path("a/b.tif"), None):
        raise KeyError("x")


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are text there")
def test_names_that_are_not_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    write_gdal(Path("a.tif"), PHOTO, photometric="RGB", compress="deflate")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open("a.tif", "r+") as file:
        file.write_mask(np.indices((40, 50))[1] > 9)
    for suffix in ("", ".msk"):
        Path(f"a.tif{suffix}").rename(os.fsdecode(b"in/b\xff.tif") + suffix)
    PIL.Image.fromarray(PHOTO).save(os.fsdecode(b"in/c\xfe.png"))
    zarr.create_array(os.fsdecode(b"in/d\xfd.zarr"), data=PHOTO)
    tifffile.imwrite(os.fsdecode(b"in/e\xfc.tif"), PHOTO, photometric="rgb")
    assert main(["run", "in", "out", "--weights", weights, "--report", "out.csv"]) == 0
    out, err = capfdbinary.readouterr()
    assert b"Traceback" not in err and len(out.splitlines()) == 4
    assert sorted(os.listdir(b"out")) == [b"b\xff.tif", b"c\xfe.png", b"d\xfd.zarr", b"e\xfc.tif"]
    assert [os.fsencode(row["input"]) for row in rows()] == [
        b"in/b\xff.tif", b"in/c\xfe.png", b"in/d\xfd.zarr", b"in/e\xfc.tif",
    ]  # fmt: skip
    Path(os.fsdecode(b"out/b\xff.tif")).rename("b.tif")
    with rasterio.open("b.tif") as file:
        np.testing.assert_array_equal(file.read_masks(1)[0] != 0, np.arange(50) > 9)


def test_one_damaged_image_costs_one_pair_of_haze(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(["haze", "in", "pairs"]) == 1
    err = capsys.readouterr().err
    assert "cut.png is cut short" in err and "no haze was added to 1 images: in/cut.png" in err
    assert sorted(str(path) for path in Path("pairs").rglob("*.*")) == ["pairs/clear/a.tif", "pairs/hazy/a.tif"]
    assert main(["haze", "in/a.tif", "new/folder/"]) == 0
    assert Path("new/folder/a.tif").exists()


def test_one_damaged_image_is_not_scored(tmp_path: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    PIL.Image.fromarray(PHOTO).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])  # opens, cannot be read
    (tmp_path / "c.png").write_bytes(whole[:20])
    PIL.Image.fromarray(PHOTO[..., 0]).save(tmp_path / "gray.png")
    command = ["evaluate", str(tmp_path), "--weights", weights, "--device", "cpu", "--light", "values"]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert "means of" in out and "dark channel prior" in out
    assert "b.png" in err and "c.png" in err and "that could not be scored: 3, see above" in err
    assert "gray.png: 8-bit RGB images are needed" in err


@pytest.mark.parametrize("name", ["a.bin", "a.dat", "a", "sub/a.raw"])
def test_raw_pixels_of_envi_are_images_of_a_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(12))
    path.with_suffix(".hdr").write_text("ENVI\nsamples = 2\nlines = 2\nbands = 3\ndata type = 1\ninterleave = bsq\n")
    (tmp_path / "b.bin").write_bytes(bytes(12))  # no header
    path.with_suffix(".txt").write_text("not pixels")
    assert list(Selection(recursive=True).walk(tmp_path)) == [path]
