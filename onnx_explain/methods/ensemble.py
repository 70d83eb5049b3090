"""Methods that average one backward pass over many points: on the way from a baseline, or in noise around the input."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_explain.methods.registry import Composite


@dataclass(frozen=True)
class Ensemble:
    """An average of a composite's relevance over points made of the input."""

    composite: Composite
    kind: str = "ensemble"
