"""One walk back along a chain of nodes: what relevance has come to each value, and one step of a rule at a time.

Relevance is added up per tensor, and has that tensor's shape and dtype throughout. Which rule a node gets is the
composite's affair, what an operator is its room's; nothing here looks at an operator's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from onnx_explain.errors import VerificationError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.halves import widened
from onnx_explain.ir.view import Value, dims, rank, shape_text
from onnx_explain.methods import Assignment, Composite
from onnx_explain.operators.roles import Pointwise, zeros_like
from onnx_explain.operators.samples import FIRST, Held, Nowhere, Place
from onnx_explain.relevance import growth
from onnx_explain.relevance.apart import Samples
from onnx_explain.relevance.chain import Link
from onnx_explain.relevance.graph import Row
from onnx_explain.relevance.growth import Growth
from onnx_explain.rules import gradient
from onnx_explain.rules.share import Lost, Shares, Step, per_sample, safe_divide


@dataclass(frozen=True)
class Part:
    """One contribution to a tensor's relevance; `zero_with`: it is zero wherever that value is. `gradient`: it is the
    score's derivative still (above the first propagation). `grown`: what r is scaled by.
    """

    r: Value
    zero_with: Value | None = None
    gradient: bool = False
    grown: Growth = growth.NONE


@dataclass(frozen=True)
class Setting:
    """What a walk is told besides its nodes.

    `source`: the first explained input; `count`: how many samples, as far as known; `samples`: where values have them, and
    whether the explained tensor keeps them apart, or all are explained as one. `live`: {id}
    of the values that relevance is meant to reach; what goes elsewhere is counted as absorbed. `score`: the explained
    value, where relevance starts at one. `reference`: a value's twin on the baseline.
    """

    source: Value
    count: int | str
    samples: Samples
    nonnegative: set[int]
    live: set[int]
    accounting: bool = False
    score: Value | None = None
    reference: Callable[[Value], Value] | None = None


def assignment(composite: Composite, link: Link) -> Assignment:
    """The composite's row for a link."""
    return composite.rule(link.operation, link.role, first=link.first, last=link.last)


