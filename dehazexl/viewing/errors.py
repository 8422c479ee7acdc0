"""Errors in threads behind a viewer: those of files are shown, those of the program are logged."""

from __future__ import annotations

import logging

from dehazexl.engine.memory import short_of_memory

logger = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, MemoryError)
"""Errors that reading an image may raise."""


def expected(error: Exception, doing: str) -> bool:
    """Return whether reading may raise an error; one of the program itself is logged with its traceback."""
    if isinstance(error, UNREADABLE) or short_of_memory(error):
        return True
    logger.error("%s failed", doing, exc_info=error)
    return False
