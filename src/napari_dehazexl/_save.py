"""Saves of a dehazed image: with progress, and resumable after they were stopped."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.engine.job import Job
    from dehazexl.engine.tokens import TokenStore
    from dehazexl.image.grid import Window
    from dehazexl.image.image import Image
    from dehazexl.model import DehazeXL
    from dehazexl.viewing.choices import Choices
    from dehazexl.viewing.local import LocalStrength
    from dehazexl.viewing.meter import Meter
    from dehazexl.viewing.session import DehazeSession

    Steps = Generator["Progress", None, bool]
    """The steps of a save. They return whether it is complete, or was stopped."""

SUFFIXES = (".ome.zarr", ".zarr", ".tif", ".tiff", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Progress:
    """Progress of a save: its stage, the fraction of the whole that is done, and a note for the user.

    `meter` counts on between two of them, in the threads that compute.
    """

    stage: str
    share: float
    note: str = ""
    meter: Meter | None = None


def save(
    image: Image,
    path: Path,
    load: Callable[[], DehazeXL],
    *,
    choices: Choices | None = None,
    value_range: tuple[float, float] | None = None,
    local: LocalStrength | None = None,
    overwrite: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Steps:
    """Dehaze an image, or a region of it, into a file, as `dehazexl run` does.

    Until the file is complete, its tokens are kept next to it (see `tokens_of`). A save that was stopped or
    failed continues from them if it is repeated with the same settings. A file at `path` is replaced
    only at the end. If the device runs out of memory, fewer tiles are computed at once.

    Parameters
    ----------
    image, path
        The image, and the file to write. See `dehazexl.io.write.write` for the suffixes.
    load
        Returns the network.
    choices
        The settings, which the file records; weights, device and dtype are those of `load` all the same.
    value_range
        Values of black and white, see `dehazexl.dehaze`.
    local
        Local strength over the image, or the region of it.
    overwrite
        Replace a file at `path`.
    stopped
        Called after each batch of tiles, from several threads; the save ends without an error once it returns True.

    Yields
    ------
    Progress
        After each batch.

    Returns
    -------
    bool
        Whether the file is complete.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError, OSError
        See `dehazexl.io.write.write`. ValueError also while the same file is being written.
    """
    from dehazexl.engine.context import crop_to_context
    from dehazexl.engine.dehaze import prepare
    from dehazexl.image.grid import Window
    from dehazexl.image.image import value_range as find_value_range
    from dehazexl.io.write import check
    from dehazexl.viewing.choices import Choices, with_choices
    from dehazexl.viewing.turns import saving

    choices = choices or Choices()
    black_and_white = value_range or find_value_range(image)
    height, width, _ = image.levels[0].shape
    region = Window(*choices.region) if choices.region else Window(0, height, 0, width)
    like = with_choices(image.cropped(region) if choices.region else image, choices, black_and_white)
    with claimed(path):
        check(like.levels[0], path, like, overwrite=overwrite)
        yield Progress("loading the weights", 0)
        around, region = crop_to_context(image, region, choices.context if choices.region else "all")
        job = prepare(around, load(), choices.overlap, choices.strength, black_and_white, border="ignore")
        store = _fresh_tokens(job, tokens_of(path))
        try:
            with saving():
                return (yield from _passes(job, store, path, Target(like, region, local, overwrite), stopped))
        finally:
            if not store.begun():
                shutil.rmtree(tokens_of(path), ignore_errors=True)


@dataclass(frozen=True)
class Target:
    """The image that a file is to hold, its place in that of the job, local strength, and whether to replace a file."""

    like: Image
    region: Window
    local: LocalStrength | None
    overwrite: bool


def _passes(job: Job, store: TokenStore, path: Path, target: Target, stopped: Callable[[], bool]) -> Steps:
    """Encode, fuse, decode and write; delete the tokens when the file is complete."""
    from dehazexl.engine.dehaze import decode_lazily
    from dehazexl.engine.run import Cancel, Cancelled, stages
    from dehazexl.io.write import total, write
    from dehazexl.viewing.level import STAGES
    from dehazexl.viewing.local import weakened
    from dehazexl.viewing.meter import Meter
    from dehazexl.viewing.turns import wait_for_turn

    cancel, noted = Cancel(partial(wait_for_turn, stopped)), False
    meter = Meter(job.grid.count, len(job.model.context.layers), not job.caches_features)

    def progress(stage: str, complete: bool = False) -> Progress:
        nonlocal noted
        note, noted = "" if noted else job.memory.note, noted or bool(job.memory.note)
        return Progress(stage, 1.0 if complete else meter.fraction, note, meter)

    def decoded(tiles: int) -> None:
        meter.add("decoding", tiles * job.grid.count / job.grid.tiles_touching(target.region).count)
        cancel.check()

    try:
        for stage in stages(job, store, cancel):
            for some in stage.steps:
                meter.add(STAGES[stage.name], some)
                yield progress(STAGES[stage.name])
            meter.reach(STAGES[stage.name], 1)
        clear = decode_lazily(job, store, decoded, target.region)
        clear = clear if target.local is None else weakened(clear, target.like, target.local)
        for pixels in write(clear, path, target.like, overwrite=target.overwrite):
            if pixels == total(clear):
                # Before the last yield: a window that closes ends the generator there.
                shutil.rmtree(tokens_of(path), ignore_errors=True)
            yield progress("decoding", complete=pixels == total(clear))
    except Cancelled:
        return False
    return True


def dehaze_in_memory(session: DehazeSession, out: list[Any], stopped: Callable[[], bool]) -> Steps:
    """Dehaze the image of a session, and append its pixels, as the layer shows them, to a list; see `save`."""
    from dehazexl.engine.decode import decode
    from dehazexl.engine.dehaze import open_tokens, prepare
    from dehazexl.engine.run import Cancel, Cancelled, stages
    from dehazexl.image.grid import Window
    from dehazexl.viewing.display import as_shown
    from dehazexl.viewing.level import STAGES
    from dehazexl.viewing.local import Weakened

    image, cancel = session.image, Cancel(stopped)
    job = prepare(image, session.load(), session.overlap, session.strength, session.value_range, border="ignore")
    store = open_tokens(job)
    try:
        for stage in stages(job, store, cancel):
            done = 0
            for some in stage.steps:
                done += some
                yield Progress(STAGES[stage.name], done / stage.total)
        yield Progress("decoding", 0)
        pixels = decode(job, store, Window(0, job.grid.height, 0, job.grid.width), cancel.check)
    except Cancelled:
        return False
    if session.local is not None:
        pixels = Weakened(pixels, image, session.local)[:]
    out.append(as_shown(pixels, image, session.value_range))
    return True


def copy(image: Image, path: Path, stopped: Callable[[], bool] = lambda: False) -> Steps:
    """Write an image as it is, replacing a file at the path; yields and returns as `save` does."""
    from dehazexl.io.write import total, write

    pixels = image.levels[0]
    with claimed(path):
        for done in write(pixels, path, image, overwrite=True):
            yield Progress("writing", done / total(pixels))
            if done < total(pixels) and stopped():
                return False
    return True


def tokens_of(path: Path) -> Path:
    """Return the folder of the tokens of a save, ``.NAME.tokens`` next to the file."""
    return path.with_name(f".{path.name}.tokens")


def _fresh_tokens(job: Job, folder: Path) -> TokenStore:
    """Open the tokens of a stopped save; replace them if they are of other settings."""
    from dehazexl.engine.dehaze import open_tokens

    try:
        return open_tokens(job, folder)
    except ValueError:
        if not _holds_tokens(folder):
            raise ValueError(f"{folder} is in the way and holds no tokens: move it, or choose another name") from None
        shutil.rmtree(folder)
        return open_tokens(job, folder)


def _holds_tokens(folder: Path) -> bool:
    """Return whether a folder holds tokens, and may be deleted."""
    import zarr

    try:
        return "job" in zarr.open_group(folder, mode="r").attrs
    except (OSError, ValueError):
        return False


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Reserve a file: another widget, or napari's menu, may not write it meanwhile.

    Raises
    ------
    ValueError
        If the file is being written.
    """
    path = path.resolve()
    with _claiming:
        if path in _claimed:
            raise ValueError(f"{path.name} is being written: wait for it, or cancel that first")
        _claimed.add(path)
    try:
        yield
    finally:
        _claimed.discard(path)


_claimed: set[Path] = set()
_claiming = threading.Lock()


def read_from_file(layer: napari.layers.Image, path: Path) -> None:
    """Let a dehazed layer read from the file it was saved to, and close its session.

    Files without a pyramid (PNG, JPEG) are not suited for that; the layer then stays as it is.
    """
    from dehazexl import open_image
    from napari_dehazexl._overviews import shown
    from napari_dehazexl._state import KEY, LayerState, session_of_layer, state_of
    from napari_dehazexl._watch import replace_levels

    session = session_of_layer(layer)
    if session is None or not path.name.lower().endswith((".zarr", ".tif", ".tiff")):
        return
    image = open_image(path)
    session.close()
    session.forget()  # the file takes the place of what is in memory
    levels = shown(image).colors(session.value_range)
    layer.metadata[KEY] = LayerState(
        image, value_range=session.value_range, finest=levels[0].name, source=state_of(layer).source, paused=session
    )
    replace_levels(layer, levels)
