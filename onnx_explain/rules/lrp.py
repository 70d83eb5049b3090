"""Layer-wise relevance propagation: rules for linear operators as data, and the rules of the other roles.

Bach et al., PLoS ONE 2015 (ε, αβ); Montavon et al., Pattern Recognition 2017 and LNCS 11700 ch. 10 (z⁺, w², zᴮ, γ, composites).
A share of a linear node z = W x + b is  R_x = Σ_terms x'·L(w')ᵀ(R / D(Σ_terms L(w')x' + b', ε)),  methods.md §5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import MethodError
from onnx_explain.ir import composite
from onnx_explain.ir.composite import CompositeNode, expansion
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, rank
from onnx_explain.operators.normalize import probabilities
from onnx_explain.operators.roles import Linear, Normalization, Pointwise, Product, Sum, reduce_like
from onnx_explain.rules.share import (
    Rule,
    Shares,
    Step,
    joinable,
    joined,
    linear_of,
    negative,
    positive,
    quotient,
    role_of,
    safe_divide,
    sizes,
    transposed_apart,
    unmasked,
    wrong_role,
)

Bounds = float | tuple[float, ...]


@dataclass(frozen=True)
class Term:
    """Versions of input, weight and bias that enter numerator and denominator together.

    x: ``""`` itself, ``+``, ``-``, ``1`` (ones), ``low``, ``high``; w: ``""``, ``+``, ``-``, ``1``, ``2`` (squared), ``g+`` (w + γw⁺),
    ``g-`` (w + γw⁻); b: as w, or ``0`` for none.
    """

    x: str = ""
    w: str = ""
    b: str = ""
    sign: float = 1.0


@dataclass(frozen=True)
class Share:
    """Terms with one denominator; `when` restricts them to outputs with z > 0 or z < 0."""

    terms: tuple[Term, ...]
    scale: float = 1.0
    when: Literal["", "positive", "negative"] = ""


@dataclass(frozen=True)
class LinearRule:
    """A rule for linear operators with a weight, as data."""

    shares: tuple[Share, ...]
    epsilon: float = 1e-6
    gamma: float = 0.0
    low: Bounds = 0.0
    high: Bounds = 1.0
    zero_bias: bool = False

    def __call__(self, op: Emitter, step: Step) -> Shares:
        """Emit the rule as one ``Share`` composite."""
        role = _linear(step)
        terms = [_kept(share, role.data in step.nonnegative, step.rectified) for share in self.shares]
        shares = [s for s in terms if s is not None]
        rule = {
            "shares": [asdict(s) for s in shares],
            "epsilon": self.epsilon,
            "gamma": self.gamma,
            "low": self.low,
            "high": self.high,
            "zero_bias": self.zero_bias,
            "x_nonnegative": role.data in step.nonnegative,
            "z_nonnegative": step.rectified,
        }
        return emit_share(
            op, step, role, rule, sparse=all(t.x not in ("1", "low", "high") for s in shares for t in s.terms)
        )


def emit_share(op: Emitter, step: Step, role: Linear, rule: dict[str, Any], *, sparse: bool) -> Shares:
    """A ``Share`` composite: extra operands are the bias (broadcastable to y) and the pre-activation (or its proxy)."""
    x = step.node.input(role.data)
    extra = [step.bias, step.proxy]
    like: list[Value | None] = [x, step.node.y] if step.accounting else [x]
    outs = composite.emit(op, "Share", step.r, step.node, extra=extra, rule=rule, like=like)
    return Shares({role.data: outs[0]}, step.lost(outs[1:]), frozenset({role.data} if sparse else ()))


def _linear(step: Step) -> Linear:
    if isinstance(step.role, Linear):
        return step.role
    if isinstance(step.role, Normalization) and step.role.linear is not None:
        return step.role.linear
    raise wrong_role(step, "is not linear")


def _kept(share: Share, x_nonnegative: bool, rectified: bool) -> Share | None:
    """The share without what is zero by structure: x⁻ of a non-negative input, outputs below zero behind a Relu."""
    if share.when == "negative" and rectified:
        return None
    if not x_nonnegative:
        return share
    terms = tuple(Term("" if t.x == "+" else t.x, t.w, t.b, t.sign) for t in share.terms if t.x != "-")
    return Share(terms, share.scale, share.when)


# ------------------------------------------------------------------------------------------- the rules as data


def epsilon(epsilon: float = 1e-6, *, zero_bias: bool = False) -> LinearRule:
    """LRP-ε: R_x = x ⊙ Wᵀ(R / D(z, ε)). ε = 0 is LRP-0, with R/0 := 0."""
    return LinearRule((Share((Term(),)),), epsilon, zero_bias=zero_bias)


def z_plus(epsilon: float = 1e-6, *, zero_bias: bool = False) -> LinearRule:
    """z⁺: only contributions that speak for the output, for inputs of any sign."""
    return LinearRule((Share((Term("+", "+", "+"), Term("-", "-", "0"))),), epsilon, zero_bias=zero_bias)


def alpha_beta(alpha: float = 2.0, beta: float = 1.0, epsilon: float = 1e-6, *, zero_bias: bool = False) -> LinearRule:
    """αβ, α - β = 1: positive and negative contributions normalised apart."""
    plus = Share((Term("+", "+", "+"), Term("-", "-", "0")), alpha)
    minus = Share((Term("+", "-", "-"), Term("-", "+", "0")), -beta)
    return LinearRule((plus, minus) if beta else (plus,), epsilon, zero_bias=zero_bias)


def gamma(gamma: float = 0.25, epsilon: float = 1e-6, *, zero_bias: bool = False) -> LinearRule:
    """Generalised γ: what speaks with the output's sign is favoured by γ."""
    above = Share((Term("+", "g+", "g+"), Term("-", "g-", "0")), when="positive")
    below = Share((Term("+", "g-", "g-"), Term("-", "g+", "0")), when="negative")
    return LinearRule((above, below), epsilon, gamma, zero_bias=zero_bias)


