"""Pixels of TIFF pages: mapped, or tile by tile and strip by strip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.io.source import named

if TYPE_CHECKING:
    import tifffile
    from numpy.typing import NDArray

JPEG = (6, 7, 34892, 33007)  # compressions whose tables stand outside the tiles


def check_segments(page: tifffile.TiffPage | tifffile.TiffFrame, key: tifffile.TiffPage) -> None:
    """Refuse a page with a tile or strip past the end of the file, by the table of tiles alone."""
    path = tiff_path(page)
    size, count = path.stat().st_size, math.prod(key.chunked)
    if min(len(page.dataoffsets), len(page.databytecounts)) < count:
        raise ValueError(f"{path} is cut short: its list of tiles is missing; copy or download it again")
    ends = np.asarray(page.dataoffsets[:count], np.uint64) + np.asarray(page.databytecounts[:count], np.uint64)
    (beyond,) = np.nonzero(ends > size)
    if beyond.size:
        place = segment_name(key, int(beyond[0]))
        raise ValueError(
            f"{path} is cut short: {place} and {beyond.size - 1} more of {count} end at byte {int(ends.max())}"
            f" but the file has {size}; copy or download it again"
        )


def segment_name(page: tifffile.TiffPage, index: int) -> str:
    """Name a tile or strip for people, numbers from 0."""
    down, across = segment_grid(page)
    row, col = divmod(index % (down * across), across)
    if page.is_tiled:
        return f"tile {index} (row {row}, column {col})"
    return f"strip {index} (from pixel row {row * page.rowsperstrip})"


def segment_sides(page: tifffile.TiffPage) -> tuple[int, int]:
    """Height and width of a tile or strip, in pixels."""
    return (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)


def segment_grid(page: tifffile.TiffPage) -> tuple[int, int]:
    """Tiles down and across."""
    height, width = segment_sides(page)
    return math.ceil(page.imagelength / height), math.ceil(page.imagewidth / width)


def tiff_path(page: tifffile.TiffPage | tifffile.TiffFrame) -> Path:
    """Find the file that holds a page: OME-TIFF spreads over several."""
    return Path(page.parent.filehandle.path)


@dataclass(frozen=True)
class Mapped:
    """Pixels that lie bare in a file, mapped for each read so that no file stays open and tasks can be sent."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    def __getitem__(self, index: tuple[slice | int, ...]) -> NDArray[Any]:
        """Read a window."""
        return np.array(np.memmap(self.path, self.dtype, "r", self.offset, self.shape)[index])

    def check(self) -> None:
        """Refuse a file that ends before its last pixel."""
        size, end = self.path.stat().st_size, self.offset + math.prod(self.shape) * self.dtype.itemsize
        if end > size:
            raise ValueError(
                f"{self.path} is cut short: its pixels end at byte {end} but the file has {size};"
                " copy or download it again"
            )


@dataclass(frozen=True)
class Plane:
    """One page of a TIFF, read without tifffile's lock and without holding the file open.

    Its decoder is a closure that cannot be pickled, so it is made again in each process, from the page's
    place in the file.
    """

    path: Path
    offset: int

    @cached_property
    def page(self) -> tifffile.TiffPage:
        """The page, with all that decoding needs."""
        import tifffile

        with named(self.path, "TIFF"), tifffile.TiffFile(self.path) as tif:
            tif.filehandle.seek(self.offset)
            page = tifffile.TiffPage(tif, 0)
            if page.planarconfig == 2 and page.compression in JPEG:
                # A JPEG of one band has no colors to convert, and its decoder refuses to be asked for them.
                page.photometric = tifffile.PHOTOMETRIC.MINISBLACK
            elif page.compression == 7 and page.samplesperpixel == 3 and int(page.photometric) == 1:
                # Three bands that are no colors: libjpeg would take them for YCbCr.
                page.photometric, page.extrasamples = tifffile.PHOTOMETRIC.RGB, ()
            page.init_decode()
            return page

    def __getstate__(self) -> dict[str, Any]:
        """Leave the decoder behind."""
        return {"path": self.path, "offset": self.offset}

    def read(self, rows: slice, cols: slice) -> NDArray[Any]:
        """Decode the tiles or strips under a window, ``(y, x, samples)``."""
        page = self.page
        shape = (rows.stop - rows.start, cols.stop - cols.start, page.samplesperpixel)
        window = np.full(shape, page.nodata, page.dtype)
        with self.path.open("rb") as file:
            for index in self.segments(rows, cols):
                offset, length = page.dataoffsets[index], page.databytecounts[index]
                if not length:
                    continue
                file.seek(offset)
                block, place = self.decode(file.read(length), index)
                paste(window[..., place[0] :], block, place[2] - rows.start, place[3] - cols.start)
        return window

    def segments(self, rows: slice, cols: slice) -> Iterator[int]:
        """List the indices of the tiles or strips under a window."""
        page = self.page
        (height, width), (down, across) = segment_sides(page), segment_grid(page)
        for plane in range(page.samplesperpixel if page.planarconfig == 2 else 1):
            for row in range(rows.start // height, -(-rows.stop // height)):
                for col in range(cols.start // width, -(-cols.stop // width)):
                    yield (plane * down + row) * across + col

    def decode(self, data: bytes, index: int) -> tuple[NDArray[Any], tuple[int, ...]]:
        """Decode a tile or strip: its pixels ``(y, x, samples)`` and its place ``(sample, z, y, x, 0)``."""
        page = self.page
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in JPEG else {}
        try:
            block, place, _ = page.decode(data, index, **tables)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            name = segment_name(page, index)
            raise ValueError(f"{self.path} is damaged at {name}, or its codec is unknown: {error}") from error
        assert block is not None
        return block[0], place


def paste(window: NDArray[Any], block: NDArray[Any], top: int, left: int) -> None:
    """Copy the part of a block that falls into a window; ``top`` and ``left`` may be negative."""
    bottom, right = min(top + block.shape[0], window.shape[0]), min(left + block.shape[1], window.shape[1])
    part = block[max(-top, 0) : bottom - top, max(-left, 0) : right - left]
    window[max(top, 0) : bottom, max(left, 0) : right, : block.shape[2]] = part


def read_planes(planes: Sequence[Plane], rows: slice, cols: slice) -> NDArray[Any]:
    """Read a window of pages that hold the bands."""
    blocks = [plane.read(rows, cols) for plane in planes]
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=-1)
