"""Implementation of `dehazexl haze`: pairs of clear and hazy images."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dehazexl.cli.errors import one_of_several
from dehazexl.cli.tasks import check_alone, find_images, is_folder, output_name
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
    echo: Callable[[Path, str], object] | None = None,
    new_folder: bool = False,
) -> Iterator[str]:
    """Add haze to an image or to each image of a folder.

    Parameters
    ----------
    source
        An image that `open_image` reads, or a folder of images, which are loaded one at a time.
    out
        An image file for an image. For a folder of images, a folder, in which ``hazy/`` and ``clear/`` get files of
        the same names, with PNG for JPEG. For 8-bit RGB images it is a data set of pairs for `dehazexl train` and
        `evaluate`.
    level
        Density, a key of `haze.LEVELS`.
    kind
        Kind of haze, a key of `haze.KINDS`; by default drawn for each image from the kinds of the level.
    seed
        Seed of the haze, combined with the name of each image.
    overwrite
        Replace existing outputs.
    linear
        Add the haze in linear light, see `haze.add_haze`; not for images with linear values, such as satellite images.
    echo
        Called with each image of a folder that failed and a message; the others go on. None raises the error.
    new_folder
        `out` is a folder also for an image, even if it does not exist.

    Yields
    ------
    str
        Path of each output.

    Raises
    ------
    FileExistsError
        If an output exists.
    ValueError
        If level or kind is unknown, or there are no images.
    """
    from dehazexl.io.write import write

    if level not in LEVELS:
        raise ValueError(f"--level must be one of {', '.join(map(str, LEVELS))}, not {level}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"--kind must be one of {', '.join(KINDS)}, not {kind!r}")
    sources = find_images(source)
    folder = sources != [source]
    names = _names(sources)
    alone = out / names[0] if new_folder or is_folder(out) else out
    hazy = [out / "hazy" / name for name in names] if folder else [alone]
    clear = [out / "clear" / name for name in names] if folder else []
    if existing := [path for path in (*hazy, *clear) if path.exists() and not overwrite]:
        raise FileExistsError(f"{existing[0]} exists: choose another output, or pass --overwrite")
    for parent in {path.parent for path in (*hazy, *clear)} if folder or new_folder else ():
        parent.mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(sources):
        done = False
        with one_of_several(path, partial(echo, path) if folder and echo is not None else None):
            check_alone([each for each, name in zip(sources, names, strict=True) if name == names[i]], hazy[i])
            image = open_image(path)
            made = with_haze(image, LEVELS[level], kind, zlib.crc32(os.fsencode(f"{seed} {path.name}")), linear)
            if folder:
                write_all(write(np.asarray(image.levels[0]), clear[i], like=image, overwrite=overwrite))
            write_all(write(made, hazy[i], like=image, overwrite=overwrite))
            done = True
        if done:
            yield f"{hazy[i]}"


def _names(sources: Sequence[Path]) -> list[str]:
    """Return the names of the outputs: PNG for JPEG, because the images of a pair must differ by haze only."""
    outputs = [output_name(path) for path in sources]
    return [f"{Path(name).stem}.png" if name.lower().endswith((".jpg", ".jpeg")) else name for name in outputs]


def write_all(progress: Iterator[int]) -> None:
    """Exhaust the iterator of a writer."""
    for _ in progress:
        pass


def with_haze(image: Image, level: Level, kind: str | None, seed: int, linear: bool = False) -> NDArray[Any]:
    """Add haze to the colors of an image; other bands and pixels without data are unchanged.

    Parameters
    ----------
    image
        The image, which is read completely.
    level
        Density.
    kind
        Kind of haze; by default drawn from the kinds of the level.
    seed
        Seed of the haze.
    linear
        Add the haze in linear light.

    Returns
    -------
    ndarray
        Pixels ``(y, x, c)`` of the dtype of the image.
    """
    pixels = np.array(image.levels[0])
    scale = ValueScale(*value_range(image))
    # Values above white are not clipped: the images of a pair must differ by haze only.
    clear = scale.to_unit(colors(pixels, image)).clip(min=0)
    valid = valid_mask(pixels, image)
    clear[~valid] = 0  # NaN would spread through the mean of the image
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
