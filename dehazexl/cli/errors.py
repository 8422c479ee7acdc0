"""Errors in one line, and errors that concern one image of several."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dehazexl.io.disk import FULL

EXPECTED_ERRORS = (ValueError, TypeError, OSError, FloatingPointError, MemoryError)
"""Errors caused by files, disks and arguments rather than by bugs."""

_MOST_NAMES = 8


def echo_error(text: str) -> None:
    """Print an error in one line on stderr."""
    print("dehazexl: error:", " ".join(text.split()), file=sys.stderr)


def format_error(error: Exception) -> str:
    """Return the message of an error; one that nothing expects has its type before it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}): process less at once (run: --region; train: --tiles, or --part)"
    if is_device_full(error):
        return "not enough memory on the device: use a smaller --batch (train: --tiles, or --part), or --device cpu"
    if isinstance(error, EXPECTED_ERRORS):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def is_device_full(error: Exception) -> bool:
    """Return whether torch found no memory on its device."""
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    from dehazexl.engine.memory import short_of_memory

    return short_of_memory(error)


def print_traceback() -> None:
    """Print the traceback of the current error if the environment variable ``DEHAZEXL_TRACEBACK`` asks for it."""
    if os.environ.get("DEHAZEXL_TRACEBACK"):
        traceback.print_exc()


@contextmanager
def one_of_several(source: Path, echo: Callable[[str], object] | None) -> Iterator[None]:
    """Echo any error that one image of several raises, in one line that names it.

    Parameters
    ----------
    source
        The image.
    echo
        Called with the message; None raises all errors.

    Raises
    ------
    OSError
        If the disk is full, which concerns the other images, too.
    """
    try:
        yield
    except Exception as error:
        if echo is None or getattr(error, "errno", None) in FULL:
            raise
        logging.getLogger(__name__).debug("%s failed", source, exc_info=True)
        print_traceback()
        text = format_error(error)
        echo(text if source.name in text else f"{source}: {text}")


def names_of(failed: list[Path]) -> str:
    """Return the names of images that failed, the first of many."""
    names = list(dict.fromkeys(map(str, failed)))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
