"""Writer: File > Save of an image layer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_dehazexl._levels import UNSAVED_MAP
from napari_dehazexl._overviews import reopened, viewers
from napari_dehazexl._save import SUFFIXES, Progress, copy, dehaze_in_memory, read_from_file, save, tokens_of
from napari_dehazexl._state import choices_of, session_of_layer, state_in

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.image.image import Image
    from dehazexl.viewing.session import DehazeSession
    from napari_dehazexl._save import Steps
    from napari_dehazexl._save_worker import SaveResult

    Make = Callable[[Callable[[], bool]], Steps]


class Cancelled(OSError):
    """Raised for a save that the user has cancelled."""


def write_layer(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write an image layer for File > Save: a dehazed layer is dehazed in full, any other is written as it is.

    The window stays responsive; the activity panel of napari shows the progress and cancels. A file at the path is
    replaced at the end: the dialog has asked, unless the name got its suffix here.

    Parameters
    ----------
    path
        A path with one of `SUFFIXES`; the first is added if there is none, as napari proposes the name of the layer.
    data
        The array of the layer, or its levels.
    meta
        The attributes of the layer.

    Returns
    -------
    list of str
        The path.

    Raises
    ------
    OSError
        If the layer is not a two-dimensional image, if it cannot be written, if it was cancelled, or if a file with the
        added suffix exists.
    """
    target = _named(Path(path))
    finest = data[0] if meta.get("multiscale") else data
    if state_in(meta.get("metadata", {})).maps is not None:
        from dehazexl.viewing.mapping import MapLevel  # and with it torch

        if isinstance(finest, MapLevel):
            raise OSError(UNSAVED_MAP)
    session = _session_of(finest, meta)
    strength = 1.0 if session is None else session.strength
    try:
        make = _copied(finest, meta, target) if session is None else _dehazed(session, target, strength)
        complete = finished(make, f"saving {target.name}")
    except ValueError as error:  # napari takes a ValueError for a missing writer
        raise OSError(str(error)) from error
    if not complete:
        raise Cancelled(
            f"{target.name} was cancelled" + (": saving it again continues it" if tokens_of(target).exists() else "")
        )
    if session is not None and session.strength == strength:
        _show_file(session, target)
    return [str(target)]


def _session_of(finest: Any, meta: dict[str, Any]) -> DehazeSession | None:
    """Return the session behind a layer that still shows its levels."""
    from dehazexl.viewing.session import Level

    session = state_in(meta.get("metadata", {})).session
    return session if isinstance(finest, Level) and finest.session is session else None


def _named(path: Path) -> Path:
    """Return a path with a suffix, the first of `SUFFIXES` if there is none."""
    if path.name.lower().endswith(SUFFIXES):
        return path
    target = path.with_name(path.name + SUFFIXES[0])
    if target.exists():
        raise OSError(f"{target.name} exists: type the whole name to replace it")
    return target


def _dehazed(session: DehazeSession, path: Path, strength: float) -> Make:
    """Return the steps to save a dehazed layer, with the strength of now."""
    image, choices = session.whole, replace(choices_of(session), strength=strength)
    return lambda stopped: save(
        image, path, session.load, choices=choices, value_range=session.value_range, local=session.local,
        overwrite=True, stopped=stopped,
    )  # fmt: skip


def in_full(session: DehazeSession) -> NDArray[Any]:
    """Dehaze the image of a session in full, as its layer shows it, while the window stays responsive.

    Raises
    ------
    OSError
        If it was cancelled.
    """
    pixels: list[NDArray[Any]] = []
    if not finished(partial(dehaze_in_memory, session, pixels), f"dehazing {session.image.name}"):
        raise OSError(f"{session.image.name}: saving was cancelled")
    return pixels[0]


def _copied(finest: Any, meta: dict[str, Any], path: Path) -> Make:
    """Return the steps to save any other layer."""
    return partial(copy, image_of(finest, meta), path)


