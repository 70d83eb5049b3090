"""Activations that a graph holds in parts: a product whose factors are elementwise functions of one tensor.

``x·Sigmoid(x)`` is a Swish, ``x·(1 + Erf(x/√2))/2`` a Gelu, whatever nodes they are written with. Recognised by structure
alone: every way from the product up ends in the same tensor or in constants, through nodes that act entry by entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnx_explain.errors import ExplainError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value
from onnx_explain.operators.roles import Linear, Pointwise, Product, Rearrangement, Role, Sum, find

_SAME = ("Identity", "Dropout")
_MOST = 64  # nodes of one activation


@dataclass(frozen=True)
class Activation:
    """``y = f(x)`` behind a product whose operand `operand` is x times constants: `slope` is f'(x), `factor` the constants.

    `factor` is None where the operand is x itself.
    """

    operand: int
    slope: Value
    factor: Value | None


def activation(op: Emitter, node: Operation) -> Activation | None:
    """What function of one tensor a product of two active operands is; None where it is none."""
    if len(node.active) != 2:
        return None
    for k in sorted(node.active):
        for x in _origins(node.input(k), node.version):
            search = _Search(op, x, node.version)
            if x.shape == node.y.shape and search.elementwise(node):
                factor = None if x is node.input(k) else search.derivative(node.input(k))
                return Activation(k, search.at(node), factor)
    return None


def _origins(value: Value, version: int) -> Iterator[Value]:
    """The value, and what it is a multiple of by constants other than zero."""
    yield value
    while (made := value.producer()) is not None:
        positions = frozenset(i for i, v in enumerate(made.inputs) if v is not None and v.const_value is None)
        others = [v.const_value for v in made.inputs if v is not None and v.const_value is not None]
        role = _role(made, positions, version)
        if not isinstance(role, Linear) or role.kind != "scale" or any((c.numpy() == 0).any() for c in others):
            return
        source = made.inputs[role.data]
        if source is None:
            return
        value = source
        yield value


def _role(made: ir.Node, positions: frozenset[int], version: int) -> Role | None:
    operation = Operation.of(made, positions, version)
    room = find(operation)
    if room is None or not positions:
        return None
    try:
        return room.role(operation)
    except ExplainError:  # malformed for any role: not an activation, and told where it is met on the way back
        return None


class _Search:
    """The way from a product up to `x`, and derivatives along it."""

    def __init__(self, op: Emitter, x: Value, version: int) -> None:
        self._op, self._x, self._version = op, x, version
        self._depends: dict[int, bool | None] = {id(x): True}

    def elementwise(self, node: Operation) -> bool:
        """Whether every active operand of the product is an elementwise function of x."""
        return all(self._reached(node.input(k)) for k in node.active)

    def _reached(self, value: Value) -> bool:
        return self._visit(value) is True

    def _visit(self, value: Value) -> bool | None:
        """True: an elementwise function of x; False: a constant; None: anything else."""
        if id(value) in self._depends:
            return self._depends[id(value)]
        if value.const_value is not None:
            return False
        made = value.producer()
        if made is None or len(self._depends) > _MOST:
            return None
        self._depends[id(value)] = None
        found = [self._visit(v) for v in made.inputs if v is not None]
        if None not in found and self._entrywise(made) and value.shape == self._x.shape:
            self._depends[id(value)] = True
        return self._depends[id(value)]

    def _positions(self, made: ir.Node) -> frozenset[int]:
        return frozenset(i for i, v in enumerate(made.inputs) if v is not None and self._visit(v))

    def _entrywise(self, made: ir.Node) -> bool:
        role = _role(made, self._positions(made), self._version)
        if isinstance(role, Linear):
            return role.kind == "scale"
        if isinstance(role, Product):
            return role.elementwise
        return isinstance(role, (Pointwise, Sum)) or (isinstance(role, Rearrangement) and made.op_type in _SAME)

    def derivative(self, value: Value) -> Value:
        """d value/dx, entry by entry."""
        if value is self._x:
            return self._op.constant(1.0, like=value)
        made = value.producer()
        if made is None:
            raise ValueError(f"{value.name!r} is no function of {self._x.name!r}")
        return self.at(Operation.of(made, self._positions(made), self._version))

    def at(self, node: Operation) -> Value:
        """The derivative of a node's result by x: the sum over its operands, each by the chain rule."""
        parts = [self._through(node, k) for k in sorted(node.active)]
        total = parts[0]
        for part in parts[1:]:
            total = self._op.Add(total, part)
        return self._op.typed(total, node.y)

    def _through(self, node: Operation, k: int) -> Value:
        op, inner = self._op, self.derivative(node.input(k))
        room = find(node)
        role = room.role(node) if room is not None else None
        if isinstance(role, Pointwise):
            return op.Mul(inner, role.derivative(op))
        if isinstance(role, Sum):
            return op.Mul(inner, role.coefficients[k])
        spread = op.typed(op.Expand(inner, op.shape_of(node.y)), node.y)
        if isinstance(role, Linear):
            return role.transpose(op, spread, None, node.input(k))
        if isinstance(role, Product):
            return role.vjp(op, spread, k)
        return inner
