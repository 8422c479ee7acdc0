"""A sample image that needs no download: a photograph taken from a drone, and haze over it.

The photograph is in the public domain (CC0), see ``sample-LICENSE.txt``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PHOTOGRAPH = Path(__file__).with_name("sample.jpg")
HEIGHT, WIDTH = 1200, 1600
"""Size of the photograph in pixels."""

AIRLIGHT = (0.86, 0.88, 0.90)


def clear_sample(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Read the photograph without haze.

    Parameters
    ----------
    height, width
        Size in pixels. The photograph is cropped about its center to this aspect ratio, then resized.

    Returns
    -------
    ndarray
        ``(y, x, 3)``, uint8.
    """
    from PIL import Image, ImageOps

    with Image.open(PHOTOGRAPH) as photograph:
        return np.array(ImageOps.fit(photograph, (width, height), Image.Resampling.LANCZOS))


def add_haze(clear: NDArray[np.uint8], seed: int = 3) -> NDArray[np.uint8]:
    """Add a veil and drifting clouds of haze to an image.

    Parameters
    ----------
    clear
        ``(y, x, 3)``, uint8.
    seed
        The same seed adds the same haze.

    Returns
    -------
    ndarray
        ``(y, x, 3)``, uint8.
    """
    import torch

    from dehazexl.synthesis.haze import patches, scatter, veil

    generator = torch.Generator().manual_seed(seed)
    height, width, _ = clear.shape
    thickness = 0.5 * veil(height, width, generator) + 1.1 * patches(height, width, generator)
    pixels = torch.from_numpy(clear / np.float32(255)).permute(2, 0, 1)
    hazy = scatter(pixels, torch.exp(-thickness), torch.tensor(AIRLIGHT).view(3, 1, 1))
    return np.ascontiguousarray((hazy * 255).round().byte().permute(1, 2, 0).numpy())
