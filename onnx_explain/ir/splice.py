"""Standing one tensor in for another, and a second forward pass on other inputs. Nothing here knows of relevance."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, plain

_SHAPES = ("Shape", "Size")


def splice(op: Emitter, value: Value, make: Callable[[Emitter, Value], Value]) -> Value:
    """What read `value` reads ``make(op, value)`` from now on; a graph output stays as it was. Returns the new tensor.

    The graph is brought back into the order in which it runs.
    """
    uses = tuple(value.uses())
    other = op.typed(make(op, value), value)
    for node, index in uses:
        node.replace_input_with(index, other)
    op.finish()
    return other


class Twin:
    """The forward pass repeated on other inputs, node by node as values are asked for.

    `inputs` maps names of tensors (graph inputs, or computed ones) to what stands in for them, of the same shape and dtype;
    all others are shared.
    """

    def __init__(self, graph: ir.Graph, op: Emitter, inputs: Mapping[str, Value]) -> None:
        self._op = op
        known = [*graph.inputs, *(v for node in graph for v in node.outputs)]
        self._of: dict[int, Value] = {id(v): inputs[v.name or ""] for v in known if v.name in inputs}
        # Shape and Size see the same in both passes, and what depends on them alone need not run twice
        self._nodes: dict[int, ir.Node] = {}
        reached = set(self._of)
        for node in graph:
            if node.op_type not in _SHAPES and any(v is not None and id(v) in reached for v in node.inputs):
                reached.update(id(v) for v in node.outputs)
                self._nodes.update({id(v): node for v in node.outputs if id(v) not in self._of})

    def __call__(self, value: Value) -> Value:
        """The value's twin; the value itself where it does not depend on the exchanged inputs."""
        waiting = [value]
        while waiting:
            current = waiting[-1]
            node = self._nodes.get(id(current))
            if node is None or id(current) in self._of:
                waiting.pop()
                continue
            missing = [v for v in node.inputs if v is not None and id(v) in self._nodes and id(v) not in self._of]
            if missing:
                waiting.extend(missing)
            else:
                self._copy(node)
        return self._of.get(id(value), value)

    def _copy(self, node: ir.Node) -> None:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise UnsupportedOperator(
                f"{Operation.of(node).where}: holds a sub-graph, which cannot run a second time on the baseline; "
                "use a method without a baseline."
            )
        operands = [None if v is None else self._of.get(id(v), v) for v in node.inputs]
        attributes = {name: plain(a) for name, a in node.attributes.items()}
        with self._op.serving(node.name or node.op_type):
            outs = self._op.emit(
                node.op_type,
                operands,
                attributes,
                outputs=len(node.outputs),
                domain=node.domain,
                like=list(node.outputs),
            )
        for old, new in zip(node.outputs, outs):
            self._of.setdefault(id(old), new)
