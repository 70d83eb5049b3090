"""Gemm and MatMul, with a constant operand (Linear) or two active ones (Product)."""

from __future__ import annotations

import onnx_ir as ir

from onnx_explain.errors import ModelError, UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank, spatial
from onnx_explain.operators.patches import columns
from onnx_explain.operators.roles import Linear, PerSample, Product, Role, reduce_like, room


def _rows_and_columns(node: Operation, k: int) -> list[int | None]:
    flip = node.integer(("transA", "transB", "")[k], 0) if k < 2 else 0
    own: list[list[int | None]] = [
        [0, None],
        [None, 1],
        [a + 2 - rank(node.input(k)) for a in range(rank(node.input(k)))],
    ]
    return own[k][::-1] if flip else own[k]


@room("Gemm", axes=_rows_and_columns)
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

    def per_sample() -> PerSample:
        shape = spatial(node.input(1 - data), 0)
        if data == 0:
            features, outputs = reversed(shape) if flip[1] else shape
            return of_samples(0, features, outputs, flipped=bool(flip[0]))
        features, outputs = shape if flip[0] else reversed(shape)
        return _of_columns(features, outputs, flipped=bool(flip[1]))

    bias = None
    if node.has(2):
        bias = (lambda op: node.input(2)) if beta == 1.0 else (lambda op: op.Mul(node.input(2), beta))
    return Linear(
        "weighted",
        forward,
        transpose,
        data,
        1 - data,
        bias,
        rescale if data == 0 else None,
        per_sample=per_sample,
    )


def _of_matrices(node: Operation, k: int) -> list[int | None]:
    ranks, n = [rank(node.input(i)) for i in (0, 1)], rank(node.y)
    if ranks[k] == 1:
        return [None]
    stacks = n - sum(r > 1 for r in ranks)
    before = [a + stacks - (ranks[k] - 2) for a in range(ranks[k] - 2)]
    return [*before, stacks, None] if k == 0 else [*before, None, n - 1]


@room("MatMul", axes=_of_matrices)
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
    return Linear(
        "weighted",
        forward,
        transpose,
        data,
        1 - data,
        None,
        rescale,
        channel_axis=max(rank(node.y) - 1, 0),
        per_sample=lambda: _per_sample(node, data),
    )


def of_samples(head: int, features: int, outputs: int, flipped: bool = False) -> PerSample:
    """Of one weight behind the samples: everything between them and the features is a position that shares it.

    `head`: 0 copies the number of samples, 1 stands for a lone vector. `flipped`: the samples lie on the last of two axes.
    """

    def laid(op: Emitter, value: Value, size: int) -> Value:
        return swap_last(op, op.Reshape(value, op.ints(head, 1, -1, size)), 4)

    def unfold(op: Emitter, x: Value) -> Value:
        return laid(op, op.Transpose(x, perm=[1, 0]) if flipped else x, features)

    def fold(op: Emitter, c: Value, like: Value) -> Value:
        flat = swap_last(op, c, 4)
        if flipped:
            return op.typed(op.Transpose(op.Reshape(flat, op.ints(-1, features)), perm=[1, 0]), like)
        return op.reshape_like(flat, like)

    return columns(unfold, fold, lambda op, r: laid(op, r, outputs))


def _of_columns(features: int, outputs: int, flipped: bool = False) -> PerSample:
    """Of a weight before a matrix or vector without samples: its columns are positions of one sample."""

    def unfold(op: Emitter, x: Value) -> Value:
        return op.Reshape(op.Transpose(x, perm=[1, 0]) if flipped else x, op.ints(1, 1, features, -1))

    def fold(op: Emitter, c: Value, like: Value) -> Value:
        if flipped:
            return op.typed(op.Transpose(op.Squeeze(c, op.ints(0, 1)), perm=[1, 0]), like)
        return op.reshape_like(c, like)

    return columns(unfold, fold, lambda op, r: op.Reshape(r, op.ints(1, 1, outputs, -1)))


def _of_stacks(node: Operation, data: int, features: int, outputs: int) -> PerSample:
    """Of a stack of matrices, or of weights: the axes between the samples and the matrix are groups."""
    x, y = node.input(data), node.y
    positions = spatial(x, rank(x) - 2)[1 if data == 1 else 0]

    def laid(op: Emitter, value: Value, size: int) -> Value:
        matrix = (size, positions) if data == 1 else (positions, size)
        stacked = op.Reshape(value, op.ints(0, -1, *matrix))
        return stacked if data == 1 else swap_last(op, stacked, 4)

    def unfold(op: Emitter, x: Value) -> Value:
        wide = rank(x) < rank(y) or dims(x)[:-2] != dims(y)[:-2]
        return laid(op, op.Expand(x, _stack(op, y, x)) if wide else x, features)

    def fold(op: Emitter, c: Value, like: Value) -> Value:
        matrices = c if data == 1 else swap_last(op, c, 4)
        full = op.Reshape(matrices, _stack(op, y, like))
        full.shape = ir.Shape([*list(y.shape or ())[:-2], *list(like.shape or ())[-2:]])
        return reduce_like(op, full, like)

    return columns(unfold, fold, lambda op, r: laid(op, r, outputs))


def _stack(op: Emitter, y: Value, x: Value) -> Value:
    """The shape of x in the stack that y is."""
    return op.Concat(op.Shape(y, start=0, end=rank(y) - 2), op.ints(*spatial(x, rank(x) - 2)), axis=0)


def _per_sample(node: Operation, data: int) -> PerSample:
    """Of a MatMul of any ranks; axis 0 counts the samples."""
    x, w = node.input(data), node.input(1 - data)
    shape = spatial(w, 0)
    features = shape[-1] if rank(w) == 1 or data == 1 else shape[-2]
    outputs = 1 if rank(w) == 1 else shape[-2 if data == 1 else -1]
    if rank(w) < 3 and data == 0:
        return of_samples(int(rank(x) == 1), features, outputs)
    if rank(w) < 3 and rank(x) < 3:
        return _of_columns(features, outputs)
    if rank(x) == 1 or rank(w) == 1:
        raise UnsupportedOperator(
            f"{node.where}: a vector meets a stack of matrices, which has no weight per sample; export it with rank 2."
        )
    return _of_stacks(node, data, features, outputs)


def swap_last(op: Emitter, value: Value, n: int) -> Value:
    """The last two of `n` axes exchanged."""
    return op.Transpose(value, perm=[*range(n - 2), n - 1, n - 2])
