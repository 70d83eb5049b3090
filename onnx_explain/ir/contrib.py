"""Fused operators as primitives: activations, linear operators, normalisations and reductions.

ONNX Runtime's own (``com.microsoft``), and those of ONNX that are compositions of others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.unfuse import (
    HAS_LAYER_NORMALIZATION,
    OLDEST,
    Results,
    Writer,
    fused,
    refused,
    unshaped,
)
from onnx_explain.ir.view import Operation, Value

_AXES_OF_SUM = 13
_SCALE_PER_CHANNEL = 21

# ------------------------------------------------------------------------------------------- activations


def gelu(op: Writer, x: Value) -> Value:
    """Gelu by erf."""
    inner = op.Erf(op.Div(x, op.number(math.sqrt(2.0))))
    return op.Mul(op.Mul(x, op.Add(inner, op.number(1.0))), op.number(0.5))


@fused("Gelu")
def _whole_gelu(op: Writer, node: Operation) -> Results:
    return [gelu(op, node.x)]


@fused("BiasGelu")
def _bias_gelu(op: Writer, node: Operation) -> Results:
    return [gelu(op, op.Add(node.x, node.input(1)))]


@fused("FastGelu")
def _fast_gelu(op: Writer, node: Operation) -> Results:
    return [fast_gelu(op, op.Add(node.x, node.input(1)) if node.has(1) else node.x)]


def fast_gelu(op: Writer, x: Value) -> Value:
    """Gelu by tanh."""
    cubic = op.Add(x, op.Mul(op.Mul(op.Mul(x, x), x), op.number(0.044715)))
    inner = op.Tanh(op.Mul(cubic, op.number(math.sqrt(2.0 / math.pi))))
    return op.Mul(op.Mul(x, op.number(0.5)), op.Add(inner, op.number(1.0)))


@fused("QuickGelu")
def _quick_gelu(op: Writer, node: Operation) -> Results:
    return [op.Mul(node.x, op.Sigmoid(op.scaled(node.x, node.number("alpha", 1.702))))]


def activated(op: Writer, node: Operation, y: Value, parameters: Sequence[float]) -> Value:
    """The activation that a Conv, Gemm or MatMul has taken in."""
    name = node.text("activation", "")
    if name in ("", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign"):
        return op.emit(name, [y])[0] if name else y
    if name in ("LeakyRelu", "Elu", "ThresholdedRelu"):
        return op.emit(name, [y], {"alpha": parameters[0]} if parameters else {})[0]
    if name == "HardSigmoid":
        return op.HardSigmoid(y, **dict(zip(("alpha", "beta"), parameters)))
    if name == "Clip" and len(parameters) == 2:
        if op.version < OLDEST:
            return op.Clip(y, min=parameters[0], max=parameters[1])
        return op.Clip(y, op.number(parameters[0]), op.number(parameters[1]))
    raise refused(node, f"its activation is {name!r}", "run ONNX Runtime's optimizer at a lower level")


# ------------------------------------------------------------------------------------------- linear operators


@fused("FusedConv")
def _fused_conv(op: Writer, node: Operation) -> Results:
    taken = ("activation", "activation_params")
    attributes = {k: v for k, v in node.attributes.items() if k not in taken}
    y = op.emit("Conv", node.inputs[:3], attributes)[0]
    y = op.Add(y, node.input(3)) if node.has(3) else y
    return [activated(op, node, y, [float(p) for p in node.attributes.get("activation_params", ())])]


@fused("FusedGemm")
def _fused_gemm(op: Writer, node: Operation) -> Results:
    own = ("alpha", "beta", "transA", "transB")
    y = op.emit("Gemm", node.inputs[:3], {k: v for k, v in node.attributes.items() if k in own})[0]
    names = [n for n in ("activation_alpha", "activation_beta") if n in node.attributes]
    return [activated(op, node, y, [float(node.attributes[n]) for n in names])]


@fused("FusedMatMul", "TransposeMatMul")
def _fused_matmul(op: Writer, node: Operation) -> Results:
    operands = []
    for index, side in enumerate("AB"):
        value = node.input(index)
        if node.integer(f"transBatch{side}", 0):
            raise refused(node, f"transBatch{side} is set", "run ONNX Runtime's optimizer at a lower level")
        if node.integer(f"trans{side}", 0):
            value = _transposed(op, node, value)
        operands.append(value)
    return [op.scaled(op.MatMul(*operands), node.number("alpha", 1.0))]


def _transposed(op: Writer, node: Operation, value: Value) -> Value:
    if value.shape is None:
        raise unshaped(node, f"the rank of {value.name!r} is")
    n = len(value.shape)
    return value if n < 2 else op.Transpose(value, perm=[*range(n - 2), n - 1, n - 2])


# ------------------------------------------------------------------------------------------- normalisations


def _layer_norm(op: Writer, x: Value, gain: Value, shift: Value | None, epsilon: float) -> Value:
    if op.version >= HAS_LAYER_NORMALIZATION:
        return op.LayerNormalization(x, gain, *([] if shift is None else [shift]), axis=-1, epsilon=epsilon)
    moved = op.Sub(x, op.mean(x, [-1]))
    deviation = op.Sqrt(op.Add(op.mean(op.Mul(moved, moved), [-1]), op.number(epsilon)))
    y = op.Mul(op.Div(moved, deviation), gain)
    return y if shift is None else op.Add(y, shift)


def _rms_norm(op: Writer, x: Value, gain: Value, axes: Sequence[int], epsilon: float) -> Value:
    deviation = op.Sqrt(op.Add(op.mean(op.Mul(x, x), axes), op.number(epsilon)))
    return op.Mul(op.Div(x, deviation), gain)


@fused("LayerNormalization", domain="")
def _early_layer_norm(op: Writer, node: Operation) -> Results:
    """ONNX Runtime's optimizer writes it below opset 17, too."""
    axis = node.integer("axis", -1)
    if axis != -1 and (node.x.shape is None or axis != len(node.x.shape) - 1):
        raise refused(node, f"its axis is {axis} before opset 17", "export the model with opset 17 or later")
    shift = node.input(2) if node.has(2) else None
    return [_layer_norm(op, node.x, node.input(1), shift, node.number("epsilon", 1e-5)), None, None]


