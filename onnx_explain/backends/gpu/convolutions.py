"""Composites of convolutions as kernel calls: gradient, LRP shares, RAP's relative share, the box of the first layer.

Denominators are ONNX, taken from the rules themselves; what a kernel does with them is `docs/kernels.md`'s table of forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_explain.backends.gpu.calls import DOMAIN, Call, Launch, conv_geometry, is_constant
from onnx_explain.backends.gpu.links import Link, divides
from onnx_explain.ir.composite import CompositeNode
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value, dims, rank
from onnx_explain.operators.roles import Linear
from onnx_explain.rules import lrp, rap
from onnx_explain.rules.share import linear_of, per_sample, quotient, safe_divide, stabilise

_NUMERATORS = {"": "x", "+": "x+", "-": "x-", "1": "one"}
_BOX = [("", "", 1.0), ("low", "+", -1.0), ("high", "-", -1.0)]


@dataclass(frozen=True)
class _Layer:
    """A convolution whose call is being written."""

    op: Emitter
    node: CompositeNode
    role: Linear
    geometry: Mapping[str, Any]
    link: Link

    @property
    def x(self) -> Value:
        return self.node.node.input(0)

    @property
    def w(self) -> Value:
        return self.node.node.input(1)

    @property
    def z(self) -> Value:
        extra = self.node.extra
        return extra[1] if len(extra) > 1 and extra[1] is not None else self.node.node.y

    def call(self, passes: Sequence[_Pass], *, want: Value | None = None) -> list[Value]:
        """Emit the call: its result, and with `want` [N] the sums left after the shift."""
        operands: list[Value] = []
        launches = []
        for one in passes:
            given = {**one.operands, **dict.fromkeys(one.weights, self.w)}
            launches.append(
                Launch(
                    {**_form(one.form)},
                    {letter: _position(operands, value) for letter, value in given.items()},
                    one.weights,
                    one.epsilon,
                    one.below_epsilon,
                    one.bounds,
                )
            )
        at = -1 if want is None else _position(operands, want)
        gamma = float(self.node.rule.get("gamma") or 0.0)
        call = Call("conv", self.geometry, tuple(launches), gamma, want is not None, at)
        like = [self.x] if want is None else [self.x, want]
        return list(
            self.op.emit("Redistribute", operands, call.attributes(), outputs=len(like), domain=DOMAIN, like=like)
        )


@dataclass(frozen=True)
class _Pass:
    """One launch before its operands have positions."""

    form: Mapping[str, Any]
    operands: Mapping[str, Value]
    weights: Mapping[str, str]
    epsilon: float = 0.0
    below_epsilon: float = 0.0
    bounds: tuple[bool, bool] = (False, True)


def _form(words: Mapping[str, Any]) -> dict[str, Any]:
    from onnx_explain_kernels.forms import ConvForm

    return asdict(ConvForm(**words))


def _position(operands: list[Value], value: Value) -> int:
    for i, known in enumerate(operands):
        if known is value:
            return i
    operands.append(value)
    return len(operands) - 1


def stand_in(op: Emitter, node: CompositeNode, link: Link, sums: dict[int, Value]) -> Sequence[Value] | None:
    """A convolution's composite by kernels, or None where there is none for it."""
    writers: dict[str, Callable[[_Layer], Sequence[Value] | None]] = {
        "Transpose": _gradient,
        "Share": _share,
        "RelativeShare": lambda layer: _relative(layer, sums),
        "Box": _relative_box,
    }
    write = writers.get(node.kind)
    forward = node.node
    if write is None or rank(forward.x) not in (3, 4) or not is_constant(forward.input(1)):
        return None
    geometry = conv_geometry(forward)
    return None if geometry is None else write(_Layer(op, node, linear_of(forward), geometry, link))


def _gradient(layer: _Layer) -> Sequence[Value]:
    """Lᵀr, times the Relu mask of the layer below where that is all that follows."""
    operands = {"r": layer.node.r} | ({"x": layer.x} if layer.link.masked else {})
    form = {"quotient": "given", "numerator": "active" if layer.link.masked else "one"}
    return layer.call([_Pass(form, operands, {"w": ""})])


# --------------------------------------------------------------------------------------------------- shares


def _share(layer: _Layer) -> Sequence[Value] | None:
    """x'·L(w')ᵀ(r / D(a, ε)), one call per share; what is absorbed stays ONNX."""
    op, node = layer.op, layer.node
    relevance: Value | None = None
    absorbed: Value | None = None
    for share in node.rule["shares"]:
        if _shape_of(share["terms"]) is None:
            return None
    for share in node.rule["shares"]:
        part, lost = _one_share(layer, share)
        relevance = part if relevance is None else op.Add(relevance, part)
        if lost is not None:
            absorbed = lost if absorbed is None else op.Add(absorbed, lost)
    if relevance is None:
        return None
    outs = [op.typed(relevance, layer.x)]
    return [*outs, op.typed(absorbed, node.node.y)] if absorbed is not None else outs


