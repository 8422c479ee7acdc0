"""Recipes: what another process needs to take up a job. They are small: pixels, weights and tokens stay on disk."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cachetools import LRUCache

from dehazexl.image.grid import TileGrid, Window
from dehazexl.image.windowed_array import WindowedArray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dehazexl.engine.job import Job
    from dehazexl.engine.tokens import ZarrTokens
    from dehazexl.image.border import Border
    from dehazexl.image.image import Image
    from dehazexl.model import DehazeXL

# torch is imported when a job is taken up: the scheduler of a cluster unpickles recipes, too, and needs none.

T = TypeVar("T")

KEEP = 128 * 2**20
"""Bytes of feature maps and of parts of decoded tiles that a process keeps, each."""


class LostClaim(RuntimeError):
    """Raised in a process that works for a run that has ended."""


@dataclass(frozen=True)
class ImageFile:
    """An image in a file.

    Attributes
    ----------
    path
        Absolute path.
    crops
        See `Image.crops`.
    array
        Name of the dask array of its finest level, which tells one version of the file from another.
    """

    path: Path
    crops: tuple[Window, ...]
    array: str

    def open(self) -> Image:
        """Open the image.

        Raises
        ------
        FileNotFoundError, OSError
            If there is no such file on this machine, or it is another one.
        """
        image = open_cropped(self.path, self.crops)
        if image.levels[0].name != self.array:
            raise OSError(f"{self.path} was changed after it was opened, or is another one on this machine")
        return image


def open_cropped(path: Path, crops: tuple[Window, ...]) -> Image:
    """Open an image and crop it to one window after the other."""
    from dehazexl.io.open import open_image

    image = open_image(path)
    for window in crops:
        image = image.cropped(window)
    return image


@dataclass(frozen=True)
class Recipe:
    """Recipe of a job and its tokens; see `Job` for the attributes without description.

    Attributes
    ----------
    key
        Distinct for each job.
    image
        File of the image, or the pickled image.
    rgb, alpha, nodata, border
        See `Image`.
    weights, device, dtype
        File of the weights, device and precision to compute on, see `load_model`.
    batch, fuse
        Tiles computed at once, see `TilesAtOnce`.
    store
        The tokens.
    claim
        File that contains the key as long as somebody waits for the work; None if it is not to be checked.
    """

    key: str
    image: ImageFile | bytes
    rgb: tuple[int, int, int]
    alpha: int | None
    nodata: float | None
    border: Border | None
    weights: Path
    device: str
    dtype: str
    grid: TileGrid
    value_range: tuple[float, float]
    strength: float
    pooled: int
    batch: int
    fuse: int
    store: ZarrTokens
    claim: Path | None = None

    def job(self) -> Job:
        """Return the job, which is taken up once in a process."""
        return once(_jobs, self.key, self._take_up)

    def check(self, _: int = 0) -> None:
        """Raise `LostClaim` if nobody waits for the work anymore.

        It is called before anything is written, so that a late process does not write into the work of another run.
        """
        if self.claim is None:
            return
        try:
            waiting = self.claim.read_text() == self.key
        except FileNotFoundError:
            waiting = False
        if not waiting:
            raise LostClaim(f"{self.claim}: the run ended")

    def _take_up(self) -> Job:
        from dehazexl.engine.allocator import keep_freed_memory
        from dehazexl.engine.job import Job
        from dehazexl.engine.memory import TilesAtOnce

        keep_freed_memory()
        image = self.image.open() if isinstance(self.image, ImageFile) else pickle.loads(self.image)
        image = replace(image, rgb=self.rgb, alpha=self.alpha, nodata=self.nodata, border=self.border)
        # The name of the file contains a hash of the weights: the images of a folder share one network.
        model = once(_networks, (self.weights.name, self.device, self.dtype), self._load)
        memory = TilesAtOnce(self.batch)
        memory.fuse = self.fuse
        return Job(image, self.grid, model, self.value_range, memory, self.strength, KEEP, self.pooled)

    def _load(self) -> DehazeXL:
        from dehazexl.model.weights import load_model

        return load_model(self.weights, self.device, self.dtype)


class DecodedElsewhere(WindowedArray):
    """A window of the dehazed image ``(y, x, c)`` in another process, which decodes the windows that are read."""

    def __init__(self, recipe: Recipe, window: Window, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.recipe, self.window, self.shape, self.dtype = recipe, window, shape, dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Decode the pixels of a window."""
        from dehazexl.engine.decode import decode

        return decode(self.recipe.job(), self.recipe.store, window.moved(self.window.y0, self.window.x0))


_jobs: LRUCache[Hashable, Any] = LRUCache(2)
_networks: LRUCache[Hashable, Any] = LRUCache(1)
loaded: LRUCache[Hashable, Any] = LRUCache(1)
"""The step of fusing that this process works on, with the keys and values that it reads."""
_taking_up = threading.RLock()


def once(cache: LRUCache[Hashable, Any], key: Hashable, make: Callable[[], T]) -> T:
    """Return a value of a cache; threads that miss it wait for the first of them."""
    with _taking_up:
        if key not in cache:
            cache[key] = make()
        value: T = cache[key]
        return value


def forget(key: str) -> None:
    """Drop a job of this process."""
    with _taking_up:
        _jobs.pop(key, None)
        loaded.clear()


def forget_steps() -> None:
    """Drop the step of fusing, which may be large."""
    with _taking_up:
        loaded.clear()
