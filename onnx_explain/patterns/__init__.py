"""Patterns: what is fitted, how patterns are made of it, how good they are, and their file. Pure arrays: no model, no runtime.

Kindermans et al.: Learning how to explain neural networks: PatternNet and PatternAttribution, ICLR 2018 (arXiv 1705.05598).
"""

from onnx_explain.patterns.estimators import Estimate, Estimator, estimate
from onnx_explain.patterns.layout import Layout
from onnx_explain.patterns.statistics import Neurons, Shares
from onnx_explain.patterns.storage import FittedSum, FittedWeight, Patterns, merged, read_patterns

__all__ = [
    "Estimate",
    "Estimator",
    "FittedSum",
    "FittedWeight",
    "Layout",
    "Neurons",
    "Patterns",
    "Shares",
    "estimate",
    "merged",
    "read_patterns",
]
