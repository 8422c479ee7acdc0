"""Names and roles of bands: which are red, green, blue and alpha."""

from __future__ import annotations

from collections.abc import Sequence

RGB_ROLES = ("red", "green", "blue")
ALPHA_NAMES = ("alpha", "mask", "transparency", "alpha band", "alpha channel", "valid mask")
LETTERS = {"r": "red", "g": "green", "b": "blue"}
NOT_RED = {"edge", "rededge", "infra", "infrared", "nir", "swir"}


def describe_bands(
    names: Sequence[str | None], roles: Sequence[str | None]
) -> tuple[tuple[str, ...], tuple[int, int, int], int | None]:
    """Name every band and find R, G, B and alpha, by the bands' names first and by their roles next.

    A role is what the file says a band shows ("red", "alpha", "nir"...), "undefined", or None if it says nothing.
    """
    said = [name_role(name) for name in names]
    alpha = next((list(each).index("alpha") for each in (roles, said) if "alpha" in each), None)
    alpha = alpha if len(names) > 1 else None
    colors = [band for band in range(len(names)) if band != alpha]
    triple = find_triple(said, names) or find_triple(roles, [None] * len(roles))
    rgb = triple or (colors[:3] if len(colors) >= 3 else colors[:1] * 3)
    plain = {1: ("gray",), 3: RGB_ROLES}.get(len(colors), ())
    unnamed = triple is None and not any(names[band] for band in colors)
    usual = dict(zip(colors, plain, strict=True)) if unnamed and plain else {}
    titles = (
        name or (None if role in ("undefined", "gray") else role) or usual.get(band) or f"band {band + 1}"
        for band, (name, role) in enumerate(zip(names, roles, strict=True))
    )
    return tuple(titles), (rgb[0], rgb[1], rgb[2]), alpha


def find_triple(roles: Sequence[str | None], names: Sequence[str | None]) -> list[int] | None:
    """Find red, green and blue, all three or none; of "green_i" and "green" the one of the shorter name."""
    found = [[band for band, each in enumerate(roles) if each == role] for role in RGB_ROLES]
    return [min(bands, key=lambda band: len(names[band] or "")) for bands in found] if all(found) else None


def name_role(name: str | None) -> str | None:
    """Tell red, green, blue and alpha by a band's name: "Red", "B04 (red)", "b"; not "red edge"."""
    plain = (name or "").strip().lower()
    if plain in ALPHA_NAMES:
        return "alpha"
    words = "".join(letter if letter.isalpha() else " " for letter in plain).split()
    if NOT_RED & set(words):
        return None
    return next((role for role in RGB_ROLES if role in words), LETTERS.get(plain))


def array_roles(count: int) -> list[str | None]:
    """Roles of bands of which nothing is known: the second of two is alpha, by custom."""
    return [None, "alpha"] if count == 2 else [None] * count


OME_COLORS = {"FF0000": "red", "00FF00": "green", "0000FF": "blue"}
