"""The network: encode tiles, fuse their tokens over the whole image, decode tiles.

DehazeXL, CVPR 2025, arXiv 2504.09621. The specs can be read without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dehazexl.model.spec import SPECS, Spec

if TYPE_CHECKING:
    from dehazexl.model.network import DehazeXL

__all__ = ["SPECS", "DehazeXL", "Spec"]


def __getattr__(name: str) -> object:
    """Import the network on first use."""
    if name != "DehazeXL":
        raise AttributeError(f"module 'dehazexl.model' has no attribute {name!r}")
    from dehazexl.model.network import DehazeXL

    return DehazeXL
