"""Dehazing on a real dask cluster of this machine: equal to a single process, whatever happens to the workers."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import tifffile
import torch
import zarr
from distributed import Client, LocalCluster
from reference import interleaved, picture, randomised

import dehazexl
from dehazexl.engine import tasks
from dehazexl.engine.cluster import Cluster
from dehazexl.engine.dehaze import decode_lazily, open_tokens, prepare
from dehazexl.engine.job import Job
from dehazexl.engine.maps import MapStore, decode_maps
from dehazexl.engine.recipe import ImageFile, Recipe
from dehazexl.engine.run import stages
from dehazexl.engine.tasks import reason_against
from dehazexl.engine.workers import connected as connected_to
from dehazexl.engine.workers import local_cluster
from dehazexl.image.grid import Window
from dehazexl.io.open import open_image
from dehazexl.io.write import write
from dehazexl.model import SPECS, DehazeXL

LARGEST = 100_000
"""Bytes of a pickled task at most."""


class MeasuringClient(Client):
    """A client that records the sizes of the tasks that it submits."""

    sizes: list[int]

    def submit(self, function: Any, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        """Submit a task."""
        self.sizes.append(len(cloudpickle.dumps((function, arguments))))
        return super().submit(function, *arguments, **options)


@pytest.fixture(scope="module")
def connected() -> Iterator[MeasuringClient]:
    """Start two workers in processes of their own."""
    with (
        local_cluster(2, "cpu") as cluster,
        MeasuringClient(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def client(connected: MeasuringClient) -> MeasuringClient:
    """Return the client, which has recorded nothing yet."""
    connected.sizes = []
    return connected


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of 9 x 3 tiles, in two blocks, with a hole."""
    pixels = (255 * interleaved(picture(2150, 560))).astype(np.uint8)
    pixels[300:900, 100:400] = 0
    path = tmp_path_factory.mktemp("source") / "in.zarr"
    image = replace(open_image(pixels), nodata=0)
    dehazexl.to_zarr(pixels, path, image)
    return path


def prepared(source: Any, model: DehazeXL, **options: Any) -> Job:
    job = prepare(source, model, batch=2, **options)
    job.memory.fuse = 8  # four parts
    return job


def work(client: Client, job: Job, tokens: Path, output: Path) -> list[int]:
    """Dehaze on the workers; return the progress in pixels."""
    store, decoded = open_tokens(job, tokens), list[int]()
    with Cluster(client, job, store) as cluster:
        for stage in cluster.stages():
            assert sum(stage.steps) == stage.total
        fill = partial(cluster.fill, on_progress=decoded.append)
        progress = list(write(decode_lazily(job, store), output, job.image, fill=fill))
    assert sum(decoded) in (0, job.grid.count)  # 0: the level was finished before
    return progress


def alone(job: Job, output: Path) -> None:
    """Dehaze in this process."""
    store = open_tokens(job)
    for stage in stages(job, store):
        for _ in stage.steps:
            pass
    for _ in write(decode_lazily(job, store), output, job.image):
        pass


def pixels_of(path: Path) -> np.ndarray:
    return np.asarray(tifffile.imread(path) if path.suffix == ".tif" else zarr.open_group(path)["0"][:])


LOCAL = replace(SPECS["tiny"], context_local=3)


@pytest.mark.parametrize(
    ("name", "spec", "overlap", "crop"),
    [
        ("out.zarr", "tiny", 0, None),
        ("out.tif", "tiny", 32, Window(5, 2150, 0, 555)),
        ("out.zarr", LOCAL, 0, Window(0, 700, 0, 560)),
        ("out.zarr", "compact", 0, Window(0, 300, 0, 560)),
    ],
)
def test_workers_write_the_same_as_a_single_process(
    client: MeasuringClient, source: Path, tmp_path: Path, name: str, spec: Any, overlap: int, crop: Window | None
) -> None:
    image = open_image(source)
    job = prepared(image.cropped(crop) if crop else image, randomised(spec), overlap=overlap)
    (tmp_path / "alone").mkdir()
    alone(job, tmp_path / "alone" / name)
    progress = work(client, job, tmp_path / "tokens", tmp_path / name)
    assert progress[-1] == job.grid.height * job.grid.width
    assert np.array_equal(pixels_of(tmp_path / name), pixels_of(tmp_path / "alone" / name))
    assert max(client.sizes) < LARGEST
    left = {each.name.split("-")[0] for each in (tmp_path / "tokens" / "shared").iterdir()}
    assert left == {"weights"}


