"""Quantisation: relevance passes it straight through, but for what a Relu cuts off that was taken into it.

The integers themselves carry nothing. `ir/dequantise.py` lays the float meaning of an integer network beside it, and joins
the two by a ``Quantised`` composite: the number is the integer network's, the relevance goes to the float tensor.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_explain.ir.composite import DOMAIN, CompositeNode, expansion
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value
from onnx_explain.operators.roles import NoRelevance, Pointwise, room

QUANTISED = "Quantised"
LEVELS = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
}

for _op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"):
    room(_op_type, inert=True)(lambda node: NoRelevance())


@room(QUANTISED, domain=DOMAIN, sign="floored", keeps_order=True)
def quantised(node: Operation) -> Pointwise:
    """y = clip(round(z / scale)) · scale, operands (z, lowest y, y as the integer network has it, its integers or nothing).

    Straight through: rounding, and a range that calibration made too small, count as the identity. A range that begins at
    0 is a Relu (or a Clip at 0) that was taken into the quantisation: there the derivative is that of the clip, 1 strictly
    between the lowest and the highest level.
    """
    floor = node.input(1).const_value
    rectifies = floor is not None and bool((floor.numpy() == 0).all())
    levels = LEVELS.get(node.input(3).dtype or ir.DataType.UNDEFINED) if node.has(3) and rectifies else None

    def derivative(op: Emitter) -> Value:
        if levels is None:
            return op.constant(1.0, like=node.y)
        kind = int(node.y.dtype or 1)
        q = op.Cast(node.input(3), to=kind)
        inside = op.And(op.Greater(q, float(levels[0])), op.Less(q, float(levels[1])))
        return op.Cast(inside, to=kind)

    return Pointwise(derivative, guided=rectifies, through=not rectifies)


@expansion(QUANTISED)
def _as_the_integer_network_has_it(op: Emitter, node: CompositeNode) -> list[Value]:
    return [node.node.x]
