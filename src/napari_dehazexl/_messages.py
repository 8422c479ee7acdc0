"""Messages about images that cannot be read, each shown once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from napari_dehazexl._main_thread import call_later

if TYPE_CHECKING:
    from dehazexl.image.image import Image

_reported: set[str] = set()  # images that were reported as unreadable


def report(image: Image, error: Exception | None) -> None:
    """Show once, from whatever thread, that an image cannot be read; None allows another message."""
    from napari.utils.notifications import show_error

    key = str(image.path or image.fingerprint)
    if error is None:
        _reported.discard(key)
    elif key not in _reported:
        _reported.add(key)
        call_later(show_error, f"{image.name} cannot be read: {error}")


@contextmanager
def reported() -> Iterator[None]:
    """Show an error as a notification."""
    from napari.utils.notifications import show_error

    try:
        yield
    except (ValueError, OSError) as error:
        show_error(str(error))
