"""Operators that sort, mirror, cut off or sum along an axis: TopK, ReverseSequence, Trilu, CenterCropPad, CumSum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_explain.errors import ModelError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.rearrange import scatter_axis
from onnx_explain.operators.roles import Linear, Rearrangement, room, zeros_like
from onnx_explain.operators.secant import Pair, difference, secant


def _but_along(node: Operation, k: int) -> list[int | None]:
    """All axes stay but the one that entries are sorted along."""
    axis = node.integer("axis", -1) % rank(node.x)
    return [None if a == axis else a for a in range(rank(node.input(k)))]


@room("TopK", sign="inherits", axes=_but_along)
def top_k(node: Operation) -> Rearrangement:
    """The k largest or smallest entries along an axis, each back to where it stood; the indices carry nothing."""

    def undo(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        return {} if rs[0] is None else {0: _returned(op, node, rs[0])}

    return Rearrangement(undo)


def _returned(op: Emitter, node: Operation, r: Value) -> Value:
    """Indices are distinct along the axis, so nothing adds up."""
    axis = node.integer("axis", -1)
    return op.typed(op.ScatterElements(zeros_like(op, node.x), node.outputs[1], r, axis=axis), node.x)


@secant("TopK")
def _top_k_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    """As a maximum per rank: with c = max(y, y⁰), r(c - y⁰) to who holds the rank at x, r(y - c) to who does at x⁰."""
    node, base = pair.node, pair.base
    c = op.Max(node.y, base.y)
    here = _returned(op, node, op.typed(op.Mul(r, op.Sub(c, base.y)), node.y))
    there = _returned(op, base, op.typed(op.Mul(r, op.Sub(node.y, c)), node.y))
    won = op.typed(op.Add(here, there), node.x)
    slope = pair.quotient(op, won, difference(op, node.x, base.x), lambda: _returned(op, node, r))
    return {0: op.typed(slope, node.x)}


def _but_time(node: Operation, k: int) -> list[int | None]:
    """All axes stay but the one that is turned round; lengths belong to the sequences."""
    time, batch = node.integer("time_axis", 0), node.integer("batch_axis", 1)
    return [batch] if k == 1 else [None if a == time else a for a in range(rank(node.x))]


@room("ReverseSequence", sign="inherits", axes=_but_time)
def reverse_sequence(node: Operation) -> Rearrangement:
    """The first entries of every sequence in reverse; its own inverse."""
    axes = {"batch_axis": node.integer("batch_axis", 1), "time_axis": node.integer("time_axis", 0)}

    def undo(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        return {} if rs[0] is None else {0: op.typed(op.ReverseSequence(rs[0], node.input(1), **axes), node.x)}

    return Rearrangement(undo)


@room("Trilu", sign="inherits")
def trilu(node: Operation) -> Rearrangement:
    """The upper or lower triangle of matrices; the rest receives zero."""

    def undo(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        r, diagonal = rs[0], node.inputs[1:2]
        return {} if r is None else {0: op.typed(op.Trilu(r, *diagonal, upper=node.integer("upper", 1)), node.x)}

    return Rearrangement(undo)


@room("CenterCropPad", sign="inherits")
def center_crop_pad(node: Operation) -> Rearrangement:
    """The middle of the tensor, cut or framed with zeros to a given size."""
    wanted = node.constant(1)
    if wanted is None:
        raise ModelError(f"{node.where}: its shape is missing.")
    n = rank(node.x)
    axes = [a % n for a in node.ints("axes", list(range(n))) or []]

    def undo(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        r = rs[0]
        if r is None:
            return {}
        for axis, size in zip(axes, (int(s) for s in wanted)):
            own = dims(node.x)[axis]
            if own is None:
                raise ModelError(f"{node.where}: the size of axis {axis} is not known before the model runs.")
            # half of what is cut or framed goes before, rounded down
            first = (own - size) // 2 if own > size else -((size - own) // 2)
            places = np.arange(first, first + size)
            r = scatter_axis(op, r, axis, np.where((places >= 0) & (places < own), places, -1), own)
        return {0: op.typed(r, node.x)}

    return Rearrangement(undo)


def _but_summed(node: Operation, k: int) -> list[int | None]:
    """All axes stay but the one that is summed along."""
    along = node.constant(1)
    return [None if along is None or a == int(along.item()) % rank(node.x) else a for a in range(rank(node.input(k)))]


@room("CumSum", sign="inherits", axes=_but_summed)
def cum_sum(node: Operation) -> Linear:
    """Running sums along an axis; the adjoint sums from the other end."""
    exclusive, reverse = node.integer("exclusive", 0), node.integer("reverse", 0)

    def sums(op: Emitter, v: Value, backwards: int) -> Value:
        return op.CumSum(v, node.input(1), exclusive=exclusive, reverse=backwards)

    return Linear(
        "average",
        forward=lambda op, x, w: op.typed(sums(op, x, reverse), node.y),
        transpose=lambda op, s, w, like: op.typed(sums(op, s, 1 - reverse), like),
    )
