"""Pixels as viewers show them: with a strength, a dtype and alpha; and small images enlarged."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dehazexl.image.image import colors, valid_mask
from dehazexl.image.value_scale import ValueScale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dehazexl.image.grid import Window
    from dehazexl.image.image import Image


def shown_dtype(image: Image) -> np.dtype[Any]:
    """Return the dtype in which an image is shown: uint8 for uint8, else float32."""
    own = image.levels[0].dtype
    return own if own == np.uint8 else np.dtype(np.float32)


def render(
    raw: NDArray[Any],
    image: Image,
    value_range: tuple[float, float],
    strength: float | NDArray[np.float32],
    dehaze: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> NDArray[Any]:
    """Dehaze pixels for display.

    Parameters
    ----------
    raw
        Pixels of `image`, ``(y, x, c)``.
    image
        The image.
    value_range
        Its values of black and white.
    strength
        Fraction of the haze that is removed, 0 to 1; or one for each pixel, ``(y, x, 1)``.
    dehaze
        Function from hazy to clear colors ``(y, x, 3)`` on the unit scale of the value range.

    Returns
    -------
    ndarray
        ``(y, x, 3)``, or 4 with the alpha of the image, see `session.DehazeSession.read`.
    """
    scale = ValueScale(*value_range)
    # In place where possible: a viewer waits for this.
    hazy = scale.to_unit(colors(raw, image))
    if raw.dtype.kind == "f":
        np.nan_to_num(hazy, copy=False)
    change = dehaze(hazy) - hazy
    change *= np.asarray(strength, np.float32)
    valid = valid_mask(raw, image)
    if not valid.all():
        change[~valid] = 0
    shown = np.add(hazy, change, out=hazy)
    if shown_dtype(image) == np.uint8:
        shown = scale.from_unit(shown)
        shown = np.rint(np.clip(shown, 0, 255, out=shown), out=shown).astype(np.uint8)
    else:
        np.clip(shown, 0, 1, out=shown)
    return with_alpha(shown, raw, image)


def as_shown(pixels: NDArray[Any], image: Image, value_range: tuple[float, float]) -> NDArray[Any]:
    """Return the colors and the alpha of pixels ``(y, x, c)`` of an image, as viewers show them: uint8, or 0 to 1."""
    rgb = colors(pixels, image)
    if shown_dtype(image) != np.uint8:
        rgb = ValueScale(*value_range).to_unit(rgb).clip(0, 1)
    return with_alpha(rgb, pixels, image)


def with_alpha(shown: NDArray[Any], raw: NDArray[Any], image: Image) -> NDArray[Any]:
    """Append the alpha of pixels ``(y, x, c)`` of an image, if it has any, to their displayed colors."""
    if image.alpha is None:
        return shown
    alpha = raw[..., image.alpha, None]
    if shown.dtype != np.uint8:
        opaque = np.iinfo(raw.dtype).max if raw.dtype.kind == "u" else 1
        alpha = np.clip(np.nan_to_num(alpha.astype(np.float32)) / opaque, 0, 1)
    return np.concatenate([shown, alpha], axis=-1)


def upsample_window(small: NDArray[Any], window: Window, shape: tuple[int, ...]) -> NDArray[Any]:
    """Interpolate a window of a level linearly from a small image of the whole.

    Parameters
    ----------
    small
        ``(y, x)`` of float32, or ``(y, x, 3 or 4)`` of uint8 or float32.
    window
        The window of the level.
    shape
        Shape of the level, ``(y, x, ...)``.

    Returns
    -------
    ndarray
        The pixels of the window, with the axes and the dtype of `small`.
    """
    from PIL import Image as Pillow

    if small.ndim == 3 and (
        small.dtype != np.uint8 or small.shape[2] == 4
    ):  # Pillow would turn transparent pixels black
        return np.stack([upsample_window(plane, window, shape) for plane in np.moveaxis(small, -1, 0)], axis=-1)
    fy, fx = small.shape[0] / shape[0], small.shape[1] / shape[1]
    # Only the part that the window needs: Pillow copies its input.
    around = [max(1, math.ceil(f)) + 1 for f in (fy, fx)]
    top, left = max(0, int(window.y0 * fy) - around[0]), max(0, int(window.x0 * fx) - around[1])
    near = small[top : math.ceil(window.y1 * fy) + around[0], left : math.ceil(window.x1 * fx) + around[1]]
    box = (window.x0 * fx - left, window.y0 * fy - top, window.x1 * fx - left, window.y1 * fy - top)
    return np.asarray(Pillow.fromarray(near).resize((window.width, window.height), Pillow.Resampling.BILINEAR, box))
