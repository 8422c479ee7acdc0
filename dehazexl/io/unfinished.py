"""The folder of an unfinished output, ``.NAME.part`` next to it: all that is kept until the output is complete.

| name | contents |
|---|---|
| ``lock`` | locked by the process at work; the lock ends with its process |
| ``job.json`` | description of the work, and the process |
| ``progress.json`` | stage, and the part of it that is done |
| ``tokens``, ``level0``, ``image``, ``done`` | the work, and the marks of its finished parts |
| ``complete`` | marks ``image`` as complete |
| ``old`` | the previous output while it is replaced |
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehazexl.io.content import INPUT, changed_in_words
from dehazexl.io.disk import atomic_write
from dehazexl.io.level0 import share_done

if TYPE_CHECKING:
    from filelock import BaseFileLock

TOKENS, IMAGE, LEVEL0, MARKS = "tokens", "image", "level0", "done"
"""Names of the work in the folder."""

DECODE = "decode"
"""Name of the stage that counts tiles before their pixels are on the disk."""

_LOCK, _JOB, _PROGRESS, _COMPLETE, _OLD = "lock", "job.json", "progress.json", "complete", "old"
_METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
_WAIT = 1.0
"""Seconds to wait for a lock: `Unfinished.busy` holds it for a moment."""
_EVERY = 1.0
"""Seconds between two notes of the progress."""
_ABSENT = "nothing"


def part_of(path: Path) -> Path:
    """Return the folder of an unfinished output."""
    return path.with_name(f".{path.name}.part")


@dataclass(frozen=True)
class Progress:
    """Progress of unfinished work.

    Attributes
    ----------
    stage
        Name of the stage.
    done, total, first
        Units that are done, units of the stage (0 if unknown), and units that were done when it began.
    began, noted
        Times of the begin and of this note, in seconds since the epoch.
    """

    stage: str
    done: int
    total: int
    first: int
    began: float
    noted: float

    def __str__(self) -> str:
        return f"{self.stage}, {100 * self.done // self.total} %" if self.total else self.stage

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest of the stage takes at the speed so far, or None if that is unknown."""
        if self.done <= self.first or not self.total:
            return None
        return (self.total - self.done) * (self.noted - self.began) / (self.done - self.first)


