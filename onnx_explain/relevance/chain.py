"""The nodes on the way from the target to the inputs: their roles, what is fused into them, which is first and which last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.unfuse import reason
from onnx_explain.ir.view import Operation, Value, shape_text
from onnx_explain.methods import Composite
from onnx_explain.operators import find
from onnx_explain.operators.coverage import because
from onnx_explain.operators.roles import Linear, Normalization, Role, Sum, per_channel
from onnx_explain.path import Active, nodes_between


@dataclass
class Link:
    """A node on the way, with what has been fused into it."""

    operation: Operation
    role: Role
    bias: Value | None = None
    first: bool = False
    last: bool = False
    head: bool = False
    fused: list[Operation] = field(default_factory=list)

    @property
    def weighted(self) -> bool:
        """Whether it has a weight whose sign a rule may look at."""
        return isinstance(self.role, Linear) and self.role.kind == "weighted"


def role_of(operation: Operation) -> Role:
    """The operation's role; UnsupportedOperator where it has no room."""
    found = find(operation)
    if found is None:
        raise UnsupportedOperator(f"{operation.where}: no room.")
    return found.role(operation)


def positions(links: list[Link], composite: Composite) -> list[Link]:
    """Mark first and last weighted operators and, under a first propagation, the head above them. Structure decides."""
    below: dict[int, bool] = {}
    for link in links:
        upstream = any(below.get(id(v), False) for v in link.operation.inputs if v is not None)
        link.first = link.weighted and not upstream
        for value in link.operation.outputs:
            below[id(value)] = upstream or link.weighted
    above: dict[int, bool] = {}
    for link in reversed(links):
        downstream = any(above.get(id(v), False) for v in link.operation.outputs)
        link.last = link.weighted and not downstream
        reaches = any(below.get(id(v), False) for v in link.operation.inputs if v is not None)
        link.head = composite.first_propagation and not downstream and not link.weighted and reaches
        for operand in link.operation.inputs:
            if operand is not None:
                above[id(operand)] = above.get(id(operand), False) or downstream or link.weighted
    return links


@dataclass
class Chain:
    """Makes the links of one way through a graph. `held`: values that must not disappear into a fused node."""

    model: ir.Model
    op: Emitter
    composite: Composite
    method: str
    held: Sequence[Value] = ()

    def links(self, targets: Iterable[Value], active: Active, live: set[int]) -> list[Link]:
        """In topological order; UnsupportedOperator names a node that no rule can pass."""
        version = self.model.graph.opset_imports.get("", 0)
        found: list[Link] = []
        ends = list(targets)
        for node in nodes_between(self.model, ends, active, live):
            operation = Operation.of(node, active[id(node)], version)
            if find(operation) is None:
                raise UnsupportedOperator(self._refusal(operation, version))
            role = role_of(operation)
            found.append(Link(operation, role, self._bias(operation, role)))
        return positions(self._fused(found, ends), self.composite)

    def _bias(self, operation: Operation, role: Role) -> Value | None:
        linear = role.linear if isinstance(role, Normalization) else role
        if not isinstance(linear, Linear) or linear.bias is None:
            return None
        with self.op.serving(operation.name):
            return linear.bias(self.op)

    def _refusal(self, operation: Operation, version: int) -> str:
        why = reason(operation)
        if why is not None:
            return why
        opset = version if operation.domain in ("", "ai.onnx") else self.model.opset_imports.get(operation.domain, 0)
        shapes = ", ".join(f"{v.name} {shape_text(v)}" for v in operation.inputs if v is not None)
        return (
            f"{operation.where}, opset {opset}, inputs {shapes}: method {self.method!r} cannot pass this operator"
            f"{because(operation)}. "
            "Explain a tensor before it (`--output NAME`), export the model without it, or give it a room "
            "(docs/extending.md)."
        )

    def _fused(self, links: list[Link], targets: Sequence[Value]) -> list[Link]:
        """A weighted operator takes in the constant Add and the BatchNormalization behind it, where nothing else reads between."""
        producer: dict[int, Link] = {}
        readers: dict[int, int] = {}
        for link in links:
            for i in link.operation.active:
                readers[id(link.operation.inputs[i])] = readers.get(id(link.operation.inputs[i]), 0) + 1
        result: list[Link] = []
        held = {id(v) for v in (*self.held, *targets)}
        for link in links:
            source = link.operation.input(min(link.operation.active))
            before = producer.get(id(source))
            if (
                before is not None
                and readers.get(id(source), 0) == 1
                and id(source) not in held
                and self._take_in(before, link)
            ):
                del producer[id(source)]
                producer[id(link.operation.y)] = before
                continue
            result.append(link)
            if link.weighted and len(link.operation.outputs) == 1:
                producer[id(link.operation.y)] = link
        return result

    def _take_in(self, before: Link, link: Link) -> bool:
        """Fuse `link` into the weighted operator before it; False where that is not exact or not asked for."""
        role = before.role
        if not isinstance(role, Linear) or len(link.operation.active) != 1:
            return False
        behind = link.role
        if isinstance(behind, Linear) and behind.affine is not None:
            if not self.composite.batch_norm.startswith("fold") or role.rescale is None or role.channel_axis != 1:
                return False
            self._fold(before, role, link, *(part(self.op) for part in behind.affine))
        elif isinstance(behind, Sum) and behind.coefficients == (1.0, 1.0):
            constant = link.operation.input(1 - min(link.operation.active))
            if constant.shape is None or link.operation.y.shape != before.operation.y.shape:
                return False
            with self.op.serving(before.operation.name):
                before.bias = constant if before.bias is None else self.op.Add(before.bias, constant)
        else:
            return False
        before.operation = replace(before.operation, outputs=link.operation.outputs)
        before.fused.append(link.operation)
        return True

    def _fold(self, before: Link, role: Linear, link: Link, c: Value, t: Value) -> None:
        """W' = c·W, b' = c·b + t; exact for every linear operator with one reader (methods.md §5)."""
        op = self.op
        if role.weight is None or role.rescale is None:
            raise ValueError(f"{before.operation.where}: has no weight to fold into")
        with op.serving(before.operation.name, folded=link.operation.name):
            t = per_channel(op, t, link.operation.y)
            weight = role.rescale(op, before.operation.input(role.weight), c)
            scaled = None if before.bias is None else op.Mul(before.bias, per_channel(op, c, link.operation.y))
            before.bias = t if scaled is None else op.Add(scaled, t)
        inputs = [*before.operation.inputs]
        inputs[role.weight] = weight
        before.operation = replace(before.operation, inputs=tuple(inputs))
        before.role = role_of(before.operation)
