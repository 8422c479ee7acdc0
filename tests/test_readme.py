"""The README's code: each Python block and each ``dehazexl`` line runs, on small images of the names it uses.

Lines of other programs are named in a comment before their block: ``<!-- not run: pip, torchrun -->``.
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from make_pictures import smooth, write_gdal
from markdown_it import MarkdownIt

import dehazexl
from dehazexl.cli.app import main
from dehazexl.synthesis.sample import add_haze, clear_sample

README = Path(__file__).parents[1] / "README.md"
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
FEW = ["--steps", "2", "--no-curves"]
"""Options that make an explanation short."""
SHORT = ["--spec", "tiny", "--tiles", "1", "--every", "1", "--device", "cpu"]
"""Options that make a training short; a run that is resumed keeps its own."""


def blocks(language: str) -> list[Any]:
    """Return the README's blocks in a language, as their text and the programs that are not run."""
    tokens = MarkdownIt().parse(README.read_text(encoding="utf-8"))
    found = []
    for before, token in pairwise(tokens):
        if token.type == "fence" and token.info == language:
            marked = NOT_RUN.match(before.content)
            skipped = set(marked[1].split(", ")) if marked else set()
            assert token.map is not None
            found.append(pytest.param(token.content, skipped, id=f"line {token.map[0] + 1}"))
    return found


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter a folder with the images that the README names."""
    monkeypatch.chdir(tmp_path)
    clear = clear_sample(540, 600)
    hazy = add_haze(clear)
    write_gdal(Path("hazy.tif"), hazy, colors="red green blue")
    dehazexl.to_zarr(hazy, "hazy.ome.zarr")
    write_gdal(Path("scene.tif"), smooth(4, "uint16", 1200, 600))
    folders = ("photos", "photographs", "others", "clear-images", "images/train", "images/valid")
    for folder in (
        *folders,
        *(f"8KDehaze/{name}" for name in ("clear", "cloud_L1", "cloud_L2", "cloud_L3", "cloud_L4")),
    ):
        Path(folder).mkdir(parents=True)
        for number in range(2):
            part = (clear if "clear" in folder else hazy)[:280, 200 * number : 200 * number + 300]
            PIL.Image.fromarray(part).save(f"{folder}/{number}.png")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("code", "skipped"), blocks("sh"))
def test_commands(code: str, skipped: set[str], inputs: None, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [words for line in code.splitlines() if (words := shlex.split(line, comments=True))]
    assert {program for program, *_ in lines} - {"dehazexl"} == skipped, "what is not run is marked"
    for program, *words in lines:
        if program != "dehazexl":
            continue
        if words[0] == "train":
            words += ["--steps", "2"] if "--resume" in words else [*SHORT, "--steps", "1"]
        words += FEW if words[0] == "explain" else []
        assert main(words) == 0, f"dehazexl {shlex.join(words)}\n{capsys.readouterr().err}"


@pytest.mark.parametrize(("code", "skipped"), blocks("python"))
def test_python(code: str, skipped: set[str], inputs: None, make_napari_viewer_proxy: Any) -> None:
    assert not skipped
    names: dict[str, Any] = {}
    if "viewer" in code:
        names["viewer"] = make_napari_viewer_proxy()
        names["viewer"].open("hazy.tif", plugin="napari-dehazexl")
    exec(compile(code, "README.md", "exec"), names)
    if "viewer" in code:
        dehazed = names["pixels"]
    else:
        dehazed = np.asarray(dehazexl.open_image("clear.tif").levels[0])
        np.testing.assert_array_equal(names["preview"], dehazed)
    hazy = np.asarray(dehazexl.open_image("hazy.tif").levels[0])[: len(dehazed), : dehazed.shape[1]]
    assert np.abs(dehazed.astype(int) - hazy).mean() > 5, "the haze is still there"


def test_every_block_runs_or_is_a_language_of_its_own() -> None:
    fences = [token for token in MarkdownIt().parse(README.read_text(encoding="utf-8")) if token.type == "fence"]
    assert len(fences) == len(blocks("sh")) + len(blocks("python")) > 5
