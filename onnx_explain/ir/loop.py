"""A graph run many times: the body of a Loop in another graph.

Values of the outer graph, weights included, are captured, not copied. Nothing here knows of relevance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.emit import PREFIX, Emitter
from onnx_explain.ir.view import Value

_BODY = f"{PREFIX}/step"


def loop(
    op: Emitter,
    graph: ir.Graph,
    body: ir.Model,
    *,
    trips: int,
    counter: str,
    captured: Mapping[str, Value],
    carried: Mapping[str, Value],
) -> list[Value]:
    """Emit a Loop of `trips` runs of `body` into `graph`, which `op` writes; `body` is used up.

    counter: the body's input that is fed the number of the run, int64 [1]. captured: what feeds its other inputs. carried:
    the inputs that are fed the body's outputs of the run before, in the order of those outputs, with what feeds them in
    the first run. Returns the outputs of the last run.
    """
    inner = body.graph
    inputs = {v.name or "": v for v in inner.inputs}
    results = list(inner.outputs)
    inner.outputs.clear()
    number, going = _scalar("iteration", ir.DataType.INT64), _scalar("condition", ir.DataType.BOOL)
    unit = op.ints(1)
    count = ir.node("Reshape", [number, unit], name=f"{_BODY}/count")
    again = ir.node("Identity", [going], name=f"{_BODY}/again")
    _type(count.outputs[0], ir.DataType.INT64, [1])
    _type(again.outputs[0], ir.DataType.BOOL, [])
    inputs.pop(counter).replace_all_uses_with(count.outputs[0])
    states = [_state(inputs.pop(name)) for name in carried]
    for name, value in inputs.items():
        if name in captured:
            value.replace_all_uses_with(captured[name])
    _capture(graph, inner)
    _own_weights(inner)
    nodes = list(inner)
    inner.remove(nodes)
    _rename(nodes)
    whole = ir.Graph([number, going, *states], [again.outputs[0], *results], nodes=[count, *nodes, again], name=_BODY)
    start = [op.constant(np.asarray(trips, np.int64)), None, *carried.values()]
    like = list(carried.values())
    return list(op.emit("Loop", start, {"body": whole}, outputs=len(results), like=like, shared=False))


def _state(old: Value) -> Value:
    state = ir.Value(name=f"{_BODY}/{old.name}", shape=old.shape, type=old.type)
    old.replace_all_uses_with(state)
    return state


def _scalar(name: str, dtype: ir.DataType) -> Value:
    return ir.Value(name=f"{_BODY}/{name}", shape=ir.Shape([]), type=ir.TensorType(dtype))


def _type(value: Value, dtype: ir.DataType, shape: Sequence[int]) -> None:
    node = value.producer()
    value.name, value.dtype, value.shape = f"{node.name if node else _BODY}_out", dtype, ir.Shape(shape)


def _capture(outer: ir.Graph, inner: ir.Graph) -> None:
    """Constants are those of the outer graph: the same one where it is there, else under a new name."""
    for name, value in list(inner.initializers.items()):
        if value.is_graph_input() or not value.uses():
            continue
        there = outer.initializers.get(name)
        if there is None or there.const_value is not value.const_value:
            there = ir.Value(name=f"{_BODY}/{name}", shape=value.shape, type=value.type, const_value=value.const_value)
            outer.register_initializer(there)
        value.replace_all_uses_with(there)


def _own_weights(inner: ir.Graph) -> None:
    """Convolutions read a copy of their weights, made in the body: a maximum of one operand.

    ONNX Runtime computes it once, on load, and uses its blocked layout for weights of the body's own alone: a step on VGG-16
    took 361 ms of one core without the copies and 316 ms with them. The file still holds every weight once.
    """
    copies: dict[int, Value] = {}
    for node in list(inner):
        for i, value in enumerate(node.inputs[1:] if node.op_type == "Conv" else (), 1):
            if value is None or value.const_value is None or not value.const_value.dtype.is_floating_point():
                continue
            if id(value) not in copies:
                copy = ir.node("Max", [value], name=f"{node.name}/{i}")
                copies[id(value)] = copy.outputs[0]
                copy.outputs[0].name = f"{copy.name}_out"
                copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
                inner.insert_before(node, copy)
            node.replace_input_with(i, copies[id(value)])


def _rename(nodes: Sequence[ir.Node]) -> None:
    """The body's names must not be those of the outer graph."""
    for node in nodes:
        node.name = f"{_BODY}/{node.name}"
        for value in node.outputs:
            if value.name:
                value.name = f"{_BODY}/{value.name}"
