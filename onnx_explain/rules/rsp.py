"""Relative sectional propagation (Nam, Choi, Lee: Interpreting deep neural networks with RSP, AAAI 2021, arXiv 2012.03434).

Relevance begins at the last spatial activation, target against hostile classes, and goes down by the similarity of patches:
no hidden weight is looked at. The formulas are those of the specification (rap_rsp.md §3, minimal form §6.4). `published` is
what the authors' release executes, per sample; the general form covers inputs of any sign and loses nothing at dead patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import MethodError
from onnx_explain.ir import composite
from onnx_explain.ir.composite import CompositeNode, expansion
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value, rank
from onnx_explain.operators.roles import Linear, PerSample, Sum, reduce_like
from onnx_explain.operators.samples import FIRST, Held
from onnx_explain.rules import rows
from onnx_explain.rules.cam import axes_of, class_weights
from onnx_explain.rules.share import (
    Lost,
    Rule,
    Shares,
    Step,
    linear_of,
    per_sample,
    positive,
    role_of,
    safe_divide,
    wrong_role,
)

_TINY = 1e-30  # below it, of quotients of numbers of at most one, a patch counts as zero: what it is multiplied by is
_FAINT = 1e-18  # a maximum below it is not scaled up further
_TINY_HALF = 2.0**-14  # the same in half precision
_ABSENT = 1e-9  # the release adds it to denominators and activations, whatever their scale

# ------------------------------------------------------------------------------------------- where relevance begins


def sections(*, published: bool = False) -> Callable[[Emitter, Any], Value]:
    """§3.2: the layer's relevance of a `Turned`: R = Mᵗ, or target against hostile classes where there are any.

    M^c = A ⊙ mean(∂logit_c/∂A) over its maximum. D = K·Mᵗ - Σ Mʰ over the K hostile classes that are not the target
    itself; E sums over channels D⁺/ΣD⁺ - D⁻/ΣD⁻; every channel gets (2·E⁺/ΣE⁺ - E⁻/ΣE⁻)/C. All sums are per sample. Where the
    maximum is not positive M^c is divided by the largest magnitude (the release flips its sign).
    """

    def combine(op: Emitter, turned: Any) -> Value:
        a = turned.activation
        own = _map(op, a, turned.target, published=published)
        if not turned.hostile:
            return own
        count: Value | None = None
        against: Value | None = None
        for g, other in zip(turned.hostile, turned.others):
            part = op.Mul(_map(op, a, g, published=published), other)
            count = other if count is None else op.Add(count, other)
            against = part if against is None else op.Add(against, part)
        if count is None or against is None:
            return own
        d = op.typed(op.Sub(op.Mul(own, count), against), a)
        alone = op.Equal(count, op.constant(0.0, like=count))
        return op.typed(op.Where(alone, own, _opposed(op, a, d, published=published)), a)

    return combine


def _map(op: Emitter, a: Value, g: Value, *, published: bool) -> Value:
    """M^c, each sample's own maximum being one."""
    m = op.typed(op.Mul(a, class_weights(op, a, g)), a)
    where = op.ints(*range(1, rank(a)))
    top = op.ReduceMax(m, where, keepdims=1)
    if published:
        return op.typed(op.Div(m, op.Add(top, _ABSENT)), a)
    size = op.ReduceMax(op.Abs(m), where, keepdims=1)
    scale = op.Where(op.Greater(top, op.constant(0.0, like=top)), top, size)
    return op.typed(safe_divide(op, m, scale), a)


def _opposed(op: Emitter, a: Value, d: Value, *, published: bool) -> Value:
    """The seed of several classes, of D."""
    n, (channel, _) = rank(a), axes_of(a)
    gain, loss = op.typed(positive(op, d), a), op.typed(positive(op, op.typed(op.Neg(d), a)), a)
    p = op.typed(_unit(op, gain, n, published), a)
    if published:  # D⁻ is brought to a maximum of one first, and to what D⁺ sums to afterwards
        loss = op.typed(safe_divide(op, loss, op.ReduceMax(loss, op.ints(*range(1, n)), keepdims=1)), a)
        q = op.Mul(_unit(op, loss, n, published), _total(op, p, n))
    else:
        q = _unit(op, loss, n, published)
    e = op.ReduceSum(op.Sub(p, q), op.ints(channel), keepdims=1)
    shape = list(a.shape or ())
    e.shape = ir.Shape([1 if i == channel else size for i, size in enumerate(shape)])
    for_, against = op.typed(positive(op, e), e), op.typed(positive(op, op.typed(op.Neg(e), e)), e)
    # the release adds its 1e-9 to the sum of the negative entries, which takes it off their magnitude
    seed = op.Sub(op.Mul(_unit(op, for_, n, published), 2.0), _unit(op, against, n, published, absent=-_ABSENT))
    channels = op.Cast(op.Shape(a, start=channel, end=channel + 1), to=int(a.dtype or 1))
    return op.typed(op.Mul(op.Div(seed, channels), op.Expand(op.constant(1.0, like=a), op.shape_of(a))), a)


