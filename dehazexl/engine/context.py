"""Context: which part of a larger image takes part when a region of it is dehazed, and how exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dehazexl.image.grid import Window

if TYPE_CHECKING:
    from dehazexl.image.image import Image


def check_context(context: str) -> int | None:
    """Return the pixels around a region that take part in dehazing it, None for the whole image.

    Parameters
    ----------
    context
        ``"all"``, ``"region"`` (no more than the region), ``"neighborhood:PIXELS"``, or ``"pooled:N"`` (all, where
        squares of N x N keys of tiles far away are pooled, see `engine.keys.PooledKeys`).

    Raises
    ------
    ValueError
        If it is none of these.
    """
    kind, _, pixels = context.partition(":")
    if context == "region":
        return 0
    if context == "all" or pooled_side(context):
        return None
    if kind == "neighborhood" and pixels.isdecimal():
        return int(pixels)
    raise ValueError(f"context must be all, region, neighborhood:PIXELS or pooled:N, not {context!r}")


def pooled_side(context: str) -> int:
    """Return the N of ``"pooled:N"``, 0 for any other context."""
    kind, _, side = context.partition(":")
    return int(side) if kind == "pooled" and side.isdecimal() else 0


def crop_to_context(image: Image, region: Window, context: str) -> tuple[Image, Window]:
    """Crop an image to a region and its context.

    Parameters
    ----------
    image, region
        The image, and rows and columns of it.
    context
        See `check_context`.

    Returns
    -------
    image : Image
        The part that takes part.
    region : Window
        Rows and columns of the region in that part.

    Raises
    ------
    ValueError
        If the region is empty or extends beyond the image.
    """
    margin = check_context(context)
    image.cropped(region)  # raises what is wrong with the region
    if margin is None:
        return image, region
    height, width, _ = image.levels[0].shape
    part = region.expand(margin).intersection(Window(0, height, 0, width))
    rows, cols = region.to_slices(part)
    return image.cropped(part), Window(rows.start, rows.stop, cols.start, cols.stop)
