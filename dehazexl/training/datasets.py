"""Data sets for training and evaluation: folders of clear images, folders of pairs, or 8KDehaze."""

from __future__ import annotations

import os
import random as standard_random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from dehazexl.training.augment import draw_view, random_crop
from dehazexl.training.rgb_files import ImageCache, RgbImage, open_rgb

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".zarr", ".npy")

LEVELS = ("cloud_L1", "cloud_L2", "cloud_L3", "cloud_L4")
"""Folders of hazy images in 8KDehaze, next to ``clear``."""

Layout = Literal["8KDehaze", "pairs", "clear images"]


@dataclass(frozen=True)
class Dataset:
    """Images to train on or to validate on.

    Attributes
    ----------
    clear
        Clear images.
    hazy
        The same images with haze, in the same order; None if haze is to be synthesized. A clear image with several
        hazy ones is repeated.
    names
        Path of each image within the folder of the data set, without suffix; of a pair, the path of the hazy image.
    """

    clear: Sequence[RgbImage]
    hazy: Sequence[RgbImage] | None
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.clear)

    def crop(self, h: int, w: int, random: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """Return a random crop ``(1, 3, h, w)`` in [0, 1] of a clear image and, for pairs, of the hazy one.

        Colors are varied only where haze is synthesized.
        """
        if self.hazy is None:
            return random_crop(self.clear, h, w, random), None
        index = int(random.integers(len(self)))
        view = draw_view(self.clear[index].shape, h, w, random)
        return view.crop(self.clear[index]), view.crop(self.hazy[index])


def open_datasets(folders: Sequence[Path], hold_out: Sequence[str] = ()) -> tuple[Dataset, Dataset]:
    """Open folders of one layout for training and for validation.

    Parameters
    ----------
    folders
        Each folder contains ``clear`` and some of `LEVELS` (8KDehaze), or ``hazy`` and ``clear`` (pairs of the same
        name, with any suffix), or is a tree of clear images.
    hold_out
        Patterns of the images to validate on, see `match_patterns`; a clear image is held out with all its hazy ones.
        By default every tenth clear image; for 8KDehaze the last 15 % of the sorted names shuffled by
        ``random.Random(22)``. Share and seed are those of the official split, whose shuffling is not published, so the
        images may differ.

    Returns
    -------
    training, validation : Dataset

    Raises
    ------
    ValueError
        If there are no images to train on, layouts are mixed, an image cannot be read or is not 8-bit RGB, or the
        images of a pair are missing or of unequal size.
    """
    layout, sources = find_sources(folders)
    held_out = choose_held_out(layout, sources, hold_out)
    cache = ImageCache()
    training = [source for source in sources if source.clear not in held_out]
    return open_sources(training, cache), open_sources([s for s in sources if s.clear in held_out], cache)


def open_for_evaluation(
    folders: Sequence[Path], hold_out: Sequence[str] = (), echo: Callable[[str], object] | None = None
) -> Dataset:
    """Open the images in folders that match the patterns, see `open_datasets`.

    Without patterns, open all images, or the validation set of 8KDehaze. `echo` is called with a message for each image
    or pair that cannot be opened; None raises its error.
    """
    layout, sources = find_sources(folders)
    held_out = {source.clear for source in sources}
    if hold_out:
        held_out = match_patterns(sources, hold_out)
    elif layout == "8KDehaze" and len(held_out) > 1:
        held_out = choose_held_out(layout, sources)
    wanted, cache = [source for source in sources if source.clear in held_out], ImageCache()
    if echo is not None:
        wanted = [source for source in wanted if _opens(source, cache, echo)]
        if not wanted:
            raise ValueError(f"none of the images in {', '.join(map(str, folders))} can be opened: see above")
    return open_sources(wanted, cache)


def _opens(source: Source, cache: ImageCache, echo: Callable[[str], object]) -> bool:
    """Return whether an image or a pair can be opened; echo the reason if not."""
    try:
        open_sources([source], cache)
    except (ValueError, OSError) as error:
        echo(str(error))
        return False
    return True


@dataclass(frozen=True)
class Source:
    """Files of a clear image and, for pairs, of the corresponding hazy image.

    Attributes
    ----------
    folder
        Folder of the data set.
    clear, hazy
        Paths of the images; `hazy` is None if haze is to be synthesized.
    """

    folder: Path
    clear: Path
    hazy: Path | None = None

    @property
    def name(self) -> str:
        """Path within the folder, without suffix; of a pair, the path of the hazy image."""
        return (self.hazy or self.clear).relative_to(self.folder).with_suffix("").as_posix()

    def matches(self, patterns: Sequence[str]) -> bool:
        """Return whether the end of one of the paths, from the folder on, matches a pattern."""
        # Not the absolute path: names of parent folders must not match.
        paths = [f"/{p.relative_to(self.folder.parent).as_posix()}" for p in (self.clear, self.hazy) if p is not None]
        return any(fnmatch(path, f"*/{pattern}") for pattern in patterns for path in paths)


def find_sources(folders: Sequence[Path]) -> tuple[Layout, list[Source]]:
    """List the files of folders of one layout, each once, sorted by folder and name.

    Raises
    ------
    ValueError
        If layouts are mixed, no images are found, or images of a pair are missing.
    """
    layouts = {detect_layout(folder) for folder in folders}
    if len(layouts) != 1:
        raise ValueError(
            f"folders of different layouts, {' and '.join(sorted(layouts))}: pass folders of one layout at a time"
        )
    (layout,) = layouts
    if layout == "clear images":
        sources = find_clear(folders)
        for source in sources:
            if hazy := {"hazy", *LEVELS} & set(source.clear.relative_to(source.folder).parts[:-1]):
                raise ValueError(
                    f"{source.clear} seems to be hazy: pass the folder that contains {hazy.pop()} and clear"
                )
    else:
        sources = [pair for folder in folders for pair in find_pairs(folder, layout)]
    return layout, list({(source.clear, source.hazy): source for source in sources}.values())


def detect_layout(folder: Path) -> Layout:
    """Return the layout of a folder, see `open_datasets`."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images")
    if not (folder / "clear").is_dir():
        return "clear images"
    if any((folder / level).is_dir() for level in LEVELS):
        return "8KDehaze"
    return "pairs" if (folder / "hazy").is_dir() else "clear images"


def check_output_folder(out: Path, folders: Sequence[Path]) -> None:
    """Raise ValueError if files written to a folder would become part of a data set in another folder."""
    for folder in folders:
        parts = (".",) if detect_layout(folder) == "clear images" else ("clear", "hazy", *LEVELS)
        if any(out.resolve().is_relative_to((folder / part).resolve()) for part in parts):
            raise ValueError(f"--out {out} is inside the images in {folder}: choose a folder next to them")


def find_pairs(folder: Path, layout: Layout) -> Iterator[Source]:
    """Yield pairs of the images in ``clear`` and those of the same name in the folders of hazy images.

    Raises
    ------
    ValueError
        If an image has no counterpart.
    """
    clear = index_by_name(folder / "clear")
    folders = [folder / name for name in (LEVELS if layout == "8KDehaze" else ("hazy",)) if (folder / name).is_dir()]
    hazy = [index_by_name(path) for path in folders]
    for images in hazy:
        if unpaired := sorted(images.keys() - clear.keys()):
            raise ValueError(
                f"{images[unpaired[0]]}: no clear image of this name in {folder / 'clear'}: add it, or remove this one"
            )
    for name, path in clear.items():
        matches = [images[name] for images in hazy if name in images]
        if not matches:
            where = " or ".join(str(path) for path in folders)
            raise ValueError(f"{path}: no hazy image of this name in {where}: add it, or remove this one")
        yield from (Source(folder, path, match) for match in matches)


def index_by_name(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by name without suffix, sorted.

    Raises
    ------
    ValueError
        If there are no images, or two have the same name.
    """
    found: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in found:
            raise ValueError(f"{path} and {found[path.stem].name} have the same name: keep one of them")
        found[path.stem] = path
    if not found:
        raise no_images_error([folder])
    return found


def choose_held_out(layout: Layout, sources: Sequence[Source], hold_out: Sequence[str] = ()) -> set[Path]:
    """Choose the clear images to validate on, see `open_datasets`.

    Raises
    ------
    ValueError
        If there are fewer than two images, or no image or every image matches the patterns.
    """
    clear = sorted({source.clear for source in sources})
    if hold_out:
        held_out = match_patterns(sources, hold_out)
        if len(held_out) == len(clear):
            option = f"--hold-out {' '.join(hold_out)}"
            raise ValueError(f"{option}: all {len(clear)} images match, there are no images to train on")
        return held_out
    if len(clear) < 2:
        raise ValueError(f"one image, {clear[0]}, is not enough: one to train on and one to validate on are needed")
    if layout != "8KDehaze":
        return set(clear[::10])
    standard_random.Random(22).shuffle(clear)
    return set(clear[min(round(0.85 * len(clear)), len(clear) - 1) :])


def match_patterns(sources: Sequence[Source], hold_out: Sequence[str]) -> set[Path]:
    """Return the clear images whose paths end with one of the patterns, such as ``"naip/*"`` or ``"kodim0[48]*"``.

    Raises
    ------
    ValueError
        If no image matches.
    """
    held_out = {source.clear for source in sources if source.matches(hold_out)}
    if not held_out:
        option = f"--hold-out {' '.join(hold_out)}"
        raise ValueError(f"{option}: no image matches; patterns are like 'naip/*' or 'DJI_003*'")
    return held_out


def open_sources(sources: Sequence[Source], cache: ImageCache) -> Dataset:
    """Open the images of a data set.

    Raises
    ------
    ValueError
        If an image cannot be read or is not 8-bit RGB, or the images of a pair have different sizes.
    """
    clear = {path: open_rgb(path, cache) for path in dict.fromkeys(source.clear for source in sources)}
    hazy = {source.hazy: open_rgb(source.hazy, cache) for source in sources if source.hazy is not None}
    for source in sources:
        if source.hazy is not None and (one := hazy[source.hazy].shape) != (other := clear[source.clear].shape):
            raise ValueError(
                f"{source.hazy} is {one[1]} x {one[0]}, its clear image {source.clear.name} "
                f"{other[1]} x {other[0]}: the images of a pair must have the same size"
            )
    pairs = [hazy[source.hazy] for source in sources if source.hazy is not None]
    return Dataset([clear[source.clear] for source in sources], pairs or None, [source.name for source in sources])


def find_clear(folders: Sequence[Path]) -> list[Source]:
    """List the images in folders and their subfolders, sorted.

    Raises
    ------
    ValueError
        If a folder does not exist, or contains no images.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder of images")
    found = [Source(folder, path) for folder in folders for path in walk_images(folder)]
    if not found:
        raise no_images_error(folders)
    return sorted(found, key=lambda source: source.clear)


def no_images_error(folders: Sequence[Path]) -> ValueError:
    """Return the error for folders without images."""
    where = ", ".join(str(f) for f in folders)
    return ValueError(f"no images in {where}: files need one of the suffixes {' '.join(SUFFIXES)}")


def walk_images(folder: Path) -> Iterator[Path]:
    """Yield the images in a folder and its subfolders, except in hidden folders."""
    for place, folders, _ in os.walk(folder):
        yield from list_images(Path(place))
        # A Zarr folder is an image; hidden folders are skipped, as in list_images.
        folders[:] = [name for name in folders if not name.lower().endswith(".zarr") and not name.startswith(".")]


def list_images(folder: Path) -> list[Path]:
    """List the images directly in a folder, sorted, except hidden files."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
