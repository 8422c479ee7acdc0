"""Draw the gallery: results of the bundled weights on images that may be shown.

    python docs/gallery.py IMAGES

Writes ``docs/gallery/NAME.jpg``, the input on the left and the output on the right, for each image of ``IMAGES`` that
`CASES` names; see `docs/gallery.md` for sources and licenses.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dehazexl import DehazeXL, dehaze, load_model, open_image
from dehazexl.synthesis.haze import patches, scatter, veil

LONGEST, SHOWN, GAP = 1024, 560, 6
"""Longest side of an input in pixels, width of an image on the page, and the gap between both."""

REAL = {
    "hills": "more/us_gov_18f_cc0/hero.jpg",
    "horizon": "more/odm_lewis_cc0/img_4126.jpg",
    "canyon": "more/pop_unsplash_cc0/jad-limcaco-183877.jpg",
    "glacier": "more/nasa_eic_pd/connected_earth_sea_level_rise.jpg",
}
"""Photographs as they are."""

DRAWN = {
    "farmland": ("naip/m_4709963_se_14_1_20160816.tif", 0.8, 1.0),
    "dunes": ("more/usgs_ortho_dunes/augimage_000146.jpg", 0.6, 1.0),
    "site": ("more/odm_caliterra_cc0/IMG_9425.jpg", 0.8, 0.8),
}
"""Images to which haze is added, and the optical thickness of a veil and of patches."""


def opened(path: Path) -> NDArray[np.uint8]:
    """Read an image ``(y, x, 3)``, shrunk to `LONGEST`."""
    image = Image.fromarray(np.asarray(open_image(path).levels[0])[..., :3])
    if path.parent.name == "naip":  # its western half was trained on
        image = image.crop((image.width // 2, 0, image.width, image.height))
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return np.array(image)


def hazy(clear: NDArray[np.uint8], thickness: float, clouds: float, seed: int = 11) -> NDArray[np.uint8]:
    """Add a neutral veil and patches of haze, in the values of the file."""
    generator = torch.Generator().manual_seed(seed)
    size = clear.shape[:2]
    field = thickness * veil(*size, generator) + clouds * patches(*size, generator)
    pixels = torch.from_numpy(clear / np.float32(255)).permute(2, 0, 1)
    made = scatter(pixels, torch.exp(-field), torch.tensor((0.9, 0.91, 0.92)).view(3, 1, 1))
    return np.ascontiguousarray((made * 255).round().byte().permute(1, 2, 0).numpy())


def draw(name: str, source: NDArray[np.uint8], model: DehazeXL) -> None:
    """Dehaze an image and save it next to its source."""
    height = SHOWN * source.shape[0] // source.shape[1]
    sheet = Image.new("RGB", (2 * SHOWN + GAP, height), "white")
    for place, pixels in enumerate((source, dehaze(source, model, border="keep").compute())):
        shown = Image.fromarray(pixels).resize((SHOWN, height), Image.Resampling.LANCZOS)
        sheet.paste(shown, (place * (SHOWN + GAP), 0))
    folder = Path(__file__).parent / "gallery"
    folder.mkdir(exist_ok=True)
    sheet.save(folder / f"{name}.jpg", quality=82)
    print(folder / f"{name}.jpg", flush=True)


def main() -> None:
    """Draw them all."""
    images, model = Path(sys.argv[1]), load_model(device="cpu", dtype="float32")
    for name, path in REAL.items():
        draw(name, opened(images / path), model)
    for name, (path, thickness, clouds) in DRAWN.items():
        draw(name, hazy(opened(images / path), thickness, clouds), model)


if __name__ == "__main__":
    main()