def flat(epsilon: float = 1e-6) -> LinearRule:
    """Flat: every entry of the receptive field alike."""
    return LinearRule((Share((Term("1", "1", "0"),)),), epsilon)


def w_square(epsilon: float = 1e-6, *, with_bias: bool = False) -> LinearRule:
    """w²: by squared weight; the bias is left out (deep Taylor), unless asked for."""
    return LinearRule((Share((Term("1", "2", "2" if with_bias else "0"),)),), epsilon)


def z_box(low: Bounds = 0.0, high: Bounds = 1.0, epsilon: float = 1e-6) -> LinearRule:
    """zᴮ: for inputs in the box [low, high], scalars or one number per channel, in the network's own input space."""
    terms = (Term("", "", ""), Term("low", "+", "+", -1.0), Term("high", "-", "-", -1.0))
    return LinearRule((Share(terms),), epsilon, low=low, high=high)


# ------------------------------------------------------------------------------------------- expansion


@expansion("Share")
def _expand_share(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = linear_of(node.node)
    x = node.node.input(role.data)
    relevance: Value | None = None
    absorbed: Value | None = None
    for share in node.rule["shares"]:
        part, lost = _expand_one(op, node, role, share)
        relevance = part if relevance is None else op.Add(relevance, part)
        if node.outputs > 1:
            absorbed = lost if absorbed is None else op.Add(absorbed, lost)
    if relevance is None:
        raise ValueError(f"{node.node.where}: a rule without shares")
    result = [op.typed(relevance, x)]
    left = unshared(op, node) if absorbed is not None else None
    absorbed = op.Add(absorbed, left) if absorbed is not None and left is not None else absorbed
    if absorbed is not None:
        result.append(op.typed(absorbed, node.node.y))
    return result


def unshared(op: Emitter, node: CompositeNode) -> Value | None:
    """What no share takes, of rules that look at the sign of z: r where z is 0, or on the side that has no share."""
    shares = node.rule["shares"]
    if not any(share["when"] for share in shares):
        return None
    taken = {when: sum(s["scale"] for s in shares if s["when"] == when) for when in ("positive", "negative", "")}
    left = op.Mul(node.r, 1.0 - taken[""]) if taken[""] else node.r
    for when, compare in (("positive", op.Greater), ("negative", op.Less)):
        side = op.Cast(compare(pre_activation(node), 0.0), to=int(node.r.dtype or 1))
        left = op.Sub(left, op.Mul(op.Mul(node.r, taken[when]) if taken[when] != 1.0 else node.r, side))
    return op.typed(left, node.node.y)


def pre_activation(node: CompositeNode) -> Value:
    """z: what the operator computes before an activation that stands in for it."""
    return node.extra[1] if len(node.extra) > 1 and node.extra[1] is not None else node.node.y


def _expand_one(op: Emitter, node: CompositeNode, role: Linear, share: dict[str, Any]) -> tuple[Value, Value]:
    """(Σ_terms x'·L(w')ᵀs, what was absorbed per output) of one share."""
    rule = node.rule
    z, r = pre_activation(node), node.r
    if share["when"]:
        side = op.Greater(z, 0.0) if share["when"] == "positive" else op.Less(z, 0.0)
        r = op.Mul(r, op.Cast(side, to=int(r.dtype or 1)))
    scaled = r if share["scale"] == 1.0 else op.Mul(r, share["scale"])
    nonnegative = _denominator_sign(rule, share)
    slack = rule["epsilon"] if nonnegative else 0.0
    unbiased, total, raised = denominator(op, node, role, share["terms"], z, slack)
    cofactor = _cofactor(scaled, total) if total is z and not nonnegative and rule["epsilon"] else None
    if cofactor is not None:
        # R = z·c from the sum behind: R/D(z, ε) = c·|z|/(|z| + ε), without the sign of z
        size = op.Abs(z)
        s = op.Mul(cofactor, op.Div(size, op.Add(size, rule["epsilon"])))
    elif raised:
        s = op.Div(scaled, total)
    else:
        s = quotient(op, scaled, total, rule["epsilon"], nonnegative=nonnegative)
    s.shape = node.node.y.shape
    relevance = _numerators(op, node, role, share["terms"], s)
    lost = op.Sub(scaled, op.Mul(s, unbiased())) if node.outputs > 1 else s
    return relevance, lost


def _cofactor(r: Value, z: Value) -> Value | None:
    """c where r has just been made as z·c."""
    maker = r.producer()
    if maker is None or maker.op_type != "Mul" or maker.inputs[0] is not z:
        return None
    return maker.inputs[1]


def _denominator_sign(rule: dict[str, Any] | Any, share: dict[str, Any]) -> bool:
    """Whether the denominator is known to be non-negative, so that its sign needs no test."""
    terms = share["terms"]
    versions = {(t["x"], t["w"]) for t in terms}
    if versions == {("", "")} and not rule["zero_bias"]:
        return bool(rule["z_nonnegative"])
    x_positive = rule["x_nonnegative"]
    safe = {("+", "+"), ("-", "-"), ("1", "1"), ("1", "2")} | ({("", "+")} if x_positive else set())
    return versions <= safe and all(t["sign"] > 0 and t["b"] in ("+", "0", "2") for t in terms)


def denominator(
    op: Emitter, node: CompositeNode, role: Linear, terms: list[dict[str, Any]], z: Value, slack: float
) -> tuple[Any, Value, bool]:
    """(the bias-free part as a thunk, Σ L(w')x' + b', whether `slack` has been added to it).

    The forward's own tensor is used where it is that sum. Bias and stabiliser become one constant per channel behind the
    operator, which the runtime takes into it.
    """
    bias = node.extra[0] if node.extra else None
    if len(terms) == 1 and terms[0]["x"] == "" and terms[0]["w"] == "":
        if node.rule["zero_bias"] and bias is not None:
            unbiased = op.Sub(z, bias)
            return (lambda: unbiased), unbiased, False
        return (lambda: z if bias is None else op.Sub(z, bias)), z, False
    total: Value | None = None
    x = node.node.input(role.data)
    if _halves(terms) and joinable(role, node.node, x):
        weights = [_weight(op, node, role, t["w"]) for t in terms]
        halves = joined(op, [_input(op, node, role, t["x"]) for t in terms])
        total = role.forward(op, halves, joined(op, [w for w in weights if w is not None]))
    else:
        for term in terms:
            part = _forward(op, node, role, term, z, bias)
            part = part if term["sign"] > 0 else op.Neg(part)
            total = part if total is None else op.Add(total, part)
    if total is None:
        raise ValueError(f"{node.node.where}: a share without terms")
    free = total
    kept = None if node.rule["zero_bias"] else bias
    offset: Value | None = None
    for term in terms:
        b = _bias(op, node, kept, term["b"])
        if b is not None:
            b = b if term["sign"] > 0 else op.Neg(b)
            offset = b if offset is None else op.Add(offset, b)
    if slack:
        n = rank(node.node.y)
        shape = [sizes(node.node.y)[a] if a == role.channel_axis else 1 for a in range(n)]
        raise_by = op.constant(np.full(shape, slack), like=free)
        offset = raise_by if offset is None else op.Add(offset, raise_by)
    return (lambda: free), free if offset is None else op.Add(free, offset), slack > 0


def _forward(
    op: Emitter, node: CompositeNode, role: Linear, term: dict[str, Any], z: Value, bias: Value | None
) -> Value:
    """L(w')x', bias-free."""
    if term["x"] == "" and term["w"] == "":
        return z if bias is None else op.Sub(z, bias)
    return role.forward(op, _input(op, node, role, term["x"]), _weight(op, node, role, term["w"]))


def _numerators(op: Emitter, node: CompositeNode, role: Linear, terms: list[dict[str, Any]], s: Value) -> Value:
    """Σ_terms ± x'·L(w')ᵀ s; of a convolution that reads a signed input, both halves in one pass."""
    x = node.node.input(role.data)
    if _halves(terms) and joinable(role, node.node, x):
        weights = [_weight(op, node, role, t["w"]) for t in terms]
        back = transposed_apart(op, role, s, [w for w in weights if w is not None], x)
        parts = [op.Mul(_input(op, node, role, t["x"]), b) for t, b in zip(terms, back)]
    else:
        parts = [_numerator(op, node, role, term, s) for term in terms]
    total = parts[0]
    for part in parts[1:]:
        total = op.Add(total, part)
    return total


def _halves(terms: list[dict[str, Any]]) -> bool:
    """Whether the terms are the two halves x⁺ and x⁻ of a signed input."""
    return [t["x"] for t in terms] == ["+", "-"] and all(t["sign"] > 0 for t in terms)


def _numerator(op: Emitter, node: CompositeNode, role: Linear, term: dict[str, Any], s: Value) -> Value:
    """± x'·L(w')ᵀ s."""
    x = node.node.input(role.data)
    back = role.transpose(op, s, _weight(op, node, role, term["w"]), x)
    if term["x"] == "1":
        return back
    if term["x"] in ("low", "high"):
        bound = op.constant(spread_bound(node.rule[term["x"]], x), like=x)
        product = op.Mul(bound, back)
    else:
        product = op.Mul(_input(op, node, role, term["x"]), back)
    product.shape = x.shape
    return product if term["sign"] > 0 else op.Neg(product)


def _input(op: Emitter, node: CompositeNode, role: Linear, version: str) -> Value:
    x = node.node.input(role.data)
    if version == "+":
        return positive(op, x)
    if version == "-":
        return negative(op, x)
    if version in ("1", "low", "high"):
        # one sample stands for all: its image under L is a constant of the weights, which the runtime folds
        one = np.ones(sizes(x)) if version == "1" else np.broadcast_to(spread_bound(node.rule[version], x), sizes(x))
        return _constant_like(op, np.asarray(one), x)
    return x


def _constant_like(op: Emitter, array: Any, x: Value) -> Value:
    """A large constant as an expression, so that the file does not carry it."""
    first = np.asarray(array)
    if first.size > 64 and np.ptp(first) == 0:
        value = op.Expand(op.constant(first.reshape(-1)[:1].reshape([1] * first.ndim), like=x), op.ints(*first.shape))
    else:
        reduced = first[tuple(slice(0, 1) if a != 1 else slice(None) for a in range(first.ndim))]
        value = op.Expand(op.constant(reduced, like=x), op.ints(*first.shape))
    value.shape = ir.Shape(first.shape)
    return value


def spread_bound(bound: Any, x: Value) -> Any:
    """A bound as an array that broadcasts over x: a scalar, or one number per channel on axis 1.

    A flattened picture has its channels one behind the other: each bound then serves its channel's run.
    """
    array, n = np.asarray(bound, dtype=np.float64), rank(x)
    if array.ndim == 0:
        return array.reshape([1] * n)
    channels = sizes(x)[1] if n > 1 else 1
    if array.ndim != 1 or channels % len(array):
        raise MethodError(
            f"The bounds are {array.size} numbers, but {x.name!r} has {channels} channels; give one number, or one per channel."
        )
    return np.repeat(array, channels // len(array)).reshape([1, -1, *[1] * (n - 2)])


def _weight(op: Emitter, node: CompositeNode, role: Linear, version: str) -> Value | None:
    if role.weight is None:
        return None
    w = node.node.input(role.weight)
    return version_of(op, w, version, node.rule["gamma"])


def version_of(op: Emitter, w: Value, version: str, gamma: float = 0.0) -> Value:
    """w, w⁺, w⁻, 1, w², w + γw⁺ or w + γw⁻; an expression on the weight, which the runtime folds when it loads."""
    if version == "":
        return w
    if version == "+":
        return positive(op, w)
    if version == "-":
        return negative(op, w)
    if version == "2":
        return op.typed(op.Mul(w, w), w)
    if version == "1":
        return op.typed(op.Expand(op.constant(np.ones([1] * rank(w)), like=w), op.shape_of(w)), w)
    if version in ("g+", "g-"):
        part = positive(op, w) if version == "g+" else negative(op, w)
        return op.typed(op.Add(w, op.Mul(part, gamma)), w)
    raise ValueError(f"unknown version {version!r} of a weight")


def _bias(op: Emitter, node: CompositeNode, bias: Value | None, version: str) -> Value | None:
    if bias is None or version == "0":
        return None
    return version_of(op, bias, version, node.rule["gamma"])


# ------------------------------------------------------------------------------------------- the other roles


def norm(epsilon: float = 1e-6, *, zero_bias: bool = False) -> Rule:
    """ε-rule for linear operators whose coefficients have no sign to look at: pools, means, resizing, normalisations."""

    def rule(op: Emitter, step: Step) -> Shares:
        role = _linear(step)
        data = {
            "shares": [asdict(Share((Term(),)))],
            "epsilon": epsilon,
            "gamma": 0.0,
            "low": 0.0,
            "high": 1.0,
            "zero_bias": zero_bias,
            "x_nonnegative": role.data in step.nonnegative,
            "z_nonnegative": step.rectified or (role.kind == "average" and role.data in step.nonnegative),
        }
        return emit_share(op, step, role, data, sparse=True)

    return rule


def passing(op: Emitter, step: Step) -> Shares:
    """R unchanged: activations, scalings by a constant, normalisations one chooses to see through."""
    data = getattr(step.role, "data", min(step.node.active))
    x = step.node.input(data)
    r = reduce_like(op, step.r, x)
    # behind a shift, zeros of what is shifted are no zeros of R
    unshifted = isinstance(step.role, Pointwise) or (isinstance(step.role, Linear) and step.role.kind == "scale")
    return Shares({data: r}, sparse=frozenset({data} if step.sparse and unshifted else ()))


def contribution(epsilon: float = 1e-6, mode: Literal["signed", "absolute"] = "signed") -> Rule:
    """Sums: R_k = c_k x_k·R/D(y, ε); `absolute`: |c_k x_k|·R ⊘ Σ|c x|, stable where operands cancel."""

    def rule(op: Emitter, step: Step) -> Shares:
        if not isinstance(step.role, Sum):
            raise wrong_role(step, "is not a sum")
        order = sorted(step.node.active)
        like: list[Value | None] = [step.node.input(k) for k in order]
        if step.accounting:
            like.append(step.node.y)
        parameters = {"epsilon": epsilon, "mode": mode, "z_nonnegative": step.rectified}
        outs = composite.emit(op, "ShareSum", step.r, step.node, extra=[step.proxy], rule=parameters, like=like)
        return Shares(dict(zip(order, outs)), step.lost(outs[len(order) :]), frozenset(order))

    return rule


@expansion("ShareSum")
def _expand_share_sum(op: Emitter, node: CompositeNode) -> Sequence[Value]:
    role = role_of(node.node)
    if not isinstance(role, Sum):
        raise ValueError(f"{node.node.where}: is not a sum")
    forward, rule = node.node, node.rule
    parts = [_part(op, forward, k, role.coefficients[k], rule["mode"]) for k in range(len(forward.inputs))]
    if rule["mode"] == "absolute":
        z = parts[0]
        for part in parts[1:]:
            z = op.Add(z, part)
        s = safe_divide(op, node.r, z)
    else:
        z = node.extra[0] or forward.y
        s = quotient(op, node.r, z, rule["epsilon"], nonnegative=rule["z_nonnegative"])
    s.shape = forward.y.shape
    shares = []
    active: Value | None = None
    for k in sorted(forward.active):
        share = op.Mul(parts[k], s)
        share.shape = forward.y.shape
        active = share if active is None else op.Add(active, share)
        shares.append(reduce_like(op, share, forward.input(k)))
    if node.outputs > len(shares) and active is not None:
        shares.append(op.typed(op.Sub(node.r, _forward_share(op, forward, parts, s)), forward.y))
    return shares


def _forward_share(op: Emitter, forward: Operation, parts: list[Value], s: Value) -> Value:
    """s·Σ of the active parts, summed before the quotient is applied."""
    total: Value | None = None
    for k in sorted(forward.active):
        total = parts[k] if total is None else op.Add(total, parts[k])
    return op.Mul(total, s)


def _part(op: Emitter, forward: Operation, k: int, coefficient: float, mode: str) -> Value:
    x = forward.input(k)
    if mode == "absolute":
        return op.Abs(x) if abs(coefficient) == 1.0 else op.Mul(op.Abs(x), abs(coefficient))
    if coefficient == 1.0:
        return x
    return op.Neg(x) if coefficient == -1.0 else op.Mul(x, coefficient)


def product(mode: Literal["uniform", "signal"] = "uniform", epsilon: float = 1e-6) -> Rule:
    """Products of active tensors: each factor an equal part (Achtibat et al. 2024, eq. 15), or all to the first.

    A divisor, an exponent or a norm only scales: it receives nothing.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        role = step.role
        if not isinstance(role, Product):
            raise wrong_role(step, "is not a product")
        bearers = role.bearers(step.node.active)
        if not bearers:
            return Shares({}, step.lost([step.r]))
        if mode == "signal":
            bearers = bearers[:1]
        if role.elementwise:
            part = step.r if len(bearers) == 1 else op.typed(op.Mul(step.r, 1.0 / len(bearers)), step.node.y)
            return Shares({k: reduce_like(op, part, step.node.input(k)) for k in bearers})
        z = role.shared(op, step.node.y, len(bearers))
        s = op.typed(quotient(op, step.r, z, epsilon), step.node.y)
        shares = {k: op.typed(op.Mul(step.node.input(k), role.vjp(op, s, k)), step.node.input(k)) for k in bearers}
        lost = [op.typed(op.Sub(step.r, op.Mul(s, z)), step.node.y)] if step.accounting else []
        return Shares(shares, step.lost(lost), frozenset(bearers))

    return rule


def normalization(epsilon: float = 1e-6) -> Rule:
    """Normalisations: scalings pass, standardisations take the ε-rule with their statistics held constant.

    Softmax: R_u = u ⊙ (R_s - s·ΣR_s) (AttnLRP, Achtibat et al. 2024, proposition 3.1).
    """
    with_statistics = norm(epsilon)

    def rule(op: Emitter, step: Step) -> Shares:
        role = step.role
        if not isinstance(role, Normalization):
            raise wrong_role(step, "is not a normalisation")
        if role.linear is None:
            back, x = _taylor(op, step) if role.softmax else role.vjp(op, step.r), step.node.x
            x = unmasked(op, x) if role.softmax else x
            share = op.typed(op.Mul(x, back), step.node.x)
            # not conserving by design: the rest is the bias of the Taylor expansion
            if not step.accounting:
                return Shares({0: share}, [])
            if step.node.y.shape != step.node.x.shape:  # a reduction's: summed per sample, each in its own shape
                left = step.lost([op.typed(op.Neg(share), step.node.x)], step.node.x)
                return Shares({0: share}, [*step.lost([step.r]), *left])
            return Shares({0: share}, step.lost([op.typed(op.Sub(step.r, share), step.node.x)]))
        return passing(op, step) if role.linear.kind == "scale" else with_statistics(op, step)

    return rule


def _taylor(op: Emitter, step: Step) -> Value:
    axis = step.node.integer("axis", -1)
    total = op.ReduceSum(step.r, op.ints(axis), keepdims=1)
    return op.Sub(step.r, op.Mul(probabilities(op, step.node), total))
