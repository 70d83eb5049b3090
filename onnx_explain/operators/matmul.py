"""Gemm and MatMul, with a constant operand (Linear) or two active ones (Product)."""

from __future__ import annotations

import onnx_ir as ir

from onnx_explain.errors import ModelError, UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, rank
from onnx_explain.operators.roles import Linear, Product, Role, reduce_like, room


@room("Gemm")
def gemm(node: Operation) -> Role:
    """y = alpha·A'B' + beta·C."""
    if 2 in node.active:
        raise UnsupportedOperator(
            f"{node.where}: its operand C is computed from an explained input; export it as MatMul and Add."
        )
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    flip = (node.integer("transA", 0), node.integer("transB", 0))

    def product(op: Emitter, a: Value, b: Value, trans_a: int, trans_b: int) -> Value:
        return op.Gemm(a, b, alpha=alpha, transA=trans_a, transB=trans_b)

    def adjoint(op: Emitter, s: Value, other: Value, position: int) -> Value:
        if position == 0:
            return product(op, other, s, flip[1], 1) if flip[0] else product(op, s, other, 0, 1 - flip[1])
        return product(op, s, other, 1, flip[0]) if flip[1] else product(op, other, s, 1 - flip[0], 0)

    if {0, 1} <= node.active:
        return Product(lambda op, r, k: op.typed(adjoint(op, r, node.input(1 - k), k), node.input(k)), (0, 1), False)
    data = 1 if 1 in node.active else 0

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        if w is None:
            raise ModelError(f"{node.where}: has no weight.")
        return op.typed(product(op, *((x, w) if data == 0 else (w, x)), *flip), node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        if w is None:
            raise ModelError(f"{node.where}: has no weight.")
        return op.typed(adjoint(op, s, w, data), like)

    def rescale(op: Emitter, w: Value, c: Value) -> Value:
        return op.typed(op.Mul(w, op.Reshape(c, op.ints(-1, 1)) if flip[1] else c), w)

    bias = None
    if node.has(2):
        bias = (lambda op: node.input(2)) if beta == 1.0 else (lambda op: op.Mul(node.input(2), beta))
    return Linear("weighted", forward, transpose, data, 1 - data, bias, rescale if data == 0 else None)


@room("MatMul")
def matmul(node: Operation) -> Role:
    """y = A @ B with NumPy's broadcasting; vectors stand for a row on the left and a column on the right."""
    batch = list(node.y.shape or ())[: rank(node.y) - sum(rank(node.input(i)) > 1 for i in (0, 1))]

    def adjoint(op: Emitter, s: Value, other: Value, position: int, like: Value) -> Value:
        a, b = (like, other) if position == 0 else (other, like)
        if rank(a) == 1:
            s = op.Unsqueeze(s, op.ints(-2 if rank(b) > 1 else -1))
        if rank(b) == 1:
            s = op.Unsqueeze(s, op.ints(-1))
        matrix = op.Unsqueeze(other, op.ints(1 - position)) if rank(other) == 1 else other
        turned = swap_last(op, matrix, max(rank(other), 2))
        full = op.MatMul(s, turned) if position == 0 else op.MatMul(turned, s)
        if rank(like) == 1:
            full = op.ReduceSum(full, op.ints(*range(len(batch))), keepdims=0) if batch else full
            return op.reshape_like(full, like)
        full.shape = ir.Shape([*batch, *list(like.shape or ())[-2:]])
        return reduce_like(op, full, like)

    if {0, 1} <= node.active:
        return Product(lambda op, r, k: adjoint(op, r, node.input(1 - k), k, node.input(k)), (0, 1), False)
    data = 1 if 1 in node.active else 0

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(op.MatMul(x, w) if data == 0 else op.MatMul(w, x), node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        if w is None:
            raise ModelError(f"{node.where}: has no weight.")
        return op.typed(adjoint(op, s, w, data, like), like)

    simple = data == 0 and rank(node.input(1)) == 2
    rescale = (lambda op, w, c: op.typed(op.Mul(w, c), w)) if simple else None
    return Linear("weighted", forward, transpose, data, 1 - data, None, rescale, channel_axis=max(rank(node.y) - 1, 0))


def swap_last(op: Emitter, value: Value, n: int) -> Value:
    """The last two of `n` axes exchanged."""
    return op.Transpose(value, perm=[*range(n - 2), n - 1, n - 2])
