"""Operators that a runtime of the model's opset does not know, spelled out as primitives: what `recognise` is undone by."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value

NEWER = {"Gelu": 20, "RMSNormalization": 23, "Swish": 24}  # the opset that brought them
# what evaluators compute with a float32 1/6, in float64 too, is not exactly the chain: where marked it is spelled out as well
ALWAYS, MARK = frozenset({"HardSwish"}), "onnx_explain.recognised"
ROUNDED = frozenset({"LayerNormalization"})  # the same in a file of float64: its ε is kept as a float32
_CUBIC = math.sqrt(2.0 / math.pi)


def spell_out(model: ir.Model) -> ir.Model:
    """Write operators that are newer than the model's opset as primitives, in place; a chain of HardSwish as it was."""
    version = model.graph.opset_imports.get("", 0)
    newer = [
        n
        for n in model.graph
        if n.domain in ("", "ai.onnx") and (version < NEWER.get(n.op_type, 0) or MARK in n.metadata_props)
    ]
    if not newer:
        return model
    op = Emitter(model.graph)
    for node in newer:
        with op.serving(node.name or node.op_type):
            new, old = _SPELLINGS[node.op_type](op, Operation.of(node)), node.outputs[0]
            op.typed(new, old)
        old.name, new.name = f"{old.name}/whole", old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    op.finish()
    return model


def _gelu(op: Emitter, node: Operation) -> Value:
    x = node.x
    if node.text("approximate", "none") == "tanh":
        inner = op.Mul(op.Add(x, op.Mul(op.Mul(op.Mul(x, x), x), 0.044715)), _CUBIC)
        return op.Mul(op.Mul(x, 0.5), op.Add(op.Tanh(inner), 1.0))
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, math.sqrt(2.0))), 1.0)), 0.5)


def _swish(op: Emitter, node: Operation) -> Value:
    alpha = node.number("alpha", 1.0)
    return op.Mul(node.x, op.Sigmoid(node.x if alpha == 1.0 else op.Mul(node.x, alpha)))


def _hard_swish(op: Emitter, node: Operation) -> Value:
    x = node.x
    low, high = op.constant(0.0, like=x), op.constant(6.0, like=x)
    return op.Div(op.Mul(x, op.Clip(op.Add(x, 3.0), low, high)), 6.0)


def _layer(op: Emitter, node: Operation) -> Value:
    n = len(node.x.shape or ())
    axes = op.ints(*range(node.integer("axis", -1) % n, n))
    moved = op.Sub(node.x, op.ReduceMean(node.x, axes, keepdims=1))
    variance = op.ReduceMean(op.Mul(moved, moved), axes, keepdims=1)
    y = op.Mul(op.Div(moved, op.Sqrt(op.Add(variance, node.number("epsilon", 1e-5)))), node.input(1))
    return op.Add(y, node.input(2)) if node.has(2) else y


def _rms(op: Emitter, node: Operation) -> Value:
    n = len(node.x.shape or ())
    axes = range(node.integer("axis", -1) % n, n)
    half = node.x.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    x = op.Cast(node.x, to=int(ir.DataType.FLOAT)) if half else node.x
    mean = op.ReduceMean(op.Mul(x, x), op.ints(*axes), keepdims=1)
    unit = op.Div(x, op.Sqrt(op.Add(mean, node.number("epsilon", 1e-5))))
    return op.Mul(op.CastLike(unit, node.x) if half else unit, node.input(1))


_SPELLINGS: dict[str, Callable[[Emitter, Operation], Value]] = {
    "Gelu": _gelu, "HardSwish": _hard_swish, "LayerNormalization": _layer, "RMSNormalization": _rms, "Swish": _swish,
}  # fmt: skip
