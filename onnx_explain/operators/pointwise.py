"""Elementwise non-linearities: one derivative each, taken from x or from y, whichever is cheaper."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value
from onnx_explain.operators.roles import Pointwise, Sign, room


def _mask(op: Emitter, condition: Value, like: Value) -> Value:
    return op.Cast(condition, to=int(like.dtype or 1))


def _choose(op: Emitter, condition: Value, yes: Value | float, no: Value | float, like: Value) -> Value:
    a = op.constant(yes, like=like) if isinstance(yes, float) else yes
    b = op.constant(no, like=like) if isinstance(no, float) else no
    return op.Where(condition, a, b)


def _simple(
    name: str, derivative: Callable[[Emitter, Operation], Value], sign: Sign = "any", *, head: bool = False
) -> None:
    """Register an operator whose derivative needs no operand but x and y."""

    @room(name, sign=sign, head=head)
    def _(node: Operation) -> Pointwise:
        return Pointwise(lambda op: derivative(op, node))


@room("Relu", sign="nonnegative")
def relu(node: Operation) -> Pointwise:
    """y = max(x, 0), derivative 0 at 0; taken from y, so that the runtime may fuse the Relu with what comes before."""
    return Pointwise(lambda op: _mask(op, op.Greater(node.y, 0.0), node.y), rectifier=True, guided=True)


@room("LeakyRelu")
def leaky_relu(node: Operation) -> Pointwise:
    """y = x for x > 0, alpha·x below."""
    alpha = node.number("alpha", 0.01)
    return Pointwise(lambda op: _choose(op, op.Greater(node.x, 0.0), 1.0, alpha, node.y))


@room("PRelu")
def prelu(node: Operation) -> Pointwise:
    """y = x for x > 0, slope·x below, one slope per channel."""
    return Pointwise(lambda op: _choose(op, op.Greater(node.x, 0.0), 1.0, node.input(1), node.y))


@room("ThresholdedRelu", sign="nonnegative")
def thresholded_relu(node: Operation) -> Pointwise:
    """y = x for x > alpha, 0 below."""
    alpha = node.number("alpha", 1.0)
    return Pointwise(lambda op: _mask(op, op.Greater(node.x, alpha), node.y))


@room("Clip", sign="floored")
def clip(node: Operation) -> Pointwise:
    """y = min(max(x, low), high): derivative 1 strictly between the bounds."""

    def derivative(op: Emitter) -> Value:
        bounds = [
            op.Greater(node.x, node.input(1)) if node.has(1) else None,
            op.Less(node.x, node.input(2)) if node.has(2) else None,
        ]
        inside = [b for b in bounds if b is not None]
        if not inside:
            return op.constant(1.0, like=node.y)
        return _mask(op, op.And(*inside) if len(inside) == 2 else inside[0], node.y)

    low = node.input(1).const_value if node.has(1) else None
    return Pointwise(derivative, guided=low is not None and bool((low.numpy() == 0).all()))


@room("Elu")
def elu(node: Operation) -> Pointwise:
    """y = x for x > 0, alpha·(eˣ - 1) below."""
    alpha = node.number("alpha", 1.0)
    return Pointwise(lambda op: _choose(op, op.Greater(node.x, 0.0), 1.0, op.Add(node.y, alpha), node.y))


@room("Selu")
def selu(node: Operation) -> Pointwise:
    """y = gamma·x for x > 0, gamma·alpha·(eˣ - 1) below."""
    alpha = node.number("alpha", 1.67326319217681884765625)
    gamma = node.number("gamma", 1.05070102214813232421875)
    return Pointwise(lambda op: _choose(op, op.Greater(node.x, 0.0), gamma, op.Add(node.y, gamma * alpha), node.y))


@room("Celu")
def celu(node: Operation) -> Pointwise:
    """y = x for x > 0, alpha·(e^{x/alpha} - 1) below."""
    alpha = node.number("alpha", 1.0)
    return Pointwise(lambda op: _choose(op, op.Greater(node.x, 0.0), 1.0, op.Add(op.Div(node.y, alpha), 1.0), node.y))


@room("HardSigmoid", sign="nonnegative")
def hard_sigmoid(node: Operation) -> Pointwise:
    """y = min(max(alpha·x + beta, 0), 1)."""
    alpha = node.number("alpha", 0.2)
    return Pointwise(lambda op: _choose(op, op.And(op.Greater(node.y, 0.0), op.Less(node.y, 1.0)), alpha, 0.0, node.y))


@room("HardSwish")
def hard_swish(node: Operation) -> Pointwise:
    """y = x·min(max(x/6 + 1/2, 0), 1)."""

    def derivative(op: Emitter) -> Value:
        slope = op.Add(op.Div(node.x, 3.0), 0.5)
        upper = _choose(op, op.Greater(node.x, 3.0), 1.0, slope, node.y)
        return _choose(op, op.Less(node.x, -3.0), 0.0, upper, node.y)

    return Pointwise(derivative)


@room("Gelu")
def gelu(node: Operation) -> Pointwise:
    """y = x·Φ(x), exactly or by its tanh approximation."""
    x = node.x

    def exact(op: Emitter) -> Value:
        cdf = op.Mul(op.Add(op.Erf(op.Div(x, math.sqrt(2.0))), 1.0), 0.5)
        pdf = op.Mul(op.Exp(op.Mul(op.Mul(x, x), -0.5)), 1.0 / math.sqrt(2.0 * math.pi))
        return op.Add(cdf, op.Mul(x, pdf))

    def approximate(op: Emitter) -> Value:
        k, c = math.sqrt(2.0 / math.pi), 0.044715
        square = op.Mul(x, x)
        t = op.Tanh(op.Mul(op.Mul(x, op.Add(op.Mul(square, c), 1.0)), k))
        inner = op.Mul(op.Add(op.Mul(square, 3.0 * c), 1.0), k)
        rest = op.Mul(op.Mul(x, op.Sub(op.constant(1.0, like=x), op.Mul(t, t))), inner)
        return op.Mul(op.Add(op.Add(t, 1.0), rest), 0.5)

    return Pointwise(approximate if node.text("approximate", "none") == "tanh" else exact)


@room("Mish")
def mish(node: Operation) -> Pointwise:
    """y = x·tanh(softplus(x))."""

    def derivative(op: Emitter) -> Value:
        t = op.Tanh(op.Softplus(node.x))
        return op.Add(t, op.Mul(op.Mul(node.x, op.Sub(op.constant(1.0, like=t), op.Mul(t, t))), op.Sigmoid(node.x)))

    return Pointwise(derivative)


@room("Swish")
def swish(node: Operation) -> Pointwise:
    """y = x·sigmoid(alpha·x)."""
    alpha = node.number("alpha", 1.0)

    def derivative(op: Emitter) -> Value:
        gate = op.Sigmoid(op.Mul(node.x, alpha))
        return op.Add(gate, op.Mul(op.Mul(node.y, alpha), op.Sub(op.constant(1.0, like=gate), gate)))

    return Pointwise(derivative)


def _one_minus(op: Emitter, value: Value) -> Value:
    return op.Sub(op.constant(1.0, like=value), value)


def _one_plus_square(op: Emitter, x: Value) -> Value:
    return op.Add(op.Mul(x, x), 1.0)


_simple("Sigmoid", lambda op, n: op.Mul(n.y, _one_minus(op, n.y)), "nonnegative", head=True)
_simple("Tanh", lambda op, n: _one_minus(op, op.Mul(n.y, n.y)))
_simple("Softplus", lambda op, n: op.Sigmoid(n.x), "nonnegative")
_simple("Softsign", lambda op, n: op.Reciprocal(op.Mul(op.Add(op.Abs(n.x), 1.0), op.Add(op.Abs(n.x), 1.0))))
_simple("Erf", lambda op, n: op.Mul(op.Exp(op.Neg(op.Mul(n.x, n.x))), 2.0 / math.sqrt(math.pi)))
_simple("Exp", lambda op, n: n.y, "nonnegative")
_simple("Log", lambda op, n: op.Reciprocal(n.x))
_simple("Sqrt", lambda op, n: op.Div(op.constant(0.5, like=n.y), n.y), "nonnegative")
_simple("Reciprocal", lambda op, n: op.Neg(op.Mul(n.y, n.y)))
_simple("Abs", lambda op, n: op.Sign(n.x), "nonnegative")
_simple("Sin", lambda op, n: op.Cos(n.x))
_simple("Cos", lambda op, n: op.Neg(op.Sin(n.x)))
_simple("Tan", lambda op, n: _one_plus_square(op, n.y))
_simple("Atan", lambda op, n: op.Reciprocal(_one_plus_square(op, n.x)))
_simple("Asin", lambda op, n: op.Reciprocal(op.Sqrt(_one_minus(op, op.Mul(n.x, n.x)))))
_simple("Acos", lambda op, n: op.Neg(op.Reciprocal(op.Sqrt(_one_minus(op, op.Mul(n.x, n.x))))))
_simple("Sinh", lambda op, n: op.Cosh(n.x))
_simple("Cosh", lambda op, n: op.Sinh(n.x), "nonnegative")
_simple("Asinh", lambda op, n: op.Reciprocal(op.Sqrt(_one_plus_square(op, n.x))))
_simple("Acosh", lambda op, n: op.Reciprocal(op.Sqrt(op.Add(op.Mul(n.x, n.x), -1.0))), "nonnegative")
_simple("Atanh", lambda op, n: op.Reciprocal(_one_minus(op, op.Mul(n.x, n.x))))


@room("Shrink")
def shrink(node: Operation) -> Pointwise:
    """y = 0 for |x| <= lambd, x moved towards 0 by bias outside."""
    lambd = node.number("lambd", 0.5)
    return Pointwise(lambda op: _mask(op, op.Greater(op.Abs(node.x), lambd), node.y))
