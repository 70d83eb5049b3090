"""Exact multipliers between two points: what rooms offer beside a derivative, for methods that compare with a baseline.

A secant hands back m with Σ_k m_k·Δx_k = r·Δy (summed), Δ = value - baseline's value. Linear, pointwise and bilinear
operators need none of their own: their secant follows from the role. The register and the shared arithmetic live here,
the formulas in the rooms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value
from onnx_explain.operators.roles import Role, Selection


@dataclass(frozen=True)
class Pair:
    """One operation at two points: `node` on the explained input, `base` on the baseline, with equal attributes.

    `epsilon`: where |Δx| is below it, the quotient Δy/Δx gives way to the derivative. `shifted`: exponentials are taken
    behind the subtraction of their maximum.
    """

    node: Operation
    base: Operation
    epsilon: float
    shifted: bool = False

    def quotient(self, op: Emitter, dy: Value, dx: Value, derivative: Callable[[], Value]) -> Value:
        """Δy/Δx of one elementwise step, or its derivative where Δx is too small to divide by."""
        near = op.Less(op.Abs(dx), op.constant(self.epsilon, like=dx))
        ratio = op.Div(dy, op.Where(near, op.constant(1.0, like=dx), dx))
        return op.Where(near, finite(op, derivative()), ratio)


Secant = Callable[[Emitter, Value, Pair], dict[int, Value]]
SECANTS: dict[tuple[str, str], Secant] = {}


def secant(*op_types: str, domain: str = "") -> Callable[[Secant], Secant]:
    """Register the multipliers ``f(op, r, pair) -> {operand: multiplier}`` of one or more operators."""

    def register(function: Secant) -> Secant:
        for op_type in op_types:
            if (domain, op_type) in SECANTS:
                raise ValueError(f"operator {domain}.{op_type} has two secants")
            SECANTS[domain, op_type] = function
        return function

    return register


def find_secant(node: Operation) -> Secant | None:
    """The operator's own multipliers, or None where they follow from its role."""
    return SECANTS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def selected(
    op: Emitter, r: Value, pair: Pair, role: Callable[[Operation], Role], *, smallest: bool = False
) -> dict[int, Value]:
    """Maxima (methods.md §4): with c = max(y, y⁰), r(c - y⁰) goes to the winner at x and r(y - c) to the one at x⁰.

    What came to an entry from all windows is divided by its Δx, which is at least as large in magnitude as each window's
    part; where it is too small to divide by, the derivative routes r itself. `smallest`: of minima c = min(y, y⁰).
    """
    y, y0, winner, winner0 = pair.node.y, pair.base.y, role(pair.node), role(pair.base)
    if not isinstance(winner, Selection) or not isinstance(winner0, Selection):
        raise ValueError(f"{pair.node.where}: does not select")
    c = op.Min(y, y0) if smallest else op.Max(y, y0)
    here = winner.route(op, op.typed(op.Mul(r, op.Sub(c, y0)), y))
    there = winner0.route(op, op.typed(op.Mul(r, op.Sub(y, c)), y))
    routed = winner.route(op, r)
    shares = {}
    for k in here:
        x = pair.node.input(k)
        won = op.typed(op.Add(here[k], there[k]), x)
        near = routed[k]
        m = pair.quotient(op, won, difference(op, x, pair.base.input(k)), lambda near=near: near)  # type: ignore[misc]
        shares[k] = op.typed(m, x)
    return shares


def safe_quotient(op: Emitter, a: Value, b: Value) -> Value:
    """a/b, and 0 where b is 0."""
    none = op.Equal(b, op.constant(0.0, like=b))
    return op.Where(none, op.constant(0.0, like=a), op.Div(a, op.Where(none, op.constant(1.0, like=b), b)))


def finite(op: Emitter, value: Value) -> Value:
    """0 in place of what is infinite or no number: a root's slope at 0 must not turn 0·Δx into NaN."""
    sound = op.Equal(op.Sub(value, value), op.constant(0.0, like=value))
    return op.Where(sound, value, op.constant(0.0, like=value))


def difference(op: Emitter, a: Value, b: Value) -> Value:
    """A - b of two tensors of one shape."""
    return op.typed(op.Sub(a, b), a)


def middle(op: Emitter, a: Value, b: Value) -> Value:
    """(a + b)/2 of two tensors of one shape."""
    return op.typed(op.Mul(op.Add(a, b), 0.5), a)
