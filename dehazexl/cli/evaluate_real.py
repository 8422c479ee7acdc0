"""Implementation of `dehazexl evaluate --real`: scores on real haze without reference images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dehazexl.cli.evaluate import append_row, check_skimage, draw_sheet, means, table, thumbnail
from dehazexl.evaluation.paired import NetworkDehazer, dark_channel_prior
from dehazexl.evaluation.real import evaluate_real, shrink
from dehazexl.image.grid import OVERLAP, check_overlap
from dehazexl.training.datasets import find_clear
from dehazexl.training.rgb_files import ImageCache, open_rgb

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from dehazexl.cli.evaluate import Row
    from dehazexl.evaluation.paired import Dehazer
    from dehazexl.model import DehazeXL

SHOWN = 24
"""Largest number of images on the contact sheet, evenly spaced."""
METRICS = {"fade": ".3f", "cast": ".1f", "clipped": ".2%", "lightness": ".1f", "noise": ".2f", "seam": ".2f"}
"""Formats of the scores in the table."""
PROTOCOL = (
    "fade: perceived fog density (Choi, You and Bovik 2015); cast: distance of the mean a*, b* from neutral; "
    "clipped: pixels newly at 0 or 255; lightness: mean L*; noise: relative to the input; seam 1 is seamless"
)


def score_real(
    folder: Path,
    weights: dict[str, Path],
    load: Callable[[Path], DehazeXL],
    echo: Callable[[str], object],
    overlap: int | None = None,
    size: int | None = None,
    out: Path | None = None,
) -> str:
    """Score weights on hazy images without reference images.

    Parameters
    ----------
    folder
        Folder of hazy 8-bit RGB images, also in subfolders.
    weights, load
        Weights files by name, and a function that loads one.
    echo
        Called with a message for each image that cannot be read or is not 8-bit RGB, and is skipped.
    overlap
        Overlap of the tiles of the networks in pixels.
    size
        Longest side of the images in pixels; larger ones are downsampled. None scores all images at full size.
    out
        Folder for ``real.csv`` (a row for each image and method, written immediately), ``real-summary.csv``
        (means by method) and ``real.png`` (contact sheet). Existing files are replaced.

    Returns
    -------
    str
        Table of all images, table of the means, and the protocol.

    Raises
    ------
    ValueError
        If scikit-image is missing, the overlap is not 0 to 128, no image can be read, or `out` is inside `folder`.
    """
    from tqdm import tqdm

    check_skimage()
    check_overlap(overlap)
    sources = find_clear([folder])
    if out is not None and out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"--out {out} is inside the images in {folder}: choose a folder next to them")
    dehazers: dict[str, Dehazer] = {"dark channel prior": dark_channel_prior}
    dehazers |= {name: NetworkDehazer(load(path), overlap) for name, path in weights.items()}
    methods, count = 1 + len(dehazers), len(sources)
    shown = {int(i) for i in np.linspace(0, count - 1, min(SHOWN, count))} if out is not None else set()
    rows: list[Row] = []
    sheet: list[list[tuple[str, Image]]] = []
    interval = 0.1 if sys.stderr.isatty() else 30
    images = read_images(folder, [source.clear for source in sources], size, echo)
    with tqdm(total=count * methods, desc="evaluate", unit="image", mininterval=interval) as bar:
        for i, (name, method, image, values) in enumerate(
            evaluate_real(images, dehazers, OVERLAP if overlap is None else overlap)
        ):
            rows.append({"image": name, "method": method, **values})
            if out is not None:
                append_row(out / "real.csv", rows[-1], new=i == 0)
            if i // methods in shown:
                if i % methods == 0:
                    sheet.append([])
                label = f"{name if i % methods == 0 else method}  fade {values['fade']:.2f}"
                sheet[-1].append((label, thumbnail(image)))
            bar.update()
    if not rows:
        raise ValueError(f"none of the {count} images in {folder} could be read, see above")
    averages = means(rows, METRICS)
    if out is not None:
        for i, row in enumerate(averages):
            append_row(out / "real-summary.csv", row, new=i == 0)
        draw_sheet(sheet).save(out / "real.png")
    how = "at full size" if size is None else f"at most {size} pixels wide and high"
    per_image = table(rows, METRICS, ("image", "method"))
    return f"{per_image}\n\n{table(averages, METRICS)}\nmeans of {len(rows) // methods} images, {how}; {PROTOCOL}"


def read_images(
    folder: Path, paths: Iterable[Path], size: int | None, echo: Callable[[str], object]
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield name and pixels ``(h, w, 3)`` of images, downsampled to a size; report and skip unreadable ones."""
    for path in paths:
        try:
            pixels = open_rgb(path, ImageCache(limit=0))[:, :]
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            echo(f"{path} cannot be read: {reason}" if reason else str(error))
        else:
            yield path.relative_to(folder).as_posix(), shrink(pixels, size)
