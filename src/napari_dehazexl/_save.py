"""Save a dehazed picture: the engine's passes and writer, with progress, to be stopped and gone on with."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dehazexl.image import Image
    from dehazexl.model import DehazeXL

SUFFIXES = (".ome.zarr", ".zarr", ".tif", ".tiff", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Progress:
    """How far a save is: its stage, and the share of it that is done, 0 to 1."""

    stage: str
    share: float


def save(
    image: Image,
    path: Path,
    load: Callable[[], DehazeXL],
    *,
    overlap: int = 32,
    strength: float = 1.0,
    limits: tuple[float, float] | None = None,
    overwrite: bool = False,
    stopped: threading.Event | None = None,
) -> Iterator[Progress]:
    """Dehaze a whole picture into a file, as `dehazexl run` does.

    The tokens are kept beside the file (``.NAME.tokens``) until it is complete: a save that was stopped goes on after
    them when it is asked for again with the same settings. What stood under the name is only replaced at the end.

    Parameters
    ----------
    image, path
        What to dehaze, and where to; see `dehazexl.sink.write` for the suffixes.
    load
        Returns the network.
    overlap, strength, limits
        See `dehazexl.dehaze`; limits are its value range.
    overwrite
        Replace what is at `path`.
    stopped
        When it is set, the work ends within a batch of tiles, without an error.

    Yields
    ------
    Progress
        After each batch.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError, OSError
        See `dehazexl.sink.write`.
    """
    from dehazexl.passes import encode, fuse
    from dehazexl.pipeline import decode_lazily, prepare
    from dehazexl.sink import check, total, write

    stopped = stopped or threading.Event()
    check(image.levels[0], path, image, overwrite=overwrite)
    yield Progress("loading the weights", 0)
    job = prepare(image, load(), overlap, strength, limits)
    tokens = path.with_name(f".{path.name}.tokens")
    store = _fresh_tokens(job, tokens)
    tiles = job.grid.rows * job.grid.cols
    for stage, work, count in (
        ("encoding", encode(job, store), tiles),
        ("fusing", fuse(job, store), tiles * len(job.model.context.layers)),
    ):
        done = 0
        for some in work:
            done += some
            yield Progress(stage, done / count)
            if stopped.is_set():
                return

    def tell(_: int) -> None:
        if stopped.is_set():
            raise Stopped

    clear = decode_lazily(job, store, tell)
    try:
        for pixels in write(clear, path, image, overwrite=overwrite):
            yield Progress("decoding", pixels / total(clear))
    except Stopped:
        return
    shutil.rmtree(tokens, ignore_errors=True)


class Stopped(Exception):
    """The save was stopped while it decoded."""


def _fresh_tokens(job: Any, folder: Path) -> Any:
    """Open the tokens of a save that was stopped, or begin anew if they are of other settings."""
    from dehazexl.pipeline import open_tokens

    try:
        return open_tokens(job, folder)
    except ValueError:
        shutil.rmtree(folder)
        return open_tokens(job, folder)


def write_layer(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write an image layer for File > Save: a dehazed one dehazed in full, any other as it is.

    Parameters
    ----------
    path
        Ends in one of `SUFFIXES`.
    data
        The layer's array, or its levels.
    meta
        What napari says of the layer.

    Returns
    -------
    list of str
        The path, or nothing where the suffix is none of ours.
    """
    from napari.utils import progress

    from dehazexl import open_image
    from dehazexl.sink import write

    if not path.lower().endswith(SUFFIXES):
        return []
    metadata = meta.get("metadata", {})
    if (live := metadata.get("dehazexl-live")) is not None:
        settings = {"overlap": live.overlap, "strength": live.strength, "limits": live.limits, "overwrite": True}
        with progress(total=100, desc=f"Dehazing {live.image.name}") as bar:
            for step in save(live.image, Path(path), live.load, **settings):
                bar.set_description(step.stage)
                bar.update(int(100 * step.share) - bar.n)
        return [path]
    finest = data[0] if meta.get("multiscale") else data
    image = metadata.get("dehazexl")
    like = image if image is not None and image.levels[0].shape == finest.shape else open_image(finest)
    for _ in write(like.levels[0], path, like, overwrite=True):
        pass
    return [path]
