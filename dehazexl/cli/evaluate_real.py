"""What `dehazexl evaluate --real` does: weights and the dark channel prior, scored on real haze without a truth."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dehazexl.cli.evaluate import append_row, check_skimage, draw_sheet, means, table, thumbnail
from dehazexl.evaluation.paired import ByNetwork, dark_channel_prior
from dehazexl.evaluation.real import evaluate_real, shrunk
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
"""Images on the contact sheet at most, spread over all."""
METRICS = {"fade": ".3f", "cast": ".1f", "clipped": ".2%", "lightness": ".1f", "noise": ".2f", "seam": ".2f"}
"""Scores in the table, and their formats."""
PROTOCOL = (
    "fade: perceived density of fog (Choi, You and Bovik 2015); cast: distance of the mean a*, b* from neutral; "
    "clipped: pixels newly at 0 or 255; lightness: mean L*; noise: over that of the input; seam 1 is seamless"
)


def score_real(
    folder: Path,
    weights: dict[str, Path],
    load: Callable[[Path], DehazeXL],
    say: Callable[[str], object],
    overlap: int | None = None,
    size: int | None = None,
    out: Path | None = None,
) -> str:
    """Score weights on hazy images, and return the table of all, that of the means, and what the scores are.

    Parameters
    ----------
    folder
        Hazy images, 8-bit RGB, in it and its subfolders.
    weights, load
        Weights files by name, and what turns one into a network.
    say
        Told of the images that cannot be read or are not 8-bit RGB; they are passed over.
    overlap
        Of the networks' tiles, in pixels.
    size
        Longest side of the images: larger ones are shrunk. None scores all of them as they are.
    out
        Folder that gets ``real.csv`` (a row for each image and method, written as they come), ``real-summary.csv``
        (means by method) and ``real.png`` (contact sheet), which are replaced.

    Raises
    ------
    ValueError
        If scikit-image is missing, the overlap is not 0 to 128, there is no image that can be read, or `out` lies
        among them.
    """
    from tqdm import tqdm

    check_skimage()
    check_overlap(overlap)
    sources = find_clear([folder])
    if out is not None and out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"--out {out} lies among the pictures in {folder}: a folder beside them is needed")
    dehazers: dict[str, Dehazer] = {"dark channel prior": dark_channel_prior}
    dehazers |= {name: ByNetwork(load(path), overlap) for name, path in weights.items()}
    methods, count = 1 + len(dehazers), len(sources)
    shown = {int(i) for i in np.linspace(0, count - 1, min(SHOWN, count))} if out is not None else set()
    rows: list[Row] = []
    sheet: list[list[tuple[str, Image]]] = []
    interval = 0.1 if sys.stderr.isatty() else 30
    images = read_images(folder, [source.clear for source in sources], size, say)
    with tqdm(total=count * methods, desc="evaluate", unit="image", mininterval=interval) as bar:
        for i, (name, method, picture, values) in enumerate(
            evaluate_real(images, dehazers, OVERLAP if overlap is None else overlap)
        ):
            rows.append({"image": name, "method": method, **values})
            if out is not None:
                append_row(out / "real.csv", rows[-1], new=i == 0)
            if i // methods in shown:
                if i % methods == 0:
                    sheet.append([])
                label = f"{name if i % methods == 0 else method}  fade {values['fade']:.2f}"
                sheet[-1].append((label, thumbnail(picture)))
            bar.update()
    if not rows:
        raise ValueError(f"none of the {count} pictures in {folder} could be read, see above")
    found = means(rows, METRICS)
    if out is not None:
        for i, row in enumerate(found):
            append_row(out / "real-summary.csv", row, new=i == 0)
        draw_sheet(sheet).save(out / "real.png")
    how = "as they are" if size is None else f"at most {size} pixels wide and high"
    each = table(rows, METRICS, ("image", "method"))
    return f"{each}\n\n{table(found, METRICS)}\nmeans of {len(rows) // methods} images, {how}; {PROTOCOL}"


def read_images(
    folder: Path, paths: Iterable[Path], size: int | None, say: Callable[[str], object]
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield name and pixels ``(h, w, 3)`` of images, shrunk to a size; say which cannot be read, and pass them over."""
    for path in paths:
        try:
            pixels = open_rgb(path, ImageCache(limit=0))[:, :]
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            say(f"{path} cannot be read: {reason}" if reason else str(error))
        else:
            yield path.relative_to(folder).as_posix(), shrunk(pixels, size)
