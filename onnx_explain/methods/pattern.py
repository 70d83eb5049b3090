"""PatternNet and PatternAttribution by name: patterns come from a file or from `fit_patterns`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from onnx_explain.errors import MethodError
from onnx_explain.methods.lrp import WEIGHTED
from onnx_explain.methods.registry import Assignment, Composite, Selector, register_method
from onnx_explain.operators.roles import Pointwise, Sum
from onnx_explain.patterns import Patterns, read_patterns
from onnx_explain.rules import gradient, pattern

_KINDERMANS = "Kindermans et al.: Learning how to explain neural networks, ICLR 2018 (arXiv 1705.05598)"
Estimators = Literal["auto", "linear", "positive", "negative", "two-component"]
Fallbacks = Literal["zero", "linear", "filter"]
Sums = Literal["pass", "covariance"]


def _composite(
    signal: pattern.Signal,
    patterns: Any,
    estimator: Estimators,
    fallback: Fallbacks,
    limit: float,
    sums: Sums,
    guide: gradient.Guide,
) -> Composite:
    fitted = _loaded(patterns)
    if limit and limit < 1:
        raise MethodError(
            f"limit must be 0 (none) or at least 1, because no pattern has a smaller ‖w‖‖a‖, not {limit}."
        )
    rows = [
        Assignment(WEIGHTED, pattern.weighted(fitted, signal, estimator, fallback, float(limit)), signal),
        Assignment(Selector(role=Pointwise), gradient.gate(guide), guide),
    ]
    if sums == "covariance":
        rows.append(Assignment(Selector(role=Sum), pattern.covariance(fitted), "covariance"))
    return Composite((*rows, Assignment(Selector(), gradient.adjoint, "gradient")))


def _loaded(patterns: Any) -> Patterns:
    if isinstance(patterns, Patterns):
        return patterns
    if patterns is None or patterns == "":
        raise MethodError(
            "The method needs patterns, fitted on data like the model's training data: "
            "`onnx-explain fit-patterns MODEL DATA -o patterns.safetensors`, then give that file (`--patterns FILE`, `patterns=…`)."
        )
    if not isinstance(patterns, (str, Path)):
        raise MethodError(
            f"patterns must be a file of `fit-patterns` or what `fit_patterns` returns, not {patterns!r:.80}."
        )
    return read_patterns(patterns)


@register_method(
    "pattern-net",
    "the signal that a network found in the input: gradient with patterns for weights",
    _KINDERMANS,
    conserves=False,
)
def _pattern_net(
    patterns: Any = None,
    estimator: Estimators = "auto",
    fallback: Fallbacks = "zero",
    limit: float = 0.0,
    sums: Sums = "pass",
    guided: bool = False,
) -> Composite:
    return _composite("pattern", patterns, estimator, fallback, limit, sums, "guided" if guided else "gradient")


@register_method(
    "pattern-attribution",
    "how much each part of the signal contributed: gradient with weight times pattern",
    _KINDERMANS,
    conserves=False,
)
def _pattern_attribution(
    patterns: Any = None,
    estimator: Estimators = "auto",
    fallback: Fallbacks = "zero",
    limit: float = 0.0,
    sums: Sums = "pass",
) -> Composite:
    return _composite("attribution", patterns, estimator, fallback, limit, sums, "gradient")
