"""Explain any ONNX model: which parts of the input made the network say what it said.

>>> from onnx_explain import Explainer
>>> explanation = Explainer("model.onnx", method="rap")(x)            # doctest: +SKIP
>>> explanation.relevance["input"]                                    # doctest: +SKIP
"""

from onnx_explain.errors import (
    ExplainError,
    InputError,
    MethodError,
    ModelError,
    OutputError,
    RuntimeMissing,
    TargetError,
    UnsupportedOperator,
    VerificationError,
)
from onnx_explain.explainer import Explainer, build_vjp
from onnx_explain.explanation import Explanation, Target
from onnx_explain.methods import METHODS, Assignment, Composite, Method, Selector, lrp_composite, register_method
from onnx_explain.version import __version__

__all__ = [
    "METHODS",
    "Assignment",
    "Composite",
    "ExplainError",
    "Explainer",
    "Explanation",
    "InputError",
    "Method",
    "MethodError",
    "ModelError",
    "OutputError",
    "RuntimeMissing",
    "Selector",
    "Target",
    "TargetError",
    "UnsupportedOperator",
    "VerificationError",
    "__version__",
    "build_vjp",
    "lrp_composite",
    "register_method",
]
