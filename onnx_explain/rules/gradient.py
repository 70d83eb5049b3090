"""The gradient family: the exact adjoint of every role, and the three treatments of non-linearities.

Gradient (Simonyan et al. 2014): R_x = Jᵀ R_y. DeconvNet (Zeiler & Fergus 2014): at a Relu [R]₊ without the forward mask.
Guided backprop (Springenberg et al. 2015): 1[x > 0]·[R]₊.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import onnx_ir as ir

from onnx_explain.errors import MethodError
from onnx_explain.ir import composite
from onnx_explain.ir.composite import CompositeNode, expansion
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value
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

Guide = Literal["gradient", "deconvnet", "guided"]


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
    r = node.r if guide == "gradient" else op.Relu(node.r)
    if guide == "deconvnet":
        return [op.typed(r, x)]
    if role.rectifier and node.node.y.dtype == ir.DataType.FLOAT:
        # 1[y > 0] in one pass that stays in the runtime's blocked layout: max(0, min(1, 3e38·y))
        mask = op.HardSigmoid(node.node.y, alpha=3.0e38, beta=0.0)
        return [op.typed(op.Mul(r, mask), x)]
    product = op.Mul(r, role.derivative(op))
    return [reduce_like(op, op.typed(product, node.node.y), x)]
