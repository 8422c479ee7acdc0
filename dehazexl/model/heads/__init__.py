"""Heads: from the decoder's features to the dehazed image. Each is one class; `HEADS` names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dehazexl.model.heads.base import Affine, Head
from dehazexl.model.heads.field import Field
from dehazexl.model.heads.pixelwise import Gain, Residual
from dehazexl.model.heads.scattering import Scattering

if TYPE_CHECKING:
    from dehazexl.model.spec import Spec

__all__ = ["HEADS", "Affine", "Head", "head_of"]

HEADS: dict[str, type[Head]] = {"residual": Residual, "gain": Gain, "scattering": Scattering, "field": Field}
"""Heads by the name that a spec gives."""


def head_of(spec: Spec) -> type[Head]:
    """Return the head of a spec.

    Raises
    ------
    ValueError
        If there is no such head, or the spec does not suit it.
    """
    if spec.head not in HEADS:
        raise ValueError(f"unknown head {spec.head!r}; choose one of {', '.join(HEADS)}")
    head = HEADS[spec.head]
    head.check(spec)
    return head
