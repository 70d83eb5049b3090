"""Operators that hold others, taken apart so that what is shared meets in an operator whose role says how.

Here are the mechanism, and what is simple: a scatter with a reduction is a scatter into the neutral element, joined with
the data, y = data ∘ scatter(e, updates); a linear operator whose weight or bias is computed from an input is the operator
without bias, and an Add; a tensor over its norm is a quotient. Types and shapes are known, the opset is 18 or later
(`unfuse` does the like before that).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value

Parts = Callable[[Emitter, Operation], Value]
Asked = Callable[[Operation, "Varying"], bool]
_JOINS = {"add": "Add", "mul": "Mul", "max": "Max", "min": "Min"}
_WIDE = float(np.finfo(np.float32).max) / 2  # of bfloat16, which NumPy does not know
APART: dict[str, tuple[Asked, Parts]] = {}


class Varying:
    """Which values depend on an input; looked for only where it matters."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._found: set[int] | None = None

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, ir.Value) or (value.producer() is None and not value.is_graph_input()):
            return False
        if self._found is None:
            self._found = {id(v) for v in self._graph.inputs}
            for node in self._graph:
                if node.op_type not in ("Shape", "Size") and any(id(v) in self._found for v in node.inputs):
                    self._found.update(id(v) for v in node.outputs)
        return id(value) in self._found


def apart(*op_types: str, when: Asked = lambda node, varying: True) -> Callable[[Parts], Parts]:
    """Register how an operator is written with others, and for which nodes that is asked for."""

    def register(function: Parts) -> Parts:
        APART.update(dict.fromkeys(op_types, (when, function)))
        return function

    return register


def take_apart(model: ir.Model) -> ir.Model:
    """Replace what is registered, in place."""
    fill()
    graph = model.graph
    found = [n for n in graph if n.domain in ("", "ai.onnx") and n.op_type in APART and _is_float(n.outputs[0])]
    if not found:
        return model
    op, varying = Emitter(graph), Varying(graph)
    version = graph.opset_imports.get("", 0)
    asked = [(n, Operation.of(n, version=version)) for n in found]
    asked = [(n, o) for n, o in asked if APART[n.op_type][0](o, varying)]
    for node, forward in asked:
        _replace(op, node, forward)
    op.finish()
    return model


def fill() -> None:
    """Fill APART."""
    from onnx_explain.ir import deform  # noqa: F401  it is written with what stands here


def _replace(op: Emitter, node: ir.Node, forward: Operation) -> None:
    y = node.outputs[0]
    with op.serving(node.name or node.op_type):
        joined = op.typed(APART[node.op_type][1](op, forward), y)
    joined.name, y.name = y.name, f"{y.name}/apart"
    y.replace_all_uses_with(joined, replace_graph_outputs=True)
    if node.graph is not None:
        node.graph.remove(node, safe=True)


def _is_float(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


# ------------------------------------------------------------------------------------------- scatters


@apart("ScatterElements", "ScatterND", when=lambda node, varying: node.text("reduction", "none") in _JOINS)
def _scattered(op: Emitter, node: Operation) -> Value:
    join, neutral = _JOINS[node.text("reduction", "none")], _neutral(op, node)
    own = op.emit(node.op_type, [neutral, *node.inputs[1:]], dict(node.attributes), like=[node.y], shared=False)[0]
    return op.emit(join, [node.x, own], like=[node.y], shared=False)[0]


def _neutral(op: Emitter, node: Operation) -> Value:
    """The element that leaves the other operand as it is, in the shape of the data: an expression, not stored."""
    x = node.x
    plain = x.dtype is not None and x.dtype != ir.DataType.BFLOAT16
    largest = float(np.finfo(x.dtype.numpy()).max) if plain and x.dtype is not None else _WIDE
    fill = {"add": 0.0, "mul": 1.0, "max": -largest, "min": largest}[node.text("reduction", "none")]
    one = op.constant(np.full([1] * len(x.shape or ()), fill), like=x)
    return op.typed(op.Expand(one, op.shape_of(x) if x.shape is not None else op.Shape(x)), x)


# ------------------------------------------------------------------------------------------- biases


def _computed(node: Operation, varying: Varying) -> bool:
    """Whether there is a bias, and it or the weight depends on an input."""
    return node.has(2) and any(v in varying for v in node.inputs[1:])


@apart("Conv", "ConvTranspose", "Gemm", when=_computed)
def _unbiased(op: Emitter, node: Operation) -> Value:
    own = op.emit(node.op_type, node.inputs[:2], dict(node.attributes), like=[node.y], shared=False)[0]
    bias = node.input(2)
    if node.op_type == "Gemm":
        beta = node.number("beta", 1.0)
        scaled = bias if beta == 1.0 else op.typed(op.Mul(bias, beta), bias)
    else:
        behind = [1] * (len(node.y.shape or ()) - 2)
        scaled = op.Reshape(bias, op.ints(-1, *behind))
        scaled.shape = ir.Shape([bias.shape[0] if bias.shape is not None else None, *behind])
    return op.emit("Add", [own, scaled], like=[node.y], shared=False)[0]


# ------------------------------------------------------------------------------------------- norms


@apart("LpNormalization")
def _over_norm(op: Emitter, node: Operation) -> Value:
    """x/‖x‖ along one axis; zero where all is zero."""
    x, axis = node.x, node.integer("axis", -1)
    sizes = list(x.shape or ())
    sizes[axis % len(sizes)] = 1
    reduced = ir.Value(shape=ir.Shape(sizes), type=ir.TensorType(x.dtype or ir.DataType.FLOAT))
    if node.integer("p", 2) == 1:
        norm = op.typed(op.ReduceSum(op.Abs(x), op.ints(axis), keepdims=1), reduced)
    else:
        norm = op.typed(op.ReduceL2(x, op.ints(axis), keepdims=1), reduced)
    safe = op.typed(op.Where(op.Equal(norm, 0.0), op.constant(1.0, like=x), norm), reduced)
    return op.emit("Div", [x, safe], like=[node.y], shared=False)[0]
