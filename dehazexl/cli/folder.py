"""Several images: each is dehazed after the other, an error costs one of them, and a report lists all."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehazexl.cli.errors import format_error, one_of_several
from dehazexl.cli.progress import tell
from dehazexl.cli.run import Result, Settings, check_task, dehaze_file, made
from dehazexl.cli.tasks import check_alone
from dehazexl.io.unfinished import Unfinished

if TYPE_CHECKING:
    from dehazexl.cli.tasks import Task
    from dehazexl.model import DehazeXL


class Report:
    """A table of all images as CSV, with a row as soon as an image is done.

    Parameters
    ----------
    path
        The file; an older report is replaced, any other file is not. None writes nothing.

    Raises
    ------
    FileNotFoundError
        If its folder does not exist.
    FileExistsError
        If there is a file that is not a report.
    """

    COLUMNS = ("input", "output", "state", "seconds", "size", "message")

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        if path is None:
            return
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first, or choose another")
        if path.exists() and not self._is_report():
            raise FileExistsError(f"{path} is not a report of dehazexl, and is kept: choose another name for --report")
        self._write("w", self.COLUMNS)

    def _is_report(self) -> bool:
        assert self.path is not None
        with self.path.open("rb") as file:
            head = file.readline(100).decode("utf-8", "replace").strip()
        return self.path.is_file() and head in ("", ",".join(self.COLUMNS))

    def add(self, task: Task, state: str, seconds: float = 0.0, size: str = "", message: str = "") -> None:
        """Add a row: state is done, failed, skipped or stopped, size is width x height in pixels."""
        if self.path is not None:
            self._write("a", (task.source, task.output, state, f"{seconds:.1f}", size, " ".join(message.split())))

    def _write(self, mode: str, row: Sequence[object]) -> None:
        assert self.path is not None
        # Names of files need not be text.
        with self.path.open(mode, newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerow(row)


def run(
    tasks: Sequence[Task],
    folder: Path | None,
    settings: Settings,
    load: Callable[[Path], DehazeXL],
    echo: Callable[[Task, str], object],
    report: Path | None = None,
) -> Iterator[Result]:
    """Do the tasks, one after the other, after checking all of them.

    Parameters
    ----------
    tasks, folder, settings
        Tasks, folder of the outputs (created if it does not exist), and settings.
    load
        Loads the network of a weights file.
    echo
        Called with each task that failed and a message, if there are several; the others go on.
    report
        CSV file with a row for each task, see `Report`; or None.

    Yields
    ------
    Result
        Result of each finished task.

    Raises
    ------
    FileExistsError, FileNotFoundError, TypeError, ValueError, OSError
        See `tasks.plan`, `io.open.open_image`, `io.write.write`.
    """
    several = len(tasks) > 1
    with made(folder):
        table = Report(report)
        attempt = partial(attempted, echo=echo if several else None, report=table, make=folder is not None)
        tasks = [task for task in tasks if attempt(task, is_alone)]
        tasks = without_existing(tasks, settings, table)
        ready = [task for task in tasks if attempt(task, check_task, settings)]
        files = list(dict.fromkeys(task.weights for task in tasks))
        for file in files[1:]:
            load(file)
        for file in files:
            model = load(file)
            for task in (task for task in ready if task.weights == file):
                result = attempt(task, dehaze_file, model, settings, keep_bars=not several)
                if result:
                    table.add(task, "done", result.seconds, f"{result.width}x{result.height}", "; ".join(result.notes))
                    yield result


def is_alone(task: Task) -> bool:
    """Return True if no other task has the same output; else raise ValueError."""
    check_alone([task.source, *task.rivals], task.output)
    return True


def attempted(
    task: Task,
    act: Callable[..., Any],
    *arguments: Any,
    echo: Callable[[Task, str], object] | None,
    report: Report,
    make: bool,
    **options: Any,
) -> Any:
    """Do something with a task, its folder made for it; return None after an error, which is reported."""
    with reported(task, echo, report), made(task.output.parent if make else None):
        return act(task, *arguments, **options)


@contextmanager
def reported(task: Task, echo: Callable[[Task, str], object] | None, report: Report) -> Iterator[None]:
    """Report a task that fails or is stopped; echo its error if it is one of several, see `one_of_several`."""
    started = time.perf_counter()
    with one_of_several(task.source, echo and partial(echo, task)):
        try:
            yield
        except Exception as error:
            report.add(task, "failed", time.perf_counter() - started, message=format_error(error))
            raise
        except KeyboardInterrupt:
            report.add(task, "stopped", time.perf_counter() - started)
            raise


def without_existing(tasks: Sequence[Task], settings: Settings, report: Report) -> Sequence[Task]:
    """Leave out the tasks whose outputs exist, if that is wanted.

    Raises
    ------
    FileExistsError
        If some of several outputs exist, and nothing was said about them. A single one is checked later.
    """
    existing = [task for task in tasks if task.output.exists() and not Unfinished(task.output).moved]
    if settings.skip_existing:
        if existing:
            tell(f"{len(existing)} of {len(tasks)} outputs exist and are skipped")
        for task in existing:
            report.add(task, "skipped")
        return [task for task in tasks if task not in existing]
    if existing and len(tasks) > 1 and not settings.overwrite:
        raise FileExistsError(
            f"{len(existing)} of {len(tasks)} outputs exist, such as {existing[0].output}: keep them with "
            "--skip-existing, replace them with --overwrite, or choose another folder"
        )
    return tasks
