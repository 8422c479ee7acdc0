"""Token stores: the tokens of all tiles between the passes, in memory or on disk.

Whatever is known of a tile is stored under a name, in arrays of one form, whose last channel is the validity: 1 with
data, 0 without, NaN where nothing is stored. Values and mark are written at once, so there is no mark without values.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.grid import SIDE, Window
from dehazexl.io.disk import disk_full_message, paths_overlap

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr
    from numpy.typing import DTypeLike, NDArray

    from dehazexl.image.grid import TileGrid

FORMAT = 3
"""Version of the tokens: raise it when code changes the tokens of the same image, weights and settings."""

TOKENS, FUSED = "tokens", "fused"
"""Names of what encoding and fusing result in; fusing uses further names on its way."""


class TokenStore(ABC):
    """Values of tiles, by name. Rows and columns are in tiles; a tile has n tokens (64, or fewer) of c channels.

    Parameters
    ----------
    grid
        Tiles of the image.
    channels, dtype
        Channels of a token, and their precision.
    """

    def __init__(self, grid: TileGrid, channels: int, dtype: DTypeLike) -> None:
        self.grid, self.channels, self.dtype = grid, channels, np.dtype(dtype)
        self._complete = False

    @abstractmethod
    def read(self, tiles: Window, name: str) -> NDArray[Any]:
        """Return values and validity ``(rows, cols, n, c + 1)``, NaN where they are not stored, or damaged."""

    @abstractmethod
    def write(self, tiles: Window, values: NDArray[Any], name: str) -> None:
        """Store values and validity ``(rows, cols, n, c + 1)`` of a rectangle of tiles."""

    @abstractmethod
    def drop(self, *names: str) -> None:
        """Remove values that are not needed anymore."""

    @abstractmethod
    def finish(self) -> None:
        """Remove what is not needed after fusing."""

    def put(self, tiles: Window, values: NDArray[Any], valid: NDArray[Any], name: str = TOKENS) -> None:
        """Store values ``(rows, cols, n, c)`` of a rectangle of tiles and their validity ``(rows, cols, n)``."""
        self.write(tiles, np.concatenate([values, valid[..., None]], axis=-1, dtype=values.dtype), name)

    def get(self, tiles: Window, name: str = TOKENS) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return values ``(rows, cols, n, c)`` of a rectangle of tiles and their validity ``(rows, cols, n)``.

        Raises
        ------
        OSError
            If some of them are lost or damaged.
        """
        both = self.read(tiles, name)
        lost = ~stored(both)
        if lost.any():
            row, col = np.argwhere(lost)[0] + (tiles.y0, tiles.x0)
            raise OSError(
                f"{self}: {name} of {lost.sum()} tiles are lost or damaged, the first in row {row}, column {col}: "
                "run it again, and they are computed again"
            )
        return both[..., :-1], both[..., -1] > 0

    def done(self, tiles: Window, name: str = TOKENS) -> bool:
        """Return whether values are stored for all tiles of a rectangle, and undamaged."""
        return bool(stored(self.read(tiles, name)).all())

    def begun(self) -> bool:
        """Return whether tokens of any tile are stored."""
        return any(stored(self.read(block, TOKENS)).any() for block in self.grid.blocks(self.grid.block))

    def complete(self, name: str) -> bool:
        """Return whether values are stored for all tiles, and undamaged."""
        return all(self.done(block, name) for block in self.grid.blocks(self.grid.block))

    def fused(self) -> bool:
        """Return whether all fused tokens are stored; they are checked once."""
        self._complete = self._complete or self.complete(FUSED)
        return self._complete

    def put_fused(self, tokens: NDArray[Any]) -> None:
        """Store all fused tokens ``(rows, cols, 64, c)``."""
        self.put(self.grid.tiles, tokens, np.ones(tokens.shape[:3], bool), FUSED)

    def get_fused(self, tiles: Window) -> NDArray[Any]:
        """Return the fused tokens ``(rows, cols, 64, c)`` of a rectangle of tiles."""
        return self.get(tiles, FUSED)[0]

    def nothing(self, tiles: Window) -> NDArray[Any]:
        """Return tokens and validity ``(rows, cols, 64, channels + 1)`` of tiles for which nothing is stored."""
        return np.full((tiles.height, tiles.width, SIDE**2, self.channels + 1), np.nan, self.dtype)


