"""Operators that write into a tensor at places given by indices: Scatter*, MaxUnpool; and Compress, which reads there.

With a reduction, a scatter is taken apart first (`ir/apart`): what reaches a room here then starts from the
reduction's neutral element, and only the updates can be active. Of updates that fall on one place, those count that the
forward pass kept: every update carries a number of its own through the same scatter, and asks which number arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.roles import Linear, Product, Rearrangement, Role, Selection, room, zeros_like

_LAST = np.iinfo(np.int64).max
_CHECKED = 1 << 16  # entries of constant indices that are looked at for repetitions


@dataclass(frozen=True)
class _Places:
    """Where the updates of a scatter go: `write` puts values there, `read` fetches them back."""

    node: Operation

    @property
    def updates(self) -> Value:
        return self.node.input(2)

    def write(self, op: Emitter, base: Value, values: Value, reduction: str = "none") -> Value:
        """`values` (of the updates' shape) written into `base` (of the data's shape)."""
        operands = [base, self.node.input(1), values]
        return op.emit(self.node.op_type, operands, {**self._axis, "reduction": reduction})[0]

    def read(self, op: Emitter, value: Value) -> Value:
        """What stands at the places, in the updates' shape."""
        if self.node.op_type == "ScatterND":
            return op.GatherND(value, self.node.input(1))
        return op.GatherElements(value, self.node.input(1), **self._axis)

    def full(self, op: Emitter, fill: int) -> Value:
        """An int64 tensor of the data's shape."""
        return op.Expand(op.constant(fill, dtype=np.int64), op.shape_of(self.node.x))

    def numbers(self, op: Emitter) -> Value:
        """0, 1, 2, … in the shape of the updates."""
        shape = op.shape_of(self.updates)
        count = op.Size(self.updates)
        zero, one = (op.constant(v, dtype=np.int64) for v in (0, 1))
        return op.Reshape(op.Range(zero, count, one), shape)

    def counts(self, op: Emitter) -> Value:
        """How many updates fall on each place, in the data's shape."""
        one = op.constant(1.0, like=self.updates)
        return op.typed(
            self.write(op, zeros_like(op, self.node.x), op.Expand(one, op.shape_of(self.updates)), "add"), self.node.y
        )

    @cached_property
    def apart(self) -> bool:
        """Whether no two updates fall on one place, as far as it is known before the model runs."""
        indices = self.node.input(1).const_value
        if indices is None or indices.size > _CHECKED:
            return False
        found, sizes = np.asarray(indices.numpy()), dims(self.node.x)
        if self.node.op_type == "ScatterND":
            rows = found.reshape(-1, found.shape[-1])
            known = sizes[: rows.shape[1]]
        else:
            axis = self.node.integer("axis", 0) % rank(self.node.x)
            grid = np.indices(found.shape)
            grid[axis] = found
            rows, known = grid.reshape(found.ndim, -1).T, sizes
        if any(d is None for d in known) and (rows < 0).any():
            return False
        rows = np.where(rows < 0, rows + [d or 0 for d in known], rows)
        return len(np.unique(rows, axis=0)) == len(rows)

    @property
    def _axis(self) -> dict[str, int]:
        return {} if self.node.op_type == "ScatterND" else {"axis": self.node.integer("axis", 0)}


@room("ScatterElements", "ScatterND", sign="inherits")
def scatter(node: Operation) -> Role:
    """Entries replaced at given places; with a reduction, added, multiplied, or the largest or smallest kept."""
    places, reduction = _Places(node), node.text("reduction", "none")
    if reduction == "none":
        return Rearrangement(
            lambda op, rs: {} if rs[0] is None else _replaced(op, places, rs[0]), leaks=not {0, 2} <= node.active
        )
    if 0 in node.active:
        raise UnsupportedOperator(
            f"{node.where}: scatters with reduction={reduction!r} into an explained tensor whose type is not known; "
            "run shape inference on the file."
        )
    if reduction == "add":
        return Linear(
            "average",
            lambda op, x, w: op.typed(places.write(op, node.x, x, "add"), node.y),
            lambda op, s, w, like: op.typed(places.read(op, s), like),
            data=2,
        )
    if reduction == "mul":
        return Product(lambda op, r, k: _factors(op, places, r), (2,), elementwise=False, degree=places.counts)
    return Selection(lambda op, r: {2: _kept(op, places, r)})


def _replaced(op: Emitter, places: _Places, r: Value) -> dict[int, Value]:
    """The data keep what was not overwritten, the updates take what they wrote."""
    node, shares = places.node, {}
    if 0 in node.active:
        shares[0] = op.typed(places.write(op, r, zeros_like(op, places.updates)), node.x)
    if 2 in node.active:
        taken = places.read(op, r)
        if not places.apart:
            numbers = places.numbers(op)
            stayed = op.Equal(places.read(op, places.write(op, places.full(op, -1), numbers)), numbers)
            taken = op.Where(stayed, taken, op.constant(0.0, like=r))
        shares[2] = op.typed(taken, places.updates)
    return shares


