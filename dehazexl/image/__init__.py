"""Image description, tile grid, value scale and georeference. Independent of file formats and of the network."""

from dehazexl.image.image import Image, value_range

__all__ = ["Image", "value_range"]
