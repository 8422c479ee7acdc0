"""Files beside an image: written where the format has no georeference of its own, and never stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import rasterio
import rasterio.shutil
from make_pictures import smooth, write_gdal

from dehazexl.io.carried import carried_over, not_carried_over
from dehazexl.io.open import open_image
from dehazexl.io.write import to_photo, to_tiff, write

PIXELS = smooth(3, "uint8", 40, 50)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpeg"])
@pytest.mark.parametrize("bands", [1, 3])
def test_a_photograph_keeps_place_and_metadata(tmp_path: Path, name: str, bands: int) -> None:
    write_gdal(tmp_path / "in.tif", PIXELS[..., :bands], nodata=0)
    with rasterio.open(tmp_path / "in.tif", "r+") as file:
        file.scales, file.offsets = (0.5,) * bands, (-1.0,) * bands
        file.update_tags(FLIGHT="seven")
        file.update_tags(1, wavelength="660")
        wanted = file.crs, file.transform
    image = open_image(tmp_path / "in.tif")
    to_photo(image.levels[0], tmp_path / name, image)
    is_png = name.endswith("png")
    with rasterio.open(tmp_path / name) as file:
        assert (file.crs, file.transform) == wanted
        assert file.nodata == (0 if is_png else None)
        assert file.tags()["FLIGHT"] == "seven" and file.tags(1)["wavelength"] == "660"
        assert (file.scales, file.offsets) == ((0.5,) * bands, (-1.0,) * bands)
    world = {"a.png": "a.pgw"}.get(name, "a.jgw")
    numbers = [float(line) for line in (tmp_path / world).read_text().split()]
    assert numbers == pytest.approx([0.5, 0, 0, -0.5, 500_000.25, 4_999_999.75])
    assert not_carried_over(tmp_path / name, image) == ("" if is_png else "not carried over: the nodata value")
    again = open_image(tmp_path / name)
    assert again.geo == image.geo and again.nodata == (0 if is_png else None)
    with rasterio.open(to_tiff(again.levels[0], tmp_path / "out.tif", again)) as file:
        assert (file.crs, file.transform) == wanted and file.tags()["FLIGHT"] == "seven" and file.scales[0] == 0.5


@pytest.mark.parametrize("name", ["out.png", "out.tif"])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.filterwarnings("error")
def test_a_transparent_color_becomes_alpha_alone(tmp_path: Path, name: str, bands: int) -> None:
    """Where red alone is 0 the pixel is valid: a nodata value of each band would hide it."""
    pixels = np.maximum(PIXELS[..., :bands], 1)
    pixels[:, :6] = 0
    pixels[10:14, :, 0] = 0
    write_gdal(tmp_path / "in.tif", pixels, nodata=0, names=("a", "b", "c")[:bands])
    rasterio.shutil.copy(tmp_path / "in.tif", tmp_path / "in.png", driver="PNG")
    image = open_image(tmp_path / "in.png")
    for _ in write(image.levels[0], tmp_path / name, image):
        pass
    with rasterio.open(tmp_path / name) as file, rasterio.open(tmp_path / "in.png") as wanted:
        np.testing.assert_array_equal(file.read()[:bands], wanted.read())
        np.testing.assert_array_equal(file.read_masks()[:bands], wanted.read_masks())
        assert (file.nodata, file.tags().get("NODATA_VALUES"), file.colorinterp[-1].name) == (None, None, "alpha")
        assert (file.crs, file.descriptions[:bands]) == (wanted.crs, wanted.descriptions)


def test_colors_of_nodata_are_a_mask(tmp_path: Path) -> None:
    pixels = np.maximum(PIXELS, 1)
    pixels[:, :6] = 0
    write_gdal(tmp_path / "in.tif", pixels)
    with rasterio.open(tmp_path / "in.tif", "r+") as file:
        file.update_tags(NODATA_VALUES="0 0 0")
    image = open_image(tmp_path / "in.tif")
    with rasterio.open(to_photo(image.levels[0], tmp_path / "out.png", image)) as file:
        assert "NODATA_VALUES" not in file.tags()
        assert ((file.read_masks(1) == 0) == (pixels == 0).all(axis=-1)).all()


@pytest.mark.parametrize("name", ["in.png", "in.jpg"])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_mask_of_a_photograph(tmp_path: Path, name: str) -> None:
    """GDAL writes that of a PNG beside it, that of a JPEG behind its end."""
    PIL.Image.fromarray(PIXELS).save(tmp_path / name, quality=95)
    valid = np.indices(PIXELS.shape[:2]).sum(0) > 60
    plain = open_image(tmp_path / name)
    with rasterio.open(tmp_path / name, "r+") as file:
        file.write_mask(valid)
    image = open_image(tmp_path / name)
    assert (image.bands[3], image.alpha, image.masked) == ("mask", 3, True) and image.fingerprint != plain.fingerprint
    pixels = image.levels[0].compute()
    np.testing.assert_array_equal(pixels[..., 3], valid * 255)
    np.testing.assert_array_equal(pixels[..., :3], plain.levels[0].compute())
    with rasterio.open(to_tiff(image.levels[0], tmp_path / "out.tif", image)) as file:
        np.testing.assert_array_equal(file.read_masks(1), valid * 255)
    assert file.count == 3


@pytest.mark.parametrize("name", ["out.png", "out.jpg"])
def test_metadata_of_bands_beside_a_mask_are_kept(tmp_path: Path, name: str) -> None:
    write_gdal(tmp_path / "in.tif", PIXELS, names=["a", "b", "c"], photometric="RGB", mask=PIXELS[..., 0] > 90)
    with rasterio.open(tmp_path / "in.tif", "r+") as file:
        file.scales, file.offsets = (0.1, 0.2, 0.3), (1, 2, 3)
        file.update_tags(2, w="0.5")
    image = open_image(tmp_path / "in.tif")
    with rasterio.open(to_photo(image.levels[0], tmp_path / name, image)) as file:
        assert (file.scales[:3], file.offsets[:3], file.descriptions[:3]) == (
            (0.1, 0.2, 0.3),
            (1, 2, 3),
            ("a", "b", "c"),
        )
        assert file.tags(2) == {"w": "0.5"}


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_place_of_a_turned_photograph_is_told(tmp_path: Path, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[274] = orientation
    PIL.Image.fromarray(PIXELS).save(tmp_path / "in.jpg", exif=exif)
    (tmp_path / "in.jgw").write_text("10\n0\n0\n-10\n500005\n5600000\n")
    image = open_image(tmp_path / "in.jpg")
    assert image.geo is None and "its world file and its mask are not used" in image.notes[0]


def test_a_plain_photograph_has_nothing_beside_it(tmp_path: Path) -> None:
    PIL.Image.fromarray(PIXELS).save(tmp_path / "in.png")
    image = open_image(tmp_path / "in.png")
    to_photo(image.levels[0], tmp_path / "out.png", image)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out.png"]


@pytest.mark.parametrize("suffix", [".ovr", ".msk", ".aux.xml"])
def test_stale_files_are_not_read_with_a_new_image(tmp_path: Path, suffix: str) -> None:
    """A mask of another image would hide pixels of this one."""
    stale = tmp_path / f"out.tif{suffix}"
    stale.write_bytes(b"of an image that was here before")
    image = open_image(PIXELS)
    with pytest.raises(FileExistsError, match=rf"out\.tif{suffix} exists and would be read as a part of .*out\.tif"):
        write(image.levels[0], tmp_path / "out.tif", image)
    to_tiff(image.levels[0], tmp_path / "out.tif", image, overwrite=True)
    assert not stale.exists()


def test_a_world_file_of_the_replaced_image_goes(tmp_path: Path) -> None:
    write_gdal(tmp_path / "in.tif", PIXELS)
    placed = open_image(tmp_path / "in.tif")
    to_photo(placed.levels[0], tmp_path / "out.png", placed)
    assert len(list(tmp_path.glob("out.*"))) == 3
    to_photo(PIXELS, tmp_path / "out.png", overwrite=True)
    assert [path.name for path in tmp_path.glob("out.*")] == ["out.png"]
    assert open_image(tmp_path / "out.png").geo is None


@pytest.mark.parametrize("name", ["out.tif", "out.png", "out.jpg", "out.zarr", "out.ome.tif"])
def test_metadata_are_written_before_the_work(tmp_path: Path, name: str) -> None:
    """Values that no library can write cost themselves and one line, not the image at the end of the work."""
    good = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
    image = replace(open_image(PIXELS), metadata={"domains": {"": {"a": "\udcff"}}, "xmp": good, "ome_xml": "<no"})
    kept, line = carried_over(tmp_path / name, image)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(open_image(kept).levels[0], PIXELS)
    for _ in write(kept.levels[0], tmp_path / name, kept):
        pass
    lost = {"out.zarr": "", "out.ome.tif": "not carried over: GDAL's metadata, XMP, the metadata of OME"}
    assert line == lost.get(name, "not carried over: the metadata")
    if name not in lost:
        assert open_image(tmp_path / name).metadata["xmp"] == good
