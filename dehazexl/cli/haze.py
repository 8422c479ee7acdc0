"""What `dehazexl haze` does: it puts haze on clear pictures, for pairs to train and to compare on."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dehazexl.image.image import Image, colors, valid_mask, value_range
from dehazexl.image.value_scale import ValueScale
from dehazexl.io.open import open_image
from dehazexl.synthesis.haze import KINDS, LEVELS, Level, add_haze

if TYPE_CHECKING:
    from numpy.typing import NDArray


def make_pairs(
    source: Path,
    out: Path,
    level: int,
    kind: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    linear: bool = False,
) -> Iterator[str]:
    """Put haze on a picture, or on each of a folder.

    Parameters
    ----------
    source
        A picture that `open_image` reads, or a folder of them; held in memory one at a time.
    out
        A picture file for a picture. For a folder of pictures a folder, which gets ``hazy/`` and ``clear/`` with the
        same names, JPEG as PNG: of 8-bit RGB pictures what `dehazexl train` and `evaluate` take as pairs.
    level
        Density, out of `haze.LEVELS`.
    kind
        Out of `haze.KINDS`; None draws one of the level's own for each picture.
    seed
        Of the haze; every picture gets its own from this one and its name.
    overwrite
        Replace what is there.
    linear
        Put the haze on linear light, see `haze.add_haze`; not for pictures whose values are light already, as
        those of satellites.

    Yields
    ------
    str
        What was written, a line at a time.

    Raises
    ------
    FileExistsError
        If an output exists.
    ValueError
        If there is no such level or kind, or no picture, or two pictures of a folder would get one name.
    """
    from dehazexl.cli.run import find_pictures, output_name
    from dehazexl.io.write import write

    if level not in LEVELS:
        raise ValueError(f"--level is one of {', '.join(map(str, LEVELS))}, not {level}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"--kind is one of {', '.join(KINDS)}, not {kind!r}")
    pictures = find_pictures(source)
    folder = pictures != [source]
    # Not as JPEG again: a pair differs by its haze alone.
    kept = [output_name(path) for path in pictures]
    names = [f"{Path(name).stem}.png" if name.lower().endswith((".jpg", ".jpeg")) else name for name in kept]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"several pictures of {source} would be written to {twice[0]}: rename some of them")
    hazy = [out / "hazy" / name if folder else out for name in names]
    clear = [out / "clear" / name for name in names] if folder else []
    if taken := [path for path in (*hazy, *clear) if path.exists() and not overwrite]:
        raise FileExistsError(f"{taken[0]} exists: choose another output, or give --overwrite")
    for parent in {path.parent for path in (*hazy, *clear)} if folder else ():
        parent.mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(pictures):
        image = open_image(path)
        made = with_haze(image, LEVELS[level], kind, zlib.crc32(f"{seed} {path.name}".encode()), linear)
        if folder:
            write_all(write(np.asarray(image.levels[0]), clear[i], like=image, overwrite=overwrite))
        write_all(write(made, hazy[i], like=image, overwrite=overwrite))
        yield f"{hazy[i]}"


def write_all(progress: Iterator[int]) -> None:
    """Run a writer to its end."""
    for _ in progress:
        pass


def with_haze(image: Image, level: Level, kind: str | None, seed: int, linear: bool = False) -> NDArray[Any]:
    """Return a picture ``(y, x, c)`` with haze on its colors; further bands and nodata stay as they are."""
    pixels = np.array(image.levels[0])
    scale = ValueScale(*value_range(image))
    # What is brighter than white stays brighter: the pair must differ by haze alone.
    clear = scale.to_unit(colors(pixels, image)).clip(min=0)
    valid = valid_mask(pixels, image)
    clear[~valid] = 0  # NaN would go everywhere with the picture's mean
    made = add_haze(
        torch.from_numpy(clear).permute(2, 0, 1)[None],
        torch.Generator().manual_seed(seed),
        [kind] if kind else level.kinds,
        level.thickness,
        level.brightness,
        clear_share=0,
        camera=False,
        linear=linear,
    )
    hazy = scale.from_unit(made.pixels[0].permute(1, 2, 0).numpy())
    for band, values in zip(image.rgb, np.moveaxis(hazy, 2, 0), strict=True):
        pixels[valid, band] = (values if pixels.dtype.kind == "f" else np.rint(values))[valid].astype(pixels.dtype)
    return pixels
