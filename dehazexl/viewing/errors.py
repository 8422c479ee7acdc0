"""Errors of threads that a viewer waits for: those of files are shown, those of the program are logged."""

from __future__ import annotations

import logging

from dehazexl.engine.memory import short_of_memory

logger = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, MemoryError)
"""What reading an image may end in."""


def expected(error: Exception, doing: str) -> bool:
    """Tell whether an error is one that reading may end in; one of the program itself is logged with its traceback."""
    if isinstance(error, UNREADABLE) or short_of_memory(error):
        return True
    logger.error("%s failed", doing, exc_info=error)
    return False
