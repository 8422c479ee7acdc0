"""Local strength from a painted Labels layer, or from drawn Shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels

from dehazexl.viewing.local import SIDE, LocalStrength

if TYPE_CHECKING:
    from napari.layers import Image
    from numpy.typing import NDArray

    from napari_dehazexl._region import Region


def local_strength(painted: Any, layer: Image, region: Region | None = None) -> LocalStrength:
    """Return the local strength for a layer: none of the effect under what is painted or drawn in another layer.

    Parameters
    ----------
    painted
        A Labels layer, whose background keeps the effect, or a Shapes layer.
    layer
        The layer that is dehazed, anywhere in the world.
    region
        Rows and columns of the layer; None for all of it.
    """
    level = layer.data[0] if layer.multiscale else layer.data
    y0, y1, x0, x1 = region or (0, level.shape[layer.ndim - 2], 0, level.shape[layer.ndim - 1])
    factor = min(1.0, SIDE / max(y1 - y0, x1 - x0))
    size = max(1, round((y1 - y0) * factor)), max(1, round((x1 - x0) * factor))
    step = np.array([(y1 - y0) / size[0], (x1 - x0) / size[1]])  # pixels of the layer for each of the map
    sample = _labels if isinstance(painted, Labels) else _shapes
    return LocalStrength.painted(sample(painted, layer, size, step, np.array([y0, x0])))


def _labels(
    labels: Labels, layer: Image, size: tuple[int, int], step: NDArray[Any], first: NDArray[Any]
) -> NDArray[np.bool_]:
    """Sample labels at the pixels of a map."""
    pixels = labels.data[0] if labels.multiscale else labels.data
    plane = np.asarray(pixels[(0,) * (labels.ndim - 2)])

    def at(row: float, col: float) -> NDArray[Any]:
        point = layer.data_to_world(np.r_[np.zeros(layer.ndim - 2), row, col])
        return np.asarray(labels.world_to_data(np.r_[np.zeros(max(0, labels.ndim - len(point))), point]))[-2:]

    origin, start = at(0, 0), first + (step - 1) / 2
    down, across = at(1, 0) - origin, at(0, 1) - origin
    rows, cols = np.arange(size[0]) * step[0] + start[0], np.arange(size[1]) * step[1] + start[1]
    places = origin + rows[:, None, None] * down + cols[None, :, None] * across
    index = np.rint(places).astype(int)
    inside = ((index >= 0) & (index < plane.shape)).all(axis=-1)
    index = np.clip(index, 0, np.array(plane.shape) - 1)
    return np.asarray((plane[index[..., 0], index[..., 1]] != 0) & inside)


def _shapes(
    shapes: Any, layer: Image, size: tuple[int, int], step: NDArray[Any], first: NDArray[Any]
) -> NDArray[np.bool_]:
    """Draw shapes into a map."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    drawn = Pillow.new("1", (size[1], size[0]))
    pen = ImageDraw.Draw(drawn)
    for kind, corners in zip(shapes.shape_type, shapes.data, strict=True):
        world = [shapes.data_to_world(corner) for corner in corners]
        points = [(np.asarray(layer.world_to_data(point))[-2:] - first) / step for point in world]
        flat = [(float(x), float(y)) for y, x in points]
        if kind == "ellipse":
            xs, ys = zip(*flat, strict=True)
            pen.ellipse((min(xs), min(ys), max(xs), max(ys)), fill=1)
        elif len(flat) > 2:
            pen.polygon(flat, fill=1)
    return np.asarray(drawn)
