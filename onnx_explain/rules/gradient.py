"""The gradient family: the exact adjoint of every role, and the treatments of non-linearities.

Gradient (Simonyan et al. 2014): R_x = Jᵀ R_y. DeconvNet (Zeiler & Fergus 2014): at a Relu [R]₊ without the forward mask.
Guided backprop (Springenberg et al. 2015): 1[x > 0]·[R]₊. Guided non-linearity (Kwon, Koo, Cho 2020; methods.md §2): at
every elementwise f [f'(x)·R]₊, and a rectified signal through every selection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import MethodError
from onnx_explain.ir import composite
from onnx_explain.ir.composite import CompositeNode, expansion
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value, dims, rank
from onnx_explain.operators.elementwise import activation
from onnx_explain.operators.roles import (
    Linear,
    Normalization,
    Pointwise,
    Product,
    Rearrangement,
    Selection,
    Sum,
    reduce_like,
)
from onnx_explain.rules.share import Rule, Shares, Step, linear_of, role_of, wrong_role

Guide = Literal["gradient", "deconvnet", "guided", "positive", "positive-factors"]
Pooling = Literal["path", "input", "authors"]
Negative = Literal["clip", "both"]


def adjoint(op: Emitter, step: Step) -> Shares:
    """Jᵀ R for every role but Pointwise."""
    role, node = step.role, step.node
    if isinstance(role, Linear):
        return Shares({role.data: transposed(op, step, role, step.r)})
    if isinstance(role, Sum):
        return _sum(op, step, role)
    if isinstance(role, Product):
        return Shares({k: role.vjp(op, step.r, k) for k in sorted(node.active)})
    if isinstance(role, Selection):
        return route(op, step)
    if isinstance(role, Rearrangement):
        return undo(op, step)
    if isinstance(role, Normalization):
        return Shares({0: role.vjp(op, step.r)})
    if isinstance(role, Pointwise):
        return gate("gradient")(op, step)
    raise MethodError(f"{node.where}: no gradient flows through it.")


def transposed(op: Emitter, step: Step, role: Linear, s: Value) -> Value:
    """Lᵀ s, as a composite for kernels to stand in."""
    return composite.emit(op, "Transpose", s, step.node, like=[step.node.input(role.data)])[0]


@expansion("Transpose")
def _expand_transpose(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = linear_of(node.node)
    w = node.node.input(role.weight) if role.weight is not None else None
    return [role.transpose(op, node.r, w, node.node.input(role.data))]


def _sum(op: Emitter, step: Step, role: Sum) -> Shares:
    shares: dict[int, Value] = {}
    for k in sorted(step.node.active):
        c = role.coefficients[k]
        r = step.r if c == 1.0 else op.typed(op.Neg(step.r) if c == -1.0 else op.Mul(step.r, c), step.node.y)
        shares[k] = reduce_like(op, r, step.node.input(k))
    return Shares(shares)


def route(op: Emitter, step: Step) -> Shares:
    """Winner takes all. Where R is zero at zero outputs it is zero at zero winners too."""
    node = step.node
    if len(node.active) == 1 and node.active == {0}:
        return Shares(
            {0: composite.emit(op, "Route", step.r, node, like=[node.x])[0]},
            sparse=frozenset({0} if step.sparse else ()),
        )
    order = sorted(node.active)
    outs = composite.emit(op, "Route", step.r, node, like=[node.input(k) for k in order])
    return Shares(dict(zip(order, outs)), sparse=frozenset(order if step.sparse else ()))


@expansion("Route")
def _expand_route(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = role_of(node.node)
    if not isinstance(role, Selection):
        raise ValueError(f"{node.node.where}: does not select")
    shares = role.route(op, node.r)
    return [shares[k] for k in sorted(node.node.active)]


def undo(op: Emitter, step: Step) -> Shares:
    """Entries go back where they came from."""
    role = step.role
    if not isinstance(role, Rearrangement):
        raise wrong_role(step, "does not rearrange")
    shares = role.undo(op, step.rs)
    return Shares(shares, sparse=frozenset(shares if step.sparse else ()))


def gate(guide: Guide, operators: frozenset[str] = frozenset()) -> Rule:
    """Pointwise operators: the derivative, with `guide` applied at Relus, Relus clipped above, and `operators`."""

    def rule(op: Emitter, step: Step) -> Shares:
        role = step.role
        if not isinstance(role, Pointwise):
            raise wrong_role(step, "is not pointwise")
        mode = guide if role.guided or step.node.op_type in operators else "gradient"
        parameters = {"guide": mode}
        like = [step.node.input(role.data)]
        return Shares({role.data: composite.emit(op, "Gate", step.r, step.node, rule=parameters, like=like)[0]})

    return rule


@expansion("Gate")
def _expand_gate(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = role_of(node.node)
    if not isinstance(role, Pointwise):
        raise ValueError(f"{node.node.where}: is not pointwise")
    x = node.node.input(role.data)
    guide = node.rule["guide"]
    r = node.r if guide in ("gradient", "positive", "positive-factors") else op.Relu(node.r)
    if guide == "deconvnet":
        return [op.typed(r, x)]
    if role.rectifier and node.node.y.dtype == ir.DataType.FLOAT:
        # 1[y > 0] in one pass that stays in the runtime's blocked layout: max(0, min(1, 3e38·y))
        mask = op.HardSigmoid(node.node.y, alpha=3.0e38, beta=0.0)
        return [op.typed(op.Mul(r if guide in ("gradient", "guided") else op.Relu(r), mask), x)]
    slope = role.derivative(op)
    product = _both(op, r, slope) if guide == "positive-factors" else op.Mul(r, slope)
    whole = op.typed(op.Relu(product) if guide == "positive" else product, node.node.y)
    return [reduce_like(op, whole, x)]


# --------------------------------------------------------------------------------------- guided non-linearities


def guided_pointwise(negative: Negative = "clip") -> Rule:
    """Elementwise f: ``clip`` [f'(x)·R]₊, ``both`` [f'(x)]₊·[R]₊; they differ where f falls (Gelu, Swish, Cos, …)."""
    guide: Guide = "positive" if negative == "clip" else "positive-factors"

    def rule(op: Emitter, step: Step) -> Shares:
        role = step.role
        if not isinstance(role, Pointwise):
            raise wrong_role(step, "is not pointwise")
        like = [step.node.input(role.data)]
        return Shares({role.data: composite.emit(op, "Gate", step.r, step.node, rule={"guide": guide}, like=like)[0]})

    return rule


def guided_selection(variant: Pooling = "path") -> Rule:
    """Maxima: ``path`` routes [R]₊; ``input`` takes [·]₊ of what came to each entry; ``authors`` masks what came by the
    nearest entry of 1[R > 0] where windows slide (MaxPool), as the published code does, and is ``path`` elsewhere.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        if not isinstance(step.role, Selection):
            raise wrong_role(step, "does not select")
        if variant == "input":
            return _each(route(op, step), lambda k, r: op.typed(op.Relu(r), step.node.input(k)))
        if variant == "authors" and "kernel_shape" in step.node.attributes:
            return _each(route(op, step), lambda k, r: op.typed(op.Mul(r, _nearest_mask(op, step)), step.node.input(k)))
        rectified = tuple(None if r is None else op.typed(op.Relu(r), y) for r, y in zip(step.rs, step.node.outputs))
        return route(op, replace(step, rs=rectified))

    return rule


