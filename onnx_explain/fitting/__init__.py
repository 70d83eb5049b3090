"""Fitting patterns: a model's weighted operators watched over a stream of data, in one pass and bounded memory."""

from onnx_explain.fitting.fit import fit_patterns
from onnx_explain.fitting.scoring import pattern_quality

__all__ = ["fit_patterns", "pattern_quality"]
