"""Work that takes seconds, such as importing torch, done in threads before the first click needs it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dehazexl.viewing.model_info import ModelInfo


def look_up(weights: str, device: str, dtype: str) -> ModelInfo | str:
    """Return the properties of a network, or why there are none."""
    from dehazexl.viewing.model_info import read_model_info

    try:
        return read_model_info(weights, device, dtype)
    except (ValueError, OSError) as error:
        return str(error)


def devices() -> list[tuple[str, str]]:
    """List the devices of this machine, see `dehazexl.viewing.model_info.list_devices`."""
    from dehazexl.viewing.model_info import list_devices

    return list_devices()


def get_ready(weights: str, device: str, dtype: str) -> None:
    """Import what the first click would wait for, and load the network.

    On a GPU it is not loaded: that would hold its memory for somebody who may never dehaze.
    """
    import zarr  # noqa: F401
    from PIL import ImageFile  # noqa: F401

    import dehazexl.io.open
    import dehazexl.viewing.explaining  # noqa: F401
    from dehazexl.viewing.model_info import runs_on_cpu
    from napari_dehazexl._layer import network, written

    with suppress(OSError, ValueError):  # errors of the weights are shown when they are used
        if runs_on_cpu(device):
            network(weights, device, dtype, written(weights))
