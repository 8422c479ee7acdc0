"""Data sets: all layouts of folders, pairs, and large images read by crop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
import zarr

from dehazexl.synthesis.procedural import KINDS, procedural
from dehazexl.training import datasets as data
from dehazexl.training import rgb_files as stored
from dehazexl.training.augment import random_crop
from dehazexl.training.datasets import Dataset, open_datasets, open_for_evaluation
from dehazexl.training.rgb_files import ImageCache, open_rgb


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


def test_clear_images_every_tenth_held_out(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"{i:02}.png", photo(i))
    training, held = open_datasets([tmp_path])
    assert held.names == ["00", "10"]
    assert len(training) == 10
    assert training.hazy is None
    assert np.array_equal(training.clear[0][:, :], photo(1))


def test_pairs_match_by_name_with_any_suffix(tmp_path: Path) -> None:
    training, held = open_datasets([pairs(tmp_path, 4, suffix=".jpg")], ["02.png"])
    assert held.names == ["hazy/02"]
    assert training.names == ["hazy/00", "hazy/01", "hazy/03"]
    assert training.hazy is not None
    assert np.abs(training.hazy[1][:, :].astype(int) - photo(1) // 2).mean() < 20  # JPEG of hard edges


def test_8kdehaze_layout(tmp_path: Path) -> None:
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
    image = photo(3, 300, 200)
    pair = Dataset([image], [image // 2], ["one"])
    for seed in range(8):
        clear, hazy = pair.crop(64, 128, np.random.default_rng(seed))
        assert clear.shape == (1, 3, 64, 128)
        assert hazy is not None
        assert (clear / 2 - hazy).abs().max() < 2 / 255


@pytest.mark.parametrize("name", ["large.tif", "large.zarr"])
def test_large_images_are_read_by_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
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
    monkeypatch.setattr(stored, "MAX_WHOLE_SIZE", 1000)
    image = open_rgb(path)
    assert image.shape == (1536, 1536, 3)
    assert np.array_equal(image[100:300, 5:390], pixels[100:300, 5:390])
    with pytest.raises(Exception):  # noqa: B017  (whatever the library says of a damaged tile)
        image[1400:, 1400:]


def test_pairs_of_unequal_size_are_refused(tmp_path: Path) -> None:
    write(pairs(tmp_path, 3) / "hazy" / "01.png", photo(1, 30, 60))
    with pytest.raises(ValueError, match=r"hazy.01\.png is 60 x 30, its clear image 01\.png 60 x 40"):
        open_datasets([tmp_path])


@pytest.mark.parametrize(("folder", "missing"), [("hazy", "no hazy"), ("clear", "no clear")])
def test_unpaired_images_are_reported(tmp_path: Path, folder: str, missing: str) -> None:
    (pairs(tmp_path, 3) / folder / "02.png").unlink()
    with pytest.raises(ValueError, match=rf"02\.png: {missing} image of this name"):
        open_datasets([tmp_path])


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images in"):
        open_datasets([tmp_path])
    with pytest.raises(ValueError, match="no such folder"):
        open_datasets([tmp_path / "missing"])
    for name in ("clear", "hazy"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="no images in"):
        open_datasets([tmp_path])


def test_folders_of_different_layouts_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "other" / "a.png", photo(1))
    with pytest.raises(ValueError, match="different layouts, clear images and pairs"):
        open_datasets([pairs(tmp_path / "pairs", 2), tmp_path / "other"])


def test_gray_and_damaged_images_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "a" / "gray.png", np.ascontiguousarray(photo(1)[..., 0]))
    write(tmp_path / "a" / "other.png", photo(1))
    with pytest.raises(ValueError, match=r"gray\.png: 8-bit RGB images are needed"):
        open_datasets([tmp_path / "a"])
    write(tmp_path / "b" / "other.png", photo(1))
    (tmp_path / "b" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        open_datasets([tmp_path / "b"])


def test_suffixes_and_trees_of_every_kind(tmp_path: Path) -> None:
    write(tmp_path / "b" / "deep" / "one.tif", photo(1))
    write(tmp_path / "two.png", photo(2))
    zarr.create_array(tmp_path / "a" / "three.zarr", shape=(40, 60, 3), dtype="u1", chunks=(16, 16, 3))[:] = photo(3)
    np.save(tmp_path / "four.npy", photo(4))
    write(tmp_path / ".hidden.png", photo(5))
    write(tmp_path / ".trash" / "old.png", photo(5))
    write(tmp_path / "a" / "three.zarr" / "thumbnail.png", photo(6))
    training, held = open_datasets([tmp_path, tmp_path / "b"], ["two*"])
    assert held.names == ["two"]
    assert {Path(name).name for name in training.names} == {"one", "three", "four"}
    for images in (training, held):
        for image, name in zip(images.clear, images.names, strict=True):
            seed = ["one", "two", "three", "four"].index(Path(name).stem) + 1
            assert np.array_equal(image[:, :], photo(seed))
            assert image[3:20, 7:].flags.writeable
    assert len(training) == 3


def test_patterns_do_not_match_parent_folders(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "02" / "set", 4)
    training, held = open_datasets([folder], ["02*"])
    assert (training.names, held.names) == (["hazy/00", "hazy/01", "hazy/03"], ["hazy/02"])
    with pytest.raises(ValueError, match="all 4 images match"):
        open_datasets([folder], ["*"])
    with pytest.raises(ValueError, match="no image matches"):
        open_datasets([folder], ["02/set/clear/00*"])


def test_a_clear_image_is_held_out_with_all_its_hazy_ones(tmp_path: Path) -> None:
    training, held = open_datasets([pairs(tmp_path, 4, data.LEVELS)], ["cloud_L2/01*"])
    assert held.names == [f"{level}/01" for level in data.LEVELS]
    assert len(training) == 3 * 4


def test_the_smallest_8kdehaze_has_a_validation_set(tmp_path: Path) -> None:
    training, held = open_datasets([pairs(tmp_path, 2, data.LEVELS[:1])])
    assert (len(training), len(held)) == (1, 1)
    assert open_for_evaluation([tmp_path]).names == held.names


def test_pairs_are_all_evaluated(tmp_path: Path) -> None:
    folder = pairs(tmp_path, 3)
    assert len(open_for_evaluation([folder])) == 3
    chosen, (_, held) = open_for_evaluation([folder], ["*1*"]), open_datasets([folder], ["*1*"])
    assert chosen.names == held.names and len(chosen) == 1
    assert len(open_for_evaluation([folder], ["*"])) == 3
    with pytest.raises(ValueError, match="no image matches"):
        open_for_evaluation([folder], ["zzz"])


def test_hazy_images_are_refused_as_clear_ones(tmp_path: Path) -> None:
    pairs(tmp_path / "sets" / "mine", 2)
    with pytest.raises(ValueError, match="seems to be hazy: pass the folder that contains hazy and clear"):
        open_datasets([tmp_path / "sets"])


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    write(pairs(tmp_path, 3) / "clear" / "01.jpg", photo(1))
    with pytest.raises(ValueError, match=r"01\.png and 01\.jpg have the same name"):
        open_datasets([tmp_path])


def test_files_that_are_not_arrays_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"no array", b"\x93NUMPY\x01\x00"):
        (tmp_path / "one.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"one\.npy is not an array, or is cut short"):
            open_rgb(tmp_path / "one.npy")


def test_whole_images_are_read_once_while_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = stored.decode
    monkeypatch.setattr(stored, "decode", lambda path: (read.append(path.name), plain(path))[1])
    monkeypatch.setattr(stored, "MAX_WHOLE_SIZE", 10)  # a PNG of any size cannot be read by crop
    memory = ImageCache(limit=2 * photo(0).nbytes)
    opened = []
    for i in range(3):
        write(tmp_path / f"{i}.png", photo(i))
        opened.append(open_rgb(tmp_path / f"{i}.png", memory))
    assert read == []
    for i in (0, 1, 0, 1, 0, 2, 0, 1):
        assert np.array_equal(opened[i][5:9, 30:], photo(i)[5:9, 30:])
    assert read == ["0.png", "1.png", "2.png", "1.png"]
    small = open_rgb(tmp_path / "0.png", ImageCache(limit=10))
    assert np.array_equal(small[:, :], photo(0))


def test_crops_of_files_equal_crops_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MAX_WHOLE_SIZE", 10)
    pixels = photo(7, 1200, 1300)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), photometric="rgb")
    np.save(tmp_path / "a.npy", pixels)
    for seed in range(4):
        crops = [
            random_crop([image], 96, 160, np.random.default_rng(seed))
            for image in (pixels, open_rgb(tmp_path / "a.tif"), open_rgb(tmp_path / "a.npy"))
        ]
        assert torch.equal(crops[0], crops[1])
        assert torch.equal(crops[0], crops[2])


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (31, 2), (255, 257)])
def test_small_images_are_enlarged(size: tuple[int, int]) -> None:
    image = photo(1, 900, 900)[: size[0], : size[1]]
    for seed in range(4):
        clear, hazy = Dataset([image], [image], ["a"]).crop(256, 512, np.random.default_rng(seed))
        assert hazy is not None
        assert clear.shape == (1, 3, 256, 512)
        assert torch.equal(clear, hazy)


def test_npy_files_need_only_torch_and_numpy(tmp_path: Path) -> None:
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", photo(i))
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "for name in ('dask', 'tifffile', 'imagecodecs', 'zarr', 'PIL'): sys.modules[name] = None\n"
        "from dehazexl.training.datasets import open_datasets\n"
        "data, _ = open_datasets([Path(sys.argv[1])]); print(*data.crop(8, 8, np.random.default_rng(0))[0].shape)"
    )
    out = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["1", "3", "8", "8"]


# ---- Procedural images ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_procedural_images_depend_only_on_the_seed(kind: str) -> None:
    one, same, other = (KINDS[kind](120, 200, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (120, 200, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.std() > 1


def test_procedural_images_are_of_every_kind() -> None:
    means = torch.tensor([float(procedural(64, 64, seed).std()) for seed in range(20)])
    assert means.min() < 20 < means.max()
