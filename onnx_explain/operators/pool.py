"""Pooling: averages are linear, maxima select. Ties go to the first maximum in row-major window order, everywhere."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, Window, dims, rank, spatial
from onnx_explain.operators.conv import window_adjoint
from onnx_explain.operators.roles import Linear, Selection, room


def _pool_window(node: Operation) -> Window:
    """A pool's geometry; under `ceil_mode` the last window may reach past the end pad, so the end pad grows with it."""
    kernel = node.ints("kernel_shape") or []
    window = Window.of(node, kernel, x=node.x, y=node.y)
    reach = [(o - 1) * s + e - b - i for o, s, e, b, i in zip(window.out, window.strides, window.extent, window.begin, window.size)]
    return replace(window, end=tuple(max(e, r) for e, r in zip(window.end, reach)))


# --------------------------------------------------------------------------------------------------- averages


@room("AveragePool", sign="inherits")
def average_pool(node: Operation) -> Linear:
    """Means over windows; `count_include_pad` and `ceil_mode` decide the divisor of border windows."""
    window = _pool_window(node)
    weights = _shares(node, window)

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(op.AveragePool(x, **node.attributes), node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        return op.typed(sum_adjoint(op, op.Mul(s, op.constant(weights, like=s)), window, like), like)

    return Linear("average", forward, transpose)


def _shares(node: Operation, window: Window) -> np.ndarray:
    """1/count of every output position, shape [*out] (or a scalar where all agree)."""
    counts = np.ones((), dtype=np.float64)
    declared = Window.of(node, window.kernel, x=node.x, y=node.y)
    padded = bool(node.int("count_include_pad", 0))
    for axis in range(window.rank):
        low, high = (-window.begin[axis], window.size[axis] + declared.end[axis]) if padded else (0, window.size[axis])
        starts = np.arange(window.out[axis]) * window.strides[axis] - window.begin[axis]
        taps = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        count = ((taps >= low) & (taps < high)).sum(1).astype(np.float64)
        counts = np.multiply.outer(counts, count) if axis else count
    shares = 1.0 / np.maximum(counts, 1.0)
    return shares.reshape(-1)[:1].reshape(()) if np.ptp(shares) == 0 else shares


def sum_adjoint(op: Emitter, s: Value, window: Window, like: Value) -> Value:
    """Adjoint of summing each window: every entry of s spread over its window; [N, C, *out] to [N, C, *size]."""
    if window.strides == window.kernel and set(window.dilations) == {1} and not any(window.pads) and _tiles(window):
        return _spread(op, s, window)
    n = window.rank
    flat = op.Reshape(s, op.ints(-1, 1, *window.out))
    kernel = op.constant(np.ones((1, 1, *window.kernel)), like=s)
    kernel.dtype = s.dtype
    back = window_adjoint(op, flat, kernel, window, 1)
    if any(e > 0 for e in window.end) or n:
        back.shape = None
    return op.reshape_like(back, like)


def _tiles(window: Window) -> bool:
    return all(o * k == i for o, k, i in zip(window.out, window.kernel, window.size))


def _spread(op: Emitter, s: Value, window: Window) -> Value:
    """Non-overlapping windows: repeat each entry kernel times along each axis, by broadcasting."""
    channels = dims(s)[1]
    lead = [0, channels] if channels is not None else [0, 0]
    cells = list(itertools.chain.from_iterable((o, 1) for o in window.out))
    split = op.Reshape(s, op.ints(*[int(d or 0) for d in lead], *cells))
    block = list(itertools.chain.from_iterable((1, k) for k in window.kernel))
    spread = op.Mul(split, op.constant(np.ones((1, 1, *block)), like=s))
    return op.Reshape(spread, op.ints(*[int(d or 0) for d in lead], *window.size))


@room("GlobalAveragePool", sign="inherits")
def global_average_pool(node: Operation) -> Linear:
    """The mean over all spatial positions."""
    count = math.prod(spatial(node.x))

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(op.GlobalAveragePool(x), node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        return op.typed(op.Expand(op.Mul(s, 1.0 / count), op.shape_of(like)), like)

    return Linear("average", forward, transpose)


# --------------------------------------------------------------------------------------------------- maxima


@room("MaxPool", sign="inherits")
def max_pool(node: Operation) -> Selection:
    """Winner takes all: each window's entry goes to its first maximum; overlapping windows add."""
    window = _pool_window(node)

    def route(op: Emitter, r: Value) -> dict[int, Value]:
        return {0: op.typed(route_windows(op, r, node.x, node.y, window), node.x)}

    return Selection(route)


def route_windows(op: Emitter, r: Value, x: Value, y: Value, window: Window) -> Value:
    """r [N, C, *out] to the first maximum of each window of x [N, C, *size], without MaxPool's slow Indices.

    For each offset in the window, in row-major order: the entries of x at that offset that equal the maximum and were
    not preceded by another. Their shares go back into place by phase: offsets that agree modulo the stride fall on the
    same sub-lattice of the input and are added there; the lattices are interleaved at the end.
    """
    n = window.rank
    lead = [0, 0]
    padded, origin = _pad_input(op, x, window)
    taken: Value | None = None
    planes: dict[tuple[int, ...], Value] = {}
    cells = [max((origin[a] - 1) // window.strides[a] + 1, 1) for a in range(n)]
    for offset in itertools.product(*(range(k) for k in window.kernel)):
        start = [offset[a] * window.dilations[a] for a in range(n)]
        share, taken = _winners(op, r, padded, y, window, start, taken)
        phase = tuple(start[a] % window.strides[a] for a in range(n))
        shift = [start[a] // window.strides[a] for a in range(n)]
        after = [cells[a] - window.out[a] - shift[a] for a in range(n)]
        placed = share if not any(shift + after) else op.Pad(share, op.ints(0, 0, *shift, 0, 0, *after))
        planes[phase] = op.Add(planes[phase], placed) if phase in planes else placed
    whole = _interleave(op, planes, window, cells, lead, r)
    stop = [window.begin[a] + window.size[a] for a in range(n)]
    lattice = [cells[a] * window.strides[a] for a in range(n)]
    if list(window.begin) == [0] * n and stop == lattice:
        return whole
    return op.Slice(whole, op.ints(*window.begin), op.ints(*stop), op.ints(*range(2, n + 2)))


def _pad_input(op: Emitter, x: Value, window: Window) -> tuple[Value, list[int]]:
    """x with the border no maximum can take, and its size."""
    size = [b + i + max(e, 0) for b, i, e in zip(window.begin, window.size, window.end)]
    if not any(window.pads):
        return x, size
    low = np.finfo(x.dtype.numpy()).min if x.dtype is not None else -np.inf
    return op.Pad(x, op.ints(0, 0, *window.begin, 0, 0, *(max(e, 0) for e in window.end)), op.constant(low, like=x)), size


def _winners(
    op: Emitter, r: Value, padded: Value, y: Value, window: Window, start: list[int], taken: Value | None
) -> tuple[Value, Value]:
    n = window.rank
    stop = [start[a] + (window.out[a] - 1) * window.strides[a] + 1 for a in range(n)]
    view = op.Slice(padded, op.ints(*start), op.ints(*stop), op.ints(*range(2, n + 2)), op.ints(*window.strides))
    equal = op.Equal(view, y)
    first = equal if taken is None else op.And(equal, op.Not(taken))
    return op.Where(first, r, op.constant(0.0, like=r)), equal if taken is None else op.Or(taken, equal)


def _interleave(
    op: Emitter, planes: dict[tuple[int, ...], Value], window: Window, cells: list[int], lead: list[int], r: Value
) -> Value:
    """Planes per phase [N, C, *cells] to [N, C, *cells·strides]; phases no offset reaches stay zero."""
    phases = list(itertools.product(*(range(s) for s in window.strides)))
    if len(phases) == 1:
        return planes[phases[0]]
    some = next(iter(planes.values()))
    zero = op.Mul(some, 0.0) if any(p not in planes for p in phases) else some
    n = window.rank
    stacked = op.Concat(*(op.Unsqueeze(planes.get(p, zero), op.ints(2)) for p in phases), axis=2)
    split = op.Reshape(stacked, op.ints(*lead, *window.strides, *cells))
    perm = [0, 1, *itertools.chain.from_iterable((2 + n + a, 2 + a) for a in range(n))]
    return op.Reshape(op.Transpose(split, perm=perm), op.ints(*lead, *(c * s for c, s in zip(cells, window.strides))))


@room("GlobalMaxPool", sign="inherits")
def global_max_pool(node: Operation) -> Selection:
    """The first maximum over all spatial positions takes all."""

    def route(op: Emitter, r: Value) -> dict[int, Value]:
        axes = list(range(2, rank(node.x)))
        return {0: op.typed(first_maximum(op, r, node.x, node.y, axes), node.x)}

    return Selection(route)


def first_maximum(op: Emitter, r: Value, x: Value, y: Value, axes: list[int]) -> Value:
    """r (reduced axes kept, size 1) to the first maximum of x over `axes`, in row-major order of those axes."""
    count = math.prod(d for a, d in enumerate(dims(x)) if a in axes and d is not None)
    order = np.arange(count, 0, -1, dtype=np.float64)
    shape = [d if a in axes and d is not None else 1 for a, d in enumerate(dims(x))]
    ranks = op.constant(order.reshape(shape), dtype=np.float32 if count < 2**24 else np.float64)
    score = op.Where(op.Equal(x, y), ranks, op.constant(0.0, like=ranks))
    best = op.ReduceMax(score, op.ints(*axes), keepdims=1)
    return op.Where(op.And(op.Equal(score, best), op.Greater(score, 0.0)), r, op.constant(0.0, like=r))
