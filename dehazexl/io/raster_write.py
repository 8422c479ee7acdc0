"""Writer of GeoTIFF and COG by GDAL, block by block."""

from __future__ import annotations

import base64
import errno
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dehazexl.image.georeference import Geo, parse_crs
from dehazexl.io.exif import FOR_PROGRAMS
from dehazexl.io.gdal_name import gdal_name
from dehazexl.io.pyramid import Assembler, Levels
from dehazexl.io.raster_metadata import carried
from dehazexl.io.raster_read import gdal, gdal_errors, one_line, quietly_opened
from dehazexl.io.tiff_tags import add_tags, photo_tags

if TYPE_CHECKING:
    from pathlib import Path

    import rasterio
    from numpy.typing import NDArray

    from dehazexl.image.image import Image
    from dehazexl.io.blocks import Block

Compression = Literal["deflate", "zstd", "lzw", "lerc", "jpeg", "webp", "none"]

LOSSY = ("jpeg", "webp")
_PREDICTED = ("deflate", "zstd", "lzw")
_COLORS = ("red", "green", "blue")
_TEXTS = {"description": "IMAGEDESCRIPTION", "datetime": "DATETIME", "artist": "ARTIST", "copyright": "COPYRIGHT"}
_RESOLUTIONS = {"x_resolution": "XRESOLUTION", "y_resolution": "YRESOLUTION", "resolution_unit": "RESOLUTIONUNIT"}
_CENTIMETERS = {"meter": 100.0, "centimeter": 1.0, "millimeter": 0.1, "micrometer": 1e-4, "inch": 2.54}
_QUALITY = {"jpeg": 75, "webp": 75}
_ENOUGH = 2**22
"""Bytes that are free on a disk that is not full."""


def write_raster(
    blocks: Iterable[Block], path: Path, target: Image, compression: Compression
) -> Generator[int, None, None]:
    """Write blocks into a tiled GeoTIFF with overviews, as they arrive.

    A COG is made from a temporary GeoTIFF without loss beside `path`: the overviews of a COG come before its pixels.

    Parameters
    ----------
    blocks
        Row, column and pixels ``(y, x, c)`` of blocks that cover the image once.
    path
        Path of the file; an existing file is overwritten.
    target
        The image: its first level has the shape and dtype.
    compression
        Compression of the pixels; a lossy one is applied once.

    Yields
    ------
    int
        Number of pixels of each block; 0 while overviews are computed.
    """
    height, width, _ = target.levels[0].shape
    levels, cog = Levels(height, width), target.metadata.get("container") == "cog"
    staged = path.with_name(f"{path.name}.stage") if cog else path
    extra = photo_tags(target)
    # rasterio opens what is there before it replaces it, and fails on the rest of a run that was killed.
    for rest in (staged, path):
        rest.unlink(missing_ok=True)
    with _told_if_full(path):
        with gdal(GDAL_TIFF_INTERNAL_MASK="YES"):
            file = quietly_opened(staged, "w", **_profile(target, levels, "zstd" if cog else compression))
        try:
            with gdal(GDAL_TIFF_INTERNAL_MASK="YES"):
                _describe(file, target)
            assembler = Assembler(levels)
            for y, x, block in blocks:
                with gdal(GDAL_TIFF_INTERNAL_MASK="YES"):
                    for tile in assembler.paste(y, x, block):
                        _put(file, tile.row * levels.tile, tile.col * levels.tile, tile.pixels, target)
                yield block.shape[0] * block.shape[1]
        finally:
            with gdal():
                file.close()
        yield from _overviews(staged, levels, target)
        if extra:
            add_tags(staged, extra)
        if cog:
            _copied(staged, path, levels, target, compression)
            staged.unlink()


def compression_of(target: Image, wanted: Compression | None) -> Compression:
    """Return the compression that is asked for, else that of the input if it fits the image, else deflate."""
    kept: Compression = wanted or target.metadata.get("compression", "deflate")
    return kept if wanted or fits(target, kept) is None else "deflate"


