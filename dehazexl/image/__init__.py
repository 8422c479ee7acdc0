"""Images: what one is, its tiles, its values and where it lies. No files, no network."""

from dehazexl.image.image import Image, value_range

__all__ = ["Image", "value_range"]
