"""Time from a clone to a dehazed image on screen, following the README alone.

    python benchmarks/first_use.py [--constraint constraints.txt]

Clones the repository into a temporary folder, makes a virtual environment, and gives the commands of the README in
order, without the cache of pip. Downloads are measured apart: all wheels are fetched before the line that installs
them. The window is a real one (without a screen: ``xvfb-run -a``), in which **Dehaze** is clicked once.
Saves ``benchmarks/results/first_use.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUILD = ("hatchling", "hatch-fancy-pypi-readme")
"""Requirements of the build, which pip downloads as well."""


def readme_lines(readme: Path) -> list[list[str]]:
    """Return the words of the README's shell lines, in their order."""
    blocks = re.findall(r"```sh\n(.*?)```", readme.read_text(encoding="utf-8"), re.S)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [words for words in lines if words]


class Steps:
    """The steps, and their seconds by name."""

    def __init__(self, clone: Path, constraint: Path | None) -> None:
        self.clone, self.seconds = clone, dict[str, float]()
        self.bin = clone.parent / "venv" / ("Scripts" if os.name == "nt" else "bin")
        self.env = {**os.environ, "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self.env |= {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(self.bin.parent)}
        for name in ("PYTHONPATH", "PYTHONHOME"):
            self.env.pop(name, None)
        if constraint is not None:
            self.env["PIP_CONSTRAINT"] = str(constraint.absolute())

    def timed(self, name: str, do: Callable[[], object]) -> None:
        """Do a step."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        do()
        self.seconds[name] = round(time.perf_counter() - start, 1)

    def give(self, words: list[str], **env: str) -> str:
        """Give a command in the clone and return its output."""
        command, env = [str(self.bin / words[0]), *words[1:]], self.env | env
        return subprocess.run(command, cwd=self.clone, env=env, check=True, stdout=subprocess.PIPE).stdout.decode()


def follow(scratch: Path, constraint: Path | None) -> dict[str, Any]:
    """Follow the README."""
    clone, wheels = scratch / "clone", scratch / "wheels"
    steps = Steps(clone, constraint)
    steps.timed("clone", lambda: subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True))
    install, demo, run, window = commands(clone / "README.md")
    steps.timed("make a virtual environment", lambda: venv.create(steps.bin.parent, with_pip=True))
    fetch = ["pip", "wheel", "--quiet", "--wheel-dir", str(wheels), install[-1], *BUILD]
    steps.timed("download", lambda: steps.give(fetch))
    downloaded = steps.seconds.pop("download")
    local = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    steps.timed(shlex.join(install), lambda: steps.give(install, **local))
    steps.timed(shlex.join(demo), lambda: steps.give(demo))
    steps.timed(shlex.join(run), lambda: steps.give(run))
    assert (clone / run[-1]).stat().st_size > 0
    script, seen = str(Path(__file__).absolute()), dict[str, Any]()
    watch = ["python", script, "--window", *window[1:]]
    steps.timed(shlex.join(window), lambda: seen.update(json.loads(steps.give(watch).splitlines()[-1])))
    return {
        "own_work_s": round(sum(steps.seconds.values()), 1),
        "steps_s": steps.seconds,
        "window": seen,
        "download_s": downloaded,
        "download_gb": round(size(wheels), 2),
        "installed_gb": round(size(steps.bin.parent), 2),
    }


def commands(readme: Path) -> list[list[str]]:
    """Return the README's lines that install, make an image, dehaze it and open the window."""
    lines = readme_lines(readme)
    starts = (["pip", "install"], ["dehazexl", "demo"], ["dehazexl", "run"], ["napari"])
    return [next(words for words in lines if words[: len(start)] == start) for start in starts]


def size(folder: Path) -> float:
    """Return the gigabytes that the files of a folder take on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if not path.is_symlink()) / 1e9


def watch_window(words: list[str]) -> None:
    """Start napari with the words of its command, click Dehaze, and print the seconds of each stage as JSON."""
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    from napari.__main__ import main
    from napari.qt import get_qapp
    from qtpy.QtCore import QTimer

    stages = clicked_once(lambda name: seconds.update({name: round(time.perf_counter() - start, 1)}))
    get_qapp()
    timer = QTimer()
    timer.timeout.connect(lambda: next(stages, None))
    timer.start(20)
    sys.argv = ["napari", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    assert "dehazed at full resolution" in seconds, seconds
    print(json.dumps({**seconds, "clicks": 1}))


def clicked_once(reached: Callable[[str], object]) -> Iterator[None]:
    """Look at the window again and again; click Dehaze when the image is shown, close it when it is dehazed."""
    import napari
    from qtpy.QtCore import Qt
    from qtpy.QtTest import QTest
    from qtpy.QtWidgets import QApplication, QPushButton

    def button() -> QPushButton | None:
        found = [each for each in QApplication.allWidgets() if isinstance(each, QPushButton) and each.isVisible()]
        return next((each for each in found if each.text() == "Dehaze" and each.isEnabled()), None)

    while (viewer := napari.current_viewer()) is None or not len(viewer.layers) or button() is None:
        yield
    reached("hazy image and widget on screen")
    known = len(viewer.layers)
    QTest.mouseClick(button(), Qt.MouseButton.LeftButton)
    while len(viewer.layers) == known:
        yield
    reached("dehazed layer on screen")
    sessions = [getattr(each.metadata.get("dehazexl"), "session", None) for each in viewer.layers]
    (session,) = [each for each in sessions if each is not None]
    yield
    while not session.wait(0.001):
        yield
    reached("dehazed at full resolution")
    viewer.close()


def parse() -> argparse.Namespace:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--constraint", type=Path, help="versions to install, as constraints.txt of the repository")
    parser.add_argument("--window", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    args = parse()
    if args.window is not None:
        watch_window(args.window)
    else:
        from machine import save_result

        with tempfile.TemporaryDirectory() as scratch:
            save_result("first_use", **follow(Path(scratch), args.constraint))