def fits(target: Image, compression: str) -> str | None:
    """Return the reason why a compression cannot hold an image, or None."""
    bands = target.levels[0].shape[2] - target.masked
    dtype, fewer = target.levels[0].dtype, target.bits is not None
    if compression in LOSSY and fewer:
        return f"{compression} holds 8 bits, not {target.bits}"
    if compression == "jpeg" and bands > 4:
        return f"jpeg holds up to 4 bands, not {bands}"
    if compression == "jpeg" and dtype != np.uint8:
        return f"jpeg holds 8 bits without sign, not {dtype}"
    if compression == "webp" and (dtype != np.uint8 or bands not in (3, 4)):
        return f"webp holds 3 or 4 bands of 8 bits, not {bands} of {dtype}"
    if compression == "lerc" and (dtype == np.float16 or target.bits):
        return f"lerc does not hold {dtype} of {target.bits or 16} bits"
    return None


def _profile(target: Image, levels: Levels, compression: str) -> dict[str, Any]:
    """Return the options to create a file."""
    height, width, bands = target.levels[0].shape
    dtype, count = target.levels[0].dtype, bands - target.masked
    roles = color_roles(target)
    # GDAL before 3.11 has no float16; files of it are float32 of 16 bits.
    half = dtype == np.float16
    options: dict[str, Any] = {
        "driver": "GTiff", "height": height, "width": width, "count": count,
        "dtype": "float32" if half else dtype.name, "nodata": target.nodata,
        "photometric": "RGB" if roles[:3] == list(_COLORS) else "MINISBLACK", "ALPHA": "NO",
        "NBITS": 16 if half else target.bits,
        "SOURCE_ICC_PROFILE": base64.b64encode(profile).decode() if (profile := color_profile(target)) else None,
        **_layout(levels, dtype, compression, target),
    }  # fmt: skip
    if compression == "jpeg" and roles == list(_COLORS):
        options["photometric"] = "YCBCR"
    return {name: value for name, value in options.items() if value is not None} | _place(target)


def _layout(levels: Levels, dtype: np.dtype[Any], compression: str, target: Image) -> dict[str, Any]:
    """Return tiles and compression as options of GDAL."""
    side = block_side(target, levels)
    options: dict[str, Any] = {
        "tiled": True, "blockxsize": side, "blockysize": side, "interleave": "pixel",
        "compress": compression, "BIGTIFF": "IF_SAFER", "NUM_THREADS": min(4, os.cpu_count() or 1),
    }  # fmt: skip
    if compression in _PREDICTED and not target.bits and dtype != np.float16:
        options["predictor"] = 3 if dtype.kind == "f" else 2
    quality = target.metadata.get("quality") if target.metadata.get("compression") == compression else None
    if compression == "jpeg":
        options["JPEG_QUALITY"] = quality or _QUALITY["jpeg"]
    if compression == "webp":
        lossless = target.metadata.get("lossless") and target.metadata.get("compression") == compression
        options |= {"WEBP_LOSSLESS": "YES"} if lossless else {"WEBP_LEVEL": quality or _QUALITY["webp"]}
    return options


def block_side(target: Image, levels: Levels) -> int:
    """Return the side of the tiles in the file: that of the input if tiles of `levels` consist of such, else theirs."""
    side = target.metadata.get("blocksize") or levels.tile
    consist = levels.tile % side == 0 or max(levels.height, levels.width) <= levels.tile  # a single one
    return side if side % 16 == 0 and consist and 64 <= side <= levels.tile else levels.tile


