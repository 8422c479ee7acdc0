"""Data sets for training and evaluation: folders of clear pictures, of pairs, or 8KDehaze."""

from __future__ import annotations

import os
import random as standard_random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from dehazexl.training.augment import draw_view, random_crop
from dehazexl.training.rgb_files import ImageCache, Picture, open_rgb

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".zarr", ".npy")

LEVELS = ("cloud_L1", "cloud_L2", "cloud_L3", "cloud_L4")
"""8KDehaze's folders of hazy pictures, beside ``clear``."""

Layout = Literal["8KDehaze", "pairs", "clear pictures"]


@dataclass(frozen=True)
class Dataset:
    """Pictures to train on or to validate on.

    Attributes
    ----------
    clear
        Clear pictures.
    hazy
        The same pictures with haze, in the same order; None where haze is to be synthesized. A clear picture with
        several hazy ones is listed with each.
    names
        What to call them: paths within the data set's folder, without suffix; of pairs the hazy picture's.
    """

    clear: Sequence[Picture]
    hazy: Sequence[Picture] | None
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.clear)

    def crop(self, h: int, w: int, random: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """Cut a random crop: clear and, of pairs, hazy, ``(1, 3, h, w)`` in [0, 1]; pairs keep their colors."""
        if self.hazy is None:
            return random_crop(self.clear, h, w, random), None
        index = int(random.integers(len(self)))
        view = draw_view(self.clear[index].shape, h, w, random)
        return view.cut(self.clear[index]), view.cut(self.hazy[index])


def open_datasets(folders: Sequence[Path], hold_out: Sequence[str] = ()) -> tuple[Dataset, Dataset]:
    """Open folders of one layout for training and for validation.

    Parameters
    ----------
    folders
        Each holds ``clear`` and some of `LEVELS` (8KDehaze), or ``hazy`` and ``clear`` (pairs by name, whatever the
        suffix), or is any tree of clear pictures.
    hold_out
        Patterns of what to validate on, see `matching`; a clear picture goes with all its hazy ones. Without
        any, it is every tenth clear picture; of 8KDehaze the last 15 % of the sorted names shuffled by
        ``random.Random(22)``. Share and seed are those of the official split; how it shuffles is not known, so that
        its pictures may be others.

    Returns
    -------
    training, validation : Dataset

    Raises
    ------
    ValueError
        If there is nothing to train on, layouts are mixed, a picture cannot be read or is not 8-bit RGB, or a pair
        lacks its partner or is of unequal size.
    """
    layout, sources = find_sources(folders)
    held = hold_back(layout, sources, hold_out)
    memory = ImageCache()
    training = [source for source in sources if source.clear not in held]
    return open_sources(training, memory), open_sources([s for s in sources if s.clear in held], memory)


def open_for_evaluation(folders: Sequence[Path], hold_out: Sequence[str] = ()) -> Dataset:
    """Open what matches the patterns in folders, see `open_datasets`.

    Without patterns it is all, of 8KDehaze what is for validation.
    """
    layout, sources = find_sources(folders)
    held = {source.clear for source in sources}
    if hold_out:
        held = matching(sources, hold_out)
    elif layout == "8KDehaze" and len(held) > 1:
        held = hold_back(layout, sources)
    return open_sources([source for source in sources if source.clear in held], ImageCache())


@dataclass(frozen=True)
class Source:
    """Files of a data set: a clear picture, and the hazy one that belongs to it."""

    folder: Path
    clear: Path
    hazy: Path | None = None

    @property
    def name(self) -> str:
        """Path within the folder, without suffix; of pairs the hazy picture's."""
        return (self.hazy or self.clear).relative_to(self.folder).with_suffix("").as_posix()

    def matches(self, patterns: Sequence[str]) -> bool:
        """Tell whether one of its paths, from the folder on, ends as a pattern says."""
        # Not the whole path: what lies above the folder must not hold out everything.
        paths = [f"/{p.relative_to(self.folder.parent).as_posix()}" for p in (self.clear, self.hazy) if p is not None]
        return any(fnmatch(path, f"*/{pattern}") for pattern in patterns for path in paths)


def find_sources(folders: Sequence[Path]) -> tuple[Layout, list[Source]]:
    """List the files of folders of one layout, each once, sorted by folder and name."""
    layouts = {layout_of(folder) for folder in folders}
    if len(layouts) != 1:
        raise ValueError(f"folders of different layouts, {' and '.join(sorted(layouts))}: give those of one at a time")
    (layout,) = layouts
    if layout == "clear pictures":
        sources = find_clear(folders)
        for source in sources:
            if hazy := {"hazy", *LEVELS} & set(source.clear.relative_to(source.folder).parts[:-1]):
                raise ValueError(
                    f"{source.clear} seems to be hazy: give the folder that holds {hazy.pop()} and clear itself"
                )
    else:
        sources = [pair for folder in folders for pair in find_pairs(folder, layout)]
    return layout, list({(source.clear, source.hazy): source for source in sources}.values())


def layout_of(folder: Path) -> Layout:
    """Tell how a folder is laid out, see `open_datasets`."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of pictures")
    if not (folder / "clear").is_dir():
        return "clear pictures"
    if any((folder / level).is_dir() for level in LEVELS):
        return "8KDehaze"
    return "pairs" if (folder / "hazy").is_dir() else "clear pictures"


def check_beside(out: Path, folders: Sequence[Path]) -> None:
    """Raise ValueError if what is written to a folder would later be taken for one of the clear pictures in another."""
    for folder in folders:
        parts = (".",) if layout_of(folder) == "clear pictures" else ("clear", "hazy", *LEVELS)
        if any(out.resolve().is_relative_to((folder / part).resolve()) for part in parts):
            raise ValueError(f"--out {out} lies among the pictures in {folder}: a folder beside them is needed")


def find_pairs(folder: Path, layout: Layout) -> Iterator[Source]:
    """Pair the pictures of ``clear`` with those of the same name in the folders of hazy ones beside it.

    Raises
    ------
    ValueError
        If a picture has no partner.
    """
    clear = by_name(folder / "clear")
    places = [folder / name for name in (LEVELS if layout == "8KDehaze" else ("hazy",)) if (folder / name).is_dir()]
    hazy = [by_name(place) for place in places]
    for pictures in hazy:
        if alone := sorted(pictures.keys() - clear.keys()):
            raise ValueError(
                f"{pictures[alone[0]]}: no clear picture of this name in {folder / 'clear'}: add it, or remove this one"
            )
    for name, path in clear.items():
        partners = [pictures[name] for pictures in hazy if name in pictures]
        if not partners:
            where = " or ".join(str(place) for place in places)
            raise ValueError(f"{path}: no hazy picture of this name in {where}: add it, or remove this one")
        yield from (Source(folder, path, partner) for partner in partners)


def by_name(folder: Path) -> dict[str, Path]:
    """Return the pictures of a folder by their names without suffix, sorted."""
    found: dict[str, Path] = {}
    for path in list_pictures(folder):
        if path.stem in found:
            raise ValueError(f"{path} and {found[path.stem].name} have one name: keep one of them")
        found[path.stem] = path
    if not found:
        raise no_pictures([folder])
    return found


def hold_back(layout: Layout, sources: Sequence[Source], hold_out: Sequence[str] = ()) -> set[Path]:
    """Choose the clear pictures to validate on, see `open_datasets`.

    Raises
    ------
    ValueError
        If there are too few pictures, or no picture matches the patterns, or each does.
    """
    clear = sorted({source.clear for source in sources})
    if hold_out:
        held = matching(sources, hold_out)
        if len(held) == len(clear):
            said = f"--hold-out {' '.join(hold_out)}"
            raise ValueError(f"{said}: all {len(clear)} pictures match, there are no pictures to train on")
        return held
    if len(clear) < 2:
        raise ValueError(f"one picture, {clear[0]}, is too few: one to train on and one to validate on are needed")
    if layout != "8KDehaze":
        return set(clear[::10])
    standard_random.Random(22).shuffle(clear)
    return set(clear[min(round(0.85 * len(clear)), len(clear) - 1) :])


def matching(sources: Sequence[Source], hold_out: Sequence[str]) -> set[Path]:
    """Choose the clear pictures that match patterns such as ``"naip/*"`` or ``"kodim0[48]*"``: so their paths end.

    Raises
    ------
    ValueError
        If there are none.
    """
    held = {source.clear for source in sources if source.matches(hold_out)}
    if not held:
        said = f"--hold-out {' '.join(hold_out)}"
        raise ValueError(f"{said}: no picture matches; patterns are like 'naip/*' or 'DJI_003*'")
    return held


def open_sources(sources: Sequence[Source], memory: ImageCache) -> Dataset:
    """Open the pictures of a data set.

    Raises
    ------
    ValueError
        If one cannot be read or is not 8-bit RGB, or a pair is of unequal size.
    """
    clear = {path: open_rgb(path, memory) for path in dict.fromkeys(source.clear for source in sources)}
    hazy = {source.hazy: open_rgb(source.hazy, memory) for source in sources if source.hazy is not None}
    for source in sources:
        if source.hazy is not None and (one := hazy[source.hazy].shape) != (other := clear[source.clear].shape):
            raise ValueError(
                f"{source.hazy} is {one[1]} x {one[0]}, its clear picture {source.clear.name} "
                f"{other[1]} x {other[0]}: pairs must be of one size"
            )
    pairs = [hazy[source.hazy] for source in sources if source.hazy is not None]
    return Dataset([clear[source.clear] for source in sources], pairs or None, [source.name for source in sources])


def find_clear(folders: Sequence[Path]) -> list[Source]:
    """List the pictures in folders and their subfolders, sorted.

    Raises
    ------
    ValueError
        If a folder does not exist, or there is no picture.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder of pictures")
    found = [Source(folder, path) for folder in folders for path in walk(folder)]
    if not found:
        raise no_pictures(folders)
    return sorted(found, key=lambda source: source.clear)


def no_pictures(folders: Sequence[Path]) -> ValueError:
    """Say that there are none."""
    where = ", ".join(str(f) for f in folders)
    return ValueError(f"no pictures in {where}: they need one of the suffixes {' '.join(SUFFIXES)}")


def walk(folder: Path) -> Iterator[Path]:
    """Yield the pictures in a folder and its subfolders."""
    for place, folders, _ in os.walk(folder):
        yield from list_pictures(Path(place))
        # A Zarr is a picture, not a folder of some; what is hidden is none, as in list_pictures.
        folders[:] = [name for name in folders if not name.lower().endswith(".zarr") and not name.startswith(".")]


def list_pictures(folder: Path) -> list[Path]:
    """List the pictures of a folder itself, sorted; hidden files are none."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
