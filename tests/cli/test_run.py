"""The command line as people use it: files in, files out, and one line for whatever goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import tifffile
import zarr
from make_pictures import smooth, write_gdal

from dehazexl.cli.app import main
from dehazexl.engine.dehaze import open_tokens, prepare
from dehazexl.engine.run import stages
from dehazexl.image.grid import TileGrid
from dehazexl.io.open import open_image
from dehazexl.model import SPECS
from dehazexl.model.weights import load_model

if TYPE_CHECKING:
    from dehazexl import DehazeXL

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

COMMAND = [sys.executable, "-c", "import sys; from dehazexl.cli.app import main; sys.exit(main())"]
Errors = Callable[..., str]


@pytest.fixture(scope="module")
def weights(tiny: DehazeXL, tmp_path_factory: pytest.TempPathFactory) -> str:
    from dehazexl.model.weights import save_model

    return str(save_model(tiny, tmp_path_factory.mktemp("weights") / "tiny.safetensors", licence="BSD-3-Clause"))


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with one picture of 300 x 280 pixels."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("in.tif", PHOTO, tile=(128, 128), photometric="rgb", compression="deflate")
    return tmp_path


@pytest.fixture
def error(capsys: pytest.CaptureFixture[str], inside: Path) -> Iterator[Errors]:
    """Run a command that must fail: its one line is returned, and nothing may have come into the folder."""

    def run(*args: object, code: int = 2) -> str:
        capsys.readouterr()
        before = listing(inside)
        assert main([str(arg) for arg in args]) == code
        out, err = capsys.readouterr()
        (line,) = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("dehazexl: error: ")]
        assert err.rstrip().endswith(line) and "Traceback" not in err and not out
        assert listing(inside) == before
        return line.removeprefix("dehazexl: error: ")

    yield run


PHOTO = smooth(height=280, width=300)


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(open_image(path).levels[0])


# ---- Start --------------------------------------------------------------------------------------


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    check = (
        "import sys; from dehazexl.cli.app import main; code = main(['run', '--help']);"
        "print([m for m in ('torch', 'dask', 'zarr', 'tifffile', 'numpy', 'rich') if m in sys.modules]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "--overlap" in done.stdout


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    import dehazexl

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{dehazexl.__version__}\n"
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.rstrip() == bare.rstrip()
    assert all(command in bare for command in ("run", "info", "demo", "train"))


def test_console_command(inside: Path) -> None:
    done = subprocess.run([*COMMAND, "run", "nope.tif", "x.tif"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "dehazexl: error: nope.tif does not exist\n")


# ---- run ----------------------------------------------------------------------------------------


def test_geotiff_keeps_all_but_the_haze(inside: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = smooth(4, "uint16", 280, 300)
    before[:40, :50] = 0
    names = ("red", "green", "blue", "nir")
    write_gdal(inside / "geo.tif", before, names=names, nodata=0, tiled=True, blockxsize=128, blockysize=128)
    assert main(["run", "geo.tif", "out.tif", "--weights", weights, "--bands", "1,green,3", "--range", "0,9000"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("out.tif: 300 x 280 pixels in ") and out.endswith(" tiles/s\n") and out.count("\n") == 1
    assert all(stage in err for stage in ("encode", "fuse", "decode", "4/4", "tile/s"))
    with rasterio.open("geo.tif") as given, rasterio.open("out.tif") as made:
        for name in ("crs", "transform", "nodata", "count", "dtypes", "shape", "descriptions"):
            assert getattr(made, name) == getattr(given, name), name
        after = np.moveaxis(made.read(), 0, 2)
    np.testing.assert_array_equal(after[..., 3], before[..., 3])
    np.testing.assert_array_equal(after[:40, :50], 0)
    assert (after[40:, 50:, :3] != before[40:, 50:, :3]).mean() > 0.5


def test_equals_python(inside: Path, weights: str) -> None:
    import dehazexl

    assert main(["run", "in.tif", "out.zarr", "--weights", weights, "--overlap", "64", "--strength", "0.7"]) == 0
    clear = dehazexl.dehaze("in.tif", dehazexl.load_model(weights, "auto", "auto"), overlap=64, strength=0.7)
    np.testing.assert_array_equal(pixels("out.zarr"), np.asarray(clear))


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_ngff_and_compression(inside: Path, weights: str, ngff: str) -> None:
    assert main(["run", "in.tif", "out.ome.zarr", "--weights", weights, "--ngff", ngff]) == 0
    assert zarr.open_group("out.ome.zarr", mode="r").metadata.zarr_format == {"0.4": 2, "0.5": 3}[ngff]
    assert main(["run", "out.ome.zarr", "back.tif", "--weights", weights, "--compression", "zstd"]) == 0
    with rasterio.open("back.tif") as file:
        assert file.compression.name == "zstd"


@pytest.mark.parametrize("context", ["all", "region", "neighborhood:15"])
def test_region_in_its_context(inside: Path, weights: str, context: str) -> None:
    write_gdal(inside / "geo.tif", PHOTO)
    part, within = {
        "all": (np.s_[:, :], np.s_[100:, 20:290]),
        "region": (np.s_[100:, 20:290], np.s_[:, :]),
        "neighborhood:15": (np.s_[85:, 5:], np.s_[15:, 15:285]),
    }[context]
    write_gdal(inside / "part.tif", np.ascontiguousarray(PHOTO[part]))
    given = [] if context == "all" else ["--context", context]
    assert main(["run", "geo.tif", "a.tif", "--weights", weights, "--region", "100:,20:290", *given]) == 0
    assert main(["run", "part.tif", "b.tif", "--weights", weights]) == 0
    with rasterio.open("geo.tif") as source, rasterio.open("a.tif") as made:
        found, wanted = np.moveaxis(made.read(), 0, 2), pixels("b.tif")[within]
        assert np.abs(found.astype(int) - wanted).max() <= 1
        assert made.xy(0, 0) == source.xy(100, 20)


def test_region_crops_the_overviews(inside: Path) -> None:
    from dehazexl import to_tiff
    from dehazexl.image.grid import Window

    to_tiff(smooth(3, height=1200, width=1500), "pyramid.tif")
    image = open_image("pyramid.tif")
    part = image.cropped(Window(301, 901, 400, 1401))
    assert [level.shape for level in part.levels] == [(600, 1001, 3), (301, 501, 3), (151, 251, 3)]
    np.testing.assert_array_equal(part.levels[1], image.levels[1][150:451, 200:701])
    assert part.translate == (301, 400)
    assert part.fingerprint != image.fingerprint


def test_resize(inside: Path, weights: str) -> None:
    write_gdal(inside / "geo.tif", PHOTO, nodata=0)
    assert main(["run", "geo.tif", "out.tif", "--weights", weights, "--resize", "150x140", "--strength", "0"]) == 0
    with rasterio.open("geo.tif") as given, rasterio.open("out.tif") as made:
        assert made.shape == (140, 150)
        assert made.bounds == given.bounds
    halved = PHOTO.reshape(140, 2, 150, 2, 3).mean((1, 3))
    assert np.abs(pixels("out.tif") - halved).max() < 4


def test_resize_counts_when_the_output_is_checked(inside: Path, weights: str, error: Errors) -> None:
    options = ["--weights", weights, "--resize"]
    assert "100 x 70000 pixels" in error("run", "in.tif", "out.jpg", *options, "70000x100")
    tifffile.imwrite("long.tif", np.zeros((1, 65600, 3), np.uint8), photometric="rgb")
    assert main(["run", "long.tif", "out.jpg", *options, "300x100"]) == 0
    assert pixels("out.jpg").shape == (100, 300, 3)


def test_resize_keeps_nodata_apart() -> None:
    import dask.array as da

    from dehazexl.image.image import Image
    from dehazexl.image.resize import resized

    values = np.full((40, 40, 1), 100, "uint16")
    values[:, :21] = 9
    image = Image((da.from_array(values),), "x", ("gray",), (0, 0, 0), nodata=9)
    assert set(np.unique(np.asarray(resized(image, 20, 20).levels[0]))) == {9, 100}
    assert resized(image, 80, 100).levels[0].shape == (80, 100, 1)


def test_folder_of_pictures(inside: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    import PIL.Image

    Path("photos").mkdir()
    for name in ("b.png", "a.JPG"):
        PIL.Image.fromarray(PHOTO).save(f"photos/{name}")
    Path("in.tif").rename("photos/c.tif")
    zarr.create_array("photos/d.zarr", data=PHOTO)
    Path("photos/notes.txt").write_text("not a picture")
    assert main(["run", "photos", "clear", "--weights", weights]) == 0
    assert sorted(path.name for path in Path("clear").iterdir()) == ["a.JPG", "b.png", "c.tif", "d.zarr"]
    np.testing.assert_array_equal(pixels("clear/b.png"), pixels("clear/c.tif"))
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_one_bad_picture_does_not_hold_up_the_others(
    inside: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    damage("in.tif", "photos/a.tif")
    Path("in.tif").rename("photos/b.tif")
    assert main(["run", "photos", "clear", "--weights", weights]) == 1
    assert [path.name for path in Path("clear").iterdir()] == ["b.tif"]
    err = capsys.readouterr().err
    assert "a.tif is damaged at tile" in err and "1 of 2 images could not be dehazed: photos/a.tif" in err


def test_an_input_that_cannot_be_read_while_running_costs_one_image(
    inside: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a disk fails: an OSError."""
    Path("photos").mkdir()
    zarr.create_array("photos/a.zarr", data=PHOTO, chunks=(128, 128, 3))
    Path("photos/a.zarr/c/1/0/0").unlink()
    Path("photos/a.zarr/c/1/0/0").symlink_to("0")  # a link to itself: reading it is an OSError
    Path("in.tif").rename("photos/b.tif")
    assert main(["run", "photos", "clear", "--weights", weights]) == 1
    assert [path.name for path in Path("clear").iterdir()] == ["b.tif"]
    assert "1 of 2 images could not be dehazed: photos/a.zarr" in capsys.readouterr().err


