"""napari plugin of DehazeXL: a thin layer over the `dehazexl` engine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_dehazexl._explain import explain_layer
    from napari_dehazexl._layer import dehaze_layer, set_strength
    from napari_dehazexl._maps import map_layer

__all__ = ["dehaze_layer", "explain_layer", "map_layer", "set_strength"]

_MODULES = {"dehaze_layer": "_layer", "explain_layer": "_explain", "map_layer": "_maps", "set_strength": "_layer"}


def __getattr__(name: str) -> Any:
    """Import the functions on first access: napari imports this package when it starts."""
    if name in _MODULES:
        return getattr(import_module(f"napari_dehazexl.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
