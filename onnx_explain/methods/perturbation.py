"""Methods that change the input and watch the score: forward passes alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Perturbation:
    """How a black-box method changes the input."""

    kind: str = "perturbation"