class Walk:
    """The state of one walk."""

    def __init__(self, op: Emitter, composite: Composite, links: Sequence[Link], setting: Setting) -> None:
        self.op, self.composite, self.links, self.setting = op, composite, links, setting
        self.parts: dict[int, list[Part]] = {}
        self.absorbed: list[Lost] = []
        self.begun: list[Lost] = []  # relevance where it begins below a head
        self.rows: list[Row] = []

    def start(self, value: Value, r: Value, *, gradient: bool = False) -> None:
        """Relevance `r` enters at `value`."""
        self.parts.setdefault(id(value), []).append(Part(r, None, gradient))

    def run(self) -> None:
        """Down to where the chain begins."""
        for link in reversed(self.links):
            self._step(link)

    def finished(self, value: Value, *, counts: bool = True) -> Value:
        """All relevance that came to a value; zeros where none did. `counts`: the walk ends there, and what begins there."""
        with self.op.serving(f"{value.name}"):
            total = self._total(value, gradient_here=False, counts=counts)
            if total is None:
                return zeros_like(self.op, value)
            return growth.restored(self.op, total.r, total.grown, self._own(value))

    def _own(self, value: Value) -> Place:
        """Where a value has what is explained as one sample."""
        if not self.setting.samples.apart:
            return Nowhere.ONE
        place = self.setting.samples.place(value)
        return place if isinstance(place, Held) else FIRST

    def per_sample(self, value: Value, place: Place) -> Value:
        """The sum over each sample: [N]; of all, [1], where they are not kept apart. `place`: where the value has them."""
        op, source = self.op, self.setting.source
        n = rank(value)
        if not self.setting.samples.apart:
            return op.Reshape(op.ReduceSum(value, keepdims=0), op.ints(1))
        if n == 0:
            return op.Reshape(value, op.ints(1))
        if place is Nowhere.ONE or (isinstance(place, Held) and place.axis < n):
            return per_sample(op, value, place)
        count = dims(source)[0] if rank(source) else 1
        sizes = dims(value) if value.shape is not None else [None]
        if count and None not in sizes and prod(d or 0 for d in sizes) % count:
            # no such tensor is made sample by sample: what it holds is all samples' together
            total = op.ReduceSum(value, op.ints(*range(n)), keepdims=0)
            return op.Expand(op.Mul(op.typed_rank(total, 0), 1 / count), op.ints(count))
        size = op.ints(count) if count is not None else op.Shape(source, start=0, end=1)
        flat = op.Reshape(value, op.Concat(size, op.ints(-1), axis=0))
        return op.ReduceSum(flat, op.ints(1), keepdims=0)

    def lost(self, score: Value) -> Value:
        """All that was absorbed, per sample: [N]."""
        with self.op.serving("absorbed"):
            score = widened(self.op, score)
            if not self.absorbed:
                return self.op.typed(self.op.Mul(score, 0.0), score)
            return self._added(self.absorbed, score)

    def seeded(self, score: Value) -> Value:
        """What first propagation handed on as relevance, per sample [N]: the score below a linear head, Σ z·∂score/∂z else."""
        with self.op.serving("seeded"):
            total = self._added(self.begun, score)
            return total if self.setting.score is None else safe_divide(self.op, total, self.setting.score)

    def _added(self, parts: Sequence[Lost], like: Value) -> Value:
        sums = [self._in_type(self.per_sample(part.value, part.place), like) for part in parts]
        total = sums[0]
        for one in sums[1:]:
            total = self.op.Add(total, one)
        return total

    def _in_type(self, value: Value, like: Value) -> Value:
        """In the score's dtype: a file may compute a part of itself in another."""
        return value if value.dtype == like.dtype else self.op.Cast(value, to=int(like.dtype or 1))

    # -- one step back

    def _step(self, link: Link) -> None:
        op, operation = self.op, link.operation
        if not any(self.parts.get(id(v)) for v in operation.outputs):
            return
        with op.serving(operation.name, node=operation.name, operator=operation.op_type):
            gradient_here = self.composite.first_propagation and (link.head or link.last)
            rs = self._together([self._total(v, gradient_here) for v in operation.outputs])
            if gradient_here and not link.head and self.setting.accounting:
                self.begun += [
                    Lost(self.op.typed(self.op.Mul(v, p.r), v), self.setting.samples.place(v))
                    for v, p in zip(operation.outputs, rs)
                    if p is not None
                ]
            label, step, shares = self._shares(link, rs, gradient_here)
        role = type(link.role).__name__
        shapes = ", ".join(shape_text(operation.input(i)) for i in sorted(operation.active))
        for taken in reversed(link.fused):
            told = f"folded into {operation.name}"
            self.rows.append(Row(taken.name, taken.op_type, "-", told, shape_text(taken.x), shape_text(taken.y)))
        self.rows.append(Row(operation.name, operation.op_type, role, label, shapes, shape_text(operation.y)))
        self.absorbed.extend(shares.absorbed)
        grown = next(p.grown for p in rs if p is not None).by(shares.growth)
        for k, r in shares.inputs.items():
            self._receive(link, step, k, r, shares, grown)

    def _shares(self, link: Link, rs: tuple[Part | None, ...], gradient_here: bool) -> tuple[str, Step, Shares]:
        operation, setting = link.operation, self.setting
        main = rs[0]
        proxy = main.zero_with if main is not None and main.zero_with is not None else operation.y
        step = Step(
            operation,
            link.role,
            tuple(p.r if p is not None else None for p in rs),
            proxy,
            sparse=main is not None and all(p is None or p.zero_with is not None for p in rs),
            rectified=id(proxy) in setting.nonnegative,
            nonnegative=frozenset(i for i in operation.active if id(operation.inputs[i]) in setting.nonnegative),
            accounting=setting.accounting and not gradient_here and not self._multipliers,
            bias=link.bias,
            score=setting.score,
            reference=setting.reference,
            place=setting.samples.place,
        )
        if link.head:
            return "gradient", step, gradient.adjoint(self.op, step)
        row = assignment(self.composite, link)
        shares = row.rule(self.op, step)
        if step.accounting and getattr(step.role, "leaks", False) and not shares.absorbed:
            shares = replace(shares, absorbed=self._dropped(step, shares))
        return row.label, step, shares

    def _dropped(self, step: Step, shares: Shares) -> list[Lost]:
        """What a rearrangement or selection leaves to constants or in a border: the difference says it."""
        left = [self.per_sample(r, step.place(y)) for r, y in zip(step.rs, step.node.outputs) if r is not None]
        own = [(r, step.node.input(k)) for k, r in shares.inputs.items()]
        left += [self.op.Neg(self.per_sample(r, step.place(x))) for r, x in own]
        for value in left:
            value.shape = ir.Shape([self.setting.count])
        return [Lost(v) for v in left]

    def _receive(self, link: Link, step: Step, k: int, r: Value, shares: Shares, grown: Growth) -> None:
        x = step.node.input(k)
        if r.dtype != x.dtype or (r.shape is not None and x.shape is not None and len(r.shape) != len(x.shape)):
            raise VerificationError(
                f"{step.node.where}: relevance of {x.name!r} came back as {r.dtype} {shape_text(r)}, not {x.dtype} {shape_text(x)}."
            )
        if r.shape is None:
            self.op.typed(r, x)
        if id(x) not in self.setting.live:
            self._leave(x, r, step.accounting)
            return
        zero_with: Value | None = None
        if k in shares.sparse:
            rectifies = isinstance(link.role, Pointwise)
            if not rectifies:
                zero_with = x
            elif link.role.rectifier and r is step.r:  # type: ignore[union-attr]
                zero_with = step.proxy
        self.parts.setdefault(id(x), []).append(Part(r, zero_with, link.head, grown))

    @property
    def _multipliers(self) -> bool:
        """Whether what flows is relevance per unit of difference from the baseline."""
        return self.composite.result == "times-difference"

    def _leave(self, x: Value, r: Value, accounting: bool) -> None:
        """Count what goes past the tensor that is explained."""
        reference = self.setting.reference
        if self._multipliers and self.setting.accounting and reference is not None:
            r = self.op.typed(self.op.Mul(r, self.op.Sub(x, reference(x))), x)
            self.absorbed.append(Lost(r, self.setting.samples.place(x)))
        elif accounting:
            self.absorbed.append(Lost(r, self.setting.samples.place(x)))

    def _total(self, value: Value, gradient_here: bool, *, counts: bool = True) -> Part | None:
        """The sum of what came to a value; a derivative becomes relevance (times the value) where the head ends."""
        parts = self.parts.get(id(value))
        if not parts:
            return None
        if not gradient_here:
            parts = [self._as_relevance(value, p, counts) for p in parts]
        (r, *others), grown = growth.aligned(self.op, [p.r for p in parts], [p.grown for p in parts])
        for other in others:
            r = self.op.typed(self.op.Add(r, other), value)
        r, grown = growth.reduced(self.op, r, grown)
        same = {id(p.zero_with) for p in parts}
        zero_with = parts[0].zero_with if len(same) == 1 else None
        self.parts[id(value)] = [Part(r, zero_with, parts[0].gradient, grown)]
        return self.parts[id(value)][0]

    def _together(self, parts: Sequence[Part | None]) -> tuple[Part | None, ...]:
        """The relevance of a node's outputs, scaled alike."""
        given = [p for p in parts if p is not None]
        if len(given) < 2:
            return tuple(parts)
        rs, grown = growth.aligned(self.op, [p.r for p in given], [p.grown for p in given])
        scaled = iter([replace(p, r=r, grown=grown) for p, r in zip(given, rs)])
        return tuple(None if p is None else next(scaled) for p in parts)

    def _as_relevance(self, value: Value, part: Part, counts: bool) -> Part:
        if not part.gradient or not self.composite.first_propagation:
            return part
        r = self.op.typed(self.op.Mul(value, part.r), value)
        if counts and self.setting.accounting:
            self.begun.append(Lost(r, self.setting.samples.place(value)))
        return Part(r, value, grown=part.grown)
