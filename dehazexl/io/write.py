"""Write lazy images as OME-Zarr, TIFF, PNG or JPEG, computing each block once."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dehazexl.image.image import Image
from dehazexl.image.nodata import nodata_as_dtype
from dehazexl.io.blocks import computed
from dehazexl.io.disk import disk_full_message, paths_overlap
from dehazexl.io.level0 import Fill
from dehazexl.io.open import ZARR_FILES
from dehazexl.io.photo_write import check_photo, write_photo
from dehazexl.io.raster_write import Compression, compression_of, fits, write_raster
from dehazexl.io.sidecars import sidecars_of, write_sidecars
from dehazexl.io.tiff_write import is_ome, write_tiff
from dehazexl.io.unfinished import IMAGE, LEVEL0, MARKS, Unfinished, held, part_of
from dehazexl.io.zarr_write import Ngff, write_level0, write_ome_zarr

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import dask.array as da
    from numpy.typing import NDArray

    from dehazexl.io.blocks import Block

ZARR, TIFF, PHOTO = (".zarr",), (".tif", ".tiff"), (".png", ".jpg", ".jpeg")
_BLOCK = 2048  # pixels along a side of the blocks of a numpy array


def to_zarr(
    clear: da.Array | NDArray[Any],
    path: str | Path,
    like: Image | None = None,
    *,
    ngff: Ngff = "0.5",
    overwrite: bool = False,
) -> Path:
    """Write an image as OME-Zarr with overviews, block by block; see `dehazexl.io.write.write`.

    Parameters
    ----------
    clear
        The image ``(y, x, c)`` or ``(y, x)``, lazy or not, integer or floating point.
    path
        Path that ends in ``.zarr``.
    like
        The image that `clear` was computed from, for names of bands, alpha, nodata, georeference and pixel size.
    ngff
        Version of OME-Zarr: ``"0.5"`` (Zarr 3) or ``"0.4"`` (Zarr 2).
    overwrite
        Replace an existing file or folder, once the new image is complete.

    Returns
    -------
    Path
        Path of the Zarr.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError, OSError
        If `path` exists and `overwrite` is False, its folder does not exist, an argument does not fit (suffix, dtype,
        bands, shape of `like`, a path inside the input), or the image cannot be written.
    """
    return _drained(clear, path, like, ZARR, ngff=ngff, overwrite=overwrite)


def to_tiff(
    clear: da.Array | NDArray[Any],
    path: str | Path,
    like: Image | None = None,
    *,
    compression: Compression | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an image as tiled (Geo)TIFF with overviews, block by block; see `dehazexl.io.write.write`.

    Parameters
    ----------
    clear, like, overwrite
        As in `to_zarr`; `like` also provides tags and the color profile.
    path
        Path that ends in ``.tif`` or ``.tiff``.
    compression
        ``"deflate"`` (read everywhere), ``"zstd"`` (faster), ``"lzw"``, ``"lerc"``, ``"none"``; with loss ``"jpeg"``
        and ``"webp"``. None: that of the input, or deflate.

    Returns
    -------
    Path
        Path of the file.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError, OSError
        As in `to_zarr`.
    """
    return _drained(clear, path, like, TIFF, compression=compression, overwrite=overwrite)


def to_photo(
    clear: da.Array | NDArray[Any], path: str | Path, like: Image | None = None, *, overwrite: bool = False
) -> Path:
    """Write a small image as PNG or JPEG; see `write`.

    Returns
    -------
    Path
        Path of the file.
    """
    return _drained(clear, path, like, PHOTO, overwrite=overwrite)


