"""The whole path of the data: open, encode, fuse, decode lazily."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from dehazexl.engine.decode import decode
from dehazexl.engine.description import describe_tokens
from dehazexl.engine.job import Job
from dehazexl.engine.memory import TilesAtOnce
from dehazexl.engine.run import stages
from dehazexl.engine.tokens import MemoryTokens, TokenStore, ZarrTokens, check_apart
from dehazexl.image.grid import TileGrid, Window, check_overlap
from dehazexl.image.image import check_range, check_strength
from dehazexl.image.image import value_range as find_value_range
from dehazexl.image.windowed_array import WindowedArray
from dehazexl.io.open import open_image
from dehazexl.io.unfinished import held
from dehazexl.model import DehazeXL
from dehazexl.model.weights import load_model

if TYPE_CHECKING:
    import dask.array as da
    from numpy.typing import NDArray

CHUNK = 2048
"""Side of the chunks of a dehazed image, in pixels: a power of two, which the chunks of files divide."""


def dehaze(
    source: Any,
    model: DehazeXL | str | Path | None = None,
    overlap: int | None = None,
    strength: float = 1.0,
    value_range: tuple[float, float] | None = None,
    bands: Sequence[int | str] | None = None,
    batch: int | Literal["auto"] = "auto",
    tokens: str | Path | None = None,
) -> da.Array:
    """Remove the haze from an image of any size.

    All tiles are encoded and their tokens fused before this returns; the pixels are computed lazily.

    Parameters
    ----------
    source
        A path, a numpy, dask or zarr array, or an `Image`; see `open_image`.
    model
        A network of `load_model`, or the name or path of weights for it; None loads the bundled weights.
    overlap
        Overlap of neighboring tiles in pixels, 0 to 128; they are blended there. None uses the default of the network:
        0 for the head ``field``, whose tiles meet without a step, else 32. The official network uses 0.
    strength
        Strength of the haze removal, from 0 (the input) to 1 (the output of the network).
    value_range
        Values of the image that correspond to black and white; None uses `dehazexl.image.value_range`.
    bands
        Numbers or names of the bands that are red, green and blue, see `open_image`.
    batch
        Number of tiles computed at once; ``"auto"`` depends on the memory of the device.
    tokens
        Folder for the tokens, so that an interrupted run can be resumed. None keeps them in memory: 66 kB per tile with
        the bundled weights in float32, half in half precision.

    Returns
    -------
    dask.array.Array
        Lazy ``(y, x, c)`` with the shape, dtype and bands of the image. Bands that are not dehazed and pixels without
        data are unchanged. Integers are rounded and clipped to their dtype, floats are not clipped.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        See `open_image`; ValueError also for arguments out of range.
    OSError
        If another process works on the same folder of tokens.
    """
    job = prepare(source, model, overlap, strength, value_range, bands, batch)
    with nullcontext() if tokens is None else held(Path(tokens).expanduser()):
        store = open_tokens(job, tokens)
        for stage in stages(job, store):
            for _ in stage.steps:
                pass
    return decode_lazily(job, store)


def prepare(
    source: Any,
    model: DehazeXL | str | Path | None = None,
    overlap: int | None = None,
    strength: float = 1.0,
    value_range: tuple[float, float] | None = None,
    bands: Sequence[int | str] | None = None,
    batch: int | Literal["auto"] | TilesAtOnce = "auto",
) -> Job:
    """Check the arguments of `dehaze`, open the image and find its value range.

    A `batch` of `TilesAtOnce` is shared with other jobs.
    """
    check_overlap(overlap)
    check_strength(strength)
    check_batch(batch)
    image = open_image(source, bands=bands)
    height, width, _ = image.levels[0].shape
    limits = find_value_range(image) if value_range is None else check_range(value_range)
    model = _network(model)
    grid = TileGrid(height, width, model.head.overlap if overlap is None else int(overlap), model.spec.tile)
    memory = batch if isinstance(batch, TilesAtOnce) else TilesAtOnce(choose_batch(batch, model))
    return Job(image, grid, model, limits, memory, strength)


def _network(model: DehazeXL | str | Path | None) -> DehazeXL:
    """Return the network, loading it if necessary."""
    if isinstance(model, DehazeXL):
        return model
    if model is None or isinstance(model, (str, Path)):
        return load_model() if model is None else load_model(model)
    raise TypeError(f"model must be a network of load_model, or the name or path of weights, not {model!r}")


def check_batch(batch: int | Literal["auto"] | TilesAtOnce) -> None:
    """Raise ValueError for a number of tiles that cannot be computed at once."""
    if batch == "auto" or isinstance(batch, TilesAtOnce):
        return
    if not isinstance(batch, (int, np.integer)) or batch < 1:
        raise ValueError(f"batch must be 'auto' or at least 1 tile, not {batch!r}")


def choose_batch(batch: int | Literal["auto"], model: DehazeXL) -> int:
    """Return the number of tiles to compute at once: those that fit half the free memory of a GPU, or 4 on a CPU."""
    if batch != "auto":
        return int(batch)
    if model.device.type != "cuda":
        return 4
    free, _ = torch.cuda.mem_get_info(model.device)
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    # The largest activations are the hidden layers at stride 4: some eight of (64 x 64, 8 x width).
    tile = 8 * 64 * 64 * 8 * model.spec.widths[0] * model.dtype.itemsize
    # In addition, some twelve copies of the pixels in float32.
    tile += 12 * 3 * model.spec.tile**2 * 4
    return int(min(64, max(1, free // 2 // tile)))


def open_tokens(job: Job, path: str | Path | None = None, description: dict[str, Any] | None = None) -> TokenStore:
    """Return an empty token store in memory, or the store in a folder, which may contain tokens already.

    `description` is that of `describe_tokens`, if it is known.

    Raises
    ------
    ValueError
        See `ZarrTokens`; also if the folder and the image overlap on disk.
    """
    if path is None:
        return MemoryTokens(job.grid, job.channels, job.token_dtype)
    folder = Path(path).expanduser()
    if job.image.path is not None:
        check_apart(folder, job.image.path)
    description = describe_tokens(job) if description is None else description
    return ZarrTokens(folder, job.grid, job.channels, job.token_dtype, description)


def decode_lazily(job: Job, store: TokenStore, on_progress: Callable[[int], object] | None = None) -> da.Array:
    """Return the dehazed image as a lazy dask array ``(y, x, c)``; `on_progress` as in `decode.decode`."""
    import dask.array as da

    return da.from_array(
        Decoded(job, store, on_progress),
        chunks=(CHUNK, CHUNK, -1),
        meta=np.empty((0, 0, 0), job.image.levels[0].dtype),
        # A random name: hashing weights and tokens would take longer than it could save.
        name=f"dehaze-{uuid.uuid4().hex}",
    )


class Decoded(WindowedArray):
    """The dehazed image ``(y, x, c)`` as an array that decodes the windows that are read.

    dask reads a part of a chunk if nothing else needs that chunk, so a small view of a large image decodes few tiles.
    """

    def __init__(self, job: Job, store: TokenStore, on_progress: Callable[[int], object] | None) -> None:
        self.job, self.store, self.on_progress = job, store, on_progress
        self.shape, self.dtype = job.image.levels[0].shape, job.image.levels[0].dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Decode the pixels of a window."""
        return decode(self.job, self.store, window, self.on_progress)
