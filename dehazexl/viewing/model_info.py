"""Properties of a network and of the machine that are shown before a network is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dehazexl.image.grid import TileGrid


@dataclass(frozen=True)
class ModelInfo:
    """Properties of a network, known without loading it.

    Attributes
    ----------
    channels
        Features of a token.
    itemsize
        Bytes of each number of a token.
    tile, overlap
        Side of a tile and the overlap of tiles by default, in pixels.
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
        """Return the tiles of an image; None takes the network's own overlap."""
        return TileGrid(height, width, self.overlap if overlap is None else overlap, self.tile)


def read_model_info(weights: str, device: str, dtype: str) -> ModelInfo:
    """Read the properties of a network from its weights file. Imports torch, which takes seconds.

    Parameters
    ----------
    weights, device, dtype
        See `dehazexl.load_model`.

    Raises
    ------
    FileNotFoundError, ValueError
        See `dehazexl.load_model`.
    """
    from dehazexl.model import SPECS, Spec
    from dehazexl.model.weights import choose_device, choose_dtype, describe, find_weights

    target = choose_device(device)
    ours = find_weights(weights).suffix == ".safetensors"
    spec = Spec.from_json(json.dumps(describe(weights)["spec"])) if ours else SPECS["official"]
    itemsize = min(4, choose_dtype(dtype, target).itemsize)
    return ModelInfo(spec.channels, itemsize, spec.tile, spec.overlap, spec.context_pool, target.type == "cpu")


def runs_on_cpu(device: str) -> bool:
    """Return whether a device, perhaps "auto", is the CPU.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    from dehazexl.model.weights import choose_device

    return choose_device(device).type == "cpu"


def list_devices() -> list[tuple[str, str]]:
    """List the devices of this machine: a label with the size of the memory, and torch's name."""
    import psutil
    import torch

    found = [("auto", "auto"), (f"cpu, {psutil.virtual_memory().total / 2**30:.0f} GB", "cpu")]
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        found.append((f"{device.name}, {device.total_memory / 2**30:.0f} GB", f"cuda:{number}"))
    if torch.backends.mps.is_available():
        found.append(("Apple GPU (mps)", "mps"))
    return found
