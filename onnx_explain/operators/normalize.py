"""Normalisations: affine with fixed statistics (BatchNormalization), or with statistics of the input itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from onnx_explain.errors import ModelError, UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.pool import first_maximum
from onnx_explain.operators.roles import Linear, Normalization, per_channel, room
from onnx_explain.operators.secant import Pair, difference, finite, middle, secant


@room("BatchNormalization")
def batch_normalization(node: Operation) -> Linear:
    """y = c·x + t per channel, c = scale/√(var + ε), t = B - mean·c."""
    if node.active - {0}:
        raise UnsupportedOperator(
            f"{node.where}: its statistics or its scale are computed from an explained input; export it as primitives."
        )
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


@dataclass(frozen=True)
class _Standard:
    """ŷ = (x - mean)/σ·γ + β over `axes`; operands `scale` (γ) and `shift` (β), on axis 1 where `shaped`.

    `centred`: the mean is subtracted.
    """

    axes: tuple[int, ...]
    epsilon: float
    scale: int | None = None
    shift: int | None = None
    shaped: bool = False
    centred: bool = True

    def mean(self, op: Emitter, value: Value) -> Value:
        return op.ReduceMean(value, op.ints(*self.axes), keepdims=1)

    def moved(self, op: Emitter, x: Value) -> Value:
        return op.typed(op.Sub(x, self.mean(op, x)), x) if self.centred else x

    def inverse(self, op: Emitter, moved: Value) -> Value:
        """1/σ."""
        variance = self.mean(op, op.Mul(moved, moved))
        return op.Reciprocal(op.Sqrt(op.Add(variance, op.constant(self.epsilon, like=moved))))

    def gain(self, op: Emitter, node: Operation, value: Value) -> Value:
        if self.scale is None or not node.has(self.scale):
            return value
        vector = node.input(self.scale)
        return op.Mul(value, per_channel(op, vector, node.y) if self.shaped else vector)


def _normalisation(node: Operation, form: _Standard) -> Normalization:
    """The shared body of all that divide by their own standard deviation."""
    if node.active - {0}:
        raise UnsupportedOperator(
            f"{node.where}: its scale or shift is computed from an explained input; export it as Mul and Add behind the node."
        )

    def vjp(op: Emitter, r: Value) -> Value:
        moved = form.moved(op, node.x)
        inverse = form.inverse(op, moved)
        unit = op.Mul(moved, inverse)
        g = form.gain(op, node, r)
        along = op.Mul(unit, form.mean(op, op.Mul(g, unit)))
        rest = op.Sub(g, form.mean(op, g)) if form.centred else g
        return op.typed(op.Mul(op.Sub(rest, along), inverse), node.x)

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        inverse = form.inverse(op, form.moved(op, node.x))
        return op.typed(form.gain(op, node, op.Mul(form.moved(op, x), inverse)), node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        q = op.Mul(form.gain(op, node, s), form.inverse(op, form.moved(op, node.x)))
        return op.typed(op.Sub(q, form.mean(op, q)) if form.centred else q, like)

    bias = None
    if form.shift is not None and node.has(form.shift):
        at = form.shift
        bias = lambda op: per_channel(op, node.input(at), node.y) if form.shaped else node.input(at)  # noqa: E731
    return Normalization(vjp, Linear("normalisation", forward, transpose, bias=bias))


def _between(op: Emitter, r: Value, pair: Pair, form: _Standard) -> dict[int, Value]:
    """u·(1/σ) with u = x - mean and σ² = mean(u²) + ε, step by step and without a quotient of small numbers.

    Δ(1/σ) = -Δσ²/(σσ⁰(σ + σ⁰)) and Δu² = (u + u⁰)Δu, so that the multipliers add up exactly.
    """
    node, base = pair.node, pair.base
    form = replace(form, epsilon=_as_run(form.epsilon))
    u, u0 = form.moved(op, node.x), form.moved(op, base.x)
    i, i0 = form.inverse(op, u), form.inverse(op, u0)
    g = form.gain(op, node, r)
    among = middle(op, u, u0)
    pull = op.Mul(form.mean(op, op.Mul(g, among)), op.Mul(op.Mul(i, i0), op.Div(op.Mul(i, i0), op.Add(i, i0))))
    m = op.Sub(op.Mul(g, middle(op, i, i0)), op.Mul(among, op.Mul(pull, 2.0)))
    m.shape = node.x.shape
    return {0: op.typed(op.Sub(m, form.mean(op, m)) if form.centred else m, node.x)}


def _as_run(number: float) -> float:
    """The float32 that the forward pass runs with, not the decimal behind it: both ends must be its own to add up."""
    return float(np.float32(number))


def _standard(op_type: str, form: Callable[[Operation], _Standard], doc: str) -> None:
    """A room and its secant."""

    def role(node: Operation) -> Normalization:
        return _normalisation(node, form(node))

    def axes(node: Operation, k: int) -> list[int | None]:
        n, joined = rank(node.input(k)), form(node).axes
        return [None if a in joined else a for a in range(n)] if k == 0 else [*range(rank(node.x) - n, rank(node.x))]

    role.__doc__ = doc
    room(op_type, axes=axes)(role)
    secant(op_type)(lambda op, r, pair: _between(op, r, pair, form(pair.node)))


def _from_axis(node: Operation) -> tuple[int, ...]:
    n = rank(node.x)
    return tuple(range(node.integer("axis", -1) % n, n))


_standard(
    "InstanceNormalization",
    lambda node: _Standard(tuple(range(2, rank(node.x))), node.number("epsilon", 1e-5), 1, 2, shaped=True),
    "Standardised over the spatial axes of each sample and channel.",
)
_standard(
    "LayerNormalization",
    lambda node: _Standard(_from_axis(node), node.number("epsilon", 1e-5), 1, 2),
    "Standardised over the axes from `axis` on.",
)
_standard(
    "RMSNormalization",
    lambda node: _Standard(_from_axis(node), node.number("epsilon", 1e-5), 1, centred=False),
    "Divided by the root mean square over the axes from `axis` on; nothing is subtracted.",
)
_standard(
    "MeanVarianceNormalization",
    lambda node: _Standard(tuple(a % rank(node.x) for a in node.ints("axes", [0, 2, 3]) or []), 1e-9),
    "Standardised over `axes` (batch and space by default), without an affine part.",
)


@dataclass(frozen=True)
class _Neighbours:
    """LRN's parts: y = x·D^{-beta}, D = offset + alpha/size·Σ x² over neighbouring channels."""

    node: Operation
    size: int
    alpha: float
    beta: float
    offset: float

    @staticmethod
    def of(node: Operation) -> _Neighbours:
        size, alpha = node.integer("size", 1), node.number("alpha", 1e-4)
        return _Neighbours(node, size, alpha, node.number("beta", 0.75), node.number("bias", 1.0))

    def summed(self, op: Emitter, value: Value, *, transposed: bool = False) -> Value:
        """The sum over neighbouring channels, or its adjoint."""
        channels = dims(self.node.x)[1] or 1
        gap = np.arange(channels)[None, :] - np.arange(channels)[:, None]
        near = (gap >= -((self.size - 1) // 2)) & (gap <= self.size // 2)
        matrix = (near.T if transposed else near).astype(np.float64)
        shape = (channels, channels, *[1] * (rank(self.node.x) - 2))
        return op.Conv(value, op.constant(matrix.reshape(shape), like=self.node.x))

    def denominator(self, op: Emitter, x: Value) -> Value:
        return op.typed(op.Add(op.Mul(self.summed(op, op.Mul(x, x)), self.alpha / self.size), self.offset), x)

    def power(self, op: Emitter, d: Value, less: float = 0.0) -> Value:
        """D^{-beta - less}."""
        return op.Pow(d, op.constant(-self.beta - less, like=d))


@room("LRN", sign="inherits", axes=lambda node, k: [None if a == 1 else a for a in range(rank(node.x))])
def local_response_normalization(node: Operation) -> Normalization:
    """y = x·D^{-beta}, D = bias + alpha/size·Σ x² over neighbouring channels."""
    form = _Neighbours.of(node)

    def shrunk(op: Emitter, value: Value) -> Value:
        return op.typed(op.Mul(value, form.power(op, form.denominator(op, node.x))), node.x)

    def vjp(op: Emitter, r: Value) -> Value:
        pull = op.Mul(op.Mul(r, node.x), form.power(op, form.denominator(op, node.x), 1.0))
        reach = op.Mul(node.x, 2.0 * form.alpha * form.beta / form.size)
        return op.typed(op.Sub(shrunk(op, r), op.Mul(form.summed(op, pull, transposed=True), reach)), node.x)

    linear = Linear("scale", lambda op, x, w: shrunk(op, x), lambda op, s, w, like: shrunk(op, s))
    return Normalization(vjp, linear)


@secant("LRN")
def _lrn_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    """x·p with p = D^{-beta}: the product rule, p against D, and Δx² = (x + x⁰)Δx."""
    x, x0 = pair.node.x, pair.base.x
    form = _Neighbours.of(pair.node)
    form = replace(form, alpha=_as_run(form.alpha), beta=_as_run(form.beta), offset=_as_run(form.offset))
    d, d0 = form.denominator(op, x), form.denominator(op, x0)
    p, p0 = form.power(op, d), form.power(op, d0)
    slope = pair.quotient(
        op, difference(op, p, p0), difference(op, d, d0), lambda: op.Mul(form.power(op, d, 1.0), -form.beta)
    )
    among = middle(op, x, x0)
    pull = form.summed(op, op.Mul(op.Mul(r, among), slope), transposed=True)
    return {
        0: op.typed(op.Add(op.Mul(r, middle(op, p, p0)), op.Mul(op.Mul(pull, among), 2.0 * form.alpha / form.size)), x)
    }


def _but_along(node: Operation, k: int) -> list[int | None]:
    """All axes stay but the one that is normalised."""
    axis = node.integer("axis", -1) % rank(node.x)
    return [None if a == axis else a for a in range(rank(node.x))]


@room("Softmax", sign="nonnegative", head=True, axes=_but_along)
def softmax(node: Operation) -> Normalization:
    """y = eˣ/Σeˣ along `axis`."""
    axis = node.integer("axis", -1)

    def vjp(op: Emitter, r: Value) -> Value:
        y = probabilities(op, node)
        total = op.ReduceSum(op.Mul(r, y), op.ints(axis), keepdims=1)
        return op.typed(op.Mul(y, op.Sub(r, total)), node.x)

    return Normalization(vjp, softmax=True)


def probabilities(op: Emitter, node: Operation) -> Value:
    """A Softmax's result; 0 for the NaN of a row whose logits are all -∞, where the model itself looks for it behind.

    PyTorch writes attention so: nothing of such a row is used. Without that guard the model's own output is NaN.
    """
    if all(use.node.op_type != "IsNaN" for use in node.y.uses()):
        return node.y
    return op.typed(op.Where(op.IsNaN(node.y), op.constant(0.0, like=node.y), node.y), node.y)


@room("LogSoftmax", head=True, axes=_but_along)
def log_softmax(node: Operation) -> Normalization:
    """y = x - log Σeˣ along `axis`."""
    axis = node.integer("axis", -1)

    def vjp(op: Emitter, r: Value) -> Value:
        total = op.ReduceSum(r, op.ints(axis), keepdims=1)
        return op.typed(op.Sub(r, op.Mul(op.Exp(node.y), total)), node.x)

    return Normalization(vjp)


# ------------------------------------------------------------------------------ exponentials between two points


def _exponentials(op: Emitter, x: Value, x0: Value, level: Value, pair: Pair) -> tuple[Value, Value, Value]:
    """e = e^{x - level} and e⁰ = e^{x⁰ - level} of one level for both points, and Δe/Δx."""
    e, e0 = (op.typed(op.Exp(op.Sub(v, level)), x) for v in (x, x0))
    return e, e0, op.typed(pair.quotient(op, difference(op, e, e0), difference(op, x, x0), lambda: e), x)


@secant("Softmax")
def _softmax_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    """e·(1/s): eˣ against x, then the product rule (methods.md §4). A level common to both points cancels.

    `shifted`: of x - max(x), the maximum by its own rule, so that quotients stay in range however far the points are apart.
    """
    node, x, x0 = pair.node, pair.node.x, pair.base.x
    axis = node.integer("axis", -1) % rank(x)
    where = op.ints(axis)
    top, top0 = (op.ReduceMax(v, where, keepdims=1) for v in (x, x0))
    if not pair.shifted:
        return {0: op.typed(_over_sum(op, r, x, x0, op.Mul(op.Add(top, top0), 0.5), where, pair), x)}
    t, t0 = (op.typed(op.Sub(v, m), x) for v, m in ((x, top), (x0, top0)))
    m = _over_sum(op, r, t, t0, op.constant(0.0, like=x), where, pair)
    q, c = op.Neg(op.ReduceSum(m, where, keepdims=1)), op.Max(top, top0)
    won = op.Add(
        first_maximum(op, op.Mul(q, op.Sub(c, top0)), x, top, [axis]),
        first_maximum(op, op.Mul(q, op.Sub(top, c)), x0, top0, [axis]),
    )
    share = pair.quotient(op, won, difference(op, x, x0), lambda: first_maximum(op, q, x, top, [axis]))
    return {0: op.typed(op.Add(m, share), x)}


def _over_sum(op: Emitter, r: Value, x: Value, x0: Value, level: Value, where: Value, pair: Pair) -> Value:
    """The multipliers of eˣ/Σeˣ."""
    e, e0, slope = _exponentials(op, x, x0, level, pair)
    i, i0 = (op.Reciprocal(op.ReduceSum(v, where, keepdims=1)) for v in (e, e0))
    pull = op.Mul(op.ReduceSum(op.Mul(r, middle(op, e, e0)), where, keepdims=1), op.Mul(i, i0))
    return op.typed(op.Mul(op.Sub(op.Mul(r, op.Mul(op.Add(i, i0), 0.5)), pull), slope), x)


@secant("LogSoftmax")
def _log_softmax_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    """x - log s, s = Σeˣ: eˣ against x, log s against s; the level is the larger log s, so that nothing overflows."""
    node, x, x0 = pair.node, pair.node.x, pair.base.x
    where = op.ints(node.integer("axis", -1))
    logs, logs0 = (op.ReduceMean(op.Sub(v, y), where, keepdims=1) for v, y in ((x, node.y), (x0, pair.base.y)))
    level = op.Max(logs, logs0)
    _, _, slope = _exponentials(op, x, x0, level, pair)
    s, s0 = (op.Exp(op.Sub(v, level)) for v in (logs, logs0))
    steep = pair.quotient(op, op.Sub(logs, logs0), op.Sub(s, s0), lambda: finite(op, op.Reciprocal(s)))
    total = op.Mul(op.ReduceSum(r, where, keepdims=1), steep)
    return {0: op.typed(op.Sub(r, op.Mul(total, slope)), x)}
