"""Rows and columns of a layer: those of a rectangle in a Shapes layer, or the visible ones."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from napari.layers import Image, Shapes

    Region = tuple[int, int, int, int]
    """Rows and columns ``(y0, y1, x0, x1)``, the ends excluded."""


def drawn(viewer: Any, shapes: Shapes, layer: Image) -> Region:
    """Return the region of a layer under the selected shape, or else the last one.

    Raises
    ------
    ValueError
        If there is no shape, or it lies outside the layer.
    """
    if not len(shapes.data):
        raise ValueError(f"the layer {shapes.name!r} holds no shape: draw a rectangle")
    number = max(shapes.selected_data) if shapes.selected_data else len(shapes.data) - 1
    corners = [shapes.data_to_world(corner) for corner in shapes.data[number]]
    # If some layers are in pixels and others in lengths, viewers ignore the units.
    units = layer.units if viewer.dims.units is None else shapes.units
    return clipped(pixels_at(corners, units, layer), layer)


def on_screen(viewer: Any, layer: Image) -> Region:
    """Return the visible region of a layer.

    Raises
    ------
    ValueError
        If none of the layer is visible.
    """
    if hasattr(viewer, "canvas"):  # since napari 0.9
        camera, size, dims = viewer.scene.camera, viewer.canvas.size, viewer.dims
        edges = [
            (middle - side / camera.zoom / 2, middle + side / camera.zoom / 2)
            for middle, side in zip(camera.center[-2:], size, strict=True)
        ]
        points = np.tile(dims.point, (4, 1))
        points[:, dims.displayed[-2:]] = [*product(*edges)]  # the view may be transposed
        return clipped(pixels_at(points, dims.units or layer.units, layer), layer, "the visible area")
    # Before 0.9, in pixels of the level on screen, extended to its chunks.
    level = layer.data_level if layer.multiscale else 0
    factors = layer.downsample_factors[level][-2:] if layer.multiscale else (1, 1)
    return clipped(layer.corner_pixels[:, -2:] * factors, layer, "the visible area")


def middle_of(region: Region, side: int) -> Region:
    """Return the middle of a region, at most `side` pixels along each side."""
    y0, y1, x0, x1 = region
    down, across = max(0, y1 - y0 - side) // 2, max(0, x1 - x0 - side) // 2
    return y0 + down, min(y1, y0 + down + side), x0 + across, min(x1, x0 + across + side)


def pixels_at(points: Any, units: Any, layer: Image) -> list[Any]:
    """Return the pixels ``(y, x)`` of a layer at points ``(..., y, x)`` of the world, given in `units`."""
    # Layers do not convert units.
    factors = [(1 * unit).to(own).magnitude for unit, own in zip(units[-2:], layer.units[-2:], strict=True)]
    return [layer.world_to_data(np.multiply(point[-2:], factors))[-2:] for point in points]


def clipped(corners: Any, layer: Image, what: str = "the region") -> Region:
    """Return the rows and columns of a layer between corners ``(y, x)``."""
    level = layer.data[0] if layer.multiscale else layer.data
    edges = []
    for axis in (0, 1):
        values = [float(corner[axis]) for corner in corners]
        start = max(0, math.floor(min(values) + 0.5))
        stop = min(int(level.shape[layer.ndim - 2 + axis]), math.ceil(max(values) + 0.5))
        if start >= stop:
            raise ValueError(f"{what} lies outside the layer {layer.name!r}: move it there")
        edges += [start, stop]
    return edges[0], edges[1], edges[2], edges[3]
