"""What `dehazexl run` does: some pictures, some weights, one dehazed picture for each pair."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dehazexl.cli.progress import bar
from dehazexl.engine.tokens import check_apart
from dehazexl.image.grid import Window, check_overlap
from dehazexl.image.image import Image, check_range, check_strength
from dehazexl.io.open import open_image
from dehazexl.io.tiff_write import Compression
from dehazexl.io.write import PHOTO, TIFF, ZARR, check, part_of, write
from dehazexl.io.zarr_write import Ngff

if TYPE_CHECKING:
    from dehazexl.model import DehazeXL

KINDS = (*TIFF, ".btf", *PHOTO, *ZARR)
"""Suffixes of what is taken from a folder of pictures."""

WEIGHTS = (".safetensors", ".pth")


@dataclass(frozen=True)
class Settings:
    """How every picture of a run is dehazed and written: see `engine.dehaze.dehaze` and `io.write.write`.

    Attributes
    ----------
    region
        First and last row and column to take, (y0, y1, x0, x1); None for an end is the picture's.
    resize
        Height and width to bring the pictures to before, or None.
    """

    overlap: int | None = None
    strength: float = 1.0
    value_range: tuple[float, float] | None = None
    bands: tuple[int | str, ...] | None = None
    batch: int | Literal["auto"] = "auto"
    region: tuple[int | None, int | None, int | None, int | None] | None = None
    resize: tuple[int, int] | None = None
    ngff: Ngff = "0.5"
    compression: Compression = "deflate"
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_strength(self.strength)
        if self.value_range is not None:
            check_range(self.value_range)

    @property
    def writing(self) -> dict[str, Any]:
        """The options of `io.write.write`."""
        return {"ngff": self.ngff, "compression": self.compression, "overwrite": self.overwrite}

    def opened(self, source: Path) -> Image:
        """Open a picture, cropped as the settings say, but not resized yet."""
        image = open_image(source, bands=self.bands)
        if self.region is None:
            return image
        height, width, _ = image.levels[0].shape
        y0, y1, x0, x1 = self.region
        window = Window(y0 or 0, height if y1 is None else y1, x0 or 0, width if x1 is None else x1)
        return image.cropped(window)


@dataclass(frozen=True)
class Task:
    """One picture to be dehazed with one network."""

    source: Path
    weights: Path
    output: Path
    tokens: Path | None = None


@dataclass(frozen=True)
class Result:
    """What became of a task: size in pixels, time in seconds from opening to the last byte, what went otherwise."""

    output: Path
    height: int
    width: int
    tiles: int
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        rate = self.tiles / max(self.seconds, 1e-3)
        return f"{self.output}: {self.width} x {self.height} pixels in {self.seconds:.1f} s, {rate:.1f} tiles/s"


def plan(
    source: Path, output: Path, weights: Sequence[str], tokens: Path | None = None
) -> tuple[list[Task], Path | None]:
    """Pair pictures and weights, and name what comes of them.

    Parameters
    ----------
    source
        A picture, or a folder of pictures.
    output
        A file or Zarr for one picture and one network; else a folder, in which each picture keeps its name, with the
        weights' name behind it if there are several.
    weights
        Names of bundled weights, files, or folders of weights.
    tokens
        Folder to keep tokens in; each of several tasks has its own in it.

    Returns
    -------
    tasks : list of Task
        By weights, then by picture.
    folder : Path or None
        The folder for the results, where OUTPUT is one.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such picture or weights, two results would have the same name, or tokens would lie in, at or
        around the pictures or the results.
    """
    pictures, files = find_pictures(source), find_weights(weights)
    if tokens is not None:
        check_apart(tokens, source, output, part_of(output))
    many = pictures != [source] or files.keys() != {""}
    if not many and not is_folder(output):
        return [Task(source, files[""], output, tokens)], None
    if pictures != [source] and source.resolve() in (output.resolve(), *output.resolve().parents):
        raise ValueError(f"{output} is the folder of the input, or in it: choose another folder for the output")
    if many and output.suffix.lower() in KINDS:
        raise ValueError(f"{output} would be one picture, but several are to be made: give a folder as OUTPUT")
    tasks = []
    for name, file in files.items():
        for picture in pictures:
            target = output_name(picture, name)
            tasks.append(Task(picture, file, output / target, tokens and tokens / target if many else tokens))
    for path, count in Counter(task.output for task in tasks).items():
        if count > 1:
            raise ValueError(f"{count} pictures of {source} would be written to {path}: rename some of them")
    return tasks, output


def is_folder(output: Path) -> bool:
    """Tell whether OUTPUT is a folder to put pictures in, not a Zarr to be replaced."""
    return output.is_dir() and output.suffix.lower() not in ZARR


def find_pictures(source: Path) -> list[Path]:
    """List the pictures of a folder, or the one that `source` is."""
    from dehazexl.io.open import ZARR_FILES, check_exists

    check_exists(source)
    if not source.is_dir() or any((source / name).exists() for name in ZARR_FILES):
        return [source]
    visible = (path for path in source.iterdir() if not path.name.startswith("."))
    found = sorted(path for path in visible if path.name.lower().endswith((*KINDS, ".zarr.zip")))
    if not found:
        raise ValueError(f"{source} is a folder without a picture ({' '.join(KINDS)}), and no Zarr itself")
    return found


def find_weights(weights: Sequence[str]) -> dict[str, Path]:
    """Find the files of weights, by the names that tell them apart: ``""`` if there is but one."""
    from dehazexl.model.weights import BUNDLED
    from dehazexl.model.weights import find_weights as find_file

    files: list[Path] = []
    alone = len(weights) == 1
    for source in weights:
        folder = Path(source).expanduser()
        if not folder.is_dir() or (BUNDLED / f"{source}.safetensors").exists():
            files.append(find_file(source))
            continue
        found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS and not path.name.startswith("."))
        if not found:
            raise FileNotFoundError(f"{folder} is a folder without weights ({' '.join(WEIGHTS)})")
        files += found
        alone = False
    if alone:
        return {"": files[0]}
    stems = Counter(file.stem for file in files)
    # The best.safetensors of two trainings differ by their folders.
    named = [
        (file.stem if stems[file.stem] == 1 else f"{file.resolve().parent.name}-{file.stem}", file) for file in files
    ]
    if len(dict(named)) < len(named):
        raise ValueError(f"some of the weights have the same name: {', '.join(map(str, files))}; rename or copy them")
    return dict(named)


def output_name(picture: Path, weights: str = "") -> str:
    """Name a dehazed picture as the hazy one is, with the weights' name before the suffixes."""
    from dehazexl.io.source import short_name

    stem = short_name(picture)
    suffix = picture.name.removeprefix(stem).removesuffix(".zip")
    if not suffix.lower().endswith((*TIFF, *PHOTO, *ZARR)):
        suffix = ".zarr" if picture.is_dir() else ".tif"
    return f"{stem}_{weights}{suffix}" if weights else stem + suffix


