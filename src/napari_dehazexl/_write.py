"""Writer: what File > Save does with an image layer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_dehazexl._overviews import reopened, viewers
from napari_dehazexl._save import SUFFIXES, Progress, copy, read_from_file, save, tokens_of
from napari_dehazexl._state import state_in, state_of

if TYPE_CHECKING:
    from dehazexl.image.image import Image
    from dehazexl.viewing.session import DehazeSession
    from napari_dehazexl._save import Steps
    from napari_dehazexl._thread import SaveResult

    Make = Callable[[Callable[[], bool]], Steps]


def write_layer(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write an image layer for File > Save: a dehazed one dehazed in full, any other as it is.

    The window lives meanwhile; napari's activity panel shows how far it is, and cancels. What is at the path is
    replaced at the end: the dialog has asked, but not of a name that only gets its suffix here.

    Parameters
    ----------
    path
        Ends in one of `SUFFIXES`, or gets the first: napari proposes the layer's name.
    data
        The layer's array, or its levels.
    meta
        What napari says of the layer.

    Returns
    -------
    list of str
        The path.

    Raises
    ------
    OSError
        If the layer is no picture of two dimensions, if it cannot be written, if it was cancelled, or if there is
        something under the name with the suffix.
    """
    target = _named(Path(path))
    finest = data[0] if meta.get("multiscale") else data
    session = _session_of(finest, meta)
    strength = 1.0 if session is None else session.strength
    try:
        make = _copied(finest, meta, target) if session is None else _dehazed(session, target, strength)
        complete = finished(make, f"saving {target.name}")
    except ValueError as error:  # which napari takes for a writer that is not there
        raise OSError(str(error)) from error
    if not complete:
        raise OSError(
            f"{target.name} was cancelled"
            + (": saving it again goes on after what is done" if tokens_of(target).exists() else "")
        )
    if session is not None and session.strength == strength:
        _show_file(session, target)
    return [str(target)]


def _session_of(finest: Any, meta: dict[str, Any]) -> DehazeSession | None:
    """Return the session behind a layer that still shows its levels."""
    from dehazexl.viewing.session import Level

    session = state_in(meta.get("metadata", {})).session
    return session if isinstance(finest, Level) and finest.live is session else None


def _named(path: Path) -> Path:
    """Give a name without one of our suffixes the first of them."""
    if path.name.lower().endswith(SUFFIXES):
        return path
    target = path.with_name(path.name + SUFFIXES[0])
    if target.exists():
        raise OSError(f"{target.name} exists: type the whole name to replace it")
    return target


def _dehazed(live: DehazeSession, path: Path, strength: float) -> Make:
    """Save a dehazed layer with a strength that it may not have any more by then."""
    return lambda stopped: save(
        live.image, path, live.load, overlap=live.overlap, strength=strength, limits=live.limits,
        overwrite=True, stopped=stopped,
    )  # fmt: skip


def _copied(finest: Any, meta: dict[str, Any], path: Path) -> Make:
    """Save any other layer."""
    return partial(copy, picture_of(finest, meta), path)


def picture_of(finest: Any, meta: dict[str, Any]) -> Image:
    """Return the picture in a layer: the reader's, with all its bands and values, while the layer shows that.

    Parameters
    ----------
    finest
        The layer's array, or its finest level.
    meta
        What napari says of the layer.

    Raises
    ------
    ValueError
        If the layer has further dimensions, or values that are no picture's, or its file holds another picture now.
    """
    dimensions = finest.ndim - bool(meta.get("rgb"))
    if dimensions != 2:
        raise ValueError(
            f"the layer {meta.get('name')!r} has {dimensions} dimensions: a picture of two can be saved, such as a "
            "slice of it"
        )
    state = state_in(meta.get("metadata", {}))
    if state.image is None or not state.is_as_read(finest):
        return _described(finest, meta, state.image)
    source, band = reopened(state.image), state.band
    if band is None:
        return source
    one = source.levels[0][..., band : band + 1]
    return replace(source, levels=(one,), bands=(source.bands[band],), rgb=(0, 0, 0), alpha=None)


def _described(finest: Any, meta: dict[str, Any], source: Image | None) -> Image:
    """Describe a layer's own pixels; those of the size of the picture that they come from lie where it lies."""
    from dehazexl.viewing.arrays import image_of_arrays

    units = meta.get("units") or ("pixel",)
    image = image_of_arrays(
        [finest], name=str(meta.get("name", "layer")), scale=tuple(meta.get("scale", (1, 1))),
        translate=tuple(meta.get("translate", (0, 0))), units=str(units[0]),
    )  # fmt: skip
    array = image.levels[0]
    if source is None or source.levels[0].shape[:2] != array.shape[:2]:
        return image
    nodata = source.nodata if source.levels[0].dtype == array.dtype else None
    return replace(image, geo=source.geo, path=source.path, nodata=nodata)


def finished(make: Make, title: str) -> bool:
    """Go through the steps of a save while the window lives, and tell whether it is complete."""
    import napari
    from napari.utils import cancelable_progress

    with cancelable_progress(total=100, desc=title) as bar:
        if napari.current_viewer() is None or threading.current_thread() is not threading.main_thread():
            return _followed(make(lambda: False), bar)
        from napari_dehazexl._thread import in_thread  # Qt

        outcome = _pumped(in_thread(make, lambda: bar.is_canceled), bar)
    if outcome.error is not None:
        raise outcome.error
    return outcome.complete


def _followed(steps: Steps, bar: Any) -> bool:
    """Go through the steps in this thread: a script has no window to be kept alive."""
    try:
        while True:
            _tell(next(steps), bar)
    except StopIteration as end:
        return bool(end.value)


def _pumped(worker: Any, bar: Any) -> SaveResult:
    """Let a worker run and handle the window's events until it has ended."""
    from qtpy.QtCore import QEventLoop
    from qtpy.QtWidgets import QApplication

    application: Any = QApplication.instance()
    outcomes: list[SaveResult] = []
    ended = threading.Event()
    worker.yielded.connect(partial(_tell, bar=bar))
    worker.returned.connect(outcomes.append)
    worker.finished.connect(ended.set)
    application.lastWindowClosed.connect(bar.cancel)
    worker.start()
    while not ended.is_set():
        application.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
    application.lastWindowClosed.disconnect(bar.cancel)
    return outcomes[0]


def _tell(step: Progress, bar: Any) -> None:
    """Show how far a save is."""
    from napari.utils.notifications import show_warning

    if step.note:
        show_warning(step.note)
    if not bar.is_canceled:
        bar.set_description(step.stage)
        bar.update(int(100 * step.share) - bar.n)


def _show_file(live: DehazeSession, path: Path) -> None:
    """Let the layer that was saved read from its file."""
    for viewer in viewers():
        for layer in viewer.layers:
            if state_of(layer).session is live:
                read_from_file(layer, path)
