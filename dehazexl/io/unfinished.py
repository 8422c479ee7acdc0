"""The folder of an image while it is written: its lock, its description, and the move to the final name."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dehazexl.io.disk import atomic_write

JOB, LOCK = "job.json", "lock"
"""Names in the folder: the description of the work, and the lock."""


@contextmanager
def locked(part: Path, path: Path) -> Iterator[None]:
    """Hold the folder of an unfinished image; the lock ends with its process.

    Raises
    ------
    OSError
        If another process, or another thread of this one, holds it.
    """
    from filelock import FileLock, Timeout

    if not part.is_dir():
        part.unlink(missing_ok=True)
        part.mkdir()
    lock = FileLock(part / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        by = read_job(part).get("by", "another process")
        raise OSError(f"{path} is being written by {by}: wait for it, or choose another name") from None
    try:
        yield
    finally:
        lock.release()
        # Where an open file cannot be removed, the lock's was left in an empty folder.
        with suppress(OSError):
            if not any(each.name != LOCK for each in part.iterdir()):
                (part / LOCK).unlink()
                part.rmdir()


def begin(part: Path, resume: str | None) -> None:
    """Empty the folder of an unfinished image, unless the same work left it."""
    kept = resume is not None and read_job(part).get("fingerprint") == resume
    for old in part.iterdir():
        if not kept and old.name != LOCK:
            remove(old)
    now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    by = f"process {os.getpid()} on {platform.node()} since {now}"
    with atomic_write(part / JOB) as new:
        new.write_text(json.dumps({"fingerprint": resume, "by": by}))


def read_job(part: Path) -> dict[str, Any]:
    """Return the description of unfinished work; empty if there is none, or it cannot be read."""
    try:
        job = json.loads((part / JOB).read_text())
    except (OSError, ValueError):
        return {}
    return job if isinstance(job, dict) else {}


def rename(source: Path, path: Path, overwrite: bool) -> None:
    """Move `source` to `path`; unlike a file, a folder cannot replace another in one step.

    Raises
    ------
    FileExistsError
        If there is something at `path` now that must not be replaced; `source` is kept.
    OSError
        If it cannot be moved; `source` is kept.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} appeared during the work and was kept: the complete image is {source}, move it")
    old = path.with_name(f".{path.name}.old")
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
    shutil.rmtree(old, ignore_errors=True)  # the new image has its name: nothing that fails here may say otherwise


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
