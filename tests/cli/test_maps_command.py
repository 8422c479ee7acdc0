"""`dehazexl run --maps`: maps beside the output, of its kind and place; they survive kills, and replace nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from killed import Runs
from make_pictures import smooth, write_gdal
from reference import randomised

import dehazexl
from dehazexl.cli.app import main
from dehazexl.engine.maps import MAPS
from dehazexl.io.open import open_image
from dehazexl.io.unfinished import remove
from dehazexl.model import SPECS
from dehazexl.model.weights import load_model, save_model

SPEC = replace(SPECS["tiny"], depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1), airlight="picture")
GAIN = replace(SPECS["tiny"], head="gain", inputs=())
OPTIONS = ["--weights", "tiny.safetensors", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    save_model(randomised(SPEC), folder / "tiny.safetensors")
    write_gdal(folder / "in.tif", smooth(4, "uint16", 300, 280), colors="red green blue undefined", nodata=0)
    return folder


@pytest.fixture
def inside(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected(region: tuple[int, int, int, int] | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    model = load_model("tiny.safetensors", "cpu", "float32")
    clear, maps = dehazexl.dehaze_with_maps("in.tif", MAPS, model, region=region)
    return clear.compute(), {name: values.compute() for name, values in maps.items()}


def test_maps_are_beside_the_output_in_its_place(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "in.tif", "out.tif", *OPTIONS, "--maps", "transmission,airlight, removed"]) == 0
    assert "in.tif: maps: out.transmission.tif, out.airlight.tif, out.removed.tif" in capsys.readouterr().err
    clear, maps = expected()
    with rasterio.open("in.tif") as image, rasterio.open("out.tif") as out:
        assert np.array_equal(np.moveaxis(out.read(), 0, -1), clear)
        for name in MAPS:
            with rasterio.open(f"out.{name}.tif") as file:
                assert (file.shape, file.transform, file.crs) == (image.shape, image.transform, image.crs)
                assert set(file.dtypes) == {"float32"} and np.isnan(file.nodata)
                assert file.descriptions == (("removed",) if name == "removed" else image.descriptions[:3])
                assert np.array_equal(np.moveaxis(file.read(), 0, -1), maps[name], equal_nan=True)
    assert {path.name for path in inside.iterdir() if "out" in path.name} == {
        "out.tif", *(f"out.{name}.tif" for name in MAPS)
    }  # fmt: skip


@pytest.mark.parametrize(("output", "name"), [("out.ome.zarr", "out.removed.ome.zarr"), ("out.png", "out.removed.tif")])
def test_maps_are_of_the_kind_of_the_output(inside: Path, output: str, name: str) -> None:
    dehazexl.to_tiff(smooth(3, "uint8", 300, 280), "in.tif", overwrite=True)
    command = ["run", "in.tif", output, *OPTIONS, "--maps", "removed", "--region", "10:290,20:270"]
    assert main(command) == 0
    _, maps = expected((10, 290, 20, 270))
    found = open_image(name)
    assert np.array_equal(found.levels[0].compute(), maps["removed"]) and found.bands == ("removed",)
    assert found.levels[0].dtype == np.float32


@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows neither forks nor sends signals")
def test_a_run_with_maps_that_is_killed_goes_on_to_the_same(inside: Path, runs: Runs) -> None:
    outputs = [Path("out.tif"), Path("out.removed.tif"), Path("out.airlight.tif")]
    command = ["run", "in.tif", "out.tif", *OPTIONS, "--maps", "removed,airlight"]
    assert runs(*command).code == 0
    whole = [path.read_bytes() for path in outputs]
    moments = (
        "maps/removed",
        "level0",
        "removed.begun",
        ".removed.tif.part/complete",
        "removed.complete",
    )
    for moment in (*moments, ".out.tif.part/complete"):
        for path in outputs:
            remove(path)
        assert runs(*command, kill_in=moment).code == -9, moment
        assert not Path("out.tif").exists()
        assert runs(*command).code == 0, moment
        assert [path.read_bytes() for path in outputs] == whole, moment
        assert not list(inside.glob(".*.part"))


@pytest.fixture
def runs(inside: Path) -> Iterator[Runs]:
    found = Runs(inside)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--maps", "depth"], "unknown map 'depth': choose among transmission, airlight, removed"),
        (["--maps", ","], "unknown map ''"),
        (["--maps", "removed"], "out.removed.tif exists"),
        (["--maps", "airlight", "--weights", "gain.safetensors"], "gives no maps, not airlight"),
    ],
)
def test_bad_requests_are_told_in_a_line_and_nothing_is_lost(
    inside: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    Path("out.removed.tif").write_text("kept")
    save_model(randomised(GAIN), Path("gain.safetensors"))
    assert main(["run", "in.tif", "out.tif", *OPTIONS[2:], *options]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line
    assert Path("out.removed.tif").read_text() == "kept" and not Path("out.tif").exists()
    assert not list(inside.glob(".*.part"))


def test_a_map_never_replaces_the_input(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in.tif").rename("out.removed.tif")
    assert main(["run", "out.removed.tif", "out.tif", *OPTIONS, "--maps", "removed", "--overwrite"]) == 2
    assert "is the input" in capsys.readouterr().err
