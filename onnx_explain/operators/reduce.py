"""Reductions that are no sum: products, norms of windows, the logarithm of a sum of exponentials."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.arithmetic import axes_left, reduced_axes
from onnx_explain.operators.pool import pool_window, slid_over, sum_adjoint
from onnx_explain.operators.roles import Normalization, Product, room
from onnx_explain.operators.secant import Pair, difference, finite, safe_quotient, secant

MOST_FACTORS = 1024  # every factor's share is the product of the others: n·n numbers per product


# ------------------------------------------------------------------------------------------- products


@room("ReduceProd", sign="inherits", axes=axes_left)
def reduce_prod(node: Operation) -> Product:
    """Products over axes; each factor's share is the product of the others, also where some are zero."""
    axes = reduced_axes(node)
    count = _factors(node, axes)

    def vjp(op: Emitter, r: Value, k: int) -> Value:
        if not axes:
            return op.typed(op.Identity(r), node.x)
        lines = _lines(op, node.x, axes, node.x)
        return _by_others(op, r, node, axes, _others(op, lines, lines, count))

    return Product(vjp, (0,), elementwise=False, degree=count)


@secant("ReduceProd")
def _reduce_prod_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    """One factor after another from x⁰ to x, from the first on and from the last on, half of each."""
    node, axes = pair.node, reduced_axes(pair.node)
    if not axes:
        return {0: op.typed(op.Identity(r), node.x)}
    count = _factors(node, axes)
    x, x0 = (_lines(op, v, axes, node.x) for v in (node.x, pair.base.x))
    both = op.Mul(op.Add(_others(op, x, x0, count), _others(op, x0, x, count)), 0.5)
    return {0: _by_others(op, r, node, axes, both)}


def _factors(node: Operation, axes: Sequence[int]) -> int:
    sizes = [dims(node.x)[a] for a in axes]
    if any(d is None for d in sizes) or math.prod(d or 0 for d in sizes) > MOST_FACTORS:
        raise UnsupportedOperator(
            f"{node.where}: multiplies over axes {list(axes)} of {dims(node.x)}, an open number of factors or more than "
            f"{MOST_FACTORS}; reduce over fewer entries."
        )
    return max(math.prod(d or 1 for d in sizes), 1)


def _order(n: int, axes: Sequence[int]) -> list[int]:
    return [*(a for a in range(n) if a not in axes), *axes]


def _lines(op: Emitter, value: Value, axes: Sequence[int], x: Value) -> Value:
    """The reduced axes of a tensor of x's rank as one last axis."""
    n = rank(x)
    return op.Reshape(op.Transpose(value, perm=_order(n, axes)), op.ints(*[0] * (n - len(axes)), -1))


def _others(op: Emitter, before: Value, behind: Value, n: int) -> Value:
    """[…, n]: the product of `before` up to each entry and of `behind` from it on, the entry itself left out."""
    place = np.arange(n)
    earlier = op.constant(place[None, :] < place[:, None], dtype=np.bool_)
    own = op.constant(place[None, :] == place[:, None], dtype=np.bool_)
    rest = op.Where(own, op.constant(1.0, like=behind), op.Unsqueeze(behind, op.ints(-2)))
    return op.ReduceProd(op.Where(earlier, op.Unsqueeze(before, op.ints(-2)), rest), op.ints(-1), keepdims=0)


def _by_others(op: Emitter, r: Value, node: Operation, axes: Sequence[int], others: Value) -> Value:
    """R times each line, back in the shape of x."""
    n, order = rank(node.x), _order(rank(node.x), axes)
    kept = r if node.integer("keepdims", 1) else op.Unsqueeze(r, op.ints(*axes))
    shares = op.Mul(_lines(op, kept, axes, node.x), others)
    sizes = [dims(node.x)[a] or 1 for a in axes]
    apart = op.Reshape(shares, op.ints(*[0] * (n - len(axes)), *sizes))
    return op.typed(op.Transpose(apart, perm=[order.index(a) for a in range(n)]), node.x)


# ------------------------------------------------------------------------------------------- log Σ eˣ


