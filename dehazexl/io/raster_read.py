"""Reader of georeferenced rasters by GDAL: GeoTIFF and COG, JPEG 2000, VRT, ENVI, ERDAS, with all their sidecars."""

from __future__ import annotations

import logging
import math
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

from dehazexl.image.image import Image
from dehazexl.io.bands import choose_bands
from dehazexl.io.gdal_name import gdal_name
from dehazexl.io.raster_metadata import (
    band_wavelengths,
    mask_of,
    raster_bands,
    raster_bits,
    raster_geo,
    raster_metadata,
    raster_notes,
    sensor_text,
)
from dehazexl.io.source import (
    CHUNK,
    RETILE,
    TIMEOUT,
    Guard,
    Source,
    check_block,
    check_pixels,
    chunk_within,
    file_token,
    lazy,
    short_name,
    silence,
)

if TYPE_CHECKING:
    import rasterio
    from numpy.typing import NDArray

DRIVERS = ("GTiff", "JP2OpenJPEG", "VRT", "ENVI", "HFA", "EHdr", "ERS", "PCIDSK", "PNG", "JPEG", "WEBP")
"""Formats that are opened by GDAL, which has many more."""

WHOLE = ("PNG", "JPEG", "WEBP")
"""Formats whose rows can only be decoded from the first on."""

STRIP_ROWS, STRIP_AREA = 256, 2048 * 2048  # rows and pixels of a chunk of whole rows, at least and approximately

