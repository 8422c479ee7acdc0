"""Estimate of the memory and the disk that a job needs, before hours of work."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dehazexl.engine.memory import SHARE
from dehazexl.image.grid import SIDE

if TYPE_CHECKING:
    from dehazexl.engine.job import Job
    from dehazexl.image.image import Image

BASE = 350e6
"""Bytes of the running network, independent of the size of the image."""
VALUE, UNDER_WAY = 40, 2 * 2048**2
"""Bytes for each value of a band under way (read, dehazed, written), and the pixels under way at most: two blocks."""
COMPRESSED, LEVELS = 0.25, 4 / 3
"""Size of a compressible image, as a share of its pixels, and of all levels, as a multiple of the finest one."""

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def token_bytes(job: Job) -> float:
    """Return the bytes of the tokens before and after they are fused, on disk."""
    return tokens_needed(job.grid.count, job.channels, 2 if job.model.dtype.itemsize == 2 else 4)


def tokens_needed(tiles: int, channels: int, itemsize: int = 4) -> float:
    """Return the bytes of the tokens of a number of tiles on disk, with numbers of `itemsize` bytes."""
    return tiles * SIDE**2 * (2 * channels * itemsize + 1)


def memory_bytes(job: Job) -> float:
    """Return the bytes of memory: network, pixels under way, keys and values of one layer."""
    return memory_needed(job.image, token_bytes(job), job.model.spec.context_pool)


def memory_needed(image: Image, tokens: float, context_pool: int) -> float:
    """Return the bytes of memory for an image, given those of its tokens, which are on disk."""
    height, width, bands = image.levels[0].shape
    keys = min(tokens / context_pool**2, SHARE * (total_memory() or math.inf))
    return BASE + VALUE * bands * min(height * width, UNDER_WAY) + keys


def output_bytes(job: Job) -> float:
    """Return the bytes of the output if it is well compressible."""
    return output_needed(job.image)


def output_needed(image: Image) -> float:
    """Return the bytes of the output of an image if it is well compressible."""
    return COMPRESSED * LEVELS * float(image.levels[0].nbytes)


def disk_at_most(image: Image, tiles: int, channels: int, context_pool: int, tiff: bool, itemsize: int = 4) -> float:
    """Return the bytes on disk while an image is dehazed, if its pixels are not compressible at all.

    Tokens are there before and after fusing and between the layers, and the keys and values of a layer. A TIFF is made
    from the finest level on disk.
    """
    tokens = tiles * SIDE**2 * itemsize * (3 * (channels + 1) + 2 * channels / context_pool**2)
    return tokens + (LEVELS + 1 if tiff else LEVELS) * float(image.levels[0].nbytes)


def check_room(job: Job, output: Path, tokens: Path, more: float = 0) -> None:
    """Refuse a job that fits neither in the memory nor on the disk.

    Parameters
    ----------
    job
        The job.
    output, tokens
        Existing folders on the disks of the output and of the tokens.
    more
        Further bytes on the disk of the output.

    Raises
    ------
    OSError
        Naming what is needed, what there is, and the remedy.
    """
    needed, there = memory_bytes(job), total_memory()
    if there is not None and needed > there:
        raise OSError(
            f"at least {_gigabytes(needed)} of memory are needed, and there are {_gigabytes(there)}: dehaze parts of "
            "the image with --region, use --dtype bfloat16, or start anyway with --unchecked"
        )
    disks: dict[int, tuple[Path, float]] = {}
    for folder, size in ((output, output_bytes(job) + more), (tokens, token_bytes(job))):
        disk = folder.stat().st_dev
        disks[disk] = (folder, disks.get(disk, (folder, 0.0))[1] + size)
    for folder, size in disks.values():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise OSError(
                f"at least {_gigabytes(size)} are needed on the disk of {folder}, and {_gigabytes(free)} are free: "
                "make room, give another OUTPUT or --tokens DIR on another disk, or start anyway with --unchecked"
            )


def check_resize(image: Image, height: int, width: int) -> None:
    """Refuse to resize an image to a size that does not fit in the memory.

    Raises
    ------
    OSError
        Naming the size, the memory that it needs, what there is, and the remedy.
    """
    old, _, bands = image.levels[0].shape
    itemsize = image.levels[0].dtype.itemsize
    # Both as they are, and in single precision: the image that is read once, the resized one at each step of it.
    read = old * image.levels[0].shape[1] * (itemsize + 4)
    needed, there = bands * (read + height * width * (itemsize + 16)), total_memory()
    if there is not None and needed > there:
        raise OSError(
            f"an image of {width} x {height} pixels (--resize) takes {_gigabytes(needed)} of memory, and there are "
            f"{_gigabytes(there)}: choose a smaller size, or start anyway with --unchecked"
        )


def total_memory() -> int | None:
    """Return the bytes of memory of this machine or container, or None if the system does not tell."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        return min(total, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # no container, or no limit
        return total


def _gigabytes(size: float) -> str:
    return f"{size / 1e12:,.3g} TB" if size >= 1e12 else f"{size / 1e9:.3g} GB"
