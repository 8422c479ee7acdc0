"""Sample data: hazy images that need no download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    LayerData = tuple[Any, dict[str, Any], str]


def scene() -> list[LayerData]:
    """Make a hazy image of farmland, 1500 x 2000 pixels. A second or two."""
    from dehazexl.cli.demo import with_haze
    from dehazexl.synthesis.scene import aerial

    attributes = {"name": "hazy farmland", "rgb": True, "contrast_limits": (0, 255)}
    return [(with_haze(aerial(1500, 2000, 3), 3), attributes, "image")]


def large_scene() -> list[LayerData]:
    """Make a lazy hazy image of farmland, 16384 x 16384 pixels, see `dehazexl.synthesis.large_scene`."""
    from dehazexl.synthesis.large_scene import large_scene as make
    from napari_dehazexl._reader import layers_of

    return layers_of(make())
