"""Names of files for GDAL, which takes them in UTF-8 alone: others are reached by links."""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path


def gdal_name(name: str | Path) -> str:
    """Return the name of a data set for GDAL: of a path that is not UTF-8, that of a link to it.

    The links are removed with the process.
    """
    text = str(name)
    if _is_text(text):
        return text
    prefix, path = re.fullmatch(r"(GTIFF_DIR:\d+:)?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    return (prefix or "") + str(_linked(Path(path).absolute()))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=1)
def _links() -> Path:
    """Return the folder of the links of this process."""
    folder = Path(tempfile.mkdtemp(prefix="dehazexl-links-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _linked(path: Path) -> Path:
    """Return the path of a file by links to its folder, or to itself and the files beside it."""
    place = _links() / hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:16]
    if _is_text(path.name):
        _link(place, path.parent)
        return place / path.name
    place = place.with_name(f"{place.name}-files")
    place.mkdir(exist_ok=True)
    for each in path.parent.iterdir():
        if each.name.startswith(path.stem):
            _link(place / _as_text(each.name), each)
    return place / _as_text(path.name)


def _as_text(name: str) -> str:
    """Return a name with its bytes beyond UTF-8 in hexadecimal digits, so that two names do not become one."""
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02x}", name)


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(target)
