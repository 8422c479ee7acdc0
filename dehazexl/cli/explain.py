"""The command `dehazexl explain`: maps, figures and numbers of an explanation in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.cli.figures import heat_map, plot_curves
from dehazexl.cli.progress import bar, tell
from dehazexl.engine.decode import decode
from dehazexl.engine.dehaze import open_tokens
from dehazexl.engine.description import describe_tokens
from dehazexl.engine.explain.attribution import STATE, Attribution, Explanation
from dehazexl.engine.explain.baselines import NAMES
from dehazexl.engine.explain.measures import squares
from dehazexl.engine.run import Stage, stages
from dehazexl.image.grid import Window
from dehazexl.image.image import Image, colors
from dehazexl.io.content import describe_files
from dehazexl.io.disk import paths_overlap
from dehazexl.io.unfinished import IMAGE, Unfinished, held, part_of, remove
from dehazexl.io.write import write

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.engine.job import Job

PANEL = 640
"""Pixels: longest side of a panel of the heat map, at most."""

PERCENTILE = 99.5
"""Percentile of the absolute attributions at the end of the scale of colors."""

MAPS = ("attribution", "tiles", "tokens")
"""Names of the maps in a folder."""

FORMATS = {"tiff": ".tif", "zarr": ".zarr"}
"""Suffixes of maps by format."""

FILES = {
    *(name + suffix for name in MAPS for suffix in FORMATS.values()), "heatmap.png", "curves.png", "explanation.json"
}  # fmt: skip
"""Files of a folder; a folder that holds others as well is not replaced."""

INCOMPLETE = 0.01
"""Difference of the completeness from 1 above which more steps are advised."""

WORK = "attribution"
"""Name of the folder for intermediate results in that of the unfinished output."""


def check_folder(out: Path, image: Image, overwrite: bool) -> None:
    """Check the folder for an explanation before anything is computed.

    Raises
    ------
    FileExistsError
        If there is something at `out`, and it is not an explanation that may be replaced.
    FileNotFoundError
        If its own folder does not exist.
    ValueError
        If it overlaps with the image.
    """
    if image.path is not None and paths_overlap(out, image.path):
        raise ValueError(f"{out} is the input {image.path}, lies inside it, or contains it: choose another folder")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"the folder {out.parent} does not exist: make it first, or choose another")
    if not out.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{out} exists: choose another name, or replace it with --overwrite")
    if not out.is_dir() or {each.name for each in out.iterdir()} - FILES:
        raise FileExistsError(f"{out} holds other files than an explanation, and is not replaced: choose another name")


def explain_to_folder(
    job: Job,
    window: Window,
    out: Path,
    *,
    map_format: str = "tiff",
    overwrite: bool = False,
    fresh: bool = False,
    **options: Any,
) -> Iterator[str]:
    """Compute an explanation, with progress bars on stderr, and write it into a folder.

    What is computed is kept in the folder ``.NAME.part`` next to it until then, from which the same call goes on.

    Parameters
    ----------
    job, window, options
        See `Attribution`.
    out
        The folder, which gets the map ``attribution.tif`` (float32, georeferenced), its sums over tiles and tokens
        ``tiles.tif`` and ``tokens.tif``, ``heatmap.png``, ``curves.png``, and all numbers, ``explanation.json``.
    map_format
        Format of the maps: ``"tiff"``, or ``"zarr"`` for OME-Zarr.
    overwrite
        Replace an explanation in the folder, once the new one is complete.
    fresh
        Start again, instead of going on with unfinished work.

    Yields
    ------
    str
        Numbers and files, a line at a time.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError, OSError
        See `check_folder`, `Attribution` and `Unfinished.begin`; OSError also if another process writes into the
        folder.
    """
    if map_format not in FORMATS:
        raise ValueError(f"unknown format {map_format!r}: choose one of {', '.join(FORMATS)}")
    check_folder(out, job.image, overwrite)
    description = _description(Attribution(job, window, **options), map_format)  # raises before the folder is made
    with held(out) as unfinished:
        if unfinished.begin(description, fresh):
            tell(f"going on with {unfinished.folder} ({unfinished.progress or 'at the beginning'})")
        if not (unfinished.complete or unfinished.moved):
            found = _explain(job, window, unfinished, FORMATS[map_format], options)
            numbers = json.dumps(found.to_dict() | {"request": description}, indent=2, allow_nan=False)
            (unfinished.folder / IMAGE / "explanation.json").write_text(numbers + "\n")
            yield from describe(found)
        unfinished.finish(overwrite)
    yield f"maps and numbers: {out}"


def remaining(out: Path) -> str:
    """Return a message about the unfinished work after the command was stopped."""
    part = part_of(out)
    if not part.is_dir():
        return "nothing was done yet"
    return f"the same command goes on, dehazexl clean {out.parent} removes {part}"


def _explain(job: Job, window: Window, unfinished: Unfinished, suffix: str, options: dict[str, Any]) -> Explanation:
    """Compute an explanation, and write its maps and figures into the folder of the unfinished output."""
    folder, made = unfinished.folder / WORK, unfinished.folder / IMAGE
    folder.mkdir(exist_ok=True)
    with _discarded_if_empty(unfinished):
        work = Attribution(job, window, folder=folder, **options)
        for stage in work.stages():
            _show(stage, unfinished)
        found = work.result()
        factor = -(-max(found.attribution.shape) // PANEL)
        dehazed = folder / "baseline.npy" if work.baseline == "dehazed" else None
        clear = _dehazed(job, factor) if dehazed is None else _shown(job, np.load(dehazed, "r")[::factor, ::factor])
        remove(made)
        made.mkdir()
        _write_maps(made, suffix, job, found)
        _draw(made, job, window, found, clear, factor)
    return found


@contextmanager
def _discarded_if_empty(unfinished: Unfinished) -> Iterator[None]:
    """Empty the folder after an error if nothing was completed in it."""
    try:
        yield
    except BaseException:
        if not (unfinished.folder / WORK / STATE).exists():
            unfinished.clear()
        raise


def _show(stage: Stage, unfinished: Unfinished | None = None) -> None:
    """Go through a stage with a progress bar."""
    total_done = 0
    with bar(stage.name, stage.total) as advance:
        for done in stage.steps:
            total_done += done
            if unfinished is not None:
                unfinished.note(stage.name, total_done, stage.total)
            advance(done)


def describe(found: Explanation) -> Iterator[str]:
    """Yield the numbers of an explanation, a line at a time."""
    n = found.numbers
    sums = f"attributions sum to {n['sum']:.6g}, the responses differ by {n['difference']:.6g}"
    share = f"none, {n['note']}" if n["note"] else f"{100 * n['completeness']:.2f} %"
    yield f"completeness:     {share} ({sums})"
    if abs(n["completeness"] - 1) > INCOMPLETE:
        yield f"                  more than {n['steps']} --steps bring it nearer to 100 %"
    if math.isnan(n["radius_50"]):
        yield "nothing is attributed: the image is like the baseline"
        return
    yield f"error of the sum: {100 * n['error']:.2g} % of the absolute attributions"
    yield f"global share:     {100 * n['global_share']:.1f} % of the attribution lies outside the window's own tiles"
    yield f"radius:           50 % within {n['radius_50']:.0f} pixels of the window, 90 % within {n['radius_90']:.0f}"
    yield f"diffusion index:  {n['diffusion_index']:.1f} of 100"
    for name, curve in found.curves.items():
        chance = sum(curve.random_areas) / len(curve.random_areas)
        yield f"{name + ':':<17} area {curve.area:.3f}, tiles at random {chance:.3f}"


def _description(work: Attribution, map_format: str) -> dict[str, Any]:
    """Describe the computation in words, so that no other one goes on from its intermediate results."""
    window = work.window
    words: dict[str, Any] = {
        "output": "explanation",
        "format": map_format,
        "window": f"{window.y0}:{window.y1},{window.x0}:{window.x1}",
        "detector": work.detector,
        "baseline": work.baseline,
        "steps": work.steps,
    }
    if work.fold > 1:
        words["fold"] = work.fold
    if work.fold > 1 or work.baseline == "blur":
        words["sigma"] = work.sigma
    if work.baseline not in NAMES:
        path = Path(work.baseline).expanduser()
        words |= {"baseline": str(path.resolve())}
        words |= {f"baseline {name}": value for name, value in describe_files(path).items()}
    # The curves come last, from what is complete by then.
    return {**describe_tokens(work.job), **words}


def _dehazed(job: Job, factor: int) -> NDArray[np.uint8]:
    """Dehaze the image and return every `factor`-th pixel, see `_sampled`."""
    own = replace(job)  # with caches of its own
    store = open_tokens(own)
    for stage in stages(own, store):
        _show(stage)
    return _sampled(own, factor, lambda window: colors(decode(own, store, window), own.image))


def _sampled(job: Job, factor: int, read: Callable[[Window], NDArray[Any]]) -> NDArray[np.uint8]:
    """Return every `factor`-th pixel ``(y, x, 3)`` of colors that are read a strip at a time."""
    grid = job.grid
    step = factor * max(1, grid.stride // factor)
    strips = (Window(y, min(y + step, grid.height), 0, grid.width) for y in range(0, grid.height, step))
    return np.concatenate([_shown(job, read(strip)[::factor, ::factor]) for strip in strips])


def _shown(job: Job, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert colors ``(y, x, 3)`` of the image to 8 bits; what is no number becomes black."""
    return np.rint(255 * np.clip(np.nan_to_num(job.scale.to_unit(values)), 0, 1)).astype(np.uint8)


