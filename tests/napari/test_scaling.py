"""The widget in small windows, and on screens that are scaled: nothing overlaps, and no text is cut off."""

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")


@pytest.mark.parametrize(("scale", "width", "height"), [("1", 1280, 800), ("2", 1280, 800), ("2", 800, 500)])
def test_nothing_overlaps_and_no_text_is_cut_off(tmp_path, scale, width, height) -> None:
    script = Path(__file__).parents[1] / "measure_form.py"
    own = {"QT_SCALE_FACTOR": scale, "NAPARI_CONFIG": str(tmp_path / "napari.yaml")}
    command = [sys.executable, str(script), str(width), str(height), str(tmp_path)]
    result = subprocess.run(command, env=os.environ | own, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["scale"] == float(scale)
    assert found["window"][0] == width
    assert found["window"][1] <= max(height, 550), "napari itself needs 531 pixels"
    assert found["form"] <= found["area"], "cut off at the right"
    assert 15 < len(found["folded"]) < len(found["unfolded"])
    for parts in (found["folded"], found["unfolded"]):
        assert not [each for each in parts if not each["seen"]], "not even by scrolling"
        assert not [each for each in parts if each["width"] < each["wide"] or each["height"] < each["tall"]]
        assert not [pair for pair in combinations(parts, 2) if overlap(*pair)]


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rectangles overlap by more than a pixel."""
    return all(
        min(one[at] + one[size], other[at] + other[size]) - max(one[at], other[at]) > 1
        for at, size in (("x", "width"), ("y", "height"))
    )
