"""Clear images in the memory of a device and random crops of them, which need no disk access."""

from __future__ import annotations

import io
import json
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Images:
    """Clear images on a device.

    Attributes
    ----------
    pixels
        Images ``(3, h, w)``, uint8.
    upright
        Whether the top of each image is up.
    weights
        Probability of each image to be drawn.
    """

    pixels: list[Tensor]
    upright: list[bool]
    weights: np.ndarray

    @classmethod
    def load(cls, path: Path, split: str, device: torch.device) -> Images:
        """Read the images of a split from a file written by ``benchmarks/weights/pack.py``.

        The weight of a source is the number of its images to the power 0.6, so that large sources do not dominate.

        Parameters
        ----------
        path
            A zip file.
        split
            "train" or "valid".
        device
            Device of the images.
        """
        from PIL import Image

        with zipfile.ZipFile(path) as pack:
            index = [entry for entry in json.loads(pack.read("index.json")) if entry["split"] == split]
            encoded = [pack.read(entry["file"]) for entry in index]
        with ThreadPoolExecutor() as pool:
            arrays = list(pool.map(lambda data: np.array(Image.open(io.BytesIO(data)).convert("RGB")), encoded))
        sources = [entry["source"] for entry in index]
        weights = np.array([sources.count(source) ** -0.4 for source in sources])
        return cls(
            [torch.from_numpy(array).permute(2, 0, 1).to(device).contiguous() for array in arrays],
            [entry["upright"] for entry in index],
            weights / weights.sum(),
        )

    def crops(self, count: int, h: int, w: int, random: np.random.Generator, whole: float) -> tuple[Tensor, Tensor]:
        """Return random crops at random scales, rotated, flipped and recolored.

        Parameters
        ----------
        count
            Number of crops.
        h, w
            Size in pixels.
        random
            Random generator.
        whole
            Share of crops that are as large as possible.

        Returns
        -------
        clear : Tensor
            ``(count, 3, h, w)`` in [0, 1].
        upright : Tensor
            ``(count,)``, bool: whether the top of each crop is up.
        """
        drawn = [self.crop(h, w, random, whole) for _ in range(count)]
        clear = torch.stack([crop for crop, _ in drawn])
        for i in range(0, count, 8):  # join two images in every eighth crop
            axis, share = int(random.integers(1, 3)), random.uniform(0.2, 0.8)
            border = round(share * clear.shape[axis + 1])
            other = clear[(i + 1) % count].narrow(axis, border, clear.shape[axis + 1] - border)
            clear[i] = torch.cat([clear[i].narrow(axis, 0, border), other], dim=axis)
        changed = torch.from_numpy(random.random(count) < 0.5).to(clear.device).view(-1, 1, 1, 1)
        numbers = [random.uniform(low, high, (count, n, 1, 1)) for low, high, n in ((0.8, 1.25, 1), (0.93, 1.07, 3))]
        power, gains = (torch.from_numpy(each.astype(np.float32)).to(clear.device) for each in numbers)
        recolored = (clear**power * gains).clamp(0, 1)
        upright = torch.tensor([up for _, up in drawn], device=clear.device)
        return torch.where(changed, recolored, clear), upright

    def crop(self, h: int, w: int, random: np.random.Generator, whole: float) -> tuple[Tensor, bool]:
        """Return a random crop ``(3, h, w)`` in [0, 1], and whether its top is up."""
        index = int(random.choice(len(self.pixels), p=self.weights))
        pixels, upright = self.pixels[index], self.upright[index]
        turn = int(random.integers(4)) if not upright or random.random() < 0.3 else 0
        height, width = pixels.shape[1:] if turn % 2 == 0 else pixels.shape[:0:-1]
        largest = min(height / h, width / w)
        least = min(0.7, largest)
        drawn = math.exp(random.uniform(math.log(least), math.log(max(0.75, largest))))
        zoom = largest if random.random() < whole else min(drawn, largest)
        ch, cw = min(height, round(h * zoom)), min(width, round(w * zoom))
        y, x = int(random.integers(height - ch + 1)), int(random.integers(width - cw + 1))
        rotated = pixels.transpose(1, 2) if turn % 2 else pixels
        part = rotated[:, y : y + ch, x : x + cw]
        part = F.interpolate(part[None].float() / 255, size=(h, w), mode="bilinear", antialias=ch > h)[0]
        flips = [axis for axis, flip in ((2, random.random() < 0.5), (1, turn > 1)) if flip]
        return part.flip(flips).clamp(0, 1), upright and turn == 0
