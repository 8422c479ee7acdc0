"""Writer: File > Save of several layers, into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_dehazexl._ask import file_name, safe
from napari_dehazexl._state import state_in
from napari_dehazexl._write import Cancelled, write_layer

if TYPE_CHECKING:
    LayerData = tuple[Any, dict[str, Any], str]


def write_layers(path: str, layers: Sequence[LayerData]) -> list[str]:
    """Write layers for File > Save into a folder, each into a file of its own name.

    Images of two dimensions are written as `write_layer` does, in the format of the image; other layers as napari does.
    A layer that fails does not end the others.

    Parameters
    ----------
    path
        The folder. It is made if it does not exist; files in it are not replaced.
    layers
        Data, attributes and type of each layer.

    Returns
    -------
    list of str
        The files.

    Raises
    ------
    OSError
        If none of the layers was written.
    """
    from napari.utils.notifications import show_error

    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise OSError(f"{folder} is a file: choose a name for a folder")
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    written: list[str] = []
    failed: list[str] = []
    for layer in layers:
        try:
            written += _write_into(folder, layer)
        except Cancelled as error:
            failed.append(str(error))
            break
        except (OSError, ValueError) as error:
            failed.append(str(error))
    if not written:
        if made and not any(folder.iterdir()):  # there may be tokens to go on from
            folder.rmdir()
        raise OSError("\n".join(failed))
    if failed:
        show_error("\n".join(failed))
    return written


def _write_into(folder: Path, layer: LayerData) -> list[str]:
    """Write a layer into a folder."""
    import npe2

    data, meta, kind = layer
    finest = data[0] if meta.get("multiscale") else data
    if kind != "image" or finest.ndim - bool(meta.get("rgb")) != 2:
        return npe2.write(folder / safe(meta["name"]), [layer], plugin_name="napari")
    state = state_in(meta.get("metadata", {}))
    target = folder / file_name(meta["name"], None if state.image is None else state.image.path)
    if target.exists():
        raise OSError(f"{target} exists: remove it, or choose another folder")
    return write_layer(str(target), data, meta)
