"""Composites of pools as kernel calls: routing of maxima, shares and gradients of averages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from onnx_explain.backends.gpu.calls import DOMAIN, POOLS, Call, Launch, pool_geometry
from onnx_explain.backends.gpu.layers import Known
from onnx_explain.backends.gpu.links import Link
from onnx_explain.ir.composite import CompositeNode
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value, rank
from onnx_explain.rules import rap
from onnx_explain.rules.share import linear_of, quotient, safe_divide


def stand_in(op: Emitter, node: CompositeNode, link: Link, known: Known) -> Sequence[Value] | None:
    """A pool's composite by kernels, or None where there is none for it."""
    forward = node.node
    if forward.op_type not in POOLS or rank(forward.x) not in (3, 4):
        return None
    maximum = forward.op_type in ("MaxPool", "GlobalMaxPool")
    if maximum != (node.kind == "Route") or node.kind not in ("Route", "Transpose", "Share", "RatioShare"):
        return None
    geometry = pool_geometry(forward)
    if geometry is None or (node.kind == "Route" and node.outputs > 1):
        return None
    if node.kind == "Route":
        return _route(op, node, geometry, link, known)
    if node.kind == "Transpose":
        return [_call(op, node, geometry, {"kind": "average"}, {"r": node.r})]
    return _share(op, node, geometry) if node.kind == "Share" else _ratio(op, node, geometry)


def _call(
    op: Emitter,
    node: CompositeNode,
    geometry: Mapping[str, Any],
    words: Mapping[str, Any],
    given: Mapping[str, Value],
    *,
    epsilon: float = 0.0,
    below: float = 0.0,
) -> Value:
    from onnx_explain_kernels.forms import PoolForm

    form = asdict(PoolForm(**words))
    launch = Launch(form, {letter: i for i, letter in enumerate(given)}, {}, epsilon, below)
    call = Call("pool", geometry, (launch,))
    operands, attributes = list(given.values()), call.attributes()
    return op.emit("Redistribute", operands, attributes, domain=DOMAIN, like=[node.node.x])[0]


def _route(op: Emitter, node: CompositeNode, geometry: Mapping[str, Any], link: Link, known: Known) -> Sequence[Value]:
    x, y = node.node.x, node.node.y
    words: dict[str, Any] = {"kind": "max", "numerator": "active" if link.masked else "one"}
    given, below, shift = {"x": x, "y": y, "r": node.r}, 0.0, known.shifts.get(id(node.r))
    if shift is not None:
        words["shifted"], given["delta"] = True, shift
    if link.below is not None:
        words["below"], below = "x", float(link.below.rule["epsilon"])
    out = _call(op, node, geometry, words, given, below=below)
    if id(node.r) in known.sums and not link.masked and link.below is None:
        known.sums[id(out)] = known.sums[id(node.r)]
    return [out]


def _share(op: Emitter, node: CompositeNode, geometry: Mapping[str, Any]) -> Sequence[Value] | None:
    """ε: x ⊙ back(r / D(z, ε))."""
    share = node.rule["shares"][0]
    plain = len(node.rule["shares"]) == len(share["terms"]) == 1 and not share["when"] and share["scale"] == 1.0
    biased = bool(node.extra) and node.extra[0] is not None
    if not plain or biased or share["terms"][0]["x"] or share["terms"][0]["w"]:
        return None
    z = node.extra[1] if len(node.extra) > 1 and node.extra[1] is not None else node.node.y
    epsilon = float(node.rule["epsilon"])
    words = {"kind": "average", "quotient": "ratio", "numerator": "x"}
    outs = [_call(op, node, geometry, words, {"x": node.node.x, "y": z, "r": node.r}, epsilon=epsilon)]
    if node.outputs > 1:
        outs.append(op.typed(op.Sub(node.r, op.Mul(quotient(op, node.r, z, epsilon), z)), node.node.y))
    return outs


def _ratio(op: Emitter, node: CompositeNode, geometry: Mapping[str, Any]) -> Sequence[Value]:
    """RAP: x ⊙ back(r ⊘ y), and what falls on windows of mean zero spread evenly, unless dropped."""
    role, forward = linear_of(node.node), node.node
    x, y = forward.x, (node.extra[0] if node.extra and node.extra[0] is not None else forward.y)
    if node.rule["magnitude"]:
        x = op.typed(op.Abs(x), x)
        y = role.forward(op, x, None)
    words = {"kind": "average", "quotient": "ratio", "numerator": "x"}
    shares = _call(op, node, geometry, words, {"x": x, "y": y, "r": node.r})
    if node.rule["drop"] and node.outputs == 1:
        return [shares]
    lost = op.typed(op.Sub(node.r, op.Mul(safe_divide(op, node.r, y), y)), forward.y)
    if not node.rule["drop"]:
        ones = rap.image_of_ones(op, role, x)
        even = op.typed(safe_divide(op, lost, ones), forward.y)
        back = _call(op, node, geometry, {"kind": "average"}, {"r": even})
        shares = op.typed(op.Add(shares, back), forward.x)
        lost = op.typed(op.Sub(lost, op.Mul(even, ones)), forward.y)
    return [shares, lost] if node.outputs > 1 else [shares]
