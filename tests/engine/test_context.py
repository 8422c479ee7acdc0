"""Regions of a larger image, with all of it, some or none as context; and holes in files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from reference import interleaved, picture, relative

import dehazexl
from dehazexl.engine.dehaze import decode_lazily, open_tokens, prepare
from dehazexl.engine.run import stages
from dehazexl.image.grid import Window
from dehazexl.io.open import open_image
from dehazexl.model import DehazeXL

REGION = (130, 460, 250, 500)
INSIDE = np.s_[130:460, 250:500]


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    pixels = interleaved(picture(700, 600))
    pixels[500:] *= 0.3  # what lies around the region has another haze
    return pixels


def dehazed(pixels: Any, model: DehazeXL, **options: Any) -> np.ndarray:
    return np.asarray(dehazexl.dehaze(pixels, model, value_range=(0, 1), **options))


def test_a_region_is_a_part_of_the_whole_image(tiny: DehazeXL, scene: np.ndarray) -> None:
    whole = dehazed(scene, tiny)
    assert relative(dehazed(scene, tiny, region=REGION), whole[INSIDE]) < 1e-5
    assert relative(dehazed(scene[INSIDE], tiny), whole[INSIDE]) > 1e-3


def test_a_region_may_be_an_image_of_its_own(tiny: DehazeXL, scene: np.ndarray) -> None:
    alone = dehazed(scene[INSIDE], tiny)
    assert relative(dehazed(scene, tiny, region=REGION, context="region"), alone) < 1e-6


def test_a_neighborhood_ends_with_the_image(tiny: DehazeXL, scene: np.ndarray) -> None:
    part = dehazed(scene[30:560, 150:], tiny)
    found = dehazed(scene, tiny, region=REGION, context="neighborhood:100")
    assert relative(found, part[100:430, 100:350]) < 1e-6


def test_bands_and_chunks_of_a_region(tiny: DehazeXL, scene: np.ndarray) -> None:
    swapped = dehazexl.dehaze(scene[..., ::-1], tiny, value_range=(0, 1), bands=[3, 2, 1], region=REGION)
    assert swapped.shape == (330, 250, 3)
    assert relative(np.asarray(swapped)[..., ::-1], dehazed(scene, tiny, region=REGION)) < 1e-6
    assert np.array_equal(np.asarray(swapped[7:30, -40:]), np.asarray(swapped)[7:30, -40:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": "near"}, "context must be all, region, neighborhood:PIXELS or pooled:N, not 'near'"),
        ({"context": "neighborhood:-3"}, "not 'neighborhood:-3'"),
        ({"context": "region:3"}, "not 'region:3'"),
        ({"context": "pooled"}, "not 'pooled'"),
        ({"context": "pooled:0"}, "not 'pooled:0'"),
        ({"region": (0, 10, 0, 601)}, "does not lie in the image"),
        ({"region": (9, 9, 0, 5)}, "does not lie in the image"),
    ],
)
def test_regions_and_contexts_that_cannot_be(
    tiny: DehazeXL, scene: np.ndarray, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dehazexl.dehaze(scene, tiny, **options)


# ---- Holes ------------------------------------------------------------------------------------------


def sparse(folder: Path, order: str = "yxc", **options: Any) -> tuple[Path, np.ndarray]:
    """Write a Zarr of 1024 x 1024 pixels whose left half, and a chunk, are not there."""
    pixels = np.zeros((1024, 1024, 3), np.uint8)
    pixels[:, 512:] = 1 + interleaved(picture(1024, 512)) * 254
    pixels[256:512, 768:] = 0
    axes = ["yxc".index(axis) for axis in order]
    shape, chunks = (tuple(np.take(each, axes)) for each in ((1024, 1024, 3), (256, 256, 3)))
    array = zarr.create_array(
        folder / "a.zarr", shape=shape, chunks=chunks, dtype="u1", attributes={"nodata": 0}, **options
    )
    array[:] = pixels.transpose(axes)
    return folder / "a.zarr", pixels


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the chunks that are read from stores, whether they are there or not."""
    names: list[str] = []
    get = zarr.storage.LocalStore.get

    async def counted(self: Any, key: str, *args: Any, **options: Any) -> Any:
        if not key.endswith((".json", ".zarray", ".zattrs", ".zgroup")):
            names.append(key)
        return await get(self, key, *args, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    return names


@pytest.mark.parametrize(
    ("order", "options"),
    [
        ("yxc", {}),
        ("cyx", {}),
        ("yxc", {"zarr_format": 2}),
        ("yxc", {"chunk_key_encoding": {"name": "v2", "separator": "."}}),
        ("yxc", {"shards": (512, 512, 3)}),
    ],
)
def test_what_a_zarr_lacks_is_not_read(
    tiny: DehazeXL, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, order: str, options: Any
) -> None:
    monkeypatch.setattr("dehazexl.image.grid.BLOCK", 256)
    monkeypatch.setattr("dehazexl.io.source.CHUNK", 256)
    path, pixels = sparse(tmp_path, order, **options)
    image = open_image(path)
    found = [image.is_hole(Window(y, y + 256, x, x + 256)) for y in (0, 256) for x in (256, 512, 768)]
    assert found == [True, False, False, True, False, "shards" not in options]
    assert not image.is_hole(Window(250, 257, 300, 600))
    asked.clear()
    clear = dehazexl.dehaze(path, tiny, overlap=0)
    left = clear[:, :512].compute()
    assert not left.any() and left.shape == (1024, 512, 3)
    assert np.array_equal(clear[:, 512:].compute() == 0, pixels[:, 512:] == 0)
    places = {tuple(int(n) for n in key.replace("c/", "").replace(".", "/").split("/")) for key in asked}
    side = 512 if "shards" in options else 256
    x = 2 if order == "cyx" else 1
    # The halo of tiles next to the hole reaches into its first chunk.
    assert {place[x] for place in places} <= set(range(1 if side == 256 else 0, 4)), sorted(places)
    if side == 256:
        assert {place[x] for place in places} == {1, 2, 3}


def test_what_a_sparse_tiff_lacks_is_known(tiny: DehazeXL, tmp_path: Path) -> None:
    _, pixels = sparse(tmp_path)
    corners = [(y, x) for y in range(0, 1024, 256) for x in range(0, 1024, 256)]
    tiles = [pixels[y : y + 256, x : x + 256].tobytes() for y, x in corners]
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        iter([tile if any(tile) else b"" for tile in tiles]),
        shape=pixels.shape,
        dtype="u1",
        tile=(256, 256),
        photometric="rgb",
        extratags=[(42113, "s", 0, "0", True)],
    )
    image = open_image(path)
    assert image.nodata == 0
    found = [image.is_hole(Window(y, y + 256, x, x + 256)) for y in (0, 256) for x in (256, 512, 768)]
    assert found == [True, False, False, True, False, True]
    assert np.array_equal(np.asarray(dehazexl.dehaze(path, tiny, overlap=0)) == 0, pixels == 0)


def test_holes_follow_a_crop_and_not_another_level(tmp_path: Path) -> None:
    image = open_image(sparse(tmp_path)[0])
    part = image.cropped(Window(100, 900, 400, 1000))
    assert part.is_hole(Window(0, 800, 0, 112)) and not part.is_hole(Window(0, 800, 0, 113))
    assert not replace(image, levels=(image.levels[0][::2, ::2],)).is_hole(Window(0, 9, 0, 9))
    assert not replace(image, nodata=None).is_hole(Window(0, 9, 0, 9)), "zeros are data"


def test_a_zarr_that_is_gone_is_no_hole(tiny: DehazeXL, tmp_path: Path) -> None:
    path, _ = sparse(tmp_path)
    job = prepare(path, tiny, 0)
    store = open_tokens(job)
    for stage in stages(job, store):
        sum(stage.steps)
    clear = decode_lazily(job, store)
    shutil.rmtree(path)
    with pytest.raises(OSError, match="restore it"):
        np.asarray(clear[:100, :100])
