"""Opening of images: every source becomes one lazy `Image`, by the reader of its format."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
from dask.base import tokenize

from dehazexl.image.image import Image
from dehazexl.image.nodata import nodata_as_dtype
from dehazexl.io.bands import BANDS_HINT, array_roles, describe_bands
from dehazexl.io.photo_read import open_jpeg, open_png, open_webp
from dehazexl.io.raster_read import open_raster
from dehazexl.io.remote import open_remote, remote_address
from dehazexl.io.sidecars import envi_data
from dehazexl.io.source import CHUNK, axes_by_shape, check_pixels, check_regular, lazy, strided, to_yxc
from dehazexl.io.tiff_read import open_tiff
from dehazexl.io.zarr_read import open_zarr, open_zarr_path

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


def open_image(
    source: str | Path | NDArray[Any] | da.Array | zarr.Array[Any] | zarr.Group | Image,
    *,
    bands: Sequence[int | str] | None = None,
    nodata: float | None = None,
    page: int | None = None,
) -> Image:
    """Open an image without reading its pixels.

    Parameters
    ----------
    source
        A path or address (``https://``, ``s3://``) of a TIFF (also BigTIFF, GeoTIFF, COG, OME-TIFF), a Zarr
        (version 2 or 3, a folder or a ``.zip``; an array, a group with one image, or OME-Zarr), a JPEG 2000, VRT,
        ENVI or ERDAS raster, a PNG, JPEG or WebP; or a numpy, dask or zarr array; or an `Image`, which is returned
        unchanged. The format of a file is detected from its first bytes, not from its suffix.
    bands
        The red, green and blue bands, as numbers from 1 (the convention of GDAL) or names
        (``[4, 3, 2]``, ``["B04", "B03", "B02"]``); or one band, shown as gray. By default they are found by
        the names of the bands, their wavelengths, then by the color interpretation in the file, then the first three
        bands that are not alpha; an image with fewer bands repeats its first one.
    nodata
        Value of pixels without data, in place of the one in the file.
    page
        Page of a TIFF with several images, or plane (z, t) of a TIFF or Zarr with several, from 1.

    Returns
    -------
    Image
        Lazy ``(y, x, c)`` levels with their metadata.

    Raises
    ------
    FileNotFoundError
        If the path does not exist.
    TypeError
        If the source is none of the above.
    ValueError
        If the file is not an image, is damaged or truncated, or has further axes (z, t); if it can only be read in
        blocks larger than 600 MB, or has a side longer than 2**24 pixels; if its dtype is not an integer of 8, 16 or 32
        bits or a float; or if ``bands`` names a band that does not exist, or pixels cannot have the value ``nodata``.

    Notes
    -----
    Where the axes have no names, the bands are the last axis if it has 1 to 8 entries and no other axis
    has fewer, else the first axis by the same rule; further axes of length 1 are dropped. In a two-band
    array without metadata the second band is alpha; a fourth band is alpha only if the file declares it.
    A GDAL mask inside a TIFF becomes a last band ``"mask"``: 0 where there is no image.

    The fingerprint of a file is a hash of its path, size and modification time (ns). For a Zarr folder it is
    a hash of the metadata files and of the modification times of the folders that hold the chunks of the
    finest level, which change when a chunk is added, removed or replaced. For a numpy array it is a hash of
    the content (a second per gigabyte), for a dask array its name. For a Zarr in another store (a URL) it
    depends on address and metadata only, and a Zarr in memory gets a new fingerprint each time.
    """
    image = source if isinstance(source, Image) else _open_source(source, page)
    if nodata is not None:
        if nodata_as_dtype(nodata, dtype := image.levels[0].dtype) is None:
            raise ValueError(f"nodata={nodata:g} is no value of {dtype} pixels, which {image.name} has: give another")
        image = replace(image, nodata=nodata)
    return image if bands is None else with_bands(image, bands)


def with_bands(image: Image, bands: Sequence[int | str]) -> Image:
    """Return the image with other bands as red, green and blue; the lines about those that were found are dropped."""
    notes = tuple(note for note in image.notes if not note.endswith(BANDS_HINT))
    return replace(image, rgb=_select_bands(bands, image.bands), guessed=False, basis="--bands", notes=notes)


def _open_source(source: object, page: int | None = None) -> Image:
    """Open a source other than an `Image` by its type."""
    import zarr

    if isinstance(source, (str, Path)):
        if (url := remote_address(source)) is not None:
            return open_remote(url)
        return open_path(Path(source).expanduser(), page)
    if isinstance(source, (np.ndarray, da.Array)):
        return open_array(source)
    if isinstance(source, (zarr.Array, zarr.Group)):
        return open_zarr(source)
    raise TypeError(
        f"cannot open a {type(source).__name__} as an image: pass a path, a numpy, dask or zarr array, or an Image"
    )


def _select_bands(wanted: Sequence[int | str], names: tuple[str, ...]) -> tuple[int, int, int]:
    """Convert three bands, or one, to channel indices."""
    if isinstance(wanted, str) or len(wanted) not in (1, 3):
        raise ValueError(f"bands={wanted!r} must list three bands, red, green and blue, or one")
    red, green, blue = (_band_index(band, names) for band in (list(wanted) * 3 if len(wanted) == 1 else wanted))
    return red, green, blue


def _band_index(band: int | str, names: tuple[str, ...]) -> int:
    """Return the index of a band given by its number from 1 or its name, ignoring case."""
    lowered = [name.lower() for name in names]
    if isinstance(band, str) and band.lower() in lowered:
        return lowered.index(band.lower())
    if isinstance(band, (int, np.integer)) and not isinstance(band, bool) and 1 <= band <= len(names):
        return int(band) - 1
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(names, start=1))
    raise ValueError(f"bands has {band!r}, which this image does not have: choose from {known}")


def open_path(path: Path, page: int | None = None) -> Image:
    """Open a file by its first bytes, or a Zarr folder."""
    check_exists(path)
    if path.is_dir():
        if not any((path / name).exists() for name in ZARR_FILES):
            raise ValueError(f"{path} is a folder but not a Zarr: it contains none of {', '.join(ZARR_FILES)}")
        return open_zarr_path(path, page)
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise ValueError(f"{path} is empty: copy or download it again")
    reader = next((reader for magic, reader in MAGIC.items() if head.startswith(magic)), None)
    if reader in (open_tiff, open_zarr_path):
        return open_tiff(path, page) if reader is open_tiff else open_zarr_path(path, page)
    if page is not None:
        raise ValueError(f"{path} has no pages: leave --page out")
    if reader is not None:
        return reader(path)
    if (data := envi_data(path)) is not None:
        return open_raster(data)
    raise ValueError(
        f"{path} is not a TIFF, Zarr, PNG or JPEG: convert it first, e.g. gdal_translate {path.name} out.tif"
    )


def check_exists(path: Path) -> None:
    """Check that a path exists; an address is checked when it is opened.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    ValueError
        If it is neither a file nor a folder.
    """
    if remote_address(path) is not None:
        return
    if not path.exists():
        if re.match(r"\w{2,}:/|/vsi", str(path)):
            raise FileNotFoundError(f"{path} is not a local file: https:// and s3:// are supported, or download it")
        link = f"is a link to {path.readlink()}, which " if path.is_symlink() else ""
        raise FileNotFoundError(f"{path} {link}does not exist")
    check_regular(path)


def open_array(array: NDArray[Any] | da.Array) -> Image:
    """Wrap a numpy or dask array in an `Image`.

    Raises
    ------
    ValueError
        If the array is masked, or its shape or dtype is not supported.
    """
    name = f"the {type(array).__module__.partition('.')[0]} array"
    if isinstance(getattr(array, "_meta", array), np.ma.MaskedArray):
        raise ValueError(f"{name} is masked: fill it, e.g. array.filled(numpy.nan) of floats, or add the mask as alpha")
    check_pixels(array.shape, array.dtype, name)
    axes = axes_by_shape(array.shape, name)
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
    b"\0\0\0\x0cjP  ": open_raster,
    b"\xff\x4f\xff\x51": open_raster,
    b"EHFA_HEA": open_raster,
    b"<VRTData": open_raster,
    b"RIFF": open_webp,
}
"""Readers by the first bytes of the file."""