def test_existing_outputs_of_a_folder(inside: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").mkdir()
    for name in "ab":
        shutil.copy("in.tif", f"photos/{name}.tif")
    Path("clear").mkdir()
    Path("clear/a.tif").write_bytes(b"precious")
    command = ["run", "photos", "clear", "--weights", weights]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "1 of 2 outputs exist, such as clear/a.tif: keep them with --skip-existing, replace them with --over" in said
    assert main([*command, "--skip-existing", "--overwrite"]) == 2
    assert [path.name for path in Path("clear").iterdir()] == ["a.tif"]
    assert main([*command, "--skip-existing"]) == 0
    assert "1 of 2 outputs exist and are skipped" in capsys.readouterr().err
    assert Path("clear/a.tif").read_bytes() == b"precious"
    assert main([*command, "--overwrite"]) == 0
    np.testing.assert_array_equal(pixels("clear/a.tif"), pixels("clear/b.tif"))


def test_a_folder_to_be_made_ends_in_a_slash(inside: Path, weights: str) -> None:
    assert main(["run", "in.tif", "new/folder/", "--weights", weights]) == 0
    assert [str(path) for path in Path("new").rglob("*.tif")] == ["new/folder/in.tif"]


def test_what_cannot_be_read_does_not_hold_up_the_others(
    inside: Path, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    Path("in.tif").rename("photos/b.tif")
    Path("photos/a.tif").symlink_to("gone.tif")
    Path("photos/c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    # A name in a folder that is a file: what the system says here is neither "not there" nor about the picture.
    Path("photos/d.tif").symlink_to(Path("b.tif") / "x")
    assert main(["run", "photos", "clear", "--weights", weights]) == 1
    assert [path.name for path in Path("clear").iterdir()] == ["b.tif"]
    err = capsys.readouterr().err
    assert "a.tif is a link to gone.tif, which does not exist" in err and "c.png is cut short" in err
    assert "d.tif" in err and "3 of 4 images could not be dehazed" in err


def test_a_damaged_tiff_is_one_line(inside: Path, weights: str) -> None:
    # In a process of its own: what libraries log goes past pytest's capture.
    data = bytearray(Path("in.tif").read_bytes())
    with tifffile.TiffFile("in.tif") as file:
        tag = file.pages.first.tags["BitsPerSample"]
    data[tag.offset + 2 : tag.offset + 8] = bytes(6)
    Path("bad.tif").write_bytes(data)
    done = subprocess.run([*COMMAND, "run", "bad.tif", "o.tif", "--weights", weights], capture_output=True, text=True)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "bad.tif is" in line] == done.stderr.splitlines()


def test_bundled_weights_stand_before_a_folder_of_their_name(inside: Path) -> None:
    """As a training leaves it: --out compact."""
    from dehazexl.cli.tasks import find_weights
    from dehazexl.model.weights import BUNDLED

    (inside / "compact").mkdir()
    assert find_weights(["compact"]) == {"": BUNDLED / "compact.safetensors"}


def test_several_weights(inside: Path, weights: str) -> None:
    folder = Path("runs/mine")
    folder.mkdir(parents=True)
    (folder / "tiny.safetensors").write_bytes(Path(weights).read_bytes())
    (folder / "best.safetensors").write_bytes(Path(weights).read_bytes())
    (folder / "checkpoint.pt").write_bytes(b"none of my business")
    assert main(["run", "in.tif", "out", "--weights", str(folder), "--weights", weights]) == 0
    other = Path(weights).parent.name
    names = {"in_best.tif", "in_mine-tiny.tif", f"in_{other}-tiny.tif"}
    assert {path.name for path in Path("out").iterdir()} == names
    assert main(["run", "in.tif", "out", "--weights", weights]) == 0, "a folder that is there takes one picture, too"
    assert {path.name for path in Path("out").iterdir()} == names | {"in.tif"}


def test_tokens_make_it_resumable(inside: Path, weights: str, error: Errors) -> None:
    command = ["run", "in.tif", "out.tif", "--weights", weights, "--tokens", "tokens", "--overwrite"]
    assert main(command) == 0
    first = pixels("out.tif")
    assert main(command) == 0
    np.testing.assert_array_equal(pixels("out.tif"), first)
    assert "tokens of another image" in error(*command, "--overlap", "0")


def test_nan_and_infinities_stay_and_never_spread(inside: Path, weights: str) -> None:
    values = PHOTO.astype("float32") / 255
    values[5, 5], values[100:120, 30], values[200, 200, 1] = np.nan, np.inf, -np.inf
    tifffile.imwrite("holes.tif", values, photometric="rgb")
    assert main(["run", "holes.tif", "out.tif", "--weights", weights, "--range", "0,1"]) == 0
    after = pixels("out.tif")
    np.testing.assert_array_equal(np.isfinite(after), np.isfinite(values))
    holes = ~np.isfinite(values).all(-1)
    np.testing.assert_array_equal(after[holes], values[holes])


# ---- What can go wrong --------------------------------------------------------------------------


def damage(source: str, target: str) -> None:
    with tifffile.TiffFile(source) as file:
        offset, length = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    data = bytearray(Path(source).read_bytes())
    data[offset + 2 : offset + length] = bytes(length - 2)
    Path(target).write_bytes(data)


def bad_text(path: Path) -> None:
    path.write_text("hello")


def bad_truncated(path: Path) -> None:
    path.write_bytes(Path("in.tif").read_bytes()[:60_000])


def bad_tile(path: Path) -> None:
    damage("in.tif", str(path))


def bad_group(path: Path) -> None:
    zarr.open_group(path, mode="w")


def bad_shape(*shape: int, dtype: str = "uint8") -> Callable[[Path], object]:
    return lambda path: zarr.create_array(path, shape=shape, dtype=dtype, chunks=(10,) * len(shape)) and None


def bad_chunk(path: Path) -> None:
    zarr.create_array(path, data=PHOTO, chunks=(256, 256, 3))
    chunk = path / "c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:100])


BAD_PICTURES = {
    "missing": (lambda path: None, "does not exist"),
    "text": (bad_text, "is not a TIFF, Zarr, PNG or JPEG"),
    "empty": (lambda path: path.write_bytes(b"") and None, "is empty: copy or download it again"),
    "folder": (lambda path: path.mkdir(), "a folder without images"),
    "truncated": (bad_truncated, "cut short: tile 1 (row 0, column 1)"),
    "damaged": (bad_tile, "damaged at tile 1 (row 0, column 1)"),
    "group": (bad_group, "a Zarr group without an image"),
    "none": (bad_shape(0, 10), "is empty"),
    "1-d": (bad_shape(10), "has 1 axes"),
    "9 bands": (bad_shape(100, 100, 9), "no axis of 1 to 8 bands"),
    "complex": (bad_shape(100, 100, dtype="complex64"), "complex64"),
    "chunk": (bad_chunk, "damaged chunk in rows 0 to 279"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_pictures(inside: Path, error: Errors, weights: str, kind: str) -> None:
    make, wanted = BAD_PICTURES[kind]
    make(inside / "bad")
    (inside / "out.tif").write_bytes(b"precious")
    line = error("run", "bad", "out.tif", "--weights", weights, "--overwrite")
    assert wanted in line and "bad" in line
    assert Path("out.tif").read_bytes() == b"precious"


BAD_OPTIONS = {
    "out.tif --overlap 300": "overlap must be between 0 and 128 pixels, not 300",
    "out.tif --overlap x": "Invalid value for '--overlap'",
    "out.tif --region 0:9000,0:10": "it has 280 rows and 300 columns",
    "out.tif --region 50:50,0:10": "it has 280 rows and 300 columns",
    "out.tif --region 7": "as in --region 0:1024,512:2048",
    "out.tif --range 5": "--range '5'",
    "out.tif --range 9,5": "two rising numbers",
    "out.tif --bands 1,2,9": "bands has 9, which this image does not have",
    "out.tif --bands 1,2": "must list three bands",
    "out.tif --batch 0": "--batch '0'",
    "out.tif --strength 2": "strength must be between 0 and 1",
    "out.tif --resize 10": "as in 2048x1536",
    "out.tif --dtype int8": "unknown dtype 'int8'",
    "out.tif --device tpu9": "device",
    "out.tif --ngff 3": "ngff='3'",
    "out.tif --compression bzip2": "compression='bzip2'",
    "out.tif --nor": "--nor is for official .pth files",
    "out.tif --frobnicate": "No such option: --frobnicate",
    "in.tif --overwrite": "is the input",
    "there.tif": "there.tif exists",
    "out": "ends in 'no suffix'",
    "out.bmp": "ends in '.bmp'",
    "none/out.tif": "the folder none does not exist",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_options(inside: Path, error: Errors, weights: str, options: str) -> None:
    Path("there.tif").write_bytes(b"precious")
    assert BAD_OPTIONS[options] in error("run", "in.tif", *options.split(), "--weights", weights)


def test_no_cuda_when_asked_for(error: Errors, weights: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert "'cuda' is not available" in error("run", "in.tif", "out.tif", "--weights", weights, "--device", "cuda")


def test_usage(error: Errors) -> None:
    assert error("run", "in.tif") == "Missing argument 'OUTPUT'; see dehazexl run --help"
    assert "frob" in error("frob")


def test_bad_places(inside: Path, error: Errors, weights: str) -> None:
    Path("photos").mkdir()
    tifffile.imwrite("photos/a.tif", PHOTO)
    zarr.create_array("photos/b.zarr", data=PHOTO)
    given = ("--weights", weights)
    assert "is the input" in error("run", "photos/b.zarr", "photos/b.zarr/out.zarr", *given)
    assert "or in it" in error("run", "photos", "photos/clear", *given)
    assert "or in it" in error("run", "photos", "photos", *given, "--overwrite")
    assert "give a folder as OUTPUT" in error("run", "photos", "clear.tif", *given)
    assert "Not a directory" in error("run", "photos", "in.tif/clear", *given)


@pytest.mark.parametrize("tokens", ["photos", "photos/b.zarr", "photos/b.zarr/t", "out.zarr", ".out.zarr.part", "."])
def test_tokens_stay_away_from_pictures(inside: Path, error: Errors, weights: str, tokens: str) -> None:
    Path("photos").mkdir()
    zarr.create_array("photos/b.zarr", data=PHOTO)
    line = error("run", "photos/b.zarr", "out.zarr", "--weights", weights, "--tokens", tokens)
    assert line.startswith(f"the folder for tokens {tokens} is ") and "choose another folder" in line


def no_weights(path: Path, good: str) -> None: ...


def cut_weights(path: Path, good: str) -> None:
    path.write_bytes(Path(good).read_bytes()[:20_000])


def edited_weights(change: Callable[[dict[str, Any], dict[str, str]], object]) -> Callable[[Path, str], None]:
    def make(path: Path, good: str) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        tensors = load_file(good)
        with safe_open(good, "pt") as file:
            metadata = file.metadata()
        change(tensors, metadata)
        save_file(tensors, path, metadata)

    return make


def pickled_code(path: Path, good: str) -> None:
    import torch

    torch.save(torch.nn.Linear(2, 2), path)


def cut_pth(path: Path, good: str) -> None:
    import torch

    torch.save({"a": torch.zeros(3)}, path)
    path.write_bytes(path.read_bytes()[:500])


BAD_WEIGHTS = {
    "missing": ("x.safetensors", no_weights, "no weights"),
    "text": ("x.safetensors", lambda path, good: path.write_text("hello" * 9) and None, "not a safetensors file"),
    "cut": ("x.safetensors", cut_weights, "cut short"),
    "missing key": (
        "x.safetensors",
        edited_weights(lambda tensors, _: tensors.pop("context.input_proj.bias")),
        "missing context.input_proj.bias",
    ),
    "extra key": (
        "x.safetensors",
        edited_weights(lambda tensors, _: tensors.update(extra=tensors["context.input_proj.bias"].clone())),
        "unknown extra",
    ),
    "no spec": ("x.safetensors", edited_weights(lambda _, about: about.pop("spec")), "no spec in its metadata"),
    "bad spec": ("x.safetensors", edited_weights(lambda _, about: about.update(spec="{x")), "not JSON"),
    "impossible spec": (
        "x.safetensors",
        edited_weights(lambda _, about: about.update(spec='{"window": 0}')),
        "x.safetensors: window must divide",
    ),
    "text.pth": ("x.pth", lambda path, good: path.write_text("hello") and None, "not a weights file"),
    "cut.pth": ("x.pth", cut_pth, "cut short"),
    "code.pth": ("x.pth", pickled_code, "wants to run code"),
    "folder": ("x", lambda path, good: path.mkdir(), "a folder without weights"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights(inside: Path, error: Errors, weights: str, kind: str) -> None:
    name, make, wanted = BAD_WEIGHTS[kind]
    make(inside / name, weights)
    line = error("run", "in.tif", "out.tif", "--weights", name)
    assert wanted in line and name in line


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real file system of 500 kB."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["out.tif", "out.ome.zarr"])
def test_work_on_a_full_disk_goes_on_when_there_is_room(
    inside: Path, small_disk: Path, weights: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (280, 600, 3), np.uint8)
    tifffile.imwrite("in.tif", noise, photometric="rgb")
    command = ["run", "in.tif", str(small_disk / name), "--weights", weights, "--tokens", "tokens"]
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in line and f".{name}.part, which is kept, so make room and run it again" in line
    assert [each.name for each in small_disk.iterdir()] == [f".{name}.part"]
    np.testing.assert_array_equal(pixels("in.tif"), noise)
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert main(command) == 0
    assert [each.name for each in small_disk.iterdir()] == [name] and "going on with" in capsys.readouterr().err


def heed_signals() -> None:
    """Heed signals that are ignored where the tests run, as under nohup or in the background of a script."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL if name != "SIGINT" else signal.default_int_handler)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals for other processes")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_end_a_run_within_a_batch(inside: Path, weights: str, name: str, code: int) -> None:
    zarr.create_array("large.zarr", shape=(6000, 6000, 3), dtype="uint8", chunks=(1000, 1000, 3))
    command = [*COMMAND, "run", "large.zarr", "out.zarr", "--weights", weights]
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed_signals) as process:
        assert process.stderr is not None
        seen = b""
        while b"encode:" not in seen:
            seen += process.stderr.read(1)
        process.send_signal(getattr(signal, name))
        _, err = process.communicate()
    assert process.returncode == code
    done, tiles = map(int, re.findall(r"encode:.* (\d+)/(\d+)", (seen + err).decode())[-1])
    assert done < tiles
    assert err.decode().splitlines()[-1] == "dehazexl: error: stopped; nothing was done yet"
    assert sorted(path.name for path in inside.iterdir()) == ["in.tif", "large.zarr"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals for other processes")
def test_a_signal_before_the_work_ends_in_one_line(inside: Path) -> None:
    code = (
        "import os, signal, sys; from dehazexl.cli.app import main\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "def audit(event, values):\n"
        "    if event == 'open' and str(values[0]) == 'in.tif': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.addaudithook(audit)\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code, "info", "in.tif"], capture_output=True, text=True)
    assert done.returncode == 143 and done.stderr.splitlines()[-1] == "dehazexl: error: stopped"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes with names in folders")
@pytest.mark.parametrize("command", [["info", "pipe"], ["run", "pipe", "out.tif"], ["info", "/dev/zero"]])
def test_pipes_and_devices_are_refused_at_once(inside: Path, error: Errors, command: list[str]) -> None:
    os.mkfifo("pipe")  # opening it would wait
    assert "is not a regular file but a pipe, a socket or a device: copy its content to a file first" in error(*command)


@pytest.mark.skipif(sys.platform == "win32", reason="the shell is POSIX's")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_do_no_harm(inside: Path, weights: str, closed: str) -> None:
    assert main(["run", "in.tif", "expected.tif", "--weights", weights]) == 0
    script = f'exec "$@" {closed}'
    done = subprocess.run(["sh", "-c", script, "sh", *COMMAND, "run", "in.tif", "out.tif", "--weights", weights])
    assert done.returncode == 0
    assert Path("out.tif").read_bytes() == Path("expected.tif").read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="the pipe is POSIX's")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_does_no_harm(inside: Path, weights: str, stream: str) -> None:
    command = [*COMMAND, "run", "in.tif", "out.tif", "--weights", weights]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: writer})  # type: ignore[call-overload]
    os.close(writer)
    assert done.returncode == 0 and Path("out.tif").exists()


def test_what_cannot_fit_is_refused_before_the_work(
    inside: Path, small_disk: Path, error: Errors, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr.create_array("large.zarr", shape=(5000, 5000, 3), dtype="uint8", chunks=(1000, 1000, 3))
    line = error("run", "large.zarr", small_disk / "out.tif", "--weights", weights)
    needed = rf"at least 0\.\d+ GB are needed on the disk of {small_disk}\S*, and 0\.000\d+ GB are free: make room"
    assert re.match(needed, line)
    assert not list(small_disk.iterdir())
    huge = zarr.create_array("huge.zarr", shape=(2**24, 2**24, 3), dtype="uint8", chunks=(2**13, 2**13, 3))
    assert "are needed on the disk of" in error("run", "huge.zarr", "out.zarr", "--weights", weights)
    monkeypatch.setattr("dehazexl.engine.estimate.total_memory", lambda: 10**8)
    assert "of memory are needed, and there are 0.1 GB" in error("run", "large.zarr", "out.zarr", "--weights", weights)
    assert huge.nchunks_initialized == 0


def test_an_input_that_vanishes_ends_the_run(inside: Path, weights: str) -> None:
    """Zarr reads missing chunks as zeros."""
    zarr.create_array("in.zarr", shape=(2304, 2304, 3), dtype="uint8", chunks=(256, 256, 3))[:] = 200
    job = prepare("in.zarr", load_model(weights, device="cpu"))
    (encode, *_) = stages(job, open_tokens(job))
    next(encode.steps)
    shutil.rmtree("in.zarr")
    with pytest.raises(OSError, match=r"in\.zarr was changed or removed after it was opened"):
        for _ in encode.steps:
            pass


# ---- info, demo, train --------------------------------------------------------------------------


def test_info_is_json_for_other_programs(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gdal(inside / "geo.tif", smooth(3, "float32", 30, 40), nodata=float("nan"))
    assert main(["info", "geo.tif", "--json"]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(capsys.readouterr().out, parse_constant=refuse)["nodata"] == "NaN"


def test_info_of_holes_that_are_nan(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gdal(inside / "geo.tif", smooth(3, "float32", 30, 40), nodata=float("nan"))
    assert main(["info", "geo.tif"]) == 0
    assert any(line.split() == ["nodata", "nan"] for line in capsys.readouterr().out.splitlines())


def test_info_of_a_picture(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gdal(inside / "geo.tif", smooth(4, "uint16", 280, 300), names=("red", "green", "blue", "nir"), nodata=0)
    assert main(["info", "geo.tif", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["width"], facts["height"], facts["dtype"], facts["nodata"]) == (300, 280, "uint16", 0)
    assert [band["shows"] for band in facts["bands"]] == ["red", "green", "blue", None]
    assert facts["geo"]["epsg"] == 32614 and facts["geo"]["bounds"] == [5e5, 5e6 - 140, 5e5 + 150, 5e6]
    spec = SPECS["compact"]
    tiles = TileGrid(280, 300, spec.overlap, spec.tile)
    assert facts["tiles"] == {"rows": tiles.rows, "columns": tiles.cols, "overlap": spec.overlap}
    assert facts["tokens_bytes"] == tiles.count * 64 * spec.channels * 4
    assert (facts["container"], facts["compression"], facts["bands_from"]) == ("tiff", "none", "the names of the bands")
    assert (facts["mask"], facts["border"]) == (["the nodata value"], None)
    assert facts["memory_bytes"] > 350e6 and facts["disk_bytes"] > facts["tokens_bytes"]
    # Three sets of tokens, and the pixels with their overviews; of a TIFF the finest level twice.
    pixels, most = 280 * 300 * 4 * 2, facts["most_disk_bytes"]
    assert most["zarr"] > 3 * facts["tokens_bytes"] + pixels * 4 / 3
    assert abs(most["tiff"] - most["zarr"] - pixels) <= 1
    assert main(["info", "geo.tif"]) == 0
    text = capsys.readouterr().out
    assert "300 x 280 pixels" in text and "EPSG:32614" in text and "4 nir" in text and "percentile 99.9" in text
    assert "TIFF, not compressed" in text and "of memory; of disk for tokens and output at least" in text


def test_info_tells_border_mask_and_container(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = smooth(3, "uint8", 280, 300)
    pixels[:96] = 0  # whole blocks of JPEG
    write_gdal(inside / "a.tif", pixels, driver="COG", compress="jpeg", photometric="MINISBLACK")
    options: dict[str, Any] = {"mask": np.indices((280, 300))[1] > 9, "NBITS": 7, "photometric": "MINISBLACK"}
    write_gdal(inside / "b.tif", smooth(3, "uint8", 280, 300) // 3, **options)
    found = {}
    for name in "ab":
        assert main(["info", f"{name}.tif", "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    a, b = found["a"], found["b"]
    assert (a["container"], a["compression"], a["border"]["value"]) == ("cog", "jpeg", 0)
    assert a["border"]["share"] == pytest.approx(96 / 280, abs=0.01) and a["mask"] == ["a border of one value"]
    assert (b["mask"], b["bits"], b["bands_from"]) == (["a mask of the file"], 7, "nothing, these are the first")
    assert main(["info", "a.tif"]) == 0
    out = capsys.readouterr().out
    assert "COG, compressed by jpeg" in out and "a border of 0 around the image (34%)" in out


def test_info_of_an_image_does_not_load_torch(inside: Path) -> None:
    command = "from dehazexl.cli.app import main; import sys; code = main(['info', 'in.tif']); "
    done = subprocess.run([sys.executable, "-c", command + "print('torch' in sys.modules, code)"], capture_output=True)
    assert done.stdout.splitlines()[-1] == b"False 0"


def test_info_of_weights(weights: str, capsys: pytest.CaptureFixture[str], error: Errors) -> None:
    assert main(["info", weights, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["spec"]["head"] == "scattering" and facts["parameters"] > 1e5 and facts["licence"] == "BSD-3-Clause"
    assert main(["info", weights]) == 0
    assert "BSD-3-Clause" in capsys.readouterr().out
    assert "no weights 'frob'" in error("info", "frob")
    assert "does not exist" in error("info", "frob.tif")


def test_demo(inside: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # again: its own files are replaced
        assert main(["demo", "here", "--weights", weights, "--size", "320x270"]) == 0
    out = capsys.readouterr().out
    assert sorted(p.name for p in Path("here").iterdir()) == ["before-after.png", "clear.ome.zarr", "hazy.tif"]
    assert pixels("here/before-after.png").shape == (270, 648, 3)
    assert pixels("here/clear.ome.zarr").shape == pixels("here/hazy.tif").shape == (270, 320, 3)
    assert "dB before" in out and "here/before-after.png" in out and " s, " in out


def test_train(inside: Path, capsys: pytest.CaptureFixture[str], error: Errors) -> None:
    import PIL.Image

    Path("clear").mkdir()
    for i in range(2):
        PIL.Image.fromarray(np.roll(PHOTO, 50 * i, 0)).save(f"clear/{i}.png")
    given = ["train", "clear", "--spec", "tiny", "--tiles", "1", "--every", "1", "--device", "cpu"]
    assert "not JSON" in error("train", "clear", "--out", "new", "--spec", "{x")
    assert "no image matches" in error(*given, "--out", "new", "--hold-out", "zzz*")
    assert "no such folder" in error("train", "zzz", "--out", "new")
    assert "no checkpoint to resume from" in error(*given, "--out", "new", "--resume")
    assert main([*given, "--out", "new", "--steps", "1"]) == 0
    out, err = capsys.readouterr()
    assert "best.safetensors: of step 1, " in out and "step 1 of 1" in out
    assert "1 images to train on, 1 to validate on" in err and "dB" in err
    assert "contains a run" in error(*given, "--out", "new")
    assert "choose a folder next to them" in error(*given, "--out", "clear/new")
    assert "leave one of them out" in error(*given, "--out", "new", "--resume", "--init", "compact")
    assert main([*given, "--out", "new", "--steps", "2", "--resume"]) == 0
    assert "step 2 of 2" in capsys.readouterr().out
    assert main(["run", "in.tif", "out.tif", "--weights", "new/last.safetensors"]) == 0
    Path("new/checkpoint.pt").write_bytes(b"hello")
    assert "not a checkpoint of dehazexl train" in error(*given, "--out", "new", "--resume")


def test_the_recipe_is_the_default() -> None:
    import inspect

    from dehazexl.cli.app import train
    from dehazexl.training.config import Recipe

    defaults = {name: each.default for name, each in inspect.signature(train).parameters.items()}
    recipe = Recipe()
    assert {name: defaults[name] for name in ("steps", "tiles", "lr", "seed")} == {
        name: getattr(recipe, name) for name in ("steps", "tiles", "lr", "seed")
    }


# ---- Workers ----------------------------------------------------------------------------------------


def test_workers_write_the_same(inside: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", weights, "--device", "cpu", "--dtype", "float32"]
    assert main(["run", "in.tif", "alone.zarr", *options]) == 0
    capsys.readouterr()
    Path("dask.yaml").write_text("distributed:\n  worker:\n    memory:\n      terminate: false\n")
    assert main(["run", "in.tif", "out.zarr", *options, "--workers", "1", "--dask-config", "dask.yaml"]) == 0
    assert "dask dashboard: http" in capsys.readouterr().err
    assert np.array_equal(pixels("out.zarr"), pixels("alone.zarr"))
    assert {path.name for path in inside.iterdir()} == {"in.tif", "alone.zarr", "out.zarr", "dask.yaml"}


def test_workers_and_a_scheduler_are_refused(error: Errors) -> None:
    text = error("run", "in.tif", "out.tif", "--workers", "2", "--scheduler", "tcp://127.0.0.1:1")
    assert "either the number of workers or the address" in text
    assert "no such file" in error("run", "in.tif", "out.tif", "--dask-config", "missing.yaml").lower()