def _kept(op: Emitter, places: _Places, r: Value) -> Value:
    """The first of the updates that are the extremum of their place takes all."""
    equal, numbers = op.Equal(places.updates, places.read(op, places.node.y)), places.numbers(op)
    candidates = op.Where(equal, numbers, op.constant(_LAST, dtype=np.int64))
    first = places.read(op, places.write(op, places.full(op, _LAST), candidates, "min"))
    won = op.And(equal, op.Equal(first, numbers))
    return op.typed(op.Where(won, places.read(op, r), op.constant(0.0, like=r)), places.updates)


def _factors(op: Emitter, places: _Places, r: Value) -> Value:
    """Each update's share of a product: that of the others, also where some are zero."""
    u, one, zero = places.updates, op.constant(1.0, like=places.updates), op.constant(0.0, like=places.updates)
    none = op.Equal(u, zero)
    safe = op.Where(none, one, u)
    product = places.read(op, places.write(op, op.Expand(one, op.shape_of(places.node.x)), safe, "mul"))
    blank = op.Cast(none, to=int(u.dtype or 1))
    zeros = places.read(op, places.write(op, zeros_like(op, places.node.x), blank, "add"))
    others = op.Where(op.Equal(op.Sub(zeros, blank), zero), op.Div(product, safe), zero)
    return op.typed(op.Mul(places.read(op, r), others), u)


@room("TensorScatter", sign="inherits")
def tensor_scatter(node: Operation) -> Rearrangement:
    """A run of entries written into a cache, at a place of its own for every sample."""
    axis, update = node.integer("axis", -2) % rank(node.x), node.input(1)
    length, run = dims(node.x)[axis], dims(update)[axis]
    said = {"axis": node.integer("axis", -2), "mode": node.text("mode", "linear")}
    begun = node.input(2) if node.has(2) else None

    def places(op: Emitter) -> Value:
        """Where along the axis each entry of the update goes, in the update's shape."""
        along = [1] * rank(node.x)
        along[axis] = -1
        steps = op.constant(np.arange(run or 0).reshape(along), dtype=np.int64)
        if begun is not None:
            first = op.Reshape(begun, op.ints(-1, *[1] * (rank(node.x) - 1)))
            steps = op.Mod(op.Add(op.Cast(first, to=7), steps), op.constant(length or 1, dtype=np.int64))
        return op.Expand(steps, op.shape_of(update))

    def undo(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        r, shares = rs[0], {}
        if r is None:
            return {}
        if 0 in node.active:
            blank = [r, zeros_like(op, update), begun]
            shares[0] = op.typed(op.emit("TensorScatter", blank, said)[0], node.x)
        if 1 in node.active:
            shares[1] = op.typed(op.GatherElements(r, places(op), axis=axis), update)
        return shares

    return Rearrangement(undo, leaks=not {0, 1} <= node.active)


@room("MaxUnpool", sign="inherits")
def max_unpool(node: Operation) -> Rearrangement:
    """Entries put back where MaxPool's indices say, zeros elsewhere; of entries that share a place one is kept."""

    def undo(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        r = rs[0]
        if r is None:
            return {}
        indices, whole = op.Reshape(node.input(1), op.ints(-1)), op.ints(-1)
        zero, one = (op.constant(v, dtype=np.int64) for v in (0, 1))
        numbers = op.Range(zero, op.Size(node.x), one)
        base = op.Expand(op.ints(-1), op.Reshape(op.Size(node.y), op.ints(1)))
        stayed = op.Equal(op.Gather(op.ScatterElements(base, indices, numbers), indices), numbers)
        taken = op.Where(stayed, op.Gather(op.Reshape(r, whole), indices), op.constant(0.0, like=r))
        return {0: op.reshape_like(taken, node.x)}

    return Rearrangement(undo)


@room("Compress", sign="inherits")
def compress(node: Operation) -> Rearrangement:
    """Entries along an axis (of the flat tensor without one) that a condition keeps."""
    axis = node.attributes.get("axis")

    def undo(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        r = rs[0]
        if r is None:
            return {}
        kept = op.NonZero(node.input(1))
        if axis is None:
            flat = op.Reshape(node.x, op.ints(-1))
            return {0: op.reshape_like(_written(op, op.Mul(flat, 0.0), kept, r, 0, 1), node.x)}
        return {0: op.typed(_written(op, zeros_like(op, node.x), kept, r, int(axis), rank(node.x)), node.x)}

    return Rearrangement(undo)


def _written(op: Emitter, base: Value, indices: Value, r: Value, axis: int, n: int) -> Value:
    """`r` at `indices` (any shape, distinct) of one axis of `base`."""
    along = [1] * n
    along[axis % n] = -1
    return op.ScatterElements(base, op.Expand(op.Reshape(indices, op.ints(*along)), op.Shape(r)), r, axis=axis)