def _kept(op: Emitter, node: Operation, value: Value, axes: Sequence[int]) -> Value:
    """A tensor of y's shape with the reduced axes at length 1."""
    if node.integer("keepdims", 1) or not axes:
        return value
    return op.Unsqueeze(value, op.ints(*axes))


@room("ReduceLogSumExp", axes=axes_left)
def reduce_log_sum_exp(node: Operation) -> Normalization:
    """y = log Σeˣ over axes: the derivative is the softmax."""
    axes = reduced_axes(node)

    def vjp(op: Emitter, r: Value) -> Value:
        share = op.Exp(op.Sub(node.x, _kept(op, node, node.y, axes)))
        return op.typed(op.Mul(share, _kept(op, node, r, axes)), node.x)

    return Normalization(vjp)


@secant("ReduceLogSumExp")
def _log_sum_exp_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    """eˣ against x and log s against s, at the level of the larger y, so that nothing overflows."""
    node, axes, x, x0 = pair.node, reduced_axes(pair.node), pair.node.x, pair.base.x
    y, y0 = (_kept(op, node, v, axes) for v in (node.y, pair.base.y))
    level = op.Max(y, y0)
    e, e0 = (op.typed(op.Exp(op.Sub(v, level)), x) for v in (x, x0))
    s, s0 = (op.Exp(op.Sub(v, level)) for v in (y, y0))
    steep = pair.quotient(op, op.Sub(y, y0), op.Sub(s, s0), lambda: finite(op, op.Reciprocal(s)))
    slope = pair.quotient(op, difference(op, e, e0), difference(op, x, x0), lambda: e)
    return {0: op.typed(op.Mul(op.Mul(_kept(op, node, r, axes), steep), slope), x)}


# ------------------------------------------------------------------------------------------- norms of windows


@room("LpPool", "GlobalLpPool", sign="nonnegative", axes=slid_over)
def lp_pool(node: Operation) -> Product:
    """y = (Σ|x|^p)^{1/p} over windows, or over all positions; nothing where all is zero."""

    def vjp(op: Emitter, r: Value, k: int) -> Value:
        p = _exponent(node)
        steep = r if p == 1 else safe_quotient(op, r, _powered(op, node.y, p - 1))
        return op.typed(op.Mul(_spread(op, node, op.typed(steep, node.y)), _slope(op, node.x, p)), node.x)

    return Product(vjp, (0,), elementwise=False)


@secant("LpPool", "GlobalLpPool")
def _lp_pool_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    """|x|^p against x, then s^{1/p} against s."""
    node, base, p = pair.node, pair.base, _exponent(pair.node)
    s, s0 = (_powered(op, v, p) for v in (node.y, base.y))
    flat = lambda: safe_quotient(op, op.constant(1.0 / p, like=node.y), _powered(op, node.y, p - 1))  # noqa: E731
    steep = op.Mul(r, pair.quotient(op, op.Sub(node.y, base.y), op.Sub(s, s0), flat))
    t, t0 = (_powered(op, op.Abs(v), p) for v in (node.x, base.x))
    slope = pair.quotient(
        op, op.Sub(t, t0), difference(op, node.x, base.x), lambda: op.Mul(_slope(op, node.x, p), float(p))
    )
    return {0: op.typed(op.Mul(_spread(op, node, op.typed(steep, node.y)), slope), node.x)}


def _exponent(node: Operation) -> int:
    return node.integer("p", 2)


def _powered(op: Emitter, value: Value, p: int) -> Value:
    if p <= 2:
        return [op.constant(1.0, like=value), value, op.Mul(value, value)][p]
    return op.Pow(value, op.constant(float(p), like=value))


def _slope(op: Emitter, x: Value, p: int) -> Value:
    """d|x|^p/dx / p."""
    return x if p == 2 else op.Mul(op.Sign(x), _powered(op, op.Abs(x), p - 1))


def _spread(op: Emitter, node: Operation, s: Value) -> Value:
    """The adjoint of the sum over windows."""
    if node.op_type == "GlobalLpPool":
        return op.typed(op.Expand(s, op.shape_of(node.x)), node.x)
    return op.typed(sum_adjoint(op, s, pool_window(node), node.x), node.x)
