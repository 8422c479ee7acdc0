"""Specification of a network: plain numbers that a weights file can contain."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from dehazexl.image.grid import OVERLAP, TILE

DARK_RADIUS = 7
"""Radius in pixels of the neighborhood of the dark channel (15 x 15, He et al. 2009)."""

MAX_WIDTH, MAX_DEPTH = 512, 64
"""Channels of the first stage and layers of a stage at most: more would fill the memory before the weights are read."""

PATCHES, CELLS = 4, 2
"""Along a token's side: patches whose mean colors it carries for the head ``field``, and cells of that field."""

INPUTS = ("dark", "bright")
AIRLIGHTS = ("pixels", "picture")


MAPS = tuple(TILE // 4 // 2**stage for stage in range(4))
"""Sides of a tile's feature maps, in cells."""


@dataclass(frozen=True)
class Spec:
    """Sizes and choices of a DehazeXL network. The defaults are the official network's.

    Attributes
    ----------
    widths, depths, heads
        Channels, blocks and attention heads of the encoder's four stages (strides 4, 8, 16, 32).
    window
        Side of the encoder's attention windows, in feature-map cells.
    context_layers, context_heads
        Layers and heads of the attention over the tokens of all tiles.
    context_pool
        Side of the square of tokens that share one key and value in that attention: 1, 2, 4 or 8. The cost of
        the attention falls with its square.
    decoder_depths, decoder_heads, decoder_window
        Blocks, heads and window of the decoder's four levels, coarsest first.
    head
        How the decoder's output becomes pixels: ``residual`` (x + r), ``gain`` (x + K x + B),
        ``scattering`` ((x - A) / t + A, the atmospheric scattering model solved for the scene) or ``field`` (the same
        model with one field of thickness over the whole image and one airlight, see `dehazexl.model.haze`).
    head_stride
        1: the head's parameters are computed for every pixel, through two learned upsamplings. 4: they are
        computed for every 4 x 4 pixels and interpolated, which suits heads whose parameters are smooth.
    prior
        Take the dark channel prior (t = 1 - 0.95 dark / A) for the transmission, and let the network correct it. For
        the scattering head at stride 4, with the dark channel among its inputs; for the head ``field``, whose tokens
        decide how far to trust the prior.
    airlight
        ``pixels``: the scattering head's airlight comes out of the decoder, like the transmission. ``picture``: there
        is one for the whole image, on which all tokens vote, see `heads.scattering`. For the scattering head at
        stride 4.
    guided
        Let the transmission follow the edges of the image between those 4 x 4 pixels, by a local linear model of the
        colors with learned slopes. For the scattering head at stride 4.
    context_local
        Side in tokens (odd) of a depthwise convolution over the grid of all tokens before each layer of the global
        attention, across the borders of tiles; 0: none.
    overview
        Let the whole image, shrunk to one tile, take part in the global attention. For the head ``field``.
    scale
        The network sees the image at 1 / scale of its resolution: a tile is 256 scale pixels wide. The haze is removed
        at full resolution. For the head ``field``.
    local
        Side in pixels of the map (odd) of a depthwise convolution before each block of encoder and decoder; 0: none.
    inputs
        Channels computed from the image and passed to the encoder in addition to R, G, B: ``dark`` (the dark
        channel: minimum over colors and a 15 x 15 neighborhood) and ``bright`` (the maximum likewise).
    mean, std
        Mean and standard deviation of each color channel, for images in [0, 1].
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 16
    context_layers: int = 2
    context_heads: int = 8
    context_pool: int = 1
    decoder_depths: tuple[int, ...] = (2, 2, 2, 2)
    decoder_heads: tuple[int, ...] = (24, 12, 6, 3)
    decoder_window: int = 8
    head: str = "residual"
    head_stride: int = 1
    prior: bool = False
    airlight: str = "pixels"
    guided: bool = False
    local: int = 0
    context_local: int = 0
    overview: bool = False
    scale: int = 1
    inputs: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        if unknown := set(self.inputs) - set(INPUTS):
            raise ValueError(f"unknown inputs {sorted(unknown)}; choose among {', '.join(INPUTS)}")
        if len(set(self.inputs)) < len(self.inputs):
            raise ValueError(f"inputs {self.inputs} names a channel twice")
        if self.head_stride not in (1, 4):
            raise ValueError(f"head_stride is 1 or 4, not {self.head_stride}")
        if self.airlight not in AIRLIGHTS:
            raise ValueError(f"airlight is one of {', '.join(AIRLIGHTS)}, not {self.airlight!r}")
        if self.scale not in (1, 2, 4):
            raise ValueError(f"scale is 1, 2 or 4, not {self.scale}")
        for name in ("local", "context_local"):
            if getattr(self, name) not in (0, 3, 5, 7):
                raise ValueError(f"{name} is 0, 3, 5 or 7, not {getattr(self, name)}")
        if self.context_pool not in (1, 2, 4, 8):
            raise ValueError(f"context_pool is 1, 2, 4 or 8, not {self.context_pool}")
        for name in ("window", "decoder_window"):
            side = getattr(self, name)
            if side < 2 or any(size > side and size % side for size in MAPS):
                raise ValueError(f"{name} must divide each of {MAPS} that is larger, and be 2 or more, not {side}")
        for name in ("widths", "depths", "heads", "decoder_depths", "decoder_heads"):
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name} needs four numbers, one a stage, not {getattr(self, name)}")
        self._check_sizes()
        self._check_widths()

    def _check_sizes(self) -> None:
        """Check the numbers of which a network could be built that does not fit into memory."""
        context = {"context_layers": (self.context_layers,), "context_heads": (self.context_heads,)}
        for name, limit in (
            ("widths", 8 * MAX_WIDTH),
            ("depths", MAX_DEPTH),
            ("decoder_depths", MAX_DEPTH),
            ("context_layers", MAX_DEPTH),
            ("heads", 16 * MAX_WIDTH),
            ("decoder_heads", 16 * MAX_WIDTH),
            ("context_heads", 16 * MAX_WIDTH),
        ):
            numbers = context.get(name) or getattr(self, name)
            least = 0 if name == "context_layers" else 1
            if not all(type(number) is int and least <= number <= limit for number in numbers):
                raise ValueError(f"{name} must be whole numbers from {least} to {limit}, not {getattr(self, name)}")

    def _check_widths(self) -> None:
        """Check what else would only show as an error of shapes somewhere in the network."""
        if any(wide != 2 * narrow for narrow, wide in zip(self.widths, self.widths[1:], strict=False)):
            raise ValueError(f"widths must double from stage to stage, not {self.widths}")
        joined = [2 * width for width in reversed(self.widths)]
        for name, widths, heads in (
            ("heads", self.widths, self.heads),
            ("decoder_heads", joined, self.decoder_heads),
            ("context_heads", self.widths[-1:], (self.context_heads,)),
        ):
            if any(width % count for width, count in zip(widths, heads, strict=True)):
                raise ValueError(f"{name} {heads} must divide the channels {tuple(widths)}")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            finite = len(numbers) == 3 and all(map(math.isfinite, numbers))
            if not finite or (name == "std" and min(numbers) <= 0):
                raise ValueError(f"{name} needs three finite numbers, one a color, std above 0, not {numbers}")

    @property
    def halo(self) -> int:
        """Pixels of the image around a tile that its input channels depend on."""
        return self.scale * DARK_RADIUS if self.inputs else 0

    @property
    def tile(self) -> int:
        """Side of a tile in pixels of the image."""
        return self.scale * TILE

    @property
    def features(self) -> int:
        """Channels of the decoder's features."""
        return 2 * self.widths[0] if self.head_stride == 4 else self.widths[0] // 8

    @property
    def overlap(self) -> int:
        """Pixels by which tiles overlap unless another number is asked for; those of the head ``field`` just meet."""
        return 0 if self.head == "field" else OVERLAP

    @property
    def channels(self) -> int:
        """Number of channels of a token: its features, and what it carries for the head."""
        carried = 3 if self.airlight == "picture" else 0
        if self.head == "field":
            carried = 3 * PATCHES**2 + (3 * CELLS**2 if self.prior else 0)
        return self.widths[-1] + carried

    @property
    def least_parameters(self) -> int:
        """Number of weights in the matrices of attention and MLP, which are most of a network: 12 squared widths."""
        decoder = zip(reversed(self.widths), self.decoder_depths, strict=True)  # of joined maps, twice as wide
        layers = [*zip(self.widths, self.depths, strict=True), (self.widths[-1], self.context_layers)]
        return 12 * sum(width**2 * depth for width, depth in [*layers, *((2 * w, depth) for w, depth in decoder)])

    def to_json(self) -> str:
        """Return the spec as JSON; `from_json` is the inverse."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Read a spec written by `to_json`.

        Raises
        ------
        ValueError
            If the text is not such a spec, or names a field this version does not know.
        """
        try:
            values = json.loads(text)
        except RecursionError:
            raise ValueError("not a DehazeXL spec: it is nested without end") from None
        known = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= known:
            extra = sorted(set(values) - known) if isinstance(values, dict) else values
            raise ValueError(f"not a DehazeXL spec of this version: unknown {extra}; update napari-dehazexl")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**arguments)
        except (TypeError, ZeroDivisionError) as error:
            raise ValueError(f"not a DehazeXL spec: {error}") from None


