"""EXIF, XMP, IPTC and color profiles of JPEG and PNG."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.io.exif import exif_of, orientation_of, parse_exif, upright_exif

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

IPTC_RESOURCE = 0x0404
PNG_XMP = b"XML:com.adobe.xmp"
XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
PHOTOSHOP = b"Photoshop 3.0\0"
PNG_TEXTS = {"description": "Description", "artist": "Author", "copyright": "Copyright", "datetime": "Creation Time"}
"""Keys of texts of PNG by the name of the metadata."""
PNG_COLORS = (b"gAMA", b"cHRM", b"sRGB", b"cICP")
"""Chunks of PNG that say which colors the values are."""
PNG_KINDS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt", b"iCCP", b"pHYs", *PNG_COLORS)
USUAL_GAMMA = range(44_500, 46_500)
"""That of sRGB, approximately, in 1/100,000."""
INCH, CENTIMETER = 2, 3
"""Units of a resolution, as in TIFF."""
LARGEST = 16 * 2**20
"""Bytes of a chunk of metadata at most."""
LUMINANCE = (
    *(16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51),
    *(61, 60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77),
    *(113, 121, 112, 100, 120, 92, 101, 103, 99),
)  # fmt: skip
"""Quantization of luminance at quality 50, in zigzag order (ITU T.81, table K.1)."""
MOST_CHUNKS = 200_000
"""Chunks of a PNG that are looked at."""
LONGEST = 65533
"""Bytes of a marker of JPEG at most."""


def jpeg_metadata(file: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the metadata of a JPEG that Pillow has opened, and a line about entries that cannot be kept."""
    exif = exif_of(file)
    width, height = file.size[::-1] if orientation_of(exif) >= 5 else file.size
    data, lost = upright_exif(exif, height, width)
    resources = file.info.get("photoshop") or {}
    found: dict[str, Any] = {
        "exif": data,
        "xmp": file.info.get("xmp", b""),
        "iptc": resources.get(IPTC_RESOURCE, b"") if isinstance(resources, dict) else b"",
        "icc_profile": file.info.get("icc_profile", b""),
    }
    # Not Pillow's dpi, which is 72 where the file says nothing.
    density, unit = file.info.get("jfif_density", (0, 0)), file.info.get("jfif_unit")
    if all(density) and unit in (1, 2):
        found |= {"x_resolution": float(density[0]), "y_resolution": float(density[1])}
        found["resolution_unit"] = INCH if unit == 1 else CENTIMETER
    if comment := file.info.get("comment"):
        found["description"] = comment.decode("utf-8", "replace").rstrip("\0")
    return {name: value for name, value in found.items() if value}, lost_line(lost)


