"""The ONNX backend: composites expanded to plain ONNX, run by ONNX Runtime, or in float64 by ONNX's own evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_explain.errors import ModelError, RuntimeMissing
from onnx_explain.ir import composite
from onnx_explain.ir.model import first_line, serialise

Arrays = dict[str, npt.NDArray[Any]]


class Runner(Protocol):
    """Something that computes a model's outputs."""

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name."""


def runtime() -> Any:
    """The onnxruntime module; RuntimeMissing where neither of its distributions is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing(
            'ONNX Runtime is not installed: `pip install "onnx-explain[cpu]"`, or `"onnx-explain[gpu]"` for an NVIDIA GPU.'
        ) from error
    return onnxruntime


class Session:
    """A model in ONNX Runtime's CPU provider; one session for as long as the model lives."""

    def __init__(self, model: ir.Model | bytes | str, *, threads: int | None = None, spinning: bool = True) -> None:
        ort = runtime()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        if not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        data = serialise(model) if isinstance(model, ir.Model) else model
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a class of its own per status, all direct children of Exception
            raise ModelError(f"ONNX Runtime cannot load the model: {_told(error)}.") from error
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name; `outputs` picks some."""
        names = list(outputs or self.outputs)
        try:
            return dict(zip(names, self._session.run(names, dict(feeds))))
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run the model on this input: {_told(error)}.") from error


def _told(error: Exception) -> str:
    """What ONNX Runtime said, without its status prefix and source position."""
    text = first_line(error, 400)
    return text.split(" : ", 2)[-1].rstrip(".")


class Reference:
    """A model in ONNX's reference evaluator: slow, in the model's own precision, float64 included."""

    def __init__(self, model: ir.Model) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(ir.to_proto(model))
        self.outputs = [v.name or "" for v in model.graph.outputs]

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name."""
        names = list(outputs or self.outputs)
        with np.errstate(all="ignore"):
            return dict(zip(names, self._evaluator.run(names, dict(feeds))))


def lower(model: ir.Model) -> ir.Model:
    """The relevance graph's model with every composite expanded; a new model."""
    return composite.expand(model.clone())


def as_float64(model: ir.Model) -> ir.Model:
    """A canonical model with every float32 tensor, constant and cast widened to float64; a new model."""
    wide = model.clone()
    for value in (*wide.graph.inputs, *wide.graph.initializers.values(), *(v for n in wide.graph for v in n.outputs)):
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = ir.DataType.DOUBLE
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float64), name=value.name)
    for node in wide.graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT:
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.as_tensor().numpy().astype(np.float64)))
            if name in ("to", "dtype") and attribute.type == ir.AttributeType.INT and attribute.as_int() == onnx.TensorProto.FLOAT:
                node.attributes[name] = ir.AttrInt64(name, onnx.TensorProto.DOUBLE)
        if node.op_type == "BatchNormalization":
            _exact_epsilon(wide, node)
    return wide


def _exact_epsilon(model: ir.Model, node: ir.Node) -> None:
    """ONNX stores ε as float32; its decimal (1e-5, not 9.99999975e-06) goes into a variance of the node's own."""
    attribute, variance = node.attributes.get("epsilon"), node.inputs[4]
    if variance is None or variance.const_value is None:
        return
    stored = float(np.float32(attribute.as_float() if attribute is not None else 1e-5))
    gap = float(str(np.float32(stored))) - stored
    name = f"{variance.name}/exact/{node.name}"
    tensor = ir.tensor(variance.const_value.numpy() + gap, name=name)
    value = ir.Value(name=name, shape=variance.shape, type=ir.TensorType(ir.DataType.DOUBLE), const_value=tensor)
    model.graph.register_initializer(value)
    node.replace_input_with(4, value)


def fold_constants(model: ir.Model) -> ir.Model:
    """Evaluate every expression of constants (w⁺, flipped w, folded BatchNormalization) into the file; in place.

    Larger files, faster loading; without it ONNX Runtime does the same when it loads.
    """
    graph = model.graph
    constant = {id(v) for v in graph.initializers.values() if not v.is_graph_input()}
    nodes = []
    for node in graph:
        if node.inputs and node.domain == "" and all(v is None or id(v) in constant for v in node.inputs):
            nodes.append(node)
            constant.update(id(v) for v in node.outputs)
    kept = {id(n) for n in nodes}
    wanted = [
        v for n in nodes for v in n.outputs if v.is_graph_output() or any(id(u.node) not in kept for u in v.uses())
    ]
    wanted = [v for v in wanted if not v.is_graph_output()]
    if not wanted:
        return model
    arrays = Session(_sub_model(model, nodes, wanted)).run({})
    for value in wanted:
        tensor = ir.tensor(arrays[value.name or ""], name=value.name)
        shape = ir.Shape(arrays[value.name or ""].shape)
        folded = ir.Value(name=f"{value.name}/folded", shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(folded)
        value.replace_all_uses_with(folded)
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
    return model


def _sub_model(model: ir.Model, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> bytes:
    """The given nodes as a model without inputs."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.graph.opset_imports.items())
    needed = {id(v): v for n in nodes for v in n.inputs if v is not None and v.const_value is not None and v.is_initializer()}
    proto.graph.name = "constants"
    proto.graph.node.extend(ir.to_proto(n) for n in nodes)
    for value in needed.values():
        if value.const_value is None:
            continue
        tensor = ir.to_proto(value.const_value)
        tensor.name = value.name or ""
        proto.graph.initializer.append(tensor)
    for value in wanted:
        proto.graph.output.append(onnx.ValueInfoProto(name=value.name or ""))
    return proto.SerializeToString()
