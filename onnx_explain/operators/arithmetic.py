"""Sums, products, scalings and the maximum or minimum of several tensors."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import ModelError, UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.pool import first_maximum
from onnx_explain.operators.roles import (
    Linear,
    NoRelevance,
    Pointwise,
    Product,
    Role,
    Selection,
    Sum,
    reduce_like,
    room,
)
from onnx_explain.operators.secant import Pair, difference, middle, safe_quotient, secant, selected


@room("Add", "Sum", sign="inherits")
def add(node: Operation) -> Sum:
    """y = Σ x_k."""
    return Sum(tuple(1.0 for _ in node.inputs))


@room("Sub")
def sub(node: Operation) -> Sum:
    """y = a - b."""
    return Sum((1.0, -1.0))


@room("Mean", sign="inherits")
def mean(node: Operation) -> Sum:
    """y = Σ x_k / n."""
    return Sum(tuple(1.0 / len(node.inputs) for _ in node.inputs))


@room("Mul", sign="inherits")
def mul(node: Operation) -> Role:
    """y = a·b: a scaling where one operand is constant, a product of two active ones, or of a gate, otherwise."""
    if {0, 1} <= node.active or node.active == {node.weighs}:
        return Product(
            lambda op, r, k: reduce_like(op, _as(op, op.Mul(r, node.input(1 - k)), node.y), node.input(k)),
            (0, 1),
            weighs=node.weighs,
        )
    data = 1 if 1 in node.active else 0
    return _scaling(node, data, lambda op, s: op.Mul(s, node.input(1 - data)))


@room("Div", sign="inherits")
def div(node: Operation) -> Role:
    """y = a/b: a scaling by a constant divisor, a pointwise reciprocal under a constant numerator, else a product."""
    a, b = node.input(0), node.input(1)
    if node.active == {0}:
        return _scaling(node, 0, lambda op, s: op.Div(s, b))
    if node.active == {1}:
        return Pointwise(lambda op: op.Neg(op.Div(node.y, b)), data=1)

    def vjp(op: Emitter, r: Value, k: int) -> Value:
        share = op.Div(r, b) if k == 0 else op.Neg(op.Div(op.Mul(r, node.y), b))
        return reduce_like(op, _as(op, share, node.y), a if k == 0 else b)

    return Product(vjp, (0,))


@secant("Div")
def _div_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    """a·(1/b), by the product rule; Δ(1/b)/Δb = -1/(b·b⁰) needs no quotient of small numbers."""
    (a, b), (a0, b0) = ((p.input(0), p.input(1)) for p in (pair.node, pair.base))
    inverse = middle(op, op.typed(op.Reciprocal(b), b), op.typed(op.Reciprocal(b0), b))
    falling = op.Neg(op.Div(middle(op, a, a0), op.Mul(b, b0)))
    factors = {0: (inverse, a), 1: (falling, b)}
    return {
        k: reduce_like(op, _as(op, op.Mul(r, factor), pair.node.y), x)
        for k, (factor, x) in factors.items()
        if k in pair.node.active
    }


def _scaling(node: Operation, data: int, scale: object) -> Linear:
    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(scale(op, x), node.y)  # type: ignore[operator]

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        return reduce_like(op, _as(op, scale(op, s), node.y), like)  # type: ignore[operator]

    return Linear("scale", forward, transpose, data)


def _as(op: Emitter, value: Value, like: Value) -> Value:
    return op.typed(value, like)


@room("Neg")
def negation(node: Operation) -> Linear:
    """y = -x."""
    return _scaling(node, 0, lambda op, s: op.Neg(s))


@room("Pow")
def power(node: Operation) -> Role:
    """y = x^p: pointwise in x under a constant exponent, in p under a constant base."""
    x, p = node.input(0), node.input(1)

    def by_base(op: Emitter) -> Value:
        exponent = op.CastLike(p, x) if p.dtype != x.dtype else p
        return op.Mul(exponent, op.Pow(x, op.Sub(exponent, op.constant(1.0, like=x))))

    def by_exponent(op: Emitter) -> Value:
        return op.Mul(node.y, op.Log(op.CastLike(x, node.y) if x.dtype != node.y.dtype else x))

    if node.active == {0}:
        return Pointwise(by_base)
    if node.active == {1}:
        return Pointwise(by_exponent, data=1)

    def vjp(op: Emitter, r: Value, k: int) -> Value:
        return reduce_like(op, _as(op, op.Mul(r, by_base(op) if k == 0 else by_exponent(op)), node.y), node.input(k))

    return Product(vjp, (0,))


@secant("Pow")
def _pow_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    """Of two active operands: e^{p·log x}, for x > 0."""
    node, base = pair.node, pair.base
    x, x0, p, p0 = node.input(0), base.input(0), node.input(1), base.input(1)
    logs, logs0 = (op.typed(op.Log(v), x) for v in (x, x0))
    raised = op.Sub(op.Mul(p, logs), op.Mul(p0, logs0))
    m = op.Mul(r, pair.quotient(op, difference(op, node.y, base.y), raised, lambda: node.y))
    rising = pair.quotient(op, difference(op, logs, logs0), difference(op, x, x0), lambda: op.Reciprocal(x))
    return {
        0: reduce_like(op, _as(op, op.Mul(op.Mul(m, middle(op, p, p0)), rising), node.y), x),
        1: reduce_like(op, _as(op, op.Mul(m, middle(op, logs, logs0)), node.y), p),
    }


@room("Mod")
def remainder(node: Operation) -> Role:
    """y = a - b·⌊a/b⌋ (`fmod`: rounded towards zero): a sum whose second coefficient is a step function."""
    a, b = node.input(0), node.input(1)
    if a.dtype is None or not a.dtype.is_floating_point():
        return NoRelevance()
    if node.active == {0}:
        return Pointwise(lambda op: op.Add(op.Mul(node.y, 0.0), 1.0))

    def vjp(op: Emitter, r: Value, k: int) -> Value:
        times = op.Round(op.Div(op.Sub(a, node.y), b))
        return reduce_like(op, _as(op, op.Identity(r) if k == 0 else op.Neg(op.Mul(r, times)), node.y), (a, b)[k])

    return Product(vjp, (0,))


@room("Max", "Min")
def extremum(node: Operation) -> Selection:
    """The winning operand takes all; of equal operands the first."""

    def route(op: Emitter, r: Value) -> dict[int, Value]:
        taken: Value | None = None
        shares: dict[int, Value] = {}
        for k, x in enumerate(node.inputs):
            if x is None:
                raise ModelError(f"{node.where}: operand {k} is missing.")
            equal = op.Equal(x, node.y)
            first = equal if taken is None else op.And(equal, op.Not(taken))
            taken = equal if taken is None else op.Or(taken, equal)
            if k in node.active:
                won = _as(op, op.Where(first, r, op.constant(0.0, like=r)), node.y)
                shares[k] = reduce_like(op, won, x)
        return shares

    return Selection(route, leaks=len(node.active) < len(node.inputs))


@secant("Min")
def _min_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    return selected(op, r, pair, extremum, smallest=True)


def reduced_axes(node: Operation) -> list[int]:
    """The axes a reduction runs over, counted from the front; the 18-style operand or the older attribute."""
    n = rank(node.x)
    axes = node.constant(1)
    listed = [int(a) for a in np.atleast_1d(axes)] if axes is not None else node.ints("axes")
    if not listed:
        return [] if node.integer("noop_with_empty_axes", 0) else list(range(n))
    return sorted({a % n for a in listed})


def axes_left(node: Operation, k: int) -> list[int | None]:
    """Where the axes are that a reduction leaves."""
    gone, keep = set(reduced_axes(node)), node.integer("keepdims", 1)
    return [None if a in gone else a if keep else a - sum(g < a for g in gone) for a in range(rank(node.x))]


@room("ReduceMean", "ReduceSum", sign="inherits", axes=axes_left)
def reduce_sum(node: Operation) -> Linear:
    """Sums or means over axes."""
    axes = reduced_axes(node)
    keep = bool(node.integer("keepdims", 1))
    operands = [op_index for op_index in node.inputs[1:2] if op_index is not None]

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(op.emit(node.op_type, [x, *operands], dict(node.attributes))[0], node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        if not axes:
            return op.typed(op.Identity(s), like)
        kept = s if keep else op.Unsqueeze(s, op.ints(*axes))
        if node.op_type == "ReduceMean":
            kept = op.Div(kept, _count(op, like, axes))
        return op.typed(op.Expand(kept, op.shape_of(like)), like)

    return Linear("average", forward, transpose)


def _count(op: Emitter, like: Value, axes: list[int]) -> Value:
    """How many entries each mean takes, as a scalar; the batch may be among the axes."""
    sizes = [dims(like)[a] for a in axes]
    if all(d is not None for d in sizes):
        return op.constant(np.prod([float(d) for d in sizes if d is not None]), like=like)
    taken = op.Gather(op.Shape(like), op.ints(*axes))
    return op.CastLike(op.ReduceProd(taken, keepdims=0), like)


@room("ReduceMax", "ReduceMin", sign="inherits", axes=axes_left)
def reduce_max(node: Operation) -> Selection:
    """The first extremum over the axes takes all."""
    axes = reduced_axes(node)
    keep = bool(node.integer("keepdims", 1))

    def route(op: Emitter, r: Value) -> dict[int, Value]:
        if not axes:
            return {0: op.typed(op.Identity(r), node.x)}
        r1, y1 = (r, node.y) if keep else (op.Unsqueeze(r, op.ints(*axes)), op.Unsqueeze(node.y, op.ints(*axes)))
        return {0: op.typed(first_maximum(op, r1, node.x, y1, axes), node.x)}

    return Selection(route)


@secant("ReduceMin")
def _reduce_min_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    return selected(op, r, pair, reduce_max, smallest=True)


@room("ReduceL2", sign="nonnegative", axes=axes_left)
def reduce_l2(node: Operation) -> Role:
    """y = √Σx²: as a pointwise map of each x it has the derivative x/y, and 0 where all is zero."""
    axes = reduced_axes(node)
    keep = bool(node.integer("keepdims", 1))

    def vjp(op: Emitter, r: Value, k: int) -> Value:
        r1, y1 = (
            (r, node.y) if keep or not axes else (op.Unsqueeze(r, op.ints(*axes)), op.Unsqueeze(node.y, op.ints(*axes)))
        )
        return op.typed(op.Mul(node.x, safe_quotient(op, r1, y1)), node.x)

    return Product(vjp, (0,), False)


@secant("ReduceL2")
def _reduce_l2_between(op: Emitter, r: Value, pair: Pair) -> dict[int, Value]:
    """√s with s = Σx²: Δ√s/Δs = 1/(y + y⁰) and Δx² = (x + x⁰)Δx."""
    node, axes = pair.node, reduced_axes(pair.node)
    q = safe_quotient(op, op.typed(r, node.y), op.Add(node.y, pair.base.y))
    kept = q if bool(node.integer("keepdims", 1)) or not axes else op.Unsqueeze(q, op.ints(*axes))
    return {0: op.typed(op.Mul(kept, op.Add(node.x, pair.base.x)), node.x)}


def _by_letter(node: Operation, k: int) -> list[int | None]:
    terms, out = _einsum_terms(node)
    return [out.index(c) if c in out else None for c in terms[k]]


@room("Einsum", axes=_by_letter)
def einsum(node: Operation) -> Role:
    """y = Σ over the letters that the output lacks of the product of the operands; the adjoint exchanges operand and output."""
    terms, out = _einsum_terms(node)
    if any(len(set(t)) < len(t) for t in (*terms, out)):
        raise UnsupportedOperator(
            f"{node.where}: takes a diagonal ({node.text('equation', '')!r}); export it as primitives."
        )
    sizes = _einsum_sizes(node, terms)

    def adjoint(op: Emitter, s: Value, k: int, like: Value, others: Sequence[Value]) -> Value:
        rest = [t for i, t in enumerate(terms) if i != k]
        there = {letter for t in (out, *rest) for letter in t}
        found = "".join(letter for letter in terms[k] if letter in there)
        back = op.Einsum(s, *others, equation=f"{','.join((out, *rest))}->{found}")
        missing = [i for i, letter in enumerate(terms[k]) if letter not in there]
        if missing:  # letters of this operand alone were summed: each entry takes the whole
            return op.typed(op.Expand(op.Unsqueeze(back, op.ints(*missing)), op.shape_of(like)), like)
        back.shape = ir.Shape([sizes[letter] for letter in terms[k]])
        return reduce_like(op, back, like)

    def without(k: int) -> list[Value]:
        return [node.input(i) for i in range(len(terms)) if i != k]

    if len(node.active) > 1 or len(terms) > 2:
        return Product(
            lambda op, r, k: adjoint(op, r, k, node.input(k), without(k)), tuple(range(len(terms))), elementwise=False
        )
    data = min(node.active, default=0)

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        operands = [x] if w is None else [x, w] if data == 0 else [w, x]
        return op.typed(op.Einsum(*operands, equation=f"{','.join(terms)}->{out}"), node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        return op.typed(adjoint(op, s, data, like, [] if w is None else [w]), like)

    if len(terms) == 1:
        return Linear("average", forward, transpose)
    return Linear("weighted", forward, transpose, data, 1 - data, channel_axis=max(rank(node.y) - 1, 0))


def _einsum_sizes(node: Operation, terms: Sequence[str]) -> dict[str, int | ir.SymbolicDim]:
    """The length of every letter; an axis of length 1 is repeated to the others' length."""
    sizes: dict[str, int | ir.SymbolicDim] = {}
    for k, term in enumerate(terms):
        for letter, size in zip(term, node.input(k).shape or ()):
            if sizes.get(letter, 1) == 1:
                sizes[letter] = size
    return sizes


def _einsum_terms(node: Operation) -> tuple[list[str], str]:
    """The letters of every operand and of the output, with those that an ellipsis stands for."""
    left, arrow, out = node.text("equation", "").replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [c for c in string.ascii_letters if c not in left and c not in out]
    wide = [rank(x) - len(t.replace("...", "")) for t, x in zip(terms, node.inputs) if x is not None and "..." in t]
    dots = "".join(spare[: max(wide, default=0)])
    terms = [
        t.replace("...", dots[len(dots) - (rank(x) - len(t.replace("...", ""))) :])
        if x is not None and "..." in t
        else t
        for t, x in zip(terms, node.inputs)
    ]
    if arrow:
        return terms, out.replace("...", dots)
    once = sorted({c for c in "".join(terms) if c not in dots and "".join(terms).count(c) == 1})
    return terms, dots + "".join(once)
