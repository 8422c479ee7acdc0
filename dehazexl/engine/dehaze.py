"""The whole path of the data: open, encode, fuse, decode lazily."""

from __future__ import annotations

import shutil
import sys
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch

from dehazexl.engine.borders import find_border
from dehazexl.engine.context import check_context, crop_to_context, pooled_side
from dehazexl.engine.decode import decode, decode_with_haze
from dehazexl.engine.description import describe_tokens
from dehazexl.engine.job import Job
from dehazexl.engine.maps import MAPS, MapStore, Records, check_maps
from dehazexl.engine.memory import TilesAtOnce, budget
from dehazexl.engine.recipe import DecodedElsewhere, Recipe
from dehazexl.engine.run import Stage, stages
from dehazexl.engine.share import share, temporary_folder
from dehazexl.engine.tokens import MemoryTokens, TokenStore, ZarrTokens, check_apart
from dehazexl.image.chunk_cache import ChunkCache
from dehazexl.image.grid import SIDE, TileGrid, Window, check_overlap
from dehazexl.image.image import check_range, check_strength
from dehazexl.image.image import value_range as find_value_range
from dehazexl.image.windowed_array import WindowedArray
from dehazexl.io.open import open_image
from dehazexl.io.unfinished import held
from dehazexl.model import DehazeXL
from dehazexl.model.weights import load_model

if TYPE_CHECKING:
    import dask.array as da
    from distributed import Client
    from numpy.typing import NDArray

    from dehazexl.image.image import Image

CHUNK_BYTES = 2**28
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
    border: Literal["ignore", "keep"] = "ignore",
    region: tuple[int, int, int, int] | None = None,
    context: str = "all",
    client: Client | None = None,
) -> da.Array:
    """Remove the haze from an image of any size.

    All tiles are encoded and their tokens fused before this returns; the pixels are computed lazily, by any scheduler
    of dask.

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
        Folder for the tokens, so that an interrupted run can be resumed. None keeps them in memory (66 kB per tile with
        the bundled weights in float32, half in half precision; three times as much until they are fused) or, beyond an
        eighth of the memory, in a temporary folder.
    border
        ``"ignore"``: a border of one value that touches the edges, black or white, counts as pixels without data also
        where no metadata declares it. ``"keep"`` dehazes it as part of the image.
    region
        Rows and columns to dehaze, (y0, y1, x0, x1); None for the whole image.
    context
        What else of the image takes part in dehazing a region: ``"all"`` of it, nothing (``"region"``), or the pixels
        around it up to a distance (``"neighborhood:PIXELS"``). ``"pooled:N"``, for images beyond 100 gigapixels: all
        of it, approximately, see `engine.keys.PooledKeys`.
    client
        Client of the dask cluster whose workers encode and fuse; None takes the current one, if there is one. All
        machines must reach the image and the folder for the tokens by the same paths; without that folder, the tokens
        go to a temporary one, which suffices for workers on this machine.

    Returns
    -------
    dask.array.Array
        Lazy ``(y, x, c)`` with the shape, dtype and bands of the image or its region. Bands that are not dehazed and
        pixels without data are unchanged. Integers are rounded and clipped to their dtype, floats are not clipped.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError
        See `open_image`; ValueError also for arguments out of range.
    OSError
        If another process works on the same folder of tokens.
    """
    source, bands, window = _part(source, bands, region, context)
    job = prepare(source, model, overlap, strength, value_range, bands, batch, border, pooled_side(context))
    return decode_lazily(job, fuse_all(job, tokens, client), window=window)


def dehaze_with_maps(
    source: Any,
    maps: Sequence[str] = MAPS,
    model: DehazeXL | str | Path | None = None,
    overlap: int | None = None,
    strength: float = 1.0,
    value_range: tuple[float, float] | None = None,
    bands: Sequence[int | str] | None = None,
    batch: int | Literal["auto"] = "auto",
    tokens: str | Path | None = None,
    border: Literal["ignore", "keep"] = "ignore",
    region: tuple[int, int, int, int] | None = None,
    context: str = "all",
    client: Client | None = None,
) -> tuple[da.Array, dict[str, da.Array]]:
    """Remove the haze from an image of any size, and map it.

    Parameters
    ----------
    source, model, overlap, strength, value_range, bands, batch, tokens, border, region, context, client
        See `dehaze`.
    maps
        Names of maps: ``"transmission"``, ``"airlight"`` and ``"removed"``, see `engine.maps`.

    Returns
    -------
    clear : dask.array.Array
        See `dehaze`.
    maps : dict of dask.array.Array
        Each map by name, lazy ``(y, x, bands)``, float32, NaN where there is no data. Computed together with the
        image, as by ``dask.compute(clear, maps)``, they are decoded once, in this process.

    Raises
    ------
    FileNotFoundError, TypeError, ValueError, OSError
        See `dehaze`; ValueError also for maps that are unknown or that the network does not give.
    """
    model = _network(model)
    check_maps(maps, model)
    source, bands, window = _part(source, bands, region, context)
    job = prepare(source, model, overlap, strength, value_range, bands, batch, border, pooled_side(context))
    return decode_lazily_with_maps(job, fuse_all(job, tokens, client), maps, window)


