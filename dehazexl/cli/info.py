"""What `dehazexl info` does: facts about a picture or about weights, for people and for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehazexl.cli.run import WEIGHTS
from dehazexl.image.grid import SIDE, TileGrid
from dehazexl.image.image import PERCENTILES, Image, value_range
from dehazexl.image.nodata import as_json
from dehazexl.io.open import open_image

if TYPE_CHECKING:
    from dehazexl.model import Spec


def describe(source: str) -> dict[str, Any]:
    """Gather what is known of a picture or of weights, as JSON values.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is neither, or it is damaged.
    """
    path = Path(source).expanduser()
    if path.suffix in WEIGHTS or (not path.exists() and not path.suffix and path.name == source):
        return describe_weights(source if path.name == source else str(path))
    return describe_picture(path)


def describe_picture(path: Path) -> dict[str, Any]:
    """Gather what is known of a picture; up to a million pixels are read, for the value range."""
    from dehazexl.model.heads import channels, head_of

    image = open_image(path)
    height, width, _ = image.levels[0].shape
    spec = _usual_spec()
    grid = TileGrid(height, width, head_of(spec).overlap, spec.tile)
    low, high = value_range(image)
    return {
        "picture": str(path),
        "width": width,
        "height": height,
        "dtype": str(image.levels[0].dtype),
        "bands": [{"number": i, "name": name, "shows": _shows(image, i - 1)} for i, name in enumerate(image.bands, 1)],
        "chunks": list(image.levels[0].chunksize[:2]),
        "overviews": [[level.shape[1], level.shape[0]] for level in image.levels[1:]],
        "nodata": None if image.nodata is None else as_json(image.nodata),
        "value_range": [low, high],
        "pixel_size": list(image.scale) if image.units != "pixel" else None,
        "units": image.units,
        "geo": _place(image),
        "tiles": {"rows": grid.rows, "columns": grid.cols, "overlap": grid.overlap},
        "tokens_bytes": grid.count * SIDE**2 * channels(spec) * 4,  # in single precision
    }


def _shows(image: Image, band: int) -> str | None:
    """Tell what the network sees in a band: red, green, blue, gray or alpha."""
    if band == image.alpha:
        return "alpha"
    if len(set(image.rgb)) == 1:
        return "gray" if band in image.rgb else None
    return dict(zip(image.rgb, ("red", "green", "blue"), strict=True)).get(band)


def _usual_spec() -> Spec:
    """Return the spec of the bundled weights."""
    from dehazexl.model import SPECS

    return SPECS["compact"]


def _place(image: Image) -> dict[str, Any] | None:
    """Where the picture lies: bounds are (west, south, east, north) in the units of its coordinate system."""
    if image.geo is None:
        return None
    if image.geo.affine is None:
        return {"epsg": image.geo.epsg, "transform": None, "bounds": None}
    height, width, _ = image.levels[0].shape
    a, b, c, d, e, f = image.geo.affine
    xs = [a * col + b * row + c for col in (0, width) for row in (0, height)]
    ys = [d * col + e * row + f for col in (0, width) for row in (0, height)]
    bounds = [min(xs), min(ys), max(xs), max(ys)]
    return {"epsg": image.geo.epsg, "transform": list(image.geo.affine), "bounds": bounds}


def describe_weights(source: str) -> dict[str, Any]:
    """Gather what a weights file says of itself; it is loaded, so that a damaged one is told."""
    from dataclasses import asdict

    from dehazexl.model.weights import describe as metadata
    from dehazexl.model.weights import find_weights, load_model

    path = find_weights(source)
    model = load_model(path, "cpu", "float32")
    said = metadata(path) if path.suffix == ".safetensors" else {}
    return {
        "weights": str(path),
        "bytes": path.stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        **{name: value for name, value in said.items() if name not in ("format", "spec")},
        "spec": asdict(model.spec),
    }


def as_text(facts: dict[str, Any]) -> str:
    """Put facts into lines for people."""
    lines = _weights_lines(facts) if "weights" in facts else _picture_lines(facts)
    return "\n".join(f"{name:<12}{value}" for name, value in lines)


def _picture_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    bands = ", ".join(
        f"{band['number']} {band['name']}"
        + (f" ({band['shows']})" if band["shows"] not in (None, band["name"]) else "")
        for band in facts["bands"]
    )
    overviews = ", ".join(f"{width} x {height}" for width, height in facts["overviews"])
    low, high = facts["value_range"]
    rule = (
        "all of uint8"
        if facts["dtype"] == "uint8"
        else f"0 (or the percentile {PERCENTILES[0]}, if negative) and the percentile {PERCENTILES[1]} of the colors"
    )
    tiles = facts["tiles"]
    count = tiles["rows"] * tiles["columns"]
    lines = [
        ("picture", facts["picture"]),
        ("size", f"{facts['width']} x {facts['height']} pixels (width x height), {facts['dtype']}"),
        ("bands", bands),
        ("read in", f"chunks of {facts['chunks'][1]} x {facts['chunks'][0]} pixels"),
        ("overviews", overviews or "none"),
        ("nodata", "none" if facts["nodata"] is None else f"{float(facts['nodata']):.17g}"),
        ("values", f"{low:g} is black, {high:g} is white ({rule}); --range changes that"),
        *_place_lines(facts),
        ("tiles", f"{count:,} ({tiles['columns']} x {tiles['rows']}) at --overlap {tiles['overlap']}"),
        ("tokens", f"{_size(facts['tokens_bytes'])} in memory with the bundled weights, half of it in half precision"),
    ]
    return lines


def _place_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    geo, lines = facts["geo"], []
    if facts["pixel_size"]:
        y, x = facts["pixel_size"]
        lines.append(("pixel", f"{x:g} x {y:g} {facts['units']}"))
    if geo is None:
        return [*lines, ("place", "no georeference")]
    system = f"EPSG:{geo['epsg']}" if geo["epsg"] else "a coordinate system without an EPSG code"
    if geo["transform"] is None:
        return [*lines, ("place", f"{system}, no affine map from pixels to the ground")]
    a, b, _, d, e, _ = geo["transform"]
    west, south, east, north = (f"{value:.10g}" for value in geo["bounds"])
    size = f"pixels of {(a * a + d * d) ** 0.5:g} x {(b * b + e * e) ** 0.5:g} in its units"
    return [
        *lines,
        ("place", f"{system}, {size}"),
        ("bounds", f"west {west}, south {south}, east {east}, north {north}"),
    ]


def _weights_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    own = ("weights", "bytes", "parameters", "spec")
    said = [(name, _plain(value)) for name, value in facts.items() if name not in own]
    spec = [("", f"{name} {_plain(value)}") for name, value in facts["spec"].items()]
    return [
        ("weights", f"{facts['weights']} ({_size(facts['bytes'])})"),
        ("parameters", f"{facts['parameters']:,}"),
        *said,
        ("spec", spec[0][1]),
        *spec[1:],
    ]


def _plain(value: Any) -> str:
    """Write a JSON value without its brackets and quotes."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_plain, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(count: int) -> str:
    """Write a number of bytes for people."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{count} bytes"
