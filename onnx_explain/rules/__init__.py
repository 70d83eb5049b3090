"""How relevance is shared: one rule per role and method, emitted as composite nodes and expanded to plain ONNX here."""

from onnx_explain.rules import gradient, lrp, rap, share

__all__ = ["gradient", "lrp", "rap", "share"]
