"""Saves of a dehazed image: with progress, and resumable after they were stopped."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import napari.layers

    from dehazexl.engine.job import Job
    from dehazexl.engine.tokens import TokenStore
    from dehazexl.image.image import Image
    from dehazexl.model import DehazeXL

    Steps = Generator["Progress", None, bool]
    """The steps of a save. They return whether it is complete, or was stopped."""

SUFFIXES = (".ome.zarr", ".zarr", ".tif", ".tiff", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Progress:
    """Progress of a save: its stage, the fraction of the stage that is done, and a note for the user."""

    stage: str
    share: float
    note: str = ""


def save(
    image: Image,
    path: Path,
    load: Callable[[], DehazeXL],
    *,
    overlap: int | None = None,
    strength: float = 1.0,
    value_range: tuple[float, float] | None = None,
    overwrite: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> Steps:
    """Dehaze a whole image into a file, as `dehazexl run` does.

    Until the file is complete, its tokens are kept next to it (see `tokens_of`). A save that was stopped or
    failed continues from them if it is repeated with the same settings. A file at `path` is replaced
    only at the end. If the device runs out of memory, fewer tiles are computed at once.

    Parameters
    ----------
    image, path
        The image, and the file to write. See `dehazexl.io.write.write` for the suffixes.
    load
        Returns the network.
    overlap, strength, value_range
        See `dehazexl.dehaze`.
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
    from dehazexl.engine.dehaze import prepare
    from dehazexl.io.write import check

    with claimed(path):
        check(image.levels[0], path, image, overwrite=overwrite)
        yield Progress("loading the weights", 0)
        job = prepare(image, load(), overlap, strength, value_range, border="ignore")
        store = _fresh_tokens(job, tokens_of(path))
        try:
            return (yield from _passes(job, store, path, overwrite, stopped))
        finally:
            if not store.begun():
                shutil.rmtree(tokens_of(path), ignore_errors=True)


def _passes(job: Job, store: TokenStore, path: Path, overwrite: bool, stopped: Callable[[], bool]) -> Steps:
    """Encode, fuse, decode and write; delete the tokens when the file is complete."""
    from dehazexl.engine.dehaze import decode_lazily
    from dehazexl.engine.run import Cancel, Cancelled, stages
    from dehazexl.io.write import total, write
    from dehazexl.viewing.level import STAGES

    cancel, noted = Cancel(stopped), False

    def progress(stage: str, share: float) -> Progress:
        nonlocal noted
        note, noted = "" if noted else job.memory.note, noted or bool(job.memory.note)
        return Progress(stage, share, note)

    try:
        for stage in stages(job, store, cancel):
            done = 0
            for some in stage.steps:
                done += some
                yield progress(STAGES[stage.name], done / stage.total)
        clear = decode_lazily(job, store, cancel.check)
        for pixels in write(clear, path, job.image, overwrite=overwrite):
            if pixels == total(clear):
                # Before the last yield: a window that closes ends the generator there.
                shutil.rmtree(tokens_of(path), ignore_errors=True)
            yield progress("decoding", pixels / total(clear))
    except Cancelled:
        return False
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
    from napari_dehazexl._state import KEY, LayerState, state_of
    from napari_dehazexl._watch import replace_levels

    session = state_of(layer).session
    if session is None or not path.name.lower().endswith((".zarr", ".tif", ".tiff")):
        return
    image = open_image(path)
    session.close()
    levels = shown(image).colors(session.value_range)
    layer.metadata[KEY] = LayerState(image, value_range=session.value_range, finest=levels[0].name)
    replace_levels(layer, levels)
