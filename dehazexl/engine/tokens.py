"""Token stores: the tokens of all tiles between the passes, in memory or on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dehazexl.image.grid import SIDE
from dehazexl.io.disk import disk_full_message, paths_overlap

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import zarr
    from numpy.typing import DTypeLike, NDArray

    from dehazexl.image.grid import TileGrid, Window

FORMAT = 2
"""Version of the tokens: raise it when code changes the tokens of the same image, weights and settings."""


class TokenStore(Protocol):
    """Interface of token stores. Shapes: rows and columns in tiles, 64 tokens per tile, c channels."""

    def done(self, block: Window) -> bool:
        """Return whether the tokens of a block of `TileGrid.blocks` are stored."""

    def put(self, block: Window, tokens: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Store the tokens ``(rows, cols, 64, c)`` of a block and their validity ``(rows, cols, 64)``."""

    def tokens(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return all tokens ``(rows, cols, 64, c)``, which the caller may overwrite, and their validity.

        A store that returns its only copy counts no block as done until `put_fused`.
        """

    def fused(self) -> bool:
        """Return whether fused tokens are stored."""

    def put_fused(self, tokens: NDArray[Any]) -> None:
        """Store all fused tokens ``(rows, cols, 64, c)``."""

    def get_fused(self, tiles: Window) -> NDArray[Any]:
        """Return the fused tokens ``(rows, cols, 64, c)`` of a rectangle of tiles."""


class MemoryTokens:
    """Tokens in memory. Fusing overwrites the tokens, so there is only one array."""

    def __init__(self, grid: TileGrid, channels: int, dtype: DTypeLike) -> None:
        self._array = np.zeros((grid.rows, grid.cols, SIDE**2, channels), dtype)
        self._valid = np.zeros((grid.rows, grid.cols, SIDE**2), bool)
        self._done: set[Window] = set()
        self._fused = False

    def done(self, block: Window) -> bool:
        """See `TokenStore.done`."""
        return self._fused or block in self._done

    def put(self, block: Window, tokens: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """See `TokenStore.put`."""
        rows, cols = slice(block.y0, block.y1), slice(block.x0, block.x1)
        self._array[rows, cols] = tokens
        self._valid[rows, cols] = valid
        self._done.add(block)

    def tokens(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `TokenStore.tokens`."""
        self._done.clear()
        return self._array, self._valid

    def fused(self) -> bool:
        """See `TokenStore.fused`."""
        return self._fused

    def put_fused(self, tokens: NDArray[Any]) -> None:
        """See `TokenStore.put_fused`."""
        self._array, self._fused = tokens, True

    def get_fused(self, tiles: Window) -> NDArray[Any]:
        """See `TokenStore.get_fused`."""
        return self._array[tiles.y0 : tiles.y1, tiles.x0 : tiles.x1]


class ZarrTokens:
    """Tokens in a Zarr group on disk, from which an interrupted run is resumed.

    A block is done when it is marked in the array ``done``, after its tokens are written. The file of a chunk alone is
    no proof: chunks that equal the fill value have none.

    Raises
    ------
    ValueError
        If the folder contains the tokens of another image, of other weights or other settings, or anything else.
    OSError
        If the disk is full, here or later; tokens that were stored before are kept.
    """

    def __init__(self, path: str | Path, grid: TileGrid, channels: int, dtype: DTypeLike, fingerprint: str) -> None:
        self._side = grid.block
        blocks = (-(-grid.rows // self._side), -(-grid.cols // self._side))
        shape = (grid.rows, grid.cols, SIDE**2, channels)
        chunks = (self._side, self._side, SIDE**2, channels)
        self._path = Path(path)
        with self._disk_full_message():
            group = _open(self._path, fingerprint)
            self._array = group.require_array("tokens", shape=shape, chunks=chunks, dtype=dtype)
            self._valid = group.require_array("valid", shape=shape[:3], chunks=chunks[:3], dtype=bool)
            self._done = group.require_array("done", shape=blocks, chunks=(1, 1), dtype=bool)
            self._fused = group.require_array("fused", shape=shape, chunks=chunks, dtype=dtype)
        self._group = group

    @property
    def path(self) -> Path:
        """Path of the folder."""
        return self._path

    def done(self, block: Window) -> bool:
        """See `TokenStore.done`."""
        return bool(self._done[block.y0 // self._side, block.x0 // self._side])

    def put(self, block: Window, tokens: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """See `TokenStore.put`."""
        rows, cols = slice(block.y0, block.y1), slice(block.x0, block.x1)
        with self._disk_full_message():
            self._array[rows, cols] = tokens
            self._valid[rows, cols] = valid
            self._done[block.y0 // self._side, block.x0 // self._side] = True

    def tokens(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `TokenStore.tokens`."""
        return np.asarray(self._array[:]), np.asarray(self._valid[:])

    def get(self, tiles: Window) -> NDArray[Any]:
        """Return the tokens ``(rows, cols, 64, c)`` of a rectangle of tiles, as they were encoded."""
        return np.asarray(self._array[tiles.y0 : tiles.y1, tiles.x0 : tiles.x1])

    def get_valid(self, tiles: Window) -> NDArray[np.bool_]:
        """Return the validity of tokens ``(rows, cols, 64)`` of a rectangle of tiles."""
        return np.asarray(self._valid[tiles.y0 : tiles.y1, tiles.x0 : tiles.x1])

    def fused(self) -> bool:
        """See `TokenStore.fused`."""
        return bool(self._group.attrs.get("fused", False))

    def put_fused(self, tokens: NDArray[Any]) -> None:
        """See `TokenStore.put_fused`."""
        self.put_fused_rows(0, tokens)
        self.mark_fused()

    def put_fused_rows(self, row: int, tokens: NDArray[Any]) -> None:
        """Store the fused tokens ``(rows, cols, 64, c)`` of some rows of tiles; `mark_fused` comes after the last."""
        with self._disk_full_message():
            self._fused[row : row + len(tokens)] = tokens

    def mark_fused(self) -> None:
        """Record that all fused tokens are stored."""
        with self._disk_full_message():
            self._group.attrs["fused"] = True

    def get_fused(self, tiles: Window) -> NDArray[Any]:
        """See `TokenStore.get_fused`."""
        return np.asarray(self._fused[tiles.y0 : tiles.y1, tiles.x0 : tiles.x1])

    def _disk_full_message(self) -> AbstractContextManager[None]:
        return disk_full_message(
            f"writing tokens into {self._path}", "those that are done are kept, so make room and run it again"
        )


def check_apart(folder: Path, *places: Path) -> None:
    """Refuse a folder for tokens that overlaps other paths.

    Raises
    ------
    ValueError
        Naming the folder and the place.
    """
    for place in places:
        if paths_overlap(folder, place):
            raise ValueError(
                f"the folder for tokens {folder} is {place}, or in it, or around it: choose another folder"
            )


def _open(path: Path, fingerprint: str) -> zarr.Group:
    """Open the group of these tokens, or create it; leave any other folder unchanged."""
    import zarr

    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return zarr.create_group(path, attributes={"fingerprint": fingerprint})
    try:
        group = zarr.open_group(path, mode="r+")
    except (OSError, ValueError):
        raise ValueError(
            f"{path} is not a folder of tokens: give another folder, or one that is new or empty"
        ) from None
    if group.attrs.get("fingerprint") != fingerprint:
        raise ValueError(
            f"{path} contains tokens of another image, other weights or settings, or of another version of dehazexl: "
            "give another folder, or delete it"
        )
    return group