def _shape_of(terms: Sequence[Mapping[str, Any]]) -> str | None:
    """Which form redistributes these terms: of one, the two halves of a signed input, or a box."""
    if [(t["x"], t["w"], t["sign"]) for t in terms] == _BOX:
        return "box"
    if [t["x"] for t in terms] == ["+", "-"] and all(t["sign"] > 0 for t in terms):
        return "halves"
    return "one" if len(terms) == 1 and terms[0]["sign"] > 0 and terms[0]["x"] in _NUMERATORS else None


def denominator(op: Emitter, node: CompositeNode, share: Mapping[str, Any]) -> tuple[Value, Callable[[], Value]]:
    """(what a share divides by, the part of it that is no bias, made when called)."""
    z = node.extra[1] if len(node.extra) > 1 and node.extra[1] is not None else node.node.y
    free, total, _ = lrp._denominator(op, node, linear_of(node.node), list(share["terms"]), z, 0.0)
    total.shape = node.node.y.shape
    return total, free


def _one_share(layer: _Layer, share: Mapping[str, Any]) -> tuple[Value, Value | None]:
    op, node, link, epsilon = layer.op, layer.node, layer.link, float(layer.node.rule["epsilon"])
    r = node.r
    if share["when"]:
        side = op.Greater(layer.z, 0.0) if share["when"] == "positive" else op.Less(layer.z, 0.0)
        r = op.typed(op.Mul(r, op.Cast(side, to=int(r.dtype or 1))), node.node.y)
    if share["scale"] != 1.0:
        r = op.typed(op.Mul(r, share["scale"]), node.node.y)
    total, free = denominator(op, node, share)
    lost: Value | None = None
    if node.outputs > 1 and link.divided:  # s·(D(a, ε) - a') is what r was less what was given
        kept = op.Sub(stabilise(op, total, epsilon, nonnegative=False), free())
        lost = op.Mul(r, kept)
    elif node.outputs > 1:
        lost = op.Sub(r, op.Mul(quotient(op, r, total, epsilon), free()))
    words: dict[str, Any] = {"quotient": "given" if link.divided else "ratio"}
    operands = {"r": r} | ({} if link.divided else {"a": total})
    return layer.call([_terms(layer, share["terms"], words, operands, epsilon)])[0], lost


def _terms(
    layer: _Layer, terms: Sequence[Mapping[str, Any]], words: dict[str, Any], operands: dict[str, Value], epsilon: float
) -> _Pass:
    """The pass over a share's terms."""
    shape = _shape_of(terms)
    if shape == "one":
        words["numerator"] = _NUMERATORS[terms[0]["x"]]
        if words["numerator"] != "one":
            operands["x"] = layer.x
        words, operands, below = _below(layer, words, operands)
        return _Pass(words, operands, {"w": terms[0]["w"]}, epsilon, below)
    words |= {"branch": "twin", "numerator": shape}
    operands["x"] = layer.x
    weights = {"w": terms[-2]["w"], "v": terms[-1]["w"]}
    if shape == "halves":
        return _Pass(words, operands, weights, epsilon)
    low, high = (np.asarray(lrp.spread_bound(layer.node.rule[k], layer.x), np.float64) for k in ("low", "high"))
    size = max(low.size, high.size)
    for letter, bound in (("low", low), ("high", high)):
        spread = np.ascontiguousarray(np.broadcast_to(bound.reshape(1, -1), (1, size)))
        operands[letter] = layer.op.constant(spread, like=layer.x)
    return _Pass(words, operands, weights, epsilon, 0.0, (False, size > 1))


def _below(
    layer: _Layer, words: dict[str, Any], operands: dict[str, Value]
) -> tuple[dict[str, Any], dict[str, Value], float]:
    """Divide for the layer below, where the link says so."""
    below = layer.link.below
    if below is None or not divides(below):
        return words, operands, 0.0
    total, _ = denominator(layer.op, below, below.rule["shares"][0])
    epsilon = float(below.rule["epsilon"])
    if total is layer.x:
        return {**words, "below": "x"}, {**operands, "x": layer.x}, epsilon
    return {**words, "below": "d"}, {**operands, "d": total}, epsilon


# --------------------------------------------------------------------------------------------------- RAP


