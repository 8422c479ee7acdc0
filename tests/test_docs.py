"""The code of README, documentation and notebooks: each page is followed from top to bottom, in one folder.

Every ``dehazexl`` line and every Python block runs, on small images of the names that the pages use. Lines of other
programs are named in a comment before their block: ``<!-- not run: pip, torchrun -->``. A block that cannot run has a
comment with the reason, ``<!-- parsed only: the scheduler is that of a real cluster -->``; its commands must have their
options, its Python must compile.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from make_pictures import smooth, write_gdal
from markdown_it import MarkdownIt
from typer.main import get_command

import dehazexl
from dehazexl.cli.app import app, main
from dehazexl.synthesis.sample import add_haze, clear_sample

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
MARK = re.compile(r"<!-- (not run|parsed only): (.+) -->")
LANGUAGES = ("sh", "python", "text")
SHORT = {
    "demo": ["--size", "520x400"],
    "explain": ["--steps", "2", "--no-curves"],
    "train": ["--spec", "tiny", "--tiles", "1", "--every", "1", "--device", "cpu", "--steps", "1"],
}
"""Options that make commands short."""


@dataclass
class Block:
    """A block of code, its first line in the page, the programs that are not run, and why it is parsed only."""

    language: str
    code: str
    line: int
    not_run: frozenset[str] = frozenset()
    reason: str = ""


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, or the code cells of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return [Block("python", "".join(cell["source"]), 0) for cell in cells]
    found = []
    for before, token in pairwise([*MarkdownIt().parse("\n" + text)]):
        if token.type == "fence":
            assert token.map is not None
            kind, what = marked.groups() if (marked := MARK.match(before.content)) else ("", "")
            programs = frozenset(what.split(", ")) if kind == "not run" else frozenset()
            reason = what if kind == "parsed only" else ""
            found.append(Block(token.info, token.content, token.map[0], programs, reason))
    return found


def with_code(pages: list[Path]) -> list[Any]:
    """Return the pages that contain code to follow."""
    named = [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in pages if blocks(page)]
    assert named
    return named


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with the images that the pages name."""
    folder = tmp_path_factory.mktemp("images")
    clear = clear_sample(300, 520)
    hazy = add_haze(clear)
    write_gdal(folder / "hazy.tif", hazy, colors="red green blue")
    dehazexl.to_zarr(hazy, folder / "hazy.ome.zarr")
    write_gdal(folder / "scene.tif", smooth(4, "uint16", 520, 300))
    folders = ("photos", "photographs", "others", "clear-images", "images/train", "images/valid")
    levels = ("clear", "cloud_L1", "cloud_L2", "cloud_L3", "cloud_L4")
    for name in (*folders, *(f"8KDehaze/{level}" for level in levels)):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            part = (clear if "clear" in name else hazy)[:280, 220 * number : 220 * number + 300]
            PIL.Image.fromarray(part).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def inputs(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enter a copy of that folder."""
    shutil.copytree(images, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", with_code([*PAGES, *NOTEBOOKS]))
def test_followed_from_top_to_bottom(
    page: Path, inputs: None, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    if any("viewer" in block.code for block in blocks(page) if block.language == "python"):
        names["viewer"] = request.getfixturevalue("make_napari_viewer_proxy")()
        names["viewer"].open("hazy.tif", plugin="napari-dehazexl")
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.language == "sh":
            follow(block, where, capsys)
        elif block.language == "python":
            code = compile("\n" * block.line + block.code, str(page), "exec")
            if not block.reason:
                exec(code, names)
    if "viewer" in names or "preview" in names:
        check_dehazed(names)


def follow(block: Block, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the lines of a shell block, or parse them."""
    lines = [words for line in joined(block.code) if (words := shlex.split(line, comments=True))]
    others = {program for program, *_ in lines} - {"dehazexl"}
    assert block.reason or others == block.not_run, f"{where}: what is not run is marked"
    for words in (words for program, *words in lines if program == "dehazexl"):
        if block.reason:
            command, *options = words
            get_command(app).commands[command].make_context(command, options)  # type: ignore[attr-defined]
            continue
        short = ["--steps", "2"] if "--resume" in words else SHORT.get(words[0], [])
        if "--init" in words:  # which brings its own spec
            short = short[2:]
        assert main([*words, *short]) == 0, f"{where}: dehazexl {shlex.join(words)}\n{capsys.readouterr().err}"


def joined(code: str) -> Iterator[str]:
    r"""Yield the lines of a shell block; those that end in \ go on."""
    yield from code.replace("\\\n", " ").splitlines()


def check_dehazed(names: dict[str, Any]) -> None:
    """Check that the pixels of a page are those of its output, without haze."""
    if "viewer" in names:
        dehazed = names["pixels"]
    else:
        written = [path for path in ("clear.tif", "clear.ome.zarr") if Path(path).exists()]
        assert written
        for path in written:
            dehazed = np.asarray(dehazexl.open_image(path).levels[0])
            np.testing.assert_array_equal(names["preview"], dehazed)
    image = names["image"] if "image" in names else dehazexl.open_image("hazy.tif")
    hazy = np.asarray(image.levels[0])[: len(dehazed), : dehazed.shape[1]]
    assert np.abs(dehazed.astype(int) - hazy).mean() > 5, "the haze is still there"


@pytest.mark.parametrize("page", with_code(PAGES))
def test_every_block_is_in_a_language_that_is_followed(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= set(LANGUAGES)
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    indented = [token.content for token in tokens if token.type == "code_block"]
    code = [text for text in indented if re.search(r"^\s*(dehazexl|pip|napari|python|import|from) ", text, re.M)]
    assert not code, "indented blocks are for formulas, code in them would not be run: use fences"


def test_the_readme_has_commands_and_python() -> None:
    languages = [block.language for block in blocks(README)]
    assert languages.count("sh") > 1
    assert languages.count("python") == 1


def test_links_of_the_readme_exist_and_are_absolute_in_the_package() -> None:
    text = README.read_text(encoding="utf-8")
    relative = re.compile(r"\]\((?!https://)([^)#]*)")
    assert all((ROOT / link).exists() for link in relative.findall(text))
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["metadata"]["hooks"]
    for each in hooks["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    assert not relative.findall(text)
    assert "](https://raw.githubusercontent.com/napari-dehazexl/napari-dehazexl/main/docs/napari.jpg)" in text


@pytest.mark.parametrize("command", ["explode", "run --overlaps 3 a b"])
def test_what_is_parsed_only_must_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    block = Block("sh", f"dehazexl {command}", 1, reason="there is no such option")
    with pytest.raises(Exception, match=r"explode|overlaps"):
        follow(block, "here", capsys)


def test_other_programs_must_be_marked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="marked"):
        follow(Block("sh", "rm hazy.tif", 1), "here", capsys)
