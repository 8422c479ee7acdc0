"""Names and roles of bands: which are red, green, blue and alpha."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

RGB_ROLES = ("red", "green", "blue")
ALPHA_NAMES = ("alpha", "mask", "transparency", "alpha band", "alpha channel", "valid mask")
LETTERS = {"r": "red", "g": "green", "b": "blue"}
NOT_RED = {
    *("edge", "rededge", "infra", "infrared", "nir", "swir", "near"),
    *("nahes", "kante", "proche", "bord", "cercano", "borde", "próximo", "borda", "vicino", "bordo"),
}
"""Words beside which red is no color, as in "red edge", in the languages of `WORDS`."""
WORDS = {
    word: color
    for color, words in {
        "red": "red rot rouge rojo vermelho rosso rood röd rød czerwony красный 红 红光",
        "green": "green grün gruen vert verde groen grön grøn zielony зелёный зеленый 绿 绿光",
        "blue": "blue blau bleu azul blu blauw blå niebieski синий 蓝 蓝光",
    }.items()
    for word in words.split()
}
"""Red, green and blue in English, German, French, Spanish, Portuguese, Italian, Dutch, Swedish, Danish, Polish,
Russian and Chinese."""


LANDSAT_TM, MODIS, MSI = (3, 2, 1), (1, 4, 3), (4, 3, 2)
"""Numbers of red, green and blue: of Landsat 4 to 7, of MODIS, and of Landsat 8 and 9, Sentinel-2 and HLS."""
TM_NUMBERS = {1, 2, 3, 4, 5, 7}
"""Numbers of the bands of Landsat 4 to 7 that have one size, without the thermal one."""
MSS_NAMES = re.compile(r"(?<![a-z0-9])(mss|lm0?[1-5])(?![a-z0-9])")
"""Words of Landsat 1 to 5 where there is no blue."""
TM_NAMES = re.compile(r"landsat[ _-]?[457]|(?<![a-z0-9])(e?tm\+?|l[et]0?[457])(?![a-z0-9])")
OTHER_NAMES = re.compile(r"sentinel|landsat|(?<![a-z0-9])((s2[abc]?|msi|oli|hls|lc0?[89])(?![a-z0-9])|s2msi|msil[12])")

SENSOR_NAMES = (
    *("SPACECRAFT", "SATELLITE", "SENSOR", "PLATFORM", "CONSTELLATION", "MISSION", "INSTRUMENT", "LANDSAT", "PRODUCT"),
    *("DATASET", "COLLECTION", "SCENE"),
)
"""Words in the names of metadata that may name a satellite."""
WAVELENGTHS = ((0.6, 0.665, 0.7), (0.5, 0.56, 0.6), (0.43, 0.49, 0.52))
"""Least, usual and largest central wavelength in micrometers of red, green and blue."""


BANDS_HINT = "; --bands changes that"


class Bands(NamedTuple):
    """Names and roles of the bands of an image.

    Attributes
    ----------
    names, rgb, alpha, guessed, notes
        As in `dehazexl.image.image.Image`.
    coded
        Whether the colors are known from numbers of bands or wavelengths only, not stated as such.
    basis
        What tells the colors.
    """

    names: tuple[str, ...]
    rgb: tuple[int, int, int]
    alpha: int | None
    guessed: bool
    notes: tuple[str, ...]
    coded: bool = False
    basis: str = ""


def choose_bands(
    names: Sequence[str | None],
    roles: Sequence[str | None],
    wavelengths: Sequence[float | None] = (),
    sensor: str = "",
) -> Bands:
    """Name every band and find the red, green, blue and alpha bands.

    In this order: by names of colors, by the satellites' names of bands (B04), by wavelength, by role.

    Parameters
    ----------
    names, roles
        As in `describe_bands`.
    wavelengths
        Central wavelength of each band in micrometers, where it is known.
    sensor
        Text that may name a satellite, such as the name of a product or a file.
    """
    titles, rgb, alpha = describe_bands(names, roles)
    colors = [band for band in range(len(names)) if band != alpha]
    if find_rgb([role_from_name(name) for name in names], names):
        return Bands(titles, rgb, alpha, False, (), basis="the names of the bands")
    if len(colors) < 3:
        return Bands(titles, rgb, alpha, False, (), basis="the number of bands")
    coded = find_by_code(names, sensor)
    found = coded or find_by_wavelength(wavelengths)
    if found is not None:
        basis = "the satellite's numbers of the bands" if coded else "the wavelengths of the bands"
        called = ", ".join(f"{band + 1} ({titles[band]})" for band in found)
        notes = (f"red, green and blue are the bands {called}{BANDS_HINT}",) if found != rgb else ()
        return Bands(titles, found, alpha, False, notes, True, basis)
    if find_rgb(roles, [None] * len(roles)) or all(role is None for role in roles):
        return Bands(titles, rgb, alpha, False, (), basis="the colors that the file states")
    plain = tuple(name or f"band {band + 1}" for band, name in enumerate(names))
    titles = tuple(title if band == alpha else plain[band] for band, title in enumerate(titles))
    taken = ", ".join(
        str(band + 1) if titles[band] == f"band {band + 1}" else f"{band + 1} ({titles[band]})" for band in rgb
    )
    note = f"nothing tells the colors: the bands {taken} are taken as red, green and blue{BANDS_HINT}"
    return Bands(titles, rgb, alpha, True, (note,), basis="nothing, these are the first")


def find_by_code(names: Sequence[str | None], sensor: str = "") -> tuple[int, int, int] | None:
    """Find red, green and blue by the numbers that satellites give their bands, such as B04 or SR_B4."""
    codes = [_band_code(name, place) for place, name in enumerate(names, 1)]
    at = {int(code): band for band, code in reversed(list(enumerate(codes))) if code.isdecimal()}
    text, joined = sensor.lower(), " ".join(name or "" for name in names).lower()
    if MSS_NAMES.search(f"{text} {joined}"):
        return None
    if "modis" in text or "sur_refl" in joined:
        numbers = MODIS
    elif TM_NAMES.search(f"{text} {joined}") or ("sr_b" in joined and 4 not in at) or at.keys() == TM_NUMBERS:
        numbers = LANDSAT_TM
    else:
        padded = any(code.startswith("0") or code == "8A" for code in codes)
        known = OTHER_NAMES.search(f"{text} {joined}")
        if not (padded or known or "sr_b" in joined or len(at) > 6):
            return None
        numbers = MSI
    if not all(number in at for number in numbers):
        return None
    red, green, blue = (at[number] for number in numbers)
    return red, green, blue


def _band_code(name: str | None, place: int) -> str:
    """Return the number in a satellite's name of a band, as it is written; empty for plain numbering ("Band 2")."""
    text = (name or "").strip()
    if re.fullmatch(rf"band[ _-]?{place}", text, re.IGNORECASE):
        return ""
    found = re.search(r"(?:^|[^a-z0-9])b(?:and)?[ _-]?(\d{1,2}|8a)(?![0-9a-z])", text, re.IGNORECASE)
    return found[1].upper() if found else ""


def find_by_wavelength(wavelengths: Sequence[float | None]) -> tuple[int, int, int] | None:
    """Find the bands nearest to red, green and blue, by their wavelengths in micrometers."""
    found = []
    for least, usual, most in WAVELENGTHS:
        near = [(abs(each - usual), band) for band, each in enumerate(wavelengths) if each and least <= each <= most]
        if not near:
            return None
        found.append(min(near)[1])
    return found[0], found[1], found[2]


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
    """Return the role that a band name such as "Red", "B04 (red)", "Rot" or "b" stands for, or None ("red edge")."""
    plain = unicodedata.normalize("NFC", name or "").strip().lower()
    if plain in ALPHA_NAMES:
        return "alpha"
    words = "".join(letter if letter.isalpha() else " " for letter in plain).split()
    if NOT_RED & set(words):
        return None
    found = {WORDS[word] for word in words if word in WORDS}
    return next((role for role in RGB_ROLES if role in found), LETTERS.get(plain))


def array_roles(count: int) -> list[str | None]:
    """Return the default roles of bands without metadata: of two bands, the second is alpha."""
    return [None, "alpha"] if count == 2 else [None] * count


OME_COLORS = {"FF0000": "red", "00FF00": "green", "0000FF": "blue"}
