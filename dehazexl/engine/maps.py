"""Maps of the haze that a network found: its transmission, the airlight, and how much of it was removed.

They are those of the atmospheric scattering model (Koschmieder, 1924), hazy = clear t + A (1 - t), and exist for heads
that solve it for the scene. All are blended over tiles like the pixels, and are NaN where there is no data.

| map | bands | values |
|---|---|---|
| ``transmission`` | those that are dehazed | t, the share of the scene's light that passed: 1 is clear air |
| ``airlight`` | those that are dehazed | A, the color of the haze, in the values of the image; everywhere the same |
| ``removed`` | one | haze removed in percent: 100 x strength x (1 - t), the mean over the bands |

Where the head adds haze up in light rather than in the values of the file (see `dehazexl.model.haze`), t is that of
light. No transmission is below the least that the head divides by.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.engine.decode import decode_with_haze
from dehazexl.image.grid import Window
from dehazexl.image.image import Image
from dehazexl.image.windowed_array import WindowedArray
from dehazexl.io.level0 import put
from dehazexl.io.pyramid import Assembler, Levels
from dehazexl.io.raster_write import fits
from dehazexl.io.source import short_name
from dehazexl.io.write import PHOTO, check, write

if TYPE_CHECKING:
    import dask.array as da
    import zarr
    from numpy.typing import NDArray

    from dehazexl.engine.job import Job
    from dehazexl.engine.tokens import TokenStore
    from dehazexl.io.level0 import Fill, Level0
    from dehazexl.model import DehazeXL

MAPS = ("transmission", "airlight", "removed")
"""Names of the maps."""

FOLDER = "maps"
"""Name of the folder of maps in that of an unfinished output."""


def maps_of(model: DehazeXL) -> tuple[str, ...]:
    """Return the names of the maps that a network gives."""
    if not model.head.scattering:
        return ()
    return MAPS if model.head.votes else ("transmission", "removed")


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of maps, each once; raise ValueError for unknown ones."""
    found = tuple(dict.fromkeys(names))
    if unknown := [name for name in found if name not in MAPS]:
        raise ValueError(f"unknown map {', '.join(map(repr, unknown))}: choose among {', '.join(MAPS)}")
    return found


def check_maps(names: Iterable[str], model: DehazeXL) -> tuple[str, ...]:
    """Return the names of maps, each once.

    Raises
    ------
    ValueError
        If one is unknown, or the network does not give it.
    """
    found, given = check_names(names), maps_of(model)
    if missing := [name for name in found if name not in given]:
        raise ValueError(
            f"the head {model.spec.head!r} of these weights gives {', '.join(given) or 'no maps'}, not "
            f"{', '.join(missing)}: leave out the map, or take weights that give it, such as the bundled compact"
        )
    return found


def bands_of(name: str, image: Image) -> tuple[str, ...]:
    """Return the names of the bands of a map."""
    return ("removed",) if name == "removed" else tuple(image.bands[band] for band in dict.fromkeys(image.rgb))


def map_bytes(names: Iterable[str], image: Image) -> float:
    """Return the bytes of disk that maps take while they are written: as they are decoded, and as files."""
    height, width, _ = image.levels[0].shape
    return 2.0 * sum(4 * len(bands_of(name, image)) for name in names) * height * width