def quality_of(table: NDArray[np.uint8]) -> int:
    """Return the quality of JPEG, 1 to 100, whose quantization of luminance (in zigzag order) is nearest to a table."""
    quality = np.arange(1, 101)
    scale = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    tables = np.clip((scale[:, None] * np.array(LUMINANCE) + 50) // 100, 1, 255)
    return int(quality[np.abs(tables - table.astype(int)).sum(axis=1).argmin()])


def lost_line(lost: list[str]) -> tuple[str, ...]:
    """Return a line about entries of EXIF that cannot be written, or none."""
    return (f"EXIF that does not follow its standard is left out: {', '.join(lost)}",) if lost else ()


def png_metadata(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the metadata of a PNG, and a line about entries that cannot be kept; nothing of a damaged one."""
    found: dict[str, Any] = {}
    lost: list[str] = []
    texts: dict[str, str] = {}
    colors: dict[str, str] = {}
    for kind, data in _chunks(path):
        if kind == b"eXIf":
            exif = parse_exif(data)
            found["exif"], lost = upright_exif(exif, 0, 0)
        elif kind == b"iTXt" and data.startswith(PNG_XMP + b"\0\0"):
            found["xmp"] = data[len(PNG_XMP) + 3 :].split(b"\0", 2)[-1]
        elif kind == b"iCCP":
            found["icc_profile"] = _inflated(data.partition(b"\0")[2][1:])
        elif kind in PNG_COLORS:
            colors[kind.decode()] = data.hex()
        elif kind == b"pHYs" and len(data) == 9 and data[8] == 1:
            x, y = (pixels / 100 for pixels in struct.unpack(">II", data[:8]))
            found |= {"x_resolution": x, "y_resolution": y, "resolution_unit": CENTIMETER}
        elif (text := _png_text(kind, data)) is not None:
            texts[text[0]] = text[1]
    found |= {name: texts.pop(key) for name, key in PNG_TEXTS.items() if key in texts}
    found |= {"texts": texts, "png_colors": colors}
    return {name: value for name, value in found.items() if value}, lost_line(lost)


def unusual_colors(metadata: dict[str, Any]) -> bool:
    """Return whether a PNG has colors other than those of sRGB, which other formats are taken to have."""
    colors = metadata.get("png_colors", {})
    gamma = int.from_bytes(bytes.fromhex(colors["gAMA"]), "big") if "gAMA" in colors else USUAL_GAMMA[0]
    return "cICP" in colors or (gamma not in USUAL_GAMMA and not {"sRGB"} & colors.keys())


def _png_text(kind: bytes, data: bytes) -> tuple[str, str] | None:
    """Return key and text of a chunk of PNG; None if it is no text."""
    key, _, rest = data.partition(b"\0")
    if kind == b"tEXt":
        return key.decode("latin-1"), rest.decode("latin-1")
    if kind == b"zTXt":
        return key.decode("latin-1"), _inflated(rest[1:]).decode("latin-1")
    if kind == b"iTXt" and len(rest) > 1:
        text = rest[2:].split(b"\0", 2)[-1]
        return key.decode("latin-1"), (_inflated(text) if rest[0] else text).decode("utf-8", "replace")
    return None


def _inflated(data: bytes) -> bytes:
    """Decompress a profile; nothing if it is damaged."""
    try:
        return zlib.decompressobj().decompress(data, LARGEST)
    except zlib.error:
        return b""


def _chunks(path: Path) -> list[tuple[bytes, bytes]]:
    """Return the chunks of metadata of a PNG."""
    found = []
    with path.open("rb") as file:
        file.seek(8)
        for _ in range(MOST_CHUNKS):
            head = file.read(8)
            if len(head) < 8:
                break
            length, kind = struct.unpack(">I4s", head)
            if kind in PNG_KINDS and length <= LARGEST:
                found.append((kind, file.read(length)))
                file.seek(4, 1)
            elif kind == b"IEND":
                break
            else:
                file.seek(length + 4, 1)
    return found


def jpeg_markers(metadata: dict[str, Any]) -> tuple[bytes, list[str]]:
    """Return XMP and IPTC as markers of JPEG, and the names of those that are too long for one."""
    markers: bytes = b""
    lost: list[str] = []
    if xmp := metadata.get("xmp"):
        markers, lost = _marked(0xE1, XMP_HEAD + bytes(xmp), "XMP", markers, lost)
    if iptc := bytes(metadata.get("iptc", b"")):
        resource = b"8BIM" + struct.pack(">HHI", IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
        markers, lost = _marked(0xED, PHOTOSHOP + resource, "IPTC", markers, lost)
    return markers, lost


def _marked(code: int, data: bytes, name: str, markers: bytes, lost: list[str]) -> tuple[bytes, list[str]]:
    if len(data) > LONGEST:
        return markers, [*lost, name]
    return markers + struct.pack(">BBH", 0xFF, code, len(data) + 2) + data, lost


def png_chunks(metadata: dict[str, Any], profile: bytes, density: dict[str, str]) -> bytes:
    """Return colors, profile, XMP, EXIF, texts and resolution as chunks of PNG."""
    chunks = b"".join(
        _chunk(kind.encode(), bytes.fromhex(digits)) for kind, digits in metadata.get("png_colors", {}).items()
    )
    chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)) if profile else b""
    if xmp := metadata.get("xmp"):
        chunks += _chunk(b"iTXt", PNG_XMP + b"\0\0\0\0\0" + bytes(xmp))
    if exif := bytes(metadata.get("exif", b"")):
        chunks += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    if (unit := density.get("RESOLUTIONUNIT")) in ("2", "3"):
        meters = 100 if unit == "3" else 100 / 2.54
        x, y = (round(float(density[name]) * meters) for name in ("XRESOLUTION", "YRESOLUTION"))
        chunks += _chunk(b"pHYs", struct.pack(">IIB", x, y, 1))
    texts = {key: metadata[name] for name, key in PNG_TEXTS.items() if metadata.get(name)}
    for key, text in {**texts, **metadata.get("texts", {})}.items():
        chunks += _chunk(b"iTXt", key.encode("latin-1")[:79] + b"\0\0\0\0\0" + str(text).encode("utf-8", "replace"))
    return chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