def test_workers_send_bfloat16_which_numpy_does_not_know(client: MeasuringClient, source: Path, tmp_path: Path) -> None:
    image = open_image(source).cropped(Window(0, 300, 0, 560))
    job = prepared(image, randomised("compact").to(torch.bfloat16), overlap=0)
    (tmp_path / "alone").mkdir()
    alone(job, tmp_path / "alone" / "out.zarr")
    work(client, job, tmp_path / "tokens", tmp_path / "out.zarr")
    assert np.array_equal(pixels_of(tmp_path / "out.zarr"), pixels_of(tmp_path / "alone" / "out.zarr"))


def test_workers_pool_the_same_keys_as_a_single_process(client: MeasuringClient, tmp_path: Path) -> None:
    pixels = (255 * interleaved(picture(4200, 250))).astype(np.uint8)  # blocks of 8, 8 and 1 tiles
    job = prepared(pixels, randomised("tiny"), overlap=0, value_range=(0, 255), pooled=5)
    (tmp_path / "alone").mkdir()
    alone(job, tmp_path / "alone" / "out.zarr")
    work(client, job, tmp_path / "tokens", tmp_path / "out.zarr")
    pooled = pixels_of(tmp_path / "out.zarr")
    assert np.array_equal(pooled, pixels_of(tmp_path / "alone" / "out.zarr"))
    (tmp_path / "exact").mkdir()
    alone(replace(job, pooled=0), tmp_path / "exact" / "out.zarr")
    assert not np.array_equal(pooled, pixels_of(tmp_path / "exact" / "out.zarr"))


def test_workers_write_the_maps_of_a_single_process(client: MeasuringClient, source: Path, tmp_path: Path) -> None:
    job = prepared(open_image(source), randomised(replace(SPECS["tiny"], airlight="picture")), overlap=0)
    (tmp_path / "maps").mkdir()
    store, maps = open_tokens(job, tmp_path / "tokens"), MapStore.open(tmp_path / "maps", ("airlight",), job.image)
    with Cluster(client, job, store) as cluster:
        for stage in cluster.stages():
            assert sum(stage.steps) == stage.total
        fill = partial(cluster.fill, maps=maps)
        assert list(write(decode_lazily(job, store), tmp_path / "out.zarr", job.image, fill=fill))
    pixels, expected = decode_maps(job, store, Window(0, job.grid.height, 0, job.grid.width))
    assert np.array_equal(np.moveaxis(pixels_of(tmp_path / "out.zarr"), 0, -1), pixels)
    assert np.array_equal(maps.array("airlight").compute(), expected["airlight"], equal_nan=True)


def pids(client: Client) -> list[int]:
    return list(client.run(os.getpid).values())


def test_a_killed_worker_costs_only_its_tasks(
    client: MeasuringClient, source: Path, tiny: DehazeXL, tmp_path: Path
) -> None:
    job = prepared(source, tiny)
    alone(job, tmp_path / "alone.zarr")
    store, killed = open_tokens(job, tmp_path / "tokens"), 0
    with Cluster(client, job, store) as cluster:
        for stage in cluster.stages():
            os.kill(pids(client)[0], signal.SIGKILL)  # before each stage
            killed += 1
            assert sum(stage.steps) == stage.total
        steps = write(decode_lazily(job, store), tmp_path / "out.zarr", job.image, fill=cluster.fill)
        next(steps)
        os.kill(pids(client)[-1], signal.SIGKILL)
        for _ in steps:
            pass
    assert killed == 2
    assert np.array_equal(pixels_of(tmp_path / "out.zarr"), pixels_of(tmp_path / "alone.zarr"))
    client.wait_for_workers(2)


