"""Description of a job in words: what the result depends on, to tell whether unfinished work is of the same job."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dehazexl.engine.tokens import FORMAT
from dehazexl.image.nodata import as_json
from dehazexl.io.content import INPUT, describe_files

if TYPE_CHECKING:
    from dehazexl.engine.job import Job
    from dehazexl.model import DehazeXL


def describe_tokens(job: Job) -> dict[str, Any]:
    """Describe everything that the tokens of a job depend on: image, bands, range, grid, weights, precision, code.

    Returns
    -------
    dict
        Plain values of JSON, by names for the user.

    Raises
    ------
    OSError
        If the files of the image cannot be read.
    """
    image = job.image
    height, width, bands = image.levels[0].shape
    state, _, region = image.fingerprint.partition("[")
    files = {} if image.path is None else describe_files(image.path)
    return {
        "input": image.name if image.path is None else str(image.path.resolve()),
        **{f"{INPUT}{name}": value for name, value in files.items()},
        f"{INPUT}state": state,
        "region": f"[{region}" if region else "all",
        "width": width,
        "height": height,
        "channels": bands,
        "dtype": str(image.levels[0].dtype),
        "chunks": list(image.levels[0].chunksize),
        "bands": list(image.rgb),
        "alpha": image.alpha,
        "nodata": None if image.nodata is None else as_json(image.nodata),
        "border": None if image.border is None else [image.border.value, image.border.share],
        "value range": list(job.value_range),
        "weights": hash_weights(job.model),
        "spec": asdict(job.model.spec),
        "precision": str(job.model.dtype).removeprefix("torch."),
        "tile": job.grid.side,
        "overlap": job.grid.overlap,
        **({"context": f"pooled:{job.pooled}"} if job.pooled else {}),
        "code": FORMAT,
    }


def hash_weights(model: DehazeXL) -> str:
    """Return a hash of the values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