def run(
    tasks: Sequence[Task],
    folder: Path | None,
    settings: Settings,
    load: Callable[[Path], DehazeXL],
    say: Callable[[str], object],
) -> Iterator[Result]:
    """Do the tasks, one after the other.

    All that can be known before the first is begun is checked for all of them.

    Parameters
    ----------
    tasks, folder, settings
        What to do, where to (made if it is not there), and how.
    load
        Turns a weights file into a network.
    say
        Told of pictures that could not be dehazed because of what they are, if there are several.

    Yields
    ------
    Result
        One for each task that was done.

    Raises
    ------
    FileExistsError, FileNotFoundError, TypeError, ValueError, OSError
        See `plan`, `io.open.open_image`, `io.write.write`.
    """
    files = list(dict.fromkeys(task.weights for task in tasks))
    with made(folder):
        tasks = [task for task in tasks if can_be_opened(task, settings, say if len(tasks) > 1 else None)]
        for task in tasks:
            check_task(task, settings)
        for file in files[1:]:
            load(file)
        for file in files:
            model = load(file)
            for task in (task for task in tasks if task.weights == file):
                try:
                    yield dehaze_file(task, model, settings, keep_bars=len(tasks) == 1)
                except ValueError as error:
                    # One bad picture does not hold up the others of a folder.
                    if len(tasks) == 1:
                        raise
                    say(str(error))


@contextmanager
def made(folder: Path | None) -> Iterator[None]:
    """Make a folder, and take it away again, with those made above it, if it is still empty in the end."""
    new = [] if folder is None else [each for each in (folder, *folder.parents) if not each.exists()]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for each in new:
            with suppress(OSError):
                each.rmdir()


def can_be_opened(task: Task, settings: Settings, say: Callable[[str], object] | None) -> bool:
    """Tell whether a task's picture can be opened; if not, and there is somebody to tell, say why."""
    try:
        settings.opened(task.source)
    except (ValueError, OSError) as error:
        if say is None:
            raise
        reason = error.strerror if isinstance(error, OSError) else None
        say(f"{task.source} cannot be read: {reason}" if reason else str(error))
        return False
    return True


def check_task(task: Task, settings: Settings) -> None:
    """Refuse what cannot be done, before anything is begun."""
    import dask.array as da

    image = settings.opened(task.source)
    height, width, bands = image.levels[0].shape
    if settings.resize is not None:
        height, width = settings.resize
        image = replace(image, levels=(da.zeros((height, width, bands), dtype=image.levels[0].dtype),))
    check_overlap(settings.overlap)
    check(image.levels[0], task.output, image, **settings.writing)


def dehaze_file(task: Task, model: DehazeXL, settings: Settings, keep_bars: bool = True) -> Result:
    """Dehaze a picture from file to file, with a bar on stderr for each stage."""
    from dehazexl.engine.dehaze import decode_lazily, open_tokens, prepare
    from dehazexl.engine.run import stages
    from dehazexl.image.resize import resized

    started = time.perf_counter()
    image = settings.opened(task.source)
    if settings.resize is not None:
        image = resized(image, *settings.resize)
    job = prepare(image, model, settings.overlap, settings.strength, settings.value_range, batch=settings.batch)
    store = open_tokens(job, task.tokens)
    for stage in stages(job, store):
        with bar(stage.name, stage.total, keep_bars) as tell:
            for done in stage.steps:
                tell(done)
    with bar("decode", job.grid.count, keep_bars) as tell:
        for _ in write(decode_lazily(job, store, tell), task.output, image, **settings.writing):
            pass
    height, width, _ = image.levels[0].shape
    return Result(task.output, height, width, job.grid.count, time.perf_counter() - started, job.memory.note)
