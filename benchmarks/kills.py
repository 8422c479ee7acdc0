"""Kill `dehazexl run` at random moments, repeat it until it is complete, and compare with a run that was not killed.

python benchmarks/kills.py [--kills 200] [--size 6144x8192] [--weights compact] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from machine import save_result
from memory import make

OUTPUTS = ("clear.ome.zarr", "clear.tif")
STAGES = {"start": 0.1, "encode": 0.3, "fuse": 0.02, "decode": 0.3, "finish": 0.02}
"""Stages, and the longest time from the begin of each to a kill, as a share of the whole time."""
COUNTED = """
import os, sys
import dehazexl.cli.run as run
from dehazexl.cli.app import main
from dehazexl.model import DehazeXL

log = os.open(sys.argv.pop(1), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
stage, bar = [""], run.bar

def staged(name, *rest):
    stage[0] = name
    os.write(log, f"{name} 0\\n".encode())
    return bar(name, *rest)

def counted(method, when):
    def call(self, x, *rest):
        if stage[0] == when:
            os.write(log, f"{when} {len(x)}\\n".encode())
        return method(self, x, *rest)
    return call

run.bar = staged
DehazeXL.encode, DehazeXL.decode = counted(DehazeXL.encode, "encode"), counted(DehazeXL.decode, "decode")
sys.exit(main())
"""
"""Runs the command line, and logs the tiles of each batch before they are computed."""


class Killed:
    """Runs of one command that are killed.

    Parameters
    ----------
    source, output, weights
        Arguments of `dehazexl run`.
    """

    def __init__(self, source: Path, output: Path, weights: str) -> None:
        self.output, self.log = output, output.with_name("tiles.log")
        self.part = output.with_name(f".{output.name}.part")
        run = ["run", str(source), str(output), "--weights", weights, "--device", "cpu", "--dtype", "float32"]
        self.command = [sys.executable, "-c", COUNTED, str(self.log), *run]

    def run(self, stage: str = "", seconds: float = 0) -> bool:
        """Run the command, and kill it some seconds after a stage began; return whether it was complete before."""
        began, before = time.time(), len(self.log.read_text()) if self.log.exists() else 0
        err = self.log.with_suffix(".err")
        with err.open("w") as file, subprocess.Popen(self.command, stderr=file, stdout=file) as process:
            while process.poll() is None and not (stage and self.reached(stage, began, before)):
                time.sleep(0.01)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                return False
        if code:
            raise RuntimeError(f"code {code}: {err.read_text().splitlines()[-1]}")
        return True

    def reached(self, stage: str, began: float, before: int) -> bool:
        """Return whether the process that began then has begun a stage."""
        if stage == "start":
            return True
        if stage == "finish":
            noted = self.noted()
            return noted.get("stage") == stage and noted["noted"] > began
        return self.log.exists() and f"{stage} 0\n" in self.log.read_text()[before:]

    def noted(self) -> dict[str, Any]:
        """Return the progress that the command noted last."""
        try:
            noted = json.loads((self.part / "progress.json").read_text())
        except OSError:
            return {"stage": "start"}
        return dict(noted)

    def tiles(self) -> Counter[str]:
        """Return the number of tiles that were encoded and decoded since the last call."""
        count: Counter[str] = Counter()
        for line in self.log.read_text().splitlines():
            stage, tiles = line.split()
            count[stage] += int(tiles)
        self.log.unlink()
        return count

    def contents(self) -> dict[str, bytes]:
        """Return the bytes of all files of the output, and remove it."""
        files = [self.output] if self.output.is_file() else [f for f in self.output.rglob("*") if f.is_file()]
        found = {str(file.relative_to(self.output)): file.read_bytes() for file in files}
        if self.output.is_dir():
            shutil.rmtree(self.output)
        else:
            self.output.unlink()
        return found


def measure(killed: Killed, kills: int, chance: random.Random) -> dict[str, Any]:
    """Kill a command so many times, at random moments of random stages."""
    start = time.perf_counter()
    killed.run()
    seconds = time.perf_counter() - start
    expected, once = killed.contents(), killed.tiles()
    stages: Counter[str] = Counter()
    twice: Counter[str] = Counter()
    complete = identical = 0
    spent = time.perf_counter()
    while stages.total() < kills:
        stage = chance.choice(list(STAGES))
        if not killed.run(stage, chance.uniform(0, seconds * STAGES[stage])):
            stages[killed.noted()["stage"]] += 1
            if killed.output.exists() and not killed.part.exists():  # it was complete already
                pass
            elif stages.total() < kills:
                continue
            else:
                killed.run()
        complete += 1
        identical += killed.contents() == expected
        twice += killed.tiles() - once
    return {
        "output": killed.output.name,
        "kills": stages.total(),
        "stages": dict(stages),
        "seconds_uninterrupted": round(seconds, 1),
        "seconds_spent": round(time.perf_counter() - spent, 1),
        "complete": complete,
        "identical": identical,
        "tiles": dict(once),
        "tiles_done_twice": dict(twice),
    }


def main() -> None:
    """Measure each kind of output, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--size", default="6144x8192")
    parser.add_argument("--weights", default="compact")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=".")
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    chance, runs = random.Random(args.seed), []
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        make(folder / "hazy.tif", height, width)
        for output in OUTPUTS:
            killed = Killed(folder / "hazy.tif", folder / output, args.weights)
            runs.append(measure(killed, args.kills // len(OUTPUTS), chance))
            # Saved after each kind, because runs are long.
            save_result("kills", height=height, width=width, weights=args.weights, cores=os.cpu_count(), runs=runs)


if __name__ == "__main__":
    main()
