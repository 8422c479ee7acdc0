"""Clients of dask clusters: of one that exists, or of workers on this machine that are started for a run."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from dask.system import CPU_COUNT

try:
    from distributed import Client, LocalCluster, WorkerPlugin
    from distributed.comm.addressing import get_address_host_port
except ImportError as error:
    raise ImportError("a dask cluster needs distributed: pip install 'napari-dehazexl[cluster]'") from error

if TYPE_CHECKING:
    from distributed import Worker
    from distributed.deploy.spec import SpecCluster


@contextmanager
def connected(
    workers: int | None = None, scheduler: str | None = None, config: Path | None = None, device: str = "auto"
) -> Iterator[Client]:
    """Connect to a cluster; it is not made the current one.

    Parameters
    ----------
    workers
        Number of workers to start on this machine, for as long as the context.
    scheduler
        Address of a cluster that exists, such as ``tcp://host:8786``.
    config
        YAML file of dask settings. Without the other two, it names the scheduler (``scheduler-address``).
    device
        Device that the workers compute on.

    Raises
    ------
    OSError
        If the scheduler does not answer, or the file cannot be read.
    ValueError
        If there is neither a number of workers nor an address, or both.
    """
    settings = {} if config is None else _read_config(config)
    with dask.config.set(settings):
        if workers is None:
            scheduler = scheduler or dask.config.get("scheduler-address", None)
        if (workers is None) == (not scheduler):
            raise ValueError("give either the number of workers or the address of a scheduler")
        if workers is not None:
            with started(workers, device, config) as cluster, Client(cluster, set_as_default=False) as client:
                client.register_plugin(Prepare())
                yield client
        else:
            with _client(str(scheduler)) as client:
                yield client


def _client(scheduler: str) -> Client:
    """Connect to a scheduler."""
    example = "as in --scheduler tcp://host:8786"
    try:
        get_address_host_port(scheduler)
    except ValueError as error:  # a client that fails with this would wait for a minute
        raise ValueError(f"--scheduler {scheduler} is not an address ({error}): write it {example}") from error
    try:
        return Client(scheduler, set_as_default=False)
    except OSError as error:
        raise OSError(
            f"no scheduler answers at {scheduler}: start it there, or correct the address, {example}"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    """Read dask settings; those that are not in the file stay as they are."""
    with path.open():  # dask skips files that it cannot read
        pass
    merged: dict[str, Any] = dask.config.merge(dask.config.config, *dask.config.collect_yaml([str(path)]))
    return merged


class Prepare(WorkerPlugin):
    """Imports the engine in a worker when it starts, while this process loads weights and opens the image."""

    idempotent = True
    name = "dehazexl-prepare"

    def setup(self, worker: Worker) -> None:
        """Import in a thread: the worker goes on to answer its scheduler."""
        threading.Thread(target=import_module, args=("dehazexl.engine.cluster",), name="dehazexl", daemon=True).start()


@contextmanager
def started(workers: int, device: str, config: Path | None) -> Iterator[SpecCluster]:
    """Start workers on this machine, see `local_cluster`.

    Raises
    ------
    OSError
        If they cannot be started, naming the first cause and the file of settings.
    """
    with ExitStack() as stack:
        try:
            cluster = stack.enter_context(local_cluster(workers, device))
        except RuntimeError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            remedy = "correct --workers" if config is None else f"correct the settings in {config} (--dask-config)"
            raise OSError(f"the workers failed to start ({type(cause).__name__}: {cause}): {remedy}") from error
        yield cluster


@contextmanager
def local_cluster(workers: int, device: str = "auto") -> Iterator[SpecCluster]:
    """Start workers on this machine, each a process; one that dies is started again.

    With dask-cuda and GPUs, each worker has a GPU. On CPUs, a worker computes with ``OMP_NUM_THREADS`` threads if
    that is set, else with its share of the cores. The number of threads can change the last bits of a result.
    """
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, CPU_COUNT // workers))
    settings = {
        # However long a worker takes to start again, the cluster is not to give it up.
        "distributed.deploy.lost-worker-timeout": "1 hour",
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads,
        "distributed.nanny.pre-spawn-environ.MKL_NUM_THREADS": threads,
    }
    # The scheduler reports the connections of workers that died as errors.
    common = {"n_workers": workers, "dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
    with dask.config.set(settings):
        cuda = None if device == "cpu" else _cuda_cluster()
        # A task reads ahead by itself; a second one at the same time would only contend for the cores.
        with cuda(resources={"GPU": 1}, **common) if cuda else LocalCluster(threads_per_worker=1, **common) as cluster:
            yield cluster


def _cuda_cluster() -> Any:
    """Return the class of clusters whose workers have a GPU each; None without dask-cuda or GPUs."""
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError:
        return None
    return LocalCUDACluster