def _total(op: Emitter, v: Value, n: int) -> Value:
    """The sum over each entry of axis 0, of rank n."""
    return op.Reshape(per_sample(op, v), op.ints(-1, *[1] * (n - 1)))


def _unit(op: Emitter, v: Value, n: int, published: bool, *, absent: float = _ABSENT) -> Value:
    """A non-negative map over its sum."""
    total = _total(op, v, n)
    return safe_divide(op, v, op.Add(total, absent) if published else total)


# ------------------------------------------------------------------------------------------- weighted operators


def hidden(*, published: bool = False, purge: bool = False) -> Rule:
    """§3.3: D± = gradient of ⟨L_W(p), R±⟩ by W, C = p ⊙ (L_{D⁺}ᵀ(R⁺ ⊘ L_{D⁺}(p)) - L_{D⁻}ᵀ(R⁻ ⊘ L_{D⁻}(p))), per sample.

    Where a window spans several positions, C is doubled and shifted uniformly over its non-zero entries so that ΣR stays.
    p = x⁺; an input of both signs has its negative side as features of its own, unless `published`. `purge` (§3.4):
    beforehand R⁺ is kept where the channels' sum is positive and R⁻ where it is not; the rest is absorbed.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        role = step.role
        if not isinstance(role, Linear) or role.per_sample is None:
            raise wrong_role(step, "has no weight per sample")
        nonnegative, held = role.data in step.nonnegative, step.place(step.node.input(role.data))
        if role.spatial and isinstance(held, Held) and held.axis:
            raise MethodError(
                f"{step.node.where}: samples lie along axis {held.axis} of its input, where method 'rsp' compares patches of "
                "one sample; use another method, such as 'rap'."
            )
        x, places = step.node.input(role.data), rows.places(step, role)
        parameters = {"published": published, "purge": purge, "x_nonnegative": nonnegative, **places}
        like: list[Value | None] = [x]
        if step.accounting:
            shape = ir.Shape(list(step.r.shape or [None])[:1])
            like.append(ir.Value(shape=shape, type=ir.TensorType(step.r.dtype or ir.DataType.FLOAT)))
        outs = composite.emit(op, "SectionalShare", step.r, step.node, rule=parameters, like=like)
        place = FIRST if places and isinstance(held, Held) else held
        return Shares({role.data: outs[0]}, [Lost(v, place) for v in outs[1:]], frozenset({role.data}))

    return rule


@expansion("SectionalShare")
def _expand_hidden(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = linear_of(node.node)
    if role.per_sample is None:
        raise ValueError(f"{node.node.where}: has no weight per sample")
    turned = rows.turned(op, node, role)
    if turned is not None:
        share, lost = _shared(op, node, turned.form, turned.r, turned.x, rank(turned.r) - 1)
        return [turned.back(op, share, node.node.input(role.data)), lost][: node.outputs]
    return _shared(op, node, role.per_sample(), node.r, node.node.input(role.data), role.channel_axis)[: node.outputs]


def _shared(
    op: Emitter, node: CompositeNode, each: PerSample, seeded: Value, x: Value, channel_axis: int
) -> list[Value]:
    """C and what is lost per sample [N], of relevance and input that have their samples first."""
    r = _purged(op, seeded, channel_axis) if node.rule["purge"] else seeded
    c, top, alive = _similar(op, each, r, x, _features(op, node, x))
    total = _total(op, r, rank(x))
    pointwise = each.kernel[:1] == (1,) if node.rule["published"] else set(each.kernel) <= {1}
    if pointwise or not each.kernel:
        share, lost = op.Mul(c, top), op.Sub(total, alive)
    else:
        share, lost = _shifted(
            op, op.typed(op.Mul(c, op.Mul(top, 2.0)), x), total, alive, published=node.rule["published"]
        )
    gone = op.Sub(_total(op, seeded, rank(x)), total)
    return [op.typed(share, x), op.Reshape(op.Add(lost, gone), op.ints(-1))]


def _features(op: Emitter, node: CompositeNode, x: Value) -> list[Value]:
    """Non-negative parts of the input that patches are compared by."""
    if node.rule["x_nonnegative"]:
        return [x]
    above = op.typed(positive(op, x), x)
    if node.rule["published"]:
        return [above]
    return [above, op.typed(positive(op, op.typed(op.Neg(x), x)), x)]


def _purged(op: Emitter, r: Value, channel_axis: int) -> Value:
    """§3.4: entries whose sign is not that of their position's sum are dropped."""
    axis = channel_axis if rank(r) > channel_axis else rank(r) - 1
    m = op.ReduceSum(r, op.ints(axis), keepdims=1)
    for_ = op.Cast(op.Greater(m, op.constant(0.0, like=m)), to=int(r.dtype or 1))
    gain = op.typed(positive(op, r), r)
    loss = op.Sub(r, gain)
    return op.typed(op.Add(op.Mul(gain, for_), op.Mul(loss, op.Sub(1.0, for_))), r)


