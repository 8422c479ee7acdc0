"""Sample data: hazy images that need no download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    LayerData = tuple[Any, dict[str, Any], str]


def scene() -> list[LayerData]:
    """Add haze to a photograph taken from a drone, 1200 x 1600 pixels."""
    from dehazexl.synthesis.sample import add_haze, clear_sample

    attributes = {"name": "hazy meadow", "rgb": True, "contrast_limits": (0, 255)}
    return [(add_haze(clear_sample()), attributes, "image")]


def large_scene() -> list[LayerData]:
    """Make a lazy hazy image, 16384 x 16384 pixels, see `dehazexl.synthesis.large_scene`."""
    from dehazexl.synthesis.large_scene import large_scene as make
    from napari_dehazexl._reader import layers_of

    return layers_of(make())
