"""Draw what the bundled weights cannot do: images with synthetic haze, dehazed, and without haze.

    python docs/failures.py

Writes ``docs/failures.jpg``, a row for each case of the model card.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from dehazexl import dehaze, load_model
from dehazexl.synthesis.haze import depth, scatter, veil
from dehazexl.synthesis.procedural import KINDS
from dehazexl.synthesis.sample import clear_sample
from dehazexl.training.augment import to_tensor

SIDE, LINE = 512, 18


def hazy(clear: np.ndarray, field, thickness: float, airlight: tuple[float, float, float]) -> np.ndarray:
    """Put haze of one kind on a picture ``(y, x, 3)``, uint8."""
    relative = field(*clear.shape[:2], torch.Generator().manual_seed(5))
    light = torch.tensor(airlight).view(3, 1, 1)
    made = scatter(to_tensor(clear)[0], torch.exp(-thickness * relative), light)
    return np.ascontiguousarray((made * 255).round().byte().permute(1, 2, 0).numpy())


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return clear and hazy pictures by what they show."""
    photograph = clear_sample()
    meadow, wood = photograph[-SIDE:, 500 : 500 + SIDE], photograph[150 : 150 + SIDE, 300 : 300 + SIDE]
    hills = KINDS["sky"](SIDE, SIDE, np.random.default_rng(4))
    snow = np.repeat(185 + 0.25 * wood.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    return {
        "dense haze, a twentieth of the light comes through": (meadow, hazy(meadow, veil, 3.2, (0.9, 0.9, 0.9))),
        "tinted haze, as of dust": (wood, hazy(wood, veil, 1.6, (0.86, 0.74, 0.58))),
        "snow without haze: bright, pale and flat as haze is": (snow, snow),
        "haze that thickens towards a bright sky": (hills, hazy(hills, depth, 1.8, (0.93, 0.94, 0.95))),
    }


def main() -> None:
    """Draw them all on one sheet."""
    model = load_model(device="cpu", dtype="float32")
    rows = cases()
    sheet = Image.new("RGB", (3 * SIDE, len(rows) * (SIDE + LINE)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, (clear, foggy)) in enumerate(rows.items()):
        top = row * (SIDE + LINE)
        draw.text((4, top + 3), f"{name}: as it is seen, dehazed, as it was", fill="black")
        for col, pixels in enumerate((foggy, np.asarray(dehaze(foggy, model)), clear)):
            sheet.paste(Image.fromarray(pixels), (col * SIDE, top + LINE))
    sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3), Image.Resampling.LANCZOS).save(
        Path(__file__).parent / "failures.jpg", quality=85
    )


if __name__ == "__main__":
    main()
