"""The sub-graph of an If, a Loop or a Scan written into the graph around it: values bound, names kept apart.

Which bodies are written out, and how often, is `straighten`'s affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnx_explain.ir.view import Value


class Scribe:
    """Writes bodies and single nodes into one graph, before the node that they stand for."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._taken = {n.name for n in graph} | {v.name for n in graph for v in n.outputs}
        self._taken |= {v.name for v in graph.inputs} | set(graph.initializers)
        self._counts: dict[str, int] = {}
        self._written: set[int] = set()

    def hoist(self, body: ir.Graph, prefix: str) -> None:
        """Constants of a body become constants of the graph: once, however often the body is written."""
        for value in list(body.initializers.values()):
            if value.is_graph_input():
                continue
            outer = self.constant(value.const_value, f"{prefix}/{value.name}")
            value.replace_all_uses_with(outer, replace_graph_outputs=True)

    def constant(self, tensor: ir.TensorProtocol | None, name: str) -> Value:
        """A new constant of the graph."""
        if tensor is None:
            raise ValueError(f"{name!r} is a constant without a number")
        own, sizes = self._fresh(name), ir.Shape(tensor.shape.numpy())
        copy: ir.TensorProtocol  # a value calls its tensor by its own name, and clones share tensors
        if tensor.dtype == ir.DataType.STRING:
            copy = ir.StringTensor([bytes(v) for v in tensor.numpy().reshape(-1)], shape=sizes, name=own)
        else:
            copy = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=own)
        value = ir.Value(name=own, shape=sizes, type=ir.TensorType(tensor.dtype), const_value=copy)
        self.graph.register_initializer(value)
        return value

    def write(self, body: ir.Graph, at: ir.Node, bound: Mapping[int, Value], prefix: str) -> list[Value]:
        """The body's nodes in front of `at`, its inputs `bound` by position; the body is used up. Its results.

        A name stays as it is where it is free and `prefix` is empty.
        """
        inputs, results = list(body.inputs), list(body.outputs)
        replaced = {id(v): bound[i] for i, v in enumerate(inputs) if i in bound}
        nodes = list(body)
        body.outputs.clear()
        body.remove(nodes)
        for value in inputs:
            if id(value) in replaced:
                value.replace_all_uses_with(replaced[id(value)])
        for node in nodes:
            self._rename(node, prefix or f"{at.name or at.op_type}", keep=not prefix)
            self._written.update(id(v) for v in node.outputs)
        self.graph.insert_before(at, nodes)
        return [replaced.get(id(v), v) for v in results]

    def emit(
        self,
        at: ir.Node,
        op_type: str,
        inputs: Sequence[Value | None],
        name: str,
        *,
        outputs: int = 1,
        **attributes: int,
    ) -> list[Value]:
        """One node in front of `at`."""
        node = ir.node(op_type, inputs, attributes or None, num_outputs=outputs, name=self._fresh(name))
        for i, value in enumerate(node.outputs):
            value.name = self._fresh(f"{node.name}_out{i if outputs > 1 else ''}")
            self._written.add(id(value))
        self.graph.insert_before(at, node)
        return list(node.outputs)

    def stand_in(self, node: ir.Node, results: Sequence[Value]) -> None:
        """Every result of the node is read from `results` from now on, under the node's own names; the node goes."""
        for old, new in zip(node.outputs, results):
            if not (old.uses() or old.is_graph_output()):
                continue
            if old.is_graph_output() and (id(new) not in self._written or new.is_graph_output()):
                new = self.emit(node, "Identity", [new], f"{node.name or node.op_type}/Identity")[0]
            if id(new) in self._written and not new.is_graph_output() and old.name:
                new.name, old.name = old.name, self._fresh(f"{old.name}/before")
                self._written.discard(id(new))
                if new.dtype is None and old.dtype is not None:
                    new.dtype = old.dtype
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                forget(attribute.as_graph())
        self.graph.remove(node, safe=True)

    def _rename(self, node: ir.Node, prefix: str, *, keep: bool) -> None:
        node.name = self._named(node.name or node.op_type, prefix, keep=keep)
        for value in node.outputs:
            if value.name:
                value.name = self._named(value.name, prefix, keep=keep)

    def _named(self, name: str, prefix: str, *, keep: bool) -> str:
        return self._fresh(name if keep and name not in self._taken else f"{prefix}/{name}")

    def _fresh(self, stem: str) -> str:
        name = stem
        while name in self._taken:
            self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}_{self._counts[stem]}"
        self._taken.add(name)
        return name


def forget(body: ir.Graph) -> None:
    """A body that is not written any more reads nothing of the graph around it."""
    for node in list(body.all_nodes()):
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
