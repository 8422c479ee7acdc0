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
    """Name every band and find the red, green, blue and alpha bands, by name first and by role next.

    Parameters
    ----------
    names
        Names of the bands in the file; None where a band has no name.
    roles
        Color interpretation of each band in the file, such as "red", "alpha" or "nir"; "undefined"; or None if the
        file has none.

    Returns
    -------
    names : tuple of str
        A name for every band; bands without one get their role, their usual color or "band N".
    rgb : tuple of int
        Indices of red, green and blue; all the same if there are fewer than three bands.
    alpha : int or None
        Index of the alpha band.
    """
    name_roles = [role_from_name(name) for name in names]
    alpha = next((list(each).index("alpha") for each in (roles, name_roles) if "alpha" in each), None)
    alpha = alpha if len(names) > 1 else None
    colors = [band for band in range(len(names)) if band != alpha]
    triple = find_rgb(name_roles, names) or find_rgb(roles, [None] * len(roles))
    rgb = triple or (colors[:3] if len(colors) >= 3 else colors[:1] * 3)
    plain = {1: ("gray",), 3: RGB_ROLES}.get(len(colors), ())
    unnamed = triple is None and not any(names[band] for band in colors)
    usual = dict(zip(colors, plain, strict=True)) if unnamed and plain else {}
    titles = (
        name or (None if role in ("undefined", "gray") else role) or usual.get(band) or f"band {band + 1}"
        for band, (name, role) in enumerate(zip(names, roles, strict=True))
    )
    return tuple(titles), (rgb[0], rgb[1], rgb[2]), alpha


def find_rgb(roles: Sequence[str | None], names: Sequence[str | None]) -> list[int] | None:
    """Find the red, green and blue bands, all three or none; of several candidates, the one with the shortest name."""
    candidates = [[band for band, role in enumerate(roles) if role == color] for color in RGB_ROLES]
    return [min(bands, key=lambda band: len(names[band] or "")) for bands in candidates] if all(candidates) else None


def role_from_name(name: str | None) -> str | None:
    """Return the role that a band name such as "Red", "B04 (red)" or "b" stands for, or None ("red edge")."""
    plain = (name or "").strip().lower()
    if plain in ALPHA_NAMES:
        return "alpha"
    words = "".join(letter if letter.isalpha() else " " for letter in plain).split()
    if NOT_RED & set(words):
        return None
    return next((role for role in RGB_ROLES if role in words), LETTERS.get(plain))


def array_roles(count: int) -> list[str | None]:
    """Return the default roles of bands without metadata: of two bands, the second is alpha."""
    return [None, "alpha"] if count == 2 else [None] * count


OME_COLORS = {"FF0000": "red", "00FF00": "green", "0000FF": "blue"}
