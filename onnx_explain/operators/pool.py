"""Pooling: averages are linear, maxima select. Ties go to the first maximum in row-major window order, everywhere."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, Window, dims, rank, spatial
from onnx_explain.operators.conv import window_adjoint
from onnx_explain.operators.roles import Linear, Selection, room

MOST_TAPS = 4096  # one comparison is emitted per entry of a window's axis


def pool_window(node: Operation) -> Window:
    """A pool's geometry; under `ceil_mode` the last window may reach past the end pad, so the end pad grows with it."""
    kernel = node.ints("kernel_shape") or []
    window = Window.of(node, kernel, x=node.x, y=node.y)
    reach = [
        (o - 1) * s + e - b - i
        for o, s, e, b, i in zip(window.out, window.strides, window.extent, window.begin, window.size)
    ]
    return replace(window, end=tuple(max(e, r) for e, r in zip(window.end, reach)))


# --------------------------------------------------------------------------------------------------- averages


def slid_over(node: Operation, k: int) -> list[int | None]:
    """Samples and channels stay where they are; positions are joined."""
    return [0, 1, *[None] * (rank(node.input(k)) - 2)] if k == 0 else [None] * rank(node.input(k))


@room("AveragePool", sign="inherits", axes=slid_over)
def average_pool(node: Operation) -> Linear:
    """Means over windows; `count_include_pad` and `ceil_mode` decide the divisor of border windows."""
    window = pool_window(node)
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
    padded = bool(node.integer("count_include_pad", 0))
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
    flat = op.Reshape(s, op.ints(-1, 1, *window.out))
    back = window_adjoint(op, flat, op.constant(np.ones((1, 1, *window.kernel)), like=s), window, 1)
    back.shape = None
    return op.reshape_like(back, like)


def _tiles(window: Window) -> bool:
    return all(o * k == i for o, k, i in zip(window.out, window.kernel, window.size))