_FIELD: dict[str, Any] = {
    "head": "field",
    "head_stride": 4,
    "local": 5,
    "context_local": 5,
    "overview": True,
    "scale": 2,
    "prior": True,
    "inputs": ("dark", "bright"),
}

SPECS = {
    "official": Spec(),
    "official-small": Spec(depths=(2, 2, 18, 2)),
    "official-base": Spec(
        widths=(128, 256, 512, 1024), depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), decoder_heads=(32, 16, 8, 4)
    ),
    "official-large": Spec(
        widths=(192, 384, 768, 1536), depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), decoder_heads=(48, 24, 12, 6)
    ),
    "compact": Spec(
        widths=(32, 64, 128, 256),
        heads=(1, 2, 4, 8),
        context_heads=4,
        context_pool=4,
        decoder_depths=(2, 2, 2, 1),
        decoder_heads=(16, 8, 4, 2),
        head="scattering",
        head_stride=4,
        prior=True,
        airlight="picture",
        guided=True,
        local=5,
        inputs=("dark", "bright"),
    ),
    "fast": Spec(
        widths=(32, 64, 128, 256),
        heads=(1, 2, 4, 8),
        context_heads=4,
        context_pool=4,
        decoder_depths=(2, 2, 2, 1),
        decoder_heads=(16, 8, 4, 2),
        **_FIELD,
    ),
    "tiny-field": Spec(
        widths=(8, 16, 32, 64),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 4, 8),
        context_heads=2,
        context_pool=4,
        decoder_depths=(1, 1, 2, 1),
        decoder_heads=(8, 4, 2, 1),
        **_FIELD,
    ),
    "tiny": Spec(
        widths=(8, 16, 32, 64),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 4, 8),
        context_heads=2,
        context_pool=4,
        decoder_depths=(1, 1, 2, 1),
        decoder_heads=(8, 4, 2, 1),
        head="scattering",
        head_stride=4,
        inputs=("dark", "bright"),
    ),
}
"""Named specs. ``official`` is the paper's SwinV2-tiny; -small, -base and -large its ablation's encoders."""


def spec_from_text(text: str) -> Spec:
    """Return a named spec, or one given as JSON.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if text in SPECS:
        return SPECS[text]
    if text.lstrip().startswith("{"):
        try:
            return Spec.from_json(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the spec {text!r} is not JSON: {error}") from None
    raise ValueError(f"unknown spec {text!r}: give JSON or one of {', '.join(SPECS)}")
