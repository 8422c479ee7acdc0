"""DehazeXL: haze removal with global context for images of any size.

The public names are imported on first use, so ``import dehazexl`` is fast and loads neither torch nor dask.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dehazexl.engine.dehaze import dehaze, dehaze_with_maps
    from dehazexl.engine.explain.attribution import explain
    from dehazexl.image.image import Image
    from dehazexl.io.open import open_image
    from dehazexl.io.write import to_tiff, to_zarr
    from dehazexl.model import DehazeXL
    from dehazexl.model.weights import load_model

__version__ = "0.1.0"

_MODULES = {
    "DehazeXL": "dehazexl.model",
    "Image": "dehazexl.image",
    "dehaze": "dehazexl.engine.dehaze",
    "dehaze_with_maps": "dehazexl.engine.dehaze",
    "explain": "dehazexl.engine.explain.attribution",
    "load_model": "dehazexl.model.weights",
    "open_image": "dehazexl.io.open",
    "to_tiff": "dehazexl.io.write",
    "to_zarr": "dehazexl.io.write",
}

__all__ = [
    "DehazeXL",
    "Image",
    "__version__",
    "dehaze",
    "dehaze_with_maps",
    "explain",
    "load_model",
    "open_image",
    "to_tiff",
    "to_zarr",
]


def __getattr__(name: str) -> object:
    """Import a public name from its module on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'dehazexl' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return __all__
