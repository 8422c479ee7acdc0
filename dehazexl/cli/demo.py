"""The command `dehazexl demo`: add haze to the sample image, remove it, and show both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.cli.run import Settings, dehaze_file
from dehazexl.cli.tasks import Task
from dehazexl.io.open import open_image
from dehazexl.io.pyramid import halve
from dehazexl.io.write import to_photo, to_tiff

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.model import DehazeXL

GAP = 8  # pixels between the two pictures
LARGEST = 1200  # pixels: width of each of them, at most


def make_demo(
    folder: Path, height: int, width: int, weights: Path, load: Callable[[Path], DehazeXL], seed: int = 3
) -> Iterator[str]:
    """Add haze to the sample image, dehaze it from file to file, and show both.

    Parameters
    ----------
    folder
        Gets ``hazy.tif``, ``clear.ome.zarr`` and ``before-after.png``, which are replaced if they are there.
    height, width
        Size of the image in pixels.
    weights, load
        A weights file, and what turns it into a network.
    seed
        Of the haze.

    Yields
    ------
    str
        What has been done, a line at a time.
    """
    from dehazexl.synthesis.sample import add_haze, clear_sample

    model = load(weights)
    folder.mkdir(parents=True, exist_ok=True)
    truth = clear_sample(height, width)
    hazy = add_haze(truth, seed)
    source, output = folder / "hazy.tif", folder / "clear.ome.zarr"
    to_tiff(hazy, source, overwrite=True)
    yield f"hazy image:    {source}"
    result = dehaze_file(Task(source, weights, output), model, Settings(overwrite=True, fresh=True))
    yield f"dehazed:       {result}"
    clear = np.asarray(open_image(output).levels[0])
    shown = to_photo(side_by_side(hazy, clear), folder / "before-after.png", overwrite=True)
    yield f"before, after: {shown}"
    yield f"PSNR against the image without haze: {psnr(hazy, truth):.1f} dB before, {psnr(clear, truth):.1f} dB after"


def side_by_side(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two pictures ``(y, x, 3)`` beside each other, shrunk to fit a page."""
    while left.shape[1] > LARGEST:
        left, right = halve(left), halve(right)
    gap = np.full((left.shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def psnr(picture: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the peak signal-to-noise ratio of 8-bit pictures in decibels."""
    error = float(np.mean((picture.astype(np.float32) - truth) ** 2))
    return 10 * math.log10(255**2 / max(error, 1e-6))
