"""Runs that are killed: the same command goes on, and its output is that of a run that was not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import tifffile
import zarr
from killed import Run, Runs
from make_pictures import smooth
from reference import randomised

from dehazexl.cli.app import main
from dehazexl.cli.leftovers import size
from dehazexl.io.unfinished import Unfinished, held, remove
from dehazexl.model import SPECS
from dehazexl.model.weights import save_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows neither forks nor sends signals")

SPEC = replace(SPECS["tiny"], depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1), inputs=())
"""The smallest network there is."""
OPTIONS = ["--weights", "least.safetensors", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, and images of two blocks each."""
    folder = tmp_path_factory.mktemp("material")
    save_model(randomised(SPEC), folder / "least.safetensors", licence="BSD-3-Clause")
    pixels = smooth(height=270, width=2300)
    tifffile.imwrite(folder / "in.tif", (pixels / 255).astype("float32"), tile=(256, 256), photometric="rgb")
    zarr.create_array(folder / "in.zarr", data=pixels, chunks=(128, 1024, 3))
    return folder


@pytest.fixture
def inside(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for a test, with the material."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def run(inside: Path) -> Iterator[Runs]:
    runs = Runs(inside)
    yield runs
    runs.close()


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of all files of an image."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def succeeded(end: Run) -> Run:
    assert end.code == 0, end.err
    return end


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("source", "output"), [("in.tif", "out.tif"), ("in.zarr", "out.ome.zarr")])
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(inside: Path, run: Runs, source: str, output: str) -> None:
    """Killed at changes of its files that are spread over all stages, each time in another run."""
    command = ["run", source, output, *OPTIONS]
    whole = succeeded(run(*command))
    expected = contents(Path(output))
    went_on = []
    # Threads make some folders once or twice, so the number of a change differs a little from run to run.
    moments: list[dict[str, Any]] = [{"kill_at": len(whole.changes) * step // 7} for step in range(1, 7)]
    for moment in (*moments, {"kill_in": ".part/complete"}):
        remove(Path(output))
        assert run(*command, **moment).code == -9
        assert not Path(output).exists()
        again = succeeded(run(*command))
        went_on += [line for line in again.err.splitlines() if line.startswith("dehazexl: going on with .out.")]
        assert contents(Path(output)) == expected, f"killed at {moment} of {whole.changes}"
        assert not Path(f".{output}.part").exists()
    stages = "encode", "fuse", "decode", "finish"
    assert {stage for stage in stages for line in went_on if f"({stage}" in line} == set(stages)


LATE = {
    "overview": ("out.ome.zarr", "part/image/overviews/2/2/c/0/0/1", "part/image/overviews/(2/2|3/3)/c/"),
    "last overview": ("out.ome.zarr", "part/image/overviews/3/3/c", "part/image/overviews/3/3/c/"),
    "GeoTIFF": ("out.tif", "read .out.tif.part/level0/0/c/0/0/4", "nothing"),
    "overviews of a GeoTIFF": ("out.tif", "read .out.tif.part/image", "nothing"),
    "OME-TIFF": ("out.ome.tif", "read .out.ome.tif.part/level0/0/c/0/0/4", "part/image"),
    "PNG": ("out.png", "open .out.png.part/image", "part/image"),
}
"""An output, a moment after all of it was decoded, and the chunks that the same command then writes again."""


@pytest.mark.parametrize("moment", LATE)
def test_a_run_that_is_killed_late_repeats_nothing_before(inside: Path, run: Runs, moment: str) -> None:
    output, kill_in, again = LATE[moment]
    command = ["run", "in.zarr", output, *OPTIONS]
    succeeded(run(*command))
    expected = contents(Path(output))
    remove(Path(output))
    assert run(*command, kill_in=kill_in).code == -9
    end = succeeded(run(*command))
    assert f"going on with .{output}.part (finish" in end.err
    written = {change for change in end.changes if re.match("open .*part/(image|level0/|tokens/.*/c/)", change)}
    assert [change for change in written if not re.search(rf"{again}|/zarr\.", change)] == []
    assert contents(Path(output)) == expected


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_keep_the_work(inside: Path, run: Runs, name: str, code: int) -> None:
    command = ["run", "in.zarr", "out.ome.zarr", *OPTIONS]
    stopped = run(*command, kill_in="part/image/0/c/0/0/4", end=getattr(signal, name))
    assert stopped.code == code
    said = "dehazexl: error: stopped; the same command goes on, dehazexl clean out.ome.zarr removes .out.ome.zarr.part"
    assert stopped.err.splitlines()[-1] == said and not Path("out.ome.zarr").exists()
    assert stopped.err.splitlines().count("dehazexl: stopping after this batch") == 1
    again = succeeded(run(*command))
    assert re.search(r"dehazexl: going on with \.out\.ome\.zarr\.part \(decode, \d+ %\)", again.err)
    # Each stage counts the tiles that were done before.
    assert re.search(r"encode: 100%.* 22/22 ", again.err) and not Path(".out.ome.zarr.part").exists()


def test_tokens_elsewhere_are_kept(inside: Path, run: Runs) -> None:
    command = ["run", "in.zarr", "out.tif", *OPTIONS, "--tokens", "a/tokens"]
    # As soon as something else than the tokens is written.
    stopped = run(*command, kill_in=".out.tif.part/level0", end=signal.SIGTERM)
    assert stopped.err.splitlines()[-1].startswith("dehazexl: error: stopped; the same command goes on from the tokens")
    assert not Path(".out.tif.part/tokens").exists() and Path("a/tokens").is_dir()
    succeeded(run(*command))
    assert sorted(each.name for each in Path("a").iterdir()) == ["tokens"]


OTHERS = {
    "strength": (["--strength", "0.5"], "strength (1.0 then, 0.5 now)"),
    "overlap": (["--overlap", "16"], "overlap (32 then, 16 now)"),
    "precision": (["--dtype", "bfloat16"], "precision (float32 then, bfloat16 now)"),
    "pooled": (["--context", "pooled:2"], "context (nothing then, pooled:2 now)"),
    "region": (["--region", "0:200,:"], "region in its context (nothing then, 0, 200, 0, 2300 now)"),
    "region alone": (
        ["--region", "0:200,:", "--context", "region"],
        "region (all then, [0:200,0:2300] now); height (270 then, 200 now)",
    ),
    "ngff": (["--ngff", "0.4"], "ngff (0.5 then, 0.4 now)"),
}


@pytest.fixture
def killed(inside: Path, run: Runs) -> list[str]:
    """The command of a run that was killed while it wrote."""
    command = ["run", "in.zarr", "out.ome.zarr", *OPTIONS]
    assert run(*command, kill_in="part/image/0/c/0/0/1").code == -9
    return command


@pytest.mark.parametrize("other", OTHERS)
def test_what_differs_is_named_and_nothing_is_lost(run: Runs, killed: list[str], other: str) -> None:
    given, words = OTHERS[other]
    before, job = contents(Path(".out.ome.zarr.part/image")), Path(".out.ome.zarr.part/job.json").read_text()
    end = run(*killed, *given)
    (line,) = (line for line in end.err.splitlines() if line.startswith("dehazexl: error: "))
    assert end.code == 2 and words in line and line.endswith("or start again with --fresh")
    assert contents(Path(".out.ome.zarr.part/image")) == before
    assert Path(".out.ome.zarr.part/job.json").read_text() == job  # the process that was stopped, not the refused one
    fresh = succeeded(run(*killed, *given, "--fresh"))
    assert "going on" not in fresh.err


def test_an_input_that_changed_is_told_though_its_times_are_as_before(run: Runs, killed: list[str]) -> None:
    chunk = Path("in.zarr/c/0/1/0")
    times, folder_times = chunk.stat(), chunk.parent.stat()
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    os.utime(chunk, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.utime(chunk.parent, ns=(folder_times.st_atime_ns, folder_times.st_mtime_ns))
    end = run(*killed)
    said = "but in.zarr has changed since the work began (other content, though size and time are as before): restore"
    assert end.code == 2 and said in end.err
    os.utime(chunk, ns=(10**18, 4 * 10**18))
    end = run(*killed)
    said = (
        r"in\.zarr has changed since the work began \(modified 2096-10-02 07:06:40\.000\+00:00, was 20\S+ \S+\): rest"
    )
    assert end.code == 2 and re.search(said, end.err)


def test_an_input_that_changes_at_the_end_gives_no_output(
    inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note = Unfinished.note

    def noting(unfinished: Unfinished, stage: str, *values: int) -> None:
        note(unfinished, stage, *values)
        if stage == "finish":
            os.utime("in.tif", ns=(1, 1))

    monkeypatch.setattr(Unfinished, "note", noting)
    assert main(["run", "in.tif", "out.ome.zarr", *OPTIONS]) == 2
    assert "in.tif was changed or removed after it was opened" in capsys.readouterr().err
    assert not Path("out.ome.zarr").exists()


def test_the_second_of_two_runs_is_told_who_holds_the_output(inside: Path, run: Runs) -> None:
    for given, name in (([], "out.tif"), (["--tokens", "tokens"], "tokens")):
        command = ["run", "in.tif", "out.tif", *OPTIONS, *given]
        with held(Path(name)):
            end = run(*command)
        said = rf"dehazexl: error: {name} is being written by process {os.getpid()} on \S+ since .*: wait for it"
        assert end.code == 2 and re.search(said, end.err)
        assert "least.safetensors on cpu" not in end.err  # weights are not loaded for nothing
    assert sorted(each.name for each in inside.iterdir()) == [
        "changes",
        "err",
        "in.tif",
        "in.zarr",
        "least.safetensors",
    ]


# ---- An output that is replaced -----------------------------------------------------------------


@pytest.fixture
def swapped(inside: Path, run: Runs) -> tuple[list[str], dict[str, bytes]]:
    """The command of a run that was killed between the two renames of a Zarr, and the result it had."""
    command = ["run", "in.zarr", "out.ome.zarr", *OPTIONS, "--overwrite"]
    assert main(["run", "in.zarr", "out.ome.zarr", *OPTIONS, "--strength", "0"]) == 0
    succeeded(run("run", "in.zarr", "other.ome.zarr", *OPTIONS))
    assert run(*command, kill_in="os.rename out.ome.zarr").code == -9
    assert not Path("out.ome.zarr").exists()
    expected = contents(Path("other.ome.zarr"))
    return command, {name: data.replace(b"other", b"out") for name, data in expected.items()}


def test_a_replacement_that_was_killed_is_finished_by_the_same_command(
    run: Runs, swapped: tuple[list[str], dict[str, bytes]]
) -> None:
    command, expected = swapped
    again = succeeded(run(*command))
    assert "encode" not in again.err.replace("going on with .out.ome.zarr.part (encode", "")
    assert contents(Path("out.ome.zarr")) == expected and not Path(".out.ome.zarr.part").exists()


def test_a_replacement_that_was_killed_is_finished_by_any_other(
    run: Runs, swapped: tuple[list[str], dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected = swapped
    other = run("run", "in.tif", "out.ome.zarr", *OPTIONS)
    assert other.code == 2 and "out.ome.zarr exists" in other.err
    assert contents(Path("out.ome.zarr")) == expected and not Path(".out.ome.zarr.part").exists()


@pytest.mark.parametrize("command", ["status out.ome.zarr", "clean .", "clean . --yes"])
def test_status_and_clean_finish_a_replacement(
    run: Runs, swapped: tuple[list[str], dict[str, bytes]], command: str
) -> None:
    _, expected = swapped
    assert main(command.split()) == 0
    assert contents(Path("out.ome.zarr")) == expected and not Path(".out.ome.zarr.part").exists()


def test_an_old_output_comes_back_without_a_new_one(run: Runs, swapped: tuple[list[str], dict[str, bytes]]) -> None:
    shutil.rmtree(".out.ome.zarr.part/image")
    assert main(["clean", ".", "--yes"]) == 0
    _, expected = swapped
    assert contents(Path("out.ome.zarr")).keys() == expected.keys() and not Path(".out.ome.zarr.part").exists()
    assert contents(Path("out.ome.zarr")) != expected


@pytest.mark.parametrize("output", ["out.ome.zarr", "out.tif"])
def test_a_run_that_was_killed_while_it_cleaned_up_is_complete(inside: Path, run: Runs, output: str) -> None:
    """The rest of its folder must not be taken for work that goes on."""
    command, part = ["run", "in.zarr", output, *OPTIONS], f".{output}.part"
    succeeded(run(*command))
    expected = contents(Path(output))
    for moment in (f"shutil.rmtree {part}/done", f"shutil.rmtree {part}/tokens", f"os.remove {part}/job.json"):
        remove(Path(output))
        assert run(*command, kill_in=moment, after=f"os.rename {output}").code == -9
        assert Path(part).exists() and Path(output).exists()
        succeeded(run(*command))
        assert contents(Path(output)) == expected and not Path(part).exists()


# ---- status and clean ---------------------------------------------------------------------------


def test_status_of_work(run: Runs, killed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    holder = Unfinished(Path("out.ome.zarr")).holder
    # All tiles were decoded, but no block of pixels was written.
    Unfinished(Path("out.ome.zarr")).note("decode", 22, 22)
    assert main(["status", "out.ome.zarr"]) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"({holder})\n") and f"process {os.getpid()} " not in out
    assert re.fullmatch(
        r"out\.ome\.zarr: decode, 0 %, [\d.,]+ MB in \.out\.ome\.zarr\.part, "
        r"stopped \d+ s ago \(process \d+ on \S+ since .*\)\n",
        out,
    )
    with held(Path("out.ome.zarr")) as folder:
        folder.note("encode", 10, 100)
        folder.note("encode", 100, 100)
        assert main(["status", "."]) == 0
        out = capsys.readouterr().out
        assert out.startswith("out.ome.zarr: encode, 100 %, about 0 s left of encode, ")
        assert f"process {os.getpid()} on " in out and out.count("\n") == 1
        assert main(["clean", ".", "--yes"]) == 0
        assert "nothing to remove" in capsys.readouterr().out
    succeeded(run(*killed))
    assert main(["status", "out.ome.zarr"]) == 0
    assert capsys.readouterr().out == "out.ome.zarr: complete, nothing is unfinished\n"
    assert main(["status", "nothing.tif"]) == 2


def test_tiles_are_counted_before_the_first_block_is_written(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dehazexl.io.unfinished._EVERY", 0)
    noted: list[tuple[str, bool]] = []
    note = Unfinished.note

    def noting(unfinished: Unfinished, *values: Any) -> None:
        note(unfinished, *values)
        noted.append((str(unfinished.progress), (unfinished.folder / "image" / "0" / "c").exists()))

    monkeypatch.setattr(Unfinished, "note", noting)
    assert main(["run", "in.zarr", "out.ome.zarr", *OPTIONS]) == 0
    before = [progress for progress, written in noted if not written and progress.startswith("decode")]
    assert before[0] == "decode, 0 %" and len(set(before)) > 3
    assert "decode, 100 %" in dict(noted) and noted[-1] == ("finish", True)


def test_clean_lists_and_removes(run: Runs, killed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path(".mine.part").mkdir()
    assert main(["clean", "."]) == 0
    assert Path(".out.ome.zarr.part").is_dir()
    assert "nothing was removed: give --yes" in capsys.readouterr().out
    assert main(["clean", ".", "--yes"]) == 0
    assert capsys.readouterr().out.endswith(".out.ome.zarr.part was removed\n")
    assert not Path(".out.ome.zarr.part").exists() and Path(".mine.part").is_dir() and Path("in.zarr").is_dir()
    for name in ("a.tif", "b.tif"):
        with held(Path(name)) as folder:
            folder.begin({"work": name})
    assert main(["clean", "a.tif", "--yes"]) == 0
    assert not Path(".a.tif.part").exists() and Path(".b.tif.part").exists()
    assert main(["clean", "nowhere"]) == 2


# ---- Refused before weights are loaded ----------------------------------------------------------

REFUSED = {
    "--context region": "--context region needs --region",
    "--resize 1000000x1000000": "1000000 x 1000000 pixels (--resize) takes 60 TB of memory",
    "--tokens least.safetensors/tokens": "--tokens least.safetensors/tokens: nothing can be written in ",
    "--scheduler nowhere": "--scheduler nowhere is not an address (missing port number in address 'nowhere'): write",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_cannot_work_is_refused_first(inside: Path, capsys: pytest.CaptureFixture[str], given: str) -> None:
    assert main(["run", "in.tif", "out.tif", *OPTIONS, *given.split()]) == 2
    err = capsys.readouterr().err
    assert f"dehazexl: error: {REFUSED[given]}" in err.replace("error: an image of ", "error: ")
    assert "least.safetensors on cpu" not in err and not Path(".out.tif.part").exists()


def test_fresh_does_not_replace(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.tif").touch()
    assert main(["run", "in.tif", "out.tif", *OPTIONS, "--fresh"]) == 2
    said = "out.tif is complete, and --fresh starts unfinished work again: replace it with --overwrite"
    assert said in capsys.readouterr().err


def test_the_size_of_work_that_is_under_way(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"12345")
    stop = Event()

    def work() -> None:  # as chunks of tokens come and go
        while not stop.is_set():
            for name in "abcdefgh":
                (tmp_path / name / "c" / "0").mkdir(parents=True)
                (tmp_path / name / "c" / "0" / "1").touch()
            for name in "abcdefgh":
                shutil.rmtree(tmp_path / name)

    with ThreadPoolExecutor() as pool:
        working = pool.submit(work)
        try:
            assert {size(tmp_path) for _ in range(500)} == {5}
        finally:
            stop.set()
        working.result()
