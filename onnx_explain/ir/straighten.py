"""Control flow that does not depend on the data is written out: the branch that an If takes, the rounds of a Loop or a Scan.

What decides may be a constant of the file or what shape arithmetic makes of the input's shapes. What depends on the data stays
as it is: `reason` says why, where relevance would have to pass it. How often a Loop runs is `trips`' affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.errors import ModelError, UnsupportedOperator
from onnx_explain.ir.bodies import Scribe
from onnx_explain.ir.seen import MOST, Look, Seen, number_of
from onnx_explain.ir.trips import trips_of
from onnx_explain.ir.unfuse import CHECKS
from onnx_explain.ir.view import Operation, Value

_ROUNDS = 64  # each writes out one level of nesting at least
_FLOW = ("If", "Loop", "Scan")


def straighten(model: ir.Model, look: Look | None = None) -> None:
    """Write out every If, Loop and Scan that does not depend on the data, in place.

    `look` tells the numbers that shape arithmetic makes; without it, an If whose condition is a number of the file is
    written out, and nothing else, whatever the opset (loops: from 13 on). All loops of a model together are written out to
    `MOST` nodes at most. Raises ModelError where a body does not fit its node.
    """
    room = MOST
    for _ in range(_ROUNDS):
        if not any(map(_flows, model.graph)):
            return
        written = _round(model, Seen(), room, loops=look is not None)
        if not written and look is not None:
            written = _round(model, look(model), room, loops=True)
        if not written:
            return
        room -= sum(written)
        model.graph.sort()


def _round(model: ir.Model, seen: Seen, room: int, *, loops: bool) -> list[int]:
    """Write out what is decided; how many nodes each took."""
    scribe, written = Scribe(model.graph), list[int]()
    for node in [n for n in model.graph if _flows(n) and (loops or n.op_type == "If")]:
        cost = _write(scribe, node, seen, room - sum(written))
        if cost is not None:
            written.append(cost)
    return written


def _flows(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in _FLOW


def _write(scribe: Scribe, node: ir.Node, seen: Seen, room: int) -> int | None:
    """Write out one node; how many nodes that took, None where it stays."""
    if node.op_type == "If":
        return _take(scribe, node, seen)
    return (_unroll if node.op_type == "Loop" else _unroll_scan)(scribe, node, seen, room)


def _body(node: ir.Node, name: str, results: int | None = None) -> ir.Graph:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.type != ir.AttributeType.GRAPH:
        raise ModelError(f"{Operation.of(node).where}: it has no {name}; export the model again.")
    body = attribute.as_graph()
    if results is not None and len(body.outputs) != results:
        raise ModelError(
            f"{Operation.of(node).where}: its {name} has {len(body.outputs)} results, where {results} are wanted; "
            "export the model again."
        )
    return body


def _weight(body: ir.Graph, seen: Seen) -> int:
    """How many nodes a body stands for: loops within it count as often as they run, as far as that is known."""
    total = 0
    for node in body:
        inner = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        trips = trips_of(node, inner[0], seen) if _flows(node) and node.op_type == "Loop" and inner else None
        total += 1 + (1 if trips is None else trips) * sum(_weight(g, seen) for g in inner)
    return total


def _named(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or node.op_type


# ------------------------------------------------------------------------------------------- If


def _take(scribe: Scribe, node: ir.Node, seen: Seen) -> int | None:
    """The branch that the condition chooses."""
    condition = number_of(node.inputs[0], seen) if node.inputs and node.inputs[0] is not None else None
    if condition is None or condition.size != 1:
        return None
    branch = _body(node, "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch", len(node.outputs))
    if branch.inputs:
        raise ModelError(f"{Operation.of(node).where}: its branch has inputs; export the model again.")
    scribe.hoist(branch, _named(node))
    scribe.stand_in(node, scribe.write(branch, node, {}, ""))
    return 0


# ------------------------------------------------------------------------------------------- Loop


def _unroll(scribe: Scribe, node: ir.Node, seen: Seen, room: int) -> int | None:
    """Round after round; the states of one are those that the next begins with."""
    start = list(node.inputs[2:])
    body = _body(node, "body")
    if (
        len(body.inputs) != 2 + len(start)
        or len(body.outputs) != 1 + len(node.outputs)
        or len(node.outputs) < len(start)
    ):
        raise ModelError(f"{Operation.of(node).where}: its body does not fit its operands; export the model again.")
    trips = trips_of(node, body, seen)
    cost = None if trips is None else trips * _weight(body, seen)
    collected = any(map(_wanted, node.outputs[len(start) :]))
    if trips is None or cost is None or cost > room or (trips == 0 and collected) or any(v is None for v in start):
        return None
    name, states = _named(node), [v for v in start if v is not None]
    scribe.hoist(body, name)
    rows: list[list[Value]] = [[] for _ in node.outputs[len(states) :]]
    going = _number(scribe, body.inputs[1], True, name)
    for k in range(trips):
        bound = {0: _number(scribe, body.inputs[0], k, name), 1: going, **{2 + i: v for i, v in enumerate(states)}}
        results = scribe.write(body.clone(allow_outer_scope_values=True), node, bound, f"{name}/{k}")[1:]
        states = results[: len(states)]
        for row, value in zip(rows, results[len(states) :]):
            row.append(value)
    outs = node.outputs[len(states) :]
    joined = [_stacked(scribe, node, row, 0) if _wanted(out) else row[0] for row, out in zip(rows, outs) if row]
    scribe.stand_in(node, [*states, *joined])
    return cost


def _wanted(value: Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _number(scribe: Scribe, like: Value, number: int | bool, name: str) -> Value:
    """The number of a round, or the condition, in the shape that the body wants it."""
    array: npt.NDArray[Any] = np.asarray(number, np.bool_ if isinstance(number, bool) else np.int64)
    flat = like.shape is not None and len(like.shape) == 1
    return scribe.constant(ir.tensor(array.reshape(1) if flat else array), f"{name}/{like.name}")


def _stacked(scribe: Scribe, node: ir.Node, parts: Sequence[Value], axis: int) -> Value:
    """The results of all rounds along a new axis."""
    where = scribe.constant(ir.tensor(np.asarray([axis], np.int64)), f"{_named(node)}/axis")
    apart = [scribe.emit(node, "Unsqueeze", [p, where], f"{_named(node)}/Unsqueeze")[0] for p in parts]
    return apart[0] if len(apart) == 1 else scribe.emit(node, "Concat", apart, f"{_named(node)}/Concat", axis=axis)[0]


# ------------------------------------------------------------------------------------------- Scan


def _unroll_scan(scribe: Scribe, node: ir.Node, seen: Seen, room: int) -> int | None:
    """Slice by slice of the scanned tensors, forwards or backwards, along any axis (as from opset 9 on)."""
    body, view = _body(node, "body", len(node.outputs)), Operation.of(node)
    scanned = view.integer("num_scan_inputs", 0)
    kept = len(node.inputs) - scanned
    given = [v for v in node.inputs if v is not None]
    if (
        scanned < 1
        or kept < 0
        or len(given) < len(node.inputs)
        or len(body.inputs) != len(given)
        or kept > len(node.outputs)
    ):
        raise ModelError(f"{view.where}: its body does not fit its operands; export the model again.")
    collected = len(node.outputs) - kept
    axes = view.ints("scan_input_axes", [0] * scanned) or []
    turned = view.ints("scan_input_directions", [0] * scanned) or []
    out_axes = view.ints("scan_output_axes", [0] * collected) or []
    out_turned = view.ints("scan_output_directions", [0] * collected) or []
    if {len(axes), len(turned)} != {scanned} or {len(out_axes), len(out_turned)} - {collected}:
        raise ModelError(f"{view.where}: its axes or directions do not fit its operands; export the model again.")
    steps = _length(given[kept:], axes, seen)
    cost = None if steps is None else steps * (_weight(body, seen) + 2 * scanned + collected)
    if steps is None or cost is None or cost > room or steps < 1:
        return None
    name, states = _named(node), given[:kept]
    scribe.hoist(body, name)
    slices = [_slices(scribe, node, v, a, steps) for v, a in zip(given[kept:], axes)]
    rows: list[list[Value]] = [[] for _ in range(collected)]
    for k in range(steps):
        now = [s[steps - 1 - k if back else k] for s, back in zip(slices, turned)]
        results = scribe.write(
            body.clone(allow_outer_scope_values=True), node, dict(enumerate([*states, *now])), f"{name}/{k}"
        )
        states = results[:kept]
        for row, value in zip(rows, results[kept:]):
            row.append(value)
    joined = [
        _stacked(scribe, node, row[::-1] if back else row, axis) for row, axis, back in zip(rows, out_axes, out_turned)
    ]
    scribe.stand_in(node, [*states, *joined])
    return cost


def _length(scanned: Sequence[Value], axes: Sequence[int], seen: Seen) -> int | None:
    """The number of slices, where it is known."""
    for value, axis in zip(scanned, axes):
        shape = seen.shapes.get(value.name or "")
        if shape is not None and -len(shape) <= axis < len(shape):
            length = shape[axis]
            if isinstance(length, int):
                return length
    return None


def _slices(scribe: Scribe, node: ir.Node, value: Value, axis: int, steps: int) -> list[Value]:
    name = _named(node)
    where = scribe.constant(ir.tensor(np.asarray([axis], np.int64)), f"{name}/axis")
    pieces = [value]
    if steps > 1:
        pieces = scribe.emit(node, "Split", [value], f"{name}/Split", outputs=steps, axis=axis, num_outputs=steps)
    return [scribe.emit(node, "Squeeze", [p, where], f"{name}/Squeeze")[0] for p in pieces]


# ------------------------------------------------------------------------------------------- refusals


def _refuse(node: Operation) -> None:
    """Why an If, a Loop or a Scan is still there."""
    what = {
        "If": "which branch it takes depends on the data",
        "Loop": f"how often it runs depends on the data, or all rounds are more than {MOST} nodes",
        "Scan": f"how long it is depends on the data, or all steps are more than {MOST} nodes",
    }[node.op_type]
    raise UnsupportedOperator(
        f"{node.where}: {what}, so relevance cannot pass it; explain a tensor before it (`--output NAME`), or export the model "
        "with this decision fixed (fixed input shapes often do)."
    )


CHECKS.update({("", kind): _refuse for kind in _FLOW})
