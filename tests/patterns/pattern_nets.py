"""Small models for the pattern tests, and the slow way to what a fit adds up."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_explain.backends.reference import REPLACED

Array = np.ndarray[Any, Any]


def weight(name: str, *shape: int, seed: int = 0, scale: float = 0.4) -> onnx.TensorProto:
    values = np.random.default_rng([seed, *name.encode()]).standard_normal(shape) * scale
    return numpy_helper.from_array(values.astype(np.float32), name)


def build(
    nodes: list[onnx.NodeProto], shape: list[Any], weights: list[onnx.TensorProto], opset: int = 18
) -> onnx.ModelProto:
    """A model from "x" to "y"."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        weights,
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    )


def node(operator: str, inputs: list[str], output: str, name: str | None = None, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name or output, **attributes)


def convnet(batch: Any = "N", seed: int = 0) -> onnx.ModelProto:
    """Conv BatchNorm Relu MaxPool Conv Relu GlobalAveragePool Flatten Gemm on [N, 2, 10, 10], 3 classes."""
    variance = numpy_helper.from_array(np.linspace(0.5, 2, 5).astype(np.float32), "var")
    nodes = [
        node("Conv", ["x", "w1"], "c1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c1", "g", "be", "mu", "var"], "bn"),
        node("Relu", ["bn"], "r1"),
        node("MaxPool", ["r1"], "p1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2", "b2"], "c2", pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], "r2"),
        node("GlobalAveragePool", ["r2"], "gap"),
        node("Flatten", ["gap"], "flat"),
        node("Gemm", ["flat", "w3", "b3"], "y", "dense", transB=1),
    ]
    shapes = {
        "w1": (5, 2, 3, 3),
        "g": (5,),
        "be": (5,),
        "mu": (5,),
        "w2": (6, 5, 3, 3),
        "b2": (6,),
        "w3": (3, 6),
        "b3": (3,),
    }
    weights = [weight(n, *s, seed=seed) for n, s in shapes.items()]
    return build(nodes, [batch, 2, 10, 10], [*weights, variance])


def residual() -> onnx.ModelProto:
    """Conv Relu (Conv + skip) Relu Conv GlobalAveragePool: a Sum of two activations on [N, 2, 6, 6]."""
    nodes = [
        node("Conv", ["x", "w1"], "c1", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], "r1"),
        node("Conv", ["r1", "w2"], "c2", pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r1"], "sum"),
        node("Relu", ["sum"], "r2"),
        node("GlobalAveragePool", ["r2"], "gap"),
        node("Flatten", ["gap"], "flat"),
        node("Gemm", ["flat", "w3"], "y", "dense", transB=1),
    ]
    weights = [weight("w1", 4, 2, 3, 3), weight("w2", 4, 4, 3, 3), weight("w3", 3, 4)]
    return build(nodes, ["N", 2, 6, 6], weights)


def data(count: int, *shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def seen_by(single: onnx.ModelProto, x: Array, neurons: int) -> tuple[Array, Array]:
    """Entry by entry of the one weight "w": what it is multiplied by at every output. [weight size, …y], and y.

    y is linear in w, so a weight that is 1 at one entry and 0 elsewhere shows the input that this entry meets.
    """
    model = onnx.ModelProto()
    model.CopyFrom(single)
    for values in model.graph.input:
        values.type.tensor_type.elem_type = TensorProto.DOUBLE
    kept = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    w = kept["w"]

    def run(value: Array) -> Array:
        for t in model.graph.initializer:
            now = value if t.name == "w" else kept[t.name] * (t.name != "b")
            t.CopyFrom(numpy_helper.from_array(now, t.name))
        return np.asarray(ReferenceEvaluator(model, new_ops=list(REPLACED)).run(None, {"x": x.astype(np.float64)})[0])

    units = [run(np.eye(w.size)[i].reshape(w.shape)) for i in range(w.size)]
    return np.stack(units), run(w)
