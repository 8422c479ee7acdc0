"""Workers of a dask cluster for ``dehazexl run``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dehazexl.cli.progress import tell

if TYPE_CHECKING:
    from distributed import Client

    from dehazexl.engine.job import Job
    from dehazexl.engine.maps import MapStore
    from dehazexl.engine.run import Stage
    from dehazexl.engine.tokens import TokenStore
    from dehazexl.image.grid import Window
    from dehazexl.io.level0 import Fill


@dataclass(frozen=True)
class Workers:
    """Workers of a dask cluster.

    Attributes
    ----------
    client
        Client of the cluster.
    device
        Device that the workers compute on.
    """

    client: Client
    device: str


@contextmanager
def connected(
    workers: int | None, scheduler: str | None, config: Path | None, device: str = "auto"
) -> Iterator[Workers | None]:
    """Connect to a cluster, see `engine.workers.connected`, and print the address of its dashboard on stderr.

    Without arguments there is none.
    """
    if not (workers or scheduler or config):
        yield None
        return
    try:
        from dehazexl.engine.workers import connected
    except ImportError as error:
        raise ValueError(str(error)) from error
    if scheduler:
        tell(f"connecting to the scheduler at {scheduler}")
    with connected(workers, scheduler, config, device) as client:
        print(f"dask dashboard: {client.dashboard_link}", file=sys.stderr)
        yield Workers(client, device)


@contextmanager
def work_of(
    job: Job, store: TokenStore, workers: Workers | None
) -> Iterator[tuple[Iterator[Stage], Callable[[Callable[[int], object], Window | None, MapStore | None], Fill | None]]]:
    """Yield the stages of a job before decoding, and a function that returns the `fill` of `write`.

    The function takes an `on_progress`, the window to be written, None for all, and what keeps its maps, or None.

    Parameters
    ----------
    job, store
        The image, and its tokens, which must be on disk if there are workers.
    workers
        None computes in this process.
    """
    if workers is None:
        from dehazexl.engine.run import stages

        yield stages(job, store), lambda on_progress, window, maps: None
        return
    from dehazexl.engine.cluster import Cluster
    from dehazexl.engine.tokens import ZarrTokens

    assert isinstance(store, ZarrTokens)
    with Cluster(workers.client, job, store, workers.device) as cluster:
        yield (
            cluster.stages(),
            lambda on_progress, window, maps: partial(cluster.fill, on_progress=on_progress, window=window, maps=maps),
        )
