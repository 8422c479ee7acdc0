"""Runs of the command line in processes that are killed at a chosen change of the unfinished output.

As a script, it forks a process for each line of its standard input. The heavy modules are imported once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "open")
WRITING = os.O_WRONLY | os.O_RDWR


class Run(NamedTuple):
    """End of a run: its exit code, or minus the signal; the changes of unfinished outputs; and its stderr."""

    code: int
    changes: list[str]
    err: str


class Runs:
    """Runs in a folder, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.log, self.folder = folder / "changes.txt", folder
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(
        self, *args: str, kill_at: int = -1, kill_in: str = "", after: str = "", end: int = signal.SIGKILL
    ) -> Run:
        """Run a command; send its process a signal before change `kill_at`, or before one whose name has `kill_in`.

        The latter is looked for after a change whose name has `after`; it may be ``read PATH``, which is no change.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"args": args, "kill_at": kill_at, "kill_in": kill_in, "after": after, "end": int(end)}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        return Run(code, Path(self.folder, "changes").read_text().splitlines(), Path(self.folder, "err").read_text())

    def close(self) -> None:
        """End the script."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def audited(kill_at: int, kill_in: str, after: str, end: int) -> None:
    """Record the changes of unfinished outputs, and send this process a signal before one of them."""
    log = os.open("changes", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    count = 0

    def audit(event: str, values: tuple[Any, ...]) -> None:
        nonlocal count, kill_in, after
        if event not in CHANGES:
            return
        name = values[1] if event == "os.rename" else values[0]
        if isinstance(name, int) or not any(".part" in str(each) for each in values[: 1 + (event == "os.rename")]):
            return
        name = os.fspath(name)
        # How often the progress is written depends on the time; elsewhere, it is tried what a format can hold.
        if "progress.json" in name or os.path.relpath(name).startswith(".."):
            return
        reads = event == "open" and not values[2] & WRITING
        said = f"read {os.path.relpath(name)}" if reads else f"{event} {name}"
        if not reads:
            os.write(log, f"{said}\n".encode())
        found = kill_in and not after and kill_in in said and reads == kill_in.startswith("read ")
        if found or (count == kill_at and not reads):
            os.kill(os.getpid(), end)
            kill_in = ""  # once
        if after in said and not reads:
            after = ""
        count += not reads

    sys.addaudithook(audit)


def child(args: Sequence[str], kill_at: int, kill_in: str, after: str, end: int) -> int:
    """Run a command in this process, with stderr in a file."""
    from dehazexl.cli.app import main

    err = os.open("err", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(err, 2)
    os.dup2(err, 1)  # stdout answers the test
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # heeded, even where the tests run under nohup
        signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    audited(kill_at, kill_in, after, end)
    return main(args)


def serve() -> None:
    """Fork a process for each line of standard input, and print its exit code."""
    import dask.array
    import torch
    import zarr

    import dehazexl.cli.run
    import dehazexl.engine.dehaze
    import dehazexl.model.weights

    assert dask.array and torch and zarr and dehazexl
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = child(**order)
            finally:
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
