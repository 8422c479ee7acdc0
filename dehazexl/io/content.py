"""State of the files of an image: what tells, hours later, whether they are still the same."""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

PIECE, PIECES = 64 * 1024, 256
"""Bytes of a sample of the content, and the number of samples: 16 MB are read at most, and small images as a whole."""


class _File(NamedTuple):
    name: str
    size: int
    modified: int


def describe_files(path: Path) -> dict[str, Any]:
    """Return the state of a file, or of a folder with all of its files, as values of JSON.

    Returns
    -------
    dict
        Size in bytes, time of modification (ns since the epoch), inode, and hashes: of the list of files with their
        sizes and times, and of evenly spaced samples of their content. The latter also tells of files whose size and
        times were restored.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    own = path.stat()
    files = [_File("", own.st_size, own.st_mtime_ns)] if not path.is_dir() else sorted(_walk(path))
    listing = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    return {
        "size": sum(file.size for file in files),
        "modified": max((file.modified for file in files), default=own.st_mtime_ns),
        "inode": own.st_ino,
        "files": listing if path.is_dir() else 1,
        "content": _sampled(path, files),
    }


INPUT = "input "
"""Prefix of these values in the description of a job, where "input" alone is the path."""


def changed_in_words(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Tell how the input of a job has changed, given two descriptions of the job.

    Returns
    -------
    str or None
        A phrase that names the input, or None if it is the same, or another one by its path.
    """
    names = [name for name in dict.fromkeys((*old, *new)) if name.startswith(INPUT)]
    differ = [name.removeprefix(INPUT) for name in names if old.get(name) != new.get(name)]
    if not differ or old.get("input") != new.get("input"):
        return None
    parts = []
    if "size" in differ:
        parts.append(f"{new.get('input size')} bytes, was {old.get('input size')}")
    if "modified" in differ:
        parts.append(f"modified {_date(new.get('input modified'))}, was {_date(old.get('input modified'))}")
    if not parts:
        parts.append("other content" if "content" in differ else "other files")
        parts.append("though size and time are as before")
    return f"{Path(str(new.get('input'))).name} has changed since the work began ({', '.join(parts)})"


def _date(modified: object) -> str:
    """Format a time in nanoseconds since the epoch."""
    if not isinstance(modified, int):
        return "unknown"
    return datetime.fromtimestamp(modified / 1e9, UTC).isoformat(sep=" ", timespec="milliseconds")


def _walk(folder: Path, prefix: str = "") -> Iterator[_File]:
    """Yield all files in a folder and its subfolders."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{name}/")
            else:
                stat = entry.stat()
                yield _File(name, stat.st_size, stat.st_mtime_ns)


def _sampled(path: Path, files: list[_File]) -> str:
    """Return a hash of samples of the content, as if the files were one."""
    digest = hashlib.sha256()
    ends = list(accumulate(file.size for file in files))
    total = ends[-1] if ends else 0
    for start in _starts(total):
        left = min(PIECE, total - start)
        number = bisect.bisect_right(ends, start)
        while left:
            file, first = files[number], start - (ends[number] - files[number].size)
            with (path / file.name if file.name else path).open("rb") as opened:
                opened.seek(first)
                data = opened.read(min(left, file.size - first))
            digest.update(data)
            if len(data) < min(left, file.size - first):
                raise OSError(f"{path} changed while it was read: run it again")
            start, left, number = start + len(data), left - len(data), number + 1
    return digest.hexdigest()[:16]


def _starts(total: int) -> list[int]:
    """Return the starts of the samples: of all of the content, if it is small."""
    if total <= PIECE * PIECES:
        return list(range(0, total, PIECE))
    return [(total - PIECE) * number // (PIECES - 1) for number in range(PIECES)]