def _relative(layer: _Layer, sums: dict[int, Value]) -> Sequence[Value] | None:
    """RAP: C from both quotients in one pass (two where x has both signs), then one shift per sample."""
    op, node = layer.op, layer.node
    signed = not node.rule["x_nonnegative"]
    if not node.rule["split"] or (signed and not node.rule["joint"]):
        return None
    zp, zm = _joint_denominators(layer) if signed else _denominators(layer)
    given = {"r": node.r, "a": op.typed(zp, node.node.y), "b": op.typed(zm, node.node.y), "x": layer.x}
    words = {"quotient": "relative", "branch": "dual"}
    above, below = {"w": "+", "v": "|-|"}, {"w": "|-|", "v": "+"}
    if signed:
        passes = [
            _Pass({**words, "numerator": "x+"}, given, above),
            _Pass({**words, "numerator": "|x-|", "accumulate": True, "sums": True}, given, below),
        ]
    else:
        passes = [_Pass({**words, "numerator": "x", "sums": True}, given, above)]
    want = sums.get(id(node.r))
    if want is None:
        want = per_sample(op, node.r)
        want.shape = ir.Shape(list(node.r.shape or [None])[:1])
    moved, kept = layer.call(passes, want=want)
    sums[id(moved)] = kept
    return [moved] if node.outputs == 1 else [moved, op.typed(op.Sub(want, kept), want)]


def _denominators(layer: _Layer) -> tuple[Value, Value]:
    """Z⁺ and Z⁻ of an input without a sign (rap_rsp.md §6.1); the release's own both by convolution."""
    op, node, role, x, w = layer.op, layer.node, layer.role, layer.x, layer.w
    zp = role.forward(op, x, lrp.version_of(op, w, "+"))
    if not node.rule["joint"]:
        return zp, role.forward(op, x, rap._magnitude_of_negative(op, w))
    zp = rap._raised(op, zp, role)
    unit, bias = 4.0 * float(np.finfo(np.float32).eps), node.extra[0]
    floor = op.Mul(zp, unit)
    if bias is not None:
        floor = op.Add(floor, op.Mul(op.Abs(bias), unit))
    return zp, op.Max(op.Sub(zp, rap._unbiased(op, node)), floor)


def _joint_denominators(layer: _Layer) -> tuple[Value, Value]:
    """Z± = (T ± U)/2 of an input of any sign (§6.1b)."""
    op, node, role = layer.op, layer.node, layer.role
    magnitude, size = op.typed(op.Abs(layer.w), layer.w), op.typed(op.Abs(layer.x), layer.x)
    total, u = rap._raised(op, role.forward(op, size, magnitude), role), rap._unbiased(op, node)
    floor = op.Mul(total, 8.0 * float(np.finfo(np.float32).eps))
    zp, zm = (op.Max(op.Mul(part, 0.5), floor) for part in (op.Add(total, u), op.Sub(total, u)))
    return zp, zm


def _relative_box(layer: _Layer) -> Sequence[Value] | None:
    """RAP's first layer: zᴮ by each picture's own extremes, or by given bounds, without stabiliser."""
    op, node, role, x = layer.op, layer.node, layer.role, layer.x
    low, high = node.rule["low"], node.rule["high"]
    if (low is None) != (high is None):
        return None
    above, below = (lrp.version_of(op, layer.w, sign) for sign in "+-")
    where = op.ints(*range(1, rank(x)))
    bounds: list[Value] = []
    za = rap._unbiased(op, node)
    for bound, weight, reduce in ((low, above, "ReduceMin"), (high, below, "ReduceMax")):
        value = rap._bound(op, x, bound) if bound is not None else op.emit(reduce, [x, where], {"keepdims": 1})[0]
        za = op.Sub(za, rap._corner(op, role, x, value, weight, bound))
        bounds.append(value)
    za = op.typed(za, node.node.y)
    per = (low is None, low is not None and max(np.size(low), np.size(high)) > 1)
    if low is not None:
        channels = dims(x)[1] or 1
        arrays = [np.asarray(lrp.spread_bound(b, x), np.float64).reshape(1, -1) for b in (low, high)]
        wide = (1, channels if per[1] else 1)
        bounds = [op.constant(np.ascontiguousarray(np.broadcast_to(a, wide)), like=x) for a in arrays]
    given = {"r": node.r, "a": za, "x": x, "low": bounds[0], "high": bounds[1]}
    words = {"quotient": "ratio", "branch": "twin", "numerator": "box"}
    outs = layer.call([_Pass(words, given, {"w": "+", "v": "-"}, 0.0, 0.0, per)])
    if node.outputs > 1:
        outs.append(op.typed(op.Sub(node.r, op.Mul(safe_divide(op, node.r, za), za)), node.node.y))
    return outs
