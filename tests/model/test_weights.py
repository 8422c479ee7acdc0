"""Weights: saved and loaded unchanged, and every bad file refused in one line that names what is wrong."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import picture, randomised, relative
from safetensors.torch import load_file, save_file

from dehazexl import load_model
from dehazexl.model import SPECS, DehazeXL
from dehazexl.model.weights import BUNDLED, choose_device, choose_dtype, describe, find_weights, save_model

SMALL = replace(SPECS["tiny"], depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def small() -> DehazeXL:
    return randomised(SMALL)


@pytest.fixture
def saved(small: DehazeXL, tmp_path: Path) -> Path:
    return save_model(small, tmp_path / "small.safetensors")


def refused(path: Path, message: str) -> None:
    """Check that a file is refused in one line that begins with its name."""
    with pytest.raises(ValueError, match=message) as caught:
        load_model(path, "cpu")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


# ---- There and back ---------------------------------------------------------------------------------


def test_weights_come_back_as_they_were(small: DehazeXL, saved: Path) -> None:
    model = load_model(saved, "cpu", "float32")
    assert model.spec == small.spec
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    for name, value in small.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    x = torch.from_numpy(picture(100))[None]
    assert torch.equal(model(x), small(x))


def test_weights_come_back_from_half(small: DehazeXL, saved: Path, tmp_path: Path) -> None:
    path = save_model(small, tmp_path / "half.safetensors", half=True)
    assert path.stat().st_size < 0.6 * saved.stat().st_size
    model = load_model(path, "cpu", "float32")
    assert model.dtype == torch.float32
    for name, value in small.state_dict().items():
        assert torch.equal(model.state_dict()[name], value.half().float())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float16, torch.float64])
def test_weights_are_loaded_in_a_precision(saved: Path, dtype: Any) -> None:
    model = load_model(saved, "cpu", dtype)
    assert model.dtype == (getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def test_a_file_describes_itself(small: DehazeXL, tmp_path: Path) -> None:
    about: dict[str, Any] = {"licence": "BSD-3-Clause", "trained": {"psnr": 20.5, "pictures": ["a", "b"]}}
    path = save_model(small, tmp_path / "w.safetensors", **about)
    found = describe(path)
    assert found["format"] == "dehazexl"
    assert found["spec"] == json.loads(small.spec.to_json())
    assert {name: found[name] for name in about} == about
    assert describe(str(path)) == found


def test_saving_replaces_a_file_and_leaves_no_other(small: DehazeXL, saved: Path) -> None:
    before = saved.read_bytes()
    save_model(randomised(SMALL, 1), saved)
    assert saved.read_bytes() != before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_bundled_name_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no weights 'no-such': give a .safetensors or .pth file"):
        find_weights("no-such")
    (tmp_path / "compact").write_bytes(saved.read_bytes())
    assert find_weights("compact") == Path("compact")  # a file of that name comes first


@pytest.mark.parametrize("name", ["compact", "./compact", "folder"])
def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    if name == "compact" and (BUNDLED / "compact.safetensors").exists():
        assert find_weights(name) == BUNDLED / "compact.safetensors"
        return
    with pytest.raises(FileNotFoundError, match="no weights"):
        load_model(name)


def test_bundled_weights_are_small_and_say_where_they_come_from() -> None:
    path = find_weights("compact")
    assert path.stat().st_size <= 32e6
    assert {"licence", "recipe", "trained"} <= set(describe(path))
    model = load_model(device="cpu", dtype="float32")
    assert model.spec == SPECS["compact"]


# ---- Official files ---------------------------------------------------------------------------------

# Those of the official dataset.py, which its training subtracts and divides by.
MEAN = torch.tensor([0.45837133, 0.47633536, 0.44432645]).view(3, 1, 1)
STD = torch.tensor([0.16936361, 0.15927625, 0.15468806]).view(3, 1, 1)


def test_our_files_say_themselves_how_they_are_normalized(saved: Path) -> None:
    with pytest.raises(ValueError, match="says itself how it is normalized: leave normalized out"):
        load_model(saved, "cpu", "float32", normalized=True)


def test_weights_of_normalized_pictures(official: DehazeXL, official_file: Path) -> None:
    x = torch.from_numpy(picture(256))[None]
    model = load_model(official_file, "cpu", "float32", normalized=True)
    with torch.inference_mode():
        by_hand = official((x - MEAN) / STD) * STD + MEAN
        out = model(x)
        plain = official(x)
    assert relative(out, by_hand) < 1e-5
    assert relative(plain, by_hand) > 0.1


def test_normalized_weights_stay_so_when_they_are_saved(tmp_path: Path) -> None:
    model = randomised(replace(SMALL, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)))
    again = load_model(save_model(model, tmp_path / "w.safetensors"), "cpu", "float32")
    x = torch.from_numpy(picture(50))[None]
    assert torch.equal(again(x), model(x))


def test_a_state_dict_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 3)).state_dict(), path)
    refused(path, r"does not fit the network: missing .*and \d+ more; unknown 0\.bias, 0\.weight$")


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_file_does_not_run(tmp_path: Path, legacy: bool) -> None:
    torch.save({"weight": Code(tmp_path / "made")}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "w.pth", "wants to run code when loaded, which is refused")
    assert not (tmp_path / "made").exists()


def test_code_in_a_plain_pickle_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"weight": Code(tmp_path / "made")}))
    refused(tmp_path / "w.pth", "not a weights file")
    assert not (tmp_path / "made").exists()


def test_a_tar_file_is_refused_before_torch_opens_it(tmp_path: Path) -> None:
    """Releases of torch before 2.6 unpack it into a temporary folder, and run the code in it."""
    with tarfile.open(tmp_path / "w.pth", "w", format=tarfile.GNU_FORMAT) as file:
        for name in ("\udc80", "storages", "pickle"):
            file.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert (tmp_path / "w.pth").read_bytes().startswith(b"\x80")
    refused(tmp_path / "w.pth", "not a weights file; give a .safetensors")


@pytest.mark.parametrize("name", ["compact", "fast", "tiny", "tiny-field"])
def test_a_network_has_the_weights_that_its_spec_needs_at_least(name: str) -> None:
    count = sum(weights.numel() for weights in DehazeXL(SPECS[name]).parameters())
    assert SPECS[name].least_parameters <= count < 1.5 * SPECS[name].least_parameters


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_whole_module_is_refused(tmp_path: Path, small: DehazeXL, legacy: bool) -> None:
    torch.save(small, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "w.pth", "run code")


OTHERS: dict[str, Any] = {
    "list": [torch.zeros(3)],
    "tensor": torch.zeros(3),
    "numbers": {"weight": 5},
    "numbered": {1: torch.zeros(3)},
    "checkpoint": {"state_dict": {"weight": torch.zeros(3)}, "epoch": 3},
    "nothing": None,
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, kind: str, legacy: bool) -> None:
    torch.save(OTHERS[kind], tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "w.pth", "holds no state dict of tensors")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.0003, 0.003, 0.03, 0.3, 0.7, 0.99, 0.9999])
def test_a_pth_cut_short_is_refused(tmp_path: Path, share: float, legacy: bool) -> None:
    path = tmp_path / "w.pth"
    state = {f"layer.{i}.weight": torch.randn(100, 10) for i in range(5)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "not a weights file")


def some_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no weights")


NOT_WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("Not found"),
    "page": lambda path: path.write_text("<!doctype html><html>" + "x" * 5000),
    "bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "nothing": lambda path: path.write_bytes(b""),
    "zip": some_zip,
    "png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ""])
@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_what_are_no_weights_is_refused(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    NOT_WEIGHTS[kind](path)
    refused(path, "not a ")


# ---- Files of ours that are damaged -----------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.0001, 0.01, 0.5, 0.999999])
def test_a_file_cut_short_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    refused(saved, "not a safetensors file, or cut short")
    with pytest.raises(ValueError, match="cut short"):
        describe(saved)


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor]], Any], **about: str) -> None:
    """Write a file again with its entries changed."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata | about)


