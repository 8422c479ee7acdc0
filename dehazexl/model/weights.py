"""Weights by name or file: bundled, ``.safetensors`` that describe themselves, official ``.pth``."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dehazexl.io.disk import atomic_write
from dehazexl.io.inflation import Members
from dehazexl.model import SPECS, DehazeXL, Spec

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "dehazexl"
MAX_PARAMETERS = 10**9
"""Twice those of ``official-large``."""
BUNDLED = Path(__file__).parents[1] / "weights"

# Where the official network names its parts differently: (its name, ours), as regular expressions.
_OFFICIAL_NAMES = (
    (r"^encoder\.model\.layers_(\d)\.", r"encoder.stages.\1."),
    (r"^encoder\.model\.", r"encoder."),
    (r"\.attn\.cpb_mlp\.", r".attn.bias.cpb_mlp."),
    (r"^bottleneck\.", r"context."),
    (r"^decoder\.layers_up\.(\d)\.upsample\.", r"decoder.expands.\1."),
    (r"^decoder\.layers_up\.", r"decoder.levels."),
    (r"\.relative_position_bias_table$", r".bias.table"),
    (r"^decoder\.up_x2\.", r"decoder.upscale."),
    (r"^decoder\.output\.", r"head.output."),
)
# Where weights written before 0.1 do.
_EARLIER_NAMES = (
    (r"^decoder\.(output|slopes)\.", r"head.\1."),
    (r"^context\.airlight\.", r"head.airlight."),
    (r"^field\.", r"head."),
)
_CONSTANTS = re.compile(r"\.(relative_position_index|attn_mask)$")

# Mean and deviation, per channel, that the official scripts' `--nor` applies.
OFFICIAL_MEAN = (0.45837133, 0.47633536, 0.44432645)
OFFICIAL_STD = (0.16936361, 0.15927625, 0.15468806)


def load_model(
    source: str | os.PathLike[str] = "compact",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    normalized: bool = False,
) -> DehazeXL:
    """Load a network with its weights.

    Parameters
    ----------
    source
        ``"compact"`` (the bundled weights), or the path of a ``.safetensors`` file written by `save_model`, or
        of an official ``.pth`` file.
    device
        ``"auto"`` (CUDA, else Apple's MPS, else the CPU) or a torch device.
    dtype
        ``"auto"`` (half on CUDA; on the CPU bfloat16 where the processor computes it, else float32) or a
        torch dtype or its name.
    normalized
        The weights of an official ``.pth`` were trained with its ``--nor`` option.

    Returns
    -------
    DehazeXL
        A ``torch.nn.Module`` in eval mode, whose weights need no gradient.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file holds no weights of this network, is damaged, or wants to run code; if ``normalized`` is given for
        a ``.safetensors``, which says that itself; or if the device or dtype is unknown or not there.
    """
    target = choose_device(device)
    path = find_weights(source)
    ours = path.suffix == ".safetensors"
    if ours and normalized:
        raise ValueError(f"{path} says itself how it is normalized: leave normalized out")
    model = _load_safetensors(path) if ours else _load_official(path, normalized)
    return model.requires_grad_(False).to(target, choose_dtype(dtype, target)).eval()


def save_model(model: DehazeXL, path: str | os.PathLike[str], *, half: bool = False, **metadata: Any) -> Path:
    """Write a weights file with its spec.

    Parameters
    ----------
    model
        The network.
    path
        Path of the file; it is written under a temporary name, then renamed.
    half
        Store the weights as float16.
    metadata
        Further metadata (license, training), as JSON values.

    Raises
    ------
    OSError
        If it cannot be written, e.g. on a full disk; an existing file is kept.
    """
    from safetensors.torch import save

    path = Path(path)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if half:
        tensors = {k: v.half() for k, v in tensors.items()}
    about = {"format": FORMAT, "spec": model.spec.to_json()} | {k: json.dumps(v) for k, v in metadata.items()}
    with atomic_write(path) as part:
        # Not save_file: it makes files that only their owner may read.
        part.write_bytes(save(tensors, about))
    return path


def describe(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata of a ``.safetensors`` file of this project: spec, training, license and others.

    Raises
    ------
    ValueError
        If the file is not of this project, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = find_weights(source)
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file, or cut short ({error}); download or copy it again") from None
    if about.get("format") != FORMAT or "spec" not in about:
        raise ValueError(f"{path}: a safetensors file, but not of DehazeXL weights (no spec in its metadata)")
    try:
        return {k: v if k == "format" else json.loads(v) for k, v in about.items()}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata is not JSON ({error}); download or copy it again") from None


def find_weights(source: str | os.PathLike[str]) -> Path:
    """Return the file of bundled weights by name, or of a path.

    Raises
    ------
    FileNotFoundError
        If it is neither.
    """
    path = Path(source).expanduser()
    bundled = BUNDLED / f"{source}.safetensors"
    if not path.is_file() and path.name == str(source) and bundled.exists():
        return bundled
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.safetensors")))
        bundle = f"one of those bundled: {names}" if names else "install again: none are bundled in this copy"
        raise FileNotFoundError(f"no weights {str(source)!r}: give a .safetensors or .pth file, or {bundle}")
    return path


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return the device to compute on; ``"auto"`` takes CUDA, else MPS, else the CPU.

    Raises
    ------
    ValueError
        If the device is unknown or not on this machine.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if str(device) == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; choose auto, cpu, cuda, cuda:N or mps") from None
    available = {"cpu": True, "cuda": cuda and (chosen.index or 0) < torch.cuda.device_count(), "mps": mps}
    if not available.get(chosen.type, False):
        raise ValueError(f"device {str(device)!r} is not available on this machine; choose auto or cpu")
    return chosen


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the precision to compute in, see `load_model`.

    Raises
    ------
    ValueError
        If it is not one of auto, float32, float16, bfloat16, or torch's float64.
    """
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if isinstance(dtype, str) and dtype in names:
        return names[dtype]
    if isinstance(dtype, torch.dtype) and dtype in {*names.values(), torch.float64}:
        return dtype
    if dtype != "auto":
        raise ValueError(f"unknown dtype {dtype!r}; choose auto, {', '.join(names)}")
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and has_bfloat16() else torch.float32


def has_bfloat16() -> bool:
    """Return whether this processor has bfloat16 instructions; without them it is far slower than float32."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private: not every torch has it
    return probe is not None and bool(probe())


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of an official state dict; its constant tables are left out."""
    renamed = {}
    for name, value in state.items():
        if _CONSTANTS.search(name):
            continue
        renamed[_renamed(name, _OFFICIAL_NAMES)] = value
    return renamed


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """Apply all replacements of a table to the name of a tensor."""
    for theirs, ours in table:
        name = re.sub(theirs, ours, name)
    return name


def _load_safetensors(path: Path) -> DehazeXL:
    """Build the network of a file and load its weights."""
    from safetensors.torch import load_file

    try:
        spec = Spec.from_json(json.dumps(describe(path)["spec"]))
        _check_size(spec, path)
        model = DehazeXL(spec)
    except (RuntimeError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{path}: its spec makes no network ({error}); download or copy it again") from error
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error
    _fill(model, {_renamed(k, _EARLIER_NAMES): v.float() for k, v in load_file(path).items()}, path)
    return model


def _check_size(spec: Spec, path: Path) -> None:
    """Check the header of a safetensors file against its spec, before memory is allocated for the network.

    Raises
    ------
    ValueError
        If the file has fewer numbers than the network, or the network is larger than any of this project.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        found = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    needed = spec.least_parameters
    if needed > MAX_PARAMETERS:
        raise ValueError(f"{path}: its network has {needed:,} weights, more than {MAX_PARAMETERS:,}; use a smaller one")
    if needed > found:
        raise ValueError(f"{path}: does not fit the network, which has {needed:,} weights or more; it holds {found:,}")


def _check_archive(path: Path) -> bool:
    """Check how a file of ``torch.save`` is packed; return whether it is a zip file, rather than a bare pickle.

    Raises
    ------
    ValueError
        If it is neither, or a zip file that could inflate to any size. torch does not compress.
    """
    with path.open("rb") as file:
        head = file.read(2)
    # torch would unpack a tar file, as it wrote them long ago, into a temporary folder.
    if not head.startswith((b"PK", b"\x80")) or (head != b"PK" and tarfile.is_tarfile(path)):
        raise ValueError(f"{path}: not a weights file; give a .safetensors or an official .pth")
    if head != b"PK":
        return False
    try:
        with Members(path) as members, zipfile.ZipFile(members) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a weights file, or cut short ({error}); copy it again") from None
    if any(part.compress_type != zipfile.ZIP_STORED or part.file_size > path.stat().st_size for part in parts):
        raise ValueError(f"{path}: not a weights file of torch, which are not compressed; unpack and save it again")
    return True


def read_pickle(path: Path, device: str | torch.device = "cpu", *, mapped: bool = False) -> Any:
    """Read a file of ``torch.save``, tensors and plain values only.

    With `mapped`, tensors are read when they are used, and the file must not change until then.

    Raises
    ------
    ValueError
        If the file is something else, is damaged, or wants to run code.
    """
    zipped = _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write; they fail, too
            return torch.load(path, map_location=device, weights_only=True, mmap=mapped and zipped)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise ValueError(
                f"{path}: wants to run code when loaded, which is refused; save its state_dict() alone"
            ) from None
        raise ValueError(f"{path}: not a weights file; give a .safetensors or an official .pth") from None
    except Exception as error:  # on a damaged file torch fails in any way: an IndexError, a UnicodeDecodeError...
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ValueError(f"{path}: not a weights file, or cut short ({reason}); copy it again") from None


def _load_official(path: Path, normalized: bool) -> DehazeXL:
    """Load a ``.pth`` of the official code, which is a state dict."""
    state = read_pickle(path, mapped=True)
    entries = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in entries):
        raise ValueError(f"{path}: holds no state dict of tensors; save the network's state_dict() alone")
    spec = SPECS["official"]
    if normalized:
        from dataclasses import replace

        spec = replace(spec, mean=OFFICIAL_MEAN, std=OFFICIAL_STD)
    model = DehazeXL(spec)
    _fill(model, from_official(state), path)
    return model


def _fill(model: DehazeXL, state: dict[str, Tensor], path: Path) -> None:
    """Load a state dict strictly, with an error that names the entries that do not fit."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    _check_fit(own, {name: tuple(value.shape) for name, value in state.items()}, path)
    for name, value in state.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} holds values that are no numbers: the training diverged; take another")
    model.load_state_dict(state)


def _check_fit(own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Compare the names and shapes of a network with those in a file."""
    missing, extra = sorted(set(own) - set(found)), sorted(set(found) - set(own))
    if missing or extra:
        raise ValueError(
            f"{path}: does not fit the network: {_some('missing', missing)}{_some('unknown', extra)}".rstrip("; ")
        )
    for name, shape in found.items():
        if shape != own[name]:
            raise ValueError(f"{path}: {name} has shape {shape}, the network needs {own[name]}")


def _some(word: str, names: list[str]) -> str:
    """Return a message with the first few of `names`."""
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{word} {', '.join(names[:3])}{more}; "
