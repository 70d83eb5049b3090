"""Which part of an input each entry of an inner tensor comes from, read off the structure.

Rows of numbers run through the nodes in place of values: every entry carries the place it belongs to. A window's output begins
a grid of places; a dense layer makes one place of the features it joins; what only moves entries moves their places. Where
places mix (two tokens become one) there is none any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.ir.fold import result_of
from onnx_explain.ir.view import Operation, Value, dims, rank, spatial
from onnx_explain.operators import find
from onnx_explain.operators.layout import windowed
from onnx_explain.operators.roles import Linear, Normalization, Pointwise, Product, Rearrangement, Role, Sum

Ints = npt.NDArray[np.int64]
_DEPTH = 24  # nodes of shape arithmetic in a row
NOWHERE = -1  # a class token, a border: what comes from no part of the input


@dataclass(frozen=True)
class Places:
    """The place of every entry of a tensor: `ids` has the tensor's shape (an open batch is 1), NOWHERE for none.

    `owner[e]`: the place that element e of one sample of the input went into; with a `grid`, e counts its positions. A
    place is called after its first element, so that equal places have equal names.
    """

    ids: Ints
    owner: Ints
    grid: tuple[int, ...] | None = None

    def moved(self, ids: Ints) -> Places:
        """The same places laid out otherwise."""
        return Places(ids, self.owner, self.grid)

    def joined(self) -> Places | None:
        """Every row along the last axis as one place; None where an element would go into two."""
        valid = self.ids != NOWHERE
        large = np.int64(np.iinfo(np.int64).max)
        first = np.where(valid, self.ids, large).min(axis=-1, keepdims=True)
        first = np.where(first == large, NOWHERE, first)
        whole = np.broadcast_to(first, self.ids.shape)
        renamed = np.full(max(self.owner.size, 1), NOWHERE, np.int64)
        renamed[self.ids[valid]] = whole[valid]
        if not np.array_equal(renamed[self.ids[valid]], whole[valid]):
            return None
        owner = np.where(self.owner == NOWHERE, NOWHERE, renamed[self.owner])
        return Places(np.ascontiguousarray(whole), owner, self.grid)


def begun(x: Value) -> Places:
    """The input itself: every element a place of its own."""
    sizes = spatial(x, 1) if rank(x) else []
    count = int(np.prod(sizes, dtype=np.int64))
    ids = np.arange(count, dtype=np.int64).reshape(1, *sizes)
    return Places(np.repeat(ids, dims(x)[0] or 1, axis=0), np.arange(count, dtype=np.int64))


def follow(places: dict[int, Places], operation: Operation, node: ir.Node, role: Role) -> list[Places | None]:
    """The places of a node's results, from those of its operands by id; None where they mix or nothing is known."""
    held = {i: places[id(operation.inputs[i])] for i in operation.active if id(operation.inputs[i]) in places}
    if windowed(operation):
        return [_grid(operation)]
    if not held or len(held) < len(operation.active):
        return []
    if isinstance(role, Rearrangement):
        return _rearranged(operation, node, held)
    return [_computed(operation, role, held)]


def _computed(operation: Operation, role: Role, held: dict[int, Places]) -> Places | None:
    first = held[min(held)]
    if isinstance(role, Sum) or (isinstance(role, Product) and role.elementwise):
        return _merged(operation, list(held.values()))
    if isinstance(role, Linear) and role.kind == "weighted":
        return _dense(operation, role, first)
    same = isinstance(role, Pointwise) or (isinstance(role, Normalization) and not role.softmax)
    if same or (isinstance(role, Linear) and role.kind in ("scale", "normalisation")):
        return spread(operation, first)
    return None


def _grid(operation: Operation) -> Places | None:
    """A window's output [N, C, *positions]: every position a place."""
    sizes = dims(operation.y)
    if len(sizes) < 3 or any(d is None for d in sizes[1:]):
        return None
    grid = tuple(d or 1 for d in sizes[2:])
    places = np.arange(int(np.prod(grid)), dtype=np.int64)
    whole = np.broadcast_to(places.reshape(1, 1, *grid), (sizes[0] or 1, sizes[1] or 1, *grid))
    return Places(np.ascontiguousarray(whole), places, grid)


