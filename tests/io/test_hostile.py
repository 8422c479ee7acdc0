"""Hostile and broken files are refused with a reason, in little memory, and nothing else happens."""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from hostile import KINDS, READING, mark, tiff, tiled, zarr2, zarr3
from make_pictures import smooth

from dehazexl.cli.app import main
from dehazexl.io.open import open_image

MEMORY = 1200 * 2**20
"""Bytes that a file may make this process allocate, so that 2 GB suffice with all modules."""


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let this process allocate little more than it has."""
    if sys.platform != "linux":
        yield
        return
    import resource

    lines = Path("/proc/self/status").read_text().splitlines()
    held = 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmData:")))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """List everything below a folder with mode and modification time; links are not followed."""
    return {str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - READING))
def test_hostile_files_are_refused(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    build, words = KINDS[kind]
    path = build(tmp_path)
    before = contents(tmp_path)
    assert main(["info", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("dehazexl: error: ") and error.count("\n") == 1
    assert re.search(words, error)
    assert not mark(tmp_path).exists()
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", sorted(READING))
def test_hostile_pixels_are_refused(tmp_path: Path, kind: str) -> None:
    build, words = KINDS[kind]
    image = open_image(build(tmp_path))
    with pytest.raises(ValueError, match=words):
        image.levels[0][:64, :64].compute()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "kind",
    ["zarr_in_one_chunk", "zarr_of_single_pixels", "tiff_in_one_strip", "tiff_in_one_tile", "jpeg_of_endless_size"],
)
def test_a_region_of_a_hostile_file_is_refused(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    build, words = KINDS[kind]
    path = build(tmp_path)
    before = contents(tmp_path)
    assert main(["run", str(path), str(tmp_path / "out.tif"), "--region", "0:256,0:256"]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert contents(tmp_path) == before


def test_the_generator_hides_code_that_runs(tmp_path: Path) -> None:
    """Check that the mark of the tests above would appear if the code ran."""
    import pickle

    build, _ = KINDS["zarr_with_a_pickled_chunk"]
    pickle.loads((build(tmp_path) / "0.0").read_bytes())
    assert mark(tmp_path).exists()


def test_a_pipe_is_a_pipe(tmp_path: Path) -> None:
    path = KINDS["pipe"][0](tmp_path)
    assert stat.S_ISFIFO(path.stat().st_mode)


# ---- What looks alike and is sound ----------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 3, 8, 64])
def test_small_chunks_are_read(tmp_path: Path, side: int) -> None:
    array = smooth(3, height=30, width=20)
    zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(side, side, 3))
    level = open_image(tmp_path / "a.zarr").levels[0]
    assert np.array_equal(level.compute(), array)


def test_small_chunks_of_a_large_image_make_small_blocks(tmp_path: Path) -> None:
    path = zarr3(tmp_path / "a.zarr", (2**20, 2**20), (8, 16))
    assert open_image(path).levels[0].chunksize == (256, 512, 1)


def test_a_terapixel_opens(tmp_path: Path) -> None:
    path = zarr3(tmp_path / "a.zarr", (2**20, 2**20), (512, 512), data_type="uint16")
    image = open_image(path)
    assert image.levels[0].npartitions == 2**16
    assert image.levels[0][-3:, -3:].compute().sum() == 0


def test_a_zarr_behind_a_link_is_read(tmp_path: Path) -> None:
    array = smooth(1)[..., 0]
    zarr.create_array(tmp_path / "disk" / "a.zarr", data=array, chunks=(64, 64))
    (tmp_path / "a.zarr").symlink_to(tmp_path / "disk" / "a.zarr")
    assert np.array_equal(open_image(tmp_path / "a.zarr").levels[0].compute()[..., 0], array)


CODECS: dict[str, Any] = {
    "v2-blosc": {"zarr_format": 2, "compressors": {"id": "blosc"}},
    "v2-zlib-delta": {
        "zarr_format": 2,
        "compressors": {"id": "zlib", "level": 1},
        "filters": [numcodecs.Delta("<u2")],
    },
    "v3-gzip": {"compressors": {"name": "gzip", "configuration": {"level": 1}}},
    "v3-sharded": {"shards": (256, 256), "compressors": {"name": "zstd", "configuration": {"level": 0}}},
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", CODECS)
def test_codecs_that_are_read(tmp_path: Path, kind: str) -> None:
    array = smooth(1, "uint16")[..., 0]
    group = zarr.create_array(tmp_path / "a.zarr", shape=array.shape, dtype="uint16", chunks=(64, 64), **CODECS[kind])
    group[:] = array
    assert np.array_equal(open_image(tmp_path / "a.zarr").levels[0].compute()[..., 0], array)


@pytest.mark.parametrize("codec", ["pickle", "json2", "msgpack2", "vlen-bytes"])
def test_codecs_that_are_not_read(tmp_path: Path, codec: str) -> None:
    from zarr.core.metadata.v2 import ArrayV2Metadata

    path = zarr2(tmp_path / "a.zarr", bytes(8192))
    array = zarr.open(path, mode="r")
    assert isinstance(array.metadata, ArrayV2Metadata)
    # As earlier releases of zarr open it, which do not look at the codecs of a number.
    object.__setattr__(array.metadata, "compressor", numcodecs.get_codec({"id": codec}))
    with pytest.raises(ValueError, match=f"codec '{codec}', which is not among those that only decode numbers"):
        open_image(array)


def test_an_ome_tiff_of_two_files_is_read(tmp_path: Path) -> None:
    from hostile import ome

    path = ome(tmp_path, "other.tif")
    tifffile.imwrite(path.parent / "other.tif", smooth(1, height=64, width=64)[..., 0])
    assert open_image(path).levels[0].shape == (64, 64, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_equals_pillow(tmp_path: Path, mode: str, orientation: int) -> None:
    """A JPEG of more rows than are converted at once is upright, whatever its mode."""
    import PIL.ImageOps

    exif = PIL.Image.Exif()
    exif[274] = orientation
    array = smooth(1 if mode == "L" else 3, height=1100, width=40)
    picture = PIL.Image.fromarray(array[..., 0] if mode == "L" else array).convert(mode)
    picture.save(tmp_path / "a.jpg", exif=exif)
    with PIL.Image.open(tmp_path / "a.jpg") as file:
        upright = PIL.ImageOps.exif_transpose(file)
        expected = np.atleast_3d(np.asarray(upright if mode == "L" else upright.convert("RGB")))
    assert np.array_equal(open_image(tmp_path / "a.jpg").levels[0].compute(), expected)


def test_the_largest_tiles_are_read(tmp_path: Path) -> None:
    """A tile of 600 MB is at the limit, which its size in the message shows to be one."""
    side = 16 * (int((600 * 2**20) ** 0.5) // 16)
    assert open_image(tiff(tmp_path, tiled(side, side, side, 8, 64), bytes(64))).levels[0].shape == (side, side, 1)
    with pytest.raises(ValueError, match=r"blocks of \d+ x \d+ x 1, 0.6 GB, more than 0.6"):
        open_image(tiff(tmp_path, tiled(side + 32, side + 32, side + 32, 8, 64), bytes(64)))


# rasterio logs the message, too, and cannot raise there.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.qt_no_exception_capture
def test_a_raster_that_speaks_no_utf_8_is_refused_with_its_words(tmp_path: Path) -> None:
    path = tmp_path / "a.vrt"
    source = b"<SimpleSource><SourceFilename>m\xfcll.tif</SourceFilename></SimpleSource>"
    band = b"<VRTRasterBand dataType='Byte\xff' band='1'>" + source + b"</VRTRasterBand>"
    path.write_bytes(b"<VRTDataset rasterXSize='90' rasterYSize='70'>" + band + b"</VRTDataset>")
    with pytest.raises(ValueError, match=r"a\.vrt cannot be .*Byte\ufffd"):
        open_image(path)
