"""Images at an address: TIFF by range requests of GDAL, Zarr by the stores of zarr."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dehazexl.io import source as settings
from dehazexl.io.raster_read import open_raster
from dehazexl.io.source import reason_of, short_name
from dehazexl.io.zarr_read import open_zarr

if TYPE_CHECKING:
    from dehazexl.image.image import Image


def remote_address(source: str | Path) -> str | None:
    """Return the address in a path, whose slashes `Path` has merged; None for a local path."""
    found = re.match(r"(https?|s3):/+(.+)", str(source))
    return f"{found[1]}://{found[2]}" if found else None


def open_remote(url: str) -> Image:
    """Open a raster or a Zarr at an address without reading its pixels.

    Raises
    ------
    OSError
        If the server does not answer, or has no such image.
    ValueError
        If it is not an image.
    """
    if ".zarr" in url and not url.endswith(".zip"):
        return _open_zarr(url)
    name = f"/vsicurl/{url}" if url.startswith("http") else f"/vsis3/{url.removeprefix('s3://')}"
    return open_raster(Path(url), name)


def _open_zarr(url: str) -> Image:
    """Open a Zarr at an address."""
    import zarr

    try:
        # Any other error than that a chunk is missing is one: zarr would take some for it.
        store = zarr.storage.FsspecStore.from_url(
            url, storage_options=_options(url), read_only=True, allowed_exceptions=(FileNotFoundError,)
        )
        image = open_zarr(zarr.open(store, mode="r"), where=url)
        return replace(image, name=short_name(Path(url)))
    except ImportError as error:
        raise ValueError(f"{url} needs another package ({error}): pip install 'napari-dehazexl[remote]'") from error
    except Exception as error:  # each store has errors of its own
        if isinstance(error, MemoryError) or str(error).startswith(url):
            raise
        raise OSError(f"{url} cannot be opened ({reason_of(error)}): check the address and the connection") from error


def _options(url: str) -> dict[str, Any]:
    """Return options of the store: a server that stalls must not be waited for."""
    if not url.startswith("http"):
        return {}
    import aiohttp

    return {
        "client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=settings.TIMEOUT)}
    }
