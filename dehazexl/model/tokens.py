"""Tokens of an image while they are fused, and their votes on numbers of the whole image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Some tokens of images, as a grid of whole tiles.

    Attributes
    ----------
    features
        ``(n, h, w, c)``.
    extra
        What the head asks tokens to carry, such as their colors: ``(n, h, w, k)``.
    valid
        Tokens with data ``(n, h, w)``, bool, where n is 1; None for all.
    """

    features: Tensor
    extra: Tensor
    valid: Tensor | None = None

    def select(self) -> tuple[Tensor, Tensor]:
        """Return features and extra channels of the tokens with data, ``(n, tokens, c)`` and ``(n, tokens, k)``."""
        if self.valid is None:
            return self.features.flatten(1, 2), self.extra.flatten(1, 2)
        return self.features[self.valid][None], self.extra[self.valid][None]


class Votes(NamedTuple):
    """Votes of tokens on numbers of the whole image, in several ways to weigh them.

    Attributes
    ----------
    log_weight
        Logarithm of the sum of their weights ``(n, ways)``.
    mean
        Their weighted mean ``(n, ways, numbers)``.
    """

    log_weight: Tensor
    mean: Tensor


def count_votes(log_weights: Tensor, numbers: Tensor) -> Votes:
    """Count the votes ``(n, tokens, numbers)`` of tokens with logarithms of weights ``(n, tokens, ways)``."""
    return Votes(log_weights.logsumexp(1), log_weights.softmax(1).transpose(1, 2) @ numbers)


def merge(votes: list[Votes]) -> Tensor:
    """Return the weighted mean ``(n, ways, numbers)`` of the votes of all parts of an image."""
    weights = torch.stack([each.log_weight for each in votes]).softmax(0)
    return (weights[..., None] * torch.stack([each.mean for each in votes])).sum(0)
