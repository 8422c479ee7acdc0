"""Deterministic weights and inputs, for which the official network's outputs are known (tests/data)."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from dehazexl.model import SPECS, DehazeXL, Spec

DATA = Path(__file__).parent / "data"


def official_state(every: int = 1) -> dict[str, torch.Tensor]:
    """Return a state dict as the official code saves it: its 363 names, shapes and dtypes; or some of it."""
    entries = json.loads((DATA / "state_dict.json").read_text())
    return {name: _tensor(name, tuple(shape), dtype) for name, shape, dtype in entries[::every]}


def _tensor(name: str, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    if name.endswith("attn_mask") or dtype == "int64":
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    a = random.standard_normal(math.prod(shape)).astype(np.float32).reshape(shape)
    if name.endswith("logit_scale"):
        a = np.float32(math.log(10)) + np.float32(0.1) * a
    elif "norm" in name and name.endswith("weight"):
        a = 1 + np.float32(0.1) * a
    elif name.endswith(("bias", "bias_table")):
        a = np.float32(0.05) * a
    else:
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
        a = a / np.float32(math.sqrt(shape[0] if "expand.weight" in name else fan_in))
    return torch.from_numpy(a.astype(np.float32))


def picture(height: int, width: int | None = None, seed: int = 0) -> np.ndarray:
    """Return a picture ``(3, h, w)`` in [0, 1], float32."""
    width = width or height
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    random = np.random.RandomState(seed)
    channels = [
        0.5 + 0.2 * np.sin(x / 37 + c) + 0.2 * np.cos(y / 53 - c) + 0.08 * random.standard_normal((height, width))
        for c in range(3)
    ]
    return np.clip(np.stack(channels), 0, 1).astype(np.float32)


def relative(a: np.ndarray | torch.Tensor, b: np.ndarray | torch.Tensor) -> float:
    """Relative L2 distance of `a` from the reference `b`."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def randomised(spec: Spec | str, seed: int = 0) -> DehazeXL:
    """Return a network in eval mode whose output depends on every part of it, unlike a fresh one's."""
    spec = SPECS[spec] if isinstance(spec, str) else spec
    torch.manual_seed(seed)
    model = DehazeXL(spec)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    if model.head.output.bias is not None:
        torch.nn.init.normal_(model.head.output.bias)
    with torch.no_grad():
        for layer in model.context.layers:  # so that tiles have much to say to each other
            layer.attn.qkv.weight *= 2
            layer.attn.proj.weight *= 8
    return model.eval().requires_grad_(False)


def interleaved(pixels: np.ndarray) -> np.ndarray:
    """Turn ``(c, y, x)`` into ``(y, x, c)``."""
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def whole(model: DehazeXL, pixels: np.ndarray) -> np.ndarray:
    """Dehaze a picture ``(y, x, 3)`` in [0, 1] in one go: what every streamed result is compared with."""
    with torch.inference_mode():
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        return interleaved(model(x)[0].numpy())
