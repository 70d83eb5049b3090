"""Normalisations: affine with fixed statistics (BatchNormalization), or with statistics of the input itself."""

from __future__ import annotations

import numpy as np

from onnx_explain.errors import ModelError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.roles import Linear, Normalization, per_channel, room


@room("BatchNormalization")
def batch_normalization(node: Operation) -> Linear:
    """y = c·x + t per channel, c = scale/√(var + ε), t = B - mean·c."""
    if node.integer("training_mode", 0):
        raise ModelError(f"{node.where}: is in training mode; export the model in inference mode (`model.eval()`).")

    def scaled(op: Emitter, x: Value) -> Value:
        return op.Mul(x, per_channel(op, batch_scale(op, node), node.y))

    return Linear(
        "normalisation",
        lambda op, x, w: op.typed(scaled(op, x), node.y),
        lambda op, s, w, like: op.typed(scaled(op, s), like),
        bias=lambda op: per_channel(op, batch_shift(op, node), node.y),
        affine=(lambda op: batch_scale(op, node), lambda op: batch_shift(op, node)),
    )


def batch_scale(op: Emitter, node: Operation) -> Value:
    """C = scale/√(var + ε), shape [C]."""
    epsilon = op.constant(node.number("epsilon", 1e-5), like=node.input(4))
    return op.typed(op.Div(node.input(1), op.Sqrt(op.Add(node.input(4), epsilon))), node.input(1))


def batch_shift(op: Emitter, node: Operation) -> Value:
    """T = B - mean·c, shape [C]."""
    return op.typed(op.Sub(node.input(2), op.Mul(node.input(3), batch_scale(op, node))), node.input(2))


def _standardised(op: Emitter, x: Value, axes: list[int], epsilon: float, centred: bool = True) -> tuple[Value, Value]:
    """(x - mean)/σ and 1/σ over `axes`."""
    where = op.ints(*axes)
    moved = op.Sub(x, op.ReduceMean(x, where, keepdims=1)) if centred else x
    moved.shape = x.shape
    variance = op.ReduceMean(op.Mul(moved, moved), where, keepdims=1)
    inverse = op.Reciprocal(op.Sqrt(op.Add(variance, op.constant(epsilon, like=x))))
    return op.Mul(moved, inverse), inverse


