"""Methods over many points: one backward pass per step, averaged in float64; and the same as a Loop in one file."""

from onnx_explain.ensembles.looping import graph
from onnx_explain.ensembles.running import explain

__all__ = ["explain", "graph"]