def _part(
    source: Any, bands: Sequence[int | str] | None, region: tuple[int, int, int, int] | None, context: str
) -> tuple[Any, Sequence[int | str] | None, Window | None]:
    """Return the image that takes part, its bands, and the window of it to dehaze, None for all; see `dehaze`."""
    check_context(context)
    if region is None:
        return source, bands, None
    image, window = crop_to_context(open_image(source, bands=bands), Window(*region), context)
    return image, None, window


def fuse_all(job: Job, tokens: str | Path | None = None, client: Client | None = None) -> TokenStore:
    """Encode and fuse all tiles, here or on a cluster; return their tokens. See `dehaze` for `tokens` and `client`."""
    client = client or current_client()
    if client is not None and tokens is None:
        tokens = temporary_folder() / "tokens"
    with nullcontext() if tokens is None else held(Path(tokens).expanduser()):
        store = open_tokens(job, tokens)
        if client is None:
            _drain(stages(job, store))
        else:
            from dehazexl.engine.cluster import Cluster

            assert isinstance(store, ZarrTokens)
            with Cluster(client, job, store) as cluster:
                _drain(cluster.stages())
    return store


def _drain(stages: Iterator[Stage]) -> None:
    """Do all stages."""
    for stage in stages:
        for _ in stage.steps:
            pass


def current_client() -> Client | None:
    """Return the current client of a dask cluster, or None; tasks of a cluster have none."""
    distributed = sys.modules.get("distributed")  # without a client it need not be imported
    if distributed is None:
        return None
    try:
        distributed.get_worker()
        return None
    except ValueError:
        pass
    try:
        client: Client = distributed.default_client()
        return None if client.asynchronous else client
    except ValueError:
        return None


def prepare(
    source: Any,
    model: DehazeXL | str | Path | None = None,
    overlap: int | None = None,
    strength: float = 1.0,
    value_range: tuple[float, float] | None = None,
    bands: Sequence[int | str] | None = None,
    batch: int | Literal["auto"] | TilesAtOnce = "auto",
    border: Literal["ignore", "keep"] = "keep",
    pooled: int = 0,
) -> Job:
    """Check the arguments of `dehaze`, open the image and find its value range.

    A `batch` of `TilesAtOnce` is shared with other jobs; `pooled` is that of `Job`. Nothing is read if the value range
    is given and `border` is "keep".
    """
    check_overlap(overlap)
    check_strength(strength)
    check_batch(batch)
    if border not in ("ignore", "keep"):
        raise ValueError(f"border={border!r} is not one of ignore, keep")
    image = open_image(source, bands=bands)
    pixels = ChunkCache.of(image.levels[0])
    image = image if border == "keep" or image.border is not None else find_border(image)
    height, width, _ = image.levels[0].shape
    limits = find_value_range(image) if value_range is None else check_range(value_range)
    model = _network(model)
    grid = TileGrid(height, width, model.head.overlap if overlap is None else int(overlap), model.spec.tile)
    memory = batch if isinstance(batch, TilesAtOnce) else TilesAtOnce(choose_batch(batch, model))
    job = Job(image, grid, model, limits, memory, strength, pooled=pooled)
    assert job.pixels is pixels  # what was read for the border need not be read again
    return job


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


