"""Implementation of `dehazexl info`: properties of images and weights as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dehazexl.cli.tasks import WEIGHTS
from dehazexl.engine.borders import find_border
from dehazexl.engine.estimate import disk_at_most, memory_needed, output_needed, tokens_needed
from dehazexl.image.grid import SIDE, TileGrid
from dehazexl.image.image import PERCENTILES, Image, value_range
from dehazexl.image.nodata import as_json
from dehazexl.io.open import open_image


def describe(source: str) -> dict[str, Any]:
    """Return the properties of an image or of weights as JSON values.

    Raises
    ------
    FileNotFoundError, ValueError
        If the source does not exist or is damaged.
    """
    path = Path(source).expanduser()
    if path.suffix in WEIGHTS or (not path.exists() and not path.suffix and path.name == source):
        return describe_weights(source if path.name == source else str(path))
    return describe_image(path)


def describe_image(path: Path) -> dict[str, Any]:
    """Return the properties of an image; up to a million pixels are read for the value range, and some for a border."""
    from dehazexl.model.spec import SPECS

    image = find_border(open_image(path))
    height, width, _ = image.levels[0].shape
    spec = SPECS["compact"]  # of the bundled weights
    grid = TileGrid(height, width, spec.overlap, spec.tile)
    tokens = tokens_needed(grid.count, spec.channels)
    low, high = value_range(image)
    return {
        "picture": str(path),
        "width": width,
        "height": height,
        "dtype": str(image.levels[0].dtype),
        "bits": image.bits,
        "container": image.metadata.get("container"),
        "compression": image.metadata.get("compression"),
        "bands": [
            {"number": i, "name": name, "shows": _band_role(image, i - 1)} for i, name in enumerate(image.bands, 1)
        ],
        "bands_from": image.basis or None,
        "chunks": list(image.levels[0].chunksize[:2]),
        "overviews": [[level.shape[1], level.shape[0]] for level in image.levels[1:]],
        "nodata": None if image.nodata is None else as_json(image.nodata),
        "mask": _mask(image),
        "border": None if image.border is None else {"value": image.border.value, "share": image.border.share},
        "value_range": [low, high],
        "pixel_size": list(image.scale) if image.units != "pixel" else None,
        "units": image.units,
        "geo": _georeference(image),
        "notes": list(image.notes),
        "tiles": {"rows": grid.rows, "columns": grid.cols, "overlap": grid.overlap},
        "tokens_bytes": grid.count * SIDE**2 * spec.channels * 4,  # in single precision
        "memory_bytes": round(memory_needed(image, tokens, spec.context_pool)),
        "disk_bytes": round(tokens + output_needed(image)),
        "most_disk_bytes": {
            kind: round(disk_at_most(image, grid.count, spec.channels, spec.context_pool, kind == "tiff"))
            for kind in ("zarr", "tiff")
        },
    }


def _mask(image: Image) -> list[str]:
    """Return what tells the pixels without data."""
    found = ["the nodata value"] if image.nodata is not None else []
    if image.alpha is not None:
        found.append("a mask of the file" if image.masked else f"the alpha band {image.alpha + 1}")
    if image.levels[0].dtype.kind == "f":
        found.append("NaN and infinity")
    return found + (["a border of one value"] if image.border is not None else [])


def _band_role(image: Image, band: int) -> str | None:
    """Return the role of a band: red, green, blue, gray, alpha or None."""
    if band == image.alpha:
        return "alpha"
    if len(set(image.rgb)) == 1:
        return "gray" if band in image.rgb else None
    return dict(zip(image.rgb, ("red", "green", "blue"), strict=True)).get(band)


def _georeference(image: Image) -> dict[str, Any] | None:
    """Return the georeference; bounds are (west, south, east, north) in the units of the coordinate system."""
    if image.geo is None:
        return None
    if image.geo.affine is None:
        return {"crs": image.geo.code, "epsg": image.geo.epsg, "transform": None, "bounds": None}
    height, width, _ = image.levels[0].shape
    a, b, c, d, e, f = image.geo.affine
    xs = [a * col + b * row + c for col in (0, width) for row in (0, height)]
    ys = [d * col + e * row + f for col in (0, width) for row in (0, height)]
    bounds = [min(xs), min(ys), max(xs), max(ys)]
    return {"crs": image.geo.code, "epsg": image.geo.epsg, "transform": list(image.geo.affine), "bounds": bounds}


def describe_weights(source: str) -> dict[str, Any]:
    """Return the metadata of a weights file, which is loaded to check that it is not damaged."""
    from dataclasses import asdict

    from dehazexl.model.weights import describe as metadata
    from dehazexl.model.weights import find_weights, load_model

    path = find_weights(source)
    model = load_model(path, "cpu", "float32")
    stored = metadata(path) if path.suffix == ".safetensors" else {}
    return {
        "weights": str(path),
        "bytes": path.stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        **{name: value for name, value in stored.items() if name not in ("format", "spec")},
        "spec": asdict(model.spec),
    }


def as_text(properties: dict[str, Any]) -> str:
    """Format the properties as text."""
    lines = _weights_lines(properties) if "weights" in properties else _image_lines(properties)
    return "\n".join(f"{name:<12}{value}" for name, value in lines)


def _image_lines(properties: dict[str, Any]) -> list[tuple[str, str]]:
    bands = ", ".join(
        f"{band['number']} {band['name']}"
        + (f" ({band['shows']})" if band["shows"] not in (None, band["name"]) else "")
        for band in properties["bands"]
    )
    overviews = ", ".join(f"{width} x {height}" for width, height in properties["overviews"])
    low, high = properties["value_range"]
    rule = (
        "all of uint8"
        if properties["dtype"] == "uint8"
        else f"0 (or the percentile {PERCENTILES[0]}, if negative) and the percentile {PERCENTILES[1]} of the colors"
    )
    tiles = properties["tiles"]
    count, most = tiles["rows"] * tiles["columns"], properties["most_disk_bytes"]
    lines = [
        ("image", properties["picture"]),
        ("size", f"{properties['width']} x {properties['height']} pixels (width x height), {properties['dtype']}"),
        ("stored as", _stored(properties)),
        ("bands", bands),
        ("colors from", properties["bands_from"] or "the format"),
        ("read in", f"chunks of {properties['chunks'][1]} x {properties['chunks'][0]} pixels"),
        ("overviews", overviews or "none"),
        ("nodata", "none" if properties["nodata"] is None else f"{float(properties['nodata']):.17g}"),
        ("no data by", ", ".join(properties["mask"]) or "nothing: all pixels are data"),
        ("values", f"{low:g} is black, {high:g} is white ({rule}); change it with --range"),
        *_georeference_lines(properties),
        ("tiles", f"{count:,} ({tiles['columns']} x {tiles['rows']}) at --overlap {tiles['overlap']}"),
        (
            "tokens",
            f"{_format_bytes(properties['tokens_bytes'])} in memory with the bundled weights, half in half precision",
        ),
        (
            "needs about",
            f"{_format_bytes(properties['memory_bytes'])} of memory; of disk for tokens and output at least "
            f"{_format_bytes(properties['disk_bytes'])}, at most {_format_bytes(most['zarr'])} while writing a Zarr, "
            f"{_format_bytes(most['tiff'])} a TIFF (if the pixels cannot be compressed)",
        ),
        *(("note", note) for note in properties["notes"]),
    ]
    return lines


def _stored(properties: dict[str, Any]) -> str:
    """Return container and compression, as far as they are known."""
    name = Path(properties["picture"]).suffix.removeprefix(".") or "Zarr"
    parts = [{"cog": "COG", "tiff": "TIFF", "ome-tiff": "OME-TIFF"}.get(properties["container"] or "", name)]
    if properties["compression"] == "none":
        parts.append("not compressed")
    elif properties["compression"]:
        parts.append(f"compressed by {properties['compression']}")
    return ", ".join([*parts, *([f"{properties['bits']} bits"] if properties["bits"] else [])])


def _georeference_lines(properties: dict[str, Any]) -> list[tuple[str, str]]:
    geo, lines = properties["geo"], []
    if properties["pixel_size"]:
        y, x = properties["pixel_size"]
        lines.append(("pixel", f"{x:g} x {y:g} {properties['units']}"))
    if geo is None:
        return [*lines, ("place", "no georeference")]
    system = geo["crs"] or "a coordinate system without a code"
    if geo["transform"] is None:
        return [*lines, ("place", f"{system}, no affine transform from pixels to the ground")]
    a, b, _, d, e, _ = geo["transform"]
    west, south, east, north = (f"{value:.10g}" for value in geo["bounds"])
    size = f"pixels of {(a * a + d * d) ** 0.5:g} x {(b * b + e * e) ** 0.5:g} in its units"
    return [
        *lines,
        ("place", f"{system}, {size}"),
        ("bounds", f"west {west}, south {south}, east {east}, north {north}"),
    ]


def _weights_lines(properties: dict[str, Any]) -> list[tuple[str, str]]:
    shown = ("weights", "bytes", "parameters", "spec")
    stored = [(name, _format_value(value)) for name, value in properties.items() if name not in shown]
    spec = [("", f"{name} {_format_value(value)}") for name, value in properties["spec"].items()]
    return [
        ("weights", f"{properties['weights']} ({_format_bytes(properties['bytes'])})"),
        ("parameters", f"{properties['parameters']:,}"),
        *stored,
        ("spec", spec[0][1]),
        *spec[1:],
    ]


def _format_value(value: Any) -> str:
    """Format a JSON value without brackets and quotes."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format_value(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_format_value, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _format_bytes(count: int) -> str:
    """Format a number of bytes with a unit."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count} bytes"