def image_of(finest: Any, meta: dict[str, Any]) -> Image:
    """Return the image in a layer: the image that was read, with all bands and values, if the layer still shows it.

    Parameters
    ----------
    finest
        The array of the layer, or its finest level.
    meta
        The attributes of the layer.

    Raises
    ------
    ValueError
        If the layer has more than two dimensions or an unsupported dtype, or its file holds another image now.
    """
    dimensions = finest.ndim - bool(meta.get("rgb"))
    if dimensions != 2:
        raise ValueError(
            f"the layer {meta.get('name')!r} has {dimensions} dimensions: save a two-dimensional image, for example a "
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
    """Return the image in the pixels of a layer, with the georeference of its source if they are of the same size."""
    from dehazexl.viewing.arrays import described_by, image_of_arrays

    units = meta.get("units") or ("pixel",)
    image = image_of_arrays(
        [finest], name=str(meta.get("name", "layer")), scale=tuple(meta.get("scale", (1, 1))),
        translate=tuple(meta.get("translate", (0, 0))), units=str(units[0]),
    )  # fmt: skip
    array = image.levels[0]
    if source is None and (path := _path_of(finest)) is not None:
        return described_by(image, path)
    if source is None or source.levels[0].shape[:2] != array.shape[:2]:
        return image
    nodata = source.nodata if source.levels[0].dtype == array.dtype else None
    return replace(image, geo=source.geo, path=source.path, nodata=nodata)


def _path_of(finest: Any) -> Path | None:
    """Return the file that a layer with an array was opened from, by whatever reader."""
    for layer in (layer for viewer in viewers() for layer in viewer.layers):
        data: Any = getattr(layer, "data", None)
        if data is finest or (getattr(layer, "multiscale", False) and data[0] is finest):
            return None if layer.source.path is None else Path(layer.source.path)
    return None


def finished(make: Make, title: str) -> bool:
    """Take the steps of a save while the window stays responsive; return whether it is complete."""
    import napari
    from napari.utils import cancelable_progress

    with cancelable_progress(total=100, desc=title) as bar:
        if napari.current_viewer() is None or threading.current_thread() is not threading.main_thread():
            return _followed(make(lambda: False), bar)
        from napari_dehazexl._save_worker import in_thread  # Qt

        result = _pumped(in_thread(make, lambda: bar.is_canceled, title), bar)
    if result.error is not None:
        raise result.error
    return result.complete


def _followed(steps: Steps, bar: Any) -> bool:
    """Take the steps in this thread: a script has no window."""
    try:
        while True:
            _show_progress(next(steps), bar)
    except StopIteration as end:
        return bool(end.value)


def _pumped(worker: Any, bar: Any) -> SaveResult:
    """Handle events of the window until a worker has ended; return its result."""
    from qtpy.QtCore import QEventLoop
    from qtpy.QtWidgets import QApplication

    application: Any = QApplication.instance()
    results: list[SaveResult] = []
    ended = threading.Event()
    worker.yielded.connect(partial(_show_progress, bar=bar))
    worker.returned.connect(results.append)
    worker.finished.connect(lambda: ended.set())  # Qt would not keep the event of a bound method alive
    application.lastWindowClosed.connect(bar.cancel)
    worker.start()
    while not ended.is_set():
        application.processEvents(QEventLoop.ProcessEventsFlag.WaitForMoreEvents)
    application.lastWindowClosed.disconnect(bar.cancel)
    return results[0]


def _show_progress(step: Progress, bar: Any) -> None:
    """Show the progress of a save."""
    from napari.utils.notifications import show_warning

    if step.note:
        show_warning(step.note)
    if not bar.is_canceled:
        bar.set_description(step.stage if step.meter is None else str(step.meter))
        bar.update(int(100 * step.share) - bar.n)


def _show_file(session: DehazeSession, path: Path) -> None:
    """Let the layers of a saved session read from its file."""
    for viewer in viewers():
        for layer in viewer.layers:
            if session_of_layer(layer) is session:
                read_from_file(layer, path)