def _skipped(op: Writer, node: Operation, bias: int) -> Value:
    """x + skip + bias, the bias with the one that a product made: it was that product's before ONNX Runtime took it in."""
    x, skip = node.x, node.input(1)
    if node.has(bias):
        if _multiplied(skip) and not _multiplied(x):
            skip = op.Add(skip, node.input(bias))
        else:
            x = op.Add(x, node.input(bias))
    return op.Add(x, skip)


def _multiplied(value: Value) -> bool:
    """Whether a product makes it, through what keeps the order of entries."""
    maker = value.producer()
    while maker is not None and maker.op_type in ("Reshape", "Squeeze", "Unsqueeze", "Identity"):
        inner = maker.inputs[0]
        maker = None if inner is None else inner.producer()
    return maker is not None and maker.op_type in ("MatMul", "FusedMatMul", "Gemm", "Conv")


@fused("SkipLayerNormalization")
def _skip_layer_norm(op: Writer, node: Operation) -> Results:
    whole = _skipped(op, node, 4)
    shift = node.input(3) if node.has(3) else None
    return [_layer_norm(op, whole, node.input(2), shift, node.number("epsilon", 1e-12)), None, None, whole]


@fused("SkipSimplifiedLayerNormalization")
def _skip_rms_norm(op: Writer, node: Operation) -> Results:
    whole = _skipped(op, node, 3)
    return [_rms_norm(op, whole, node.input(2), [-1], node.number("epsilon", 1e-12)), None, None, whole]


@fused("SimplifiedLayerNormalization", domain="")
@fused("SimplifiedLayerNormalization")
def _simplified_layer_norm(op: Writer, node: Operation) -> Results:
    axis = node.integer("axis", -1)
    if axis != -1 and node.x.shape is None:
        raise unshaped(node, f"its axis is {axis} and the rank is")
    n = len(node.x.shape or ())
    axes = [-1] if axis == -1 else list(range(axis % n, n))
    return [_rms_norm(op, node.x, node.input(1), axes, node.number("epsilon", 1e-5)), None]


