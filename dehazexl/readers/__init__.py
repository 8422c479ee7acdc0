"""One reader for each kind of source; each describes the picture and leaves its pixels where they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from dehazexl.image import Image
from dehazexl.readers.bands import array_roles, describe_bands
from dehazexl.readers.photos import open_jpeg, open_png
from dehazexl.readers.source import CHUNK, axes_by_shape, check_pixels, lazy, strided, to_yxc
from dehazexl.readers.tiff import open_tiff
from dehazexl.readers.zarrs import open_zarr, open_zarr_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def open_path(path: Path) -> Image:
    """Open a file or folder by what its first bytes say it is."""
    check_exists(path)
    if path.is_dir():
        if not any((path / name).exists() for name in ZARR_FILES):
            raise ValueError(f"{path} is a folder but no Zarr: it holds none of {', '.join(ZARR_FILES)}")
        return open_zarr_path(path)
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise ValueError(f"{path} is empty: copy or download it again")
    for magic, reader in MAGIC.items():
        if head.startswith(magic):
            return reader(path)
    raise ValueError(f"{path} is no TIFF, Zarr, PNG or JPEG: convert it first, e.g. gdal_translate {path.name} out.tif")


def check_exists(path: Path) -> None:
    """Refuse a path where there is nothing; of an address, say that addresses are not read.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    """
    if not path.exists():
        if re.match(r"\w{2,}:/|/vsi", str(path)):
            raise FileNotFoundError(f"{path} is no file of this machine, and addresses are not read: download it first")
        link = f"is a link to {path.readlink()}, which " if path.is_symlink() else ""
        raise FileNotFoundError(f"{path} {link}does not exist")


def open_array(array: NDArray[Any] | da.Array) -> Image:
    """Describe a numpy or dask array."""
    what = f"the {type(array).__module__.partition('.')[0]} array"
    if isinstance(getattr(array, "_meta", array), np.ma.MaskedArray):
        raise ValueError(f"{what} is masked: fill it, e.g. array.filled(numpy.nan) of floats, or add the mask as alpha")
    check_pixels(array.shape, array.dtype, what)
    axes = axes_by_shape(array.shape, what)
    if isinstance(array, da.Array):
        fingerprint = array.name
        level = to_yxc(array[tuple(slice(None) if axis in "yxc" else 0 for axis in axes)], axes)
        level = level.rechunk({2: -1}).astype(array.dtype.newbyteorder("="))
    else:
        fingerprint = tokenize(array)
        level = lazy(strided(array, axes), (CHUNK, CHUNK), f"array-{fingerprint}")
    count = level.shape[2]
    bands, rgb, alpha = describe_bands([None] * count, array_roles(count))
    return Image((level,), "array", bands, rgb, alpha, fingerprint=fingerprint)


MAGIC: dict[bytes, Callable[[Path], Image]] = {
    b"II*\0": open_tiff,
    b"MM\0*": open_tiff,
    b"II+\0": open_tiff,
    b"MM\0+": open_tiff,
    b"\x89PNG": open_png,
    b"\xff\xd8\xff": open_jpeg,
    b"PK\3\4": open_zarr_path,
}

__all__ = ["open_array", "open_path", "open_zarr"]
