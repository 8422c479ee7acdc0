"""Fusing on the workers of a dask cluster: `model.fusing.fuse` over tokens that the workers read and write.

Each step of `fuse` goes to the workers as it is, with the parts of the network by name, as each worker has its own
network, and with large tensors, the keys and values of a layer, as files that each worker reads once.
"""

from __future__ import annotations

import io
import pickle
import shutil
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle
import numpy as np
import torch
import zarr
from cachetools import LRUCache
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dehazexl.engine.fuse import as_tokens, convolve_row
from dehazexl.engine.job import computing
from dehazexl.engine.recipe import Recipe, once
from dehazexl.image.grid import SIDE, Window
from dehazexl.model.network import grid_to_tiles, tiles_to_grid

if TYPE_CHECKING:
    from dehazexl.engine.cluster import Cluster
    from dehazexl.engine.job import Job
    from dehazexl.model import DehazeXL
    from dehazexl.model.tokens import Tokens
    from dehazexl.model.windows import Local

T = TypeVar("T")


def fuse(cluster: Cluster) -> Iterator[int]:
    """Fuse the tokens of a job; yields as `engine.fuse.fuse`."""
    job, store = cluster.job, cluster.store
    if store.fused():
        yield job.grid.count * len(job.model.context.layers)
        return
    grid = ClusterTokens(cluster)
    steps = job.model.fuse_grid(grid)
    while True:
        # Not `computing`: workers in threads of this process would wait for its lock.
        with torch.inference_mode():
            done = next(steps, None)
        if done is None:
            break
        yield done
    yield from grid.finish()
    store.mark_fused()


class ClusterTokens:
    """All tokens of an image on the workers of a cluster, see `dehazexl.model.fusing.TokenGrid`.

    Every update reads one array on disk and writes another, so that tasks can be repeated. The arrays hold the tiles in
    row-major order ``(tiles, 8, 8, channels)``, in chunks of as many as `StreamedTokens` takes at once.
    """

    origin = (0, 0)

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.job = cluster, cluster.job
        grid = self.job.grid
        self.shape = (1, grid.rows * SIDE, grid.cols * SIDE)
        self.overlap = grid.overlap / self.job.model.spec.scale
        self.valid = torch.from_numpy(cluster.store.get_valid(grid.tiles)).view(-1, SIDE, SIDE)
        self.source = Source(None, bool(self.valid.any()))
        self.folder = cluster.store.path / "fusing"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.extra: Path | None = None
        size = self.job.memory.fuse
        self.chunks = [range(first, min(first + size, grid.count)) for first in range(0, grid.count, size)]

    def map(self, compute: Callable[[Tokens], T]) -> Generator[int, None, list[T]]:
        """See `TokenGrid.map`."""
        with Step(self.job.model, compute, self.folder) as step:
            results = yield from self._each(map_chunk, step)
        return [_moved(part, self.job.model.device) for parts in results for part in parts]

    def update(self, compute: Callable[[Tokens], Tensor]) -> Generator[int, None, None]:
        """See `TokenGrid.update`."""
        target = self._target()
        with Step(self.job.model, compute, self.folder) as step:
            yield from self._each(update_chunk, step, target)
        self._replace(target)

    def convolve(self, layer: Local) -> Iterator[int]:
        """See `TokenGrid.convolve`."""
        target = self._target()
        with Step(self.job.model, layer, self.folder) as step:
            for _ in self._each(convolve_chunk, step, target):
                yield 0
        self._replace(target)

    def join(self, parts: list[Tensor]) -> Tensor:
        """See `TokenGrid.join`."""
        tiles = torch.cat([part.cpu() for part in parts], dim=1).view(-1, SIDE, SIDE, parts[0].shape[-1])
        return tiles_to_grid(tiles, self.job.grid.rows, self.job.grid.cols)

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """See `TokenGrid.whole`."""
        rows, cols = self.job.grid.rows, self.job.grid.cols
        parts = _drained(self._each(extra_of_chunk))
        valid = None
        if self.source.marked and not self.valid.all():
            valid = tiles_to_grid(self.valid[..., None], rows, cols)[..., 0]
        return tiles_to_grid(torch.cat(parts), rows, cols), valid

    def put(self, extra: Tensor) -> None:
        """See `TokenGrid.put`; workers read them when they `finish`."""
        self.extra = self.folder / "extra.npy"
        np.save(self.extra, grid_to_tiles(extra).float().cpu().numpy().astype(self.job.token_dtype))

    def finish(self) -> Iterator[int]:
        """Put the fused tokens into the store; yield 0 after each part."""
        rows = [range(block.y0, block.y1) for block in self.job.grid.blocks(self.job.grid.block) if block.x0 == 0]
        for _ in self.cluster.each(finish_rows, [(self.source, self.extra, each) for each in rows]):
            yield 0
        shutil.rmtree(self.folder, ignore_errors=True)

    def _each(self, function: Callable[..., T], *arguments: Any) -> Generator[int, None, list[T]]:
        """Call a function on the workers with the recipe and the source, a chunk and `arguments`, for each chunk."""
        results: dict[int, T] = {}
        for number, result in self.cluster.each(function, [(self.source, each, *arguments) for each in self.chunks]):
            results[number] = result
            yield len(self.chunks[number])
        return [results[number] for number in range(len(self.chunks))]

    def _target(self) -> zarr.Array[Any]:
        """Create an array of tokens."""
        channels = self.job.channels
        return zarr.create_array(
            self.folder / uuid.uuid4().hex,
            shape=(self.job.grid.count, SIDE, SIDE, channels),
            chunks=(len(self.chunks[0]), SIDE, SIDE, channels),
            dtype=self.job.token_dtype,
            compressors=None,
        )

    def _replace(self, target: zarr.Array[Any]) -> None:
        """Read from an array from now on, and remove the one before."""
        before, self.source = self.source.array, Source(target, self.source.marked)
        if before is not None:
            shutil.rmtree(before.store.root)


