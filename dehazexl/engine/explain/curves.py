"""Deletion and insertion curves, which test whether the response depends on the tiles that an attribution names.

Petsiuk, Das and Saenko, RISE: Randomized input sampling for explanation of black-box models, BMVC 2018.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dehazexl.engine.explain.measures import area
from dehazexl.model.fusing import idle

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from dehazexl.engine.explain.response import Response

POINTS = 10
"""Steps from no tile to all tiles, at most."""

SEEDS = 10
"""Random orders to compare with."""


@dataclass(frozen=True)
class Curve:
    """Responses while more and more tiles are exchanged, 0 for that to the baseline and 1 for that to the image.

    Attributes
    ----------
    shares
        Shares of the tiles, from 0 to 1.
    ordered
        Responses where tiles are exchanged by their attribution, largest first.
    random
        The same for random orders.
    """

    shares: list[float]
    ordered: list[float]
    random: list[list[float]]

    @property
    def area(self) -> float:
        """Area under the curve of the tiles by their attribution."""
        return area(self.shares, self.ordered)

    @property
    def random_areas(self) -> list[float]:
        """Areas under the curves of random orders."""
        return [area(self.shares, values) for values in self.random]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"area": self.area, "random_areas": self.random_areas}


def count_steps(tiles: int) -> int:
    """Return the number of steps that `curves` yields for a number of tiles, without those of encoding."""
    return 2 * (1 + SEEDS) * (len(_counts(tiles)) - 2)


def curves(
    response: Response, attribution: NDArray[np.floating], ends: tuple[float, float]
) -> Generator[int, None, dict[str, Curve]]:
    """Exchange tiles of the image for those of the baseline ("deletion") and the other way round ("insertion").

    The tokens of both are computed once; each point of a curve only fuses them and decodes the window.

    Parameters
    ----------
    response
        The response, between baseline and image.
    attribution
        Attribution of each tile ``(rows, cols)``, signed.
    ends
        Response to the baseline and to the image.

    Yields
    ------
    int
        Tiles that were encoded, for both; then 0 within a point, and 1 after each.

    Returns
    -------
    dict
        Curves by name.
    """
    tiles = attribution.size
    start = yield from response.tokens(np.zeros(tiles, np.float32))
    end = yield from response.tokens(np.ones(tiles, np.float32))
    by_size = np.argsort(-attribution.ravel() * np.sign(ends[1] - ends[0]), kind="stable")
    orders = [by_size, *(np.random.default_rng(seed).permutation(tiles) for seed in range(SEEDS))]
    counts = _counts(tiles)
    found = {}
    for name in ("deletion", "insertion"):
        lines = []
        for order in orders:
            line = [1.0 if name == "deletion" else 0.0]
            for count in counts[1:-1]:
                shows = np.full(tiles, name == "deletion")
                shows[order[:count]] ^= True
                value = yield from idle(response.value(_mixed(start, end, shows), shows.astype(np.float32)))
                line.append((value - ends[0]) / (ends[1] - ends[0]))
                yield 1
            lines.append([*line, 1 - line[0]])
        found[name] = Curve([count / tiles for count in counts], lines[0], lines[1:])
    return found


def _counts(tiles: int) -> list[int]:
    """Return the numbers of tiles at the points of a curve, from 0 to all."""
    return sorted({round(tiles * point / POINTS) for point in range(POINTS + 1)})


def _mixed(start: Tensor, end: Tensor, shows: NDArray[np.bool_]) -> Tensor:
    """Take the tokens of tiles that show the image from `end`, the others from `start`."""
    with torch.no_grad():
        return torch.where(torch.from_numpy(shows).to(start.device).view(-1, 1, 1, 1), end, start)
