"""What an output cannot hold of its input, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dehazexl.io.photo_metadata import jpeg_markers
from dehazexl.io.raster_write import color_profile, unwritable
from dehazexl.io.tiff_write import is_ome

if TYPE_CHECKING:
    from pathlib import Path

    from dehazexl.image.image import Image

_NAMES = {"exif": "EXIF", "xmp": "XMP", "iptc": "IPTC", "icc_profile": "the color profile"}


def not_carried_over(path: Path, image: Image) -> str:
    """Return a line about the metadata of an image that the format of an output cannot hold; empty if it holds all."""
    suffix = path.suffix.lower()
    said = image.metadata
    lost = []
    if suffix in (".png", ".jpg", ".jpeg"):
        lost += ["the georeference"] if image.geo else []
        lost += ["the nodata value"] if image.nodata is not None else []
        tags = [tags.keys() - {"AREA_OR_POINT"} for tags in said.get("domains", {}).values()]
        lost += ["GDAL's metadata"] if any(tags) else []
        lost += ["scale and offset"] if "scales" in said else []
    if suffix in (".jpg", ".jpeg"):
        lost += ["the mask"] if image.masked else []
        lost += jpeg_markers(dict(said))[1] + (["EXIF"] if len(said.get("exif", b"")) > 65533 else [])
    if suffix == ".png":
        lost += ["IPTC"] if "iptc" in said else []
    if suffix in (".tif", ".tiff") and not is_ome(path, image):
        lost += unwritable(image)
    if suffix in (".tif", ".tiff") and said.get("container") == "cog":
        lost += [_NAMES[name] for name in ("exif", "iptc") if name in said]
    if suffix != ".zarr" and said.get("icc_profile") and not color_profile(image):
        lost.append(_NAMES["icc_profile"])
    return f"not carried over: {', '.join(lost)}" if lost else ""