def stored(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for which tiles ``(rows, cols)`` there are values and validity ``(rows, cols, n, c + 1)``."""
    return ~np.isnan(values[:, :, 0, -1])


class MemoryTokens(TokenStore):
    """Values in memory, in rows of tiles."""

    def __init__(self, grid: TileGrid, channels: int, dtype: DTypeLike) -> None:
        super().__init__(grid, channels, dtype)
        self._rows: dict[str, dict[int, NDArray[Any]]] = {}

    def __str__(self) -> str:
        return "memory"

    def read(self, tiles: Window, name: str) -> NDArray[Any]:
        """See `TokenStore.read`."""
        rows = self._rows.get(name, {})
        if not rows:
            return self.nothing(tiles)
        like = next(iter(rows.values()))
        out = np.full((tiles.height, tiles.width, *like.shape[1:]), np.nan, like.dtype)
        for row in range(tiles.y0, tiles.y1):
            if row in rows:
                out[row - tiles.y0] = rows[row][tiles.x0 : tiles.x1]
        return out

    def write(self, tiles: Window, values: NDArray[Any], name: str) -> None:
        """See `TokenStore.write`."""
        rows = self._rows.setdefault(name, {})
        for row, own in zip(range(tiles.y0, tiles.y1), values, strict=True):
            if row not in rows:
                rows[row] = np.full((self.grid.cols, *own.shape[1:]), np.nan, own.dtype)
            rows[row][tiles.x0 : tiles.x1] = own

    def drop(self, *names: str) -> None:
        """See `TokenStore.drop`."""
        for name in names:
            self._rows.pop(name, None)

    def done(self, tiles: Window, name: str = TOKENS) -> bool:
        """See `TokenStore.done`. Tokens are not kept after fusing."""
        return super().done(tiles, FUSED if name == TOKENS and self._complete else name)

    def finish(self) -> None:
        """See `TokenStore.finish`."""
        self.drop(*[name for name in self._rows if name != FUSED])


class ZarrTokens(TokenStore):
    """Values in a Zarr group on disk, from which an interrupted run is resumed.

    A chunk holds the tiles of a row of a block. It is replaced at once, and has a checksum: one that is lost, cut short
    or changed is known to be, and computed again.

    Parameters
    ----------
    path
        A folder of tokens, or one that is new or empty.
    grid, channels, dtype
        See `TokenStore`.
    description
        Everything the tokens depend on, by names for the user; plain values of JSON.

    Raises
    ------
    ValueError
        If the folder contains tokens with another description, or anything else.
    OSError
        If the disk is full, here or later; tokens that were stored before are kept.
    """

    def __init__(
        self, path: str | Path, grid: TileGrid, channels: int, dtype: DTypeLike, description: dict[str, Any]
    ) -> None:
        super().__init__(grid, channels, dtype)
        self.path = Path(path)
        with self._disk_full_message():
            self._group = _open(self.path, description)
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def __str__(self) -> str:
        return str(self.path)

    def read(self, tiles: Window, name: str) -> NDArray[Any]:
        """See `TokenStore.read`."""
        array = self._find(name)
        if array is None:
            return self.nothing(tiles)
        try:
            return np.asarray(array[tiles.y0 : tiles.y1, tiles.x0 : tiles.x1])
        except ValueError:  # a checksum does not match
            values = np.full((tiles.height, tiles.width, *array.shape[2:]), np.nan, array.dtype)
            for chunk in self._chunks(tiles):
                rows, cols = chunk.to_slices(tiles)
                with suppress(ValueError):
                    values[rows, cols] = array[chunk.y0 : chunk.y1, chunk.x0 : chunk.x1]
            return values

    def write(self, tiles: Window, values: NDArray[Any], name: str) -> None:
        """See `TokenStore.write`."""
        with self._disk_full_message():
            array = self._find(name) or self._create(name, values)
            whole = self._whole_chunks(tiles)
            if whole != tiles:
                inside = tiles.to_slices(whole)
                around = self.read(whole, name)
                around[inside] = values
                values = around
            array[whole.y0 : whole.y1, whole.x0 : whole.x1] = values

    def drop(self, *names: str) -> None:
        """See `TokenStore.drop`."""
        for name in names:
            self._arrays.pop(name, None)
            with suppress(KeyError):
                del self._group[name]

    def finish(self) -> None:
        """See `TokenStore.finish`. Tokens are kept: should fused ones be lost, they are fused again."""
        self.drop(*[name for name in self._group if name not in (TOKENS, FUSED)])

    def _find(self, name: str) -> zarr.Array[Any] | None:
        """Return an array, or None if there is none that can be read."""
        import zarr

        if name not in self._arrays:
            try:
                found = self._group[name]
            except (KeyError, ValueError):  # metadata that were cut short are no JSON, or lack a key
                return None
            assert isinstance(found, zarr.Array)
            self._arrays[name] = found
        return self._arrays[name]

    def _create(self, name: str, values: NDArray[Any]) -> zarr.Array[Any]:
        """Create an array for values like these; chunks that lie there already are kept."""
        from zarr.codecs import Crc32cCodec, ZstdCodec

        self._arrays[name] = self._group.create_array(
            name,
            shape=(self.grid.rows, self.grid.cols, *values.shape[2:]),
            chunks=(1, self.grid.block, *values.shape[2:]),
            dtype=values.dtype,
            fill_value=float("nan"),
            compressors=[ZstdCodec(level=0), Crc32cCodec()],
        )
        return self._arrays[name]

    def _whole_chunks(self, tiles: Window) -> Window:
        side = self.grid.block
        return Window(tiles.y0, tiles.y1, tiles.x0 // side * side, min(self.grid.cols, -(-tiles.x1 // side) * side))

    def _chunks(self, tiles: Window) -> Iterator[Window]:
        """Yield the part of each chunk that lies in a rectangle of tiles."""
        for row in range(tiles.y0, tiles.y1):
            for col in range(tiles.x0 // self.grid.block * self.grid.block, tiles.x1, self.grid.block):
                yield Window(row, row + 1, col, col + self.grid.block).intersection(tiles)

    def _disk_full_message(self) -> Any:
        return disk_full_message(
            f"writing tokens into {self.path}", "those that are done are kept, so make room and run it again"
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


def _open(path: Path, description: dict[str, Any]) -> zarr.Group:
    """Open the group of these tokens, or create it; leave any other folder unchanged."""
    import zarr

    if _is_empty(path):
        return zarr.create_group(path, attributes={"job": description}, overwrite=True)
    try:
        group = zarr.open_group(path, mode="r+")
    except (OSError, ValueError):
        raise ValueError(
            f"{path} is not a folder of tokens: give another folder, or one that is new or empty"
        ) from None
    before = group.attrs.get("job")
    if not isinstance(before, dict):
        raise ValueError(
            f"{path} contains something else, or tokens of another version of dehazexl: "
            "give another folder, or delete it"
        )
    now = json.loads(json.dumps(description))
    if differ := [key for key in {**now, **before} if repr(now.get(key)) != repr(before.get(key))]:
        raise ValueError(
            f"{path} contains tokens of another image, other weights or settings, or of another version of dehazexl "
            f"(these differ: {', '.join(differ)}): give another folder, or delete it"
        )
    return group


def _is_empty(path: Path) -> bool:
    """Return whether a folder is new, empty, or contains only a group without a description, killed when it began."""
    if not path.is_dir():
        return not path.exists()
    if not all(each.name.startswith("zarr.") for each in path.iterdir()):
        return False
    try:
        found = json.loads((path / "zarr.json").read_text())
    except (OSError, ValueError):
        return True
    return isinstance(found, dict) and found.get("node_type") != "array" and not found.get("attributes")
