"""A job on the workers of a dask cluster.

Each stage is cut into tasks of many tiles. A task is small: it names its tiles and the `Recipe` of the job. The worker
reads the image, computes with its own copy of the network, and writes whole chunks of tokens or pixels, which no other
task writes; so a task may be repeated, and one that is done finds that out by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehazexl.engine.recipe import Recipe, forget
from dehazexl.io.disk import atomic_write

try:
    from distributed import Future, KilledWorker, WorkerPlugin, wait
except ImportError as error:
    raise ImportError("a dask cluster needs distributed: pip install 'napari-dehazexl[cluster]'") from error

if TYPE_CHECKING:
    from distributed import Client, Worker

    from dehazexl.engine.job import Job
    from dehazexl.engine.run import Stage
    from dehazexl.engine.tokens import ZarrTokens
    from dehazexl.image.grid import Window
    from dehazexl.io.level0 import Level0, Level0Blocks

IN_FLIGHT = 512
"""Tasks that the scheduler knows at once."""

TILES = 256
"""Tiles of a task at most, but for one larger block."""

SHARES = 4
"""Tasks of a stage for each thread of the workers, at least, where blocks suffice: then none waits long for another."""

TRIES = 10
"""Times that a task is submitted again after its workers died, or the scheduler did."""

log = logging.getLogger(__name__)


class Cluster:
    """A job on the workers of a dask cluster; a context manager, which ends the work of its tasks.

    Parameters
    ----------
    client
        Client of the cluster.
    job, store
        The image, and its tokens on disk; all workers must reach both by the same paths.
    device
        Device that the workers compute on, see `load_model`; None for one like that of the job's network.

    Raises
    ------
    OSError, ValueError
        If a worker cannot take up the job.
    """

    def __init__(self, client: Client, job: Job, store: ZarrTokens, device: str | None = None) -> None:
        from dehazexl.engine.share import share

        self.client, self.job, self.store = client, job, store
        self.recipe = share(job, store, device, claimed=True)
        assert self.recipe.claim is not None
        self._claim = self.recipe.claim
        self._running: dict[Future, int] = {}

    def __enter__(self) -> Cluster:
        with atomic_write(self._claim) as new:
            new.write_text(self.recipe.key)
        try:
            self.client.wait_for_workers(1)
            self._register()
            self._check_workers()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Tasks that run notice within a batch that their claim is gone.
        self._claim.unlink(missing_ok=True)
        if self.client.status == "running":
            self.client.cancel(list(self._running), force=True)
            self.client.unregister_worker_plugin(self._plugin)
        self._running.clear()

    @property
    def folder(self) -> Path:
        """Folder that the workers reach, for files of the run."""
        return self._claim.parent

    @property
    def _plugin(self) -> str:
        return f"dehazexl-{self.recipe.key}"

    def _register(self) -> None:
        self.client.register_plugin(TakeUp(self.recipe), name=self._plugin)

    def _check_workers(self) -> None:
        """Raise OSError if a worker cannot take up the job."""
        for worker, reason in self.client.run(reason_against, self.recipe, on_error="return").items():
            if isinstance(reason, str):  # an error is that of a worker that has died
                raise OSError(f"worker {worker} cannot take up the job: {reason}")

    def stages(self) -> Iterator[Stage]:
        """Yield the stages that come before decoding, see `engine.run.stages`."""
        from dehazexl.engine.cluster_fuse import fuse
        from dehazexl.engine.run import Stage

        yield Stage("encode", self.job.grid.count, self._encode())
        yield Stage("fuse", self.job.grid.count * len(self.job.model.context.layers), fuse(self))

    def _encode(self) -> Iterator[int]:
        """Encode the tiles that are not in the store; yield the number of tiles of each part."""
        if self.store.fused():
            yield self.job.grid.count
            return
        blocks = list(self.job.grid.blocks(self.job.grid.block))
        for _, tiles in self.each(encode_blocks, self.grouped(blocks, [block.count for block in blocks])):
            yield tiles

    def fill(self, level0: Level0, on_progress: Callable[[int], object] = lambda _: None) -> Generator[int, None, None]:
        """Decode the blocks of an image that are missing, see `io.level0.Fill`.

        `on_progress` is called with the number of tiles of each part.
        """
        blocks, grid = level0.blocks, self.job.grid
        missing = list(blocks.missing())
        if before := grid.height * grid.width - sum(block.count for block in missing):
            on_progress(grid.count * before // (grid.height * grid.width))
            yield before
        tasks = self.grouped(missing, [grid.tiles_touching(block).count for block in missing])
        for number, tiles in self.each(decode_blocks, [(blocks, task) for task in tasks]):
            on_progress(tiles)
            yield sum(block.count for block in tasks[number])

    def grouped(self, blocks: Sequence[Window], tiles: Sequence[int]) -> list[list[Window]]:
        """Group consecutive blocks to tasks of at most `TILES` tiles, and fewer where there are few."""
        threads = sum(self.client.nthreads().values())
        most = min(TILES, sum(tiles) // max(1, SHARES * threads))
        groups: list[list[Window]] = []
        size = 0
        for block, count in zip(blocks, tiles, strict=True):
            if not groups or size + count > most:
                groups.append([])
                size = 0
            groups[-1].append(block)
            size += count
        return groups

    def each(self, function: Callable[[Recipe, Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Call a function on the workers with the recipe and each of some items.

        Yields
        ------
        number, result
            Number of an item and its result, as they come.

        Raises
        ------
        Exception
            That of a task; also `RuntimeError` if the workers of a task died again and again, and `OSError` if the
            scheduler is lost.
        """
        waiting, lost = deque(range(len(items))), Counter[int]()
        resources = self._resources()
        try:
            while waiting or self._running:
                while waiting and len(self._running) < IN_FLIGHT:
                    number = waiting.popleft()
                    future = self.client.submit(function, self.recipe, items[number], pure=False, resources=resources)
                    self._running[future] = number
                for future in self._ended():
                    number = self._running.pop(future)
                    try:
                        result = future.result()
                    except (KilledWorker, CancelledError) as error:
                        lost[number] += 1
                        self._check_lost(error, lost[number])
                        waiting.append(number)
                    else:
                        yield number, result
        finally:
            if self._running and self.client.status == "running":
                self.client.cancel(list(self._running), force=True)
            self._running.clear()

    def _ended(self) -> list[Future]:
        """Wait until some tasks have ended, and return them."""
        # `wait` asks the current client.
        with suppress(CancelledError), self.client.as_current():
            wait(list(self._running), return_when="FIRST_COMPLETED")
        return [future for future in self._running if future.done()]

    def _resources(self) -> dict[str, float] | None:
        """Return what a task needs: a GPU where workers announce GPUs."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"].values()
        gpus = self.recipe.device != "cpu" and any(worker["resources"].get("GPU") for worker in workers)
        return {"GPU": 1} if gpus else None

    def _check_lost(self, error: Exception, times: int) -> None:
        """Return when a task that was lost can be submitted again, or raise an error if it cannot."""
        if times > TRIES:
            raise RuntimeError(f"a task was lost {times} times: give the workers more memory") from error
        while self.client.status == "connecting":
            time.sleep(0.1)
        if self.client.status != "running":
            raise OSError("the connection to the scheduler is lost: start it again, and then this") from error
        if isinstance(error, CancelledError):
            self._register()  # a scheduler that was restarted has forgotten it


class TakeUp(WorkerPlugin):
    """Takes up a job when a worker starts, before its first task, and drops it at the end."""

    idempotent = True

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def setup(self, worker: Worker) -> None:
        """Take up the job in a thread: the worker goes on to answer its scheduler."""
        threading.Thread(target=self._take_up, name="dehazexl", daemon=True).start()

    def _take_up(self) -> None:
        try:
            self.recipe.job()
        except Exception:
            # The tasks raise it again; a worker that serves other work, too, is not stopped by it.
            log.exception("this worker cannot take up the job")

    def teardown(self, worker: Worker) -> None:
        """Drop the job."""
        forget(self.recipe.key)


def reason_against(recipe: Recipe) -> str | None:
    """Return the reason why this process cannot take up a job, if there is one."""
    if not recipe.store.path.is_dir():
        return f"it does not reach {recipe.store.path}; give a folder for the tokens that all machines share"
    try:
        recipe.job()
    except Exception as error:
        log.exception("this worker cannot take up the job")
        return str(error) or type(error).__name__
    return None


def encode_blocks(recipe: Recipe, blocks: Sequence[Window]) -> int:
    """Encode blocks of tiles that are not in the store; return the number of tiles."""
    from dehazexl.engine.encode import encode

    for _ in encode(recipe.job(), recipe.store, blocks):
        recipe.check()
    return sum(block.count for block in blocks)


def decode_blocks(recipe: Recipe, work: tuple[Level0Blocks, Sequence[Window]]) -> int:
    """Decode blocks of pixels that are missing, and write them; return the number of tiles that they touch."""
    from dehazexl.engine.decode import decode

    level0, blocks = work
    for block in blocks:
        if not level0.done(block):
            pixels = decode(recipe.job(), recipe.store, block, recipe.check)
            recipe.check()
            level0.write(block, pixels)
    return sum(recipe.grid.tiles_touching(block).count for block in blocks)
