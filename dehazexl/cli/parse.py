"""Parsers of option values, with errors that show the expected form."""

from __future__ import annotations

import re
from typing import Literal


def value_range(text: str) -> tuple[float, float]:
    """Parse ``LOW,HIGH``, the values of black and white."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--range {text!r}: write two numbers, black and white, as in --range 0,4095") from None
    return low, high


def bands(text: str) -> tuple[int | str, ...]:
    """Parse bands, as in ``4,3,2`` or a list of names."""
    words = [word.strip() for word in text.split(",")]
    return tuple(int(word) if word.isdecimal() else word for word in words)


def names(text: str) -> tuple[str, ...]:
    """Parse a list of names with commas between them."""
    return tuple(word.strip() for word in text.split(","))


def batch(text: str) -> int | Literal["auto"]:
    """Parse a number of tiles, or ``auto``."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--batch {text!r}: write auto or a number of tiles, as in --batch 4")
    return int(text)


def region(text: str, option: str = "--region") -> tuple[int | None, int | None, int | None, int | None]:
    """Parse ``Y0:Y1,X0:X1``, rows and columns; None for an omitted end, which means that of the image."""
    found = re.fullmatch(r"(-?\d*):(-?\d*),(-?\d*):(-?\d*)", text.replace(" ", ""))
    if not found or "-" in found.groups():
        raise ValueError(f"{option} {text!r}: write rows and columns Y0:Y1,X0:X1, as in {option} 0:1024,512:2048")
    y0, y1, x0, x1 = (int(word) if word else None for word in found.groups())
    return y0, y1, x0, x1


def size(text: str) -> tuple[int, int]:
    """Parse ``WxH`` and return height and width in pixels."""
    found = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", text.replace(" ", ""))
    if not found:
        raise ValueError(f"{text!r} is not a size: write width and height in pixels, as in 2048x1536")
    width, height = found.groups()
    return int(height), int(width)
