"""Disks that are full, files that are there whole or not at all, and places that would overwrite each other."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def room(doing: str, remedy: str) -> Iterator[None]:
    """Say of a full disk what it stopped, and what to do; other errors stay as they are."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, f"{os.strerror(error.errno)} while {doing}: {remedy}") from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write a file under, which takes the place of `path` when the block ends.

    Raises
    ------
    OSError
        If it cannot be written, e.g. on a full disk; what stood at `path` still stands, and nothing else is left.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # torch.save says something else of its own when the file cannot be written.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError) or reason.errno is None:
            raise
        before = "the one before stands; " if path.exists() else ""
        remedy = "make room" if reason.errno in FULL else "see that its folder is there and may be written to"
        said = f"{path} could not be written: {os.strerror(reason.errno)}; {before}{remedy}"
        raise OSError(reason.errno, said) from error


def meet(one: Path, other: Path) -> bool:
    """Tell whether two places are the same, or one lies in the other."""
    one, other = one.expanduser().resolve(), other.expanduser().resolve()
    return one == other or one in other.parents or other in one.parents
