"""Methods by name: which rule serves which node. Selectors and composites are data; the formulas live in `rules/`."""

from onnx_explain.methods import gradient, lrp, rap
from onnx_explain.methods.lrp import DENSE, FIRST, FIRST_CONV, WEIGHTED, lrp_composite
from onnx_explain.methods.registry import (
    ALIASES,
    METHODS,
    Assignment,
    BatchNorm,
    Composite,
    Method,
    Procedure,
    Result,
    Seed,
    Selector,
    Turn,
    Turned,
    register_method,
    resolve,
)

__all__ = [
    "ALIASES",
    "DENSE",
    "FIRST",
    "FIRST_CONV",
    "METHODS",
    "WEIGHTED",
    "Assignment",
    "BatchNorm",
    "Composite",
    "Method",
    "Procedure",
    "Result",
    "Seed",
    "Selector",
    "Turn",
    "Turned",
    "gradient",
    "lrp",
    "lrp_composite",
    "rap",
    "register_method",
    "resolve",
]
