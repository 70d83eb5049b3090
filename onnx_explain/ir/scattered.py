"""Scatters with a reduction as a scatter into the neutral element, joined with the data: y = data ∘ scatter(e, updates).

So the data and the updates meet in an operator whose role says how they share: Add, Mul, Max or Min.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value

_JOINS = {"add": "Add", "mul": "Mul", "max": "Max", "min": "Min"}
_WIDE = float(np.finfo(np.float32).max) / 2  # of bfloat16, which NumPy does not know


def take_scatters_apart(model: ir.Model) -> ir.Model:
    """Replace every ScatterElements and ScatterND of floats that reduces, in place; types and shapes are known."""
    graph = model.graph
    found = [n for n in graph if n.domain in ("", "ai.onnx") and n.op_type in ("ScatterElements", "ScatterND")]
    reducing = [n for n in found if _reduction(n) in _JOINS and _is_float(n.outputs[0])]
    if not reducing:
        return model
    op = Emitter(graph)
    for node in reducing:
        with op.serving(node.name or node.op_type):
            _take_apart(op, node)
    op.finish()
    return model


def _take_apart(op: Emitter, node: ir.Node) -> None:
    forward, y = Operation.of(node), node.outputs[0]
    neutral = _neutral(op, forward, _reduction(node))
    attributes = dict(forward.attributes)
    own = op.emit(node.op_type, [neutral, *node.inputs[1:]], attributes, like=[y], shared=False)[0]
    joined = op.emit(_JOINS[_reduction(node)], [forward.x, own], like=[y], shared=False)[0]
    joined.name, y.name = y.name, f"{y.name}/scatter"
    y.replace_all_uses_with(joined, replace_graph_outputs=True)
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
    if node.graph is not None:
        node.graph.remove(node)


def _neutral(op: Emitter, node: Operation, reduction: str) -> Value:
    """The element that leaves the other operand as it is, in the shape of the data: an expression, not stored."""
    x = node.x
    plain = x.dtype is not None and x.dtype != ir.DataType.BFLOAT16
    largest = float(np.finfo(x.dtype.numpy()).max) if plain and x.dtype is not None else _WIDE
    fill = {"add": 0.0, "mul": 1.0, "max": -largest, "min": largest}[reduction]
    one = op.constant(np.full([1] * len(x.shape or ()), fill), like=x)
    return op.typed(op.Expand(one, op.shape_of(x) if x.shape is not None else op.Shape(x)), x)


def _reduction(node: ir.Node) -> str:
    attribute = node.attributes.get("reduction")
    return attribute.as_string() if attribute is not None else "none"


def _is_float(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
