"""Methods that change the input and watch the score: forward passes alone."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_explain.errors import MethodError
from onnx_explain.methods.perturbation import Perturbation
from onnx_explain.prepared import Array, Outcome, Prepared
from onnx_explain.relevance import Options
from onnx_explain.target import Parsed


def explain(
    prepared: Prepared, how: Perturbation, feeds: Mapping[str, Array], aim: Parsed, options: Options, *, method: str
) -> Outcome:
    """Explain one batch."""
    raise MethodError(f"Method {method!r} is not there yet.")
