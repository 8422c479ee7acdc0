"""The command `dehazexl run`: dehaze an image from file to file, see `dehazexl.cli.folder` for several."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from dehazexl.cli.progress import bar, tell
from dehazexl.cli.tasks import Task, is_folder
from dehazexl.cli.workers import Workers, work_of
from dehazexl.engine.context import check_context, crop_to_context, pooled_side
from dehazexl.engine.maps import FOLDER, MapStore, check_files, check_maps, check_names, map_bytes, map_path
from dehazexl.image.grid import Window, check_overlap
from dehazexl.image.image import Image, check_range, check_strength
from dehazexl.io.carried import carried_over
from dehazexl.io.level0 import Level0, share_done
from dehazexl.io.open import open_image
from dehazexl.io.raster_write import Compression
from dehazexl.io.unfinished import DECODE, MARKS, TOKENS, Unfinished, held, output_of, part_of
from dehazexl.io.write import TIFF, ZARR, check, check_absent, check_choices, write
from dehazexl.io.zarr_write import Ngff

if TYPE_CHECKING:
    import dask.array as da

    from dehazexl.engine.job import Job
    from dehazexl.engine.run import Stage
    from dehazexl.model import DehazeXL


@dataclass(frozen=True)
class Settings:
    """Settings of a run, see `engine.dehaze.dehaze` and `io.write.write`.

    Attributes
    ----------
    region
        Rows and columns to dehaze, (y0, y1, x0, x1); None means to the end of the image.
    context
        What else of an image takes part in dehazing a region, see `engine.context.check_context`. Nothing else does if
        it is resized.
    resize
        Height and width to resize the images to first, or None.
    fresh
        Start again instead of going on with unfinished work.
    workers
        Workers of a dask cluster, or None.
    skip_existing
        Leave out the tasks whose outputs exist.
    unchecked
        Do not check whether memory and disk suffice.
    maps
        Names of the maps to be written beside each output, see `engine.maps`.
    """

    overlap: int | None = None
    strength: float = 1.0
    value_range: tuple[float, float] | None = None
    bands: tuple[int | str, ...] | None = None
    batch: int | Literal["auto"] = "auto"
    region: tuple[int | None, int | None, int | None, int | None] | None = None
    context: str = "all"
    resize: tuple[int, int] | None = None
    ngff: Ngff = "0.5"
    compression: Compression | None = None
    overwrite: bool = False
    nodata: float | None = None
    page: int | None = None
    border: Literal["ignore", "keep"] = "ignore"
    fresh: bool = False
    workers: Workers | None = None
    skip_existing: bool = False
    unchecked: bool = False
    maps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if check_context(self.context) is not None and self.region is None:
            raise ValueError(
                f"--context {self.context} needs --region: give its rows and columns, --region Y0:Y1,X0:X1"
            )
        check_strength(self.strength)
        if self.value_range is not None:
            check_range(self.value_range)
        check_overlap(self.overlap)
        check_choices(self.ngff, self.compression)
        check_names(self.maps)
        if self.skip_existing and self.overwrite:
            raise ValueError("--skip-existing keeps the outputs that --overwrite replaces: give one of them")

    @property
    def writing(self) -> dict[str, Any]:
        """Options of `io.write.write`."""
        return {"ngff": self.ngff, "compression": self.compression, "overwrite": self.overwrite}

    def opened(self, source: Path) -> Image:
        """Open an image and crop it to the region; it is not resized yet."""
        image = open_image(source, bands=self.bands, nodata=self.nodata, page=self.page)
        return image if self.region is None else image.cropped(self.window(image))

    def in_context(self, source: Path) -> tuple[Image, Window | None]:
        """Open an image as it takes part in dehazing, resized; return the region within it, None for all of it."""
        if self.resize is not None:
            from dehazexl.image.resize import resized

            return resized(self.opened(source), *self.resize), None
        image = open_image(source, bands=self.bands, nodata=self.nodata, page=self.page)
        return (image, None) if self.region is None else crop_to_context(image, self.window(image), self.context)

    def window(self, image: Image) -> Window:
        """Return the region of an image."""
        height, width, _ = image.levels[0].shape
        y0, y1, x0, x1 = self.region or (None, None, None, None)
        return Window(y0 or 0, height if y1 is None else y1, x0 or 0, width if x1 is None else x1)


@dataclass(frozen=True)
class Result:
    """Result of a task: size in pixels, time in seconds from opening to the last byte, and notes for the user."""

    output: Path
    height: int
    width: int
    tiles: int
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        rate = self.tiles / max(self.seconds, 1e-3)
        return f"{self.output}: {self.width} x {self.height} pixels in {self.seconds:.1f} s, {rate:.1f} tiles/s"


@contextmanager
def made(folder: Path | None) -> Iterator[None]:
    """Create a folder and its parents; remove those that are still empty at the end."""
    new = [] if folder is None else [each for each in (folder, *folder.parents) if not each.exists()]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for each in new:
            with suppress(OSError):
                each.rmdir()


def check_task(task: Task, settings: Settings) -> bool:
    """Return True if the arguments of a task fit its image; else raise an error before anything is computed."""
    import dask.array as da

    from dehazexl.engine.estimate import check_resize

    check_free(task, settings)
    image = settings.opened(task.source)
    height, width, bands = image.levels[0].shape
    if settings.resize is not None:
        height, width = settings.resize
        if not settings.unchecked:
            check_resize(image, height, width)
        image = replace(image, levels=(da.zeros((height, width, bands), dtype=image.levels[0].dtype),))
    # A run that was killed when its output had got its name is complete, and cleans up.
    overwrite = settings.overwrite or Unfinished(task.output).moved
    check(image.levels[0], task.output, image, **{**settings.writing, "overwrite": overwrite})
    # Unfinished work may have written some of its maps.
    begun = overwrite or Unfinished(task.output).job is not None
    check_files(settings.maps, task.output, image, {**settings.writing, "overwrite": begun})
    return True


def check_free(task: Task, settings: Settings) -> None:
    """Raise an error if another process is at work on the output or the tokens, or they cannot be written."""
    unfinished = Unfinished(task.output)
    unfinished.check_free()
    if settings.fresh and not settings.overwrite and task.output.exists() and not unfinished.moved:
        raise FileExistsError(
            f"{task.output} is complete, and --fresh starts unfinished work again: replace it with --overwrite"
        )
    if task.tokens is None:
        return
    Unfinished(task.tokens).check_free()
    place = next(each for each in task.tokens.absolute().parents if each.exists())
    try:
        with TemporaryDirectory(prefix=".dehazexl", dir=place):
            pass
    except OSError as error:
        raise OSError(
            f"--tokens {task.tokens}: nothing can be written in {place} ({error.strerror}): give a folder elsewhere"
        ) from error


def dehaze_file(task: Task, model: DehazeXL, settings: Settings, keep_bars: bool = True) -> Result:
    """Dehaze an image from file to file, with a progress bar on stderr for each stage.

    Everything is kept in the folder of the unfinished output, and the same work goes on there, whenever it was killed.
    """
    from dehazexl.engine.dehaze import prepare
    from dehazexl.engine.description import describe_tokens

    started = time.perf_counter()
    check_maps(settings.maps, model)
    image, window = settings.in_context(task.source)
    image, lost = carried_over(task.output, image, settings.ngff, settings.compression)
    job = prepare(
        image,
        model,
        settings.overlap,
        settings.strength,
        settings.value_range,
        None,
        settings.batch,
        settings.border,
        pooled_side(settings.context),
    )
    notes = [*job.image.notes, *([lost] if lost else [])]
    for note in notes:
        tell(f"{task.source.name}: {note}")
    tokens = describe_tokens(job)
    with held(task.output) as unfinished:
        if unfinished.begin({**tokens, **described(task, settings, window)}, settings.fresh):
            tell(f"going on with {unfinished.folder} ({unfinished.kept or 'at the beginning'})")
        if unfinished.complete or unfinished.moved:
            unfinished.finish(settings.overwrite)
        else:
            with discarded_if_empty(unfinished):
                check_absent(task.output, settings.overwrite)
                work(job, tokens, task, settings, unfinished, keep_bars, window)
    height, width = (window.height, window.width) if window else image.levels[0].shape[:2]
    after = [f"maps: {', '.join(str(map_path(task.output, name)) for name in settings.maps)}"] if settings.maps else []
    after += [job.memory.note] if job.memory.note else []
    for note in after:
        tell(f"{task.source.name}: {note}")
    return Result(task.output, height, width, job.grid.count, time.perf_counter() - started, (*notes, *after))


def remaining(output: Path, tokens: Path | None) -> str:
    """Return a message about the unfinished work in or next to OUTPUT, after a run was stopped."""
    if is_folder(output):
        goes_on, parts = "the same command with --skip-existing goes on", unfinished_below(output)
    else:
        goes_on, parts = "the same command goes on", [part_of(output)]
    if tokens is not None and tokens.is_dir():
        goes_on += f" from the tokens in {tokens}"
    elif not is_folder(output) and not parts[0].is_dir():
        return "nothing was done yet"
    if not any(part.is_dir() for part in parts):
        return goes_on
    first = next(part for part in parts if part.is_dir())
    return f"{goes_on}, {output_of(first).removal} removes {first}"


def unfinished_below(output: Path) -> list[Path]:
    """Return the folders of unfinished outputs in a folder and its subfolders."""
    found = []
    for place, folders, _ in os.walk(output):
        found += [Path(place, name) for name in folders if name.startswith(".") and name.endswith(".part")]
        folders[:] = [name for name in folders if not name.startswith(".") and not name.lower().endswith(ZARR)]
    return sorted(found)


@contextmanager
def discarded_if_empty(unfinished: Unfinished) -> Iterator[None]:
    """Empty the folder after an error if nothing was recorded in it."""
    try:
        yield
    except BaseException:
        if not unfinished.recorded:
            unfinished.clear()
        raise


def described(task: Task, settings: Settings, window: Window | None) -> dict[str, Any]:
    """Describe what the output depends on, but not the tokens; `window` is the region in its context."""
    suffix = task.output.suffix.lower()
    words: dict[str, Any] = {"output": suffix, "strength": settings.strength}
    if window is not None:
        words["region in its context"] = [window.y0, window.y1, window.x0, window.x1]
    if suffix in ZARR:
        words["ngff"] = settings.ngff
    if suffix in TIFF:
        words["compression"] = settings.compression
    if settings.maps:
        words["maps"] = list(settings.maps)
    return words


def work(
    job: Job,
    description: dict[str, Any],
    task: Task,
    settings: Settings,
    unfinished: Unfinished,
    keep_bars: bool,
    window: Window | None,
) -> None:
    """Encode, fuse, decode and write the image or a window; `description` is that of the tokens."""
    from dehazexl.engine.dehaze import decode_lazily, open_tokens
    from dehazexl.engine.estimate import check_room

    with made(task.tokens and task.tokens.parent), held(task.tokens) if task.tokens else nullcontext():
        # Work that goes on has written some of it already.
        if not settings.unchecked and not unfinished.recorded:
            more = map_bytes(settings.maps, job.image)
            check_room(job, unfinished.folder, task.tokens.parent if task.tokens else unfinished.folder, more)
        store = open_tokens(job, task.tokens or unfinished.folder / TOKENS, description)
        with work_of(job, store, settings.workers) as (stages, fill):
            for stage in stages:
                follow(stage, unfinished, keep_bars)
            part = job.image if window is None else job.image.cropped(window)
            tiles = job.grid.tiles if window is None else job.grid.tiles_touching(window)
            left = math.ceil(tiles.count * (1 - share_done(unfinished.folder / MARKS)))
            with bar(DECODE, left, keep_bars) as advance:
                kept = MapStore.open(unfinished.folder / FOLDER, settings.maps, part) if settings.maps else None
                noted = noting(unfinished, DECODE, tiles.count, advance, tiles.count - left)
                clear, options = decode_lazily(job, store, noted, window, kept), settings.writing
                filling = fill(noted, window, kept)
                if kept is not None:
                    filling = kept.filling(filling or partial(_filled, clear), task.output, part, options)
                for _ in write(clear, task.output, part, **options, fill=filling, resume=unfinished):
                    pass


def _filled(clear: da.Array, level0: Level0) -> Generator[int, None, None]:
    """Fill the finest level of an output in this process."""
    return level0.fill(clear, at_once=2)


def follow(stage: Stage, unfinished: Unfinished, keep_bars: bool) -> None:
    """Go through a stage with a progress bar, and note how far it is."""
    with bar(stage.name, stage.total, keep_bars) as advance:
        noted = noting(unfinished, stage.name, stage.total, advance)
        for tiles in stage.steps:
            noted(tiles)


def noting(
    unfinished: Unfinished, stage: str, total: int, advance: Callable[[int], None], done: int = 0
) -> Callable[[int], None]:
    """Return a function like `advance` that also notes how far a stage is, for any thread.

    `done` tiles were done before; tiles that are decoded twice do not count beyond the total.
    """
    lock = threading.Lock()

    def on_progress(tiles: int) -> None:
        nonlocal done
        advance(tiles)
        with lock:
            done += tiles
            unfinished.note(stage, min(done, total), total)

    on_progress(0)
    return on_progress