def _write_maps(folder: Path, suffix: str, job: Job, found: Explanation) -> None:
    """Write the maps of an explanation."""
    maps: list[NDArray[Any]] = [found.attribution, found.tiles, found.tokens]
    for name, values, side in zip(
        MAPS, maps, (1, found.numbers["tile_side"], found.numbers["token_side"]), strict=True
    ):
        like = _like(job, values, side)
        for _ in write(like.levels[0], folder / (name + suffix), like):
            pass


def _draw(folder: Path, job: Job, window: Window, found: Explanation, clear: NDArray[np.uint8], factor: int) -> None:
    """Write the figures of an explanation."""
    height, width = found.attribution.shape
    hazy = _sampled(job, factor, lambda strip: colors(job.pixels.read(strip), job.image))
    small = squares(found.attribution, range(0, height, factor), range(0, width, factor)) / factor**2
    frame = Window(window.y0 // factor, -(-window.y1 // factor), window.x0 // factor, -(-window.x1 // factor))
    heat_map(hazy, clear, small, frame, PERCENTILE).save(folder / "heatmap.png")
    if found.curves:
        plot_curves(found.curves).save(folder / "curves.png")


def _like(job: Job, values: NDArray[Any], side: int) -> Image:
    """Describe a map whose pixels are squares of the image's."""
    import dask.array as da

    image, shift = job.image, (side - 1) / 2
    return Image(
        (da.from_array(values[..., None].astype(np.float32, copy=False), chunks=(2048, 2048, 1), name=False),),
        image.name,
        ("attribution",),
        (0, 0, 0),
        scale=(side * image.scale[0], side * image.scale[1]),
        translate=(image.translate[0] + shift * image.scale[0], image.translate[1] + shift * image.scale[1]),
        units=image.units,
        geo=image.geo.scaled(side, side) if image.geo is not None else None,
    )