def map_of(name: str, job: Job, haze: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a map ``(y, x, bands)`` from the haze ``(y, x, 6)`` of `decode.decode_with_haze`."""
    values = haze[..., 3:] if name == "airlight" else haze[..., :3]
    rgb = job.image.rgb
    # A band that is shown as several colors gets their mean.
    seen = [[i for i, shown in enumerate(rgb) if shown == band] for band in dict.fromkeys(rgb)]
    found = np.stack([values[..., colors].mean(-1) for colors in seen], axis=-1)
    if name == "airlight":
        return job.scale.from_unit(found)
    if name == "removed":
        return np.asarray(np.float32(100 * job.strength) * (1 - found.mean(-1, keepdims=True)))
    return found


def decode_maps(
    job: Job,
    store: TokenStore,
    window: Window,
    names: Iterable[str] = MAPS,
    on_progress: Callable[[int], object] | None = None,
) -> tuple[NDArray[Any], dict[str, NDArray[np.float32]]]:
    """Dehaze a window of the image, and return its maps ``(y, x, bands)`` by name, too; see `decode.decode`.

    Raises
    ------
    ValueError
        See `check_maps`.
    """
    names = check_maps(names, job.model)
    pixels, haze = decode_with_haze(job, store, window, on_progress)
    return pixels, {name: map_of(name, job, haze) for name in names}


class Records(WindowedArray):
    """A window of the dehazed image and its maps as an array ``(y, x)`` of records, decoded when they are read.

    So a scheduler of dask that computes several of them decodes each block once.
    """

    def __init__(self, job: Job, store: TokenStore, window: Window, names: Sequence[str]) -> None:
        self.job, self.store, self.window, self.names = job, store, window, names
        self.shape = (window.height, window.width)
        level = job.image.levels[0]
        fields = [(name, np.float32, (len(bands_of(name, job.image)),)) for name in names]
        self.dtype = np.dtype([("image", level.dtype, (level.shape[2],)), *fields])

    def read(self, window: Window) -> NDArray[Any]:
        """Decode a window."""
        place = window.moved(self.window.y0, self.window.x0)
        pixels, maps = decode_maps(self.job, self.store, place, self.names)
        found = np.empty((window.height, window.width), self.dtype)
        found["image"] = pixels
        for name, values in maps.items():
            found[name] = values
        return found

    def __reduce__(self) -> Any:
        raise TypeError("maps are decoded in this process only: use a scheduler of threads, or `dehazexl run --maps`")


def map_path(output: Path, name: str) -> Path:
    """Return the path of a map beside an output: ``OUTPUT.NAME.tif``; of a PNG or JPEG, too, ``.zarr`` of a Zarr."""
    stem = short_name(output)
    suffix = output.name.removeprefix(stem)
    return output.with_name(f"{stem}.{name}{'.tif' if output.suffix.lower() in PHOTO else suffix}")


def like_map(image: Image, name: str, array: da.Array) -> Image:
    """Describe a map ``(y, x, bands)`` of an image, with the same georeference and container."""
    bands = bands_of(name, image)
    return Image(
        (array,),
        f"{image.name} {name}",
        bands,
        (0, 1, 2) if len(bands) > 2 else (0, 0, 0),
        nodata=float("nan"),
        scale=image.scale,
        translate=image.translate,
        units=image.units,
        geo=image.geo,
        path=image.path,
        metadata={key: image.metadata[key] for key in ("container", "compression") if key in image.metadata},
        guessed=True,  # not colors to be shown
    )


def options_for(like: Image, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `io.write.write` for a map: a compression that cannot hold it is that of the input."""
    compression = options["compression"]
    return options | {"compression": None} if compression and fits(like, compression) else options


def check_files(names: Iterable[str], output: Path, image: Image, options: dict[str, Any]) -> None:
    """Check that the maps of an output like `image` can be written beside it; `options` are those of `write`.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError
        See `io.write.check`.
    """
    import dask.array as da

    height, width = image.levels[0].shape[:2]
    for name in names:
        like = like_map(image, name, da.zeros((height, width, len(bands_of(name, image))), dtype=np.float32))
        check(like.levels[0], map_path(output, name), like, **options_for(like, options))


@dataclass(frozen=True)
class MapStore:
    """Maps of an output while it is written, on disk; it can be pickled.

    Attributes
    ----------
    folder
        Folder of the maps, in that of the unfinished output.
    names
        Names of the maps.
    size, bands
        Height and width of the output, and number of bands of each map.
    """

    folder: Path
    names: tuple[str, ...]
    size: tuple[int, int]
    bands: tuple[int, ...]

    @classmethod
    def open(cls, folder: Path, names: tuple[str, ...], image: Image) -> MapStore:
        """Open the maps of an output like `image`, or create them."""
        import zarr

        height, width = image.levels[0].shape[:2]
        bands = tuple(len(bands_of(name, image)) for name in names)
        store = cls(folder, names, (height, width), bands)
        for name, count in zip(names, bands, strict=True):
            if not (folder / name / "zarr.json").exists():
                zarr.create_array(
                    folder / name,
                    shape=(count, height, width),
                    chunks=(count, store._levels.tile, store._levels.tile),
                    dtype=np.float32,
                    fill_value=np.nan,
                )
        return store

    @property
    def _levels(self) -> Levels:
        return Levels(*self.size)

    def put(self, job: Job, window: Window, haze: NDArray[np.float32]) -> None:
        """Write the maps of a block of the output, whole chunks; they are on the disk when this returns.

        `haze` ``(y, x, 6)`` is that of `decode.decode_with_haze`.
        """
        for name in self.names:
            for tile in Assembler(self._levels).paste(window.y0, window.x0, map_of(name, job, haze)):
                put(self._array(name, "r+"), self._levels.tile, tile)

    def array(self, name: str) -> da.Array:
        """Return a map ``(y, x, bands)``, lazily."""
        import dask.array as da

        array = self._array(name, "r")
        return da.from_array(array, chunks=(-1, 2048, 2048), name=False).transpose(1, 2, 0)

    def _array(self, name: str, mode: str) -> zarr.Array[Any]:
        import zarr

        return zarr.open_array(self.folder / name, mode=mode)

    def filling(self, fill: Fill, output: Path, image: Image, options: dict[str, Any]) -> Fill:
        """Return a `Fill` that writes the finest level by another one, then the files of all maps.

        The maps are complete before the output gets its name, and those that were written before are kept.

        Parameters
        ----------
        fill
            Writes the finest level and puts the maps here.
        output, image
            The output, and the image that it is like.
        options
            Options of `io.write.write`; a compression that does not suit maps is replaced by that of the input.
        """

        def steps(level0: Level0) -> Generator[int, None, None]:
            yield from fill(level0)
            for name in self.names:
                yield from self._write(name, map_path(output, name), image, options)

        return steps

    def _write(self, name: str, path: Path, image: Image, options: dict[str, Any]) -> Generator[int, None, None]:
        """Write the file of a map, unless it is complete; yield 0 after each part."""
        begun, complete = (self.folder / f"{name}.{state}" for state in ("begun", "complete"))
        if complete.exists():
            return
        like = like_map(image, name, self.array(name))
        # What lies there after the work had begun was written by it.
        replaced = {"overwrite": options["overwrite"] or begun.exists()}
        steps = write(like.levels[0], path, like, **options_for(like, options | replaced))
        begun.touch()
        for _ in steps:
            yield 0
        complete.touch()
