"""Where integer inputs become floats, and which of their entries selects which row of a table.

Integers carry no relevance: they are explained at their embeddings, the first float tensors computed of them. What arrives
there belongs to the entries that select it: to entry i of an input, Σ_f R[i, f] over the features f of every table looked up
with that very entry, be it cast, clipped, sliced or reshaped on the way. What is computed of *comparisons* with the entries
(masks, positions counted from them) belongs to none of them and keeps its own name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.errors import ExplainError
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators import find
from onnx_explain.operators.roles import Linear, Rearrangement

Array = npt.NDArray[Any]
_TABLES = ("Gather", "OneHot")
_CASTS = ("Cast", "CastLike")


@dataclass(frozen=True)
class Lookup:
    """A float tensor made of integers: `index` selects its rows; `axes` are the tensor's axes that one entry fills."""

    tensor: str
    index: Value
    axes: tuple[int, ...]


def is_float(value: Value) -> bool:
    """Whether a tensor can carry relevance."""
    return value.dtype is not None and value.dtype.is_floating_point()


def embeddings(model: ir.Model) -> list[str]:
    """Where the explanation of a canonical model's integer inputs ends: the first float tensors that are computed of them.

    Looked up in a table (Gather, OneHot) where anything is: [N, tokens, features], one entry per token id, while masks
    and counts that are merely cast only steer. Without a table, what is cast: a picture of bytes, or, beside inputs of
    floats, columns of whole numbers that are joined to others or weighed.
    """
    return [found.tensor for found in lookups(model)]


def lookups(model: ir.Model) -> list[Lookup]:
    """The embeddings of a canonical model with what selects their rows."""
    varying = {id(v) for v in model.graph.inputs if not is_float(v)}
    narrow: dict[int, Lookup] = {}  # rows of tables of whole numbers, as quantised models have them
    first: list[tuple[ir.Node, Value, Lookup | None]] = []
    for node in model.graph:
        if node.op_type in ("Shape", "Size") or not any(v is not None and id(v) in varying for v in node.inputs):
            continue
        rows = narrow.get(id(node.inputs[0]))
        for value in node.outputs:
            if is_float(value):
                first.append((node, value, rows))
                continue
            varying.add(id(value))
            if node.op_type in _TABLES and id(node.inputs[0]) not in varying:
                narrow[id(value)] = _lookup(node, value)
    alone = not any(is_float(v) for v in model.graph.inputs)
    tables = [
        _lookup(n, v) if rows is None else replace(rows, tensor=v.name or "")
        for n, v, rows in first
        if n.op_type in _TABLES or rows is not None
    ]
    return tables or [_lookup(n, v) for n, v, _ in first if n.op_type in _CASTS and (alone or _is_feature(v))]


def _lookup(node: ir.Node, value: Value) -> Lookup:
    """The index operand of a table, and the axes that its rows fill; a cast fills none."""
    operation = Operation.of(node)
    places = range(0 if value.shape is None else rank(value))
    if node.op_type == "Gather":
        index = operation.input(1)
        start = operation.integer("axis", 0) % max(rank(operation.x), 1)
        kept = range(start, start + (0 if index.shape is None else rank(index)))
        return Lookup(value.name or "", index, tuple(a for a in places if a not in kept))
    if node.op_type == "OneHot":
        return Lookup(value.name or "", operation.x, (operation.integer("axis", -1) % max(len(places), 1),))
    return Lookup(value.name or "", operation.x, ())


def _is_feature(value: Value) -> bool:
    """Whether a cast number is joined to others or weighed, perhaps scaled first; a mask or a count only scales something."""
    waiting, seen = [value], set[int]()
    while waiting:
        for node, place in waiting.pop().uses():
            if id(node) in seen:
                continue
            seen.add(id(node))
            found = find(Operation.of(node))
            if node.op_type == "Concat" or _weighs(node, place):
                return True
            others = [v for i, v in enumerate(node.inputs) if i != place and v is not None]
            if found is not None and not found.inert and all(v.const_value is not None for v in others):
                waiting += [v for v in node.outputs if is_float(v)]
    return False


def _weighs(node: ir.Node, place: int) -> bool:
    operation = Operation.of(node, frozenset({place}))
    found = find(operation)
    try:
        role = found.role(operation) if found is not None else None
    except ExplainError:
        return False
    return isinstance(role, Linear) and role.kind == "weighted" and role.data == place


# ------------------------------------------------------------------------------------------- relevance per entry