@dataclass(frozen=True)
class Source:
    """Tokens that a step reads.

    Attributes
    ----------
    array
        ``(tiles, 8, 8, channels)``; None for those of the store that were encoded.
    marked
        Whether tokens without data are marked: if all are, all count.
    """

    array: zarr.Array[Any] | None
    marked: bool

    def read(self, recipe: Recipe, tiles: range) -> Tensor:
        """Return consecutive tiles ``(tiles, 8, 8, channels)``."""
        if self.array is None:
            found = _from_rows(recipe.store.get, recipe, tiles)
        else:
            found = np.asarray(self.array[tiles.start : tiles.stop])
        return torch.from_numpy(found).view(len(tiles), SIDE, SIDE, -1)

    def tokens(self, recipe: Recipe, tiles: range) -> tuple[Tensor, Tensor, Tensor]:
        """Return features, extra channels and validity of consecutive tiles ``(tiles, 8, 8, ...)``."""
        job = recipe.job()
        width = job.model.spec.widths[-1]
        features, extra = self.read(recipe, tiles).split([width, job.channels - width], -1)
        if self.marked:
            valid = torch.from_numpy(_from_rows(recipe.store.get_valid, recipe, tiles)).view(-1, SIDE, SIDE)
        else:
            valid = torch.ones(len(tiles), SIDE, SIDE, dtype=torch.bool)
        return features, extra, valid


def _from_rows(read: Callable[[Window], np.ndarray[Any, Any]], recipe: Recipe, tiles: range) -> np.ndarray[Any, Any]:
    """Read the whole rows of tiles that contain consecutive tiles, and return these."""
    cols = recipe.grid.cols
    first, last = tiles.start // cols, (tiles.stop - 1) // cols
    found = read(Window(first, last + 1, 0, cols))
    return found.reshape(-1, *found.shape[2:])[tiles.start - first * cols : tiles.stop - first * cols]


def map_chunk(recipe: Recipe, work: tuple[Source, range, Step]) -> list[Any]:
    """Return what a step makes of consecutive tiles; of parts of them where memory is short."""
    source, tiles, step = work
    return [_moved(result, "cpu") for _, result in _computed(recipe, source, tiles, step)]


def update_chunk(recipe: Recipe, work: tuple[Source, range, Step, zarr.Array[Any]]) -> None:
    """Replace the features of consecutive tiles by what a step makes of them."""
    source, tiles, step, target = work
    tokens = source.read(recipe, tiles).clone()
    width = recipe.job().model.spec.widths[-1]
    for part, result in _computed(recipe, source, tiles, step):
        tokens[part, ..., :width] = result.view(-1, SIDE, SIDE, width).to(tokens)
    recipe.check()
    target[tiles.start : tiles.stop] = tokens.numpy()


def _computed(recipe: Recipe, source: Source, tiles: range, step: Step) -> Iterator[tuple[slice, Any]]:
    """Yield what a step makes of consecutive tiles, in as few parts as memory allows."""
    recipe.check()
    job, (features, extra, valid) = recipe.job(), source.tokens(recipe, tiles)

    def compute(part: slice) -> Any:
        first = tiles.start + part.start
        with computing():
            return step.load(job)(as_tokens(job, features[part], extra[part], valid[part], first))

    return job.memory.each(len(tiles), compute, "fuse")


