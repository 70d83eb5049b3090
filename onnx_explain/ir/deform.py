"""DeformConv as pictures read at moved places (GridSample), and a convolution of what was read."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.apart import apart
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, Window, spatial


@apart("DeformConv")
def _deform_conv(op: Emitter, node: Operation) -> Value:
    """y = Σ_{c,k} w[o,c,k]·mask[k,p]·x[c, p·stride + k·dilation - pad + offset[k,p]], zero outside."""
    x, w = node.x, node.input(1)
    if len(spatial(x)) != 2:
        raise UnsupportedOperator(f"{node.where}: works on other than two spatial axes, which has no expansion here.")
    window = Window.of(node, spatial(w), x=x, y=node.y)
    channels, groups = int(spatial(x, 1)[0]), node.integer("offset_group", 1)
    taps, out = math.prod(window.kernel), list(window.out)
    seen = _read(op, node, window, groups)  # [N·groups, C/groups, taps·out…]
    batch = (x.shape or [None])[0]
    if node.has(4):
        parts = _shaped(op.Reshape(seen, op.ints(-1, groups, channels // groups, taps, *out)), batch, groups,
                        channels // groups, taps, *out)  # fmt: skip
        mask = _shaped(op.Reshape(node.input(4), op.ints(-1, groups, 1, taps, *out)), batch, groups, 1, taps, *out)
        seen = _shaped(op.Mul(parts, mask), batch, groups, channels // groups, taps, *out)
    columns = _shaped(op.Reshape(seen, op.ints(-1, channels * taps, *out)), batch, channels * taps, *out)
    outputs, inner = w.shape[0] if w.shape is not None else None, int(spatial(w, 1)[0])
    flat = _shaped(op.Reshape(w, op.ints(-1, inner * taps, 1, 1)), outputs, inner * taps, 1, 1)
    operands = [columns, flat, *node.inputs[3:4]]
    return op.emit("Conv", operands, {"group": node.integer("group", 1)}, like=[node.y], shared=False)[0]


def _read(op: Emitter, node: Operation, window: Window, groups: int) -> Value:
    """What every tap of every position sees."""
    x, taps, (rows, columns) = node.x, math.prod(window.kernel), window.out
    channels, size = int(spatial(x, 1)[0]), list(window.size)
    batch = (x.shape or [None])[0]
    many = batch if groups == 1 else batch * groups if isinstance(batch, int) else None
    pictures = x
    if groups > 1:
        pictures = _shaped(op.Reshape(x, op.ints(-1, channels // groups, *size)), many, channels // groups, *size)
    # [N·groups, taps, (y, x), rows, columns], moved to the end as (x, y), which a grid counts from the last axis
    moves = _shaped(op.Reshape(node.input(2), op.ints(-1, taps, 2, rows, columns)), many, taps, 2, rows, columns)
    moves = _shaped(op.Transpose(moves, perm=[0, 1, 3, 4, 2]), many, taps, rows, columns, 2)
    places = _shaped(op.Add(moves, op.constant(_places(window), like=x)), many, taps, rows, columns, 2)
    # a pixel y of H lies at (2y + 1)/H - 1
    scale, shift = (np.asarray(v) for v in ([2 / s for s in size], [1 / s - 1 for s in size]))
    units = _shaped(op.Mul(places, op.constant(scale, like=x)), many, taps, rows, columns, 2)
    units = _shaped(op.Add(units, op.constant(shift, like=x)), many, taps, rows, columns, 2)
    swapped = _shaped(op.Gather(units, op.ints(1, 0), axis=4), many, taps, rows, columns, 2)
    grid = _shaped(op.Reshape(swapped, op.ints(-1, taps * rows, columns, 2)), many, taps * rows, columns, 2)
    return _shaped(op.GridSample(pictures, grid), many, channels // groups, taps * rows, columns)


def _places(window: Window) -> np.ndarray:
    """Where the taps lie before they are moved: [taps, rows, columns, (y, x)]."""
    lines = [
        np.arange(k)[:, None] * d - b + np.arange(o)[None, :] * s
        for k, d, b, o, s in zip(window.kernel, window.dilations, window.begin, window.out, window.strides)
    ]
    (height, width), (rows, columns) = window.kernel, window.out
    whole = np.empty((height, width, rows, columns, 2))
    whole[..., 0], whole[..., 1] = lines[0][:, None, :, None], lines[1][None, :, None, :]
    return whole.reshape(height * width, rows, columns, 2)


def _shaped(value: Value, *sizes: int | ir.SymbolicDim | str | None) -> Value:
    """Note the shape."""
    value.shape = ir.Shape(list(sizes))
    return value
