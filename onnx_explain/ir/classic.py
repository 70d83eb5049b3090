"""Linear models and what comes before them (domain ``ai.onnx.ml``, as scikit-learn's exporter writes them), as primitives.

Labels are integers or strings and carry nothing; they are written beside the scores, so that the file needs no node of this
domain. Trees and kernel machines have no expansion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.unfuse import CLASSIC, Results, Writer, fused, refused, unshaped
from onnx_explain.ir.view import Operation, Value

_FLOAT = 1
_TREES = "trees are step functions: their gradient is zero, and no rule of these methods speaks of them"
_KERNEL = "a kernel machine compares with stored samples, which no rule here covers"
REFUSED = {
    "SVMClassifier": _KERNEL,
    "SVMRegressor": _KERNEL,
    "TreeEnsemble": _TREES,
    "TreeEnsembleClassifier": _TREES,
    "TreeEnsembleRegressor": _TREES,
    "ZipMap": "its result is a map from names to scores; explain the tensor of scores before it",
}


def _floats(op: Writer, node: Operation, name: str) -> Value:
    """A list of floats as a vector: these operators compute in float32."""
    return op.constant(np.asarray(node.attributes.get(name, ()), np.float32))


def _single(op: Writer, x: Value) -> Value:
    return op.Cast(x, to=_FLOAT)


def _transformed(op: Writer, node: Operation, scores: Value) -> Value:
    """What the scores become at the end."""
    name = node.text("post_transform", "NONE")
    if name == "NONE":
        return scores
    if name in ("LOGISTIC", "SOFTMAX"):
        return op.Sigmoid(scores) if name == "LOGISTIC" else op.Softmax(scores, axis=-1)
    raise refused(node, f"its post_transform is {name!r}", "export the model with NONE, LOGISTIC or SOFTMAX")


def _scores(op: Writer, node: Operation, rows: int) -> Value:
    weight = np.asarray(node.attributes.get("coefficients", ()), np.float32)
    if not rows or len(weight) % rows:
        raise refused(node, f"its {len(weight)} coefficients make no {rows} rows", "export it again")
    product = op.MatMul(_single(op, node.x), op.constant(weight.reshape(rows, -1).T))
    return op.Add(product, _floats(op, node, "intercepts")) if node.attributes.get("intercepts") else product


@fused("LinearRegressor", domain=CLASSIC)
def _linear_regressor(op: Writer, node: Operation) -> Results:
    return [_transformed(op, node, _scores(op, node, node.integer("targets", 1)))]


@fused("LinearClassifier", domain=CLASSIC)
def _linear_classifier(op: Writer, node: Operation) -> Results:
    strings = node.attributes.get("classlabels_strings", ())
    labels: Sequence[int | str] = strings or node.attributes.get("classlabels_ints", ())
    rows = len(node.attributes.get("intercepts", ())) or len(labels)
    scores = _scores(op, node, rows)
    zero = op.constant(np.zeros((), np.float32))
    if rows == 1 and len(labels) == 2:  # one score speaks for the second label
        place = op.Cast(op.Greater(op.Reshape(scores, op.ints(-1)), zero), to=7)
        both = _both(op, node, scores)
    else:
        place, both = op.ArgMax(scores, axis=-1, keepdims=0), _transformed(op, node, scores)
    named = {"value_strings": list(strings)} if strings else {"value_ints": [int(v) for v in labels]}
    table = op.emit("Constant", [], named)[0]
    table.dtype = ir.DataType.STRING if strings else ir.DataType.INT64
    return [op.Gather(table, place, axis=0), both]


def _both(op: Writer, node: Operation, score: Value) -> Value:
    """Scores of two labels made of one: s and 1 - s, or under LOGISTIC the probabilities σ(-s) and σ(s)."""
    if node.text("post_transform", "NONE") == "LOGISTIC":
        return op.Sigmoid(op.Concat(op.Neg(score), score, axis=-1))
    if node.text("post_transform", "NONE") == "PROBIT":
        return _transformed(op, node, score)
    return op.Concat(op.Sub(op.constant(np.ones((), np.float32)), score), score, axis=-1)


@fused("Scaler", domain=CLASSIC)
def _scaler(op: Writer, node: Operation) -> Results:
    return [op.Mul(op.Sub(_single(op, node.x), _floats(op, node, "offset")), _floats(op, node, "scale"))]


@fused("Normalizer", domain=CLASSIC)
def _normalizer(op: Writer, node: Operation) -> Results:
    """x over the largest entry, the sum of magnitudes or the Euclidean norm of its row; zero rows stay."""
    x, name = _single(op, node.x), node.text("norm", "MAX")
    zero, one = (op.constant(np.full((), v, np.float32)) for v in (0, 1))
    if name == "MAX":
        norm = op.reduced("ReduceMax", x, [-1])
    elif name == "L1":
        norm = op.reduced("ReduceSum", op.Abs(x), [-1])
    else:
        norm = op.reduced("ReduceL2", x, [-1])
    return [op.Div(x, op.Where(op.Equal(norm, zero), one, norm))]


@fused("Imputer", domain=CLASSIC)
def _imputer(op: Writer, node: Operation) -> Results:
    """One number, not-a-number by default, replaced by another per column."""
    whole = node.attributes.get("imputed_value_int64s")
    if whole:
        missing = op.Equal(node.x, op.constant(np.asarray(node.integer("replaced_value_int64", 0), np.int64)))
        return [op.Where(missing, op.constant(np.asarray(whole, np.int64)), node.x)]
    wanted = float(node.attributes.get("replaced_value_float", 0.0))
    other = _floats(op, node, "imputed_value_floats")
    missing = op.IsNaN(node.x) if np.isnan(wanted) else op.Equal(node.x, op.constant(np.float32(wanted)))
    return [op.Where(missing, other, node.x)]


@fused("FeatureVectorizer", domain=CLASSIC)
def _feature_vectorizer(op: Writer, node: Operation) -> Results:
    return [op.Concat(*(_single(op, v) for v in node.inputs if v is not None), axis=1)]


@fused("ArrayFeatureExtractor", domain=CLASSIC)
def _array_feature_extractor(op: Writer, node: Operation) -> Results:
    """Columns of the last axis; a vector becomes one row."""
    x = node.x
    if x.shape is None:
        raise unshaped(node, f"the rank of {x.name!r} is")
    picked = op.Gather(x, op.Reshape(node.input(1), op.ints(-1)), axis=len(x.shape) - 1)
    return [op.Reshape(picked, op.ints(1, -1)) if len(x.shape) == 1 else picked]
