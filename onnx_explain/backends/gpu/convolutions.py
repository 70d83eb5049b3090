"""Composites of convolutions and dense layers as kernel calls: gradient, LRP shares, RAP's relative share and first layer.

What they divide by is `denominators`; what a kernel does with it is `docs/kernels.md`'s table of forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_explain.backends.gpu import denominators
from onnx_explain.backends.gpu.calls import Pass
from onnx_explain.backends.gpu.layers import Layer
from onnx_explain.backends.gpu.links import RECTIFIED, Link, divides, related_signs, relates
from onnx_explain.ir.composite import CompositeNode
from onnx_explain.ir.view import Value, dims, rank
from onnx_explain.rules import lrp, rap
from onnx_explain.rules.share import per_sample, quotient, safe_divide, stabilise

_NUMERATORS = {"": "x", "+": "x+", "-": "x-", "1": "one"}
_BOX = [("", "", 1.0), ("low", "+", -1.0), ("high", "-", -1.0)]


def stand_in(layer: Layer) -> Sequence[Value] | None:
    """The outputs of a weighted layer's composite by kernels, or None where its expansion runs.

    The adjoint of a ConvTranspose is a pass forward of its convolution; what rules do besides (x ⊙, r/z) no such pass does.
    """
    if layer.transposed:
        adjoint = Pass({"source": "x"}, {"x": layer.node.r}, {"w": ""})
        return layer.forward(adjoint, 1) if layer.node.kind == "Transpose" else None
    writers: dict[str, Callable[[Layer], Sequence[Value] | None]] = {
        "Transpose": _gradient,
        "Share": _share,
        "RelativeShare": _relative,
        "FirstPropagation": _first,
        "Box": _relative_box,
    }
    write = writers.get(layer.node.kind)
    return None if write is None else write(layer)


def _gradient(layer: Layer) -> Sequence[Value]:
    """Lᵀr, times the mask of the Relu or Clip below where that is all that follows."""
    mask = layer.link.masked
    operands = {"r": layer.node.r} | ({} if mask is None else {"x": layer.x})
    numerator = "one" if mask is None else "active" if mask == RECTIFIED else "inside"
    if numerator == "inside" and mask is not None:
        operands |= {k: layer.op.constant(np.full((1, 1), b), like=layer.x) for k, b in zip(("low", "high"), mask)}
    form = {"quotient": "given", "numerator": numerator}
    return layer.call([Pass(form, operands, {"w": ""}, bounds=(False, False))])


# --------------------------------------------------------------------------------------------------- shares


def _share(layer: Layer) -> Sequence[Value] | None:
    """x'·L(w')ᵀ(r / D(a, ε)), shares one after the other into one result."""
    op, node, shares = layer.op, layer.node, layer.node.rule["shares"]
    if not shares or any(_shape_of(share["terms"]) is None for share in shares) or _bounds_of_rows(layer):
        return None
    made = [_one_share(layer, share) for share in shares]
    passes = [one if i == 0 else _added(one) for i, (one, _) in enumerate(made)]
    outs = layer.call(passes)
    absorbed: Value | None = None
    for _, lost in made:
        if lost is not None:
            absorbed = lost if absorbed is None else op.Add(absorbed, lost)
    left = lrp.unshared(op, node) if absorbed is not None else None
    absorbed = op.Add(absorbed, left) if absorbed is not None and left is not None else absorbed
    return [*outs, op.typed(absorbed, node.node.y)] if absorbed is not None else outs


def _bounds_of_rows(layer: Layer) -> bool:
    """Whether a box differs along what kernels take for one sample: each row of a dense layer is one of theirs."""
    given = [np.size(layer.node.rule[k]) for k in ("low", "high") if layer.node.rule.get(k) is not None]
    return layer.dense and rank(layer.x) > 2 and (not given or max(given) > 1)


def _added(one: Pass) -> Pass:
    """The same pass, added to what the result holds."""
    return replace(one, form={**one.form, "accumulate": True})


def _shape_of(terms: Sequence[Mapping[str, Any]]) -> str | None:
    """Which form redistributes these terms: of one, the two halves of a signed input, or a box."""
    if [(t["x"], t["w"], t["sign"]) for t in terms] == _BOX:
        return "box"
    if [t["x"] for t in terms] == ["+", "-"] and all(t["sign"] > 0 for t in terms):
        return "halves"
    return "one" if len(terms) == 1 and terms[0]["sign"] > 0 and terms[0]["x"] in _NUMERATORS else None


def _one_share(layer: Layer, share: Mapping[str, Any]) -> tuple[Pass, Value | None]:
    """(the pass of one share, what is lost, where that is asked for)."""
    op, node, link, epsilon = layer.op, layer.node, layer.link, float(layer.node.rule["epsilon"])
    made = denominators.quotient(layer, share)
    if made is not None:
        return _terms(layer, share["terms"], {"quotient": "given"}, {"r": made[0]}, epsilon), made[1]
    r = node.r
    if share["when"]:
        side = op.Greater(layer.z, 0.0) if share["when"] == "positive" else op.Less(layer.z, 0.0)
        r = op.typed(op.Mul(r, op.Cast(side, to=int(r.dtype or 1))), node.node.y)
    if share["scale"] != 1.0:
        r = op.typed(op.Mul(r, share["scale"]), node.node.y)
    total, free = denominators.total(layer, share)
    lost: Value | None = None
    if node.outputs > 1 and link.divided:  # s·(D(a, ε) - a') is what r was less what was given
        kept = op.Sub(stabilise(op, total, epsilon, nonnegative=False), free())
        lost = op.Mul(r, kept)
    elif node.outputs > 1:
        lost = op.Sub(r, op.Mul(quotient(op, r, total, epsilon), free()))
    words: dict[str, Any] = {"quotient": "given" if link.divided else "ratio"}
    operands = {"r": r} | ({} if link.divided else {"a": total})
    return _terms(layer, share["terms"], words, operands, epsilon), lost


def _terms(
    layer: Layer, terms: Sequence[Mapping[str, Any]], words: dict[str, Any], operands: dict[str, Value], epsilon: float
) -> Pass:
    """The pass over a share's terms."""
    shape = _shape_of(terms)
    if shape == "one":
        words["numerator"] = _NUMERATORS[terms[0]["x"]]
        if words["numerator"] != "one":
            operands["x"] = layer.x
        words, operands, below = _below(layer, words, operands)
        return Pass(words, operands, {"w": terms[0]["w"]}, epsilon, below)
    words |= {"branch": "twin", "numerator": shape}
    operands["x"] = layer.x
    weights = {"w": terms[-2]["w"], "v": terms[-1]["w"]}
    if shape == "halves":
        return Pass(words, operands, weights, epsilon)
    low, high = (np.asarray(lrp.spread_bound(layer.node.rule[k], layer.x), np.float64) for k in ("low", "high"))
    size = max(low.size, high.size)
    for letter, bound in (("low", low), ("high", high)):
        spread = np.ascontiguousarray(np.broadcast_to(bound.reshape(1, -1), (1, size)))
        operands[letter] = layer.op.constant(spread, like=layer.x)
    return Pass(words, operands, weights, epsilon, 0.0, (False, size > 1))


