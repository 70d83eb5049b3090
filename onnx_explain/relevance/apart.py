"""Whether a graph keeps the samples apart on its way to the explained tensor: read off the axis that counts them.

An open batch says so itself: it is called the same at both ends. Of a fixed one only its size is known, and a recurrence
whose input is [time, batch, features] has as many time steps as its output.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from onnx_explain.ir.canonicalize import BATCH
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators import find
from onnx_explain.operators.layout import axes_after
from onnx_explain.path import activity, nodes_between, tensors

_ALONG = frozenset({"Concat", "Gather", "Slice", "Split"})


def keeps_samples(model: ir.Model, y: Value, wrt: Iterable[str]) -> bool:
    """Whether axis 0 of y counts samples, as it does in the first of the explained tensors `wrt` that has axes."""
    names, known = list(wrt), tensors(model)
    first = next((known[n] for n in names if known[n].shape is not None and len(known[n].shape or ())), None)
    if rank(y) and dims(y)[0] is None:
        return batch_is_open(model)
    return by_sample(y, first, _way(model, y, names))


def batch_is_open(model: ir.Model) -> bool:
    """Whether a canonical model takes any number of samples.

    What is open behind a fixed batch only the run knows: how many boxes a detector keeps.
    """
    return any(v.shape is not None and len(v.shape) and str(v.shape[0]) == BATCH for v in model.graph.inputs)


def _way(model: ir.Model, y: Value, names: Iterable[str]) -> Iterator[ir.Node]:
    active, live = activity(model, names)
    yield from nodes_between(model, [y], active, live)


def by_sample(y: Value, source: Value | None, nodes: Iterable[ir.Node]) -> bool:
    """Whether axis 0 of y counts samples: it is open, or as long as that of the source, and nothing on the way cuts it."""
    if rank(y) == 0:
        return False
    if dims(y)[0] is None:
        return True
    if source is None or source.shape is None or not len(source.shape) or dims(source)[0] != dims(y)[0]:
        return False
    return dims(y)[0] == 1 or _apart(source, y, nodes)


def _apart(source: Value, y: Value, nodes: Iterable[ir.Node]) -> bool:
    """Follow the axis that counts samples; where it is lost sight of, the samples are trusted to be kept apart."""
    places = {id(source): 0}
    for node in nodes:
        at = next((places[id(v)] for v in node.inputs if v is not None and id(v) in places), None)
        view = Operation.of(node)
        if at is None or view.x.shape is None or view.y.shape is None:
            continue
        if _cuts(view, at):
            return False
        after = _after(view, at)
        if after is not None:
            places.update({id(v): after for v in node.outputs})
    return places.get(id(y), 0) == 0


def _cuts(node: Operation, at: int) -> bool:
    """Whether the node cuts or joins along this axis, which is not the first: it counts something else then."""
    same = rank(node.x) == rank(node.y) and node.x.shape != node.y.shape
    return bool(at) and same and node.op_type in _ALONG and node.integer("axis", 0) % rank(node.y) == at


def _after(node: Operation, at: int) -> int | None:
    """Where the axis is behind a node; None where that is not plain to see."""
    x, y = dims(node.x), dims(node.y)
    if node.op_type == "Transpose":
        perm = node.ints("perm", list(reversed(range(len(x))))) or []
        return perm.index(at) if at in perm else None
    if x == y or (len(x) == len(y) and at < len(x) and x[at] == y[at] and x[:at] == y[:at]):
        return at
    return next((j for j in range(len(y)) if at < len(x) and y[j] == x[at] and _many(y[:j]) == _many(x[:at])), None)


def inner_batches(nodes: Iterable[Operation]) -> dict[int, int]:
    """Where other axes lie before the batch: {id of a value: how many entries of one sample come before the next sample's}.

    Attention of sequences first has [tokens, N, features] and merges it into [tokens·N, features]. Values that are not listed
    have the batch outermost.
    """
    before: dict[int, int] = {}
    for node in nodes:
        x = next((v for i in sorted(node.active) if id(v := node.input(i)) in before), node.input(min(node.active)))
        after = _before(node, x, before.get(id(x), 1)) if x.shape is not None and node.y.shape is not None else None
        if after is not None and after > 1:
            before.update({id(v): after for v in node.outputs})
    return before


def _before(node: Operation, x: Value, before: int) -> int | None:
    found = find(node)
    if found is not None and found.keeps_order:
        return before
    place = _batch_in(dims(x), before)
    axes = axes_after(node, x, list(range(rank(x)))) if place is not None else None
    if place is None or axes is None:
        return None
    axis, outer = place
    at = axes.index(axis) if axis in axes else rank(node.y)
    if at >= rank(node.y):
        return None
    sizes = [1 if d is None else d for d in dims(node.y)[:at]]
    same = node.y.shape is not None and x.shape is not None and str(node.y.shape[at]) == str(x.shape[axis])
    return math.prod(sizes) * outer if same else None


def _batch_in(sizes: Sequence[int | None], before: int) -> tuple[int, int] | None:
    """(the axis that holds the batch, how many entries of that axis lie before it)."""
    product = 1
    for axis, size in enumerate(sizes):
        if before % product:
            return None
        if size is None or product <= before < product * size:
            return axis, before // product
        product *= size
    return None


def _many(sizes: Sequence[int | None]) -> tuple[int, int]:
    """How many entries, and how many open axes besides."""
    return math.prod(d for d in sizes if d is not None), sum(d is None for d in sizes)
