"""Split folders of clear images by place into training and validation sets of ``.npy`` files.

    python benchmarks/weights/prepare.py IMAGES OUT

`IMAGES` contains the folders ``brighton``, ``kodak`` and ``naip`` (see docs/model-card.md). ``OUT/train`` and
``OUT/valid`` will contain ``.npy`` files (h, w, 3), uint8. The NAIP images show one place in eight years: their western
half is for training, the eastern half for validation. Of the other sources, whole images are held out.
"""

import sys
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from dehazexl.training.datasets import find_clear
from dehazexl.training.rgb_files import read_rgb

HELD_OUT = ("brighton/DJI_003[01]*", "kodak/kodim0[49]*", "kodak/kodim14*", "kodak/kodim2[02]*")


def main(images: Path, out: Path) -> None:
    for part in ("train", "valid"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for source in find_clear([images / "brighton", images / "kodak", images / "naip"]):
        path = source.clear
        pixels, name = read_rgb(path), f"{path.parent.name}-{path.stem}.npy"
        if path.parent.name == "naip":
            middle = pixels.shape[1] // 2
            np.save(out / "train" / name, pixels[:, :middle])
            np.save(out / "valid" / name, pixels[:, middle:])
        else:
            held_out = any(fnmatch(path.as_posix(), f"*/{pattern}") for pattern in HELD_OUT)
            np.save(out / ("valid" if held_out else "train") / name, pixels)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
