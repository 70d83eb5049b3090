"""From a canonical model, composites and a target to the relevance graph: the same graph and its backward half."""

from onnx_explain.relevance.build import build, build_several, plan, relevance_of, vector_jacobian
from onnx_explain.relevance.graph import Options, RelevanceGraph, Request, Row
from onnx_explain.relevance.seed import ARGMAX

__all__ = [
    "ARGMAX",
    "Options",
    "RelevanceGraph",
    "Request",
    "Row",
    "build",
    "build_several",
    "plan",
    "relevance_of",
    "vector_jacobian",
]
