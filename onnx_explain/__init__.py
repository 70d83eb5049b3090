"""Explain any ONNX model: which parts of the input made the network say what it said.

>>> from onnx_explain import Explainer
>>> explanation = Explainer("model.onnx", method="rap")(x)            # doctest: +SKIP
>>> explanation.relevance["input"]                                    # doctest: +SKIP

Names are imported on first use, so that the command line answers `--help` without loading ONNX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from onnx_explain.version import __version__

if TYPE_CHECKING:
    from onnx_explain.explainer import Explainer, Explainers, build_vjp
    from onnx_explain.explanation import Explanation, Target
    from onnx_explain.fitting import fit_patterns, pattern_quality
    from onnx_explain.methods import METHODS, Assignment, Composite, Method, Selector, lrp_composite, register_method
    from onnx_explain.patterns import Patterns, read_patterns

_LATE = {
    **dict.fromkeys(("Explainer", "Explainers", "build_vjp"), "onnx_explain.explainer"),
    **dict.fromkeys(("Explanation", "Target"), "onnx_explain.explanation"),
    **dict.fromkeys(("fit_patterns", "pattern_quality"), "onnx_explain.fitting"),
    **dict.fromkeys(("Patterns", "read_patterns"), "onnx_explain.patterns"),
    **dict.fromkeys(
        ("METHODS", "Assignment", "Composite", "Method", "Selector", "lrp_composite", "register_method"),
        "onnx_explain.methods",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})


__all__ = [
    "METHODS",
    "Assignment",
    "Composite",
    "ExplainError",
    "Explainer",
    "Explainers",
    "Explanation",
    "InputError",
    "Method",
    "MethodError",
    "ModelError",
    "OutputError",
    "Patterns",
    "RuntimeMissing",
    "Selector",
    "Target",
    "TargetError",
    "UnsupportedOperator",
    "VerificationError",
    "__version__",
    "build_vjp",
    "fit_patterns",
    "lrp_composite",
    "pattern_quality",
    "read_patterns",
    "register_method",
]
