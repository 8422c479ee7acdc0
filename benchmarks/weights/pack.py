"""Pack clear images for `benchmarks/gpu.py`: compact WebP files and their index in one zip file.

    python benchmarks/weights/pack.py IMAGES .crops/images.zip

Whole sources are held out for validation (``valid``); those of the test set are excluded. Images of sources with a veil
are corrected by dark object subtraction in linear light.
"""

import io
import json
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image

LONGEST = {"train": 1440, "valid": 768}
QUALITY = 88

VALID = ("odm_boruszyn_ccby", "usgs_ortho_dunes", "humus_meadow_ccby", "azure_samples_mit")
TEST = ("odm_caliterra_cc0", "deepforest_mit", "us_gov_18f_cc0", "akc_wikimedia_pd_cc0_ccby")
HELD_OUT = ("brighton/DJI_003[01]*", "kodak/kodim0[49]*", "kodak/kodim14*", "kodak/kodim2[02]*")
"""Held-out images of sources that are also used for training, as in `prepare.py`."""
LEFT_OUT = ("solus_unsplash/river-and-mountains.jpg",)

FROM_ABOVE = (
    "brighton", "naip", "dubai_mbrsc_cc0", "odm_caliterra_cc0", "odm_boruszyn_ccby", "usgs_ortho_dunes",
    "nasa_eic_pd", "nasa_eic_unsplash", "deepforest_mit", "pexels_cc0_oceanic",
)  # fmt: skip
VEILED = (
    "naip", "dubai_mbrsc_cc0", "odm_boruszyn_ccby", "odm_caliterra_cc0", "odm_lewis_cc0", "usgs_ortho_dunes",
    "usgs_grand_canyon_sandbars", "brighton",
)  # fmt: skip


def to_linear(x):
    """Convert sRGB values to linear light."""
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def from_linear(y):
    """Convert linear light to sRGB values."""
    return np.where(y <= 0.0031308, y * 12.92, 1.055 * np.maximum(y, 0.0031308) ** (1 / 2.4) - 0.055)


def remove_veil(pixels):
    """Subtract the value of the darkest 0.1 % of each color in linear light (Chavez, 1988), up to a file value of 0.22.

    Black pixels are ignored as nodata.
    """
    light = to_linear(pixels / 255.0)
    valid = pixels.max(axis=2) > 0
    dark = np.minimum(np.quantile(light[valid], 0.001, axis=0), to_linear(0.22)) * 0.95
    return np.rint(255 * from_linear(((light - dark) / (1 - dark)).clip(0, 1))).astype(np.uint8)


def shrink(image: Image.Image, longest: int) -> Image.Image:
    """Downsample an image so that its longer side is at most `longest` pixels."""
    scale = min(1.0, longest / max(image.size))
    return image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS) if scale < 1 else image


def entries(folder: Path):
    """Yield split, source and path of each image."""
    for place in [*sorted((folder / "more").iterdir()), *(folder / name for name in ("brighton", "kodak", "naip"))]:
        for path in sorted(place.iterdir()):
            if any(fnmatch(f"{place.name}/{path.name}", pattern) for pattern in LEFT_OUT):
                continue
            held_out = place.name in VALID or any(fnmatch(f"{place.name}/{path.name}", pattern) for pattern in HELD_OUT)
            if place.name not in TEST:
                yield ("valid" if held_out else "train"), place.name, path


def encode(task):
    """Return index entries and WebP data of the images made from one file."""
    split, source, path = task
    if path.suffix == ".tif":
        import tifffile

        pixels = tifffile.imread(path)[..., :3]
    else:
        pixels = np.asarray(Image.open(path).convert("RGB"))
    halves = [(split, pixels)]
    if source == "naip":  # one place in eight years: western half for training, eastern half for validation
        middle = pixels.shape[1] // 2
        halves = [("train", pixels[:, :middle]), ("valid", pixels[:, middle:])]
    made = []
    for split, part in halves:
        part = remove_veil(part) if source in VEILED else part
        file = io.BytesIO()
        shrink(Image.fromarray(part), LONGEST[split]).save(file, "WEBP", quality=QUALITY, method=4)
        name = f"{split}/{source}-{path.stem}.webp"
        made.append(
            ({"file": name, "source": source, "split": split, "upright": source not in FROM_ABOVE}, file.getvalue())
        )
    return made


def main(folder: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor() as pool, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as pack:
        index = []
        for made in pool.map(encode, entries(folder)):
            for entry, data in made:
                pack.writestr(entry["file"], data)
                index.append(entry)
        pack.writestr("index.json", json.dumps(index))
    sizes = {split: sum(entry["split"] == split for entry in index) for split in LONGEST}
    print(f"{out}: {sizes}, {out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
