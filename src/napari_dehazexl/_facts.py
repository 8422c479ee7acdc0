"""What torch, which takes seconds to import, has to be asked: not in the window's thread."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

from dehazexl.image.grid import TileGrid


@dataclass(frozen=True)
class ModelInfo:
    """What has to be known of a network, without building it.

    Attributes
    ----------
    channels
        Of a token's features.
    itemsize
        Bytes of a number in which tokens are kept.
    tile, overlap
        Side of a tile, and by how much tiles overlap unless another number is asked for, in pixels.
    pool
        Side of the square of tokens that share a key and a value.
    on_cpu
        Whether it runs on the CPU.
    """

    channels: int
    itemsize: int
    tile: int
    overlap: int
    pool: int
    on_cpu: bool

    def grid(self, height: int, width: int, overlap: int | None) -> TileGrid:
        """Return how the network cuts a picture."""
        return TileGrid(height, width, self.overlap if overlap is None else overlap, self.tile)


def look_up(weights: str, device: str, dtype: str) -> ModelInfo | str:
    """Return what is known of a network, or why nothing is."""
    try:
        return read_network(weights, device, dtype)
    except (ValueError, OSError) as error:
        return str(error)


def read_network(weights: str, device: str, dtype: str) -> ModelInfo:
    """Read what a weights file says of its network.

    Raises
    ------
    FileNotFoundError, ValueError
        See `dehazexl.load_model`.
    """
    from dehazexl.model import SPECS, Spec
    from dehazexl.model.heads import channels, head_of
    from dehazexl.model.weights import choose_device, choose_dtype, describe, find_weights

    target = choose_device(device)
    ours = find_weights(weights).suffix == ".safetensors"
    spec = Spec.from_json(json.dumps(describe(weights)["spec"])) if ours else SPECS["official"]
    itemsize = min(4, choose_dtype(dtype, target).itemsize)
    return ModelInfo(
        channels(spec), itemsize, spec.tile, head_of(spec).overlap, spec.context_pool, target.type == "cpu"
    )


def devices() -> list[tuple[str, str]]:
    """List names for people and for torch of the devices that are there."""
    import psutil
    import torch

    found = [("auto", "auto"), (f"cpu, {psutil.virtual_memory().total / 2**30:.0f} GB", "cpu")]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found.append((f"{about.name}, {about.total_memory / 2**30:.0f} GB", f"cuda:{number}"))
    if torch.backends.mps.is_available():
        found.append(("Apple GPU (mps)", "mps"))
    return found


def get_ready(weights: str, device: str, dtype: str) -> None:
    """Do ahead what the first click needs: import what the window would wait for, and load the network.

    On a GPU it is not loaded: that would hold its memory for somebody who may never dehaze.
    """
    import zarr  # noqa: F401
    from PIL import ImageFile  # noqa: F401

    import dehazexl.io.open  # noqa: F401
    from dehazexl.model.weights import choose_device
    from napari_dehazexl._layer import network, written

    with suppress(OSError, ValueError):  # what is wrong with the weights is said when they are used
        if choose_device(device).type == "cpu":
            network(weights, device, dtype, written(weights))
