"""Data sets for training and validation: folders of clear pictures, of pairs, or 8KDehaze; random crops out."""

from __future__ import annotations

import random as standard_random
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".zarr", ".npy")

WHOLE = 64 * 2**20
"""Bytes: pictures up to this size are read whole, once; of larger ones each crop is read by itself."""

LEVELS = ("cloud_L1", "cloud_L2", "cloud_L3", "cloud_L4")
"""8KDehaze's folders of hazy pictures, beside ``clear``."""


class Picture(Protocol):
    """An 8-bit RGB picture ``(h, w, 3)``, in memory or to be read by crop; an array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns and colours."""

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """Return the pixels of slices of rows and columns."""


@dataclass(frozen=True)
class Dataset:
    """Pictures to train on or to validate on.

    Attributes
    ----------
    clear
        Clear pictures.
    hazy
        The same pictures with haze, in the same order; None where haze is to be synthesised. A clear picture with
        several hazy ones is listed with each.
    names
        What to call them.
    """

    clear: Sequence[Picture]
    hazy: Sequence[Picture] | None
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.clear)

    def crop(self, h: int, w: int, random: np.random.Generator) -> tuple[Tensor, Tensor | None]:
        """Cut a random crop: clear and, of pairs, hazy, ``(1, 3, h, w)`` in [0, 1]; pairs keep their colours."""
        index = int(random.integers(len(self.clear)))
        if self.hazy is None:
            return random_crop(self.clear[index : index + 1], h, w, random), None
        clear, hazy = turned_crops((self.clear[index], self.hazy[index]), h, w, random)
        return clear, hazy


def open_datasets(folders: Sequence[Path], hold_out: Sequence[str] = ()) -> tuple[Dataset, Dataset]:
    """Open folders of one layout for training and for validation.

    Parameters
    ----------
    folders
        Each holds ``clear`` and some of `LEVELS` (8KDehaze), or ``hazy`` and ``clear`` (pairs by name, whatever the
        suffix), or is any tree of clear pictures.
    hold_out
        Patterns of what to validate on, see `find_pictures`. Without, it is every tenth picture; of 8KDehaze the
        last 15 % of the sorted names shuffled with seed 22, the official split's share and seed (its order is not
        published, so that the pictures may be others).

    Raises
    ------
    ValueError
        If there is nothing to train on, layouts are mixed, a picture cannot be read or is not 8-bit RGB, or a pair
        lacks its partner or is of unequal size.
    """
    kinds = {layout(folder) for folder in folders}
    if len(kinds) > 1:
        raise ValueError(f"folders of different layouts, {' and '.join(sorted(kinds))}: give those of one at a time")
    (kind,) = kinds
    if kind == "clear pictures":
        training, held = split(*find_pictures(folders, hold_out), hold_out)
        return tuple(Dataset([open_rgb(p) for p in part], None, [p.stem for p in part]) for part in (training, held))  # type: ignore[return-value]
    hazy_folders = LEVELS if kind == "8KDehaze" else ("hazy",)
    clear = [p for folder in folders for p in list_pictures(folder / "clear")]
    for folder in folders:
        check_partners(folder, hazy_folders)
    if hold_out or kind == "pairs":
        held = [p for p in clear if any(fnmatch(p.as_posix(), f"*/{pattern}") for pattern in hold_out)]
        training, held = split([p for p in clear if p not in held], held, hold_out)
    else:
        shuffled = sorted(clear)
        standard_random.Random(22).shuffle(shuffled)
        cut = round(0.85 * len(shuffled))
        training, held = shuffled[:cut], shuffled[cut:]
    return pair_up(training, hazy_folders), pair_up(held, hazy_folders)


