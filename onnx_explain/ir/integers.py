"""What integer operators mean: each as the float operator on dequantised operands (ONNX, and ONNX Runtime's ``com.microsoft``).

An integer q stands for (q - zero)·scale. A meaning returns its float result and the scale and zero point that the result
is quantised with (None: it is a float already).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Attribute, Operation, Value

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Integers:
    """An integer tensor: what was quantised (`z`), with what, and whether z is exactly what the integers stand for.

    `axis`: None for a single scale. `domain`: of the DequantizeLinear that reads these integers.
    """

    q: Value
    z: Value
    scale: Value
    zero: Value | None
    axis: int | None
    block: int
    domain: str
    exact: bool = False


class Reader(Protocol):
    """What a meaning may ask."""

    op: Emitter
    meanings: dict[int, Integers]
    fixed: set[int]

    def real(self, value: Value) -> Value:
        """The float tensor for a float or an integer one."""

    def numbers(self, q: Value, scale: Value, zero: Value | None, axis: int = 0) -> Value:
        """(q - zero)·scale."""


Result = tuple[Value, Value | None, Value | None]
Meaning = Callable[[Reader, Operation], Result]
MEANINGS: dict[tuple[str, str], Meaning] = {}


def is_table(domain: str, op_type: str) -> bool:
    """Whether an operator computes on integers and has a meaning here."""
    return ("" if domain == "ai.onnx" else domain, op_type) in MEANINGS or op_type in PRODUCTS


def means(*op_types: str, domain: str = MICROSOFT) -> Callable[[Meaning], Meaning]:
    """Register the meaning of one or more operators."""

    def register(function: Meaning) -> Meaning:
        MEANINGS.update({(domain, t): function for t in op_types})
        return function

    return register


_MOVING = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool", "Pad",
        "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


def moves_entries(node: ir.Node) -> bool:
    """Whether a standard operator moves, repeats or picks entries in a way that a monotone map commutes with."""
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    return node.domain in ("", "ai.onnx") and node.op_type in _MOVING and len(node.outputs) >= 1


def _attributes(node: Operation, *dropped: str) -> dict[str, Attribute]:
    return {k: v for k, v in node.attributes.items() if k not in dropped}


def _optional(node: Operation, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _triple(read: Reader, node: Operation, index: int, axis: int = 0) -> Value:
    """Operands index, index + 1, index + 2: integers, scale, zero point."""
    return read.numbers(node.input(index), node.input(index + 1), _optional(node, index + 2), axis)


def _emit(read: Reader, op_type: str, operands: list[Value], attributes: dict[str, Attribute] | None = None) -> Value:
    y = read.op.emit(op_type, operands, attributes or {}, shared=False)[0]
    y.shape = None
    return y


# ------------------------------------------------------------------------------------------- weighted operators


@means("QLinearConv", domain="")
@means("QLinearConv")
def _conv(read: Reader, node: Operation) -> Result:
    if node.integer("channels_last", 0):
        raise _refused(node, "channels_last is set")
    operands = [_triple(read, node, 0), _triple(read, node, 3)]
    if node.has(8):
        operands.append(_bias(read, node.input(8), node.input(1), node.input(4)))
    y = _emit(read, "Conv", operands, _attributes(node, "channels_last"))
    return y, node.input(6), _optional(node, 7)


def _bias(read: Reader, bias: Value, *scales: Value) -> Value:
    """An int32 bias, whose scale is the product of the operands'."""
    op = read.op
    scale = scales[0]
    for other in scales[1:]:
        scale = op.Mul(scale, other)
    return op.Mul(op.Cast(bias, to=int(ir.DataType.FLOAT)), scale)


@means("QLinearMatMul", domain="")
@means("QLinearMatMul")
def _matmul(read: Reader, node: Operation) -> Result:
    operands = [_triple(read, node, 0, -2), _triple(read, node, 3, -1)]
    return _emit(read, "MatMul", operands), node.input(6), _optional(node, 7)


@means("QGemm")
def _gemm(read: Reader, node: Operation) -> Result:
    turned = node.integer("transB", 0)
    operands = [_triple(read, node, 0), _triple(read, node, 3, 0 if turned else 1)]
    if node.has(6):
        # ONNX Runtime adds the int32 bias to the integer products, and scales the sum by alpha
        bias = _bias(read, node.input(6), node.input(1), node.input(4))
        alpha = node.number("alpha", 1.0)
        operands.append(bias if alpha == 1.0 else read.op.Mul(bias, alpha))
    y = _emit(read, "Gemm", operands, _attributes(node))
    return y, _optional(node, 7), _optional(node, 8)


@means("DynamicQuantizeMatMul")
def _dynamic_matmul(read: Reader, node: Operation) -> Result:
    w = read.numbers(node.input(1), node.input(2), _optional(node, 3), -1)
    y = _emit(read, "MatMul", [read.real(node.x), w])
    return (_emit(read, "Add", [y, node.input(4)]) if node.has(4) else y), None, None