def _below(
    layer: Layer, words: dict[str, Any], operands: dict[str, Value]
) -> tuple[dict[str, Any], dict[str, Value], float]:
    """Divide for the layer below, where the link says so."""
    below = layer.link.below
    if below is None or not divides(below):
        return words, operands, 0.0
    total = _below_total(layer, below)
    epsilon = float(below.rule["epsilon"])
    if total is layer.x:
        return {**words, "below": "x"}, {**operands, "x": layer.x}, epsilon
    return {**words, "below": "d"}, {**operands, "d": total}, epsilon


def _below_total(layer: Layer, below: CompositeNode) -> Value:
    """What the layer below divides by."""
    one = Layer.of(layer.op, below, Link(repeated=True), layer.known, rounded=layer.rounded, dense=False)
    if one is None:
        raise ValueError(f"{below.node.where}: is linked but has no kernel")
    return denominators.total(one, below.rule["shares"][0])[0]


# --------------------------------------------------------------------------------------------------- RAP


def _relative(layer: Layer) -> Sequence[Value] | None:
    """RAP: C from both quotients in one pass (two where x has both signs), then one shift per sample."""
    op, node, known = layer.op, layer.node, layer.known
    if "samples" in node.rule:  # kernels sum over each entry of axis 0
        return None
    if not (layer.dense and rank(layer.x) == 2 and related_signs(node)) and not relates(node):
        return None
    words, operands = denominators.pair(layer)
    given = {**operands, "x": layer.x}
    above, below = {"w": "+", "v": "|-|"}, {"w": "|-|", "v": "+"}
    if node.rule["x_nonnegative"]:
        passes = [Pass({**words, "numerator": "x", "sums": True}, given, above)]
    else:
        passes = [
            Pass({**words, "numerator": "x+"}, given, above),
            Pass({**words, "numerator": "|x-|", "accumulate": True, "sums": True}, given, below),
        ]
    want = known.sums.get(id(node.r))
    if want is None:
        want = per_sample(op, node.r)
        want.shape = ir.Shape(list(node.r.shape or [None])[:1])
    moved, kept, *shift = layer.call(passes, want=want, deferred=layer.link.defers)
    known.sums[id(moved)] = kept
    if shift:
        known.shifts[id(moved)] = shift[0]
    return [moved] if node.outputs == 1 else [moved, op.typed(op.Sub(want, kept), want)]


