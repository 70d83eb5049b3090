"""What relevance is divided by, W⁺x and its kin, as kernel calls: one pass forward with a version of the weight.

A quotient that one composite alone reads is made there too, with what is lost beside it; denominators that several read
(further targets, the kernel above) are made once. What follows from the weights alone stays ONNX, which folds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnx_explain.backends.gpu.calls import Pass, is_constant
from onnx_explain.backends.gpu.layers import Layer
from onnx_explain.ir.view import Value, dims, rank
from onnx_explain.rules import lrp

_SOURCES = {"": "x", "+": "x+", "-": "x-"}
_GATES = {"positive": "positive", "negative": "negative", "": ""}


def total(layer: Layer, share: Mapping[str, Any]) -> tuple[Value, Callable[[], Value]]:
    """(what a share divides by, the part of it that is no bias, made when called)."""
    op, node = layer.op, layer.node
    words = _words(layer, share)
    if words is None:
        free, whole, _ = lrp.denominator(op, node, layer.role, list(share["terms"]), layer.z, 0.0)
        if all(t["x"] not in _SOURCES for t in share["terms"]):  # one sample's: kernels read one per sample
            whole = op.Expand(whole, op.shape_of(node.node.y))
        whole.shape = node.node.y.shape
        return whole, free
    one = Pass(words.form, words.operands, words.weights)
    whole = layer.forward(one, 1)[0]
    bias = words.operands.get("bias")
    return whole, lambda: whole if bias is None else op.typed(op.Sub(whole, _beside(layer, bias)), whole)


def _beside(layer: Layer, bias: Value) -> Value:
    """A bias per filter, broadcastable to y."""
    n = rank(layer.node.node.y)
    return bias if layer.dense else layer.op.Reshape(bias, layer.op.ints(1, -1, *[1] * (n - 2)))


def quotient(layer: Layer, share: Mapping[str, Any]) -> tuple[Value, Value | None] | None:
    """(s, what is lost where that is asked for) in one pass; None where denominators are made apart."""
    words = _words(layer, share)
    if words is None or layer.link.divided or layer.link.repeated:
        return None
    gate, accounts = _GATES[share["when"]], layer.node.outputs > 1
    form = {**words.form, "end": "quotient", "gate": gate, "accounts": accounts}
    operands = {**words.operands, "r": layer.node.r} | ({"z": layer.z} if gate else {})
    epsilon, scale = float(layer.node.rule["epsilon"]), float(share["scale"])
    outs = layer.forward(Pass(form, operands, words.weights, epsilon, scale=scale), 1 + accounts)
    return outs[0], outs[1] if accounts else None


def _words(layer: Layer, share: Mapping[str, Any]) -> Pass | None:
    """The pass behind a share's denominator; None where it is the forward's own tensor, or follows from weights alone."""
    terms = share["terms"]
    sources = [t["x"] for t in terms]
    if any(t["sign"] < 0 for t in terms) or any(s not in _SOURCES for s in sources):
        return None
    if len(terms) == 1 and (terms[0]["x"], terms[0]["w"]) != ("", ""):
        source, weights = _SOURCES[sources[0]], {"w": terms[0]["w"]}
    elif sources == ["+", "-"]:
        source, weights = "halves", {"w": terms[0]["w"], "v": terms[1]["w"]}
    else:
        return None
    operands: dict[str, Value] = {"x": layer.x}
    form: dict[str, Any] = {"source": source}
    biases = [t["b"] for t in terms if t["b"] != "0"]
    if layer.bias is not None and biases and not layer.node.rule["zero_bias"]:
        bias = _per_filter(layer, layer.bias)
        if len(biases) > 1 or bias is None:
            return None
        operands["bias"] = lrp.version_of(layer.op, bias, biases[0], layer.node.rule["gamma"])
        form["biased"] = True
    return Pass(form, operands, weights)


def _per_filter(layer: Layer, bias: Value) -> Value | None:
    """A bias as one constant per filter, or None where it is none."""
    op, filters = layer.op, layer.geometry["filters"]
    if not is_constant(bias):
        return None
    if bias.shape is not None:
        sizes = dims(bias)
        count = int(np.prod([d or 0 for d in sizes]))
        if count == filters:
            return bias
        if count != 1:
            return None
    n = rank(layer.node.node.y)
    shape = [filters if a == (n - 1 if layer.dense else 1) else 1 for a in range(n)]
    return op.Expand(bias, op.ints(*shape))


def pair(layer: Layer) -> tuple[dict[str, Any], dict[str, Value]]:
    """RAP's Z⁺ and Z⁻, or at once the quotients by them: (words, operands) of the redistribution.

    From one product and z where products are exact in float32; where they round their operands, z does not cancel against
    them, and both come from a product of their own (`DenominatorForm`).
    """
    rule, bias = layer.node.rule, None if layer.bias is None else _per_filter(layer, layer.bias)
    exact = not layer.rounded and bool(rule["joint"]) and (layer.bias is None or bias is not None)
    signed = not rule["x_nonnegative"]
    source = ("|x|" if exact else "magnitudes") if signed else ("x" if exact else "twin")
    weights = {"w": "||"} if signed else {"w": "+"}
    weights |= {} if exact else {"v": "" if signed else "|-|"}
    form: dict[str, Any] = {"source": source, "end": "pair"}
    operands = {"x": layer.x}
    if exact:
        operands["z"] = layer.z
        if bias is not None:
            operands["bias"], form["biased"] = bias, True
    shift = layer.known.shifts.get(id(layer.node.r))
    fused = not layer.link.repeated and not layer.dense
    if fused:
        form["divided"], operands["r"] = True, layer.node.r
        if shift is not None:
            form["shifted"], operands["delta"] = True, shift
    above, below = layer.forward(Pass(form, operands, weights), 2)
    if fused:
        return {"quotient": "given", "branch": "dual"}, {"r": above, "a": below}
    quotient = "relative_dense" if layer.dense else "relative"
    words: dict[str, Any] = {"quotient": quotient, "branch": "dual"}
    given = {"r": layer.node.r, "a": above, "b": below}
    return (words, given) if shift is None else ({**words, "shifted": True}, {**given, "delta": shift})