def test_a_cancelled_run_stops_its_tasks_and_goes_on(
    client: MeasuringClient, source: Path, tiny: DehazeXL, tmp_path: Path
) -> None:
    job = prepared(source, tiny)
    store = open_tokens(job, tmp_path / "tokens")
    with pytest.raises(KeyboardInterrupt), Cluster(client, job, store) as cluster:
        for stage in cluster.stages():
            for _ in stage.steps:
                raise KeyboardInterrupt
    assert not cluster.recipe.claim.exists()
    with pytest.raises(RuntimeError, match="ended"):
        cluster.recipe.check()
    assert store.begun()
    work(client, job, tmp_path / "tokens", tmp_path / "out.zarr")
    alone(job, tmp_path / "alone.zarr")
    assert np.array_equal(pixels_of(tmp_path / "out.zarr"), pixels_of(tmp_path / "alone.zarr"))


def test_an_error_of_a_task_is_raised_here(
    client: MeasuringClient, source: Path, tiny: DehazeXL, tmp_path: Path
) -> None:
    job = prepared(source, tiny)
    with Cluster(client, job, open_tokens(job, tmp_path / "tokens")) as cluster:
        cluster.recipe.claim.unlink()
        with pytest.raises(RuntimeError, match="the run ended"):
            for stage in cluster.stages():
                list(stage.steps)


