"""Clear pictures for training and validation: folders in, random crops out."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".npy")


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
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"{path}: training needs 8-bit RGB pictures, this is {pixels.dtype} {pixels.shape}")
    return np.ascontiguousarray(pixels)


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Turn ``(h, w, 3)`` uint8 into ``(1, 3, h, w)`` float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


def random_crop(pictures: Sequence[NDArray[np.uint8]], h: int, w: int, random: np.random.Generator) -> Tensor:
    """Cut a random crop from a random picture, at a random scale, turned, flipped and slightly recoloured.

    Returns ``(1, 3, h, w)`` in [0, 1].
    """
    picture = pictures[int(random.integers(len(pictures)))]
    if random.random() < 0.5:
        picture = picture.transpose(1, 0, 2)
    height, width, _ = picture.shape
    # Shrinking up to four times makes coarser ground resolutions; small pictures may be enlarged.
    largest = min(height / h, width / w)
    zoom = min(largest, float(np.exp(random.uniform(np.log(min(0.8, largest)), np.log(min(4.0, max(0.8, largest)))))))
    ch, cw = min(height, round(h * zoom)), min(width, round(w * zoom))
    y, x = random.integers(height - ch + 1), random.integers(width - cw + 1)
    crop = to_tensor(picture[y : y + ch, x : x + cw])
    crop = F.interpolate(crop, size=(h, w), mode="bilinear", antialias=zoom > 1)
    if random.random() < 0.5:
        crop = crop.flip(3)
    if random.random() < 0.5:
        crop = crop.flip(2)
    return recolour(crop, random)


def recolour(crop: Tensor, random: np.random.Generator) -> Tensor:
    """Vary exposure, contrast and white balance of ``(1, 3, h, w)`` in [0, 1]."""
    gains = torch.from_numpy(random.uniform(0.92, 1.08, (1, 3, 1, 1)).astype(np.float32))
    return (crop ** float(random.uniform(0.75, 1.35)) * gains * float(random.uniform(0.85, 1.1))).clamp(0, 1)


def center_crop(picture: NDArray[np.uint8], h: int, w: int) -> Tensor:
    """Cut the middle of a picture ``(height, width, 3)``: at most ``(1, 3, h, w)`` in [0, 1]."""
    height, width, _ = picture.shape
    y, x = max(0, (height - h) // 2), max(0, (width - w) // 2)
    return to_tensor(picture[y : y + h, x : x + w])
