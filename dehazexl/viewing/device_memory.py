"""The memory of a device, in words for the status of a viewer."""

from __future__ import annotations

GB = 2**30


def in_use(device: str) -> str:
    """Return how much memory of a device is in use: "5.1 of 16 GB of memory in use".

    Parameters
    ----------
    device
        See `dehazexl.load_model`. For a CPU, and a GPU that shares the memory of the machine, it is that.

    Returns
    -------
    str
        Empty for a GPU that this process does not use yet: asking would take some of its memory.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    numbers = _bytes_in_use(device)
    return "" if numbers is None else f"{numbers[0] / GB:.1f} of {numbers[1] / GB:.0f} GB of memory in use"


def _bytes_in_use(device: str) -> tuple[int, int] | None:
    """Return the bytes in use, by all programs, and those that there are."""
    import psutil
    import torch

    from dehazexl.model.weights import choose_device

    target = choose_device(device)
    if target.type == "cuda":
        if not torch.cuda.is_initialized() or not torch.cuda.memory_reserved(target):
            return None
        free, total = torch.cuda.mem_get_info(target)
        return total - free, total
    memory = psutil.virtual_memory()
    return memory.total - memory.available, memory.total