@means("MatMulIntegerToFloat")
def _matmul_to_float(read: Reader, node: Operation) -> Result:
    a = read.numbers(node.x, node.input(2), _optional(node, 4), -2)
    b = read.numbers(node.input(1), node.input(3), _optional(node, 5), -1)
    y = _emit(read, "MatMul", [a, b])
    return (_emit(read, "Add", [y, node.input(6)]) if node.has(6) else y), None, None


# ------------------------------------------------------------------------------------------- the rest


@means("QLinearAdd", "QLinearMul")
def _elementwise(read: Reader, node: Operation) -> Result:
    y = _emit(read, node.op_type.removeprefix("QLinear"), [_triple(read, node, 0), _triple(read, node, 3)])
    return y, node.input(6), _optional(node, 7)


@means("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax")
def _activation(read: Reader, node: Operation) -> Result:
    y = _emit(read, node.op_type.removeprefix("QLinear"), [_triple(read, node, 0)], _attributes(node, "opset"))
    if node.op_type == "QLinearSoftmax" and node.integer("opset", 13) < 13:
        raise _refused(node, "it flattens its operand, as below opset 13")
    return y, node.input(3), _optional(node, 4)


@means("QLinearAveragePool", "QLinearGlobalAveragePool")
def _average(read: Reader, node: Operation) -> Result:
    if node.integer("channels_last", 0):
        raise _refused(node, "channels_last is set")
    kind = node.op_type.removeprefix("QLinear")
    y = _emit(read, kind, [_triple(read, node, 0)], _attributes(node, "channels_last"))
    return y, node.input(3), _optional(node, 4)


@means("QLinearReduceMean")
def _mean(read: Reader, node: Operation) -> Result:
    operands, axes = [_triple(read, node, 0)], node.ints("axes")
    if axes is not None:
        operands.append(read.op.ints(*axes))
    y = _emit(read, "ReduceMean", operands, {"keepdims": node.integer("keepdims", 1)})
    return y, node.input(3), _optional(node, 4)


@means("QLinearConcat")
def _concat(read: Reader, node: Operation) -> Result:
    parts = [_triple(read, node, i) for i in range(2, len(node.inputs), 3)]
    return _emit(read, "Concat", parts, _attributes(node)), node.x, node.input(1)


@means("QLinearWhere")
def _where(read: Reader, node: Operation) -> Result:
    y = _emit(read, "Where", [node.x, _triple(read, node, 1), _triple(read, node, 4)])
    return y, node.input(7), _optional(node, 8)


# ------------------------------------------------------------------------------------------- products scaled behind


def _scaled_matmul(read: Reader, node: Operation, factor: Value) -> Value:
    """Mul(Cast(MatMulInteger(a, b)), factor)."""
    return _scaled(read, node, factor, "MatMul", weight_axis=-1)


def _scaled_conv(read: Reader, node: Operation, factor: Value) -> Value:
    """Mul(Cast(ConvInteger(x, w)), factor)."""
    return _scaled(read, node, factor, "Conv", weight_axis=0)


def _scaled(read: Reader, node: Operation, factor: Value, op_type: str, *, weight_axis: int) -> Value:
    """The product of what the integers stand for; what `factor` holds besides the operand's own scale is the weight's."""
    op = read.op
    meaning = read.meanings.get(id(node.x))
    if meaning is None:
        raise _refused(node, "nothing says what its first operand stands for")
    other, zero = node.input(1), _optional(node, 3)
    rest = _without(op, factor, meaning.scale)
    second = read.meanings.get(id(other))
    if second is not None:
        product = _emit(read, op_type, [read.real(node.x), read.real(other)], _attributes(node))
        return product if _is(rest, second.scale) else op.Mul(product, op.Div(rest, second.scale))
    small = rest.shape is not None and all(d == 1 for d in rest.shape)
    vector = op_type == "MatMul" and rest.shape is not None and len(rest.shape) == 1
    one = op.constant(1.0, dtype="float32")
    if small or vector:
        w = read.numbers(other, op.Reshape(rest, op.ints(-1)) if small else rest, zero, weight_axis)
        return _emit(read, op_type, [read.real(node.x), w], _attributes(node))
    product = _emit(read, op_type, [read.real(node.x), read.numbers(other, one, zero, weight_axis)], _attributes(node))
    return op.Mul(product, rest)


def _is(a: Value, b: Value) -> bool:
    return a is b


def _without(op: Emitter, factor: Value, scale: Value) -> Value:
    """factor / scale, where `factor` is a product with it: the other operand."""
    maker = factor.producer()
    if maker is not None and maker.op_type == "Mul" and len(maker.inputs) == 2:
        for index in (0, 1):
            other = maker.inputs[1 - index]
            if maker.inputs[index] is scale and other is not None:
                return other
    return op.Div(factor, scale)


PRODUCTS: dict[str, Callable[[Reader, Operation, Value], Value]] = {
    "MatMulInteger": _scaled_matmul,
    "ConvInteger": _scaled_conv,
}


def _refused(node: Operation, what: str) -> UnsupportedOperator:
    return UnsupportedOperator(
        f"{node.where}: {what}, which its meaning on floats does not cover; export the model with "
        "QuantizeLinear/DequantizeLinear around standard operators."
    )
