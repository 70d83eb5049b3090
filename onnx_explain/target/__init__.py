"""What a user writes as a target: an index, an element of an output, an expression over outputs, a preset.

Nothing here knows a model; `aiming` writes an expression into one.
"""

from onnx_explain.target.indices import ARGMAX, NOT_EXPLAINED, Parsed, parse

__all__ = ["ARGMAX", "NOT_EXPLAINED", "Parsed", "parse"]