def by_entry(
    model: ir.Model, feeds: Mapping[str, Array], relevance: Mapping[str, Array]
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """(relevance of each entry of every integer input that selects something, in its shape; the tensors it came from).

    feeds: the model's inputs. relevance: by tensor; embeddings of a model with a fixed batch may be several batches, joined
    along axis 0. The result has the embeddings' dtype.
    """
    found = [look for look in lookups(model) if look.tensor in relevance]
    if not found:
        return {}, ()
    credited: list[str] = []
    inputs = {v.name or "": v for v in model.graph.inputs if not is_float(v) and v.name in feeds}
    sizes = {n: _one_batch(v, feeds[n].shape) for n, v in inputs.items()}
    labels = _labels(model, {id(v): sizes[n] for n, v in inputs.items()})
    repeats = max((len(feeds[n]) // s[0] for n, s in sizes.items() if s and s[0]), default=1)
    counts = [math.prod(s) for s in sizes.values()]
    totals, reached = np.zeros((repeats, sum(counts))), np.zeros(sum(counts), dtype=bool)
    dtype: Any = np.float32
    for look in found:
        r, index = relevance[look.tensor], labels.get(id(look.index))
        if index is None or index.size * repeats != (summed := r.astype(np.float64).sum(axis=look.axes)).size:
            continue
        dtype, selects = r.dtype, index.ravel() >= 0
        credited.append(look.tensor)
        reached[index.ravel()[selects]] = True
        for i, part in enumerate(summed.reshape(repeats, -1)):
            np.add.at(totals[i], index.ravel()[selects], part[selects])
    ends = np.cumsum([0, *counts])
    entries = {
        n: totals[:, a:b].reshape(feeds[n].shape).astype(dtype)
        for n, a, b in zip(inputs, ends, ends[1:])
        if reached[a:b].any() and totals[:, a:b].size == feeds[n].size
    }
    return entries, tuple(credited)


def _one_batch(value: Value, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what the model takes at once."""
    fixed = dims(value)[0] if value.shape is not None and len(value.shape) else None
    return (fixed, *shape[1:]) if fixed is not None and shape else shape


def _labels(model: ir.Model, sizes: Mapping[int, tuple[int, ...]]) -> dict[int, Array]:
    """Of every integer tensor made of the inputs' entries the number of the entry that each of its own is, or -1."""
    starts = np.cumsum([0, *(math.prod(s) for s in sizes.values())])
    labels: dict[int, Array] = {
        key: np.arange(a, a + math.prod(size)).reshape(size) for (key, size), a in zip(sizes.items(), starts)
    }
    version = model.graph.opset_imports.get("", 0)
    for node in model.graph:
        carried = {i: labels[id(v)] for i, v in enumerate(node.inputs) if v is not None and id(v) in labels}
        if carried and not any(is_float(v) or v.dtype == ir.DataType.BOOL for v in node.outputs):
            for value, found in zip(node.outputs, _moved(node, carried, version)):
                labels[id(value)] = found
    return labels


def _moved(node: ir.Node, carried: Mapping[int, Array], version: int) -> Sequence[Array]:
    """The labels behind one node: moved with the entries, or as they were where each entry is computed of its own."""
    operation = Operation.of(node, frozenset(carried), version)
    room, [(place, first), *others] = find(operation), carried.items()
    if room is not None and room.keeps_order and not others:
        return [_shaped(first, node.outputs[0])]
    try:
        role = room.role(operation) if room is not None else None
    except ExplainError:
        return []
    chosen = any(v is not None and v.dtype == ir.DataType.BOOL for v in node.inputs)  # an entry, or something else
    if isinstance(role, Rearrangement) and not chosen:
        return _replayed(node, carried, version)
    x, y = node.inputs[place], node.outputs[0]
    alike = x is not None and x.shape is not None and y.shape is not None and x.shape == y.shape
    return [first] if alike and not others else []


def _shaped(labels: Array, y: Value) -> Array:
    if y.shape is None:
        return labels
    sizes = [-1 if d is None else d for d in dims(y)]
    known = math.prod(d for d in sizes if d != -1)
    fits = sizes.count(-1) <= 1 and known and labels.size % known == 0 and (-1 in sizes or known == labels.size)
    return labels.reshape(sizes) if fits else np.full_like(labels, -1)


def _replayed(node: ir.Node, carried: Mapping[int, Array], version: int) -> Sequence[Array]:
    """The node run on the labels, twice: an entry that does not follow when they are shifted is none of them."""
    operands: dict[int, Array] = {}
    for i, value in enumerate(node.inputs):
        if value is not None and i not in carried:
            if value.const_value is None:
                return []
            operands[i] = np.asarray(value.const_value.numpy())
    shift = 1 + max(int(a.max(initial=0)) for a in carried.values())
    try:
        plain = _run(node, {**operands, **carried}, version)
        shifted = _run(node, {**operands, **{i: a + shift for i, a in carried.items()}}, version)
    except Exception:  # a reference implementation that lacks this operator, or refuses these numbers
        return []
    return [np.where(b - a == shift, a, -1) for a, b in zip(plain, shifted)]


def _run(node: ir.Node, operands: Mapping[int, Array], version: int) -> Iterable[Array]:
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    names = ["" if v is None else f"x{i}" for i, v in enumerate(node.inputs)]
    outputs = [f"y{i}" for i in range(len(node.outputs))]
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(outputs)
    untyped = [helper.make_empty_tensor_value_info(n) for n in names if n]
    graph = helper.make_graph([proto], "labels", untyped, [helper.make_empty_tensor_value_info(n) for n in outputs])
    opset = helper.make_opsetid("", version)
    runner = ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset]))
    found = runner.run(None, {names[i]: a for i, a in operands.items()})
    return [np.asarray(a) for a in found]
