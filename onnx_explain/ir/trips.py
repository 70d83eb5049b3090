"""How often a Loop runs, where that does not depend on the data: its limit, and its condition run on numbers alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnx_explain.ir.seen import Seen, number_of
from onnx_explain.ir.view import Value

_LARGEST = 4096  # elements of a number that a condition may depend on
_LONGEST = 5000  # rounds in which a computed condition is followed
Numbers = dict[str, npt.NDArray[np.generic]]


def trips_of(node: ir.Node, body: ir.Graph, seen: Seen) -> int | None:
    """The number of rounds; None where the data decide, or where it is beyond all bounds."""
    limit, going = (_single(node.inputs[k], seen) if k < len(node.inputs) else None for k in (0, 1))
    if (limit is None and _given(node, 0)) or (going is None and _given(node, 1)):
        return None
    most = None if limit is None else max(int(limit), 0)
    if going is not None and not bool(going):
        return 0
    verdict = _constant_condition(body, seen)
    if verdict is not None:
        return most if verdict else 1 if most is None else min(most, 1)
    if most == 0:
        return 0
    return _simulated(node, body, seen, most)


def _given(node: ir.Node, index: int) -> bool:
    return index < len(node.inputs) and node.inputs[index] is not None


def _single(value: Value | None, seen: Seen) -> np.generic | None:
    array = None if value is None else number_of(value, seen)
    return None if array is None or array.size != 1 else array.reshape(-1)[0]


def _constant_condition(body: ir.Graph, seen: Seen) -> bool | None:
    """True where the condition is passed on unchanged (it was true), or what it is set to; None where it is computed."""
    value: Value | None = body.outputs[0]
    while value is not None:
        if value is body.inputs[1]:
            return True
        number = _single(value, seen)
        if number is not None:
            return bool(number)
        node = value.producer()
        if node is None or node.op_type not in ("Identity", "Cast"):
            return None
        value = node.inputs[0]
    return None


def _simulated(node: ir.Node, body: ir.Graph, seen: Seen, most: int | None) -> int | None:
    """Run the nodes that the condition depends on, with the states that it depends on, round by round."""
    carried = {id(v): k for k, v in enumerate(body.inputs[2:])}
    needed: set[int] = set()
    nodes: list[ir.Node] = []
    outer: Numbers = {}
    waiting, done = [body.outputs[0]], set[int]()
    while waiting:
        value = waiting.pop()
        if id(value) in done:
            continue
        done.add(id(value))
        if id(value) in carried:
            needed.add(carried[id(value)])
            waiting.append(body.outputs[1 + carried[id(value)]])
            continue
        maker = value.producer()
        if value is body.inputs[0] or value is body.inputs[1]:
            continue
        if maker is None or maker.graph is not body:
            number = number_of(value, seen)
            if number is None or number.size > _LARGEST:
                return None
            outer[value.name or ""] = number
        elif any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in maker.attributes.values()):
            return None
        else:
            nodes.append(maker)
            waiting.extend(v for v in maker.inputs if v is not None)
    states: Numbers = {}
    for k in needed:
        start = node.inputs[2 + k]
        number = None if start is None else number_of(start, seen)
        if number is None or number.size > _LARGEST:
            return None
        states[body.inputs[2 + k].name or ""] = number
    graph = node.graph
    opset = int(graph.opset_imports.get("", 18)) if isinstance(graph, ir.Graph) else 18
    return _count(body, _in_order(body, nodes), sorted(needed), outer, states, most, opset)


def _in_order(body: ir.Graph, nodes: Iterable[ir.Node]) -> list[ir.Node]:
    wanted = {id(n) for n in nodes}
    return [n for n in body if id(n) in wanted]


def _count(
    body: ir.Graph,
    nodes: list[ir.Node],
    needed: list[int],
    outer: Numbers,
    states: Numbers,
    most: int | None,
    opset: int,
) -> int | None:
    """Rounds until the condition is false; None beyond all bounds, or where ONNX's evaluator cannot tell."""
    first, going = (v.name or "" for v in body.inputs[:2])
    results = [body.outputs[0].name or "", *((body.outputs[1 + k].name or "") for k in needed)]
    named = [body.inputs[2 + k].name or "" for k in needed]
    fed = {first, going, *outer, *states}
    try:
        evaluator = ReferenceEvaluator(_alone(nodes, sorted(fed), [r for r in results if r not in fed], opset))
        for k in range(_LONGEST if most is None else min(most, _LONGEST)):
            feeds = {**outer, **states, first: np.asarray(k), going: np.asarray(True)}
            made = dict(zip(evaluator.output_names, evaluator.run(None, feeds)))
            values = {**feeds, **made}
            states = {name: np.asarray(values[r]) for name, r in zip(named, results[1:])}
            if any(s.size > _LARGEST for s in states.values()):
                return None
            if not bool(np.asarray(values[results[0]]).reshape(-1)[0]):
                return k + 1
    except Exception:
        return None  # no evaluator for one of the operators, or shapes that it refuses: the Loop stays
    return most if most is not None and most <= _LONGEST else None


def _alone(nodes: list[ir.Node], inputs: list[str], outputs: list[str], opset: int) -> onnx.ModelProto:
    """Nodes of a body as a model."""
    graph = onnx.GraphProto(name="condition")
    graph.node.extend(ir.to_proto(n) for n in nodes)
    graph.input.extend(onnx.ValueInfoProto(name=n) for n in inputs)
    graph.output.extend(onnx.ValueInfoProto(name=n) for n in dict.fromkeys(outputs))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