def _place(target: Image) -> dict[str, Any]:
    """Return the georeference as options of rasterio."""
    from rasterio import Affine
    from rasterio.control import GroundControlPoint

    geo = target.geo
    if geo is None:
        return {}
    crs, _ = writable_crs(geo.wkt)  # `unwritable` tells what is lost
    options: dict[str, Any] = {} if crs is None else {"crs": crs}
    if geo.affine is not None:
        options["transform"] = Affine(*geo.affine)
    elif geo.gcps:
        options["gcps"] = [GroundControlPoint(row, col, x, y, z) for row, col, x, y, z in geo.gcps]
    return options


@lru_cache(maxsize=32)
def writable_crs(wkt: str) -> tuple[Any, bool]:
    """Return a coordinate system in the form that a GeoTIFF returns unchanged, and whether there is such a form.

    A GeoTIFF holds codes, or a name and parameters: WKT of version 2 can lose a vertical datum that its code keeps.

    Returns
    -------
    crs : rasterio.crs.CRS or None
        None if no form can be written.
    unchanged : bool
        Whether it is read back as it was.
    """
    possible = list(_crs_forms(wkt))
    unchanged = next((crs for crs in possible if _read_back(crs) == crs), None)
    return unchanged or next(iter(possible), None), unchanged is not None


def _crs_forms(wkt: str) -> Iterator[Any]:
    """Yield a coordinate system by its code, if it is that of a registry; as it is; and by WKT of version 1."""
    from pyproj.exceptions import CRSError
    from rasterio.crs import CRS
    from rasterio.errors import CRSError as UnknownError

    geo = Geo(wkt=wkt)
    if geo.crs is None:
        return
    with suppress(UnknownError):
        given = CRS.from_wkt(wkt)
        if geo.code is not None:
            with suppress(UnknownError):
                coded = CRS.from_user_input(geo.code)
                # The registries of the two libraries can be of different years.
                if coded == given or parse_crs(geo.code) == geo.crs:
                    yield coded
        yield given
        with suppress(CRSError):  # not every system has this form
            if (plain := CRS.from_wkt(geo.crs.to_wkt("WKT1_GDAL"))) == given:
                yield plain


def _read_back(crs: Any) -> Any:
    """Return a coordinate system as it is read from a GeoTIFF that it was written into."""
    import rasterio

    options = {"driver": "GTiff", "height": 1, "width": 1, "count": 1, "dtype": "uint8", "crs": crs}
    with gdal(), rasterio.MemoryFile() as memory:
        try:
            with quietly_opened(memory.name, "w", **options):
                pass
            with quietly_opened(memory.name) as file:
                return file.crs
        except gdal_errors():
            return None


def _describe(file: rasterio.DatasetWriter, target: Image) -> list[str]:
    """Write names, colors, scales and metadata of an open file; return the names of those that cannot be written."""
    lost = []
    failures: tuple[type[Exception], ...] = (*gdal_errors(), ValueError, TypeError, UnicodeError)
    for name, write in _parts(file, target):
        try:
            write()
        except failures:
            lost.append(name)
    return lost


