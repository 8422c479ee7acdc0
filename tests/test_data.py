"""Data sets: each layout of folders, pairs that stay pairs, large pictures by crop."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
import zarr

from dehazexl import data
from dehazexl.data import Dataset, open_datasets, open_rgb
from dehazexl.procedural import KINDS, procedural


def photo(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    return procedural(height, width, seed)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, pixels)
    else:
        path.write_bytes(getattr(imagecodecs, f"{path.suffix[1:].replace('jpg', 'jpeg')}_encode")(pixels))


def pairs(folder: Path, count: int, hazy: tuple[str, ...] = ("hazy",), suffix: str = ".png") -> Path:
    for i in range(count):
        write(folder / "clear" / f"{i:02}.png", photo(i))
        for level, name in enumerate(hazy):
            write(folder / name / f"{i:02}{suffix}", photo(i) // 2 + 30 * level)
    return folder


def test_clear_pictures_every_tenth_held_out(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"{i:02}.png", photo(i))
    training, held = open_datasets([tmp_path])
    assert held.names == ["00", "10"]
    assert len(training) == 10
    assert training.hazy is None
    assert np.array_equal(training.clear[0][:, :], photo(1))


def test_pairs_by_name_whatever_the_suffix(tmp_path: Path) -> None:
    training, held = open_datasets([pairs(tmp_path, 4, suffix=".jpg")], ["02.png"])
    assert held.names == ["hazy/02"]
    assert training.names == ["hazy/00", "hazy/01", "hazy/03"]
    assert training.hazy is not None
    assert np.abs(training.hazy[1][:, :].astype(int) - photo(1) // 2).mean() < 20  # JPEG of hard edges


def test_8kdehaze_as_it_is_laid_out(tmp_path: Path) -> None:
    training, held = open_datasets([pairs(tmp_path, 20, data.LEVELS)])
    assert (len(training), len(held)) == (17 * 4, 3 * 4)
    assert {name[-2:] for name in training.names}.isdisjoint(name[-2:] for name in held.names)
    again, _ = open_datasets([tmp_path])
    assert again.names == training.names
    assert training.hazy is not None
    for clear, hazy, name in zip(training.clear, training.hazy, training.names, strict=True):
        level = int(name[len("cloud_L")]) - 1
        assert np.array_equal(hazy[:, :], clear[:, :] // 2 + 30 * level)


def test_crops_of_a_pair_show_the_same_place() -> None:
    picture = photo(3, 300, 200)
    pair = Dataset([picture], [picture // 2], ["one"])
    for seed in range(8):
        clear, hazy = pair.crop(64, 128, np.random.default_rng(seed))
        assert clear.shape == (1, 3, 64, 128)
        assert hazy is not None
        assert (clear / 2 - hazy).abs().max() < 2 / 255


@pytest.mark.parametrize("name", ["large.tif", "large.zarr"])
def test_large_pictures_are_read_by_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pixels, path = photo(5, 1536, 1536), tmp_path / name
    if name.endswith("tif"):
        tifffile.imwrite(path, pixels, tile=(512, 512), photometric="rgb", compression="zlib")
        with tifffile.TiffFile(path) as tif:
            offset, count = tif.pages[0].dataoffsets[-1], tif.pages[0].databytecounts[-1]
        raw = bytearray(path.read_bytes())
        raw[offset : offset + count] = bytes(count)
        path.write_bytes(raw)
    else:
        zarr.create_array(path, shape=pixels.shape, dtype="u1", chunks=(512, 512, 3))[:] = pixels
        (path / "c/2/2/0").write_bytes(b"no chunk")
    monkeypatch.setattr(data, "WHOLE", 1000)
    picture = open_rgb(path)
    assert picture.shape == (1536, 1536, 3)
    assert np.array_equal(picture[100:300, 5:390], pixels[100:300, 5:390])
    with pytest.raises(Exception):  # noqa: B017  (whatever the library says of a damaged tile)
        picture[1400:, 1400:]


def test_pairs_of_unequal_size_are_refused(tmp_path: Path) -> None:
    write(pairs(tmp_path, 3) / "hazy" / "01.png", photo(1, 30, 60))
    with pytest.raises(ValueError, match=r"hazy.01\.png is 60 x 30, its clear picture 01\.png 60 x 40"):
        open_datasets([tmp_path])


@pytest.mark.parametrize(("folder", "missing"), [("hazy", "no hazy"), ("clear", "no clear")])
def test_pictures_without_partner_are_named(tmp_path: Path, folder: str, missing: str) -> None:
    (pairs(tmp_path, 3) / folder / "02.png").unlink()
    with pytest.raises(ValueError, match=rf"02\.png: {missing} picture of this name"):
        open_datasets([tmp_path])


def test_folders_that_hold_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures to train on"):
        open_datasets([tmp_path])
    with pytest.raises(ValueError, match="no such folder"):
        open_datasets([tmp_path / "missing"])
    for name in ("clear", "hazy"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="no pictures to train on"):
        open_datasets([tmp_path])


def test_folders_of_different_layouts_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "other" / "a.png", photo(1))
    with pytest.raises(ValueError, match="different layouts, clear pictures and pairs"):
        open_datasets([pairs(tmp_path / "pairs", 2), tmp_path / "other"])


def test_grey_and_damaged_pictures_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a" / "grey.png", np.ascontiguousarray(photo(1)[..., 0]))
    write(tmp_path / "a" / "other.png", photo(1))
    with pytest.raises(ValueError, match=r"grey\.png: training needs 8-bit RGB pictures"):
        open_datasets([tmp_path / "a"])
    write(tmp_path / "b" / "other.png", photo(1))
    (tmp_path / "b" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        open_datasets([tmp_path / "b"])


# ---- Procedural pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_procedural_pictures_vary_with_the_seed_alone(kind: str) -> None:
    one, same, other = (KINDS[kind](120, 200, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (120, 200, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.std() > 1


def test_procedural_pictures_are_of_every_kind() -> None:
    means = torch.tensor([float(procedural(64, 64, seed).std()) for seed in range(20)])
    assert means.min() < 20 < means.max()
