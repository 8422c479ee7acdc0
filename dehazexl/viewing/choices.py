"""What a user has chosen to dehaze an image with: as words, as metadata of layers and files, and to be repeated."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dehazexl.image.image import Image


PRESETS: dict[str, dict[str, Any]] = {
    "aerial photograph": {"strength": 1.0, "overlap": None},
    "satellite scene": {"strength": 1.0, "overlap": 64},
    "from the ground": {"strength": 0.85, "overlap": None},
    "gentle": {"strength": 0.5, "overlap": None},
}
"""Settings to begin with, by kind of image. Larger overlaps hide the steps of tiles on even ground."""


@dataclass(frozen=True)
class Choices:
    """Settings of a dehazed image, see `dehazexl.dehaze` and `dehazexl.load_model`.

    Attributes
    ----------
    region
        Rows and columns ``(y0, y1, x0, x1)``, or None for the whole image.
    """

    weights: str = "compact"
    device: str = "auto"
    dtype: str = "auto"
    overlap: int | None = None
    strength: float = 1.0
    value_range: tuple[float, float] | None = None
    region: tuple[int, int, int, int] | None = None
    context: str = "all"

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values of JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def changed(self) -> dict[str, Any]:
        """Return the settings that are not the default."""
        plain = Choices()
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != getattr(plain, field.name)
        }

    def label(self, others: Sequence[Choices]) -> str:
        """Return in a few words how these settings differ from some others; empty if there are none."""
        names = [
            each.name for each in fields(self) if any(getattr(self, each.name) != getattr(o, each.name) for o in others)
        ]
        return ", ".join(_word(name, getattr(self, name)) for name in names)

    def as_script(self, source: str | Path, output: str | Path) -> str:
        """Return lines of Python that dehaze a file with these settings."""
        model = ", ".join(repr(value) for value in (self.weights, self.device, self.dtype))
        given: dict[str, Any] = {"overlap": self.overlap, "strength": self.strength, "value_range": self.value_range}
        given |= {"region": self.region, "context": self.context if self.region else "all"}
        plain: dict[str, Any] = {
            "overlap": None,
            "strength": 1.0,
            "value_range": None,
            "region": None,
            "context": "all",
        }
        options = "".join(f", {name}={value!r}" for name, value in given.items() if value != plain[name])
        put = "to_zarr" if str(output).endswith(".zarr") else "to_tiff"
        like = "image" if self.region is None else f"image.cropped(Window{self.region})"
        window = "" if self.region is None else "from dehazexl.image.grid import Window\n"
        return (
            f"import dehazexl\n{window}\n"
            f"image = dehazexl.open_image({str(source)!r})\n"
            f"model = dehazexl.load_model({model})\n"
            f"clear = dehazexl.dehaze(image, model{options})\n"
            f"dehazexl.{put}(clear, {str(output)!r}, like={like})\n"
        )

    def as_command(self, source: str | Path, output: str | Path) -> str:
        """Return the command line that dehazes a file with these settings."""
        words = ["dehazexl", "run", str(source), str(output)]
        if self.weights != "compact":
            words += ["--weights", self.weights]
        for name in ("device", "dtype"):
            if getattr(self, name) != "auto":
                words += [f"--{name}", getattr(self, name)]
        if self.overlap is not None:
            words += ["--overlap", str(self.overlap)]
        if self.strength != 1:
            words += ["--strength", f"{self.strength:g}"]
        if self.value_range is not None:
            words += ["--range", ",".join(f"{value:.9g}" for value in self.value_range)]
        if self.region is not None:
            y0, y1, x0, x1 = self.region
            words += ["--region", f"{y0}:{y1},{x0}:{x1}", "--context", self.context]
        return shlex.join(words)


def with_choices(image: Image, choices: Choices, value_range: tuple[float, float]) -> Image:
    """Return an image whose metadata holds the settings that it was dehazed with.

    They become the domain DEHAZEXL of the metadata of a GeoTIFF (tag 42112), and attributes of an OME-Zarr.
    """
    from dehazexl import __version__

    settings = replace(choices, value_range=value_range).to_dict() | {"version": __version__}
    said = {name: str(value) for name, value in settings.items() if value is not None}
    domains = {**image.metadata.get("domains", {}), "DEHAZEXL": said}
    return replace(image, metadata={**image.metadata, "domains": domains})


def _word(name: str, value: Any) -> str:
    """Return a setting in words."""
    if name == "weights":
        return f"weights {Path(str(value)).stem}"
    if name == "value_range":
        return "own range" if value is None else "range " + " to ".join(f"{each:.6g}" for each in value)
    if name == "region":
        return "whole" if value is None else "region {}:{},{}:{}".format(*value)
    if name == "strength":
        return f"strength {value:g}"
    return f"{name} {'auto' if value is None else value}"
