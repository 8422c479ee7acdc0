"""Faults of disks, sources and clusters: each run ends in success or one clear line, and its work is used again.

python benchmarks/faults.py [--faults full-disk read-only ...] [--size 1100x1500] [--weights compact]

Every output is compared with that of a run without a fault. Saves ``results/faults.json``.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from cluster import equal, kill_worker, make
from machine import RESULTS, save_result
from zarr.storage import LocalStore, WrapperStore

import dehazexl
from dehazexl.io.unfinished import part_of

OBEYING = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
"""Command before another one that makes the administrator obey permissions, too."""
GROWTH = 1.5
"""Factor by which a full disk grows before the next try."""
MOST = 60
"""Tries of one command at most."""


class Bench:
    """A hazy image, a folder, and what a run without a fault makes of the image.

    Parameters
    ----------
    folder, size, weights
        Folder to work in, height and width of the image, and the weights.
    pause
        Seconds between two kills of a worker: it needs some to start.
    """

    def __init__(self, folder: Path, size: tuple[int, int], weights: str, pause: float) -> None:
        self.folder, self.weights, self.pause = folder, weights, pause
        self.source, self.expected = folder / "in.zarr", folder / "expected.ome.zarr"
        make(self.source, *size)
        assert self.run(self.expected)["code"] == 0

    def start(self, target: Path, *options: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Start a run of the command line, with another command before it."""
        command = [
            *before,
            sys.executable,
            "-m",
            "dehazexl",
            "run",
            str(self.source),
            str(target),
            "--weights",
            self.weights,
        ]
        command += ["--device", "cpu", "--dtype", "float32", *options]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def end(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Wait for a run; return its exit code, its lines for the user, and whether it went on with earlier work."""
        _, err = process.communicate()
        said = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("dehazexl: ")]
        errors = [line for line in said if line.startswith("dehazexl: error: ")]
        return {
            "code": process.returncode,
            "error": errors[-1] if errors else "",
            "clear": process.returncode == 0 or (len(errors) == 1 and "Traceback" not in err),
            "went_on": any("going on with" in line for line in said),
        }

    def run(self, target: Path, *options: str, before: tuple[str, ...] = ()) -> dict[str, Any]:
        """Run the command line."""
        return self.end(self.start(target, *options, before=before))

    def result(self, fault: str, tries: list[dict[str, Any]], target: Path, **further: Any) -> dict[str, Any]:
        """Sum up the tries of one command, whose last one must have succeeded."""
        return {
            "fault": fault,
            "runs": len(tries),
            "failed": sum(each["code"] != 0 for each in tries),
            "clear": all(each["clear"] for each in tries),
            "errors": sorted({shown(each["error"], self.folder) for each in tries} - {""}),
            "went_on": sum(each["went_on"] for each in tries),
            "identical": tries[-1]["code"] == 0 and equal(target, self.expected),
            "left": part_of(target).exists(),
            **further,
        }


def shown(line: str, folder: Path) -> str:
    """Return a line without the name of a temporary folder."""
    return line.replace(str(folder), "FOLDER")


def full_disk(bench: Bench) -> Iterator[dict[str, Any]]:
    """Write to a disk that is full, and grows a little before each next try."""
    for name, options in (("clear.ome.zarr", ()), ("clear.tif", ())):
        disk = bench.folder / "disk"
        disk.mkdir(exist_ok=True)
        size, target, tries = 2**18, disk / name, []
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False)
        if mount.returncode:
            yield {"fault": f"full disk, {name}", "skipped": "no disk may be mounted here"}
            return
        try:
            while not tries or (tries[-1]["code"] and len(tries) < MOST):
                tries.append(bench.run(target, "--unchecked", *options))
                size = int(size * GROWTH)
                subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
            if name.endswith(".tif"):
                yield bench.result(f"full disk, {name}", tries, as_zarr(target, bench), disk_bytes=size)
            else:
                yield bench.result(f"full disk, {name}", tries, target, disk_bytes=size)
        finally:
            subprocess.run(["umount", disk], check=True)


def as_zarr(path: Path, bench: Bench) -> Path:
    """Return the pixels of a TIFF as a Zarr, to be compared."""
    return dehazexl.to_zarr(dehazexl.open_image(path).levels[0], bench.folder / f"{path.stem}.zarr", overwrite=True)


def read_only(bench: Bench) -> Iterator[dict[str, Any]]:
    """Write into a folder that the user may not change, then into the same when that is allowed."""
    before = OBEYING if os.getuid() == 0 else ()
    if before and shutil.which(before[0]) is None:
        yield {"fault": "read-only folder", "skipped": "an administrator may write anywhere here"}
        return
    folder = bench.folder / "locked"
    folder.mkdir()
    folder.chmod(0o555)
    target = folder / "clear.ome.zarr"
    tries = [bench.run(target, before=before)]
    kept = not any(folder.iterdir())
    folder.chmod(0o755)
    tries.append(bench.run(target, before=before))
    yield bench.result("read-only folder", tries, target, nothing_written=kept)


class Faulty(WrapperStore[LocalStore]):
    """A store of which one in so many reads of a chunk fails: seldom enough that all chunks can be read in between."""

    every = reads = 0

    async def get(self, key: str, *rest: Any, **options: Any) -> Any:
        """Return the bytes of a file, or fail."""
        if "c/" in key:
            type(self).reads += 1
            if type(self).reads % self.every == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO), key)
        return await super().get(key, *rest, **options)


def flaky_source(bench: Bench) -> Iterator[dict[str, Any]]:
    """Read by Python from a store that fails now and then."""
    node, target = zarr.open(Faulty(LocalStore(bench.source, read_only=True)), mode="r"), bench.folder / "flaky.zarr"
    Faulty.every = 10**9
    tries = [dehazed(bench, node, target)]
    Faulty.every = Faulty.reads  # of a run without a fault; the first fault comes while it encodes
    Faulty.reads -= Faulty.every // 3
    shutil.rmtree(bench.folder / "flaky")
    tries.clear()
    while not tries or (tries[-1]["code"] and len(tries) < MOST):
        tries.append(dehazed(bench, node, target))
    yield bench.result("source that fails now and then", tries, target, one_read_fails_in=Faulty.every)


def dehazed(bench: Bench, node: Any, target: Path) -> dict[str, Any]:
    """Dehaze a Zarr by Python, with tokens in a folder; return what a run of the command line returns."""
    tokens = bench.folder / "flaky"
    went_on = any(tokens.rglob("c/*/*/*/*"))
    try:
        image = dehazexl.open_image(node)
        model = dehazexl.load_model(bench.weights, "cpu", "float32")
        dehazexl.to_zarr(dehazexl.dehaze(image, model, tokens=tokens), target, image, overwrite=True)
    except OSError as error:
        return {"code": 1, "error": str(error), "clear": "\n" not in str(error), "went_on": went_on}
    return {"code": 0, "error": "", "clear": True, "went_on": went_on}


@contextmanager
def program(module: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of dask, and kill it at the end."""
    command = [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard", *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds, or a process has ended."""
    while not condition() and process.poll() is None:
        time.sleep(0.1)


def noted(target: Path) -> str:
    """Return the stage of a run."""
    try:
        return str(json.loads((part_of(target) / "progress.json").read_text())["stage"])
    except (OSError, ValueError, KeyError):
        return ""


def lost_scheduler(bench: Bench) -> Iterator[dict[str, Any]]:
    """Kill the scheduler of a cluster in each stage, and start it again with a new worker, or not at all."""
    for stage, again in (("encode", True), ("decode", True), ("encode", False)):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        address, target = f"tcp://127.0.0.1:{port}", bench.folder / f"restarted-{stage}-{again}.ome.zarr"
        with (
            program("dask_scheduler", "--host", "127.0.0.1", "--port", port) as scheduler,
            program("dask_worker", address, "--nthreads", "1", "--no-nanny"),
        ):
            process = bench.start(target, "--scheduler", address)
            wait_for(lambda stage=stage, target=target: noted(target) == stage, process)  # type: ignore[misc]
            scheduler.send_signal(signal.SIGKILL)
            scheduler.wait()
        if again:
            with (
                program("dask_scheduler", "--host", "127.0.0.1", "--port", port),
                program("dask_worker", address, "--nthreads", "1", "--no-nanny"),
            ):
                tries = [bench.end(process)]
        else:
            tries = [bench.end(process)]
        if tries[-1]["code"]:
            tries.append(bench.run(target))
        yield bench.result(f"scheduler killed in {stage}, {'started again' if again else 'for good'}", tries, target)


def killed_workers(bench: Bench) -> Iterator[dict[str, Any]]:
    """Kill one of two workers every few seconds."""
    target, killed = bench.folder / "killed.ome.zarr", 0
    process = bench.start(target, "--workers", "2")
    while process.poll() is None:
        try:
            process.wait(bench.pause)
        except subprocess.TimeoutExpired:
            killed += kill_worker(process.pid)
    tries = [bench.end(process)]
    if tries[-1]["code"]:
        tries.append(bench.run(target))
    yield bench.result(f"a worker killed every {bench.pause:.0f} s", tries, target, killed=killed)


FAULTS: dict[str, Callable[[Bench], Iterator[dict[str, Any]]]] = {
    "full-disk": full_disk,
    "read-only": read_only,
    "flaky-source": flaky_source,
    "lost-scheduler": lost_scheduler,
    "killed-workers": killed_workers,
}


def main() -> None:
    """Try the faults, and save what came of them; those that are not tried again are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--size", default="1100x1500", help="HEIGHTxWIDTH")
    parser.add_argument("--pause", type=float, default=10, help="seconds between two kills of a worker")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many threads with workers as without: the bits depend on it
    height, width = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        bench = Bench(Path(name), (height, width), args.weights, args.pause)
        for fault in args.faults:
            rows = list(FAULTS[fault](bench))
            path = RESULTS / "faults.json"
            before = json.loads(path.read_text())["faults"] if path.exists() else {}
            save_result("faults", faults={**before, fault: [{"size": args.size, **row} for row in rows]})
            if bad := [row["fault"] for row in rows if not row.get("skipped") and not sound(row)]:
                raise SystemExit(f"not as promised: {', '.join(bad)}")


def sound(row: dict[str, Any]) -> bool:
    """Return whether each run of a fault ended as promised."""
    return bool(row["clear"] and row["identical"] and not row["left"])


if __name__ == "__main__":
    main()