def _similar(op: Emitter, each: PerSample, r: Value, x: Value, parts: list[Value]) -> tuple[Value, Value, Value]:
    """C over the largest |R|; that number; and the relevance of outputs whose patch is not all zero. Both [N, 1, …].

    C does not depend on the scale of x and follows that of R: weights (or similarities) are divided by both, so that products
    neither overflow nor vanish.
    """
    by_sample = bool(each.kernel)
    rows, size = each.rows(op, r), _largest(op, x, parts[0] is x, by_sample=by_sample, n=rank(x))
    top = _largest(op, rows, False, by_sample=by_sample, n=4)
    square = op.Reshape(op.Mul(size, size), op.ints(-1, 1, 1, 1))
    scale = op.Reciprocal(op.Mul(square, top))
    both = op.Concat(op.Relu(rows), op.Relu(op.Neg(rows)), axis=2)  # R⁺ and |R⁻| one above the other
    sign = op.Concat(*(_filled(op, rows, v) for v in (1.0, -1.0)), axis=2)
    weights: list[Value] = []
    if each.gram is not None:
        scaled = op.Mul(both, scale)
        z = op.MatMul(scaled, _sum(op, [each.gram.similarity(op, p) for p in parts]))
    else:
        weights = [op.Mul(each.transpose_weight(op, both, p), scale) for p in parts]
        z = _sum(op, [each.forward(op, p, w) for p, w in zip(parts, weights)])
    least = _smallest(op, z)
    live = op.Cast(
        op.Greater(z, least), to=int(z.dtype or 1)
    )  # a dead patch gives nothing, and its quotient must not overflow
    s = op.Mul(op.Div(op.Mul(both, op.Div(sign, top)), op.Max(z, least)), live)
    if each.gram is not None:
        m = op.MatMul(op.Transpose(scaled, perm=[0, 1, 3, 2]), s)
        back = [each.gram.spread(op, p, m, x) for p in parts]
    else:
        back = [each.transpose(op, s, w, x) for w in weights]
    c = _sum(op, [op.typed(op.Mul(p, b), x) for p, b in zip(parts, back)])
    alive = op.ReduceSum(op.Mul(op.Mul(s, z), top), op.ints(1, 2, 3), keepdims=0)
    shape = op.ints(-1, *[1] * (rank(x) - 1))
    return op.typed(c, x), op.Reshape(top, shape), op.Reshape(alive, shape)


def _filled(op: Emitter, rows: Value, value: float) -> Value:
    """One number per row: [1, 1, O, 1]."""
    count = op.Concat(op.ints(1, 1), op.Shape(rows, start=2, end=3), op.ints(1), axis=0)
    return op.Expand(op.constant(np.full((1, 1, 1, 1), value), like=rows), count)


def _smallest(op: Emitter, z: Value) -> Value:
    """What quotients are divided by at least."""
    half = z.dtype == ir.DataType.FLOAT16
    return op.constant(_TINY_HALF if half else _TINY, like=z)


