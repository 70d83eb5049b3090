"""DeepLIFT's rescale rule: multipliers m with Σ m·Δx = F(x) - F(x⁰), Δ = value - its value on the baseline.

Shrikumar, Greenside, Kundaje: Learning important features through propagating activation differences, ICML 2017, eqs.
1-8; products, maxima and normalisations as in methods.md §4. Linear operators: the adjoint. Elementwise f: Δy/Δx, and f'
where |Δx| is below a threshold. Products: the other factors at the middle of their two values (of more than two
factors, the mean over the orders in which they change). What an operator takes apart by a formula of its own (maxima,
Softmax, normalisations, quotients) its room says (`operators/secant.py`).

Not exact, and told by `Explanation.completeness`: a condition, mask or index that itself changes between baseline and
input (Where, ArgMax, Floor, comparisons: relevance ends at them by nature), and operators of a user's own room that are
neither linear nor bilinear and bring no secant.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations

import onnx_ir as ir

from onnx_explain.errors import MethodError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value
from onnx_explain.operators.roles import Pointwise, Product, Selection, reduce_like
from onnx_explain.operators.secant import Pair, difference, find_secant, middle, selected
from onnx_explain.rules import gradient
from onnx_explain.rules.share import Rule, Shares, Step, role_of

THRESHOLDS = {ir.DataType.DOUBLE: 1e-10, ir.DataType.FLOAT: 1e-6}
COARSE = 1e-3  # of half precision


def rescale(epsilon: float | None = None, *, shifted: bool = False) -> Rule:
    """One rule for every role. epsilon: |Δx| below which the derivative stands in, None for one that suits the dtype.

    shifted: Softmax behind the subtraction of its maximum, else of its logits as they are.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        pair = _pair(step, epsilon, shifted)
        shares = _shares(op, step, pair)
        if step.accounting and getattr(step.role, "leaks", False):
            # constants and borders do not change, so nothing is lost on them
            shares = replace(shares, absorbed=step.lost([op.Mul(step.r, 0.0)]))
        return shares

    return rule


def _pair(step: Step, epsilon: float | None, shifted: bool) -> Pair:
    if step.reference is None:
        raise MethodError(
            f"{step.node.where}: DeepLIFT compares with a baseline, and the composite has none; give it `baseline=`."
        )
    twin, node = step.reference, step.node
    operands = tuple(None if v is None else twin(v) for v in node.inputs)
    base = replace(node, inputs=operands, outputs=tuple(twin(v) for v in node.outputs))
    dtype = node.y.dtype
    small = epsilon if epsilon is not None else THRESHOLDS.get(dtype or ir.DataType.FLOAT, COARSE)
    return Pair(node, base, small, shifted)


def _shares(op: Emitter, step: Step, pair: Pair) -> Shares:
    role, node = step.role, step.node
    if isinstance(role, Pointwise):
        return Shares({role.data: _pointwise(op, step.r, pair, role)})
    own = find_secant(node)
    if own is not None:
        return Shares(own(op, step.r, pair))
    if isinstance(role, Selection):
        return Shares(selected(op, step.r, pair, role_of))
    if isinstance(role, Product) and node.active <= set(role.numerators):
        if len(node.active) > 2:
            return _orders(op, step, pair)
        return gradient.adjoint(op, _at(step, _middle(op, pair)))
    if all(a is b for a, b in _passive(pair)) and not isinstance(role, Product):
        return gradient.adjoint(op, step)
    return _mean(op, step, pair)


def _pointwise(op: Emitter, r: Value, pair: Pair, role: Pointwise) -> Value:
    """m_x = m_y·Δy/Δx, of each entry before the operand's broadcasting is undone."""
    x, x0 = pair.node.input(role.data), pair.base.input(role.data)
    y, y0 = pair.node.y, pair.base.y
    slope = pair.quotient(op, difference(op, y, y0), difference(op, x, x0), lambda: role.derivative(op))
    return reduce_like(op, op.typed(op.Mul(r, slope), y), x)


def _passive(pair: Pair) -> list[tuple[Value | None, Value | None]]:
    """The operands through which nothing flows (weights, masks, conditions), at both points."""
    both = zip(pair.node.inputs, pair.base.inputs)
    return [two for i, two in enumerate(both) if i not in pair.node.active]


def _middle(op: Emitter, pair: Pair) -> Operation:
    """The operation with every operand half-way: where it is bilinear, its adjoint there is exact."""
    inputs = tuple(
        a if a is None or b is None or a is b or not _is_float(a) else middle(op, a, b)
        for a, b in zip(pair.node.inputs, pair.base.inputs)
    )
    return replace(pair.node, inputs=inputs)


def _orders(op: Emitter, step: Step, pair: Pair) -> Shares:
    """Several factors that change: the mean over the orders in which they do (the Shapley value; of two: half-way)."""
    active = sorted(pair.node.active)
    n, shares = len(active), dict[int, Value]()
    for k in active:
        others = [i for i in active if i != k]
        for size in range(n):
            weight = math.factorial(size) * math.factorial(n - 1 - size) / math.factorial(n)
            for moved in combinations(others, size):
                inputs = tuple(
                    pair.base.inputs[i] if i in others and i not in moved else v for i, v in enumerate(pair.node.inputs)
                )
                r = gradient.adjoint(op, _at(step, replace(pair.node, inputs=inputs))).inputs[k]
                part = op.typed(op.Mul(r, weight), step.node.input(k))
                shares[k] = part if k not in shares else op.typed(op.Add(shares[k], part), step.node.input(k))
    return Shares(shares)


def _is_float(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _mean(op: Emitter, step: Step, pair: Pair) -> Shares:
    """Half of the adjoint at either point: exact up to what a mask that changes decides by itself."""
    here, there = gradient.adjoint(op, step), gradient.adjoint(op, _at(step, pair.base))
    return Shares({k: middle(op, r, there.inputs[k]) for k, r in here.inputs.items()})


def _at(step: Step, node: Operation) -> Step:
    return replace(step, node=node, role=role_of(node), proxy=node.y, sparse=False)
