"""Questions of Save as: the file of an image, or the folder of several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_dehazexl._save import SUFFIXES

if TYPE_CHECKING:
    from napari_dehazexl._items import SaveItem

SAVE = "Save the dehazed image"

FILTERS = {
    "OME-Zarr (*.ome.zarr *.zarr)": ".ome.zarr",
    "TIFF (*.tif *.tiff)": ".tif",
    "PNG or JPEG, for small images (*.png *.jpg *.jpeg)": ".png",
}
"""Filters of the file dialog, and the suffix for a name without one."""


def ask_file(parent: Any, item: SaveItem) -> Path | None:
    """Ask for the file of an image; None if there was no answer."""
    from qtpy.QtWidgets import QFileDialog

    own = suffix_of(item.source)
    kinds = sorted(FILTERS, key=lambda kind: FILTERS[kind] != own)  # that of the image first
    answer, kind = QFileDialog.getSaveFileName(parent, SAVE, str(_proposed(item)), ";;".join(kinds))
    if not answer:
        return None
    path = named(Path(answer), kind)
    # The dialog has asked about the name as typed, not about the one with a suffix.
    return path if path == Path(answer) or _may_replace(parent, path) else None


def ask_folder(parent: Any, items: Sequence[SaveItem]) -> list[tuple[SaveItem, Path]]:
    """Ask for the folder of several images; return those to save and their files, none if there was no answer.

    Files that exist are replaced or kept, as the user says: kept, a save that was stopped goes on from there.
    """
    from qtpy.QtWidgets import QFileDialog, QMessageBox

    title = f"{SAVE}s: choose a folder for {len(items)} files"
    answer = QFileDialog.getExistingDirectory(parent, title, str(_proposed(items[0]).parent))
    if not answer:
        return []
    names = _distinct([_proposed(item).name for item in items])
    files = [(item, named(Path(answer) / name, "")) for item, name in zip(items, names, strict=True)]
    there = [path for _, path in files if path.exists()]
    if not there:
        return files
    yes, no, neither = (getattr(QMessageBox.StandardButton, each) for each in ("Yes", "No", "Cancel"))
    question = (
        f"{len(there)} of {len(files)} files exist in {answer}, such as {there[0].name}. Replace them? No: keep them"
    )
    reply = QMessageBox.question(parent, SAVE, f"{question} and save the others.", yes | no | neither)
    if reply == yes:
        return files
    return [(item, path) for item, path in files if path not in there] if reply == no else []


def _proposed(item: SaveItem) -> Path:
    """Return a file next to the file of the image; in the home folder if it is in no file."""
    return (Path.home() if item.source is None else item.source.parent) / file_name(item.name, item.source)


def file_name(name: str, source: Path | None) -> str:
    """Return the name of a file in the format of the file of the image."""
    return f"{safe(name)}{suffix_of(source)}"


def safe(name: str) -> str:
    """Return a name without the characters that a system forbids in names of files."""
    return re.sub(r'[\\/:*?"<>|]', "-", name)


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names that differ even without their capitals: with a number in front where they did not."""
    lowered = [name.lower() for name in names]
    return [
        f"{lowered[:place].count(name.lower()) + 1} {name}" if name.lower() in lowered[:place] else name
        for place, name in enumerate(names)
    ]


def suffix_of(path: Path | None) -> str:
    """Return the suffix of a file in the format of another one."""
    kinds = {".tif": ".tif", ".tiff": ".tif", ".png": ".png", ".jpg": ".png", ".jpeg": ".png"}
    return ".ome.zarr" if path is None else kinds.get(path.suffix.lower(), ".ome.zarr")


def named(path: Path, kind: str) -> Path:
    """Return a path with a suffix, that of the chosen filter if there is none.

    Raises
    ------
    ValueError
        If it lies in a Zarr: a Zarr is a folder, and file dialogs open folders.
    """
    zarr = next((folder for folder in path.parents if folder.suffix.lower() == ".zarr"), None)
    if zarr is not None:
        raise ValueError(f"{path} lies in a Zarr: choose a name next to {zarr.name}")
    if path.name.lower().endswith(SUFFIXES):
        return path
    return path.with_name(path.name + FILTERS.get(kind, SUFFIXES[0]))


def _may_replace(parent: Any, path: Path) -> bool:
    """Ask before a file is replaced."""
    from qtpy.QtWidgets import QMessageBox

    question = f"{path.name} exists already. Replace it?"
    yes = QMessageBox.StandardButton.Yes
    return not path.exists() or QMessageBox.question(parent, SAVE, question) == yes
