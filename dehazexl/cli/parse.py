"""Words of the command line as values, with errors that show how they are written."""

from __future__ import annotations

import re
from typing import Literal


def limits(text: str) -> tuple[float, float]:
    """Read ``LOW,HIGH``."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--range {text!r}: write two numbers, black and white, as in --range 0,4095") from None
    return low, high


def bands(text: str) -> tuple[int | str, ...]:
    """Read ``4,3,2`` or names."""
    words = [word.strip() for word in text.split(",")]
    return tuple(int(word) if word.isdecimal() else word for word in words)


def batch(text: str) -> int | Literal["auto"]:
    """Read a number of tiles, or ``auto``."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--batch {text!r}: write auto or a number of tiles, as in --batch 4")
    return int(text)


def region(text: str) -> tuple[int | None, int | None, int | None, int | None]:
    """Read ``Y0:Y1,X0:X1``, rows and columns; an end left out is the picture's."""
    found = re.fullmatch(r"(-?\d*):(-?\d*),(-?\d*):(-?\d*)", text.replace(" ", ""))
    if not found or "-" in found.groups():
        raise ValueError(f"--region {text!r}: write rows and columns Y0:Y1,X0:X1, as in --region 0:1024,512:2048")
    y0, y1, x0, x1 = (int(word) if word else None for word in found.groups())
    return y0, y1, x0, x1


def size(text: str) -> tuple[int, int]:
    """Read ``WxH`` and return height and width in pixels."""
    found = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", text.replace(" ", ""))
    if not found:
        raise ValueError(f"{text!r} is no size: write width and height in pixels, as in 2048x1536")
    width, height = found.groups()
    return int(height), int(width)