def _first(layer: Layer) -> Sequence[Value]:
    """RAP's first propagation: the contributions x ⊙ Lᵀ g in one pass, their shares beside it."""
    given = {"r": layer.node.r, "x": layer.x}
    made = layer.call([Pass({"quotient": "given", "numerator": "x"}, given, {"w": ""})])[0]
    return rap.first_shares(layer.op, layer.node, made)


def _relative_box(layer: Layer) -> Sequence[Value] | None:
    """RAP's first layer: zᴮ by each picture's own extremes, or by given bounds, without stabiliser."""
    op, node, x = layer.op, layer.node, layer.x
    low, high = node.rule["low"], node.rule["high"]
    if (low is None) != (high is None) or "samples" in node.rule or _bounds_of_rows(layer):
        return None
    where = op.ints(*range(1, rank(x)))
    bounds: list[Value] = []
    for bound, reduce in ((low, "ReduceMin"), (high, "ReduceMax")):
        bounds.append(
            rap.bound_like(op, x, bound) if bound is not None else op.emit(reduce, [x, where], {"keepdims": 1})[0]
        )
    halves = [
        layer.forward(Pass({"source": "x"}, {"x": op.typed(op.Sub(x, bound), x)}, {"w": sign}), 1)[0]
        for bound, sign in zip(bounds, "+-")
    ]
    za = op.typed(op.Add(*halves), node.node.y)
    per = (low is None, low is not None and max(np.size(low), np.size(high)) > 1)
    if low is not None:
        channels = dims(x)[1] or 1
        arrays = [np.asarray(lrp.spread_bound(b, x), np.float64).reshape(1, -1) for b in (low, high)]
        wide = (1, channels if per[1] else 1)
        bounds = [op.constant(np.ascontiguousarray(np.broadcast_to(a, wide)), like=x) for a in arrays]
    given = {"r": node.r, "a": za, "x": x, "low": bounds[0], "high": bounds[1]}
    words = {"quotient": "ratio", "branch": "twin", "numerator": "box"}
    outs = layer.call([Pass(words, given, {"w": "+", "v": "-"}, 0.0, 0.0, per)])
    if node.outputs > 1:
        outs.append(op.typed(op.Sub(node.r, op.Mul(safe_divide(op, node.r, za), za)), node.node.y))
    return outs
