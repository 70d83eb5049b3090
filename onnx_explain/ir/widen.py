"""A model in float64: what the reference backend computes in. Nothing is rounded, and the float32 model stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir


def as_float64(model: ir.Model) -> ir.Model:
    """A canonical model with every float32 tensor, constant and cast widened to float64, in branches too; a new model."""
    wide = model.clone()
    for graph in (wide.graph, *wide.graph.subgraphs()):
        _widen(graph)
    return wide


def _widen(graph: ir.Graph | ir.Function) -> None:
    inner = graph.initializers.values() if isinstance(graph, ir.Graph) else ()
    for value in (*graph.inputs, *inner, *(v for n in graph for v in n.outputs)):
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.DOUBLE)  # not value.dtype: a clone shares its type with the original
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float64), name=value.name)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT:
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.as_tensor().numpy().astype(np.float64)))
            casts = name in ("to", "dtype") and attribute.type == ir.AttributeType.INT
            if casts and attribute.as_int() == onnx.TensorProto.FLOAT:
                node.attributes[name] = ir.AttrInt64(name, onnx.TensorProto.DOUBLE)
