"""Methods over many points: one backward pass per step, averaged in float64; and the same as a Loop in one file."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnx_explain.errors import MethodError
from onnx_explain.methods.ensemble import Ensemble
from onnx_explain.prepared import Array, Outcome, Prepared
from onnx_explain.relevance import Options, RelevanceGraph
from onnx_explain.target import Parsed


def explain(
    prepared: Prepared, ensemble: Ensemble, feeds: Mapping[str, Array], aim: Parsed, options: Options, *, method: str
) -> Outcome:
    """Explain one batch."""
    raise MethodError(f"Method {method!r} is not there yet.")


def graph(model: ir.Model, ensemble: Ensemble, options: Options, *, method: str) -> RelevanceGraph:
    """The explained model as one graph."""
    raise MethodError(f"Method {method!r} is not there yet.")
