"""Standard streams that may be closed, or break, without harm to the work."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)
"""Errors of a stream whose reader has gone: of a pipe, and of a terminal."""


class LenientStream:
    """A text stream that discards what is written once its reader has gone.

    Parameters
    ----------
    stream
        The stream, whose other attributes this one has, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, if it can be written."""
        try:
            return self._attempted(lambda: self._stream.write(text), len(text))
        except UnicodeEncodeError:  # names of files need not be text
            code = self._stream.encoding
            plain = text.encode(code, "backslashreplace").decode(code)
            return self._attempted(lambda: self._stream.write(plain), len(text))

    def flush(self) -> None:
        """Flush the stream, if it can be flushed."""
        self._attempted(self._stream.flush, None)

    def _attempted(self, act: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return act()
        except OSError as error:
            if error.errno not in GONE:
                raise
            # Python flushes the stream once more at its exit.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            return otherwise


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Replace standard output and error by streams that never fail, also where they were closed from the start."""
    before = sys.stdout, sys.stderr
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that is opened would be a standard stream, and messages would end up in it.
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    for name, number in (("stdout", 1), ("stderr", 2)):
        # Python has none where the descriptor was closed.
        setattr(sys, name, LenientStream(getattr(sys, name) or os.fdopen(number, "w", closefd=False)))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
