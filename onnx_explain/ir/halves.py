"""Half-precision models (float16, bfloat16) computed in float32: their own weights, inputs and outputs in half precision.

Sums over many elements, quotients and small relevance need more digits and range than 16 bits have. ONNX Runtime's CPU
provider computes such models in float32 as well. The weights stay in the file as they are; the runtime widens them on load.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.emit import PREFIX, Emitter

HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_WIDE = ir.DataType.FLOAT
# metadata of the Casts through which all readers of a half-precision tensor read it, and an output in half precision is given
_READS, _GIVES = "reads", "gives"


def read_wide(value: ir.Value) -> ir.Value:
    """What all readers of a half-precision input or weight read: the tensor in float32; any other tensor itself."""
    if value.dtype not in HALVES:
        return value
    casts = (use.node for use in value.uses() if f"{PREFIX}.{_READS}" in use.node.metadata_props)
    return next((node.outputs[0] for node in casts), value)


def unrounded(value: ir.Value) -> ir.Value:
    """What a half-precision output is rounded from: the tensor in float32; any other tensor itself."""
    node = value.producer()
    given = node is not None and f"{PREFIX}.{_GIVES}" in node.metadata_props
    return (node.inputs[0] or value) if node is not None and given else value


def widened(op: Emitter, value: ir.Value) -> ir.Value:
    """A tensor of any precision with the range of float32 at least: what is smaller than 6e-8 is zero in float16."""
    if value.dtype not in HALVES:
        return value
    wide = op.Cast(value, to=int(_WIDE))
    wide.shape = value.shape
    return wide


def narrowed(op: Emitter, value: ir.Value, like: ir.Value) -> ir.Value:
    """The result of what `widened` began, in the dtype and shape of `like`."""
    return op.typed(value if value.dtype == like.dtype else op.Cast(value, to=int(like.dtype or _WIDE)), like)


def in_single(model: ir.Model) -> ir.Model:
    """Compute every half-precision tensor in float32, in place; inputs and outputs keep their dtype.

    A Cast to half precision that the model itself makes still rounds. A model with sub-graphs stays as it is.
    """
    graph = model.graph
    given = [v for v in (*graph.inputs, *graph.initializers.values()) if v.dtype in HALVES]
    if not (given or any(_half(a) for n in graph for a in n.attributes.values())) or any(_has_graph(n) for n in graph):
        return model
    nodes, op = list(graph), Emitter(graph)
    narrow = {i: v.dtype for i, v in enumerate(graph.outputs) if v.dtype in HALVES and v.producer() is not None}
    for value in dict.fromkeys(given):
        _read_wide(op, value)
    for node in nodes:
        for out in node.outputs:
            if out.dtype in HALVES:
                out.type = ir.TensorType(_WIDE)  # not out.dtype: a clone shares its type with the original
        _widen(op, node)
    for index, kind in narrow.items():
        _deliver(op, graph, index, kind or _WIDE)
    op.finish()
    return model


def _half(attribute: ir.Attr) -> bool:
    """Whether an attribute makes a half-precision tensor: of a Cast, a ConstantOfShape, a random operator."""
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().dtype in HALVES
    return attribute.name in ("to", "dtype") and attribute.type == ir.AttributeType.INT and attribute.as_int() in HALVES


def _has_graph(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _read_wide(op: Emitter, value: ir.Value) -> None:
    """What reads a half-precision input or weight reads it in float32."""
    uses = tuple(value.uses())
    with op.serving(value.name or "input", **{_READS: value.name or "input"}):
        wide = op.Cast(value, to=int(_WIDE))
    wide.shape = value.shape
    for node, index in uses:
        node.replace_input_with(index, wide)


def _widen(op: Emitter, node: ir.Node) -> None:
    """Attributes that ask for half precision ask for float32; a Cast rounds first."""
    for name, attribute in list(node.attributes.items()):
        if not _half(attribute):
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = ir.tensor(attribute.as_tensor().numpy().astype(np.float32))
            node.attributes[name] = ir.AttrTensor(name, tensor)
        elif node.op_type == "Cast" and node.inputs[0] is not None:
            with op.serving(node.name or node.op_type):
                rounded = op.Cast(node.inputs[0], to=attribute.as_int())
            node.replace_input_with(0, rounded)
            node.attributes[name] = ir.AttrInt64(name, int(_WIDE))
        else:
            node.attributes[name] = ir.AttrInt64(name, int(_WIDE))


def _deliver(op: Emitter, graph: ir.Graph, index: int, kind: ir.DataType) -> None:
    """A graph output in its own half precision."""
    wide = graph.outputs[index]
    with op.serving(wide.name or "output", **{_GIVES: wide.name or "output"}):
        out = op.Cast(wide, to=int(kind))
    out.shape = wide.shape
    wide.name, out.name = f"{wide.name}/single", wide.name
    graph.outputs[index] = out