NAMES = ("context.input_proj.bias", "encoder.patch_embed.proj.bias")


def test_missing_entries_are_named(saved: Path) -> None:
    rewritten(saved, lambda tensors: [tensors.pop(name) for name in NAMES])
    refused(saved, f"does not fit the network: missing {', '.join(NAMES)}$")


def test_unknown_entries_are_named(saved: Path) -> None:
    rewritten(saved, lambda tensors: tensors.update({f"extra.{i}": torch.zeros(2) for i in range(5)}))
    refused(saved, r"does not fit the network: unknown extra\.0, extra\.1, extra\.2 and 2 more$")


def test_wrong_shapes_are_named(saved: Path) -> None:
    rewritten(saved, lambda tensors: tensors.update({NAMES[0]: torch.zeros(7)}))
    refused(saved, rf"{NAMES[0]} has shape \(7,\), the network needs \(64,\)")


def test_weights_that_are_no_numbers_are_refused(saved: Path) -> None:
    rewritten(saved, lambda tensors: tensors[NAMES[0]].fill_(float("nan")))
    refused(saved, f"{NAMES[0]} holds values that are no numbers")


def test_a_file_of_another_spec_is_refused(saved: Path) -> None:
    rewritten(saved, lambda tensors: None, spec=replace(SMALL, head="gain", inputs=()).to_json())
    refused(saved, r"\.weight has shape .*, the network needs")


@pytest.mark.parametrize("spec", ["", "null", "[]", '{"color": 1}', '{"head": "magic"}', '{"widths": [1, 2]}'])
def test_a_file_without_a_spec_that_holds_is_refused(saved: Path, spec: str) -> None:
    rewritten(saved, lambda tensors: None, spec=spec)
    refused(saved, "spec|head|four numbers")


@pytest.mark.parametrize("about", [None, {"format": "pt"}, {"format": "dehazexl"}])
def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path, about: dict[str, str] | None) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "w.safetensors", about)
    refused(tmp_path / "w.safetensors", "a safetensors file, but not of DehazeXL weights")


# ---- Where and how to compute -----------------------------------------------------------------------


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_no_cuda(saved: Path, device: Any) -> None:
    with pytest.raises(ValueError, match=r"device 'cuda.*' is not available on this machine; choose auto or cpu"):
        load_model(saved, device)


@pytest.mark.parametrize("device", ["meta", "xpu", "gpu", "", "cuda:x", "cuda:99"])
def test_devices_that_are_none(saved: Path, device: str) -> None:
    with pytest.raises(ValueError, match="device"):
        load_model(saved, device)


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        ("float32", "cpu", torch.float32),
        ("float16", "cpu", torch.float16),
        ("bfloat16", "cuda", torch.bfloat16),
        (torch.float64, "cpu", torch.float64),
        ("auto", "cuda", torch.float16),
        ("auto", "mps", torch.float32),
    ],
)
def test_precisions(dtype: Any, device: str, expected: torch.dtype) -> None:
    assert choose_dtype(dtype, torch.device(device)) == expected


def test_the_precision_of_a_cpu_is_one_it_is_fast_in() -> None:
    assert choose_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("dtype", ["half", "int8", "", torch.int32, torch.uint8])
def test_precisions_that_are_none(saved: Path, dtype: Any) -> None:
    with pytest.raises(ValueError, match="dtype"):
        load_model(saved, "cpu", dtype)
