"""napari plugin of DehazeXL: a thin layer over the `dehazexl` engine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_dehazexl._layer import dehaze_layer, set_strength

__all__ = ["dehaze_layer", "set_strength"]


def __getattr__(name: str) -> Any:
    """Import the functions on first access: napari imports this package when it starts."""
    if name in __all__:
        from napari_dehazexl import _layer

        return getattr(_layer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
