"""Real files of every kind that `open_image` reads, each written by the library that people write it with."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import tifffile
import zarr
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import ColorInterp

HEIGHT, WIDTH = 701, 523


def smooth(bands: int = 3, dtype: str = "uint8", height: int = HEIGHT, width: int = WIDTH) -> NDArray[Any]:
    """Draw a smooth picture ``(y, x, c)``: each pixel of each band differs, JPEG keeps it within a few values."""
    y, x, c = np.mgrid[0:height, 0:width, 0:bands]
    wave = 0.5 + 0.2 * np.sin(x / 40 + c) + 0.2 * np.cos(y / 60 - c) + 0.05 * c / bands
    return (wave * (255 if dtype == "uint8" else 10_000)).astype(dtype)


def write_gdal(
    path: Path, pixels: NDArray[Any], *, names: Sequence[str] = (), colors: str = "", **options: Any
) -> None:
    """Write a GeoTIFF with GDAL; ``colors`` are names of `ColorInterp`, ``mask`` is an internal mask."""
    mask = options.pop("mask", None)
    profile = {"driver": "GTiff", "crs": "EPSG:32614", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6), **options}
    height, width, count = pixels.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", height=height, width=width, count=count, dtype=pixels.dtype, **profile) as file,
    ):
        if colors:
            file.colorinterp = [ColorInterp[color] for color in colors.split()]
        file.write(np.moveaxis(pixels, -1, 0))
        if names:
            file.descriptions = tuple(names)
        if mask is not None:
            file.write_mask(mask)


def write_pyramid(path: Path, pixels: NDArray[Any], **options: Any) -> None:
    """Write a TIFF with two overviews in SubIFDs."""
    with tifffile.TiffWriter(path, bigtiff=True, ome=options.pop("ome", None)) as file:
        metadata = options.pop("metadata", None)
        file.write(pixels, subifds=2, metadata=metadata, **options)
        step = (..., slice(None, None, 2), slice(None, None, 2), *([slice(None)] * (pixels.shape[-1] <= 8)))
        for _ in range(2):
            pixels = pixels[step]
            file.write(pixels, subfiletype=1, metadata=None, **options)


def write_ngff(path: Path, pixels: NDArray[Any], version: str, axes: str = "cyx", **image: Any) -> None:
    """Write OME-Zarr of two levels; ``pixels`` are in the order of ``axes``."""
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    half = pixels[..., ::2, ::2]
    for name, level in (("0", pixels), ("1", half)):
        group.create_array(name, data=level, chunks=(1,) * (level.ndim - 2) + (128, 128))
    units = {"unit": "meter"}
    kinds = {"t": {"type": "time"}, "c": {"type": "channel"}}
    steps = [(0.5 * 2**n, 0.25 * (2**n - 1)) for n in range(2)]
    datasets = [
        {
            "path": str(n),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0] * (len(axes) - 2) + [step, 2 * step]},
                {"type": "translation", "translation": [0.0] * (len(axes) - 2) + [7 + shift, 9 + shift]},
            ],
        }
        for n, (step, shift) in enumerate(steps)
    ]
    said = {
        "multiscales": [
            {
                "version": version,
                "axes": [{"name": axis, **kinds.get(axis, {"type": "space", **units})} for axis in axes],
                "datasets": datasets,
            }
        ],
        **image,
    }
    group.attrs.update({"ome": {"version": "0.5", **said}} if version == "0.5" else said)


def png(width: int, height: int, bits: int, colors: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Build a PNG by hand, for the kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colors, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
