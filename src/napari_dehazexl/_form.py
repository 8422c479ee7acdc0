"""The form of the dock widget: what everybody needs in sight, the rest folded away."""

from __future__ import annotations

from functools import partial
from typing import Any

from magicgui.widgets import (
    CheckBox,
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
from napari.layers import Image, Labels, Shapes

from dehazexl.viewing.choices import PRESETS
from napari_dehazexl._keyboard import BLUE, ignore_wheel, name_controls, reach_by_keyboard
from napari_dehazexl._scroll import Scroll
from napari_dehazexl._state import is_result

HELP = "https://napari-dehazexl.github.io/napari-dehazexl/napari/"

NUMBER = """
QAbstractSpinBox { background: transparent; border: 0; padding: 0px; min-width: 40px; max-width: 40px; }
QAbstractSpinBox::up-button, QAbstractSpinBox::down-button {
  subcontrol-origin: padding; subcontrol-position: top left; width: 1px; height: 1px;
}
"""
"""Style of the number of the slider: napari's theme reserves its width for buttons that are not there."""


class Form(Container):  # type: ignore[type-arg]
    """The fields, buttons and lines of text, one below the other.

    Parameters
    ----------
    viewer
        The viewer whose layers can be chosen.
    """

    def __init__(self, viewer: Any) -> None:
        self.viewer = getattr(viewer, "__wrapped__", viewer)  # plugins are handed a proxy, whose layers are others
        self._make_choices()
        self._make_settings()
        self._make_buttons()
        self.intro = Label(
            value=f'Removes haze from the selected image. <a href="{HELP}" style="color: {BLUE}">Help</a>',
            tooltip=f"Opens {HELP}",
        )
        self.estimate = Label(
            label="To save",
            value="",
            tooltip="Tiles, memory (besides the viewer's) and time of saving the whole image, or the region.",
        )
        self.bar = ProgressBar(
            label="Progress", value=0, min=0, max=100, visible=False, tooltip="Progress of the work."
        )
        self.status = Label(label="Status", value="", tooltip="Progress of the topmost visible dehazed layer.")
        self.more = Container(
            widgets=[
                self.preset, self.spare, self.weights, self.device, self.precision, self.overlap,
                _row("&Black, white", self.limits, self.contrast),
                self.context, self.cache, _row("", self.explain, self.maps), _row("", self.script, self.command),
                _row("", self.defaults),
            ]
        )  # fmt: skip
        self.fields = Container(
            widgets=[
                self.intro, self.input, _row("&Region", self.region, self.draw), self.planes, self.strength,
                _row("", self.dehaze, self.save_as), _row("", self.preview, self.undo, self.cancel), self.divide,
                self.estimate, self.bar, self.status,
            ]
        )  # fmt: skip
        super().__init__()
        self._add_thumbnails()
        self._fold()
        self._make_room()
        self._name()
        ignore_wheel(self.fields.native)
        reach_by_keyboard(self.fields.native)
        self.margins = (0, 0, 0, 0)
        self.native.layout().addWidget(Scroll(self.fields.native))

    def reset_choices(self, *_: Any) -> None:
        """Offer the layers that there are by now; napari calls it when they change."""
        self.fields.reset_choices()
        self.more.reset_choices()

    def _make_choices(self) -> None:
        self.input = ComboBox(
            label="&Input", choices=self._inputs, tooltip="The image to dehaze. It follows the selected layers."
        )
        region: Any = create_widget(
            annotation=Shapes | None,
            options={"tooltip": "A Shapes layer. Only the area of its selected (or last) rectangle is dehazed."},
        )
        region.null_string = "the whole image"  # instead of five dashes
        self.region = region
        self.planes = ComboBox(
            label="Save", choices=[("the plane in view", "one"), ("all planes", "all")], value="one", visible=False,
            tooltip="What Save as writes of an image with sliders: all planes become files in a folder.",
        )  # fmt: skip
        self.strength = FloatSlider(
            label="S&trength", value=1.0, min=0.0, max=1.0, step=0.05,
            tooltip="Fraction of the haze to remove, 0 to 1, in the selected dehazed layer, at once.",
        )  # fmt: skip
        self.preset = ComboBox(
            label="Preset", choices=[("own settings", None), *((name, name) for name in PRESETS)], value=None,
            tooltip="Strength and overlap to begin with, by kind of image.",
        )  # fmt: skip
        self.spare = ComboBox(
            label="Protect", choices=self._spares, value=None,
            tooltip="Nothing is removed where this Labels layer is painted, or under these shapes: sky, snow.",
        )  # fmt: skip
        self.divide = CheckBox(
            text="C&ompare before | after", value=False,
            tooltip="Show the original left of a line that can be dragged. Or hold the key H to see the original.",
        )  # fmt: skip

    def _inputs(self, widget: Any = None) -> list[tuple[str, Any]]:
        """List the layers that can be dehazed: dehazed ones stand for their source."""
        return [(each.name, each) for each in self.viewer.layers if isinstance(each, Image) and not is_result(each)]

    def _spares(self, widget: Any = None) -> list[tuple[str, Any]]:
        """List the layers that can spare parts of an image."""
        drawn = [(each.name, each) for each in self.viewer.layers if isinstance(each, Labels | Shapes)]
        return [("nothing", None), *drawn]

    def _make_settings(self) -> None:
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
            label="Overlap, pixels", choices=[("auto", None), *((str(n), n) for n in (0, 16, 32, 64, 96, 128))],
            value=None, tooltip="Overlap of neighboring tiles, where they are blended. auto: that of the weights.",
        )  # fmt: skip
        self.limits = LineEdit(
            value="", tooltip="Values of the image that are black and white, e.g. 0, 3000. Empty: those shown in gray."
        )
        self.contrast = PushButton(text="From contrast", tooltip="Take over the contrast limits of the layer.")
        self.context = ComboBox(
            label="Conte&xt", choices=[("the whole image", "all"), ("the region alone", "region")], value="all",
            tooltip="What takes part in dehazing a region. Saving it is faster with the region alone.",
        )  # fmt: skip
        self.cache = SpinBox(
            label="Cache, MB", value=512, min=16, max=65536, tooltip="Dehazed tiles to keep in memory, for each layer."
        )

    def _make_buttons(self) -> None:
        self.draw = PushButton(text="Dr&aw", tooltip="Draw a rectangle on the canvas. Only that region is dehazed.")
        self.preview = PushButton(
            text="Pr&eview view", tooltip="Dehaze the region, or the visible area, into a layer of its own."
        )
        self.dehaze = PushButton(text="&Dehaze", tooltip="Add a dehazed layer. The visible area is dehazed first.")
        self.save_as = PushButton(text="&Save as...", tooltip="Dehaze the whole image (or the region) into a file.")
        self.undo = PushButton(
            text="&Undo", tooltip="Take back the last Dehaze: stop its work, and remove the layers that it has added."
        )
        self.cancel = PushButton(
            text="&Cancel",
            tooltip="Stop saving; or else all work on the selected layers. Both can be continued.",
        )
        self.explain = PushButton(
            text="Explai&n region",
            tooltip="Show what parts of the image contribute to a rectangle of the dehazed layer. Draw it in a Shapes "
            "layer.",
        )
        self.maps = PushButton(
            text="Map the ha&ze",
            tooltip="Add layers of the transmission, the color of the haze and the share removed, in percent.",
        )
        self.defaults = PushButton(text="Restore defaults", tooltip="Reset all settings to their defaults.")
        self.script = PushButton(text="Cop&y as script", tooltip="Copy lines of Python that do what Save as does.")
        self.command = PushButton(text="Copy as command", tooltip="Copy a command line that does what Save as does.")

    def _fold(self) -> None:
        """Fold the settings away that a newcomer need not know."""
        from superqt import QCollapsible

        self.fold = QCollapsible("&More settings", expandedIcon="▾", collapsedIcon="▸")
        self.fold.setDuration(0)
        self.fold.setToolTip("Weights, device, tiles, values, region's context, memory, explanation, maps, copies.")
        self.fold.addWidget(self.more.native)
        content = self.fold.content()
        policy = content.sizePolicy()
        policy.setRetainSizeWhenHidden(True)  # of its width: unfolding does not move the canvas
        content.setSizePolicy(policy)
        content.hide()  # it only has no height otherwise, and Tab goes through it
        self.fold.toggled.connect(content.setVisible)
        self.fields.native.layout().addWidget(self.fold)

    def _add_thumbnails(self) -> None:
        """Add thumbnails of several strengths below the slider."""
        from napari_dehazexl._strengths import StrengthRow

        self.thumbnails = StrengthRow(partial(setattr, self.strength, "value"))
        layout = self.fields.native.layout()
        layout.insertWidget([*self.fields].index(self.strength) + 1, self.thumbnails)

    def _make_room(self) -> None:
        """Wrap long lines, and adjust the slider: its steps, and the width of its number, which would be cut off."""
        from qtpy.QtWidgets import QDoubleSpinBox, QSizePolicy, QSlider

        for label in (self.intro, self.estimate, self.status):
            label.native.setWordWrap(True)
            # A long line would otherwise widen the dock and move the canvas.
            label.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        for label, lines in ((self.estimate, 2), (self.status, 3)):  # room for them, so that nothing jumps
            label.native.setMinimumHeight(lines * label.native.fontMetrics().lineSpacing() + 2)
        self.intro.native.setOpenExternalLinks(True)
        slider = self.strength.native.findChild(QSlider)
        slider.setPageStep(5 * slider.singleStep())
        number = self.strength.native.findChild(QDoubleSpinBox)
        number.setDecimals(2)
        number.setStyleSheet(NUMBER)

    def _name(self) -> None:
        """Name the controls by their labels, which the underlined letters are in."""
        from qtpy.QtCore import Qt
        from qtpy.QtWidgets import QLabel

        flags = Qt.TextInteractionFlag
        self.intro.native.setTextInteractionFlags(flags.LinksAccessibleByMouse | flags.LinksAccessibleByKeyboard)
        for each in [*self.fields, *self.more]:
            parent = each.native.parentWidget()
            if parent not in (self.fields.native, self.more.native):  # a label and the field
                label = parent.findChild(QLabel, options=Qt.FindChildOption.FindDirectChildrenOnly)
                name_controls(each.native, label)

    def chosen_weights(self) -> str:
        """Return the name or path of the weights."""
        path = self.weights.value
        return "compact" if path is None or str(path) in ("", ".") else str(path)


def _row(label: str, *widgets: Any) -> Container:  # type: ignore[type-arg]
    """Return widgets side by side, with one label."""
    row = Container(widgets=widgets, layout="horizontal", labels=False, label=label)
    row.margins = (0, 0, 0, 0)
    return row


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


def format_range(values: tuple[float, float]) -> str:
    """Format a value range as `parse_range` reads it."""
    return ", ".join(f"{value:.6g}" for value in values)