def _parts(file: rasterio.DatasetWriter, target: Image) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is written beside the pixels, by name."""
    from rasterio.enums import ColorInterp

    for namespace, tags in target.metadata.get("domains", {}).items():
        if carried(namespace):
            kept = tags if namespace else _own_tags(tags)
            yield f"the metadata {namespace}".strip(), partial(file.update_tags, ns=namespace or None, **kept)
    yield "texts", partial(file.update_tags, **_texts(target), TIFFTAG_SOFTWARE="dehazexl")
    if target.geo is not None and target.geo.rpcs:
        yield "rational polynomials", partial(file.update_tags, ns="RPC", **target.geo.rpcs)
    for band, tags in enumerate(of_bands(target, "band_tags"), 1):
        if tags:
            yield f"metadata of band {band}", partial(file.update_tags, band, **tags)
    for name in ("scales", "offsets", "units"):
        if values := of_bands(target, name):
            yield name, partial(setattr, file, name, tuple(values))
    yield "names of bands", partial(setattr, file, "descriptions", tuple(band_names(target)))
    wanted = tuple(ColorInterp[role] for role in color_roles(target))
    if file.colorinterp != wanted:
        yield "colors of bands", partial(setattr, file, "colorinterp", wanted)


def unwritable(target: Image) -> list[str]:
    """Return the names of metadata that a TIFF cannot hold, by writing them into one in memory."""
    import rasterio

    options = {**_profile(target, Levels(16, 16), "none"), "height": 16, "width": 16}
    with gdal(), rasterio.MemoryFile() as memory, quietly_opened(memory.name, "w", **options) as file:
        lost = _describe(file, target)
    if target.geo is not None and target.geo.wkt:
        crs, unchanged = writable_crs(target.geo.wkt)
        lost += ["the coordinate system"] if crs is None else [] if unchanged else ["parts of the coordinate system"]
    return lost


def of_bands(target: Image, name: str) -> list[Any]:
    """Return metadata with a value for each band; empty if the image has other bands than its input."""
    values = list(target.metadata.get(name, ()))
    return values if len(values) == target.levels[0].shape[2] - target.masked else []


def band_names(target: Image) -> list[str | None]:
    """Return the names of the bands in the file; None where readers derive them from number or color."""
    names = target.bands[: len(target.bands) - target.masked]
    described = of_bands(target, "descriptions")
    if described and all(old is None or old == new for old, new in zip(described, names, strict=True)):
        return described
    plain = ("gray", *_COLORS, "alpha", "mask")
    if all(name in (f"band {band}", *plain) for band, name in enumerate(names, 1)):
        return [None] * len(names)
    return [None if name == f"band {band}" else name for band, name in enumerate(names, 1)]


def color_roles(target: Image) -> list[str]:
    """Return the color interpretation of each band: that of the input, else red, green, blue and alpha where known."""
    if kept := of_bands(target, "colorinterp"):
        return kept
    count = target.levels[0].shape[2] - target.masked
    roles = ["undefined"] * count
    if len(set(target.rgb)) == 3 and not target.guessed:
        for band, color in zip(target.rgb, _COLORS, strict=True):
            roles[band] = color
    elif target.alpha != 0:
        roles[0] = "gray"
    if target.alpha is not None and not target.masked:
        roles[target.alpha] = "alpha"
    return roles


def color_profile(target: Image) -> bytes:
    """Return the ICC profile of the input, or an empty string if there is none or it does not fit the bands."""
    profile = bytes(target.metadata.get("icc_profile", b""))
    is_rgb = tuple(target.rgb) == (0, 1, 2) and target.alpha not in target.rgb
    return profile if profile[16:20] == (b"RGB " if is_rgb else b"GRAY") else b""


def _own_tags(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags of the default domain without those that GDAL derives from EXIF, and that belong to the file."""
    described = tags.get("TIFFTAG_IMAGEDESCRIPTION", "")
    left = {"TIFFTAG_IMAGEDESCRIPTION"} if FOR_PROGRAMS.match(described) else set()
    return {name: text for name, text in tags.items() if not name.startswith("EXIF_") and name not in left}


def _texts(target: Image) -> dict[str, str]:
    """Return descriptive tags of images that GDAL did not read, and the resolution."""
    said = target.metadata
    tags = {f"TIFFTAG_{tag}": str(said[name]) for name, tag in _TEXTS.items() if said.get(name)}
    # A description for programs describes the pages of the input file, not of this one.
    if FOR_PROGRAMS.match(tags.get("TIFFTAG_IMAGEDESCRIPTION", "")):
        del tags["TIFFTAG_IMAGEDESCRIPTION"]
    tags |= {str(name): str(text) for name, text in said.get("texts", {}).items()}
    return tags | {f"TIFFTAG_{name}": text for name, text in resolution(target).items()}