def layout(folder: Path) -> str:
    """Tell how a folder is laid out: ``8KDehaze``, ``pairs`` or ``clear pictures``."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of pictures")
    if not (folder / "clear").is_dir():
        return "clear pictures"
    if any((folder / level).is_dir() for level in LEVELS):
        return "8KDehaze"
    return "pairs" if (folder / "hazy").is_dir() else "clear pictures"


def pair_up(clear: Sequence[Path], hazy_folders: Sequence[str]) -> Dataset:
    """Open clear pictures with the hazy ones of the same name beside them.

    Raises
    ------
    ValueError
        If a picture has no partner, or one of another size.
    """
    places = dict.fromkeys(path.parent.parent / name for path in clear for name in hazy_folders)
    found = {place: {p.stem: p for p in list_pictures(place)} for place in places if place.is_dir()}
    pairs = []
    for path in clear:
        own = [found.get(path.parent.parent / name, {}).get(path.stem) for name in hazy_folders]
        if not any(own):
            raise ValueError(f"{path}: no hazy picture of this name in {', '.join(hazy_folders)}; add or remove one")
        pairs += [(path, p) for p in own if p is not None]
    opened = {path: open_rgb(path) for path in dict.fromkeys(path for path, _ in pairs)}
    hazy = [open_rgb(path) for _, path in pairs]
    for (path, other), picture in zip(pairs, hazy, strict=True):
        if picture.shape != opened[path].shape:
            raise ValueError(
                f"{other} is {picture.shape[1]} x {picture.shape[0]}, its clear picture {path.name} "
                f"{opened[path].shape[1]} x {opened[path].shape[0]}: pairs must be of one size"
            )
    names = [f"{other.parent.name}/{other.stem}" for _, other in pairs]
    return Dataset([opened[path] for path, _ in pairs], hazy, names)


def check_partners(folder: Path, hazy_folders: Sequence[str]) -> None:
    """Raise ValueError if a hazy picture has no clear one of the same name."""
    clear = {p.stem for p in list_pictures(folder / "clear")}
    for place in (folder / name for name in hazy_folders if (folder / name).is_dir()):
        if lonely := [p for p in list_pictures(place) if p.stem not in clear]:
            raise ValueError(f"{lonely[0]}: no clear picture of this name in {folder / 'clear'}; add or remove one")


def list_pictures(folder: Path) -> list[Path]:
    """List the pictures of a folder, sorted."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)


