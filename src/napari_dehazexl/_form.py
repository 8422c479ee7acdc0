"""The form of the dock widget: its fields, buttons and lines of text."""

from __future__ import annotations

from typing import Any

from magicgui.widgets import (
    ComboBox,
    Container,
    FileEdit,
    FloatSlider,
    Label,
    LineEdit,
    ProgressBar,
    PushButton,
    SpinBox,
    create_widget,
)
from napari.layers import Image, Shapes

NUMBER = """
QAbstractSpinBox { background: transparent; border: 0; padding: 0px; min-width: 40px; max-width: 40px; }
QAbstractSpinBox::up-button, QAbstractSpinBox::down-button {
  subcontrol-origin: padding; subcontrol-position: top left; width: 1px; height: 1px;
}
"""
"""Style of the number of the slider: napari's theme reserves its width for buttons that are not there."""


class Form(Container):  # type: ignore[type-arg]
    """The fields, buttons and lines of text, one below the other."""

    def __init__(self) -> None:
        self._make_choices()
        self._make_buttons()
        self.estimate = Label(
            label="Estimate",
            value="",
            tooltip="Tiles, memory (besides the viewer's) and time of saving the whole image, or the region.",
        )
        self.bar = ProgressBar(value=0, min=0, max=100, visible=False, tooltip="Progress of the save.")
        self.status = Label(label="Status", value="", tooltip="Progress of the topmost visible dehazed layer.")
        rows = [
            Container(widgets=row, layout="horizontal", labels=False)
            for row in ([self.preview, self.dehaze], [self.save_as, self.cancel], [self.explain, self.defaults])
        ]
        for row in rows:
            row.margins = (0, 0, 0, 0)
        super().__init__(
            widgets=[
                self.input, self.region, self.weights, self.device, self.precision, self.overlap, self.strength,
                self.limits, self.cache, self.estimate, *rows, self.bar, self.status,
            ]
        )  # fmt: skip
        self._make_room()

    def _make_choices(self) -> None:
        self.input = _layer_of(Image, "Input", "The two-dimensional RGB layer to dehaze.")
        self.region = _layer_of(
            Shapes | None, "Region", "A Shapes layer. Only the area of its selected (or last) rectangle is dehazed."
        )
        self.region.null_string = "the whole image"  # instead of five dashes
        self.weights = FileEdit(
            label="Weights", nullable=True, value=None, filter="*.safetensors *.pth",
            tooltip="A weights file of dehazexl train, or an official .pth file. Empty: the bundled weights.",
        )  # fmt: skip
        self.device = ComboBox(
            label="Device", choices=["auto"], value="auto",
            tooltip="Device that runs the network, and its memory. auto: a GPU if there is one.",
        )  # fmt: skip
        self.precision = ComboBox(
            label="Precision", choices=["auto", "float32", "bfloat16", "float16"], value="auto",
            tooltip="Number format of the network. auto: half precision where that is faster.",
        )  # fmt: skip
        self.overlap = ComboBox(
            label="Overlap", choices=[("auto", None), *((str(n), n) for n in (0, 16, 32, 64, 96, 128))], value=None,
            tooltip="Overlap of neighboring tiles in pixels, where they are blended. auto: the default of the weights.",
        )  # fmt: skip
        self.strength = FloatSlider(
            label="Strength", value=1.0, min=0.0, max=1.0,
            tooltip="Fraction of the haze to remove, 0 to 1. Applied to dehazed layers at once, but not to saved ones.",
        )  # fmt: skip
        self.limits = LineEdit(
            label="Range", value="",
            tooltip="Values that are black and white, e.g. 0, 3000. Empty: the contrast limits, if you chose them.",
        )  # fmt: skip
        self.cache = SpinBox(
            label="Cache", value=512, min=16, max=65536,
            tooltip="Megabytes of dehazed tiles to keep in memory, for each layer.",
        )  # fmt: skip

    def _make_buttons(self) -> None:
        self.preview = PushButton(
            text="Preview view", tooltip="Dehaze the region, or the visible area, into a layer of its own."
        )
        self.dehaze = PushButton(text="Dehaze", tooltip="Add a dehazed layer. The visible area is dehazed first.")
        self.save_as = PushButton(text="Save as...", tooltip="Dehaze the whole image (or the region) into a file.")
        self.cancel = PushButton(
            text="Cancel", tooltip="Stop dehazing, saving and explaining. The first two can be continued later."
        )
        self.explain = PushButton(
            text="Explain region",
            tooltip="Show what parts of the image contribute to a rectangle of the dehazed layer. Draw it in a Shapes "
            "layer.",
        )
        self.defaults = PushButton(text="Restore defaults", tooltip="Reset all settings to their defaults.")

    def _make_room(self) -> None:
        """Wrap long lines, and reserve the width of the number of the slider, which a narrow dock would cut off."""
        from qtpy.QtWidgets import QDoubleSpinBox, QSizePolicy

        for label in (self.estimate, self.status):
            label.native.setWordWrap(True)
            # A long line would otherwise widen the dock and move the canvas.
            label.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        number = self.strength.native.findChild(QDoubleSpinBox)
        number.setDecimals(2)
        number.setStyleSheet(NUMBER)
        self.bar.label = "Progress"  # a label that is set later would change the width of all

    def chosen_weights(self) -> str:
        """Return the name or path of the weights."""
        path = self.weights.value
        return "compact" if path is None or str(path) in ("", ".") else str(path)


def _layer_of(kind: Any, label: str, tooltip: str) -> Any:
    """Return a choice among the layers of a kind."""
    return create_widget(annotation=kind, label=label, options={"tooltip": tooltip})


def parse_range(text: str) -> tuple[float, float] | None:
    """Parse two rising numbers, separated by a comma; None if the text is empty."""
    if not text.strip():
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"value range {text!r} is not two numbers: write black, white, e.g. 0, 3000") from None
    if not low < high:
        raise ValueError(f"value range {text!r} does not rise: write black, white, e.g. 0, 3000")
    return low, high
