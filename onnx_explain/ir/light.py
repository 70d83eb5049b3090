"""A model's types without its weights: what ONNX's own shape inference reads. Nothing is inferred or changed here."""

from __future__ import annotations

import onnx
import onnx_ir as ir

SMALL = 1000  # bytes; larger tensors hold no shape


def without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model as a message; of tensors above `SMALL` bytes the type alone, declared as a further input.

    In time linear in the nodes (onnx_ir's own way looks every weight up among all inputs), and without a look at the
    weights' bytes.
    """
    graph = model.graph
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in graph.opset_imports.items())
    proto.functions.extend(ir.serde.serialize_function(f) for f in model.functions.values())
    proto.graph.name = graph.name or "types"
    proto.graph.input.extend(ir.serde.serialize_value(v) for v in graph.inputs)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= SMALL:
            number = ir.serde.serialize_tensor(tensor)
            number.name = value.name or ""
            proto.graph.initializer.append(number)
        elif not value.is_graph_input():
            proto.graph.input.append(ir.serde.serialize_value(_typed(value)))
    proto.graph.node.extend(ir.serde.serialize_node(n) for n in graph)
    made = (v for n in graph for v in n.outputs if v.name and v.type is not None and not v.is_graph_output())
    proto.graph.value_info.extend(ir.serde.serialize_value(v) for v in made)
    proto.graph.output.extend(ir.serde.serialize_value(v) for v in graph.outputs)
    return proto


def _typed(value: ir.Value) -> ir.Value:
    """A weight's type, where the file declares none of its own."""
    tensor = value.const_value
    if tensor is None or (value.shape is not None and value.type is not None):
        return value
    return ir.Value(name=value.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype))
