"""Storage of benchmark results with a description of the machine."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dehazexl

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return processor, GPU, versions and date."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "date": datetime.date.today().isoformat(),
        "processor": models[0].split(":")[1].strip() if models else platform.processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "dehazexl": dehazexl.__version__,
    }


def save_result(name: str, **figures: Any) -> None:
    """Print figures and save them with the machine as ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **figures}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
