"""Fusing on the workers of a dask cluster: `model.fusing.fuse` over tokens that the workers read and write.

Each step of `fuse` goes to the workers as it is, with the parts of the network by name, as each worker has its own
network. Keys and values lie in the store of the tokens, from which each worker reads them once a layer.
"""

from __future__ import annotations

import io
import pickle
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dehazexl.engine.fuse import StreamedTokens, Work, fuse_nothing, has_data
from dehazexl.engine.job import Job, computing
from dehazexl.engine.recipe import Recipe, loaded, once
from dehazexl.engine.tokens import TokenStore
from dehazexl.model.fusing import Bands
from dehazexl.model.fusing import fuse as fuse_grid

if TYPE_CHECKING:
    from dehazexl.engine.tasks import Tasks
    from dehazexl.image.grid import Window
    from dehazexl.model.tokens import Tokens

T = TypeVar("T")

INLINE = 16 * 2**10
"""Bytes of a tensor that is part of a task at most; a larger one becomes a file."""


def fuse(tasks: Tasks) -> Iterator[int]:
    """Fuse the tokens of a job; yields as `engine.fuse.fuse`."""
    job, store = tasks.job, tasks.store
    if store.fused():
        yield job.grid.count * len(job.model.context.layers)
        return
    if has_data(store):
        grid = ClusterTokens(tasks)
        overview = grid.encode_overview if job.model.spec.overview else None
        steps = fuse_grid(job.model.context, job.model.head, grid, overview)
    else:
        steps = fuse_nothing(job, store)
    while True:
        # Not `computing`: workers in threads of this process would wait for its lock.
        with torch.inference_mode():
            done = next(steps, None)
        if done is None:
            break
        yield done
    store.finish()


class ClusterTokens(StreamedTokens):
    """All tokens of an image in a store that the workers of a cluster read and write.

    Pickled, it becomes the `StreamedTokens` of another process.
    """

    def __init__(self, tasks: Tasks) -> None:
        super().__init__(tasks.job, tasks.store)
        self.tasks = tasks

    def __reduce__(self) -> tuple[Callable[..., StreamedTokens], tuple[Any, ...]]:
        return _streamed, (self.job, self.store, self.layer, self._embed, self._local)

    def each(self, work: Work[T], compute: Any) -> Generator[int, None, list[T]]:
        """See `StreamedTokens.each`."""
        return (yield from self._on_workers(partial(work, self), compute, self.groups))

    def encode_overview(self, bands: Bands) -> Tokens:
        """Encode the shrunk image on a worker, see `DehazeXL.encode_overview`."""
        overview: Tokens = self._on_worker(partial(self.job.model.encode_overview, bands))
        return overview

    def remember(self, compute: Callable[[], Tensor]) -> Tensor:
        """See `TokenGrid.remember`."""
        features: Tensor = self._on_worker(partial(StreamedTokens.remember, self, compute))
        return features

    def complete(self, name: str) -> bool:
        """See `StreamedTokens.complete`."""
        if not self.store.done(self.groups[0][0], name):
            return False
        done = {done for _, done in self.tasks.each(groups_are_done, [(name, group) for group in self.groups])}
        return done == {True}

    def _on_workers(
        self, work: Callable[..., Generator[int, None, T]], compute: Any, groups: Sequence[list[Window]]
    ) -> Generator[int, None, list[T]]:
        """Call a function on the workers for each group of blocks; yield the sum of what it yields."""
        results: dict[int, T] = {}
        with Step(partial(work, compute=compute), self.tasks) as step:
            for number, (done, result) in self.tasks.each(do_step, [(step, group) for group in groups]):
                results[number] = _moved(pickle.loads(result), self.job.model.device)
                yield done
        return [results[number] for number in range(len(groups))]

    def _on_worker(self, compute: Callable[[], Any]) -> Any:
        """Call a function on a worker."""
        with Step(compute, self.tasks) as step:
            ((_, result),) = self.tasks.each(call_step, [step])
        return _moved(pickle.loads(result), self.job.model.device)


def _streamed(job: Job, store: TokenStore, layer: int, embed: Any, local: Any) -> StreamedTokens:
    """Return the tokens of another process in their state."""
    tokens = StreamedTokens(job, store)
    tokens.layer, tokens._embed, tokens._local = layer, embed, local
    return tokens


def groups_are_done(recipe: Recipe, work: tuple[str, list[Window]]) -> bool:
    """Return whether values are stored for a group of blocks."""
    name, group = work
    return all(recipe.store.done(block, name) for block in group)


def do_step(recipe: Recipe, work: tuple[Step, list[Window]]) -> tuple[int, bytes]:
    """Do a step for a group of blocks; return the sum of what it yields, and what it returns, pickled."""
    step, group = work
    parts, count = step.load(recipe)(group), 0
    while True:
        recipe.check()
        try:
            with computing():
                count += next(parts)
        except StopIteration as end:
            return count, _packed(end.value)


def call_step(recipe: Recipe, step: Step) -> bytes:
    """Call a step without a group, and pickle what it returns."""
    recipe.check()
    with computing():
        return _packed(step.load(recipe)())


def _packed(result: Any) -> bytes:
    """Pickle a result, since distributed itself would send tensors as arrays of numpy, which has no bfloat16."""
    return pickle.dumps(_moved(result, "cpu"))


class Step:
    """A function for the workers: parts of the network, the job and the store by name, large tensors as files.

    Parameters
    ----------
    function
        The function.
    tasks
        Their folder holds the files to the end of the context.
    """

    def __init__(self, function: Callable[..., Any], tasks: Tasks) -> None:
        self._key, self._files = uuid.uuid4().hex, list[Path]()
        names = {id(module): name for name, module in tasks.job.model.named_modules()}

        def name(value: object) -> tuple[str, Any] | None:
            if value is tasks.job or value is tasks.store:
                return ("job", None) if value is tasks.job else ("store", None)
            if isinstance(value, nn.Module):
                return "module", names[id(value)]
            if isinstance(value, Tensor) and value.nbytes > INLINE:
                self._files.append(tasks.folder / f"{self._key}-{len(self._files)}.safetensors")
                save_file({"tensor": value.contiguous()}, self._files[-1])
                return "tensor", self._files[-1]
            return None

        self._pickled = _dumps(function, name)

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.unlink()

    def load(self, recipe: Recipe) -> Any:
        """Return the function; all tasks of a step in a process share it, with the keys and values that it reads."""
        job = recipe.job()

        def find(reference: tuple[str, Any]) -> Any:
            kind, value = reference
            if kind == "module":
                return job.model.get_submodule(value)
            if kind == "tensor":
                return load_file(value)["tensor"].to(job.model.device)
            return job if kind == "job" else recipe.store

        return once(loaded, self._key, lambda: _loads(self._pickled, find))


def _dumps(value: Any, name: Callable[[object], Any]) -> bytes:
    """Pickle a value; `name` returns a reference for what is not to be pickled, else None."""

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def persistent_id(self, value: object) -> Any:
            return name(value)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _loads(pickled: bytes, find: Callable[[Any], Any]) -> Any:
    """Unpickle a value; `find` returns the object of a reference."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, reference: Any) -> Any:
            return find(reference)

    return Unpickler(io.BytesIO(pickled)).load()


def _moved(value: Any, device: str | torch.device) -> Any:
    """Move tensors in nested tuples and lists to a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        parts = [_moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
