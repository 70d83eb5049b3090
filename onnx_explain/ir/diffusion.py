"""Fused operators that ONNX Runtime has for GPUs alone, as primitives: channels-last convolutions, those of diffusion models.

No kernel of the CPU judges these; the formulas are those of the operators' descriptions. Products with packed weights, which
the CPU has too, stand here as well.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.ir.contrib import activated, fast_gelu, gelu, grouped_norm
from onnx_explain.ir.unfuse import Results, Writer, fused, refused, unshaped
from onnx_explain.ir.view import Operation, Value


def _channels_first(op: Writer, x: Value, n: int) -> Value:
    return op.Transpose(x, perm=[0, n - 1, *range(1, n - 1)])


def _channels_last(op: Writer, x: Value, n: int) -> Value:
    return op.Transpose(x, perm=[0, *range(2, n), 1])


@fused("NhwcConv", "NhwcFusedConv")
def _nhwc_conv(op: Writer, node: Operation) -> Results:
    """A Conv between two Transposes; its weight is laid out as everywhere."""
    weight = node.input(1)
    if weight.shape is None:
        raise unshaped(node, "the rank of its weight is")
    n, taken = len(weight.shape), ("activation", "activation_params")
    attributes = {k: v for k, v in node.attributes.items() if k not in taken}
    y = op.emit("Conv", [_channels_first(op, node.x, n), *node.inputs[1:3]], attributes)[0]
    y = op.Add(y, _channels_first(op, node.input(3), n)) if node.has(3) else y
    y = activated(op, node, y, [float(p) for p in node.attributes.get("activation_params", ())])
    return [_channels_last(op, y, n)]


@fused("GroupNorm", "SkipGroupNorm")
def _group_norm(op: Writer, node: Operation) -> Results:
    """γ·(s - mean)/σ + β per group of channels of s = x + skip + bias, then SiLU where asked for."""
    last, whole = node.integer("channels_last", 1), node.x
    if node.has(3):
        skip = node.input(3)
        if skip.shape is None:
            raise unshaped(node, f"the rank of {skip.name!r} is")
        if len(skip.shape) == 2:
            skip = op.Reshape(skip, op.ints(0, 1, 1, -1) if last else op.ints(0, -1, 1, 1))
        whole = op.Add(whole, skip)
    if node.has(4):
        whole = op.Add(whole, node.input(4) if last else op.Reshape(node.input(4), op.ints(1, -1, 1, 1)))
    x = _channels_first(op, whole, 4) if last else whole
    gain, shift = (op.Cast(node.input(i), to=int(op.dtype)) for i in (1, 2))
    y = grouped_norm(op, x, 4, node.integer("groups", 1), gain, shift, node.number("epsilon", 1e-5))
    kind = node.integer("activation", 0)
    if kind not in (0, 1):
        raise refused(node, f"its activation is {kind}", "export the model without it")
    y = op.Mul(y, op.Sigmoid(y)) if kind else y
    return [_channels_last(op, y, 4) if last else y, whole]


@fused("BiasAdd")
def _bias_add(op: Writer, node: Operation) -> Results:
    """x + bias + skip."""
    return [op.Add(op.Add(node.x, node.input(1)), node.input(2))]


@fused("BiasSplitGelu")
def _bias_split_gelu(op: Writer, node: Operation) -> Results:
    """The left half of x + bias times the Gelu of its right half."""
    width = list(node.input(1).shape or ())[-1:]
    if not width or not isinstance(width[0], int):
        raise unshaped(node, "the size of its bias is")
    whole, half = op.Add(node.x, node.input(1)), width[0] // 2
    left, right = (op.Slice(whole, op.ints(a), op.ints(a + half), op.ints(2)) for a in (0, half))
    return [op.Mul(left, gelu(op, right))]


@fused("GemmFastGelu")
def _gemm_fast_gelu(op: Writer, node: Operation) -> Results:
    """Gelu by tanh of x·w + bias."""
    y = op.MatMul(node.x, node.input(1))
    return [fast_gelu(op, op.Add(y, node.input(2)) if node.has(2) else y)]


@fused("MatMulNBits")
def _packed_matmul(op: Writer, node: Operation) -> Results:
    """A product with weights of 2, 4 or 8 bits: these are unpacked once, (q - z)·s by blocks along K, into the file."""
    packed, scales, zeros = (node.input(i).const_value if node.has(i) else None for i in (1, 2, 3))
    if packed is None or scales is None or (zeros is None and node.has(3)):
        raise refused(node, "its weights are computed while the model runs", "export it with constant weights")
    if node.has(4) or node.integer("weight_prepacked", 0):
        raise refused(node, "its weights are in another order, or one machine's layout", "quantise the model again")
    rows, columns, bits = node.integer("N", 0), node.integer("K", 0), node.integer("bits", 4)
    size, kind = node.integer("block_size", 32), op.dtype.numpy()
    blocks = math.ceil(columns / max(size, 1))
    if bits not in (2, 4, 8) or packed.size * 8 != rows * blocks * size * bits or scales.size != rows * blocks:
        raise refused(node, f"its weights are not {rows} rows of {blocks} blocks", "quantise the model again")
    q = _unpacked(packed.numpy().reshape(rows, -1), bits)[:, : blocks * size].reshape(rows, blocks, size)
    if zeros is None:
        z = np.full((rows, blocks), float(1 << (bits - 1)))
    elif zeros.numpy().dtype == np.uint8:
        z = _unpacked(zeros.numpy().reshape(rows, -1), bits)[:, :blocks]
    else:
        z = zeros.numpy().reshape(rows, blocks).astype(np.float64)
    w = (q - z[..., None]) * scales.numpy().reshape(rows, blocks, 1).astype(np.float64)
    weight = op.constant(w.reshape(rows, -1)[:, :columns].T.astype(kind))
    y = op.MatMul(node.x, weight)
    return [op.Add(y, node.input(5)) if node.has(5) else y]


@fused("GatherBlockQuantized")
def _packed_gather(op: Writer, node: Operation) -> Results:
    """Rows of a table of 4 or 8 bits: it is unpacked once, (q - z)·s by blocks along an axis, into the file."""
    data, scales, zeros = (node.input(i).const_value if node.has(i) else None for i in (0, 2, 3))
    if data is None or scales is None or (zeros is None and node.has(3)):
        raise refused(node, "its table is computed while the model runs", "export it with a constant table")
    bits, whole = node.integer("bits", 4), data.dtype == ir.DataType.UINT8
    q = _numbers(data.numpy(), bits if whole else 8)
    axis, size = node.integer("quantize_axis", 1) % q.ndim, node.integer("block_size", 128)
    s = scales.numpy().astype(np.float64)
    blocks = math.ceil(q.shape[axis] / max(size, 1))
    if s.shape != (*q.shape[:axis], blocks, *q.shape[axis + 1 :]):
        raise refused(node, f"its scales are not one for {size} entries along axis {axis}", "quantise the model again")
    middle = float(1 << (bits - 1)) if whole else 0.0
    z = np.full(s.shape, middle) if zeros is None else _numbers(zeros.numpy(), bits if whole else 8, s.shape[-1])
    of = np.arange(q.shape[axis]) // size
    table = (q - z.take(of, axis)) * s.take(of, axis)
    numbers = op.constant(table.astype(scales.numpy().dtype))
    return [op.Gather(numbers, node.input(1), axis=node.integer("gather_axis", 0))]


def _numbers(array: npt.NDArray[Any], bits: int, count: int | None = None) -> npt.NDArray[np.float64]:
    """As float64; of bytes that hold several numbers each, these along the last axis, `count` of them."""
    if bits == 8:
        return array.astype(np.float64)
    return _unpacked(array.reshape(-1, array.shape[-1]), bits).reshape(*array.shape[:-1], -1)[..., :count]


def _unpacked(packed: npt.NDArray[Any], bits: int) -> npt.NDArray[np.float64]:
    """The numbers of `bits` bits in every byte, the lowest first: [rows, bytes] to [rows, numbers]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[..., None] >> shifts) & ((1 << bits) - 1)
    return numbers.reshape(len(packed), -1).astype(np.float64)