def extra_of_chunk(recipe: Recipe, work: tuple[Source, range]) -> Tensor:
    """Return the extra channels of consecutive tiles ``(tiles, 8, 8, k)``."""
    source, tiles = work
    return source.tokens(recipe, tiles)[1].clone()


def convolve_chunk(recipe: Recipe, work: tuple[Source, range, Step, zarr.Array[Any]]) -> None:
    """Convolve the features of consecutive tiles: whole rows of tiles, as `StreamedTokens` does."""
    source, tiles, step, target = work
    recipe.check()
    job = recipe.job()
    cols, width, layer = job.grid.cols, job.model.spec.widths[-1], step.load(job)
    margin = layer.conv.kernel_size[0] // 2
    tokens = source.read(recipe, tiles).clone()
    for row in range(tiles.start // cols, (tiles.stop - 1) // cols + 1):
        above, here, below = (_row(recipe, source, each, width) for each in (row - 1, row, row + 1))
        above = here[:, :1].expand(-1, margin, -1, -1) if above is None else above[:, -margin:]
        below = here[:, -1:].expand(-1, margin, -1, -1) if below is None else below[:, :margin]
        with computing():
            convolved = convolve_row(job, layer, above, here, below)
        own = range(max(row * cols, tiles.start), min((row + 1) * cols, tiles.stop))
        part = convolved[own.start - row * cols : own.stop - row * cols].to(tokens)
        tokens[own.start - tiles.start : own.stop - tiles.start, ..., :width] = part
    recipe.check()
    target[tiles.start : tiles.stop] = tokens.numpy()


def _row(recipe: Recipe, source: Source, row: int, width: int) -> Any:
    """Return the features of a row of tiles ``(1, 8, w, c)``, or None beyond the image."""
    grid = recipe.grid
    if not 0 <= row < grid.rows:
        return None
    return tiles_to_grid(source.read(recipe, range(row * grid.cols, (row + 1) * grid.cols))[..., :width], 1, grid.cols)


def finish_rows(recipe: Recipe, work: tuple[Source, Path | None, range]) -> None:
    """Put the tokens of some rows of tiles into the store, with the extra channels of a file, followed by zeros."""
    source, extra, rows = work
    cols, width = recipe.grid.cols, recipe.job().model.spec.widths[-1]
    tiles = range(rows.start * cols, rows.stop * cols)
    tokens = source.read(recipe, tiles).numpy()
    if extra is not None:
        carried = np.load(extra, mmap_mode="r")[tiles.start : tiles.stop]
        tokens[..., width:] = 0
        tokens[..., width : width + carried.shape[-1]] = carried
    recipe.check()
    recipe.store.put_fused_rows(rows.start, tokens.reshape(len(rows), cols, SIDE * SIDE, -1))


class Step:
    """A function of tokens, for workers: parts of the network by name, tensors as files.

    Parameters
    ----------
    model
        The network.
    function
        The function.
    folder
        Folder for the files, which are removed at the end of the context.
    """

    def __init__(self, model: DehazeXL, function: Any, folder: Path) -> None:
        self.files: list[Path] = []
        names = {id(module): name for name, module in model.named_modules()}

        def name(value: object) -> tuple[str, Any] | None:
            if isinstance(value, nn.Module):
                return "module", names[id(value)]
            if isinstance(value, Tensor):
                self.files.append(folder / f"{uuid.uuid4().hex}.safetensors")
                save_file({"tensor": value.contiguous()}, self.files[-1])
                return "tensor", self.files[-1]
            return None

        self.pickled = _dumps(function, name)

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.unlink()

    def load(self, job: Job) -> Any:
        """Return the function, with the parts of a job's network and the tensors on its device."""

        def find(reference: tuple[str, Any]) -> Any:
            kind, value = reference
            if kind == "module":
                return job.model.get_submodule(value)
            return once(_tensors, value, lambda: load_file(value, str(job.model.device))["tensor"])

        return _loads(self.pickled, find)


_tensors: LRUCache[Any, Any] = LRUCache(2)  # keys and values of a layer


def _dumps(value: Any, name: Callable[[object], Any]) -> bytes:
    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: object) -> Any:
            return name(value)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _loads(pickled: bytes, find: Callable[[Any], Any]) -> Any:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, reference: Any) -> Any:
            return find(reference)

    return Unpickler(io.BytesIO(pickled)).load()


def _moved(value: Any, device: str | torch.device) -> Any:
    """Move tensors in nested tuples to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = [_moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _drained(steps: Generator[int, None, T]) -> T:
    """Go through all steps, and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
