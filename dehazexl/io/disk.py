"""Errors of full disks, atomic writes, and paths that would overwrite each other."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error codes of a full disk, an exhausted quota and a file too large for the disk."""


@contextmanager
def disk_full_message(doing: str, remedy: str) -> Iterator[None]:
    """Add the interrupted activity and a remedy to the error of a full disk; other errors are unchanged.

    Parameters
    ----------
    doing
        The activity, e.g. "writing out.tif".
    remedy
        Advice for the user.

    Raises
    ------
    OSError
        If the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, f"{os.strerror(error.errno)} while {doing}: {remedy}") from error
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces `path` when the block ends without an error.

    Raises
    ------
    OSError
        If the file cannot be written, e.g. on a full disk. A previous file at `path` is kept, and the temporary file
        is removed.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # torch.save raises an error of its own in place of the OSError.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError) or reason.errno is None:
            raise
        kept = "the previous file is kept; " if path.exists() else ""
        remedy = "free some space" if reason.errno in FULL else "check that its folder exists and is writable"
        text = f"{path} could not be written: {os.strerror(reason.errno)}; {kept}{remedy}"
        raise OSError(reason.errno, text) from error


def synchronize(path: Path) -> None:
    """Wait until a file is on the disk, where it outlasts a power failure."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def paths_overlap(one: Path, other: Path) -> bool:
    """Return whether two paths are the same, or one contains the other."""
    one, other = one.expanduser().resolve(), other.expanduser().resolve()
    return one == other or one in other.parents or other in one.parents
