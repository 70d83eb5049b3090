"""Composite nodes (domain ``ai.onnx_explain``): one step of a rule, carrying the forward node's operands and attributes.

A composite's meaning is its expansion to plain ONNX; a kernel may stand in for it, and `convert` may keep it as an ONNX
function. What a composite means is registered by the rules; the mechanism alone lives here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from onnx_explain.ir.emit import PREFIX, Emitter, set_dtype
from onnx_explain.ir.spell import spell_out
from onnx_explain.ir.view import Operation, Value, plain

DOMAIN = "ai.onnx_explain"
_OF, _OF_DOMAIN, _DATA, _RULE = "explain_of", "explain_domain", "explain_active", "explain_rule"


@dataclass(frozen=True)
class CompositeNode:
    """A composite as its expansion (or kernel) reads it.

    `r`: incoming relevance, shape of the forward output. `node`: the forward operation (weights as the rule sees them).
    `extra`: further operands by the composite's own convention. `rule`: the rule's parameters, plain JSON data.
    """

    kind: str
    r: Value
    node: Operation
    extra: tuple[Value | None, ...]
    rule: Mapping[str, Any]
    outputs: int


Expansion = Callable[[Emitter, CompositeNode], Sequence[Value]]
EXPANSIONS: dict[str, Expansion] = {}


def expansion(kind: str) -> Callable[[Expansion], Expansion]:
    """Register the meaning of a composite in plain ONNX."""

    def register(function: Expansion) -> Expansion:
        EXPANSIONS[kind] = function
        return function

    return register


def emit(
    op: Emitter,
    kind: str,
    r: Value,
    node: Operation,
    *,
    extra: Sequence[Value | None] = (),
    rule: Mapping[str, Any] | None = None,
    like: Sequence[Value | None],
) -> tuple[Value, ...]:
    """Emit a composite node: ``kind(r, y, inputs…, extra…)`` with the forward attributes and the rule as JSON.

    `like[i]` types output i: relevance has the dtype and shape of the value it belongs to.
    """
    operands = [r, node.y, *node.inputs, *extra]
    attributes = dict(node.attributes)
    attributes[_OF] = node.op_type
    attributes[_OF_DOMAIN] = node.domain
    attributes[_DATA] = [len(node.inputs), node.version, *sorted(node.active)]
    attributes[_RULE] = json.dumps(dict(rule or {}), sort_keys=True)
    return op.emit(kind, operands, attributes, outputs=len(like), domain=DOMAIN, like=like)


def read(node: ir.Node) -> CompositeNode:
    """The composite behind a node of our domain."""
    attributes = {k: plain(a) for k, a in node.attributes.items()}
    arity, version, *active = attributes.pop(_DATA)
    of, of_domain = attributes.pop(_OF), attributes.pop(_OF_DOMAIN)
    rule = json.loads(attributes.pop(_RULE))
    operands: list[Value | None] = list(node.inputs) + [None] * (2 + arity - len(node.inputs))
    r, y = operands[0], operands[1]
    if r is None or y is None:
        raise ValueError(f"composite {node.name!r} has lost its operands")
    forward = Operation(
        of_domain, of, node.name or of, tuple(operands[2 : 2 + arity]), (y,), attributes, frozenset(active), version
    )
    return CompositeNode(node.op_type, r, forward, tuple(operands[2 + arity :]), rule, len(node.outputs))


def expand(model: ir.Model, *, meaning: Callable[[ir.Node], Expansion | None] | None = None) -> ir.Model:
    """Lower every composite to plain ONNX, in place; equal sub-expressions are emitted once.

    `meaning(node)`: what a backend puts in the place of a composite's own expansion; None for that.
    """
    spell_out(model)
    graph = model.graph
    op = Emitter(graph)
    composites = [n for n in graph if n.domain == DOMAIN]
    for node in composites:
        composite = read(node)
        with op.serving(_served(node), **_metadata(node)):
            for old, new in zip(node.outputs, _meaning(node, composite, meaning)(op, composite)):
                _stand_in(op, old, new)
    graph.remove(composites, safe=True)
    graph.sort()
    _drop_unread(graph)
    model.opset_imports.pop(DOMAIN, None)
    return model


def _meaning(
    node: ir.Node, composite: CompositeNode, chosen: Callable[[ir.Node], Expansion | None] | None
) -> Expansion:
    other = chosen(node) if chosen is not None else None
    return other if other is not None else EXPANSIONS[composite.kind]


def _stand_in(op: Emitter, old: Value, new: Value) -> None:
    """Everything that reads `old` reads `new`; a graph output keeps its name."""
    if new.dtype is None:
        set_dtype(new, old.dtype)
    if new.shape is None:
        new.shape = old.shape
    if old.is_graph_output():
        new = op.copy(new)
        old.name, new.name = f"{old.name}/composite", old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _drop_unread(graph: ir.Graph) -> None:
    """Remove what was inserted and is read by nothing; the forward half stays as it is."""
    unread: dict[ir.Node, None] = {}
    for node in reversed(list(graph)):
        ours = (node.name or "").startswith(f"{PREFIX}/")
        if ours and not any(v.is_graph_output() or any(u.node not in unread for u in v.uses()) for v in node.outputs):
            unread[node] = None
    graph.remove(unread, safe=True)
    for name, value in list(graph.initializers.items()):
        if name.startswith(f"{PREFIX}/") and not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def as_functions(model: ir.Model) -> ir.Model:
    """Keep composites as calls of model-local ONNX functions, in place; each body is the composite's expansion.

    One function per distinct (composite, attributes, operand types): bodies are specialised to shapes.
    """
    spell_out(model)
    made: dict[Any, str] = {}
    for node in [n for n in model.graph if n.domain == DOMAIN]:
        key = _signature(node)
        if key not in made:
            made[key] = f"{node.op_type}_{node.attributes[_OF].value}_{len(made)}"
            model.functions[DOMAIN, made[key], ""] = _function(node, made[key], model.graph.opset_imports)
        node.op_type = made[key]
        for name in list(node.attributes):
            del node.attributes[name]
    _drop_unread(model.graph)
    model.opset_imports[DOMAIN] = 1
    return model


def _function(node: ir.Node, name: str, opsets: Mapping[str, int]) -> ir.Function:
    # the constants are for the expansion to read (axes, scales); the body still takes the operand
    parameters = [
        ir.Value(name=f"p{i}", shape=v.shape, type=v.type, const_value=v.const_value) if v is not None else None
        for i, v in enumerate(node.inputs)
    ]
    filled = [p if p is not None else ir.Value(name=f"p{i}") for i, p in enumerate(parameters)]
    graph = ir.Graph(filled, [], nodes=[], opset_imports={"": opsets[""]}, name=name)
    composite = _rebind(node, parameters)
    op = Emitter(graph, constants_as_nodes=True)
    with op.serving(name):
        results = [op.copy(v) if v in filled else v for v in EXPANSIONS[composite.kind](op, composite)]
    graph.outputs.extend(results)
    graph.sort()
    return ir.Function(DOMAIN, name, graph=graph, attributes=[])


def _rebind(node: ir.Node, parameters: Sequence[Value | None]) -> CompositeNode:
    composite = read(node)
    arity = len(composite.node.inputs)
    operands = list(parameters) + [None] * (2 + arity - len(parameters))
    r, y = operands[0], operands[1]
    if r is None or y is None:
        raise ValueError(f"composite {node.name!r} has lost its operands")
    forward = replace(composite.node, inputs=tuple(operands[2 : 2 + arity]), outputs=(y,))
    return replace(composite, r=r, node=forward, extra=tuple(operands[2 + arity :]))


def _signature(node: ir.Node) -> Any:
    types = tuple((str(v.dtype), str(v.shape), _number(v)) if v is not None else None for v in node.inputs)
    return node.op_type, tuple(sorted((k, str(a.value)) for k, a in node.attributes.items())), types, len(node.outputs)


def _number(value: Value) -> bytes | None:
    """Small constants decide the body (axes, scales); weights do not."""
    tensor = value.const_value
    return tensor.tobytes() if tensor is not None and tensor.size <= 64 else None


def _served(node: ir.Node) -> str:
    """``conv1`` of a composite called ``explain/conv1/Share``."""
    return (node.name or node.op_type).removeprefix("explain/").rpartition("/")[0] or node.op_type


def _metadata(node: ir.Node) -> dict[str, str]:
    return {k.removeprefix("explain."): v for k, v in node.metadata_props.items() if k.startswith("explain.")}
