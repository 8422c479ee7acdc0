"""Settings of a dehazed image, as its file records them."""

from pathlib import Path

import numpy as np
import tifffile

import dehazexl
from dehazexl.viewing.choices import Choices, with_choices


def test_settings_are_read_back_from_an_ome_tiff(tmp_path: Path) -> None:
    image, source = dehazexl.open_image(np.zeros((40, 50, 3), np.uint8)), tmp_path / "in.ome.tif"
    tifffile.imwrite(source, np.zeros((3, 40, 50), np.uint8), metadata={"axes": "CYX", "Description": "a slice"})
    for strength in (0.5, 0.25):  # the second time in place of the first
        choices = Choices(weights="my <weights> & ü", overlap=16, strength=strength)
        image = dehazexl.open_image(source)
        source = tmp_path / f"{strength}.ome.tif"
        dehazexl.to_tiff(image.levels[0], source, like=with_choices(image, choices, (0, 255)))
        with tifffile.TiffFile(source) as file:
            said = tifffile.xml2dict(file.ome_metadata or "")["OME"]
        assert said["Image"]["Description"] == "a slice"
        assert [*said].index("Image") < [*said].index("StructuredAnnotations")
        note = said["StructuredAnnotations"]["MapAnnotation"]
        assert note["Namespace"] == "DEHAZEXL"
        assert {each["K"]: str(each["value"]) for each in note["Value"]["M"]} == {
            "weights": "my <weights> & ü", "device": "auto", "dtype": "auto", "overlap": "16",
            "strength": str(strength), "value_range": "[0, 255]", "context": "all", "version": dehazexl.__version__,
        }  # fmt: skip
    again = dehazexl.open_image(source)
    np.testing.assert_array_equal(np.asarray(again.levels[0]), np.asarray(image.levels[0]))
