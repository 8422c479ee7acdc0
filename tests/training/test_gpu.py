"""benchmarks/gpu.py on the CPU: it writes weights that can be loaded and resumed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dehazexl.model.weights import describe, load_model

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def pack(path: Path) -> Path:
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        index: list[Any] = []
        for split in ("train", "train", "valid"):
            data = io.BytesIO()
            pixels = random.integers(0, 255, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).resize((150, 120)).save(data, "WEBP")
            name = f"{split}-{len(index)}.webp"
            file.writestr(name, data.getvalue())
            index.append({"file": name, "source": split, "split": split, "upright": True})
        file.writestr("index.json", json.dumps(index))
    return path


def run(folder: Path, *options: str) -> str:
    command = [sys.executable, SCRIPT, "train", "--data", pack(folder / "pack.zip"), "--out", folder / "out"]
    command += [
        "--spec",
        "tiny-field",
        "--device",
        "cpu",
        "--tiles",
        "1",
        "--cases",
        "1",
        "--every",
        "1",
        "--reserve",
        "0",
    ]
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_writes_weights_in_pieces_and_resumes(tmp_path: Path) -> None:
    said = run(tmp_path, "--steps", "2", "--state", str(tmp_path / "state.pt"), "--validate", "0")
    assert "'step': 2" in said
    pieces = sorted((tmp_path / "out").glob("weights.*"))
    joined = tmp_path / "joined.safetensors"
    joined.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    assert load_model(joined, device="cpu", dtype="float32").spec.head == "field"
    assert {"values", "light", "clear"} <= set(describe(joined)["trained"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    said = run(tmp_path, "--steps", "1", "--state", str(tmp_path / "state.pt"), "--validate", "1")
    assert "resumed at step 2" in said and "'step': 3" in said
