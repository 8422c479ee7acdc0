"""What an output cannot hold of its input, found before anything is computed."""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection, Set
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dehazexl.io.photo_metadata import jpeg_markers, unusual_colors
from dehazexl.io.raster_metadata import DERIVED
from dehazexl.io.raster_read import gdal, open_dataset
from dehazexl.io.raster_write import color_profile, compression_of, unwritable
from dehazexl.io.tiff_tags import CAMERA
from dehazexl.io.tiff_write import CODES, SETTINGS, is_ome
from dehazexl.io.write import PHOTO, TIFF, write

if TYPE_CHECKING:
    from dehazexl.image.image import Image
    from dehazexl.io.raster_write import Compression
    from dehazexl.io.zarr_write import Ngff

_NAMES = {"exif": "EXIF", "xmp": "XMP", "iptc": "IPTC", "icc_profile": "the color profile"}
_MORE_NAMES = {
    **_NAMES,
    "tags": "tags of cameras and programs",
    "ome_xml": "the metadata of OME",
    "domains": "GDAL's metadata",
}
_SIDE = 16
_LONGEST_EXIF = 65533


def carried_over(
    path: Path, image: Image, ngff: Ngff = "0.5", compression: Compression | None = None
) -> tuple[Image, str]:
    """Return an image with the metadata that an output can hold, and a line about the other; empty if it holds all.

    The metadata is written into a small image of the same format, so that none of it can fail after hours of work.

    Parameters
    ----------
    path, ngff, compression
        The output, see `dehazexl.io.write.write`.
    image
        The image.

    Raises
    ------
    ValueError
        If not even an image without metadata can be written.
    """
    lost = _lost(path, image, compression)
    image = _with(image, image.metadata.keys() - {"left_out"})
    back = _written(path, image, ngff, compression)
    if back is None:
        kept = [name for name in image.metadata if _written(path, _with(image, {name}), ngff, compression) is not None]
        lost += [_MORE_NAMES.get(name, name) for name in image.metadata if name not in kept]
        image = _with(image, set(kept))
        if not kept:
            _check_writable(path, image, ngff, compression)
    else:
        lost += [f"the metadata {name}" for name in image.metadata.get("domains", ()) if name and name not in back]
    return image, _line(lost)


def not_carried_over(path: Path, image: Image) -> str:
    """Return a line about the metadata of an image that the format of an output cannot hold; empty if it holds all."""
    return _line(_lost(path, image))


def _lost(path: Path, image: Image, compression: Compression | None = None) -> list[str]:
    """Return the names of what the format of an output is known not to hold."""
    suffix, said = path.suffix.lower(), image.metadata
    lost = [f"the metadata {name}" for name in said.get("left_out", ())]
    if suffix != ".png" and unusual_colors(dict(said)):
        lost.append("the gamma of the PNG")
    if suffix in TIFF:
        lost += _lost_layout(path, image, compression)
    if suffix in (".jpg", ".jpeg"):
        lost += ["the nodata value"] if image.nodata is not None else []
        lost += ["the mask"] if image.masked else []
        lost += jpeg_markers(dict(said))[1] + (["EXIF"] if len(said.get("exif", b"")) > _LONGEST_EXIF else [])
    if suffix == ".png":
        lost += ["IPTC"] if "iptc" in said else []
    if suffix in TIFF and is_ome(path, image):
        return lost + _lost_in_ome(image)
    if suffix in (*TIFF, *PHOTO):
        lost += unwritable(image)
    if suffix in TIFF and said.get("container") == "cog":
        lost += [_MORE_NAMES[name] for name in ("exif", "iptc", "tags") if name in said]
    in_exif = {str(code) for code in CAMERA} if "exif" in said else set()
    lost += [_MORE_NAMES["tags"]] if suffix in PHOTO and said.get("tags", {}).keys() - in_exif else []
    if suffix in (*TIFF, *PHOTO) and said.get("icc_profile") and not color_profile(image):
        lost.append(_NAMES["icc_profile"])
    return lost


def _lost_layout(path: Path, image: Image, wanted: Compression | None) -> list[str]:
    """Return compression and interleaving of a TIFF if it is written in another way than asked for."""
    stated, written, lost = str(image.metadata.get("compressed", "")), compression_of(image, wanted), []
    ome = is_ome(path, image)
    written = written if written in CODES or not ome else "deflate"
    if stated and wanted is None and stated.split()[-1] != written:
        lost.append(f"the compression {stated} (it is {written} now)")
    return lost + (["the interleaving by bands"] if image.metadata.get("planes") and not ome else [])


def _lost_in_ome(image: Image) -> list[str]:
    """Return the names of what OME-TIFF does not hold."""
    said = image.metadata
    domains = [tags for name, tags in said.get("domains", {}).items() if name != SETTINGS]
    held = {
        "the georeference": image.geo,
        "the nodata value": image.nodata is not None,
        "the mask": image.masked,
        "GDAL's metadata": any(tags.keys() - {"AREA_OR_POINT"} for tags in domains),
        "scale and offset": "scales" in said or "offsets" in said,
        **{text: name in said for name, text in (*_NAMES.items(), ("tags", _MORE_NAMES["tags"]))},
    }
    return [name for name, there in held.items() if there]


def _line(lost: list[str]) -> str:
    return f"not carried over: {', '.join(dict.fromkeys(lost))}" if lost else ""


def _with(image: Image, names: Set[str]) -> Image:
    return replace(image, metadata={name: value for name, value in image.metadata.items() if name in names})


def _check_writable(path: Path, image: Image, ngff: Ngff, compression: Compression | None) -> None:
    try:
        _write_small(path, image, ngff, compression)
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{path} cannot be written ({reason}): choose another format or compression") from error


def _written(path: Path, image: Image, ngff: Ngff, compression: Compression | None) -> Collection[str] | None:
    """Return GDAL's domains that a small image with this metadata holds; None if it cannot be written."""
    try:
        return _write_small(path, image, ngff, compression)
    except MemoryError:
        raise  # not because of the metadata
    except Exception as error:  # libraries fail in any way on values that they did not make
        logging.getLogger(__name__).debug("metadata of %s", path, exc_info=True)
        unwritable = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
        full = isinstance(error, OSError) and error.errno in unwritable
        return image.metadata.get("domains", ()) if full else None


def _write_small(path: Path, image: Image, ngff: Ngff, compression: Compression | None) -> Collection[str]:
    """Write a small image with the metadata of another into a temporary folder; return as `_written`."""
    import dask.array as da

    level = da.zeros((_SIDE, _SIDE, image.levels[0].shape[2]), dtype=image.levels[0].dtype)
    small = replace(image, levels=(level,), path=None, guard=None, holes=None, border=None)
    suffix = path.suffix.lower()
    with TemporaryDirectory() as folder:
        output = Path(folder) / path.name
        for _ in write(level, output, small, ngff=ngff, compression=compression):
            pass
        if suffix not in (*TIFF, *PHOTO) or (suffix in TIFF and is_ome(path, small)):
            return list(image.metadata.get("domains", ()))
        with gdal(), open_dataset(str(output)) as file:
            return [*file.tag_namespaces(), *DERIVED]
