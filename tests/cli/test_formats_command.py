"""Options of `dehazexl run` that say how an input is meant, and lines about what was decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import tifffile
from make_pictures import smooth, write_gdal

from dehazexl.cli.app import main

if TYPE_CHECKING:
    from dehazexl import DehazeXL

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

SIDE = 120


@pytest.fixture
def run(tiny: DehazeXL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in the temporary folder; return its lines on stderr that are not progress."""
    from dehazexl.model.weights import save_model

    monkeypatch.chdir(tmp_path)
    weights = save_model(tiny, tmp_path / "tiny.safetensors", licence="BSD-3-Clause")

    def started(*arguments: str) -> list[str]:
        assert main(["run", *arguments, "--weights", str(weights), "--device", "cpu"]) == 0
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        return [line.removeprefix("dehazexl: ") for line in lines if line.startswith("dehazexl: ")]

    return started


def test_a_line_for_each_decision(run: Any) -> None:
    pixels = smooth(4, "uint16", SIDE, SIDE)
    pixels[:20] = 65535
    write_gdal(Path("in.tif"), pixels, names=["B02", "B03", "B04", "B08"], photometric="MINISBLACK")
    assert run("in.tif", "out.tif") == [
        "in.tif: red, green and blue are the bands 3 (B04), 2 (B03), 1 (B02); --bands changes that",
        "in.tif: a border of 65535 around the image (17%) is left as it is and does not count; "
        "--border keep treats it as part of the image",
    ]
    with rasterio.open("out.tif") as file:
        found = np.moveaxis(file.read(), 0, -1)
    np.testing.assert_array_equal(found[:20], pixels[:20])
    np.testing.assert_array_equal(found[..., 3], pixels[..., 3])
    assert (found[20:, :, :3] != pixels[20:, :, :3]).mean() > 0.5
    assert run("in.tif", "kept.tif", "--border", "keep", "--bands", "3,2,1") == []


def test_a_value_of_missing_pixels_and_a_page(run: Any) -> None:
    pages = [smooth(3, "uint8", SIDE, SIDE), smooth(3, "uint8", SIDE, SIDE)[::-1].copy()]
    pages[1][40:60, 40:60] = 77
    with tifffile.TiffWriter("in.tif") as writer:
        for page in pages:
            writer.write(page, photometric="rgb", metadata=None, compression="zlib")
    lines = run("in.tif", "out.tif", "--page", "2", "--nodata", "77", "--compression", "zstd")
    assert lines == []
    with rasterio.open("out.tif") as file:
        assert (file.nodata, file.compression.name) == (77, "zstd")
        np.testing.assert_array_equal(file.read()[:, 40:60, 40:60], 77)
    assert "2 pages" in run("in.tif", "first.tif")[0]


def test_what_is_lost_is_told_before_the_network_runs(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_gdal(Path("in.tif"), smooth(3, "uint8", SIDE, SIDE), nodata=0, photometric="RGB")
    assert run("in.tif", "out.png") == []
    with rasterio.open("out.png") as file:
        assert (file.crs.to_epsg(), file.nodata) == (32614, 0)
    weights = ["--weights", "tiny.safetensors", "--device", "cpu"]
    assert main(["run", "in.tif", "out.jpg", *weights]) == 0
    err = capsys.readouterr().err
    assert 0 < err.index("in.tif: not carried over: the nodata value") < err.index("encode")
