"""Metadata of an image as attributes of a Zarr, and back."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any


def packed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as JSON values, bytes in base64; the inverse of `unpacked`. What JSON cannot hold is left out."""
    found: dict[str, Any] = {}
    for name, value in metadata.items():
        if isinstance(value, bytes):
            found[name] = {"base64": base64.b64encode(value).decode()}
            continue
        try:
            found[name] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            continue
    return found


def unpacked(attributes: object) -> dict[str, Any]:
    """Return metadata from the attributes of `packed`.

    Raises
    ------
    ValueError
        If they are not a mapping, or bytes are not in base64.
    """
    if not isinstance(attributes, Mapping):
        raise ValueError("the metadata are no mapping")
    return {name: _bytes(value) for name, value in attributes.items()}


def _bytes(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"base64"}:
        return base64.b64decode(value["base64"], validate=True)
    return value
