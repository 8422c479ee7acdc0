"""Where a picture lies on the ground: carried from the input file to the output file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Geo:
    """Georeference of a picture, as the GeoTIFF tags that hold it."""

    tags: Mapping[int, Any] = field(default_factory=dict)