def write(
    clear: da.Array | NDArray[Any],
    path: str | Path,
    like: Image | None = None,
    *,
    ngff: Ngff = "0.5",
    compression: Compression | None = None,
    overwrite: bool = False,
    blocks_at_once: int = 2,
    resume: Unfinished | None = None,
    fill: Fill | None = None,
) -> Generator[int, None, None]:
    """Write an image in the format that the suffix names, block by block.

    The arguments are checked at once; the work is done during iteration. Each block of `clear` is computed once. Only
    the blocks in progress and less than a row of 512 x 512 tiles are kept in memory. Everything is written into the
    folder ``.NAME.part`` next to `path`, and renamed when it is complete.

    A Zarr is written in two phases: its finest level, then the overviews from that. With `resume` the other formats
    are, too, where the disk has room for both: the finest level goes into a temporary Zarr, from which the file is
    made.

    Parameters
    ----------
    clear
        The image ``(y, x, c)`` or ``(y, x)``, lazy or not, integer or floating point. Blocks of any
        size do; whole multiples of 512 pixels are best.
    path
        ``.zarr`` and ``.ome.zarr``: OME-Zarr. ``.tif`` and ``.tiff``: tiled TIFF with overviews,
        BigTIFF when large. ``.png`` (8 and 16 bits, 1 to 4 bands) and ``.jpg``, ``.jpeg`` (8 bits, 1 or 3
        bands): kept in memory, at most 2**28 pixels.
    like
        The image that `clear` was computed from, for names of bands, alpha, nodata, georeference, pixel size and
        further metadata, for TIFF and JPEG also the color profile, for JPEG the EXIF.
    ngff
        Version of OME-Zarr: ``"0.5"`` (Zarr 3) or ``"0.4"`` (Zarr 2).
    compression
        Compression of a TIFF, see `to_tiff`.
    overwrite
        Replace an existing file or folder, once the new image is complete.
    blocks_at_once
        Blocks computed at the same time: 2 keep a network busy while the next block is read and the last
        is written; on a dask cluster, take two for each worker.
    resume
        The folder, held, and begun with a description of the work. It is kept when the work fails, is closed or killed,
        and the same work goes on from there: blocks that were written are not computed again. None holds a folder
        that is removed when the work fails.
    fill
        Writes the finest level in place of this process, such as `Cluster.fill`; only shape and dtype of `clear` are
        used then.

    Yields
    ------
    int
        Pixels done so far, after each block and each part of the second phase; `total(clear)` only at the end, when the
        image has its name.

    Raises
    ------
    FileExistsError
        If `path` exists and `overwrite` is False.
    FileNotFoundError
        If the folder of `path` does not exist.
    ValueError
        If the suffix, the dtype or the number of bands does not fit, if `like` has another shape, or if
        `path` and the opened image overlap on disk; while iterating, without `resume`, if there is unfinished work
        on `path` that can go on.
    OSError
        While iterating, if the disk is full, or another process writes `path`.
    """
    if blocks_at_once < 1:
        raise ValueError(f"blocks_at_once={blocks_at_once} computes nothing: give 1 or more")
    path = Path(path).expanduser()
    target = check(clear, path, like, ngff=ngff, compression=compression, overwrite=overwrite)
    part = part_of(path)
    if path.suffix.lower() in ZARR:
        steps = write_ome_zarr(part / IMAGE, target, ngff, blocks_at_once, part / MARKS, fill)
    else:
        steps = _write_file(path, part, target, compression, blocks_at_once, resume is not None, fill)
    if resume is not None and target.guard is not None:
        steps = _then(steps, partial(target.guard, surely=True))
    return _written(steps, path, target, resume, overwrite)


def _then(steps: Generator[int, None, None], check: Callable[[], None]) -> Generator[int, None, None]:
    """Do the steps, then look once more whether the input is what was opened."""
    yield from steps
    check()


def _write_file(
    path: Path,
    part: Path,
    target: Image,
    compression: Compression | None,
    at_once: int,
    staged: bool,
    fill: Fill | None,
) -> Generator[int, None, None]:
    """Write a file block by block; `staged` or by `fill`, from a temporary Zarr of the finest level."""
    blocks: Generator[Block, None, None]
    begun = (part / MARKS).exists()
    if fill or (staged and (begun or target.levels[0].nbytes < shutil.disk_usage(path.parent).free / 2)):
        level0 = yield from write_level0(part / LEVEL0, target, at_once, part / MARKS, fill)
        blocks, counts = level0.read(), False
    else:
        blocks, counts = computed(target.levels[0], at_once), True
    suffix, image = path.suffix.lower(), part / IMAGE
    if suffix in TIFF and is_ome(path, target):
        steps = write_tiff(blocks, image, target, compression_of(target, compression))
    elif suffix in TIFF:
        steps = write_raster(blocks, image, target, compression_of(target, compression))
    else:
        steps = write_photo(blocks, image, target, suffix)
    try:
        for pixels in steps:
            yield pixels if counts else 0
    finally:
        steps.close()
        blocks.close()


def check(
    clear: da.Array | NDArray[Any],
    path: str | Path,
    like: Image | None = None,
    *,
    ngff: Ngff = "0.5",
    compression: Compression | None = None,
    overwrite: bool = False,
) -> Image:
    """Check the arguments before anything is computed; arguments and errors as in `write`.

    Returns
    -------
    Image
        Description of the image to be written.
    """
    path = Path(path).expanduser()
    check_choices(ngff, compression)
    _check_suffix(path, (*ZARR, *TIFF, *PHOTO))
    target = _target(clear, like)
    _check_place(path, target, overwrite)
    if path.suffix.lower() in TIFF and compression and (reason := fits(target, compression)):
        raise ValueError(f"{path} cannot be compressed by {compression}: {reason}")
    if path.suffix.lower() in PHOTO:
        check_photo(path, target)
    return target


def check_choices(ngff: str, compression: str | None) -> None:
    """Raise ValueError for an unknown version of OME-Zarr or an unknown compression."""
    for name, value, kind in (("ngff", ngff, Ngff), ("compression", compression, Compression)):
        if value is not None and value not in get_args(kind):
            raise ValueError(f"{name}={value!r} is not one of {', '.join(get_args(kind))}")


def total(clear: da.Array | NDArray[Any]) -> int:
    """Return the number of pixels of an image ``(y, x, c)``, which `write` counts up to."""
    return int(clear.shape[0]) * int(clear.shape[1])