OPTIONS: dict[str, Any] = {
    "GDAL_CACHEMAX": 64 * 2**20,  # bytes: chunks are cached by `ChunkCache`
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",
    "GDAL_HTTP_LOW_SPEED_TIME": TIMEOUT,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1,  # bytes a second
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_MAX_RETRY": 2,
    "GDAL_HTTP_RETRY_DELAY": 0.5,
}
REMOTE: dict[str, Any] = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""Options for an address: folders are not listed, so there are no sidecars."""

Decoders = Mapping[tuple[int, ...], tuple[Source, tuple[int, int]]]
"""Source of the bands of a level ``(y, x, c)``, and rows and columns of a chunk, by the shape of the level."""

_handles = threading.local()
_opening = threading.Lock()  # filters of warnings are those of all threads


@contextmanager
def gdal(**options: Any) -> Iterator[None]:
    """Run GDAL with the options of this project, its warnings off stderr."""
    import rasterio

    logging.getLogger("rasterio").addHandler(_QUIET)
    with rasterio.Env(**{**OPTIONS, **options}):
        yield


_QUIET = logging.NullHandler()


def gdal_errors() -> tuple[type[Exception], ...]:
    """Return the errors that rasterio raises where GDAL fails."""
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    return RasterioError, CPLE_BaseError


@dataclass(frozen=True)
class Raster:
    """Pixels of a raster or of one of its overviews, read by a handle for each thread.

    Attributes
    ----------
    name, level
        Name of the data set for GDAL, and its overview, or None for the full size.
    token
        Hash of the files: a handle does not outlive a change.
    dtype
        Data type of the pixels.
    masked
        Whether the mask is appended as a last band, see `read_mask`.
    """

    name: str
    level: int | None
    token: str
    dtype: np.dtype[Any]
    masked: bool

    def read(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Read a window ``(y, x, c)``.

        Raises
        ------
        ValueError
            If a block of the window cannot be decoded.
        OSError
            If a server does not answer.
        """
        from rasterio.windows import Window

        window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
        with self._reporting(rows, cols):
            file = self._handle()
            block = np.empty((window.height, window.width, file.count + self.masked), self.dtype)
            # GDAL copies pixels fastest into the order of the file.
            file.read(out=np.moveaxis(block[..., : file.count], -1, 0), window=window)
            if self.masked:
                block[..., -1:] = read_mask(file, window, self.dtype)
        return block

    def read_mask(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Read the mask of a window ``(y, x, 1)``; errors as in `read`."""
        from rasterio.windows import Window

        window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
        with self._reporting(rows, cols):
            return read_mask(self._handle(), window, self.dtype)

    def read_masked(self, decode: Callable[[slice, slice], NDArray[Any]], rows: slice, cols: slice) -> NDArray[Any]:
        """Read a window of which another decoder reads the bands, and GDAL the mask; errors as in `read`."""
        return np.concatenate([decode(rows, cols), self.read_mask(rows, cols)], axis=-1)

    @contextmanager
    def _reporting(self, rows: slice, cols: slice) -> Iterator[None]:
        """Run GDAL; convert its errors to those of `read`."""
        started = time.monotonic()
        try:
            with gdal(**options_for(self.name)):
                yield
        except gdal_errors() as error:
            self._forget()
            place = f"rows {rows.start} to {rows.stop - 1}, columns {cols.start} to {cols.stop - 1}"
            raise _reading_error(self.name, place, error, time.monotonic() - started) from error

    def _handle(self) -> rasterio.DatasetReader:
        """Return the handle of this thread: GDAL's are not safe to share."""
        if not hasattr(_handles, "files"):
            _handles.files = LRUCache(8)
        key = self.name, self.level, self.token
        if key not in _handles.files:
            _handles.files[key] = open_dataset(self.name, self.level)
        return _handles.files[key]

    def _forget(self) -> None:
        """Drop the handle of this thread: after an error GDAL would go on answering from its cache."""
        getattr(_handles, "files", {}).pop((self.name, self.level, self.token), None)


def _reading_error(name: str, place: str, error: Exception, seconds: float) -> Exception:
    reason = remote_reason(error, seconds) if name.startswith("/vsi") else one_line(error)
    if re.search(r"out of memory|cannot allocate", reason, re.IGNORECASE):
        return MemoryError(f"{address(name)}, {place}: {reason}")
    if name.startswith("/vsi"):
        return OSError(f"{address(name)} cannot be read in {place} ({reason}): check the connection, and try again")
    if name.lower().endswith(".vrt"):
        return ValueError(f"{name} cannot be read in {place} ({reason}): check the files that it refers to")
    if re.search(r"not supported|unsupported|missing codec|not configured", reason, re.IGNORECASE):
        return ValueError(f"{name} cannot be decoded ({reason}): convert it, e.g. to a GeoTIFF compressed by deflate")
    return ValueError(f"{name} is damaged in {place} ({reason}): copy or download it again")


def one_line(error: BaseException) -> str:
    """Return the first cause of an error of rasterio, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def remote_reason(error: BaseException, seconds: float) -> str:
    """Return the reason of an error after some seconds: GDAL does not tell that a server stalled."""
    reason, most = one_line(error), float(OPTIONS["GDAL_HTTP_LOW_SPEED_TIME"])
    stalled = seconds >= most and not re.search(r"response code|got [1-9]", reason)
    return silence(most) if stalled else reason


def address(name: str) -> str:
    """Return the address or path of a data set of GDAL."""
    return re.sub(r"^/vsicurl/|^/vsis3/(?=.)", lambda found: "s3://" if "s3" in found[0] else "", name)


def options_for(name: str) -> dict[str, Any]:
    """Return the options of GDAL for a data set."""
    return REMOTE if name.startswith("/vsi") else {}


def open_dataset(name: str, level: int | None = None) -> rasterio.DatasetReader:
    """Open a data set, or one of its overviews."""
    options: dict[str, Any] = {} if level is None else {"overview_level": level}
    return quietly_opened(name, **options)


def quietly_opened(name: str | Path, mode: str = "r", **options: Any) -> Any:
    """Open or create a data set; that it has no georeference is no news."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(gdal_name(name), mode, sharing=False, **options)


def read_mask(file: rasterio.DatasetReader, window: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read the mask of a data set ``(y, x, 1)``: the white of the dtype where all bands are valid, elsewhere 0."""
    if mask_of(file) == "bands":
        valid = (file.read_masks(window=window) != 0).all(axis=0)
    else:
        valid = file.read_masks(1, window=window) != 0
    return (valid * opaque(dtype)).astype(dtype)[..., None]


def opaque(dtype: np.dtype[Any]) -> int:
    """Return the value of opaque pixels of an alpha or mask band."""
    return int(np.iinfo(dtype).max) if dtype.kind == "u" else 1


def open_raster(path: Path, name: str = "", decoders: Decoders | None = None) -> Image:
    """Open a raster by GDAL.

    Parameters
    ----------
    path
        The file, or the address.
    name
        Name of the data set for GDAL, if it is not the path.
    decoders
        Sources of the pixels that GDAL is slower to decode, see `Decoders`.

    Raises
    ------
    ValueError
        If GDAL cannot open it, or its colors or dtype are not supported.
    OSError
        If a server does not answer.
    """
    name, started = name or str(path), time.monotonic()
    try:
        with gdal(**options_for(name)), open_dataset(name) as file:
            return describe_raster(file, path, name, decoders or {})
    except gdal_errors() as error:
        if name.startswith("/vsi"):
            reason = remote_reason(error, time.monotonic() - started)
            raise OSError(f"{address(name)} cannot be opened ({reason}): check the address") from error
        raise ValueError(f"{path} cannot be opened ({one_line(error)}): copy or download it again") from error


def describe_raster(file: rasterio.DatasetReader, path: Path, name: str, decoders: Decoders) -> Image:
    """Describe an open data set."""
    remote = name.startswith("/vsi")
    where = address(name)
    if file.driver not in DRIVERS:
        raise ValueError(f"{where} is a {file.driver} file, which is not supported: convert it, e.g. to GeoTIFF")
    if not file.count:
        inside = ", ".join(file.subdatasets[:4])
        raise ValueError(f"{where} holds several images: open one of {inside}")
    dtype = np.dtype(file.dtypes[0])
    if len(set(file.dtypes)) > 1:
        raise ValueError(f"{where} has bands of several types ({', '.join(file.dtypes)}): convert it to one type")
    check_pixels((file.height, file.width, file.count), dtype, where)
    check_colors(file, where)
    if (bits := raster_bits(file)) == 1:
        raise ValueError(f"{where} is a 1-bit mask, not an image: pass the image that it belongs to")
    token, guard = raster_guard(file, path, name)
    masked = mask_of(file) is not None
    names, roles = raster_bands(file)
    chosen = choose_bands(names, roles, wavelengths=band_wavelengths(file), sensor=sensor_text(file))
    bands, alpha = ((*chosen.names, "mask"), file.count) if masked else (chosen.names, chosen.alpha)
    scale, offset = file.scales[chosen.rgb[0]], file.offsets[chosen.rgb[0]]
    geo = raster_geo(file)
    meters = geo.meters if geo else None
    levels = [Raster(name, level, token, dtype, masked) for level in (None, *raster_levels(file, name))]
    return Image(
        levels=tuple(raster_level(raster, n, decoders) for n, raster in enumerate(levels)),
        name=short_name(path),
        bands=bands,
        rgb=chosen.rgb,
        alpha=alpha,
        masked=masked,
        guessed=chosen.guessed,
        basis=chosen.basis,
        nodata=None if mask_of(file) == "bands" else file.nodatavals[0],
        scale=meters or (1.0, 1.0),
        units="meter" if meters else "pixel",
        geo=geo,
        path=None if remote else path,
        fingerprint=token,
        guard=guard,
        metadata=raster_metadata(file),
        notes=(*raster_notes(file), *chosen.notes),
        zero=0.0 - offset / scale if scale else 0.0,
        bits=bits,
    )


def raster_guard(file: rasterio.DatasetReader, path: Path, name: str) -> tuple[str, Guard | None]:
    """Return a hash of the files of a data set, and what looks whether they change."""
    if name.startswith("/vsi"):
        return remote_token(file, name), None
    files = sorted(each for each in map(Path, file.files) if each.exists())
    token = file_token(files)
    return token, Guard(path, token, partial(file_token, files))


def remote_token(file: rasterio.DatasetReader, name: str) -> str:
    """Return a hash of the address and the layout of a remote file."""
    from dask.base import tokenize

    return str(tokenize(name, file.profile["height"], file.profile["width"], file.dtypes, file.tags()))


def check_colors(file: rasterio.DatasetReader, where: str) -> None:
    """Raise ValueError for palettes, CMYK, Lab, and gray where white is 0."""
    from rasterio.enums import ColorInterp

    structure = file.tags(ns="IMAGE_STRUCTURE")
    if structure.get("MINISWHITE") == "YES" or "LAB" in structure.get("SOURCE_COLOR_SPACE", ""):
        if "MINISWHITE" in structure:
            how = inversion(np.dtype(file.dtypes[0]).itemsize * 8)
            remedy = f"gdal_translate {how}{Path(where).name} gray.tif"
            raise ValueError(f"{where} has white-is-zero colors, which GDAL does not convert: {remedy} makes it gray")
        kind = structure["SOURCE_COLOR_SPACE"]
        remedy = f"magick {Path(where).name} -colorspace sRGB rgb.tif"
        raise ValueError(f"{where} has {kind} colors, which GDAL does not convert: make it RGB first, e.g. {remedy}")
    kinds = {ColorInterp.palette: "palette", ColorInterp.cyan: "CMYK", ColorInterp.Y: "YCbCr"}
    for color in file.colorinterp:
        if color in kinds:
            expand = "-expand rgb " if color is ColorInterp.palette else ""
            remedy = f"gdal_translate {expand}{Path(where).name} rgb.tif"
            if color is ColorInterp.cyan:  # which GDAL does not convert
                remedy = f"magick {Path(where).name} -colorspace sRGB rgb.tif"
            raise ValueError(f"{where} has {kinds[color]} colors: make it gray or RGB first, e.g. {remedy}")


def inversion(bits: int) -> str:
    """Return the options of gdal_translate that make gray of white-is-zero; of up to 8 bits it is a palette to GDAL."""
    return "-expand gray " if bits <= 8 else f"-scale 0 {2**bits - 1} {2**bits - 1} 0 "


def raster_levels(file: rasterio.DatasetReader, name: str) -> list[int]:
    """Return the overviews of a data set that are smaller than the one before, and have its mask."""
    mask, size, kept = mask_of(file), file.height * file.width, []
    for level in range(len(file.overviews(1))):
        with open_dataset(name, level) as overview:
            if overview.height * overview.width < size and mask_of(overview) == mask:
                kept.append(level)
                size = overview.height * overview.width
    return kept


def raster_level(raster: Raster, number: int, decoders: Decoders) -> Any:
    """Return a level of a raster as a lazy array ``(y, x, c)``."""
    read: Callable[[slice, slice], NDArray[Any]] = raster.read
    with open_dataset(raster.name, raster.level) as file:
        shape = (file.height, file.width, file.count + raster.masked)
        sides = raster_chunk(file, shape, raster.dtype)
        block = (*sides, shape[2]) if file.driver in WHOLE else (*file.block_shapes[0], shape[2])
        check_block(block, shape, raster.dtype.itemsize, address(raster.name), RETILE)
        if found := decoders.get((file.height, file.width, file.count)):
            read, sides = found[0].read, found[1]
            read = partial(raster.read_masked, read) if raster.masked else read
    return lazy(Source(shape, raster.dtype, read), sides, f"raster-{raster.token}-{number}")


def raster_chunk(file: rasterio.DatasetReader, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return rows and columns of a chunk: whole blocks of the file."""
    rows, cols = file.block_shapes[0]
    height, width, bands = shape
    if file.driver in WHOLE:
        return height, width
    if cols < width:
        return chunk_within(rows, cols, bands * dtype.itemsize)
    tall = max(STRIP_ROWS, min(CHUNK, STRIP_AREA // width))
    if rows == 1 and file.driver != "GTiff":
        return tall, min(width, CHUNK)  # raw pixels: columns can be read separately
    return math.ceil(tall / rows) * rows, width
