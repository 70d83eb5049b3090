"""Composites of a relevance graph to kernel calls where there is a kernel, to plain ONNX elsewhere.

What is no convolution or pool (sums, masks that follow a sum, what was absorbed) stays ONNX beside the call. Between Relu
layers no relevance is written: a layer's kernel divides for the layer below (`links`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnx_explain.backends.gpu import averages, convolutions
from onnx_explain.backends.gpu.calls import DOMAIN, LAYERS, POOLS, Call, layer_operations
from onnx_explain.backends.gpu.device import Dense
from onnx_explain.backends.gpu.layers import Known, Layer
from onnx_explain.backends.gpu.links import Link, links
from onnx_explain.ir import composite
from onnx_explain.ir.composite import CompositeNode, Expansion
from onnx_explain.ir.emit import PREFIX, Emitter
from onnx_explain.ir.fold import Evaluate, fold_constants
from onnx_explain.ir.spell import spell_out
from onnx_explain.ir.view import Value


@dataclass(frozen=True)
class Line:
    """One line of the plan: a composite, what runs it, and its floating-point operations per sample."""

    node: str
    operator: str
    composite: str
    runs: str
    operations: int

    @property
    def by_kernel(self) -> bool:
        """Whether a kernel runs it."""
        return self.runs != "ONNX"

    @property
    def counted(self) -> bool:
        """Whether it is a convolution or a pool."""
        return self.operator in LAYERS


@dataclass(frozen=True)
class Lowered:
    """A model of plain ONNX nodes and kernel calls, and the plan it follows."""

    model: ir.Model
    lines: tuple[Line, ...] = field(default=())


def lower(
    model: ir.Model, evaluate: Evaluate | None = None, *, precision: str = "tf32", dense: Dense = "onnx"
) -> Lowered:
    """The relevance graph's model with each composite as a kernel call or expanded; a new model.

    `evaluate` computes constant expressions (`ir.fold`), which the weights of kernel calls must be when they run; a plan
    alone does without. `precision`: of products; those that round their operands take RAP's denominators apart. `dense`:
    what runs dense layers, ``onnx`` (cuBLAS through ONNX Runtime) or ``kernel``.
    """
    model = model.clone()
    spell_out(model)
    found = links(model.graph)
    known, rounded = Known(), precision not in ("ieee", "tf32x3")
    lines: list[Line] = []

    def meaning(node: ir.Node) -> Expansion:
        link, served = found.get(id(node), Link()), (node.name or "").removeprefix(f"{PREFIX}/").rpartition("/")[0]

        def write(op: Emitter, one: CompositeNode) -> Sequence[Value]:
            values = stand_in(op, one, link, known, rounded=rounded, dense=dense == "kernel")
            if values is None and (link.divided or id(one.r) in known.shifts):
                raise ValueError(f"{one.node.where}: the kernel above has left it work that it cannot do")
            runs = "ONNX" if values is None else "the kernel above" if link.absorbed_by_above else _form_of(values)
            lines.append(Line(served, one.node.op_type, one.kind, runs, _operations(one)))
            return values if values is not None else composite.EXPANSIONS[one.kind](op, one)

        return write

    composite.expand(model, meaning=meaning)
    model.opset_imports[DOMAIN] = 1
    if evaluate is not None:
        fold_constants(model, evaluate)
    return Lowered(model, tuple(lines))


def stand_in(
    op: Emitter, node: CompositeNode, link: Link, known: Known, *, rounded: bool, dense: bool
) -> Sequence[Value] | None:
    """A composite's outputs by kernels, or None where its expansion runs."""
    if link.absorbed_by_above:
        return [node.r]
    if node.r.dtype != ir.DataType.FLOAT or node.node.domain != "":
        return None
    if node.node.op_type in POOLS:
        return averages.stand_in(op, node, link, known)
    layer = Layer.of(op, node, link, known, rounded=rounded, dense=dense)
    return None if layer is None else convolutions.stand_in(layer)


def _form_of(values: Sequence[Value]) -> str:
    """What the kernels behind a composite's first output do, in words."""
    value: Value | None = values[0]
    while value is not None and (maker := value.producer()) is not None:
        if maker.domain == DOMAIN:
            call = Call.of(maker)
            words = [
                " ".join(
                    str(one.form[k]) for k in ("kind", "source", "quotient", "branch", "numerator") if k in one.form
                )
                + (f" / {one.form['below']}" if one.form.get("below", "none") != "none" else "")
                for one in call.launches
            ]
            return " + ".join(words) + (" + shift below" if call.deferred else " + shift" if call.shifted else "")
        value = maker.inputs[0]
    return "kernel"


def _operations(node: CompositeNode) -> int:
    """Of all passes that the composite takes over its layer."""
    if node.kind == "Share":
        passes = sum(1 if len(s["terms"]) == 1 else 2 for s in node.rule["shares"])
    else:
        passes = {"RelativeShare": 2, "Box": 2, "Gate": 0}.get(node.kind, 1)
    return passes * layer_operations(node.node)


def calls(graph: ir.Graph) -> list[ir.Node]:
    """The kernel calls of a lowered graph."""
    return [n for n in graph if n.domain == DOMAIN]


__all__ = ["Line", "Lowered", "calls", "lower", "stand_in"]
