"""Run the notebooks and save them with their outputs.

    python docs/run_notebooks.py [docs/notebooks/zarr.ipynb]

All of them, or those that are named. Images are kept as JPEG alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    """Run them."""
    named = [Path(name) for name in sys.argv[1:]]
    for path in named or sorted((Path(__file__).parent / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=600).execute()
        for cell in notebook.cells:
            cell.metadata = {}
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if "image/jpeg" in data:
                    data.pop("image/png", None)
        notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec",)}
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
