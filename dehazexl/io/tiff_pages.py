"""Pixels of TIFF pages, memory-mapped or decoded by tile and strip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.io.embedded import embedded_size
from dehazexl.io.source import MAX_BLOCK, RETILE, check_block, report_damage

if TYPE_CHECKING:
    import tifffile
    from numpy.typing import NDArray

JPEG = (6, 7, 34892, 33007)  # compressions that store tables outside the tiles


def check_segments(page: tifffile.TiffPage | tifffile.TiffFrame, key: tifffile.TiffPage) -> None:
    """Check that the tiles or strips of a page can be read, and from their table that none extends beyond the end.

    Raises
    ------
    ValueError
        If the file is truncated, or a tile is too large to be read at once.
    """
    path = tiff_path(page)
    samples = key.samplesperpixel if key.planarconfig == 1 else 1
    check_block((*segment_sides(key), samples), key.shape, np.dtype(key.dtype).itemsize, str(path), RETILE)
    size, count = path.stat().st_size, math.prod(key.chunked)
    if min(len(page.dataoffsets), len(page.databytecounts)) < count:
        raise ValueError(f"{path} is cut short: its list of tiles is missing; copy or download it again")
    lengths = np.asarray(page.databytecounts[:count], np.uint64)
    if (longest := int(lengths.max())) > MAX_BLOCK:
        name = segment_name(key, int(lengths.argmax()))
        raise ValueError(f"{path} is damaged: {name} holds {longest} bytes, more than is read at once: {RETILE}")
    ends = np.asarray(page.dataoffsets[:count], np.uint64) + lengths
    (beyond,) = np.nonzero(ends > size)
    if beyond.size:
        first = segment_name(key, int(beyond[0]))
        raise ValueError(
            f"{path} is cut short: {first} and {beyond.size - 1} more of {count} end at byte {int(ends.max())}"
            f" but the file has {size}; copy or download it again"
        )


def segment_name(page: tifffile.TiffPage, index: int) -> str:
    """Return the name of a tile or strip for messages, counting from 0."""
    down, across = segment_grid(page)
    row, col = divmod(index % (down * across), across)
    if page.is_tiled:
        return f"tile {index} (row {row}, column {col})"
    return f"strip {index} (from pixel row {row * page.rowsperstrip})"


def segment_sides(page: tifffile.TiffPage) -> tuple[int, int]:
    """Return height and width of a tile or strip in pixels."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def segment_grid(page: tifffile.TiffPage) -> tuple[int, int]:
    """Return the number of tiles or strips down and across."""
    height, width = segment_sides(page)
    return math.ceil(page.imagelength / height), math.ceil(page.imagewidth / width)


def tiff_path(page: tifffile.TiffPage | tifffile.TiffFrame) -> Path:
    """Return the file that contains a page; an OME-TIFF can consist of several."""
    return Path(page.parent.filehandle.path)


@dataclass(frozen=True)
class Mapped:
    """Uncompressed, contiguous pixels of a file.

    They are memory-mapped for each read, so no file stays open and dask tasks can be pickled.

    Attributes
    ----------
    path
        The file.
    dtype, shape
        Data type, with byte order, and shape of the array.
    offset
        Position of the first pixel in bytes.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def __getitem__(self, index: tuple[slice | int, ...]) -> NDArray[Any]:
        """Read the elements at an index."""
        return np.array(np.memmap(self.path, self.dtype, "r", self.offset, self.shape)[index])

    def check(self) -> None:
        """Raise ValueError if the file ends before its last pixel."""
        size, end = self.path.stat().st_size, self.offset + math.prod(self.shape) * self.dtype.itemsize
        if end > size:
            raise ValueError(
                f"{self.path} is cut short: its pixels end at byte {end} but the file has {size};"
                " copy or download it again"
            )


@dataclass(frozen=True)
class Plane:
    """A page of a TIFF, read without the lock of tifffile and without keeping the file open.

    The decoder is a closure, which cannot be pickled, so each process creates its own from the position of the page.

    Attributes
    ----------
    path
        The file.
    offset
        Position of the page in bytes.
    """

    path: Path
    offset: int

    @cached_property
    def page(self) -> tifffile.TiffPage:
        """The page with its decoder."""
        import tifffile

        with report_damage(self.path, "TIFF"), tifffile.TiffFile(self.path) as tif:
            tif.filehandle.seek(self.offset)
            page = tifffile.TiffPage(tif, 0)
            if page.planarconfig == 2 and page.compression in JPEG:
                # A JPEG of one band has no colors to convert, and its decoder fails if asked to.
                page.photometric = tifffile.PHOTOMETRIC.MINISBLACK
            elif page.compression == 7 and page.samplesperpixel == 3 and int(page.photometric) == 1:
                # Three bands that are not colors, which libjpeg would decode as YCbCr.
                page.photometric, page.extrasamples = tifffile.PHOTOMETRIC.RGB, ()
            page.init_decode()
            return page

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the decoder."""
        return {"path": self.path, "offset": self.offset}

    def read(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Decode the tiles or strips in a window ``(y, x, samples)``."""
        page = self.page
        shape = (rows.stop - rows.start, cols.stop - cols.start, page.samplesperpixel)
        window = np.full(shape, page.nodata, page.dtype)
        with self.path.open("rb") as file:
            for index in self.segments(rows, cols):
                offset, length = page.dataoffsets[index], page.databytecounts[index]
                if not length:
                    continue
                file.seek(offset)
                block, (sample, _, y, x, *_) = self.decode(file.read(length), index)
                paste(window[..., sample:], block, y - rows.start, x - cols.start)
        return window

    def is_missing(self, rows: slice, cols: slice) -> bool:
        """Return whether the file contains no tile or strip of a window; `read` fills it with ``page.nodata``."""
        return not any(self.page.databytecounts[index] for index in self.segments(rows, cols))

    def segments(self, rows: slice, cols: slice) -> Iterator[int]:
        """Yield the indices of the tiles or strips in a window."""
        page = self.page
        (height, width), (down, across) = segment_sides(page), segment_grid(page)
        for plane in range(page.samplesperpixel if page.planarconfig == 2 else 1):
            for row in range(rows.start // height, -(-rows.stop // height)):
                for col in range(cols.start // width, -(-cols.stop // width)):
                    yield (plane * down + row) * across + col

    def decode(self, data: bytes, index: int) -> tuple[NDArray[Any], tuple[int, ...]]:
        """Decode a tile or strip.

        Returns
        -------
        numpy.ndarray
            Pixels ``(y, x, samples)``.
        tuple of int
            Position ``(sample, z, y, x, 0)`` of the first pixel.

        Raises
        ------
        ValueError
            If the tile is damaged or claims to be larger than can be read, or its compression is not supported.
        """
        page = self.page
        if (size := embedded_size(data)) is not None:
            check_block(size, page.shape, 1, str(self.path), RETILE)
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in JPEG else {}
        try:
            block, position, _ = page.decode(data, index, **tables)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            name = segment_name(page, index)
            raise ValueError(
                f"{self.path} is damaged at {name}, or its compression is not supported: {error}"
            ) from error
        assert block is not None
        return block[0], position


def paste(window: NDArray[Any], block: NDArray[Any], top: int, left: int) -> None:
    """Copy the part of a block that lies in a window, at row `top` and column `left`, which may be negative."""
    bottom, right = min(top + block.shape[0], window.shape[0]), min(left + block.shape[1], window.shape[1])
    part = block[max(-top, 0) : bottom - top, max(-left, 0) : right - left]
    window[max(top, 0) : bottom, max(left, 0) : right, : block.shape[2]] = part


def read_planes(planes: Sequence[Plane], rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window ``(y, x, c)`` from the pages that hold the bands."""
    blocks = [plane.read(rows, cols) for plane in planes]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=-1)