def resolution(target: Image) -> dict[str, str]:
    """Return the resolution of the input, else that of the pixel size if it is a length."""
    said = target.metadata
    stated = [_ratio(said.get(name)) for name in ("x_resolution", "y_resolution")]
    unit = int(said.get("resolution_unit") or 1)
    if all(stated) and (unit != 1 or target.units == "pixel"):
        x, y = stated
        return {"XRESOLUTION": f"{x:.17g}", "YRESOLUTION": f"{y:.17g}", "RESOLUTIONUNIT": str(unit)}
    centimeters = _CENTIMETERS.get(target.units)
    if centimeters is None or target.geo is not None:
        return {}
    y, x = (1 / (size * centimeters) for size in target.scale)
    return {"XRESOLUTION": f"{x:.17g}", "YRESOLUTION": f"{y:.17g}", "RESOLUTIONUNIT": "3"}


def _ratio(value: Any) -> float:
    """Return a resolution as a number; 0 for none, and for 0/0, which some writers use."""
    if isinstance(value, (tuple, list)):
        return value[0] / value[1] if value[1] else 0.0
    return float(value or 0)


def _put(file: rasterio.DatasetWriter, y: int, x: int, pixels: NDArray[Any], target: Image) -> None:
    """Write a tile ``(y, x, c)``, its mask apart."""
    from rasterio.windows import Window

    window = Window(x, y, pixels.shape[1], pixels.shape[0])
    values = pixels[..., : file.count].astype(file.dtypes[0], copy=False)
    file.write(np.ascontiguousarray(np.moveaxis(values, -1, 0)), window=window)
    if target.masked:
        file.write_mask((pixels[..., -1] != 0).astype(np.uint8) * 255, window=window)


def _overviews(path: Path, levels: Levels, target: Image) -> Iterator[int]:
    """Compute the overviews of a file, one after the other; yield 0 before each."""
    from rasterio.enums import Resampling

    side, longest = block_side(target, levels), max(levels.height, levels.width)
    factors = [2**level for level in range(1, 32) if longest > side * 2 ** (level - 1)]
    options = {"GDAL_TIFF_INTERNAL_MASK": "YES", "GDAL_TIFF_OVR_BLOCKSIZE": side}
    if quality := _layout(levels, target.levels[0].dtype, "jpeg", target)["JPEG_QUALITY"]:
        options["JPEG_QUALITY_OVERVIEW"] = quality
    if factors:
        yield 0
        with gdal(**options), quietly_opened(path, "r+") as file:
            file.build_overviews(factors, Resampling.average)
    yield 0


def _copied(staged: Path, path: Path, levels: Levels, target: Image, compression: Compression) -> None:
    """Copy a GeoTIFF with overviews into a COG."""
    import rasterio.shutil

    options = _layout(levels, target.levels[0].dtype, compression, target)
    if compression == "jpeg" and color_roles(target) == list(_COLORS):
        options["photometric"] = "YCBCR"
    with gdal(GDAL_TIFF_INTERNAL_MASK="YES", GDAL_TIFF_OVR_BLOCKSIZE=block_side(target, levels)):
        rasterio.shutil.copy(gdal_name(staged), gdal_name(path), driver="GTiff", COPY_SRC_OVERVIEWS="YES", **options)


@contextmanager
def _told_if_full(path: Path) -> Iterator[None]:
    """Convert errors of GDAL to OSError: that of a full disk if it is one."""
    failures: tuple[type[Exception], ...] = (*gdal_errors(), ValueError)
    try:
        yield
        check_complete(path)
    except failures as error:
        if shutil.disk_usage(path.parent).free < _ENOUGH:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if isinstance(error, ValueError):
            raise
        raise OSError(f"{path} could not be written: {one_line(error)}") from error


def check_complete(path: Path) -> None:
    """Raise ValueError if a TIFF ends before its pixels: GDAL does not report all failures when it closes a file."""
    from tifffile import TiffFile

    from dehazexl.io.tiff_pages import check_segments

    with TiffFile(path) as tif:
        for page in tif.pages:
            check_segments(page.aspage(), page.aspage())
