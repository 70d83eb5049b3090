"""Rules for transformers: Softmax with masked logits, and products in which one factor only weighs the other.

AttnLRP: Achtibat et al., ICML 2024 (proposition 3.1 Softmax, 3.3 products; 3.4 normalisations stay with `lrp.normalization`).
CP-LRP: Ali et al., ICML 2022: attention probabilities and gates are constants (methods.md §6).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims
from onnx_explain.operators import find
from onnx_explain.operators.normalize import probabilities
from onnx_explain.operators.roles import (
    Linear,
    Normalization,
    Pointwise,
    Product,
    Rearrangement,
    Role,
    Sum,
    reduce_like,
)
from onnx_explain.rules import lrp
from onnx_explain.rules.share import Rule, Shares, Step, quotient, unmasked, wrong_role

_STEPS = 32  # values looked at between a factor and what made it


def softmax(op: Emitter, step: Step) -> Shares:
    """R_u = u ⊙ (R_s - s·ΣR_s) along the axis, for logits u and probabilities s; 0 where u is masked.

    The first-order Taylor expansion at u. Its bias keeps the rest, which is reported as absorbed.
    """
    role, node = step.role, step.node
    if not isinstance(role, Normalization) or not role.softmax:
        raise wrong_role(step, "is no Softmax")
    x = node.x
    total = op.ReduceSum(step.r, op.ints(node.integer("axis", -1)), keepdims=1)
    inner = op.typed(op.Sub(step.r, op.Mul(probabilities(op, node), total)), x)
    share = op.typed(op.Mul(unmasked(op, x), inner), x)
    return Shares({0: share}, step.lost([op.typed(op.Sub(step.r, share), x)]) if step.accounting else [])


def product(mode: Literal["uniform", "weighed"] = "uniform", epsilon: float = 1e-8, *, signed: bool = True) -> Rule:
    """Products of active tensors.

    ``uniform`` (AttnLRP): each factor an equal part; of a matrix product z = A·B, R_A = A ⊙ (R/D(2z, ε))Bᵀ and likewise R_B.
    ``weighed`` (CP-LRP): a factor that weighs (attention probabilities, a gate) is a constant and the other receives all:
    R_V = V ⊙ Aᵀ(R/D(z, ε)); where none is known to weigh, as ``uniform``. `signed`: ε takes z's sign.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        role, node = step.role, step.node
        if not isinstance(role, Product):
            raise wrong_role(step, "is not a product")
        bearers = role.bearers(node.active)
        if mode == "weighed":
            bearers = _weighed(node, bearers, elementwise=role.elementwise)
        if not bearers:
            return Shares({}, step.lost([step.r]))
        if role.elementwise:
            part = step.r if len(bearers) == 1 else op.typed(op.Mul(step.r, 1.0 / len(bearers)), node.y)
            return Shares({k: reduce_like(op, part, node.input(k)) for k in bearers})
        z = role.shared(op, node.y, len(bearers))
        s = op.typed(quotient(op, step.r, z, epsilon, nonnegative=not signed), node.y)
        shares = {k: op.typed(op.Mul(node.input(k), role.vjp(op, s, k)), node.input(k)) for k in bearers}
        lost = [op.typed(op.Sub(step.r, op.Mul(s, z)), node.y)] if step.accounting else []
        return Shares(shares, step.lost(lost), frozenset(bearers))

    return rule


def mean(epsilon: float = 1e-6) -> Rule:
    """Means over n entries: R_x = x·R/D(Σx, ε); ε stabilises the sum, not the mean."""

    def rule(op: Emitter, step: Step) -> Shares:
        x, y = dims(step.node.x), dims(step.node.y)
        many, few = (math.prod(d for d in sizes if d is not None) for sizes in (x, y))
        known = x.count(None) == y.count(None) and few > 0
        return lrp.norm(epsilon * few / max(many, 1) if known else epsilon)(op, step)

    return rule


def unsigned(rule: Rule) -> Rule:
    """The rule with D(z, ε) = z + ε for z of any sign, as LXT has it; it explodes where z is near -ε."""
    return lambda op, step: rule(op, replace(step, rectified=True))


def _weighed(node: Operation, factors: list[int], *, elementwise: bool) -> list[int]:
    """The factors that are explained: all but the one that weighs most."""
    weights = [_weight(node, k, elementwise=elementwise) for k in factors]
    kept = [k for k, w in zip(factors, weights) if w < max(weights)]
    return kept or factors


def _weight(node: Operation, k: int, *, elementwise: bool) -> int:
    """How plainly a factor weighs the others: 3 probabilities, 2 repeated over the others' axes, 1 an activation, 0 not."""
    maker = _maker(node.input(k))
    if maker is not None and maker.head:
        return 3
    if not elementwise:
        return 0
    if _repeated(node.input(k), node.y):
        return 2
    return 1 if maker is not None and maker.pointwise else 0


@dataclass(frozen=True)
class _Made:
    """What made a factor: an operator that turns scores into probabilities, or another activation."""

    head: bool
    pointwise: bool


def _maker(value: Value) -> _Made | None:
    """The operator behind a factor, through moved entries, constant scales and shifts; None where it is none that weighs."""
    waiting = [value]
    for _ in range(_STEPS):
        if not waiting:
            break
        producer = waiting.pop().producer()
        if producer is None:
            continue
        varying = frozenset(i for i, v in enumerate(producer.inputs) if v is not None and not _fixed(v))
        node = Operation.of(producer, varying)
        found = find(node)
        role = found.role(node) if found is not None and varying else None
        if found is not None and found.head:
            return _Made(head=True, pointwise=isinstance(role, Pointwise))
        if isinstance(role, Pointwise):
            return _Made(head=False, pointwise=True)
        waiting.extend(_through(node, role))
    return None


def _through(node: Operation, role: Role | None) -> Iterator[Value]:
    """The operands behind an operator that only moves, scales or shifts (a GRU's 1 - z)."""
    shifts = isinstance(role, Sum) and len(node.active) == 1
    if isinstance(role, Rearrangement) or shifts or (isinstance(role, Linear) and role.kind == "scale"):
        for k in sorted(node.active):
            value = node.input(k)
            if value.dtype is not None and value.dtype.is_floating_point():
                yield value


def _fixed(value: Value) -> bool:
    return value.const_value is not None or value.is_initializer()


def _repeated(value: Value, y: Value) -> bool:
    """Whether a factor is broadcast over axes of the product."""
    small, large = dims(value), dims(y)
    size = math.prod(d for d in small if d is not None)
    return len(small) < len(large) or size < math.prod(d for d in large if d is not None)