@fused("EmbedLayerNormalization")
def _embed_layer_norm(op: Writer, node: Operation) -> Results:
    """Embeddings of words, positions and segments, added and normalised."""
    words = op.Gather(node.input(2), node.x, axis=0)
    positions = node.input(8) if node.has(8) else op.counting(op.size(node.x, 1))
    whole = op.Add(words, op.Gather(node.input(3), positions, axis=0))
    if node.has(1) and node.has(4):
        whole = op.Add(whole, op.Gather(node.input(4), node.input(1), axis=0))
    y = _layer_norm(op, whole, node.input(5), node.input(6), node.number("epsilon", 1e-12))
    return [y, _lengths(op, node), whole]


def _lengths(op: Writer, node: Operation) -> Value:
    """How many words of each sample the mask keeps [N] as int32; zeros without a mask."""
    words = op.Cast(node.input(7) if node.has(7) else node.x, to=int(ir.DataType.INT64))
    kept = words if node.has(7) else op.Mul(words, op.constant(np.asarray(0, np.int64)))
    total = (
        op.ReduceSum(kept, op.ints(1), keepdims=0)
        if op.version >= _AXES_OF_SUM
        else op.ReduceSum(kept, axes=[1], keepdims=0)
    )
    return op.Cast(total, to=int(ir.DataType.INT32))


@fused("BatchNormalization", domain="")
def _batch_norm(op: Writer, node: Operation) -> Results:
    """With statistics that the model computes, as Keras writes a LayerNormalization: standardised by primitives."""
    x = node.x
    if x.shape is None:
        raise unshaped(node, f"the rank of {x.name!r} is")
    if node.integer("training_mode", 0):
        raise refused(node, "it is in training mode", "export the model in inference mode")
    shape = op.ints(-1, *[1] * (len(x.shape) - 2))
    gain, shift, mean, variance = (op.Reshape(node.input(i), shape) for i in range(1, 5))
    deviation = op.Sqrt(op.Add(variance, op.number(node.number("epsilon", 1e-5))))
    return [op.Add(op.Mul(op.Div(op.Sub(x, mean), deviation), gain), shift)]


@fused("GroupNormalization", domain="")
def _group_norm(op: Writer, node: Operation) -> Results:
    """Groups of channels as the channels of an InstanceNormalization, as exporters write it below opset 18.

    γ and β hold one number per channel, or, before opset 21, per group.
    """
    x, groups = node.x, node.integer("num_groups", 1)
    if x.shape is None:
        raise unshaped(node, f"the rank of {x.name!r} is")
    gain, shift = node.input(1), node.input(2)
    if op.version < _SCALE_PER_CHANNEL:
        each = op.Div(op.Gather(op.Shape(x), op.ints(1)), op.ints(groups))
        spread = op.Concat(op.ints(groups), each, axis=0)
        gain, shift = (op.Expand(op.Reshape(v, op.ints(-1, 1)), spread) for v in (gain, shift))
    return [grouped_norm(op, x, len(x.shape), groups, gain, shift, node.number("epsilon", 1e-5))]


def grouped_norm(op: Writer, x: Value, n: int, groups: int, gain: Value, shift: Value, epsilon: float) -> Value:
    """γ·(x - mean)/σ + β of [N, C, …] with n axes, mean and σ per group of channels, γ and β per channel."""
    ones, zeros = (op.constant(np.full(groups, v, op.dtype.numpy())) for v in (1.0, 0.0))
    grouped = op.Reshape(x, op.ints(0, groups, -1))
    y = op.Reshape(op.InstanceNormalization(grouped, ones, zeros, epsilon=epsilon), op.Shape(x))
    gain, shift = (op.Reshape(v, op.ints(-1, *[1] * (n - 2))) for v in (gain, shift))
    return op.Add(op.Mul(y, gain), shift)


# ------------------------------------------------------------------------------------------- reductions


@fused("ReduceL1", "ReduceSumSquare", "ReduceLogSum", domain="")
def _reduced(op: Writer, node: Operation) -> Results:
    x = node.x
    if node.op_type != "ReduceLogSum":
        x = op.Abs(x) if node.op_type == "ReduceL1" else op.Mul(x, x)
    attributes, operands = dict(node.attributes), [x, *node.inputs[1:]]
    if "axes" in attributes and op.version >= _AXES_OF_SUM:  # ReduceSum took them as an operand before the others did
        operands.append(op.ints(*attributes.pop("axes")))
    y = op.emit("ReduceSum", operands, attributes)[0]
    return [op.Log(y) if node.op_type == "ReduceLogSum" else y]
