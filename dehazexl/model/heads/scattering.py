"""Head ``scattering``: transmission and airlight of each pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dehazexl.image.grid import TOKEN
from dehazexl.model.context import RMSNorm
from dehazexl.model.heads.base import Affine, Head, convolution, enlarge, haziness, linear, logits
from dehazexl.model.tokens import Tokens, Votes, count_votes

if TYPE_CHECKING:
    from dehazexl.model.spec import Spec

TRANSMISSION_FLOOR = 0.05
"""Lowest transmission; below it, nothing can be recovered."""

START = 1.4
"""Logit of transmission and airlight at the start of a training, 0.8."""


class Airlight(nn.Module):
    """Votes of tokens on the airlight: the colors of the haziest, with learned corrections and weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, 4)

    def forward(self, features: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
        """Return logarithms of weights ``(n, tokens, 1)``, and logits of the airlight ``(n, tokens, 3)``."""
        learned = linear(self.output, self.norm(features))
        return learned[..., :1] + haziness(colors), learned[..., 1:] + logits(colors)


class Scattering(Head):
    """Out = (x - A) / t + A, the atmospheric scattering model solved for the scene.

    Koschmieder's law, I = J t + A (1 - t). Transmission t and airlight A are predicted for each pixel and color,
    because haze scatters short wavelengths more. The spec may ask for one airlight of the whole image, for the dark
    channel prior as the initial transmission, and for detail of the transmission by the edges of the image.
    """

    scattering = True

    def __init__(self, spec: Spec) -> None:
        self.outputs = 6 if spec.airlight == "pixels" else 3
        super().__init__(spec)
        self.prior = spec.prior
        self.airlight = Airlight(spec.widths[-1]) if spec.airlight == "picture" else None
        self.votes = self.airlight is not None
        self.slopes = nn.Conv2d(spec.features, 3, kernel_size=1) if spec.guided else None

    @classmethod
    def check(cls, spec: Spec) -> None:
        """See `Head.check`."""
        asked = {"prior": spec.prior, "airlight 'picture'": spec.airlight == "picture", "guided": spec.guided}
        if spec.head_stride != 4 and any(asked.values()):
            raise ValueError(f"{', '.join(name for name, on in asked.items() if on)} needs head_stride 4")
        if spec.prior and "dark" not in spec.inputs:
            raise ValueError("prior needs 'dark' among the inputs")
        if spec.overview or spec.scale != 1:
            raise ValueError(f"overview and scale need the head 'field', not {spec.head!r}")

    def initialize(self) -> None:
        """Start with little haze, or at the prior's; an airlight of the image a little brighter than the haziest."""
        super().initialize()
        assert self.output.bias is not None
        nn.init.constant_(self.output.bias, START)
        if self.prior:
            nn.init.zeros_(self.output.bias[:3])
        if self.slopes is not None:
            assert self.slopes.bias is not None
            nn.init.zeros_(self.slopes.weight)
            nn.init.zeros_(self.slopes.bias)
        if self.airlight is not None:
            nn.init.zeros_(self.airlight.output.weight)
            self.airlight.output.bias.data.copy_(torch.tensor([0, 0.5, 0.5, 0.5]))

    def describe(self, tiles: Tensor) -> Tensor | None:
        """Return the mean colors of tokens, see `Head.describe`."""
        return None if self.airlight is None else F.avg_pool2d(tiles, TOKEN).permute(0, 2, 3, 1)

    def vote(self, tokens: Tokens) -> Votes:
        """Let tokens vote on the airlight, see `Head.vote`."""
        assert self.airlight is not None
        with torch.autocast(tokens.features.device.type, enabled=False):
            features, colors = tokens.select()
            return count_votes(*self.airlight(features, colors.float()))

    def carried(self, votes: Tensor, tokens: Tokens, overlap: float) -> Tensor:
        """Return the logits of the airlight, everywhere the same, see `Head.carried`."""
        return votes[:, None].expand(*tokens.features.shape[:3], -1)  # one way to weigh

    def air(self, carried: Tensor) -> Tensor | None:
        """See `Head.air`."""
        return None if self.airlight is None else torch.sigmoid(carried[:, 0, 0, :, None, None].float())

    def forward(self, features: Tensor, carried: Tensor, inputs: Tensor, tiles: Tensor) -> Affine:
        """See `Head.forward`."""
        parameters = convolution(self.output, features)
        if self.airlight is not None:
            airlight = enlarge(carried.permute(0, 3, 1, 2).float(), parameters.shape[-1])
            parameters = torch.cat([parameters, airlight], dim=1)
        if self.prior:
            parameters = add_prior(parameters, inputs[..., 3].float()[:, None])
        parameters = enlarge(parameters)
        if self.slopes is not None:
            slopes = enlarge(convolution(self.slopes, features))
            parameters = add_detail(parameters, slopes, self.normalized(tiles))
        return removal(parameters)


def removal(parameters: Tensor) -> Affine:
    """Return gain and bias from the logits of t and A ``(n, 6, h, w)``."""
    t, airlight = torch.sigmoid(parameters).chunk(2, dim=1)
    gain = 1 / (TRANSMISSION_FLOOR + (1 - TRANSMISSION_FLOOR) * t)
    return Affine(gain, airlight * (1 - gain))


def add_detail(parameters: Tensor, slopes: Tensor, colors: Tensor) -> Tensor:
    """Let the transmission follow the edges of the image between cells of 4 x 4 pixels.

    A local linear model of the colors, as the guided filter's (He, Sun and Tang, 2013), with learned slopes.

    Parameters
    ----------
    parameters
        Logits of transmission and airlight ``(n, 6, h, w)``.
    slopes, colors
        ``(n, 3, h, w)``.
    """
    detail = colors - enlarge(F.avg_pool2d(colors, 4))
    transmission, airlight = parameters.chunk(2, dim=1)
    return torch.cat([transmission + (slopes * detail).sum(1, keepdim=True), airlight], dim=1)


def add_prior(parameters: Tensor, dark: Tensor) -> Tensor:
    """Add the logits of the dark channel prior's transmission.

    He, Sun and Tang, Single image haze removal using dark channel prior, 2011: t = 1 - 0.95 dark / A.

    Parameters
    ----------
    parameters
        Logits of transmission and airlight ``(n, 6, h, w)``.
    dark
        Dark channel ``(n, 1, h, w)`` in [0, 1].
    """
    transmission, airlight = parameters.chunk(2, dim=1)
    prior = 1 - 0.95 * dark / torch.sigmoid(airlight)
    return torch.cat([transmission + torch.logit(prior.clamp(0.05, 0.98)), airlight], dim=1)