def _rearranged(operation: Operation, node: ir.Node, held: dict[int, Places]) -> list[Places | None]:
    """The operator itself, run on places; constants and borders are NOWHERE."""
    held = _alike(held)
    if not held:
        return []
    first, found = held[min(held)], find(operation)
    if found is not None and found.keeps_order:
        shape = [-1 if d is None else d for d in dims(operation.y)]
        fits = shape.count(-1) < 2 and first.ids.size % max(int(np.prod([d for d in shape if d > 0])), 1) == 0
        return [first.moved(first.ids.reshape(shape))] if fits else []
    operands: list[npt.NDArray[Any] | None] = []
    for i, value in enumerate(operation.inputs):
        if i in held:
            operands.append(held[i].ids + 1)  # so that zeros, which borders are filled with, stand for NOWHERE
        elif value is None:
            operands.append(None)
        elif value.dtype is not None and value.dtype.is_floating_point():
            operands.append(np.zeros([d or 1 for d in dims(value)], np.int64))
        else:
            number = _number(value)
            if number is None:
                return []
            operands.append(number)
    results = result_of(node, operands)
    return [] if results is None else [first.moved(r.astype(np.int64) - 1) for r in results]


def _number(value: Value, depth: int = 0) -> npt.NDArray[Any] | None:
    """An integer operand for one sample: a constant, or arithmetic on shapes; None where data decides it."""
    if value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    node = value.producer()
    if node is None or depth > _DEPTH:
        return None
    if node.op_type in ("Shape", "Size"):
        x = node.inputs[0]
        known = x is not None and x.shape is not None
        operands: list[npt.NDArray[Any] | None] = (
            [np.broadcast_to(np.float32(0), [d or 1 for d in dims(x)])] if known and x is not None else [None]
        )
    else:
        operands = [None if v is None else _number(v, depth + 1) for v in node.inputs]
    if any(v is not None and o is None for v, o in zip(node.inputs, operands)):
        return None
    results = result_of(node, operands)
    return None if results is None else results[list(node.outputs).index(value)]


def _alike(held: dict[int, Places]) -> dict[int, Places]:
    """Operands whose places bear the same names, with rows joined where some are joined already; empty where that fails."""
    for parts in (held, {i: p.joined() for i, p in held.items()}):
        known = {i: p for i, p in parts.items() if p is not None}
        first = next(iter(known.values()), None)
        if first is None or len(known) < len(held):
            continue
        if all(np.array_equal(p.owner, first.owner) and p.grid == first.grid for p in known.values()):
            return known
    return {}


def _merged(operation: Operation, held: Sequence[Places]) -> Places | None:
    """Sums and products entry by entry: the same place in all, or one place where the others have none."""
    whole = {i: spread(operation, p) for i, p in enumerate(held)}
    for parts in (whole, {i: q for i, p in whole.items() if (q := p.joined()) is not None}):
        known = _alike(parts) if len(parts) == len(held) else {}
        ids = None
        for p in known.values():
            ids = p.ids if ids is None else _one_of(ids, p.ids)
            if ids is None:
                break
        if ids is not None:
            return known[0].moved(ids)
    return None


def _one_of(a: Ints, b: Ints) -> Ints | None:
    """The place that both name, or the one that only one does; None where they name two."""
    if a.shape != b.shape or not ((a == b) | (a == NOWHERE) | (b == NOWHERE)).all():
        return None
    return np.maximum(a, b)


def _dense(operation: Operation, role: Linear, x: Places) -> Places | None:
    """A dense layer along the last axis: one place per row."""
    y = operation.y
    if role.data != 0 or x.ids.ndim != rank(y) or role.channel_axis != rank(y) - 1:
        return None
    rows, sizes = x.joined(), dims(y)
    if rows is None or sizes[-1] is None:
        return None
    if any(d is not None and d != e for d, e in zip(sizes[1:-1], x.ids.shape[1:-1])):
        return None
    return rows.moved(np.repeat(rows.ids[..., :1], sizes[-1], axis=-1))


def spread(operation: Operation, x: Places) -> Places:
    """Broadcast to the result's shape."""
    sizes = [d or 1 for d in dims(operation.y)]
    try:
        return x.moved(np.ascontiguousarray(np.broadcast_to(x.ids, np.broadcast_shapes(tuple(sizes), x.ids.shape))))
    except ValueError:
        return x