def _spread(op: Emitter, s: Value, window: Window) -> Value:
    """Non-overlapping windows that tile: each entry repeated over its window."""
    scales = op.constant([1.0, 1.0, *(float(k) for k in window.kernel)], dtype=np.float32)
    return op.Resize(s, None, scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


@room("GlobalAveragePool", sign="inherits", axes=slid_over)
def global_average_pool(node: Operation) -> Linear:
    """The mean over all spatial positions."""
    count = math.prod(spatial(node.x))

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(op.GlobalAveragePool(x), node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        return op.typed(op.Expand(op.Mul(s, 1.0 / count), op.shape_of(like)), like)

    return Linear("average", forward, transpose)


# --------------------------------------------------------------------------------------------------- maxima


@room("MaxPool", sign="inherits", axes=slid_over)
def max_pool(node: Operation) -> Selection:
    """Winner takes all: each window's entry goes to its first maximum; overlapping windows add."""
    window = pool_window(node)
    if max(window.kernel) > MOST_TAPS:
        raise UnsupportedOperator(
            f"{node.where}: a window of {list(window.kernel)} has more than {MOST_TAPS} entries along an axis."
        )

    def route(op: Emitter, r: Value) -> dict[int, Value]:
        return {0: op.typed(route_windows(op, r, node.x, node.y, window), node.x)}

    return Selection(route)


def route_windows(op: Emitter, r: Value, x: Value, y: Value, window: Window) -> Value:
    """R [N, C, *out] to the first maximum of each window of x [N, C, *size], without MaxPool's slow Indices.

    Windows of 2x2 that tile the picture compare maxima over growing parts of the window. All others go axis by axis: the
    maximum of row maxima lies in the first row that holds it, and there at its first place, so that row-major order is
    kept with k + k instead of k·k comparisons.
    """
    if (
        window.kernel == (2, 2)
        and window.strides == (2, 2)
        and _tiles(window)
        and not any(window.pads)
        and set(window.dilations) == {1}
    ):
        return _route_quarters(op, r, x, y, window)
    steps = [_only(window, axis) for axis in range(window.rank)]
    maxima = [x]  # after pooling the last axis, the last two, …
    for step in reversed(steps[1:]):
        maxima.append(_pooled(op, maxima[-1], step))
    maxima.append(y)
    for axis, step in enumerate(steps):
        r = _route_axis(op, r, maxima[window.rank - 1 - axis], maxima[window.rank - axis], step, axis)
    return r


def _only(window: Window, axis: int) -> Window:
    """The window's part along one axis: axes before it are pooled already, those behind it not yet."""
    n = window.rank

    def pick(values: tuple[int, ...], else_: int) -> tuple[int, ...]:
        return tuple(values[a] if a == axis else else_ for a in range(n))

    size = tuple(window.out[a] if a > axis else window.size[a] for a in range(n))
    out = tuple(window.out[a] if a >= axis else window.size[a] for a in range(n))
    return Window(
        pick(window.kernel, 1),
        pick(window.strides, 1),
        pick(window.dilations, 1),
        pick(window.begin, 0),
        pick(window.end, 0),
        size,
        out,
    )


def _pooled(op: Emitter, x: Value, step: Window) -> Value:
    ends = [max(e, 0) for e in step.end]
    y = op.MaxPool(
        x,
        kernel_shape=list(step.kernel),
        strides=list(step.strides),
        dilations=list(step.dilations),
        pads=[*step.begin, *ends],
    )
    y.shape = ir.Shape([*list(x.shape or ())[:2], *step.out])
    return y


def _route_axis(op: Emitter, r: Value, x: Value, y: Value, step: Window, axis: int) -> Value:
    """One axis of `route_windows`: for each offset, the entries that equal the maximum and were not preceded by another.

    Their shares go back by phase: offsets that agree modulo the stride fall on the same sub-lattice of the input and are
    added there; the lattices are interleaved at the end.
    """
    at, stride = axis + 2, step.strides[axis]
    n = step.rank + 2
    begin, end = step.begin[axis], max(step.end[axis], 0)
    padded = x if not begin + end else op.pad_axis(x, at, begin, end, fill=_lowest(x), n=n)
    cells = max((begin + step.size[axis] + end - 1) // stride + 1, 1)
    taken: Value | None = None
    planes: dict[int, Value] = {}
    for offset in range(step.kernel[axis]):
        start = offset * step.dilations[axis]
        stop = start + (step.out[axis] - 1) * stride + 1
        equal = op.Equal(op.Slice(padded, op.ints(start), op.ints(stop), op.ints(at), op.ints(stride)), y)
        first = equal if taken is None else op.And(equal, op.Not(taken))
        taken = equal if taken is None else op.Or(taken, equal)
        share = op.Mul(r, op.Cast(first, to=int(r.dtype or 1)))
        before = start // stride
        after = cells - step.out[axis] - before
        placed = share if not before + after else op.pad_axis(share, at, before, after, n=n)
        phase = start % stride
        planes[phase] = op.Add(planes[phase], placed) if phase in planes else placed
    whole = _interleaved(op, planes, stride, at, n, cells, step)
    if begin == 0 and step.size[axis] == cells * stride:
        return whole
    return op.Slice(whole, op.ints(begin), op.ints(begin + step.size[axis]), op.ints(at))


def _lowest(x: Value) -> float:
    return float(np.finfo(x.dtype.numpy()).min) if x.dtype is not None else -np.inf


def _interleaved(
    op: Emitter, planes: dict[int, Value], stride: int, at: int, n: int, cells: int, step: Window
) -> Value:
    """Planes per phase to one tensor along axis `at`; phases no offset reaches stay zero."""
    if stride == 1:
        return planes[0]
    zero = op.Mul(next(iter(planes.values())), 0.0) if len(planes) < stride else next(iter(planes.values()))
    stacked = op.Concat(*(op.Unsqueeze(planes.get(p, zero), op.ints(at + 1)) for p in range(stride)), axis=at + 1)
    sizes = [step.size[a - 2] if a < at else step.out[a - 2] for a in range(2, n)]
    sizes[at - 2] = cells * stride
    return op.Reshape(stacked, op.ints(0, 0, *sizes))


def _route_quarters(op: Emitter, r: Value, x: Value, y: Value, window: Window) -> Value:
    """2x2 windows that tile: E_k = 1 where the maximum lies among the window's first k entries in row-major order.

    Plain pools over parts of the window give those maxima in the runtime's fast layout; the shares r·(E_k - E_{k-1}) are exact.
    """

    def part(kernel: list[int]) -> Value:
        return op.MaxPool(x, kernel_shape=kernel, strides=[2, 2])

    def among(maximum: Value) -> Value:
        if r.dtype == ir.DataType.FLOAT:
            return op.HardSigmoid(op.Sub(maximum, y), alpha=3.0e38, beta=1.0)
        return op.Cast(op.Equal(maximum, y), to=int(r.dtype or 1))

    top, left = part([1, 2]), part([2, 1])
    firsts = [op.Mul(r, among(m)) for m in (part([1, 1]), top, op.Max(top, left))] + [r]
    shares = [firsts[0], *(op.Sub(firsts[k], firsts[k - 1]) for k in (1, 2, 3))]
    h, w = window.out
    rows = []
    for pair in (shares[:2], shares[2:]):
        row = op.Concat(*(op.Unsqueeze(p, op.ints(4)) for p in pair), axis=4)
        rows.append(op.Reshape(row, op.ints(0, 0, h, 1, 2 * w)))
    return op.Reshape(op.Concat(*rows, axis=3), op.ints(0, 0, 2 * h, 2 * w))


@room("GlobalMaxPool", sign="inherits", axes=slid_over)
def global_max_pool(node: Operation) -> Selection:
    """The first maximum over all spatial positions takes all."""

    def route(op: Emitter, r: Value) -> dict[int, Value]:
        axes = list(range(2, rank(node.x)))
        return {0: op.typed(first_maximum(op, r, node.x, node.y, axes), node.x)}

    return Selection(route)


def first_maximum(op: Emitter, r: Value, x: Value, y: Value, axes: list[int]) -> Value:
    """R (reduced axes kept, size 1) to the first maximum of x over `axes`, in row-major order of those axes."""
    count = math.prod(d for a, d in enumerate(dims(x)) if a in axes and d is not None)
    shape = [d if a in axes and d is not None else 1 for a, d in enumerate(dims(x))]
    # earlier entries rank higher; counted while it runs, so that the file does not carry the count of a large map
    kind = np.float32 if count < 2**24 else np.float64
    falling = op.Range(*(op.constant(v, dtype=kind) for v in (count, 0, -1)))
    ranks = op.Reshape(falling, op.ints(*shape))
    score = op.Where(op.Equal(x, y), ranks, op.constant(0.0, dtype=kind))
    best = op.ReduceMax(score, op.ints(*axes), keepdims=1)
    return op.Where(op.And(op.Equal(score, best), op.Greater(score, 0.0)), r, op.constant(0.0, like=r))