def _largest(op: Emitter, v: Value, nonnegative: bool, *, by_sample: bool, n: int) -> Value:
    """The largest magnitude per sample, or of all, of a value of rank n; not below what its square can be told from zero."""
    where = op.ints(*range(int(by_sample), n))
    top = op.ReduceMax(v, where, keepdims=1)
    if not nonnegative:
        top = op.Max(top, op.Neg(op.ReduceMin(v, where, keepdims=1)))
    return op.Max(top, op.constant(_FAINT if v.dtype != ir.DataType.FLOAT16 else _TINY_HALF, like=v))


def _sum(op: Emitter, parts: list[Value]) -> Value:
    return op.Sum(*parts) if len(parts) > 1 else parts[0]


def _shifted(op: Emitter, doubled: Value, total: Value, alive: Value, *, published: bool) -> tuple[Value, Value]:
    """2C less its surplus, evenly over what is not zero; and what is lost where nothing is left, or dead patches were.

    The release takes ΣR for the surplus, which is right only where no patch is dead.
    """
    where = op.ints(*range(1, rank(doubled)))
    none = op.constant(0.0, like=doubled)
    if doubled.dtype == ir.DataType.FLOAT:
        live = op.HardSigmoid(op.Abs(doubled), alpha=3.0e38, beta=0.0)
    else:
        live = op.Cast(op.Not(op.Equal(doubled, none)), to=int(doubled.dtype or 1))
    count = op.ReduceSum(live, where, keepdims=1)
    surplus = total if published else op.Sub(op.ReduceSum(doubled, where, keepdims=1), total)
    share = op.Sub(doubled, op.Mul(live, safe_divide(op, surplus, count)))
    empty = op.Cast(op.Equal(count, none), to=int(doubled.dtype or 1))
    if published:
        dead = op.Sub(total, alive)
        return share, op.Add(dead, op.Mul(dead, op.Sub(1.0, empty)))
    return share, op.Mul(empty, total)


# ------------------------------------------------------------------------------------------- the other roles


def pooled(op: Emitter, step: Step) -> Shares:
    """§3.5 average pools, as released: (x + 1e-9) ⊙ Lᵀ(R ⊘ L(x + 1e-9)), so that nothing is dropped at zero."""
    outs = composite.emit(op, "RaisedShare", step.r, step.node, like=[step.node.input(0)])
    return Shares({0: outs[0]})


@expansion("RaisedShare")
def _expand_pooled(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = linear_of(node.node)
    x = node.node.input(role.data)
    raised = op.typed(op.Add(x, _ABSENT), x)
    s = op.typed(safe_divide(op, node.r, role.forward(op, raised, None)), node.node.y)
    return [op.typed(op.Mul(raised, role.transpose(op, s, None, x)), x)]


def summed(*, published: bool = False) -> Rule:
    """§3.5 Add: operands share by max(x_k, 0), evenly where none is positive. `published`: 1e-9 is added to each."""

    def rule(op: Emitter, step: Step) -> Shares:
        if not isinstance(step.role, Sum):
            raise wrong_role(step, "is not a sum")
        order = sorted(step.node.active)
        if len(order) < len([v for v in step.node.inputs if v is not None]):
            # adding a constant moves nothing
            return Shares({k: reduce_like(op, step.r, step.node.input(k)) for k in order})
        like: list[Value | None] = [step.node.input(k) for k in order]
        outs = composite.emit(op, "RectifiedSum", step.r, step.node, rule={"published": published}, like=like)
        return Shares(dict(zip(order, outs)))

    return rule


@expansion("RectifiedSum")
def _expand_summed(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = role_of(node.node)
    if not isinstance(role, Sum):
        raise ValueError(f"{node.node.where}: is not a sum")
    order, y = sorted(node.node.active), node.node.y
    parts = []
    for k in order:
        x = node.node.input(k)
        c = role.coefficients[k]
        part = op.Relu(x if c == 1.0 else op.Mul(x, c))
        parts.append(op.Add(part, _ABSENT) if node.rule["published"] else part)
    total = parts[0]
    for part in parts[1:]:
        total = op.Add(total, part)
    none = op.Equal(total, op.constant(0.0, like=total))
    safe = op.Where(none, op.constant(1.0, like=total), total)
    even = op.constant(1.0 / len(order), like=total)
    shares = []
    for k, part in zip(order, parts):
        quota = op.Div(part, safe) if node.rule["published"] else op.Where(none, even, op.Div(part, safe))
        shares.append(reduce_like(op, op.typed(op.Mul(quota, node.r), y), node.node.input(k)))
    return shares
