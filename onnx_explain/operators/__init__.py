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
    "And", "ArgMax", "ArgMin", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "BlackmanWindow", "Ceil", "Constant", "ConstantOfShape", "Equal", "EyeLike", "Floor", "Greater", "GreaterOrEqual",
    "HammingWindow", "HannWindow", "Hardmax", "ImageDecoder", "IsInf", "IsNaN", "Less", "LessOrEqual", "MelWeightMatrix",
    "Multinomial", "NonMaxSuppression", "NonZero", "Not", "OneHot", "OptionalHasElement", "Or", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "RegexFullMatch", "Round", "SequenceEmpty",
    "SequenceLength", "Shape", "Sign", "Size", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer",
    "Unique", "Xor",
)  # fmt: skip
NO_RELEVANCE_ML = (
    "Binarizer", "CastMap", "CategoryMapper", "DictVectorizer", "LabelEncoder", "OneHotEncoder",
)  # fmt: skip

for _op_type in NO_RELEVANCE:
    room(_op_type, inert=True)(lambda node: NoRelevance())
for _op_type in NO_RELEVANCE_ML:
    room(_op_type, domain="ai.onnx.ml", inert=True)(lambda node: NoRelevance())

__all__ = [
    "NO_RELEVANCE",
    "NO_RELEVANCE_ML",
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
