"""The commands `dehazexl status` and `dehazexl clean`: unfinished work, and its removal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dehazexl.io.unfinished import Unfinished, held, output_of, part_of


def status(output: Path) -> Iterator[str]:
    """Yield a line on each unfinished image in or next to OUTPUT, or one that says that it is complete.

    Raises
    ------
    FileNotFoundError
        If there is neither an output nor unfinished work on it.
    """
    found = unfinished_at(output)
    for unfinished in found:
        settle(unfinished)
        if unfinished.folder.is_dir():
            yield describe(unfinished)
    if not any(unfinished.folder.is_dir() for unfinished in found):
        if not output.exists():
            raise FileNotFoundError(f"{output} does not exist, and there is no unfinished work on it")
        yield f"{output}: complete, nothing is unfinished"


def unfinished_at(output: Path) -> list[Unfinished]:
    """Return the unfinished images in or next to OUTPUT."""
    found = list(unfinished_in(output)) if output.is_dir() else []
    return found + ([Unfinished(output)] if output.name and part_of(output).is_dir() else [])


def unfinished_in(folder: Path) -> Iterator[Unfinished]:
    """Yield the unfinished images in a folder, whose subfolders are not searched."""
    for part in sorted(folder.glob(part_of(Path("*")).name)):
        if (part / "lock").exists() or (part / "job.json").exists():
            yield output_of(part)


def settle(unfinished: Unfinished) -> None:
    """Finish the replacement of an output that was killed in between, unless a process is at work."""
    if unfinished.between_names and not unfinished.busy():
        with held(unfinished.path):
            if unfinished.moved:
                unfinished.finish(overwrite=False)


def describe(unfinished: Unfinished) -> str:
    """Describe unfinished work in one line: stage, share, time left, size on disk, and the process."""
    busy = unfinished.busy()
    progress = unfinished.progress if busy else unfinished.kept
    words = ["complete, but has not got its name" if unfinished.complete else str(progress or "at the beginning")]
    if busy and progress is not None and progress.seconds_left is not None:
        words.append(f"about {duration(progress.seconds_left)} left of {progress.stage}")
    words.append(f"{size(unfinished.folder) / 1e6:,.1f} MB in {unfinished.folder}")
    words.append(unfinished.holder if busy else f"stopped {duration(age(unfinished))} ago ({unfinished.holder})")
    return f"{unfinished.path}: {', '.join(words)}"


def clean(unfinished: Unfinished) -> str:
    """Remove unfinished work, but nothing that is complete or that a process holds; return a line for the user."""
    try:
        with held(unfinished.path):
            if not unfinished.complete:
                unfinished.clear()
                return f"{unfinished.folder} was removed"
            if unfinished.path.exists():
                return f"{unfinished.folder / 'image'} is complete and was kept: move it, or remove it yourself"
            unfinished.finish(overwrite=False)
            return f"{unfinished.path} was complete, and has its name now"
    except OSError as error:
        return f"{unfinished.folder} was kept: {error}"


def size(folder: Path) -> int:
    """Return the bytes of all files in a folder; files and folders that vanish meanwhile do not count."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += (Path(place) / name).stat().st_size
    return total


def age(unfinished: Unfinished) -> float:
    """Return the seconds since the last sign of progress."""
    progress = unfinished.progress
    return time.time() - (unfinished.folder.stat().st_mtime if progress is None else progress.noted)


def duration(seconds: float) -> str:
    """Format a time in its largest fitting unit."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
