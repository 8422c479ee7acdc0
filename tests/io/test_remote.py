"""Images at an address, from a server on this machine that counts, fails, stalls and cuts short."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import zarr
from make_pictures import smooth, write_gdal

from dehazexl.io import raster_read, source
from dehazexl.io.open import open_image

pytest.importorskip("aiohttp")

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@dataclass
class Server:
    """A server of the temporary folder, see `range_server`."""

    port: int

    def ask(self, path: str) -> bytes:
        with urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=20) as answer:
            return bytes(answer.read())

    @property
    def sent(self) -> int:
        return int(self.ask("sent"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve the temporary folder; waiting is short."""
    short = {"GDAL_HTTP_LOW_SPEED_TIME": 2, "GDAL_HTTP_CONNECTTIMEOUT": 2, "GDAL_HTTP_MAX_RETRY": 0}
    fresh = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/http://127.0.0.1"}
    monkeypatch.setattr(raster_read, "OPTIONS", {**raster_read.OPTIONS, **short, **fresh})
    monkeypatch.setattr(source, "TIMEOUT", 2)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    script = Path(__file__).parent.parent / "range_server.py"
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Server(int(process.stdout.readline()))
        process.kill()


def address(server: Server, name: str) -> str:
    return f"http://127.0.0.1:{server.port}/{name}"


def test_a_cog_is_read_by_ranges(tmp_path: Path, server: Server) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (2048, 2048, 3), "uint8")
    write_gdal(tmp_path / "a.tif", pixels, driver="COG", blocksize=256, compress="deflate")
    image = open_image(address(server, "a.tif"))
    assert len(image.levels) > 1 and image.path is None and image.geo is not None
    size = (tmp_path / "a.tif").stat().st_size
    assert server.sent < size / 20
    np.testing.assert_array_equal(image.levels[0][:1024, :1024].compute(), pixels[:1024, :1024])
    assert server.sent < size / 2
    # A path loses a slash of an address.
    again = open_image(Path(address(server, "a.tif")))
    assert again.fingerprint == image.fingerprint


def test_a_zarr_is_read_by_chunks(tmp_path: Path, server: Server) -> None:
    pixels = smooth()
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(128, 128, 3))
    image = open_image(address(server, "a.zarr"))
    np.testing.assert_array_equal(image.levels[0].compute(), pixels)


@pytest.mark.parametrize("trouble", ["error", "stall", "cut"])
@pytest.mark.parametrize("when", ["opened", "read"])
@pytest.mark.parametrize("name", ["a.tif", "a.zarr"])
def test_a_server_that_fails_is_told_in_one_line(
    tmp_path: Path, server: Server, name: str, when: str, trouble: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if name == "a.tif":
        write_gdal(tmp_path / name, smooth(), driver="COG", blocksize=128, compress="deflate")
    else:
        zarr.create_array(tmp_path / name, data=smooth(), chunks=(128, 128, 3))
    server.ask(f"={trouble if when == 'opened' else ''}")
    with pytest.raises(OSError, match=r"127\.0\.0\.1.*cannot be (opened|read)") as caught:
        image = open_image(address(server, name))
        server.ask(f"={trouble}")
        image.levels[0].compute(scheduler="synchronous")
    assert "\n" not in str(caught.value)
    assert ("(the server sent nothing for 2 s): check" in str(caught.value)) == (trouble == "stall")
    assert capfd.readouterr().err == ""


def test_the_command_line_takes_an_address(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    from dehazexl.cli.app import main
    from dehazexl.cli.tasks import find_images

    write_gdal(tmp_path / "a.tif", smooth(), driver="COG", blocksize=128, compress="deflate")
    assert main(["info", address(server, "a.tif")]) == 0
    assert "523 x 701 pixels" in capsys.readouterr().out
    path = Path(address(server, "a.tif"))
    assert find_images(path) == [path]


def test_an_address_without_an_image(server: Server) -> None:
    for name in ("gone.tif", "gone.zarr"):
        with pytest.raises(OSError, match=rf"{name} cannot be opened"):
            open_image(address(server, name))
