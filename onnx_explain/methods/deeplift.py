"""DeepLIFT by name."""

from __future__ import annotations

from typing import Any, Literal

from onnx_explain.errors import MethodError
from onnx_explain.methods.registry import Assignment, Composite, Selector, register_method
from onnx_explain.rules import deeplift
from onnx_explain.rules.baseline import parse_baseline


@register_method(
    "deeplift",
    "what every difference from a baseline adds to the score (rescale rule)",
    "Shrikumar, Greenside, Kundaje: Learning important features through propagating activation differences, ICML 2017",
    seed="one",
    family="gradient",
)
def _deeplift(
    baseline: Any = "zero", epsilon: float | None = None, softmax: Literal["exp", "shifted"] = "exp"
) -> Composite:
    """Attributions that sum to F(x) - F(baseline).

    baseline: as of all path methods. epsilon: |Δx| below which a derivative stands in for Δy/Δx; None for 1e-10 in float64
    and 1e-6 in float32. softmax: rescale eˣ of the logits as they are (``exp``), or behind the subtraction of their maximum
    (``shifted``), which stays in range where logits move far from those of the baseline.
    """
    if epsilon is not None and not (isinstance(epsilon, (int, float)) and 0 < epsilon < float("inf")):
        raise MethodError(f"Method 'deeplift': epsilon must be a positive number, not {epsilon!r}.")
    rule = deeplift.rescale(epsilon, shifted=softmax == "shifted")
    return Composite(
        (Assignment(Selector(), rule, "rescale"),), result="times-difference", baseline=parse_baseline(baseline)
    )