def _normalisation(
    node: Operation,
    axes: list[int],
    epsilon: float,
    scale: int | None,
    shift: int | None,
    shaped: bool,
    centred: bool = True,
) -> Normalization:
    """The shared body: ŷ = (x - mean)/σ·γ + β over `axes`; `shaped` puts γ and β on axis 1."""

    def gain(op: Emitter, value: Value) -> Value:
        if scale is None or not node.has(scale):
            return value
        vector = node.input(scale)
        return op.Mul(value, per_channel(op, vector, node.y) if shaped else vector)

    def vjp(op: Emitter, r: Value) -> Value:
        unit, inverse = _standardised(op, node.x, axes, epsilon, centred)
        where = op.ints(*axes)
        g = gain(op, r)
        along = op.Mul(unit, op.ReduceMean(op.Mul(g, unit), where, keepdims=1))
        rest = op.Sub(g, op.ReduceMean(g, where, keepdims=1)) if centred else g
        return op.typed(op.Mul(op.Sub(rest, along), inverse), node.x)

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        _, inverse = _standardised(op, node.x, axes, epsilon, centred)
        moved = op.Sub(x, op.ReduceMean(x, op.ints(*axes), keepdims=1)) if centred else x
        return op.typed(gain(op, op.Mul(moved, inverse)), node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        _, inverse = _standardised(op, node.x, axes, epsilon, centred)
        q = op.Mul(gain(op, s), inverse)
        return op.typed(op.Sub(q, op.ReduceMean(q, op.ints(*axes), keepdims=1)) if centred else q, like)

    bias = None
    if shift is not None and node.has(shift):
        bias = lambda op: per_channel(op, node.input(shift), node.y) if shaped else node.input(shift)  # noqa: E731
    return Normalization(vjp, Linear("normalisation", forward, transpose, bias=bias))


@room("InstanceNormalization")
def instance_normalization(node: Operation) -> Normalization:
    """Standardised over the spatial axes of each sample and channel."""
    return _normalisation(node, list(range(2, rank(node.x))), node.number("epsilon", 1e-5), 1, 2, shaped=True)


@room("LayerNormalization")
def layer_normalization(node: Operation) -> Normalization:
    """Standardised over the axes from `axis` on."""
    n = rank(node.x)
    axes = list(range(node.integer("axis", -1) % n, n))
    return _normalisation(node, axes, node.number("epsilon", 1e-5), 1, 2, shaped=False)


@room("RMSNormalization")
def rms_normalization(node: Operation) -> Normalization:
    """Divided by the root mean square over the axes from `axis` on; nothing is subtracted."""
    n = rank(node.x)
    axes = list(range(node.integer("axis", -1) % n, n))
    return _normalisation(node, axes, node.number("epsilon", 1e-5), 1, None, shaped=False, centred=False)


@room("MeanVarianceNormalization")
def mean_variance_normalization(node: Operation) -> Normalization:
    """Standardised over `axes` (batch and space by default), without an affine part."""
    axes = [a % rank(node.x) for a in node.ints("axes", [0, 2, 3]) or []]
    return _normalisation(node, axes, 1e-9, None, None, shaped=False)


@room("LRN", sign="inherits")
def local_response_normalization(node: Operation) -> Normalization:
    """y = x·D^{-beta}, D = bias + alpha/size·Σ x² over neighbouring channels."""
    size, alpha = node.integer("size", 1), node.number("alpha", 1e-4)
    beta, offset = node.number("beta", 0.75), node.number("bias", 1.0)
    channels = dims(node.x)[1] or 1

    def band(op: Emitter, transposed: bool) -> Value:
        gap = np.arange(channels)[None, :] - np.arange(channels)[:, None]
        near = (gap >= -((size - 1) // 2)) & (gap <= size // 2)
        matrix = (near.T if transposed else near).astype(np.float64)
        return op.constant(matrix.reshape(channels, channels, *[1] * (rank(node.x) - 2)), like=node.x)

    def denominator(op: Emitter) -> Value:
        squares = op.Conv(op.Mul(node.x, node.x), band(op, False))
        return op.Add(op.Mul(squares, alpha / size), offset)

    def shrunk(op: Emitter, value: Value) -> Value:
        return op.typed(op.Mul(value, op.Pow(denominator(op), op.constant(-beta, like=node.x))), node.x)

    def vjp(op: Emitter, r: Value) -> Value:
        pull = op.Mul(op.Mul(r, node.x), op.Pow(denominator(op), op.constant(-beta - 1.0, like=node.x)))
        spread = op.Mul(op.Conv(pull, band(op, True)), op.Mul(node.x, 2.0 * alpha * beta / size))
        return op.typed(op.Sub(shrunk(op, r), spread), node.x)

    linear = Linear("scale", lambda op, x, w: shrunk(op, x), lambda op, s, w, like: shrunk(op, s))
    return Normalization(vjp, linear)


@room("Softmax", sign="nonnegative", head=True)
def softmax(node: Operation) -> Normalization:
    """y = eˣ/Σeˣ along `axis`."""
    axis = node.integer("axis", -1)

    def vjp(op: Emitter, r: Value) -> Value:
        total = op.ReduceSum(op.Mul(r, node.y), op.ints(axis), keepdims=1)
        return op.typed(op.Mul(node.y, op.Sub(r, total)), node.x)

    return Normalization(vjp, softmax=True)


@room("LogSoftmax", head=True)
def log_softmax(node: Operation) -> Normalization:
    """y = x - log Σeˣ along `axis`."""
    axis = node.integer("axis", -1)

    def vjp(op: Emitter, r: Value) -> Value:
        total = op.ReduceSum(r, op.ints(axis), keepdims=1)
        return op.typed(op.Sub(r, op.Mul(op.Exp(node.y), total)), node.x)

    return Normalization(vjp)
