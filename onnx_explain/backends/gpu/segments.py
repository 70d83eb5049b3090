"""A lowered model cut into steps: plain ONNX nodes that may run together, and kernel calls, in an order that works.

A node's level is the number of changes between the two kinds on the way to it; ONNX nodes of one level are one session,
so that level 0 is the forward pass with everything that follows from it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnx_explain.backends.gpu.calls import DOMAIN, Call
from onnx_explain.ir.message import tensor_message
from onnx_explain.ir.view import Value


@dataclass(frozen=True)
class Segment:
    """ONNX nodes of one level as a model. `takes`: what other steps or the caller give it; `gives`: what others read."""

    model: onnx.ModelProto
    takes: tuple[str, ...]
    gives: tuple[str, ...]


@dataclass(frozen=True)
class KernelStep:
    """One kernel call. `takes`: its operands by position; `constants`: those of them that the model holds."""

    call: Call
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    name: str


Step = Segment | KernelStep


@dataclass(frozen=True)
class Steps:
    """The steps in order, the model's inputs and outputs, and the tensors that kernels take from the model itself, or that
    are outputs as they are.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, ir.TensorProtocol]
    defaults: Mapping[str, ir.TensorProtocol]


def cut(model: ir.Model) -> Steps:
    """Cut a lowered model into steps."""
    graph = model.graph
    inputs = {v.name or "" for v in graph.inputs}
    held = {v.name or "": v for v in graph.initializers.values() if (v.name or "") not in inputs}
    levels = _levels(graph)
    outputs = [v.name or "" for v in graph.outputs]
    readers = _readers(graph, levels)
    steps: list[Step] = []
    constants: dict[str, ir.TensorProtocol] = {
        n: t for n in outputs if n in held and (t := held[n].const_value) is not None
    }
    for level in sorted(set(levels.values())):
        nodes = [n for n in graph if levels[id(n)] == level]
        if level % 2:
            for node in nodes:
                steps.append(_kernel_step(node, held, constants))
        else:
            steps.append(_segment(model, nodes, level, held, readers, set(outputs)))
    defaults = {n: v.const_value for n, v in graph.initializers.items() if n in inputs and v.const_value is not None}
    direct = tuple(v.name or "" for v in graph.inputs)
    return Steps(tuple(steps), direct, tuple(outputs), constants, defaults)


def _levels(graph: ir.Graph) -> dict[int, int]:
    """Even: ONNX, odd: kernels; a node comes behind everything it reads."""
    levels: dict[int, int] = {}
    for node in graph:
        parity = int(node.domain == DOMAIN)
        level = parity
        for value in _read(node):
            maker = value.producer()
            if maker is not None and id(maker) in levels:
                before = levels[id(maker)]
                level = max(level, before + (before % 2 != parity))
        levels[id(node)] = level
    return levels


def _read(node: ir.Node) -> Iterable[Value]:
    """Operands, and what subgraphs read from outside."""
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        graphs = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else []
        graphs += list(attribute.value) if attribute.type == ir.AttributeType.GRAPHS else []
        for graph in graphs:
            for inner in graph:
                yield from _read(inner)
            yield from graph.outputs


def _readers(graph: ir.Graph, levels: Mapping[int, int]) -> dict[str, set[int]]:
    """The levels that read each value."""
    found: dict[str, set[int]] = {}
    for node in graph:
        for value in _read(node):
            found.setdefault(value.name or "", set()).add(levels[id(node)])
    return found


def _kernel_step(node: ir.Node, held: Mapping[str, Value], constants: dict[str, ir.TensorProtocol]) -> KernelStep:
    names = [v.name or "" for v in node.inputs if v is not None]
    for name in names:
        tensor = held[name].const_value if name in held else None
        if tensor is not None:
            constants[name] = tensor
    outs = tuple(v.name or "" for v in node.outputs)
    return KernelStep(Call.of(node), tuple(names), outs, node.name or outs[0])


def _segment(
    model: ir.Model,
    nodes: list[ir.Node],
    level: int,
    held: Mapping[str, Value],
    readers: Mapping[str, set[int]],
    outputs: set[str],
) -> Segment:
    made = {v.name or "": v for n in nodes for v in n.outputs}
    inner = {v.name or "" for n in nodes for g in _bodies(n) for m in g for v in m.outputs}
    taken: dict[str, Value] = {}
    weights: dict[str, Value] = {}
    for node in nodes:
        for value in _read(node):
            name = value.name or ""
            if name in held:
                weights[name] = value
            elif name not in made and name not in inner and not _is_body_input(value, nodes):
                taken[name] = value
    gives = [n for n in made if n in outputs or readers.get(n, set()) - {level}]
    proto = onnx.ModelProto(ir_version=model.ir_version)
    graph = proto.graph
    graph.name = f"level{level}"
    graph.node.extend(ir.to_proto(n) for n in nodes)
    for name, value in weights.items():
        if value.const_value is not None:
            tensor_message(value.const_value, name, graph.initializer.add())
    graph.input.extend(_described(v) for v in taken.values())
    graph.output.extend(_described(made[n]) for n in gives)
    opsets = [(d, v) for d, v in model.graph.opset_imports.items() if d != DOMAIN]
    proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in opsets)
    return Segment(proto, tuple(taken), tuple(gives))


def _bodies(node: ir.Node) -> Iterable[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.value


def _is_body_input(value: Value, nodes: Iterable[ir.Node]) -> bool:
    """Whether it is an input or a constant of a subgraph."""
    return any(any(value is v for v in (*g.inputs, *g.initializers.values())) for n in nodes for g in _bodies(n))


def _described(value: Value) -> onnx.ValueInfoProto:
    """Name and type; shapes are found when they are known."""
    kind = int(value.dtype) if value.dtype is not None else onnx.TensorProto.FLOAT
    return onnx.helper.make_tensor_value_info(value.name or "", kind, None)
