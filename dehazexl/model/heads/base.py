"""The interface of all heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dehazexl.image.grid import TILE

if TYPE_CHECKING:
    from dehazexl.model.haze import Haze
    from dehazexl.model.spec import Spec
    from dehazexl.model.tokens import Tokens, Votes


class Affine(NamedTuple):
    """The dehazed image as an affine function of the hazy one: gain times its pixels in [0, 1] plus bias.

    So the change can be blended, interpolated or weakened apart from the image's detail.

    Attributes
    ----------
    gain, bias
        ``(n, 3, h, w)``, float32.
    haze
        The haze that is removed, for heads that find it.
    """

    gain: Tensor
    bias: Tensor
    haze: Haze | None = None

    @property
    def transmission(self) -> Tensor:
        """Share of the scene's light that the haze let through ``(n, 3, h, w)``, by a head of the scattering model."""
        return 1 / self.gain if self.haze is None else self.haze.transmission


class Head(nn.Module):
    """Maps the decoder's features to gain and bias of each pixel.

    A head may ask tokens to carry more than their features: `describe` gives what they carry to the attention over
    the whole image. Afterwards the fused tokens `vote` part by part, and `carried` gives what they carry to the decoder
    instead, once the votes of all parts have been counted.

    Attributes
    ----------
    outputs
        Numbers that the last layer computes for each cell.
    scattering
        Whether gain and bias follow the atmospheric scattering model.
    votes
        Whether `vote` is to be called.
    known
        Channels of `guide`.
    overlap
        Pixels by which tiles overlap unless another number is asked for, see `Spec.overlap`.
    """

    scattering: ClassVar[bool] = False
    known: ClassVar[int] = 0
    outputs = 0
    votes = False

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Spec, bias: bool = True) -> None:
        super().__init__()
        self.stride, self.overlap = spec.head_stride, spec.overlap
        self.output = nn.Conv2d(spec.features, self.outputs, kernel_size=1, bias=bias)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    @classmethod
    def check(cls, spec: Spec) -> None:
        """Raise a ValueError for a spec that the head cannot serve."""
        if spec.prior or spec.guided or spec.airlight != "pixels":
            raise ValueError(f"prior, guided and airlight need the head 'scattering', not {spec.head!r}")
        if spec.overview or spec.scale != 1:
            raise ValueError(f"overview and scale need the head 'field', not {spec.head!r}")

    def initialize(self) -> None:
        """Start from random weights that change the image slightly."""
        nn.init.normal_(self.output.weight, std=0.02)
        if self.output.bias is not None:
            nn.init.zeros_(self.output.bias)

    def describe(self, tiles: Tensor) -> Tensor | None:
        """Return what the tokens of tiles ``(n, 3, 256, 256)`` in [0, 1] carry: ``(n, 8, 8, extra)``, or None."""
        return None

    def colors(self, extra: Tensor) -> Tensor:
        """Return the shrunk image ``(n, 3, H, W)``, float32, that the tokens of an image ``(n, h, w, extra)`` carry.

        For heads whose spec may have an overview.
        """
        raise NotImplementedError

    def vote(self, tokens: Tokens) -> Votes:
        """Return the votes of some fused tokens on numbers of the whole image."""
        raise NotImplementedError

    def carried(self, votes: Tensor, tokens: Tokens, overlap: float) -> Tensor:
        """Return what fused tokens carry to the decoder.

        Parameters
        ----------
        votes
            Weighted mean of the votes of all tokens ``(n, ways, numbers)``.
        tokens
            A rectangle of tiles; the result depends on the tiles around a tile, too.
        overlap
            Of the tiles, in pixels as the network sees them.

        Returns
        -------
        Tensor
            ``(n, h, w, k)``, k at most `extra`.
        """
        raise NotImplementedError

    def air(self, carried: Tensor) -> Tensor | None:
        """Return the airlight of the whole image ``(n, 3, 1, 1)`` in [0, 1], float32, that fused tokens carry, or None.

        `carried` is that of `forward`.
        """
        return None

    def guide(self, carried: Tensor) -> Tensor | None:
        """Return what the decoder is told of ``(n, 8, 8, extra)``: ``(n, 64, 64, known)``, or None."""
        return None

    def forward(self, features: Tensor, carried: Tensor, inputs: Tensor, tiles: Tensor) -> Affine:
        """Compute gain and bias of tiles, in float32.

        Parameters
        ----------
        features
            Of the decoder ``(n, c, 256 / stride, 256 / stride)``.
        carried
            What the fused tokens carry ``(n, 8, 8, extra)``.
        inputs
            With a stride of 4, the input channels at that stride ``(n, 64, 64, 3 + inputs)``, else anything.
        tiles
            Their pixels ``(n, 3, side, side)`` in [0, 1].
        """
        raise NotImplementedError

    def normalized(self, tiles: Tensor) -> Tensor:
        """Normalize pixels as the spec says."""
        return (tiles - self.mean.float()) / self.std.float()

    def denormalized(self, gain: Tensor, bias: Tensor) -> Affine:
        """Go from gain and bias of normalized pixels to those of pixels in [0, 1]."""
        return Affine(gain, bias * self.std.float() + (1 - gain) * self.mean.float())


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer in float32."""
    return F.linear(x.float(), layer.weight.float(), layer.bias.float())


def convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a layer in float32 to features ``(n, c, h, w)``."""
    return F.conv2d(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def enlarge(x: Tensor, size: int = TILE) -> Tensor:
    """Interpolate ``(n, c, h, w)`` linearly to ``(n, c, size, size)``."""
    return x if x.shape[-1] == size else F.interpolate(x, size=(size, size), mode="bilinear")


def haziness(colors: Tensor) -> Tensor:
    """Return the logarithm of the weight of tokens by their colors ``(n, tokens, 3)``: ``(n, tokens, 1)``.

    Haze is bright in its darkest color, too (the dark channel prior, He, Sun and Tang, 2011). Tokens that are white
    throughout show no haze: borders of scans, clouds, blown-out highlights.
    """
    darkest = colors.amin(-1, keepdim=True)
    return SHARPNESS * darkest * (darkest < SATURATED)


def logits(colors: Tensor) -> Tensor:
    """Return the logits of colors in [0, 1], kept off the ends."""
    return torch.logit(colors.clamp(0.02, 0.98))


SHARPNESS = 40.0
"""Slope of the log weight over the darkest color: a factor of e for each 1/40."""

SATURATED = 0.98
"""Darkest color from which on tokens count as saturated."""