@overload
def open_tokens(job: Job, path: str | Path, description: dict[str, Any] | None = None) -> ZarrTokens: ...
@overload
def open_tokens(job: Job, path: str | Path | None = None, description: dict[str, Any] | None = None) -> TokenStore: ...
def open_tokens(job: Job, path: str | Path | None = None, description: dict[str, Any] | None = None) -> TokenStore:
    """Return an empty token store in memory, or the store in a folder, which may contain tokens already.

    `description` is that of `describe_tokens`, if it is known.

    Tokens that would take more than a share of the memory go into a temporary folder, which is removed with the store.

    Raises
    ------
    ValueError
        See `ZarrTokens`; also if the folder and the image overlap on disk.
    """
    if path is None:
        if tokens_fit(job):
            return MemoryTokens(job.grid, job.channels, job.token_dtype)
        folder = Path(tempfile.mkdtemp(prefix="dehazexl-"))
        store = ZarrTokens(folder, job.grid, job.channels, job.token_dtype, {})
        weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
        return store
    folder = Path(path).expanduser().absolute()  # other processes may have another current folder
    if job.image.path is not None:
        check_apart(folder, job.image.path)
    description = describe_tokens(job) if description is None else description
    return ZarrTokens(folder, job.grid, job.channels, job.token_dtype, description)


def tokens_fit(job: Job) -> bool:
    """Return whether the tokens of an image, and their features before and after a layer, may lie in memory."""
    tile = SIDE**2 * (3 * job.channels + 3) * np.dtype(job.token_dtype).itemsize
    return job.grid.count * tile <= budget(torch.device("cpu"))


def decode_lazily(
    job: Job,
    store: TokenStore,
    on_progress: Callable[[int], object] | None = None,
    window: Window | None = None,
    keep: MapStore | None = None,
) -> da.Array:
    """Return the dehazed image as a lazy dask array ``(y, x, c)``, or a window of it.

    `on_progress` is as in `decode.decode`. With `keep`, computing a block also puts its maps there.
    """
    import dask.array as da

    return da.from_array(
        Decoded(job, store, on_progress, window or Window(0, job.grid.height, 0, job.grid.width), keep),
        chunks=(*chunk_side(job.image), -1),
        meta=np.empty((0, 0, 0), job.image.levels[0].dtype),
        # A random name: hashing weights and tokens would take longer than it could save.
        name=f"dehaze-{uuid.uuid4().hex}",
    )


def decode_lazily_with_maps(
    job: Job, store: TokenStore, names: Iterable[str], window: Window | None = None
) -> tuple[da.Array, dict[str, da.Array]]:
    """Return the dehazed image ``(y, x, c)`` and maps ``(y, x, bands)`` by name, lazily, or a window of them."""
    import dask.array as da

    names = check_maps(names, job.model)
    records = Records(job, store, window or Window(0, job.grid.height, 0, job.grid.width), names)
    name = f"dehaze-{uuid.uuid4().hex}"
    lazy = da.from_array(records, chunks=chunk_side(job.image), meta=np.empty((0, 0), records.dtype), name=name)
    return lazy["image"], {name: lazy[name] for name in names}


def chunk_side(image: Image) -> tuple[int, int]:
    """Return the sides of a chunk: shorter ones where many bands make pixels large."""
    pixel, side = image.levels[0].shape[2] * image.levels[0].dtype.itemsize, CHUNK
    while side > 512 and side * side * pixel > CHUNK_BYTES:
        side //= 2
    return side, side


class Decoded(WindowedArray):
    """A window of the dehazed image ``(y, x, c)`` as an array that decodes the windows that are read.

    dask reads a part of a chunk if nothing else needs that chunk, so a small view of a large image decodes few tiles.
    """

    def __init__(
        self,
        job: Job,
        store: TokenStore,
        on_progress: Callable[[int], object] | None,
        window: Window,
        keep: MapStore | None = None,
    ) -> None:
        self.job, self.store, self.on_progress, self.window, self.keep = job, store, on_progress, window, keep
        self.shape = (window.height, window.width, job.image.levels[0].shape[2])
        self.dtype = job.image.levels[0].dtype

    def read(self, window: Window) -> NDArray[Any]:
        """Decode the pixels of a window."""
        place = window.moved(self.window.y0, self.window.x0)
        if self.keep is None:
            return decode(self.job, self.store, place, self.on_progress)
        pixels, haze = decode_with_haze(self.job, self.store, place, self.on_progress)
        self.keep.put(self.job, window, haze)
        return pixels

    @cached_property
    def _recipe(self) -> Recipe:
        return share(self.job, self.store)

    def __reduce__(self) -> tuple[type[DecodedElsewhere], tuple[Any, ...]]:
        """Leave everything large on disk, for other processes."""
        return DecodedElsewhere, (self._recipe, self.window, self.shape, self.dtype)