def split(training: list[Path], held: list[Path], hold_out: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Hold out every tenth picture where no pattern says what to validate on.

    Raises
    ------
    ValueError
        If there are too few pictures, or no picture matches the patterns.
    """
    if hold_out and not held:
        raise ValueError(
            f"--hold-out {' '.join(hold_out)}: no picture matches; patterns are like 'naip/*' or 'DJI_003*'"
        )
    if not held:
        if len(training) < 2:
            some = f"one picture, {training[0]}, is too few" if training else "no pictures to train on"
            raise ValueError(f"{some}: one to train on and one to validate on are needed")
        held, training = training[::10], [path for i, path in enumerate(training) if i % 10]
    return training, held


def find_pictures(folders: Sequence[Path], hold_out: Sequence[str] = ()) -> tuple[list[Path], list[Path]]:
    """List the pictures in folders and their subfolders.

    Parameters
    ----------
    folders
        Where to look.
    hold_out
        Patterns such as ``"naip/*"`` or ``"*kodim0[48]*"``; pictures that match one are for validation.

    Returns
    -------
    training, validation : list of Path

    Raises
    ------
    ValueError
        If there is no picture to train on.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder of pictures")
    # Patterns speak of the path from the folder on: what lies above it must not hold out everything.
    names = {
        p: f"/{p.relative_to(folder.parent).as_posix()}"
        for folder in folders
        for p in folder.rglob("*")
        if p.suffix.lower() in SUFFIXES
    }
    found = sorted(names)
    held = [p for p in found if any(fnmatch(names[p], f"*/{pattern}") for pattern in hold_out)]
    kept = sorted(set(found) - set(held))
    if not kept:
        where = ", ".join(str(f) for f in folders)
        raise ValueError(f"no pictures to train on in {where}: they need one of the suffixes {' '.join(SUFFIXES)}")
    return kept, held


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read a picture as ``(h, w, 3)``, uint8; ``.npy`` files hold just that.

    Raises
    ------
    ValueError
        If it is not an 8-bit picture with three bands or more.
    """
    if path.suffix == ".npy":
        pixels = np.load(path)
    else:
        # Not needed for .npy, so that training runs where only torch and numpy are installed.
        from dehazexl.image import open_image

        image = open_image(path)
        pixels = np.asarray(image.levels[0][..., list(image.rgb)])
        if len(image.bands) < 3:
            pixels = pixels[..., :1]  # a grey picture counts as three equal colours elsewhere, and teaches none here
    return np.ascontiguousarray(check_rgb(path, pixels))


class Lazy:
    """A large 8-bit picture ``(h, w, 3)``, of which each crop is read by itself."""

    def __init__(self, levels: Any, rgb: tuple[int, int, int]) -> None:
        self._array, self._rgb = levels, list(rgb)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and colours."""
        return self._array.shape[0], self._array.shape[1], 3

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        return np.asarray(self._array[index][..., self._rgb].compute(scheduler="synchronous"))


def open_rgb(path: Path) -> Picture:
    """Open a picture: read whole where it is small, else by crop.

    Raises
    ------
    ValueError
        If it cannot be read, or is not an 8-bit picture with three bands or more.
    """
    if path.suffix == ".npy":
        return check_rgb(path, np.load(path, mmap_mode="r"))
    from dehazexl.image import open_image

    image = open_image(path)
    level = image.levels[0]
    if level.nbytes <= WHOLE:
        return read_rgb(path)
    if len(image.bands) < 3 or level.dtype != np.uint8:
        check_rgb(path, np.empty((1, 1, len(image.bands)), level.dtype))
    return Lazy(level, image.rgb)


def check_rgb(path: Path, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels ``(h, w, 3)`` of 8 bits, or raise ValueError with the picture's name."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"{path}: training needs 8-bit RGB pictures, this is {pixels.dtype} {pixels.shape}")
    return pixels


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Turn ``(h, w, 3)`` uint8 into ``(1, 3, h, w)`` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


def random_crop(pictures: Sequence[Picture], h: int, w: int, random: np.random.Generator) -> Tensor:
    """Cut a random crop from a random picture, at a random scale, turned, flipped and slightly recoloured.

    Returns ``(1, 3, h, w)`` in [0, 1].
    """
    picture = pictures[int(random.integers(len(pictures)))]
    (crop,) = turned_crops((picture,), h, w, random)
    return recolour(crop, random)


def turned_crops(pictures: Sequence[Picture], h: int, w: int, random: np.random.Generator) -> list[Tensor]:
    """Cut the same random crop from pictures of one size, at a random scale, turned and flipped.

    Only the crop is read. Pictures smaller than it are enlarged. Returns ``(1, 3, h, w)`` in [0, 1] of each.
    """
    turn = random.random() < 0.5
    height, width = pictures[0].shape[:2]
    rows, cols = (w, h) if turn else (h, w)
    # Shrinking up to four times makes coarser ground resolutions; small pictures may be enlarged.
    largest = min(height / rows, width / cols)
    zoom = min(largest, float(np.exp(random.uniform(np.log(min(0.8, largest)), np.log(min(4.0, max(0.8, largest)))))))
    ch, cw = min(height, max(1, round(rows * zoom))), min(width, max(1, round(cols * zoom)))
    y, x = random.integers(height - ch + 1), random.integers(width - cw + 1)
    flips = [axis for axis in (3, 2) if random.random() < 0.5]
    crops = []
    for picture in pictures:
        pixels = picture[y : y + ch, x : x + cw]
        crop = to_tensor(pixels.transpose(1, 0, 2) if turn else pixels)
        crops.append(F.interpolate(crop, size=(h, w), mode="bilinear", antialias=zoom > 1).flip(flips))
    return crops


def recolour(crop: Tensor, random: np.random.Generator) -> Tensor:
    """Vary exposure, contrast and white balance of ``(1, 3, h, w)`` in [0, 1]."""
    gains = torch.from_numpy(random.uniform(0.92, 1.08, (1, 3, 1, 1)).astype(np.float32))
    return (crop ** float(random.uniform(0.75, 1.35)) * gains * float(random.uniform(0.85, 1.1))).clamp(0, 1)


def center_crop(picture: Picture, h: int, w: int) -> Tensor:
    """Cut the middle of a picture ``(height, width, 3)``: at most ``(1, 3, h, w)`` in [0, 1]."""
    height, width, _ = picture.shape
    y, x = max(0, (height - h) // 2), max(0, (width - w) // 2)
    return to_tensor(picture[y : y + h, x : x + w])
