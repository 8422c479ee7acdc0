"""The command `dehazexl train`: options, errors and output files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch

from dehazexl.cli.app import main
from dehazexl.model.weights import describe, has_bfloat16, load_model, save_model
from dehazexl.synthesis.procedural import procedural
from dehazexl.training.checkpoint import read_checkpoint

TINY = ["--spec", "tiny", "--tiles", "1", "--crop", "1", "--device", "cpu", "--every", "1"]


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of four images, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        write(tmp_path / "images" / f"p{i}.png", procedural(200, 260, i))
    return tmp_path / "images"


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real file system of 64 MB."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(pixels))


def read_stderr(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_a_resumed_run_keeps_its_options(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = ["train", "images", "--out", "run", *TINY, "--hold-out", "p[23]*", "--lr", "1e-3"]
    assert main([*begun, "--steps", "4", "--minutes", "0"]) == 0
    assert "2 images to train on, 2 to validate on" in read_stderr(capsys)
    assert main(["train", "images", "--out", "run", "--resume"]) == 0
    output = read_stderr(capsys)
    assert "2 images to train on, 2 to validate on" in output
    assert "than before" not in output
    about = describe("run/last.safetensors")
    assert about["trained"]["step"] == 4
    assert (about["recipe"]["lr"], about["recipe"]["tiles"], about["hold_out"]) == (1e-3, 1, ["p[23]*"])
    saved = read_checkpoint(Path("run/checkpoint.pt"))
    assert saved["about"]["held_out"] == ["p2", "p3"]


def test_new_options_of_a_resumed_run_are_reported(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "images", "--out", "run", *TINY, "--hold-out", "p3*", "--steps", "1"]) == 0
    best = read_checkpoint(Path("run/checkpoint.pt"))["best"]
    assert main(["train", "images", "--out", "run", "--resume", "--steps", "2", "--hold-out", "p0*"]) == 0
    output = read_stderr(capsys)
    assert "continuing with another recipe than before: steps 1 -> 2" in output
    assert "other images are held out than before" in output
    assert read_checkpoint(Path("run/checkpoint.pt"))["best"] != best
    assert main(["train", "images", "--out", "run", "--resume"]) == 0
    assert "continuing" not in read_stderr(capsys)


def test_init_and_normalization_are_saved(images: Path) -> None:
    assert main(["train", "images", *TINY, "--out", "first", "--steps", "1", "--normalize"]) == 0
    assert "init" not in describe(Path("first/last.safetensors"))
    spec = describe(Path("first/last.safetensors"))["spec"]
    assert spec["std"][0] < 0.2
    for given in (["--spec", "tiny"], ["--normalize"], []):
        steps = str(read_checkpoint(Path("first/checkpoint.pt"))["step"] + 1)
        assert main(["train", "images", "--out", "first", "--resume", "--steps", steps, *given]) == 0
        assert describe(Path("first/last.safetensors"))["spec"] == spec
    begun = ["--init", "first/last.safetensors", "--tiles", "1", "--device", "cpu"]
    assert main(["train", "images", *begun, "--out", "second", "--steps", "1"]) == 0
    assert main(["train", "images", "--out", "second", "--resume", "--steps", "2", "--device", "cpu"]) == 0
    assert describe(Path("second/last.safetensors"))["init"] == "last.safetensors"


def test_the_best_step_can_be_resumed(images: Path) -> None:
    assert main(["train", "images", "--out", "run", *TINY, "--steps", "3"]) == 0
    step = describe("run/best.safetensors")["trained"]["step"]
    assert read_checkpoint(Path("run/best.pt"))["step"] == step
    os.replace("run/best.pt", "run/checkpoint.pt")
    assert main(["train", "images", "--out", "run", "--resume", "--steps", "4"]) == 0


def test_errors_of_the_module_have_an_exit_code(images: Path) -> None:
    command = [sys.executable, "-m", "dehazexl", "train", "missing", "--out", "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("dehazexl: error: missing: no such folder")


def test_small_images_are_reported_once(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        write(images / f"tiny{i}.png", procedural(60, 300, i))
    write(images / "large.png", procedural(256, 300, 9))
    assert main(["train", "images", "--out", "run", *TINY, "--steps", "2", "--hold-out", "p0*"]) == 0
    output = read_stderr(capsys)
    assert output.count("3 images smaller than 128 pixels on a side are left out, e.g. tiny0") == 1
    assert output.count("3 images smaller than a tile of 256 pixels are enlarged, e.g. p1") == 1
    assert "4 images to train on" in output


def test_images_that_exceed_the_cache_are_reported(
    images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dehazexl.cli.train.CACHE_SIZE", 200 * 260 * 3 * 2)
    assert main(["train", "images", "--out", "run", *TINY, "--steps", "1", "--hold-out", "p0*"]) == 0
    assert "loading is faster from tiled TIFF or Zarr" in read_stderr(capsys)


def test_a_slow_precision_is_reported(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for precision in ("float32", "bfloat16"):
        run = ["train", "images", "--out", precision, *TINY, "--steps", "1", "--precision", precision]
        assert main(run) == 0
        slow = precision == "bfloat16" and not has_bfloat16()
        assert ("far slower than --precision float32" in read_stderr(capsys)) == slow


def test_only_small_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        write(tmp_path / "small" / f"{i}.png", procedural(60, 50, i))
    assert main(["train", str(tmp_path / "small"), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert "all images are smaller than 128 pixels on a side" in read_stderr(capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--spec", "official"], "the spec of --init first.safetensors differs from --spec official"),
        (["--normalize"], "was trained without --normalize"),
    ],
)
def test_options_that_conflict_with_init_are_refused(
    images: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    from reference import randomised

    save_model(randomised("tiny"), "first.safetensors")
    given = ["train", "images", "--out", "run", "--init", "first.safetensors", "--device", "cpu"]
    assert main([*given, *more]) == 2
    assert message in read_stderr(capsys)


def test_a_full_disk_keeps_the_previous_checkpoint(
    images: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = disk / "run"
    given = ["train", "images", "--out", str(out), *TINY, "--lr", "0"]
    assert main([*given, "--steps", "1"]) == 0
    (out / "best.pt").unlink()
    (disk / "filler").write_bytes(bytes(2**20))
    with (disk / "filler").open("ab") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(2**14))
            file.flush()
    capsys.readouterr()
    assert main([*given, "--steps", "2", "--resume"]) == 2
    (line,) = [line for line in read_stderr(capsys).splitlines() if line.startswith("dehazexl: error:")]
    assert "could not be written: No space left on device; the previous file is kept" in line
    assert not list(out.glob(".*"))
    assert read_checkpoint(out / "checkpoint.pt")["step"] == 1
    load_model(out / "last.safetensors", device="cpu")
    (disk / "filler").unlink()
    assert main([*given, "--steps", "2", "--resume"]) == 0


def test_two_processes_by_torchrun(images: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0",
        "-m", "dehazexl", "train", "images", *TINY,
    ]  # fmt: skip
    done = subprocess.run([*command, "--out", "two", "--steps", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()  # only one process prints
    assert line.startswith("two/best.safetensors: of step ") and line.endswith("step 3 of 3")
    tiles = TINY.index("--tiles") + 1
    assert main(["train", "images", *TINY[:tiles], "2", *TINY[tiles + 1 :], "--out", "one", "--steps", "3"]) == 0
    two, one = (read_checkpoint(Path(name) / "checkpoint.pt")["model"] for name in ("two", "one"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=2e-4)
