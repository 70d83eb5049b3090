"""Expressions of constants (w⁺, flipped w, folded BatchNormalization) evaluated into the file, on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnx_explain.ir.message import LIMIT, tensor_message

Evaluate = Callable[[bytes], dict[str, npt.NDArray[Any]]]


def fold_constants(model: ir.Model, evaluate: Evaluate) -> ir.Model:
    """Replace what depends on constants alone by its value; in place.

    `evaluate` computes the outputs of a model without inputs. The file grows and loads faster; without it ONNX Runtime
    does the same when it loads.
    """
    graph = model.graph
    constant = {id(v) for v in graph.initializers.values() if not v.is_graph_input()}
    nodes = []
    for node in graph:
        # dequantised weights stay as they are: the runtime's integer kernels need them
        free = node.inputs and node.domain == "" and node.op_type != "DequantizeLinear"
        if free and all(v is None or id(v) in constant for v in node.inputs):
            nodes.append(node)
            constant.update(id(v) for v in node.outputs)
    inside = set(map(id, nodes))
    wanted = [v for n in nodes for v in n.outputs if any(id(u.node) not in inside for u in v.uses())]
    if not wanted:
        return model
    arrays: dict[str, npt.NDArray[Any]] = {}
    for needed, some in _portions(nodes, wanted):
        arrays |= evaluate(_constants_alone(model, needed, some))
    for value in wanted:
        array = arrays[value.name or ""]
        tensor = ir.tensor(array, name=f"{value.name}/folded")
        kind = ir.TensorType(tensor.dtype)
        folded = ir.Value(name=tensor.name, shape=ir.Shape(array.shape), type=kind, const_value=tensor)
        graph.register_initializer(folded)
        for user, index in tuple(value.uses()):  # an output of the graph stays one, and is read no more
            user.replace_input_with(index, folded)
    RemoveUnusedNodesPass()(model)
    return model


def _portions(nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> Iterator[tuple[list[ir.Node], list[ir.Value]]]:
    """Values to compute together with the nodes they need, so that no portion's operands come near one message's 2 GB."""
    known = {id(v): n for n in nodes for v in n.outputs}
    order = {id(n): i for i, n in enumerate(nodes)}
    needed: dict[int, ir.Node] = {}
    counted: set[int] = set()
    size, some = 0, list[ir.Value]()
    for value in wanted:
        waiting = [value]
        while waiting:
            node = known.get(id(waiting.pop()))
            if node is None or id(node) in needed:
                continue
            needed[id(node)] = node
            for operand in node.inputs:
                if operand is not None and operand.const_value is not None:
                    size += operand.const_value.nbytes if id(operand) not in counted else 0
                    counted.add(id(operand))
                elif operand is not None:
                    waiting.append(operand)
        some.append(value)
        if size > LIMIT // 4 or value is wanted[-1]:
            yield sorted(needed.values(), key=lambda n: order[id(n)]), some
            needed, counted, size, some = {}, set(), 0, []


def _constants_alone(model: ir.Model, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> bytes:
    """The given nodes as a model without inputs."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.graph.opset_imports.items())
    proto.graph.name = "constants"
    proto.graph.node.extend(ir.serde.serialize_node(n) for n in nodes)
    operands = {id(v): v for n in nodes for v in n.inputs if v is not None and v.is_initializer()}
    for value in operands.values():
        if value.const_value is not None:
            tensor_message(value.const_value, value.name or "", proto.graph.initializer.add())
    proto.graph.output.extend(onnx.ValueInfoProto(name=v.name or "") for v in wanted)
    return bytes(proto.SerializeToString())


def result_of(node: ir.Node, operands: Sequence[npt.NDArray[Any] | None]) -> list[npt.NDArray[Any]] | None:
    """One node's outputs by ONNX's own evaluator for the given operands, whatever their dtype; None where it fails."""
    from onnx.reference import ReferenceEvaluator

    graph = node.graph
    opset = graph.opset_imports.get("", 18) if isinstance(graph, ir.Graph) else 18
    feeds = {v.name or "": a for v, a in zip(node.inputs, operands) if v is not None and a is not None}
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(ir.to_proto(node), opsets={"": int(opset)}).run(None, feeds)
        return [np.asarray(r) for r in results]
    except Exception:
        return None  # not every operator has an evaluator for every dtype
