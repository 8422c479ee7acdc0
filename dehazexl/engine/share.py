"""Recipes of jobs are written here; what has no file yet is written into the folder of the tokens, once."""

from __future__ import annotations

import atexit
import hashlib
import io
import pickle
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle

from dehazexl.engine.description import hash_weights
from dehazexl.engine.recipe import ImageFile, Recipe, open_cropped
from dehazexl.engine.tokens import TokenStore, ZarrTokens
from dehazexl.model.weights import save_model

if TYPE_CHECKING:
    from dehazexl.engine.job import Job
    from dehazexl.image.image import Image
    from dehazexl.model import DehazeXL

LIMIT = 32 * 2**10
"""Bytes of a pickled image that a recipe contains at most; the pixels of a larger one are written to disk."""

CHUNK = 1024
"""Side in pixels of the chunks of an image that is written to disk."""


SHARED, CLAIM = "shared", "claim"
"""Names of the folder for all this in that of the tokens, and of the claim in it."""


def share(job: Job, store: TokenStore, device: str | None = None, claimed: bool = False) -> Recipe:
    """Return the recipe of a job.

    Weights are written next to the tokens, as are pixels that have no file. Tokens in memory must be fused; they are
    written into a temporary folder, which is removed when this process ends.

    Parameters
    ----------
    job, store
        The job and its tokens.
    device
        Device to compute on, see `load_model`; None for one like that of the job's network.
    claimed
        Whether the recipe has a claim.
    """
    if not isinstance(store, ZarrTokens):
        store = _written(job, store)
    folder = store.path / SHARED
    folder.mkdir(exist_ok=True)
    return Recipe(
        key=uuid.uuid4().hex,
        image=_share_image(job.image, folder),
        rgb=job.image.rgb,
        alpha=job.image.alpha,
        nodata=job.image.nodata,
        border=job.image.border,
        weights=_share_weights(job.model, folder),
        device=device or job.model.device.type,
        dtype=str(job.model.dtype).removeprefix("torch."),
        grid=job.grid,
        value_range=job.value_range,
        strength=job.strength,
        pooled=job.pooled,
        batch=job.memory.batch,
        fuse=job.memory.fuse,
        store=store,
        claim=folder / CLAIM if claimed else None,
    )


def _written(job: Job, store: TokenStore) -> ZarrTokens:
    """Write fused tokens into a temporary folder."""
    if not store.fused():
        raise ValueError("tokens in memory can be shared once they are fused: give a folder for the tokens")
    folder = temporary_folder()
    written = ZarrTokens(folder / "tokens", job.grid, job.channels, job.token_dtype, {})
    written.put_fused(store.get_fused(job.grid.tiles))
    return written


def temporary_folder() -> Path:
    """Create a folder that is removed when this process ends: until then, other processes may need it."""
    folder = Path(tempfile.mkdtemp(prefix="dehazexl-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _share_weights(model: DehazeXL, folder: Path) -> Path:
    """Write the weights of a network into a folder that does not contain them yet."""
    digest = hashlib.sha256((model.spec.to_json() + hash_weights(model)).encode()).hexdigest()
    path = folder / f"weights-{digest[:16]}.safetensors"
    return path if path.exists() else save_model(model, path)


def _share_image(image: Image, folder: Path) -> ImageFile | bytes:
    """Return the file of an image, or the pickled image; write its pixels into a folder if it is in memory."""
    path, crops, array = image.path, image.crops, image.levels[0].name
    if path is not None and open_cropped(path, crops).levels[0].name == array:
        path = path.absolute()  # other processes may have another current folder
        return ImageFile(path, crops, open_cropped(path, crops).levels[0].name)
    return _pickled(image) or _write_pixels(image, folder / "pixels.zarr")


def _pickled(image: Image) -> bytes | None:
    """Pickle an image, such as a Zarr in an object store; return None for one that is too large, or in memory."""
    file = _Limited()
    try:
        cloudpickle.dump(image, file)
    except (_TooLarge, TypeError, pickle.PicklingError):
        return None
    return file.getvalue()


class _TooLarge(Exception):
    """Raised by `_Limited`."""


class _Limited(io.BytesIO):
    """A file of at most `LIMIT` bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > LIMIT:
            raise _TooLarge
        return super().write(data)


def _write_pixels(image: Image, path: Path) -> ImageFile:
    """Write the finest level of an image as a Zarr."""
    import dask
    import zarr

    level = image.levels[0].rechunk((CHUNK, CHUNK, -1))
    array = zarr.create_array(
        path,
        shape=level.shape,
        chunks=level.chunksize,
        dtype=level.dtype,
        dimension_names=("y", "x", "c"),
        attributes={"dehazexl": {"rgb": list(image.rgb), "alpha": image.alpha}},
        overwrite=True,
    )
    with dask.config.set(scheduler="threads"):
        level.store(array, lock=False)
    return ImageFile(path, (), open_cropped(path, ()).levels[0].name)
