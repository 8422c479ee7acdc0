"""The network: encode tiles, fuse their tokens over the whole picture, decode tiles.

DehazeXL, CVPR 2025, arXiv 2504.09621.
"""

from dehazexl.model.network import DehazeXL
from dehazexl.model.spec import SPECS, Spec

__all__ = ["SPECS", "DehazeXL", "Spec"]
