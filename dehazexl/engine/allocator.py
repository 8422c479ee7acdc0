"""The memory allocator of dask's worker processes."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``, see its manual page."""

_KEPT, _MAPPED = 256 << 20, 32 << 20
"""Free memory that is kept, and the size from which memory is taken from the system and given back, in bytes."""


def keep_freed_memory() -> None:
    """Let a worker of dask reuse the memory of large arrays; nothing in other processes, and without glibc.

    dask starts workers with ``MALLOC_TRIM_THRESHOLD_=65536``: all freed memory goes back to the system, and the feature
    maps of each batch are taken from it anew, page by page. On a CPU that is half of a worker's time.
    """
    if sys.platform != "linux" or os.environ.get("MALLOC_TRIM_THRESHOLD_") != "65536":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _MAPPED)