@contextmanager
def started(module: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of dask, and kill it at the end."""
    command = [sys.executable, "-m", f"distributed.cli.{module}", "--no-dashboard", *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_restarted_scheduler_is_found_again(source: Path, tiny: DehazeXL, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address, image = f"tcp://127.0.0.1:{port}", open_image(source).cropped(Window(0, 500, 0, 560))
    scheduler = partial(started, "dask_scheduler", "--host", "127.0.0.1", "--port", port)
    worker = partial(started, "dask_worker", address, "--nthreads", "1", "--no-nanny")
    job = prepared(image, tiny)
    alone(job, tmp_path / "alone.zarr")
    store = open_tokens(job, tmp_path / "tokens")
    with ExitStack() as second, ExitStack() as first:
        first.enter_context(scheduler())
        first.enter_context(worker())
        with Client(address, timeout=120, set_as_default=False) as client, Cluster(client, job, store) as cluster:
            stages = cluster.stages()
            list(next(stages).steps)
            first.close()
            second.enter_context(scheduler())
            second.enter_context(worker())
            list(next(stages).steps)
            steps = write(decode_lazily(job, store), tmp_path / "out.zarr", job.image, fill=cluster.fill)
            assert list(steps)[-1] == 500 * 560
    assert np.array_equal(pixels_of(tmp_path / "out.zarr"), pixels_of(tmp_path / "alone.zarr"))


# ---- Lazy arrays ------------------------------------------------------------------------------------


def graph_size(array: Any) -> int:
    return len(cloudpickle.dumps(array.__dask_graph__()))


def test_a_cluster_without_workers_is_told_of(
    source: Path, tiny: DehazeXL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "PATIENCE", 0.2)
    job, told = prepared(source, tiny), list[str]()
    with LocalCluster(n_workers=0, dashboard_address=None) as cluster, Client(cluster, set_as_default=False) as client:

        def start_one(record: logging.LogRecord) -> bool:  # a worker comes only once it was told that there is none
            told.append(record.getMessage())
            cluster.scale(1)
            return False

        monkeypatch.setattr(tasks.log, "filters", [start_one])
        with Cluster(client, job, open_tokens(job, tmp_path / "tokens")) as dehazing:
            assert told == ["the cluster has no worker: waiting for one to join"]
            cluster.scale(0)
            while dehazing.workers():
                time.sleep(0.1)
            assert list(dehazing.each(plus_one, [1])) == [(0, 2)]
            assert len(told) > 1


def plus_one(_: Recipe, number: int) -> int:
    return number + 1


@pytest.mark.parametrize("kind", ["file", "array"])
def test_the_current_client_dehazes_and_decodes(client: MeasuringClient, source: Path, kind: str) -> None:
    model, image = randomised("tiny"), open_image(source).cropped(Window(0, 500, 0, 560))
    pixels = np.asarray(image.levels[0].compute(scheduler="synchronous"))
    expected = dehazexl.dehaze(pixels, model, overlap=32).compute(scheduler="synchronous")
    with client.as_current():
        clear = dehazexl.dehaze(image if kind == "file" else pixels, model, overlap=32)
        assert client.sizes  # the workers encoded
        found = clear.compute()
    if kind == "file":  # its hole is black in the array
        hole = (pixels == 0).all(2)
        assert np.array_equal(found[hole], pixels[hole])
        expected = dehazexl.dehaze(image, model, overlap=32).compute(scheduler="synchronous")
    assert np.array_equal(found, expected)
    assert graph_size(clear) < LARGEST
    assert max(client.sizes) < LARGEST


def test_tokens_in_memory_reach_other_processes_by_disk(source: Path) -> None:
    model, image = randomised("tiny"), open_image(source).cropped(Window(0, 300, 0, 300))
    pixels = np.asarray(image.levels[0].compute(scheduler="synchronous"))
    clear = dehazexl.dehaze(pixels, model)
    assert graph_size(clear) < LARGEST
    expected = clear.compute(scheduler="synchronous")
    assert np.array_equal(clear.compute(scheduler="processes", num_workers=1), expected)


# ---- Errors -----------------------------------------------------------------------------------------


def test_a_worker_that_does_not_reach_the_tokens_says_so(
    client: MeasuringClient, source: Path, tiny: DehazeXL, tmp_path: Path
) -> None:
    job = prepared(source, tiny)
    recipe = Cluster(client, job, open_tokens(job, tmp_path / "tokens")).recipe
    assert reason_against(recipe) is None
    assert isinstance(recipe.image, ImageFile)
    moved = replace(recipe, image=replace(recipe.image, array="another"), key="another")
    assert "another one on this machine" in str(reason_against(moved))
    (tmp_path / "tokens").rename(tmp_path / "elsewhere")
    assert "does not reach" in str(reason_against(recipe))


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back so eagerly")
def test_workers_keep_the_memory_that_large_arrays_freed(
    client: MeasuringClient, source: Path, tiny: DehazeXL, tmp_path: Path
) -> None:
    work(client, prepared(source, tiny), tmp_path / "tokens", tmp_path / "out.zarr")
    assert max(client.run(faults_of_a_large_array).values()) < 100


def faults_of_a_large_array() -> int:
    """Return the pages that the system had to find for an array of 16 MiB, after one of that size was freed."""
    import resource  # not on Windows

    found = []
    for _ in range(5):  # other threads of the process need pages, too, now and then
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        b"1" * (16 << 20)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(found)


def test_a_missing_distributed_is_named() -> None:
    code = "import sys; sys.modules['distributed'] = None; import dehazexl.engine.tasks"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.strip().splitlines()[-1].endswith("pip install 'napari-dehazexl[cluster]'")


def test_workers_that_cannot_start_are_told_with_the_cause(tmp_path: Path) -> None:
    config = tmp_path / "dask.yaml"
    config.write_text(f"distributed:\n  worker:\n    preload: [{tmp_path / 'absent.py'}]\n")
    said = (
        rf"workers failed to start \(FileNotFoundError: .*absent\.py'\): correct the settings in {config} \(--dask-con"
    )
    with pytest.raises(OSError, match=said), connected_to(1, config=config, device="cpu"):
        pass