def _drained(
    clear: da.Array | NDArray[Any], path: str | Path, like: Image | None, suffixes: tuple[str, ...], **options: Any
) -> Path:
    _check_suffix(Path(path), suffixes)
    for _ in write(clear, path, like, **options):
        pass
    return Path(path).expanduser()


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} ends in {path.suffix or 'no suffix'!r}: name it with one of {', '.join(suffixes)}")


def _target(clear: da.Array | NDArray[Any], like: Image | None) -> Image:
    """Describe the image to be written: the pixels of `clear` with the metadata of `like`."""
    import dask.array as da

    if like is not None and not isinstance(like, Image):
        raise TypeError(f"like={like!r} is not an Image: open it first, like=open_image(...)")
    array = clear
    if not isinstance(array, da.Array):
        array = da.from_array(array, chunks=_BLOCK, name=False)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"an image of shape {clear.shape} cannot be written: pass (y, x, bands), none of them 0")
    if array.dtype.kind not in "iuf" or (array.dtype.kind in "iu" and array.dtype.itemsize > 4):
        raise ValueError(f"pixels of dtype {array.dtype} cannot be written: convert them, e.g. clear.astype('uint8')")
    array = array.rechunk({2: -1}).astype(array.dtype.newbyteorder("="))
    if like is None:
        like = _plain(array)
    if array.shape != like.levels[0].shape:
        raise ValueError(
            f"the image has shape {array.shape}, but `like` has {like.levels[0].shape}: "
            "crop `like` the same way (levels, geo.moved), or leave it out"
        )
    # A mask is the last band; an image of some of the bands has none.
    masked = like.masked and like.alpha == array.shape[2] - 1
    bits = like.bits if array.dtype == like.levels[0].dtype else None
    return replace(like, levels=(array,), nodata=nodata_as_dtype(like.nodata, array.dtype), masked=masked, bits=bits)


def _plain(array: da.Array) -> Image:
    """Describe an image by its shape alone."""
    bands = array.shape[2]
    names = ("red", "green", "blue") if bands == 3 else tuple(f"band {band}" for band in range(1, bands + 1))
    return Image((array,), "array", names, (0, 1, 2) if bands >= 3 else (0, 0, 0), 1 if bands == 2 else None)


def _check_place(path: Path, target: Image, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first, or choose another")
    if target.path is not None and paths_overlap(path, target.path):
        raise ValueError(f"{path} is the input {target.path}, lies inside it, or contains it: choose another place")
    probe = part_of(path).with_suffix(f".{os.getpid()}")
    try:
        # Permissions alone do not tell: disks may be mounted read-only, and shares have their own rules.
        probe.touch()
        probe.unlink()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OSError(
                error.errno, "its name is too long with .part behind it: choose a shorter one", str(path)
            ) from None
        said = f"{error.strerror}, nothing can be written there: choose another folder"
        raise OSError(error.errno, said, str(path.parent)) from None
    check_absent(path, overwrite)
    _check_sidecars(path, overwrite)
    if path.is_dir() and any(path.iterdir()) and not any((path / name).exists() for name in ZARR_FILES):
        raise ValueError(f"{path} is a folder of other files, not a Zarr, and is not replaced: choose another name")


def _check_sidecars(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError if files beside an image that does not exist would be read as a part of it."""
    # Those of unfinished work on it are its own.
    if overwrite or path.suffix.lower() in ZARR or Unfinished(path).job is not None:
        return
    if stale := sidecars_of(path):
        raise FileExistsError(
            f"{stale[0]} exists and would be read as a part of {path}: remove it, or replace both with --overwrite "
            "(in Python, overwrite=True)"
        )


def check_absent(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError if there is something at `path` that may not be replaced."""
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists: choose another name, or replace it with --overwrite (in Python, overwrite=True)"
        )


def _written(
    steps: Generator[int, None, None], path: Path, target: Image, resume: Unfinished | None, overwrite: bool
) -> Generator[int, None, None]:
    """Do the steps, then rename the result; remove the folder if that fails and the work cannot be resumed."""
    pixels, done, reported = total(target.levels[0]), 0, 0
    left = "which is kept, so make room and run it again" if resume else "which was removed"
    remedy = f"make room, or write {path.name} to another disk"
    with (
        disk_full_message(f"writing {part_of(path)}, {left}", remedy),
        held(path) if resume is None else nullcontext(resume) as folder,
    ):
        if resume is None:
            check_absent(path, overwrite)  # holding the folder may have finished an earlier replacement
            folder.begin(None)
        try:
            for step in steps:
                done += step
                if done >= pixels:
                    folder.note("finish", done, 0)
                elif resume is None:  # else whoever holds the folder counts what is decoded
                    folder.note("decode", done, pixels)
                # The total is reported only after the result is renamed.
                reported = done if done < pixels else reported
                yield reported
            if overwrite or not path.exists():
                write_sidecars(path, target)  # before the image: without them, or with stale ones, it would be wrong
        except BaseException:
            # Stop the threads and close the file first.
            steps.close()
            if resume is None:
                with suppress(OSError):
                    folder.clear()
            raise
        # From here on the image is complete, and kept whatever happens.
        folder.finish(overwrite)
    yield pixels
