"""Imports point down only, as `pyproject.toml` says."""

from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_imports_point_down(monkeypatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    assert lint_imports(str(root / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS
