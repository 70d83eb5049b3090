"""Relative attributing propagation (Nam et al., AAAI 2020, arXiv 1904.00605): positive and negative relevance, one shift.

The formulas and their numbers are those of the specification (rap_rsp.md §2, minimal forms §6). `published` is what the
authors' release executes; the general form covers inputs of any sign with one shift and drops nothing at zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnx_explain.ir import composite
from onnx_explain.ir.composite import CompositeNode, expansion
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.roles import Linear, Rearrangement, Selection, Sum, reduce_like
from onnx_explain.operators.samples import FIRST, Held, Nowhere, Place, contracted, moves
from onnx_explain.rules import gradient
from onnx_explain.rules.lrp import Bounds, spread_bound, version_of
from onnx_explain.rules.share import (
    Lost,
    Reduction,
    Rule,
    Shares,
    Step,
    along,
    joinable,
    linear_of,
    negative,
    over_each,
    per_sample,
    place_of,
    positive,
    role_of,
    safe_divide,
    sizes,
    told,
    transposed_apart,
    wrong_role,
)

_TINY = 1e-20  # keeps quotients finite where the denominator is zero: what they are multiplied by is zero there


def _weighted(step: Step) -> Linear:
    if not isinstance(step.role, Linear) or step.role.weight is None:
        raise wrong_role(step, "has no weight")
    return step.role


def hidden(*, joint: bool = True) -> Rule:
    """§2.2–2.4: C = x ⊙ (L_{W⁺}ᵀ Sa + L_{|W⁻|}ᵀ Sb), then one uniform shift over the non-zero entries.

    Convolutions send negative relevance through Z⁻ only; Gemm and MatMul treat both signs alike. `joint`: the rule for
    inputs of any sign; otherwise the released F(x⁺) + F(|x⁻|), whose sum doubles where both signs occur.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        role = _weighted(step)
        x = step.node.input(role.data)
        parameters = {
            "joint": joint,
            "split": role.spatial,
            "x_nonnegative": role.data in step.nonnegative,
            **told(x=step.place(x), y=step.place(step.node.y)),
        }
        like: list[Value | None] = [x]
        if step.accounting:
            like.append(_each_like(step, x))
        outs = composite.emit(
            op, "RelativeShare", step.r, step.node, extra=[step.bias, step.proxy], rule=parameters, like=like
        )
        return Shares({role.data: outs[0]}, _lost_of_each(step, x, outs[1:]), frozenset({role.data}))

    return rule


def _each_like(step: Step, x: Value) -> Value:
    """The type of one number per sample, or per entry of axis 0 where no axis holds the samples."""
    place, shape = step.place(x), x.shape or ir.Shape([None])
    size = (
        shape[place.axis] if isinstance(place, Held) and place.alone else None if isinstance(place, Held) else shape[0]
    )
    return ir.Value(
        shape=ir.Shape([1 if place is Nowhere.ONE else size]), type=ir.TensorType(step.r.dtype or ir.DataType.FLOAT)
    )


def _lost_of_each(step: Step, x: Value, outs: Sequence[Value]) -> list[Lost]:
    place = step.place(x)
    return [Lost(v, FIRST if isinstance(place, Held) else place) for v in outs]


@dataclass(frozen=True)
class _Sums:
    """Sums that go back onto the input: over each sample, or over each `row` that a dense operator takes by itself."""

    op: Emitter
    node: CompositeNode
    role: Linear
    rows: bool

    @property
    def x(self) -> Value:
        return self.node.node.input(self.role.data)

    def place(self, name: str) -> Place:
        """Where an operand has its samples; of a convolution's that are lost sight of, each entry of axis 0 is one."""
        found = place_of(self.node.rule, name)
        return found if isinstance(found, Held) or found is Nowhere.ONE else FIRST

    def of_x(self, value: Value) -> Value:
        """Of a tensor of x's shape; broadcasts over it."""
        value = self.op.typed_rank(value, rank(self.x))
        if self.rows:
            axes = contracted(self.node.node, self.role.data)
            return self.op.ReduceSum(value, self.op.ints(*axes), keepdims=1) if axes else value
        return over_each(self.op, value, self.place("x"))

    def of_y(self, value: Value) -> Value:
        """Of a tensor of y's shape; broadcasts over x."""
        value = self.op.typed_rank(value, rank(self.node.node.y))
        if self.rows:
            return _rows_of_result(self.op, self.node.node, self.role.data, value)
        return self._along(per_sample(self.op, value, self.place("y")))

    def along(self, each: Value) -> Value | None:
        """One number per sample over x; None where it is not known whose is whose."""
        place = place_of(self.node.rule, "x")
        if each.shape is not None and dims(each) == [1]:
            place = Nowhere.ONE  # all samples are explained as one
        return None if place in (Nowhere.MIXED, Nowhere.UNKNOWN) else along(self.op, each, self.x, place)

    def _along(self, each: Value) -> Value:
        return along(self.op, each, self.x, self.place("x"))

    def each(self, value: Value) -> Value:
        """One number per sample of what stands once per sample or row: [N]."""
        place = self.place("x")
        found = per_sample(self.op, self.op.typed_rank(value, rank(self.x)), place)
        repeated = place.outer * place.inner if isinstance(place, Held) and not self.rows else 1
        return found if repeated == 1 else self.op.Mul(found, 1 / repeated)


def _rows_of_result(op: Emitter, node: Operation, data: int, r: Value) -> Value:
    """The sum of each row of a dense operator's result, laid where the operand has that row."""
    there, x, y = moves(node, data), node.input(data), node.y
    kept = [a for a in there if a is not None]
    wide = [i for i, a in enumerate(there) if a is not None and dims(x)[i] == 1 and dims(y)[a] != 1]
    gone = [a for a in range(rank(y)) if a not in kept]
    in_place = all(a in (i, None) for i, a in enumerate(there)) and gone == [
        i for i, a in enumerate(there) if a is None
    ]
    if in_place:
        return op.ReduceSum(r, op.ints(*gone, *wide), keepdims=1) if gone or wide else r
    rows = op.ReduceSum(r, op.ints(*gone), keepdims=0) if gone else r
    order = [sorted(kept).index(a) for a in kept]
    rows = rows if order == sorted(order) else op.Transpose(rows, perm=order)
    joined = [i for i, a in enumerate(there) if a is None]
    rows = op.Unsqueeze(rows, op.ints(*joined)) if joined else rows
    return op.ReduceSum(rows, op.ints(*wide), keepdims=1) if wide else rows


@expansion("RelativeShare")
def _expand_hidden(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = linear_of(node.node)
    x = node.node.input(role.data)
    if node.rule["x_nonnegative"]:
        shares, lost = _nonnegative(op, node, role) if node.rule["joint"] else _released(op, node, role, x)
    elif node.rule["joint"]:
        shares, lost = _joint(op, node, role)
    else:
        shares, lost = _released(op, node, role, positive(op, x))
        other, more = _released(op, node, role, positive(op, op.Neg(x)))
        shares, lost = op.Add(shares, other), op.Add(lost, more)
        # both halves are shifted to the full sum: what was doubled is the release's own, and is reported as such
        sums = _sums(op, node, role)
        lost = op.Sub(lost, sums.each(sums.of_y(node.r)))
    result = [op.typed(shares, x)]
    if node.outputs > 1:
        result.append(lost)
    return result


def _sums(op: Emitter, node: CompositeNode, role: Linear) -> _Sums:
    """A convolution's shift is each sample's, a dense operator's each row's."""
    return _Sums(op, node, role, rows=not node.rule["split"])


def unbiased(op: Emitter, node: CompositeNode) -> Value:
    """U = y - b wherever R is not zero."""
    bias, z = node.extra[0], node.extra[1]
    if z is None:
        raise ValueError(f"{node.node.where}: has lost its pre-activation")
    return z if bias is None else op.Sub(z, bias)


def _nonnegative(op: Emitter, node: CompositeNode, role: Linear) -> tuple[Value, Value]:
    """X >= 0 (§6.1): one forward with W⁺; Z⁻ = Z⁺ - U, not below rounding.

    A floor in place of a cut to zero keeps every quotient finite: where Z⁻ is zero every product behind it is zero too.
    """
    x, w = node.node.input(role.data), _weight(node, role)
    above = version_of(op, w, "+")
    below = magnitude_of_negative(op, w)
    zp = raised(op, role.forward(op, x, above), role)
    # what y - b has lost to rounding is a few units of Z⁺ and of the bias: below that Z⁻ is noise
    unit, bias = 4.0 * float(np.finfo(_numpy(x)).eps), node.extra[0]
    floor = op.Mul(zp, unit)
    if bias is not None:
        floor = op.Add(floor, op.Mul(op.Abs(bias), unit))
    zm = op.Max(op.Sub(zp, unbiased(op, node)), floor)
    sa, sb = _divided(op, node, zp, zm, op.Add(zp, zm))
    up, down = role.transpose(op, sa, above, x), role.transpose(op, sb, below, x)
    return _shifted(op, node, op.typed(op.Mul(x, op.Add(up, down)), x))


def raised(op: Emitter, z: Value, role: Linear) -> Value:
    """Z + 1e-20: a bias per channel, which the runtime takes into the operator itself."""
    sizes_of_z = sizes(z)
    shape = [sizes_of_z[a] if a == role.channel_axis else 1 for a in range(rank(z))]
    return op.typed(op.Add(z, op.constant(np.full(shape, _TINY), like=z)), z)


def _released(op: Emitter, node: CompositeNode, role: Linear, x: Value) -> tuple[Value, Value]:
    """The released rule on a non-negative part of the input, both denominators computed directly."""
    w = _weight(node, role)
    above, below = version_of(op, w, "+"), magnitude_of_negative(op, w)
    zp, zm = role.forward(op, x, above), role.forward(op, x, below)
    sa, sb = _quotients(op, node, zp, zm)
    c = op.Mul(x, op.Add(role.transpose(op, sa, above, x), role.transpose(op, sb, below, x)))
    return _shifted(op, node, op.typed(c, node.node.input(role.data)))


def _joint(op: Emitter, node: CompositeNode, role: Linear) -> tuple[Value, Value]:
    """X of any sign (§6.1b): T = L_{|W|}(|x|), Z± = (T ± U)/2, two adjoints."""
    x, w = node.node.input(role.data), _weight(node, role)
    magnitude, size = op.typed(op.Abs(w), w), op.typed(op.Abs(x), x)
    total, u = raised(op, role.forward(op, size, magnitude), role), unbiased(op, node)
    floor = op.Mul(total, 8.0 * float(np.finfo(_numpy(x)).eps))
    zp, zm = (op.Max(op.Mul(part, 0.5), floor) for part in (op.Add(total, u), op.Sub(total, u)))
    # the two adjoints cancel where nothing goes through a side: a quotient by its floor would leave their rounding behind
    sides = tuple(_live(op, op.Sub(z, floor)) for z in (zp, zm))
    sa, sb = _divided(op, node, zp, zm, op.Add(zp, zm), sides=sides)
    even = op.Mul(size, role.transpose(op, op.Add(sa, sb), magnitude, x))
    odd = op.Mul(x, role.transpose(op, op.Sub(sa, sb), w, x))
    return _shifted(op, node, op.typed(op.Mul(op.Add(even, odd), 0.5), x))


def _quotients(op: Emitter, node: CompositeNode, zp: Value, zm: Value) -> tuple[Value, Value]:
    """`_divided` where Z⁻ is exact, and zero means that nothing goes through it."""
    # where Z⁺ (or T) is zero every product behind it is zero too: any finite quotient does
    divisor = op.Add(zp, _TINY)
    return _divided(op, node, divisor, zm, op.Add(divisor, zm), exact=True)


def _live(op: Emitter, value: Value) -> Value:
    """1 where a value is not zero, else 0, in its dtype."""
    if value.dtype == ir.DataType.FLOAT:
        return op.HardSigmoid(op.Abs(value), alpha=3.0e38, beta=0.0)
    return op.Cast(op.Not(op.Equal(value, op.constant(0.0, like=value))), to=int(value.dtype or 1))


def _divided(
    op: Emitter,
    node: CompositeNode,
    zp: Value,
    zm: Value,
    total: Value,
    *,
    exact: bool = False,
    sides: tuple[Value, ...] = (),
) -> tuple[Value, Value]:
    """Sa = R⊘Z⁺ and Sb = R⊘T; a convolution's negative relevance goes through Z⁻ alone (§2.3).

    `sides`: 1 where Z⁺, where Z⁻ is more than nothing, else 0.
    """
    r, y = node.r, node.node.y
    above, below = (op.Mul(r, side) for side in sides) if sides else (r, r)
    if not node.rule["split"]:
        return op.typed(op.Div(above, zp), y), op.typed(op.Div(r, total), y)
    gain = positive(op, above)
    loss = op.Sub(below, positive(op, below))
    sb = op.Add(op.Div(r, total), safe_divide(op, loss, zm) if exact else op.Div(loss, zm))
    return op.typed(op.Div(gain, zp), y), op.typed(sb, y)


def _shifted(op: Emitter, node: CompositeNode, c: Value) -> tuple[Value, Value]:
    """C - 1[C≠0]·(ΣC - ΣR)⊘nnz(C) per sample, and what is lost where nothing is left to shift."""
    sums = _sums(op, node, linear_of(node.node))
    live = _live(op, c)
    count, seeded = sums.of_x(live), sums.of_y(node.r)
    excess = op.Sub(sums.of_x(c), seeded)
    moved = op.Sub(c, op.Mul(live, safe_divide(op, excess, count)))
    if node.outputs == 1:
        return moved, seeded
    none = op.Cast(op.Equal(count, op.constant(0.0, like=count)), to=int(c.dtype or 1))
    return moved, sums.each(op.Mul(none, seeded))


def _weight(node: CompositeNode, role: Linear) -> Value:
    return node.node.input(role.weight if role.weight is not None else 1)


def magnitude_of_negative(op: Emitter, w: Value) -> Value:
    """|W⁻|."""
    return op.typed(op.Relu(op.typed(op.Neg(w), w)), w)


def _numpy(x: Value) -> Any:
    return x.dtype.numpy() if x.dtype is not None else np.float32


# ------------------------------------------------------------------------------------------- the first propagation


def first_propagation(*, published: bool = False) -> Rule:
    """§2.1, §2.8: at the last weighted operator, whose incoming `r` is the score's gradient (one-hot, through the head).

    a_i = x_i·g_i·(1 + b/s), R_i = |a_i| ⊘ Σ|a| · Σa, so that ΣR is the score. `published` puts the bias on x⁺ only,
    split between positive and negative contributions.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        role = _weighted(step)
        x = step.node.input(role.data)
        extra = [step.bias, step.score]
        like: list[Value | None] = [x, _each_like(step, x)] if step.accounting else [x]
        parameters = {
            "published": published,
            "x_nonnegative": role.data in step.nonnegative,
            **told(x=step.place(x), y=step.place(step.node.y)),
        }
        outs = composite.emit(op, "FirstPropagation", step.r, step.node, extra=extra, rule=parameters, like=like)
        return Shares({role.data: outs[0]}, _lost_of_each(step, x, outs[1:]), frozenset({role.data}))

    return rule


@expansion("FirstPropagation")
def _expand_first(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = linear_of(node.node)
    x, w = node.node.input(role.data), _weight(node, role)
    return first_shares(op, node, op.typed(op.Mul(x, role.transpose(op, node.r, w, x)), x))


def first_shares(op: Emitter, node: CompositeNode, z: Value) -> Sequence[Value]:
    """The first propagation from the contributions z = x ⊙ Lᵀ g."""
    role = linear_of(node.node)
    x = node.node.input(role.data)
    bias = node.extra[0] if node.extra else None
    score = node.extra[1] if len(node.extra) > 1 else None
    unknown = {place_of(node.rule, name) for name in "xy"} & {Nowhere.MIXED, Nowhere.UNKNOWN}
    sums = _Sums(op, node, role, rows=bool(unknown))
    b = None
    if bias is not None:
        b = sums.of_y(op.typed(op.Mul(node.r, bias), node.node.y))
    if node.rule["published"]:
        a, total = _published_parts(op, x, z, b, sums)
    else:
        own = sums.of_x(z)
        a, total = z, own if b is None else op.Add(own, b)
    over = None if score is None else sums.along(score)
    if over is not None:
        total = safe_divide(op, total, over)
    size = op.typed(op.Abs(a), x)
    norm = sums.of_x(size)
    r = op.Mul(size, safe_divide(op, total, norm))
    result = [op.typed(r, x)]
    if node.outputs > 1:
        dead = op.Cast(op.Equal(norm, op.constant(0.0, like=norm)), to=int(x.dtype or 1))
        result.append(sums.each(op.Mul(total, dead)))
    return result


def _published_parts(op: Emitter, x: Value, z: Value, b: Value | None, sums: _Sums) -> tuple[Value, Value]:
    """A with the bias on x⁺ (§2.1) and its sum."""
    if b is None:
        return z, sums.of_x(z)
    on = op.Cast(op.Greater(x, op.constant(0.0, like=x)), to=int(x.dtype or 1))
    gain, loss = positive(op, z), negative(op, z)
    z1, z2 = (sums.of_x(op.typed(op.Mul(part, on), x)) for part in (gain, loss))
    pos, neg = (sums.of_x(op.typed(part, x)) for part in (gain, loss))
    s = op.Add(pos, neg)
    k1 = safe_divide(op, safe_divide(op, op.Mul(b, pos), s), z1)
    k2 = safe_divide(op, safe_divide(op, op.Mul(b, neg), s), z2)
    spread = op.Mul(on, op.Add(op.Mul(gain, k1), op.Mul(loss, k2)))
    a = op.typed(op.Add(z, spread), x)
    return a, sums.of_x(a)


# ------------------------------------------------------------------------------------------- the first layer


def box(low: Bounds | None = None, high: Bounds | None = None) -> Rule:
    """§2.5: zᴮ without stabiliser and without shift; by default the bounds are each picture's own extremes.

    Where it is not known which entries are one sample's, they are the extremes of what one output reads.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        role = _weighted(step)
        x = step.node.input(role.data)
        like: list[Value | None] = [x, step.node.y] if step.accounting else [x]
        parameters = {"low": low, "high": high, **told(x=step.place(x))}
        outs = composite.emit(op, "Box", step.r, step.node, rule=parameters, like=like)
        return Shares({role.data: outs[0]}, step.lost(outs[1:]))

    return rule


@expansion("Box")
def _expand_box(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = linear_of(node.node)
    x, w = node.node.input(role.data), _weight(node, role)
    low, high = _bound(op, node, role, "low", "ReduceMin"), _bound(op, node, role, "high", "ReduceMax")
    above, below = version_of(op, w, "+"), version_of(op, w, "-")
    lifted, lowered = (op.typed(op.Sub(x, bound), x) for bound in (low, high))
    # no term is negative, where y - b less the corners' images rounds to noise at a bound
    za = op.Add(role.forward(op, lifted, above), role.forward(op, lowered, below))
    s = op.typed(safe_divide(op, node.r, za), node.node.y)
    # by linearity in w the two products need two adjoints, not three
    if joinable(role, node.node, x):
        back = transposed_apart(op, role, s, [above, below], x)
    else:
        back = [role.transpose(op, s, w, x) for w in (above, below)]
    up, down = op.Mul(lifted, back[0]), op.Mul(lowered, back[1])
    result = [op.typed(op.Add(up, down), x)]
    if node.outputs > 1:
        result.append(op.typed(op.Sub(node.r, op.Mul(s, za)), node.node.y))
    return result


def _bound(op: Emitter, node: CompositeNode, role: Linear, name: str, reduce: Reduction) -> Value:
    """The given bound, or the lowest or highest entry of each sample; broadcasts over x."""
    if node.rule[name] is not None:
        return bound_like(op, node.node.input(role.data), node.rule[name])
    x, place = node.node.input(role.data), place_of(node.rule, "x")
    if place in (Nowhere.MIXED, Nowhere.UNKNOWN):
        own = contracted(node.node, role.data)
        return op.emit(reduce, [x, op.ints(*own)], {"keepdims": 1})[0] if own else x
    return over_each(op, x, place, reduce)


def bound_like(op: Emitter, x: Value, bound: Any) -> Value:
    """A bound of the box as a constant that broadcasts over x."""
    return op.constant(spread_bound(bound, x), like=x)


# ------------------------------------------------------------------------------------------- the other roles


def pooled(*, drop: bool) -> Rule:
    """§2.6: x ⊙ Lᵀ(R ⊘ y). Where the window's mean is zero: dropped as released, or spread evenly.

    Entries of both signs cancel in y, and the released ratio explodes: unless `drop`, they share by magnitude.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        like: list[Value | None] = [step.node.input(0), step.node.y] if step.accounting else [step.node.input(0)]
        parameters = {"drop": drop or step.sparse, "magnitude": not drop and 0 not in step.nonnegative}
        outs = composite.emit(op, "RatioShare", step.r, step.node, extra=[step.proxy], rule=parameters, like=like)
        return Shares({0: outs[0]}, step.lost(outs[1:]), frozenset({0} if drop or step.sparse else ()))

    return rule


@expansion("RatioShare")
def _expand_pooled(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = linear_of(node.node)
    x, y = node.node.input(role.data), node.extra[0] or node.node.y
    if node.rule["magnitude"]:
        x = op.typed(op.Abs(x), x)
        y = role.forward(op, x, None)
    s = op.typed(safe_divide(op, node.r, y), node.node.y)
    shares = op.typed(op.Mul(x, role.transpose(op, s, None, x)), x)
    spared = op.typed(op.Mul(s, y), node.node.y)
    if not node.rule["drop"]:
        rest = op.typed(op.Sub(node.r, spared), node.node.y)
        ones = image_of_ones(op, role, x)
        even = op.typed(safe_divide(op, rest, ones), node.node.y)
        shares = op.typed(op.Add(shares, role.transpose(op, even, None, x)), x)
        spared = op.typed(op.Add(spared, op.Mul(even, ones)), node.node.y)
    return [shares, op.typed(op.Sub(node.r, spared), node.node.y)] if node.outputs > 1 else [shares]


def image_of_ones(op: Emitter, role: Linear, x: Value) -> Value:
    """What an average makes of ones."""
    ones = op.Expand(op.constant(np.ones([1] * rank(x)), like=x), op.shape_of(x))
    ones.shape = x.shape
    return role.forward(op, ones, None)


def summed(*, drop: bool, mode: Literal["auto", "signed", "absolute"] = "auto") -> Rule:
    """§2.6 Add: x_k·(R ⊘ Σx). Where the sum is zero: dropped as released, or split evenly.

    `absolute` shares by |x_k|. `auto` does so where operands of both signs may cancel and no Relu behind the sum keeps
    relevance away from where they do; elsewhere it is the released rule.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        if not isinstance(step.role, Sum):
            raise wrong_role(step, "is not a sum")
        order = sorted(step.node.active)
        like: list[Value | None] = [step.node.input(k) for k in order]
        if step.accounting:
            like.append(step.node.y)
        steady = (step.sparse and step.rectified) or step.nonnegative >= step.node.active
        absolute = mode == "absolute" or (mode == "auto" and not drop and not steady)
        parameters = {
            "drop": drop or step.sparse,
            "absolute": absolute,
            "z_nonnegative": step.sparse and step.rectified,
        }
        outs = composite.emit(op, "RatioSum", step.r, step.node, extra=[step.proxy], rule=parameters, like=like)
        kept = frozenset(order) if drop or step.sparse else frozenset()
        return Shares(dict(zip(order, outs)), step.lost(outs[len(order) :]), kept)

    return rule


@expansion("RatioSum")
def _expand_summed(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = role_of(node.node)
    if not isinstance(role, Sum):
        raise ValueError(f"{node.node.where}: is not a sum")
    forward = node.node
    order = sorted(forward.active)
    if len(order) < len([v for v in forward.inputs if v is not None]):
        # adding a constant moves nothing (§2.6: pass)
        return [reduce_like(op, node.r, forward.input(order[0]))] + _nothing(op, node, len(order))
    parts = [
        op.Mul(forward.input(k), role.coefficients[k]) if role.coefficients[k] != 1.0 else forward.input(k)
        for k in order
    ]
    z = node.extra[0] or forward.y
    if node.rule["absolute"]:
        parts = [op.Abs(p) for p in parts]
        z = parts[0]
        for p in parts[1:]:
            z = op.Add(z, p)
    # R is zero where the Relu behind the sum is: nothing divides by zero then
    cheap = node.rule["z_nonnegative"] and not node.rule["absolute"]
    s = op.typed(op.Div(node.r, op.Add(z, _TINY)) if cheap else safe_divide(op, node.r, z), forward.y)
    rest = op.typed(op.Sub(node.r, op.Mul(s, z)), forward.y)
    even = None if node.rule["drop"] else op.Mul(rest, 1.0 / len(order))
    shares = []
    for k, part in zip(order, parts):
        share = op.Mul(part, s)
        share = op.typed(share if even is None else op.Add(share, even), forward.y)
        shares.append(reduce_like(op, share, forward.input(k)))
    lost = [rest if even is None else op.typed(op.Mul(rest, 0.0), forward.y)]
    return shares + (lost if node.outputs > len(shares) else [])


def _nothing(op: Emitter, node: CompositeNode, count: int) -> list[Value]:
    return [op.typed(op.Mul(node.r, 0.0), node.node.y)] if node.outputs > count else []


def dropping_at_zero(op: Emitter, step: Step) -> Shares:
    """Released MaxPool, BatchNormalization and Concat: what they would send on, less what falls where a test value is zero.

    MaxPool drops where y = 0, BatchNormalization where x = 0 or its scale is, Concat where the operand is zero.
    """
    if isinstance(step.role, Selection):
        kept = step.r if step.sparse else _masked(op, step.r, step.node.y)
        routed = gradient.route(op, Step(step.node, step.role, (kept,), step.proxy, sparse=True))
        lost = [] if step.sparse or not step.accounting else [op.typed(op.Sub(step.r, kept), step.node.y)]
        return Shares(routed.inputs, step.lost(lost), routed.sparse)
    if isinstance(step.role, Rearrangement):
        moved = gradient.undo(op, step)
        if step.sparse:
            return moved
        kept_parts = {k: _masked(op, v, step.node.input(k)) for k, v in moved.inputs.items()}
        gone: list[Lost] = []
        for k, v in moved.inputs.items() if step.accounting else ():
            other = step.node.input(k)
            gone += step.lost([op.typed(op.Sub(v, kept_parts[k]), other)], other)
        return Shares(kept_parts, gone, frozenset(kept_parts))
    x = step.node.x
    kept = _masked(op, step.r, x)
    scale = step.node.input(1)
    shape = [1, -1, *[1] * (rank(x) - 2)]
    alive = op.Reshape(op.Not(op.Equal(scale, op.constant(0.0, like=scale))), op.ints(*shape))
    kept = op.typed(op.Mul(kept, op.Cast(alive, to=int(x.dtype or 1))), x)
    rest = [op.typed(op.Sub(step.r, kept), x)] if step.accounting else []
    return Shares({0: kept}, step.lost(rest), frozenset({0}))


def _masked(op: Emitter, r: Value, test: Value) -> Value:
    live = op.Not(op.Equal(test, op.constant(0.0, like=test)))
    return op.typed(op.Mul(r, op.Cast(live, to=int(r.dtype or 1))), r)
