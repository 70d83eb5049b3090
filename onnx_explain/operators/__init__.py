"""What each operator is: one room per operator, filed under one of eight roles. Importing this package fills `ROOMS`."""

from onnx_explain.operators import (
    arithmetic,
    conv,
    grid,
    linear,
    matmul,
    normalize,
    order,
    pointwise,
    pool,
    quantise,
    rearrange,
    reduce,
    regions,
    resize,
    scatter,
)
from onnx_explain.operators.roles import ROOMS, NoRelevance, find, room

NO_RELEVANCE = (
    "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Constant",
    "ConstantOfShape", "Equal", "EyeLike", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN", "Less",
    "LessOrEqual", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Or", "RandomNormal", "RandomNormalLike",
    "RandomUniform", "RandomUniformLike", "Range", "Round", "Shape", "Sign", "Size", "Unique", "Xor",
)  # fmt: skip

for _op_type in NO_RELEVANCE:
    room(_op_type, inert=True)(lambda node: NoRelevance())

__all__ = [
    "NO_RELEVANCE",
    "ROOMS",
    "arithmetic",
    "conv",
    "find",
    "grid",
    "linear",
    "matmul",
    "normalize",
    "order",
    "pointwise",
    "pool",
    "quantise",
    "rearrange",
    "reduce",
    "regions",
    "resize",
    "scatter",
]
