"""Tasks on the workers of a dask cluster, which may die, join late or be restarted."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dehazexl.engine.recipe import LostClaim, Recipe, forget
from dehazexl.io.disk import atomic_write

try:
    from distributed import Future, KilledWorker, WorkerPlugin, wait
except ImportError as error:
    raise ImportError("a dask cluster needs distributed: pip install 'napari-dehazexl[cluster]'") from error

if TYPE_CHECKING:
    from distributed import Client, Worker

    from dehazexl.engine.job import Job
    from dehazexl.engine.tokens import ZarrTokens

IN_FLIGHT = 512
"""Tasks that the scheduler knows at once."""

TRIES = 10
"""Times that a task is submitted again after its workers died, or the scheduler did."""

PATIENCE = 30
"""Seconds without the end of a task after which a cluster without workers is told of."""

log = logging.getLogger(__name__)


class Tasks:
    """Tasks of a job on the workers of a dask cluster; a context manager, which ends those that run.

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
        self._running: dict[Future[Any], int] = {}

    def __enter__(self) -> Self:
        with atomic_write(self._claim) as new:
            new.write_text(self.recipe.key)
        try:
            self._tell_if_without_workers()
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
            # A scheduler that is lost, or was restarted, does not know them.
            with suppress(KeyError, ValueError, OSError):
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
        # The scheduler knows the plugin even if a worker dies while it is told.
        with suppress(OSError):
            self.client.register_plugin(TakeUp(self.recipe), name=self._plugin)

    def _check_workers(self) -> None:
        """Raise OSError if a worker cannot take up the job."""
        for worker, reason in self.client.run(reason_against, self.recipe, on_error="return").items():
            if isinstance(reason, str):  # an error is that of a worker that has died
                raise OSError(f"worker {worker} cannot take up the job: {reason}")

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
                reason = None
                for future in self._ended():
                    number = self._running.pop(future)
                    try:
                        result = future.result()
                    except (KilledWorker, CancelledError) as error:
                        reason = error
                        lost[number] += 1
                        waiting.append(number)
                    else:
                        yield number, result
                if reason is not None:
                    self._recover(reason, max(lost.values()))
        finally:
            if self._running and self.client.status == "running":
                with suppress(OSError):
                    self.client.cancel(list(self._running), force=True)
            self._running.clear()

    def _ended(self) -> list[Future[Any]]:
        """Wait until some tasks have ended, and return them."""
        # `wait` asks the current client.
        with suppress(CancelledError), self.client.as_current():
            while True:
                try:
                    wait(list(self._running), timeout=PATIENCE, return_when="FIRST_COMPLETED")
                    break
                except TimeoutError:
                    self._tell_if_without_workers()
        return [future for future in self._running if future.done()]

    def _tell_if_without_workers(self) -> None:
        if self.client.status == "running" and not self.workers():
            log.warning("the cluster has no worker: waiting for one to join")

    def workers(self) -> list[dict[str, Any]]:
        """Return what the scheduler knows of its workers."""
        return list(self.client.scheduler_info(n_workers=-1)["workers"].values())

    def _resources(self) -> dict[str, float] | None:
        """Return what a task needs: a GPU where workers announce GPUs."""
        gpus = self.recipe.device != "cpu" and any(worker["resources"].get("GPU") for worker in self.workers())
        return {"GPU": 1} if gpus else None

    def _recover(self, reason: Exception, times: int) -> None:
        """Return when tasks that were lost can be submitted again, or raise an error if they cannot."""
        if times > TRIES:
            raise RuntimeError(f"a task was lost {times} times: give the workers more memory") from reason
        while self.client.status == "connecting":
            time.sleep(0.1)
        if self.client.status != "running":
            raise OSError("the connection to the scheduler is lost: start it again, and then this") from reason
        if isinstance(reason, CancelledError):
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
            with suppress(LostClaim):  # a worker that starts when the run has ended
                self.recipe.check()
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