def guided_adjoint(op: Emitter, step: Step) -> Shares:
    """[Jᵀ R]₊ per operand, of products and normalisations."""
    return _each(adjoint(op, step), lambda k, r: op.typed(op.Relu(r), step.node.input(k)))


def guided_product(negative: Negative = "clip", *, every: bool = False) -> Rule:
    """Products of two factors: rectified as elementwise functions where they are one of a single tensor (x·Sigmoid(x), the
    Erf chain of a Gelu), else the adjoint; ``every`` rectifies that, too.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        found = activation(op, step.node) if getattr(step.role, "elementwise", False) else None
        if found is None:
            return guided_adjoint(op, step) if every else adjoint(op, step)
        x = step.node.input(found.operand)
        r = op.Relu(op.Mul(step.r, found.slope)) if negative == "clip" else _both(op, step.r, found.slope)
        return Shares({found.operand: op.typed(r if found.factor is None else op.Div(r, found.factor), x)})

    return rule


def _both(op: Emitter, r: Value, slope: Value) -> Value:
    """[f']₊·[R]₊."""
    return op.Mul(op.Relu(r), op.Relu(slope))


def _each(shares: Shares, change: Callable[[int, Value], Value]) -> Shares:
    return replace(shares, inputs={k: change(k, r) for k, r in shares.inputs.items()})


def _nearest_mask(op: Emitter, step: Step) -> Value:
    """1[R > 0] of [N, C, *out] at ⌊i·out/size⌋ of every spatial axis: [N, C, *size]."""
    mask = op.Cast(op.Greater(step.r, op.constant(0.0, like=step.r)), to=int(step.r.dtype or 1))
    for axis in range(2, rank(step.node.x)):
        size, out = dims(step.node.x)[axis] or 0, dims(step.node.y)[axis] or 0
        mask = op.Gather(mask, op.constant(np.arange(size) * out // max(size, 1), dtype=np.int64), axis=axis)
    return op.typed(mask, step.node.x)