class Unfinished:
    """The folder of an unfinished output.

    Parameters
    ----------
    path
        The output.

    Attributes
    ----------
    path, folder : Path
        The output and the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, part_of(path)
        self._progress: Progress | None = None
        self._begun = False

    def begin(self, job: Mapping[str, Any] | None, fresh: bool = False) -> bool:
        """Prepare the folder, which this process holds, for some work.

        Parameters
        ----------
        job
            Description of the work in values of JSON; the same work goes on. None describes work that cannot go on.
        fresh
            Remove unfinished work, whatever it is, and start again.

        Returns
        -------
        bool
            Whether work that was begun before goes on.

        Raises
        ------
        ValueError
            If the folder contains other unfinished work, naming the differences; it is kept.
        """
        new, old = _plain(job), self.job
        if new is not None and new == old and not fresh:
            for partial in self.folder.rglob("*.partial"):  # writes of Zarr that were killed
                partial.unlink()
            self._begun = True
            return True
        if self.complete:
            raise ValueError(
                f"{self.folder / IMAGE} is a complete image that has not got its name {self.path}: move it"
            )
        if old is not None and not fresh and not self.moved:
            raise ValueError(self._refusal(old, new))
        self.clear()
        self._write(new)
        self._begun = True
        return False

    def _refusal(self, old: Mapping[str, Any], new: Mapping[str, Any] | None) -> str:
        if new is None:
            return (
                f"{self.folder} holds unfinished work on {self.path}: repeat its command to go on, or remove it with "
                f"{self.removal}"
            )
        if changed := changed_in_words(old, new):
            old, new = (
                {name: value for name, value in each.items() if not name.startswith(INPUT)} for each in (old, new)
            )
        further = "; ".join(differences(old, new))
        reasons = [f"holds unfinished work that differs in {further}" if further else "holds unfinished work"]
        reasons += [f"but {changed}"] if changed else []
        return f"{self.folder} {', '.join(reasons)}: restore that to go on, or start again with --fresh"

    @property
    def removal(self) -> str:
        """The command that removes the folder, and nothing else."""
        return f"dehazexl clean {shlex.quote(str(self.path))}"

    @property
    def job(self) -> dict[str, Any] | None:
        """Description of the unfinished work; None if there is none that can go on."""
        job = _read(self.folder / _JOB).get("job")
        return job if isinstance(job, dict) else None

    @property
    def holder(self) -> str:
        """The process that holds the folder, or held it last."""
        return str(_read(self.folder / _JOB).get("by", "another process"))

    @property
    def complete(self) -> bool:
        """Whether the image is complete, and has not got its name."""
        return (self.folder / _COMPLETE).exists() and (self.folder / IMAGE).exists()

    @property
    def moved(self) -> bool:
        """Whether the image is complete and has got its name, but the folder was not removed."""
        return (self.folder / _COMPLETE).exists() and not (self.folder / IMAGE).exists()

    @property
    def between_names(self) -> bool:
        """Whether the complete image has got its name, or was about to, but the folder was not removed."""
        return self.moved or (self.folder / _OLD).exists()

    @property
    def recorded(self) -> bool:
        """Whether any part of the work is done: a chunk of tokens or pixels, in the order in which they are written."""
        return (self.folder / IMAGE).is_file() or any(
            file.name not in _METADATA
            for name in (TOKENS, LEVEL0, IMAGE)
            for file in (self.folder / name).rglob("*")
            if file.is_file()
        )

    @property
    def progress(self) -> Progress | None:
        """The last progress that was noted; None if there is none, or it cannot be read."""
        try:
            return Progress(**_read(self.folder / _PROGRESS))
        except TypeError:
            return None

    @property
    def kept(self) -> Progress | None:
        """The progress of work that was stopped: of the tiles that were decoded, those whose pixels are on the disk."""
        progress = self.progress
        if progress is None or progress.stage != DECODE:
            return progress
        return replace(progress, done=math.floor(progress.total * share_done(self.folder / MARKS)))

    def note(self, stage: str, done: int, total: int) -> None:
        """Note the progress for `status`, at most once a second within a stage."""
        now, last = time.time(), self._progress
        if last is None or (last.stage, last.total) != (stage, total):
            last = Progress(stage, done, total, done, now, 0)
        if now - last.noted < _EVERY and done < total:
            return
        self._progress = Progress(stage, done, total, last.first, last.began, now)
        # A full disk is reported by the work itself.
        with suppress(OSError):
            _write_json(self.folder / _PROGRESS, asdict(self._progress))

    def finish(self, overwrite: bool) -> None:
        """Give the complete image its name, and remove the rest.

        Raises
        ------
        FileExistsError, OSError
            If it cannot get its name; it is kept.
        """
        if not self.moved:
            (self.folder / _COMPLETE).touch()
            rename(self.folder / IMAGE, self.path, self.folder / _OLD, overwrite)
        # The mark is the last to go: without it, work would be resumed from a folder that no longer holds all of it.
        with suppress(OSError):
            for each in self.folder.iterdir():
                if each.name not in (_LOCK, _JOB, _COMPLETE):
                    remove(each)
            (self.folder / _JOB).unlink()
            shutil.rmtree(self.folder)

    def clear(self) -> None:
        """Remove all but the lock; the description first, as work without one is never resumed."""
        for name in (_JOB, *(each.name for each in self.folder.iterdir())):
            if name != _LOCK:
                remove(self.folder / name)

    def busy(self, wait: float = 0) -> bool:
        """Return whether a process holds the folder, and still does after some seconds."""
        from filelock import Timeout

        if not (self.folder / _LOCK).exists():
            return False
        try:
            with _file_lock(self.folder).acquire(timeout=wait):
                return False
        except Timeout:
            return True

    def check_free(self) -> None:
        """Raise OSError if another process holds the folder, or another thread of this one."""
        if self.busy(_WAIT):
            raise self.taken()

    def taken(self) -> OSError:
        """Return the error that names the process which holds the folder."""
        return OSError(f"{self.path} is being written by {self.holder}: wait for it, or choose another name")

    def _settle(self) -> None:
        """Finish the replacement of an output that was killed between its two renames, or undo it."""
        old = self.folder / _OLD
        if not old.exists():
            return
        if self.path.exists():
            remove(old)
        elif self.complete:
            (self.folder / IMAGE).rename(self.path)
            remove(old)
        else:
            old.rename(self.path)

    def _write(self, job: dict[str, Any] | None) -> None:
        now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        by = f"process {os.getpid()} on {platform.node()} since {now}"
        _write_json(self.folder / _JOB, {"by": by, "job": job})


def output_of(part: Path) -> Unfinished:
    """Return the unfinished output of a folder; the inverse of `part_of`."""
    return Unfinished(part.with_name(part.name.removeprefix(".").removesuffix(".part")))


@contextmanager
def held(path: Path) -> Iterator[Unfinished]:
    """Hold the folder of an unfinished output, which is created if necessary, and removed if nothing is in it.

    An output that was being replaced when its process was killed is restored, or replaced at last.

    Raises
    ------
    OSError
        If another process, or another thread of this one, holds it.
    """
    unfinished = Unfinished(path)
    lock = _acquire(unfinished)
    before = _read(unfinished.folder / _JOB)
    try:
        unfinished._settle()
        unfinished._write(unfinished.job)
        yield unfinished
    finally:
        if not unfinished._begun and before and before.get("job") == unfinished.job is not None:
            # Nothing was done to the work, which is still that of the process before. A full disk costs its name only.
            with suppress(OSError):
                _write_json(unfinished.folder / _JOB, before)
        _release(lock, unfinished)


def _file_lock(folder: Path) -> BaseFileLock:
    from filelock import FileLock

    return FileLock(folder / _LOCK, thread_local=False)


def _acquire(unfinished: Unfinished) -> BaseFileLock:
    from filelock import Timeout

    folder = unfinished.folder
    if not folder.is_dir():
        folder.unlink(missing_ok=True)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _file_lock(folder)
        try:
            lock.acquire(timeout=_WAIT)
        except Timeout:
            raise unfinished.taken() from None
        except FileNotFoundError:  # its last holder has just removed the folder
            continue
        if (folder / _LOCK).exists():
            return lock
        lock.release()


def _release(lock: BaseFileLock, unfinished: Unfinished) -> None:
    folder = unfinished.folder
    if unfinished.job is None and not unfinished.complete:
        # Before the release: afterwards the folder may be another process's.
        (folder / _JOB).unlink(missing_ok=True)
        with suppress(OSError):
            if not any(each.name != _LOCK for each in folder.iterdir()):
                shutil.rmtree(folder)
    lock.release()
    if os.name == "nt":
        # Windows cannot remove a file that is open, be it here or in another process.
        with suppress(OSError):
            if not any(each.name != _LOCK for each in folder.iterdir()):
                shutil.rmtree(folder)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name the values that differ between two descriptions, with the old and the new value of each."""
    found = []
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name} ({_short(before)} then, {_short(after)} now)")
    return found


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(job: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a description as JSON returns it: tuples become lists."""
    return None if job is None else dict(json.loads(json.dumps(dict(job))))


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if there is none, or it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(path) as new, new.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def rename(source: Path, path: Path, old: Path, overwrite: bool) -> None:
    """Move `source` to `path`; unlike a file, a folder cannot replace another in one step.

    Parameters
    ----------
    source, path
        The new image, and its name.
    old
        Place of the previous image until the new one has its name.
    overwrite
        Replace an image at `path`.

    Raises
    ------
    FileExistsError
        If there is something at `path` now that must not be replaced; `source` is kept.
    OSError
        If it cannot be moved; `source` is kept.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} appeared during the work and was kept: the complete image is {source}, move it")
    try:
        if not path.is_dir() and not (source.is_dir() and path.exists()):
            source.replace(path)
            return
        remove(old)
        path.rename(old)
        try:
            source.rename(path)
        except BaseException:
            old.rename(path)
            raise
    except OSError as error:
        said = f"{error.strerror}: {path} cannot be replaced; the complete image is {source}, move it"
        raise OSError(error.errno, said) from error


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
