"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        raise OSError(
            reason.errno,
            f"{path} could not be written: {os.strerror(reason.errno)}; {before}make room, or mend the disk",
        ) from error
