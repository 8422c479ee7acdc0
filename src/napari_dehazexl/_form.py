"""The look of the dock widget: what can be chosen and pressed."""

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
"""Style of the slider's number: napari's theme keeps all its room for buttons that it has not."""


class Form(Container):  # type: ignore[type-arg]
    """All that is to be chosen, pressed and read, one below the other."""

    def __init__(self) -> None:
        self._make_choices()
        self._make_buttons()
        self.estimate = Label(
            label="Estimate",
            value="",
            tooltip="What saving all of it (or the region) takes; the memory is beside the viewer's own.",
        )
        self.bar = ProgressBar(value=0, min=0, max=100, visible=False, tooltip="How far the save is.")
        self.status = Label(label="Status", value="", tooltip="How far the uppermost dehazed layer is.")
        rows = [
            Container(widgets=row, layout="horizontal", labels=False)
            for row in ([self.preview, self.dehaze], [self.save_as, self.cancel])
        ]
        for row in rows:
            row.margins = (0, 0, 0, 0)
        super().__init__(
            widgets=[
                self.input, self.region, self.weights, self.device, self.precision, self.overlap, self.strength,
                self.limits, self.cache, self.estimate, *rows, self.defaults, self.bar, self.status,
            ]
        )  # fmt: skip
        self._make_room()

    def _make_choices(self) -> None:
        self.input = _layer_of(Image, "Input", "The RGB layer to dehaze, of two dimensions.")
        self.region = _layer_of(
            Shapes | None, "Region", "A Shapes layer: only what its selected (or last) rectangle covers is dehazed."
        )
        self.region.null_string = "the whole picture"  # instead of five dashes
        self.weights = FileEdit(
            label="Weights", nullable=True, value=None, filter="*.safetensors *.pth",
            tooltip="A weights file of dehazexl train, or an official .pth. Empty: the bundled weights.",
        )  # fmt: skip
        self.device = ComboBox(
            label="Device", choices=["auto"], value="auto",
            tooltip="Where the network runs, with its memory. auto: a GPU if there is one.",
        )  # fmt: skip
        self.precision = ComboBox(
            label="Precision", choices=["auto", "float32", "bfloat16", "float16"], value="auto",
            tooltip="What the network computes in. auto: half precision where that is faster.",
        )  # fmt: skip
        self.overlap = ComboBox(
            label="Overlap", choices=[("auto", None), *((str(n), n) for n in (0, 16, 32, 64, 96, 128))], value=None,
            tooltip="Pixels by which tiles overlap and are blended. auto: what suits the weights.",
        )  # fmt: skip
        self.strength = FloatSlider(
            label="Strength", value=1.0, min=0.0, max=1.0,
            tooltip="Share of the haze that is removed, 0 to 1. Moves dehazed layers at once, but not saved ones.",
        )  # fmt: skip
        self.limits = LineEdit(
            label="Range", value="",
            tooltip="Black and white in the picture's values, e.g. 0, 3000. Empty: the contrast limits, if chosen.",
        )  # fmt: skip
        self.cache = SpinBox(
            label="Cache", value=512, min=16, max=65536,
            tooltip="Megabytes of dehazed tiles that each dehazed layer keeps in memory.",
        )  # fmt: skip

    def _make_buttons(self) -> None:
        self.preview = PushButton(
            text="Preview view", tooltip="Dehaze the region, or what is on screen, into its own layer."
        )
        self.dehaze = PushButton(text="Dehaze", tooltip="Add a dehazed layer; what is on screen comes first.")
        self.save_as = PushButton(text="Save as...", tooltip="Dehaze all of it (or the region) into a file.")
        self.cancel = PushButton(text="Cancel", tooltip="Stop dehazing and saving. A save goes on when asked again.")
        self.defaults = PushButton(text="Restore defaults", tooltip="Set everything as it was at first.")

    def _make_room(self) -> None:
        """Wrap long lines, and leave room for the slider's number, which Qt would cut off in a narrow dock."""
        from qtpy.QtWidgets import QDoubleSpinBox, QSizePolicy

        for label in (self.estimate, self.status):
            label.native.setWordWrap(True)
            # Else a long line would make the dock wider, and the canvas jump.
            label.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        number = self.strength.native.findChild(QDoubleSpinBox)
        number.setDecimals(2)
        number.setStyleSheet(NUMBER)
        self.bar.label = "Progress"  # the first label that changes makes all of one width

    def chosen_weights(self) -> str:
        """Return the name or path of the weights."""
        path = self.weights.value
        return "compact" if path is None or str(path) in ("", ".") else str(path)


def _layer_of(kind: Any, label: str, tooltip: str) -> Any:
    """Return a choice among the viewer's layers of a kind."""
    return create_widget(annotation=kind, label=label, options={"tooltip": tooltip})


def parse_range(text: str) -> tuple[float, float] | None:
    """Read two rising numbers with a comma between, or None from nothing."""
    if not text.strip():
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"value range {text!r} is not two numbers: write black, white, e.g. 0, 3000") from None
    if not low < high:
        raise ValueError(f"value range {text!r} does not rise: write black, white, e.g. 0, 3000")
    return low, high
