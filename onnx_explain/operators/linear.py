"""Linear maps with coefficients of their own: Col2Im, Fourier transforms."""

from __future__ import annotations

import numpy as np

from onnx_explain.errors import ModelError, UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, Window, dims, rank
from onnx_explain.operators.patches import patches
from onnx_explain.operators.roles import Linear, room, zeros_like

_AXIS_IS_INPUT = 20


@room("Col2Im", sign="inherits")
def col2im(node: Operation) -> Linear:
    """Columns laid out as overlapping blocks of a picture, which add up; the adjoint reads the blocks."""
    size, block = node.constant(1), node.constant(2)
    if size is None or block is None:
        raise ModelError(f"{node.where}: its image and block shapes are missing.")
    n = len(size)
    strides, dilations = node.ints("strides", [1] * n) or [], node.ints("dilations", [1] * n) or []
    pads = node.ints("pads", [0] * 2 * n) or []
    kernel, whole = [int(k) for k in block], [int(s) for s in size]
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    out = [(s + b + e - w) // t + 1 for s, b, e, w, t in zip(whole, pads[:n], pads[n:], spans, strides)]
    window = Window(
        tuple(kernel), tuple(strides), tuple(dilations), tuple(pads[:n]), tuple(pads[n:]), tuple(whole), tuple(out)
    )

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        return op.reshape_like(patches(op, s, window), like)

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(op.Col2Im(x, *node.inputs[1:3], **node.attributes), node.y)

    return Linear("average", forward, transpose)


# ------------------------------------------------------------------------------------------- Fourier transforms


def _transform(op: Emitter, node: Operation, value: Value, axis: int, *, length: int, inverse: bool) -> Value:
    """A discrete Fourier transform along one axis, written as the model's opset wants it."""
    size, where = (op.constant(v, dtype=np.int64) for v in (length, axis))
    if node.version >= _AXIS_IS_INPUT:
        return op.DFT(value, size, where, inverse=int(inverse))
    return op.DFT(value, size, axis=axis, inverse=int(inverse))


def _back(
    op: Emitter, node: Operation, s: Value, axis: int, length: int, *, inverse: bool, real: bool, onesided: bool
) -> Value:
    """The adjoint: the transform with the other sign. What a one-sided result lacks is zero; a real signal keeps its part."""
    have = length // 2 + 1 if onesided else length
    if have < length:
        s = op.pad_axis(s, axis, 0, length - have, n=rank(node.y))
    back = _transform(op, node, s, axis, length=length, inverse=not inverse)
    back = op.Div(back, float(length)) if inverse else op.Mul(back, float(length))
    return op.Slice(back, op.ints(0), op.ints(1), op.ints(-1)) if real else back


@room("DFT")
def dft(node: Operation) -> Linear:
    """The discrete Fourier transform of real or complex numbers; linear."""
    given = node.constant(1)
    by_input = node.version >= _AXIS_IS_INPUT
    asked = node.constant(2) if by_input else None
    axis = (int(asked) if asked is not None else -2) if by_input else node.integer("axis", 1)
    axis %= rank(node.x)
    inverse, onesided = bool(node.integer("inverse", 0)), bool(node.integer("onesided", 0))
    size = dims(node.x)[axis]
    if inverse and onesided:
        raise UnsupportedOperator(
            f"{node.where}: is an inverse transform of a one-sided spectrum, which has no room; export it two-sided."
        )
    if size is None:
        raise ModelError(f"{node.where}: the size of axis {axis} is not known before the model runs.")
    length = int(given) if given is not None else size
    real = dims(node.x)[-1] == 1

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(op.emit("DFT", [x, *node.inputs[1:]], dict(node.attributes))[0], node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        back = _back(op, node, s, axis, length, inverse=inverse, real=real, onesided=onesided)
        if length > size:
            back = op.Slice(back, op.ints(0), op.ints(size), op.ints(axis))
        elif length < size:
            back = op.pad_axis(back, axis, 0, size - length, n=rank(node.x))
        return op.typed(back, like)

    return Linear("average", forward, transpose)


@room("STFT")
def stft(node: Operation) -> Linear:
    """Fourier transforms of windows that slide over a signal."""
    step, given = node.constant(1), node.constant(3)
    frames, length = dims(node.y)[1], dims(node.x)[1]
    if step is None or frames is None or length is None:
        raise ModelError(f"{node.where}: its step, or the length of its signal, is not known before the model runs.")
    window = node.input(2) if node.has(2) else None
    size = int(given) if given is not None else int((dims(window)[0] if window is not None else None) or 0)
    places = (np.arange(frames)[:, None] * int(step) + np.arange(size)).reshape(1, -1, 1)
    complex_ = rank(node.x) == 3 and dims(node.x)[2] == 2

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(op.emit("STFT", [x, *node.inputs[1:]], dict(node.attributes))[0], node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        seen = _back(op, node, s, 2, size, inverse=False, real=not complex_, onesided=bool(node.integer("onesided", 1)))
        seen = op.Mul(seen, op.Reshape(window, op.ints(-1, 1))) if window is not None else seen
        parts = op.Reshape(seen, op.ints(0, frames * size, 2 if complex_ else 1))
        base = zeros_like(op, like)
        base = op.Unsqueeze(base, op.ints(2)) if rank(like) == 2 else base
        index = op.Expand(op.constant(places, dtype=np.int64), op.Shape(parts))
        return op.reshape_like(op.ScatterElements(base, index, parts, axis=1, reduction="add"), like)

    return Linear("average", forward, transpose)
