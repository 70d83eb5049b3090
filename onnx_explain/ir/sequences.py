"""Sequences and optional values, resolved to the tensors they hold wherever the file states lengths and places.

What is built, cut and joined at constant places needs no sequence; what depends on the data stays, and is refused where
relevance would have to pass it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value

Held = dict[int, list[Value]]  # {id of a sequence, or of an optional value: the tensors it holds}
Handler = Callable[[Emitter, ir.Node, Held], Value | None]
HANDLERS: dict[str, Handler] = {}
_MOST = 4096  # tensors of one sequence


def resolve_sequences(model: ir.Model) -> ir.Model:
    """In place, at opset 18 or later."""
    graph = model.graph
    found = [n for n in graph if n.domain in ("", "ai.onnx") and n.op_type in HANDLERS]
    if not found:
        return model
    if any(n.op_type == "SplitToSequence" for n in found):
        passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    op, held = Emitter(graph), Held()
    for node in list(graph):  # Identity passes on what is known of a sequence
        if node.op_type == "Identity" and node.inputs[0] is not None and id(node.inputs[0]) in held:
            held[id(node.outputs[0])] = held[id(node.inputs[0])]
        elif node in found:
            with op.serving(node.name or node.op_type):
                tensor = HANDLERS[node.op_type](op, node, held)
            if tensor is not None:
                _stand_in(op, node.outputs[0], tensor)
    for node in reversed(list(graph)):
        spent = node in found or id(node.outputs[0]) in held
        if spent and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)
    op.finish()
    return model


def handles(*op_types: str) -> Callable[[Handler], Handler]:
    """Register what becomes of an operator: notes what it holds, or returns the tensor that its output is."""

    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(op_types, function))
        return function

    return register


def _stand_in(op: Emitter, old: Value, new: Value) -> None:
    if old.is_graph_output():
        new = op.copy(new)
        new.name, old.name = old.name, f"{old.name}/sequence"
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _typed(value: Value, like: Value | None) -> Value:
    """Of `like`'s type, which is not known yet perhaps: not of the operand's that happens to have one."""
    value.type = like.type if like is not None else None
    return value


def _of(node: ir.Node, held: Held, index: int = 0) -> list[Value] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else held.get(id(value))


def _number(node: ir.Node, index: int) -> int | None:
    """A constant operand, or None."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return int(np.asarray(value.const_value.numpy()).reshape(()))


# ------------------------------------------------------------------------------------------- made, cut and joined


@handles("SequenceConstruct")
def _construct(op: Emitter, node: ir.Node, held: Held) -> None:
    held[id(node.outputs[0])] = [v for v in node.inputs if v is not None]


@handles("SequenceEmpty")
def _empty(op: Emitter, node: ir.Node, held: Held) -> None:
    held[id(node.outputs[0])] = []


@handles("SequenceInsert")
def _insert(op: Emitter, node: ir.Node, held: Held) -> None:
    tensors, new = _of(node, held), node.inputs[1]
    at = _number(node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else len(tensors or ())
    if tensors is not None and new is not None and at is not None and -len(tensors) <= at <= len(tensors):
        at += len(tensors) if at < 0 else 0
        held[id(node.outputs[0])] = [*tensors[:at], new, *tensors[at:]]


@handles("SequenceErase")
def _erase(op: Emitter, node: ir.Node, held: Held) -> None:
    tensors = _of(node, held)
    at = _number(node, 1) if len(node.inputs) > 1 and node.inputs[1] is not None else -1
    if tensors is not None and at is not None and -len(tensors) <= at < len(tensors):
        at %= len(tensors)
        held[id(node.outputs[0])] = [*tensors[:at], *tensors[at + 1 :]]


@handles("SplitToSequence")
def _split(op: Emitter, node: ir.Node, held: Held) -> None:
    x, forward = node.inputs[0], Operation.of(node)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axis = forward.integer("axis", 0)
    size = x.shape[axis] if x is not None and x.shape is not None else None
    if given is not None and given.const_value is None:
        return
    lengths = np.asarray(given.const_value.numpy()) if given is not None and given.const_value is not None else None
    if lengths is None or lengths.ndim == 0:
        if not isinstance(size, int):
            return
        step = 1 if lengths is None else int(lengths)
        lengths = np.array([min(step, size - i) for i in range(0, size, step)] if step > 0 else [])
    if not 0 < len(lengths) <= _MOST:
        return
    parts = list(op.emit("Split", [x, op.ints(*map(int, lengths))], {"axis": axis}, outputs=len(lengths)))
    if given is None and not forward.integer("keepdims", 1):
        parts = [_typed(op.Squeeze(p, op.ints(axis)), x) for p in parts]
    held[id(node.outputs[0])] = parts


@handles("SequenceAt")
def _at(op: Emitter, node: ir.Node, held: Held) -> Value | None:
    tensors, at = _of(node, held), _number(node, 1)
    if tensors is None or at is None or not -len(tensors) <= at < len(tensors):
        return None
    return tensors[at]


@handles("SequenceLength")
def _length(op: Emitter, node: ir.Node, held: Held) -> Value | None:
    tensors = _of(node, held)
    return None if tensors is None else op.constant(len(tensors), dtype=np.int64)


@handles("ConcatFromSequence")
def _joined(op: Emitter, node: ir.Node, held: Held) -> Value | None:
    tensors, forward = _of(node, held), Operation.of(node)
    if not tensors:
        return None
    axis = forward.integer("axis", 0)
    if forward.integer("new_axis", 0):
        tensors = [_typed(op.Unsqueeze(v, op.ints(axis)), v) for v in tensors]
    return op.emit("Concat", tensors, {"axis": axis})[0]


# ------------------------------------------------------------------------------------------- there or not


@handles("Optional")
def _optional(op: Emitter, node: ir.Node, held: Held) -> None:
    if node.inputs and node.inputs[0] is not None and id(node.inputs[0]) not in held:
        held[id(node.outputs[0])] = [node.inputs[0]]


@handles("OptionalGetElement")
def _element(op: Emitter, node: ir.Node, held: Held) -> Value | None:
    inside, x = _of(node, held), node.inputs[0]
    if inside is not None:
        return inside[0] if len(inside) == 1 else None
    return x if x is not None and isinstance(x.type, ir.TensorType) else None


@handles("OptionalHasElement")
def _there(op: Emitter, node: ir.Node, held: Held) -> Value | None:
    if not node.inputs or node.inputs[0] is None:
        return op.constant(False, dtype=np.bool_)
    known = id(node.inputs[0]) in held or isinstance(node.inputs[0].type, ir.TensorType)
    return op.constant(True, dtype=np.bool_) if known else None
