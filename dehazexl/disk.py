"""Disks that are full, and places on them that would overwrite each other."""

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


def meet(one: Path, other: Path) -> bool:
    """Tell whether two places are the same, or one lies in the other."""
    one, other = one.expanduser().resolve(), other.expanduser().resolve()
    return one == other or one in other.parents or other in one.parents
