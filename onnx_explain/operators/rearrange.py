"""Operators whose output holds entries of the input, moved, dropped or repeated. Undoing puts relevance back in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.errors import ModelError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.roles import NoRelevance, Rearrangement, Role, reduce_like, room, zeros_like


def _single(
    undo: Callable[[Emitter, Value], Value], node: Operation, data: int = 0, *, leaks: bool = False
) -> Rearrangement:
    """A rearrangement of one operand into one output."""

    def whole(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        r = rs[0]
        return {} if r is None else {data: op.typed(undo(op, r), node.input(data))}

    return Rearrangement(whole, leaks)


def _size(node: Operation, axis: int, value: Value | None = None) -> int:
    size = dims(value or node.x)[axis]
    if size is None:
        raise ModelError(
            f"{node.where}: axis {axis} of {(value or node.x).name!r} is not known before the model runs, but entries move along it."
        )
    return size


def _shape_dim(op: Emitter, value: Value, axis: int) -> Value:
    """One dimension as an int64 vector of length 1, static or not."""
    size = dims(value)[axis]
    return op.ints(size) if size is not None else op.Shape(value, start=axis, end=axis + 1)


@room("Reshape", "Flatten", "Squeeze", "Unsqueeze", sign="inherits", keeps_order=True)
def reshape(node: Operation) -> Rearrangement:
    """The same entries in another shape."""
    return _single(lambda op, r: op.reshape_like(r, node.x), node)


@room("Identity", "Dropout", sign="inherits", keeps_order=True)
def identity(node: Operation) -> Rearrangement:
    """The same entries; Dropout as in inference."""
    return _single(lambda op, r: op.Identity(r), node)


@room("Cast", "CastLike", sign="inherits", keeps_order=True)
def cast(node: Operation) -> Role:
    """Another float type carries the same relevance; integers carry none."""
    if node.x.dtype is None or not node.x.dtype.is_floating_point():
        return NoRelevance()
    if node.y.dtype is not None and not node.y.dtype.is_floating_point():
        return NoRelevance()
    dtype = int(node.x.dtype)
    return _single(lambda op, r: op.Cast(r, to=dtype), node)


def _permuted(node: Operation, k: int) -> list[int]:
    perm = node.ints("perm", list(reversed(range(rank(node.x))))) or []
    return [perm.index(a) for a in range(rank(node.x))]


@room("Transpose", sign="inherits", axes=_permuted)
def transpose(node: Operation) -> Rearrangement:
    """Axes permuted; undone by the inverse permutation."""
    n = rank(node.x)
    perm = node.ints("perm", list(reversed(range(n)))) or []
    if sorted(perm) != list(range(n)):
        raise ModelError(f"{node.where}: {perm} is no permutation of its {n} axes.")
    inverse = [perm.index(a) for a in range(n)]
    return _single(lambda op, r: op.Transpose(r, perm=inverse), node)


@room("Concat", sign="inherits")
def concat(node: Operation) -> Rearrangement:
    """Tensors one behind the other; each takes its own slice back."""
    axis = node.integer("axis", 0) % rank(node.y)

    def undo(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        r = rs[0]
        if r is None:
            return {}
        shares: dict[int, Value] = {}
        start = op.ints(0)
        for k, x in enumerate(node.inputs):
            if x is None:
                raise ModelError(f"{node.where}: operand {k} is missing.")
            length = _shape_dim(op, x, axis)
            stop = _add(op, start, length)
            if k in node.active:
                shares[k] = op.typed(op.Slice(r, start, stop, op.ints(axis)), x)
            start = stop
        return shares

    return Rearrangement(undo, leaks=len(node.active) < len(node.inputs))


def _add(op: Emitter, a: Value, b: Value) -> Value:
    if a.const_value is not None and b.const_value is not None:
        return op.ints(*(int(v) for v in a.const_value.numpy() + b.const_value.numpy()))
    return op.Add(a, b)


@room("Split", sign="inherits")
def split(node: Operation) -> Rearrangement:
    """One tensor cut into several; undone by joining them, zero where none came back."""
    axis = node.integer("axis", 0) % rank(node.x)

    def undo(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        if all(r is None for r in rs):
            return {}
        parts = [r if r is not None else zeros_like(op, y) for r, y in zip(rs, node.outputs)]
        return {0: op.typed(op.Concat(*parts, axis=axis), node.x)}

    return Rearrangement(undo)


_ENDLESS = 2**31 - 1  # an end that cuts nothing off, as exporters write it


@room("Slice", sign="inherits")
def slice_(node: Operation) -> Rearrangement:
    """Entries start:end:step along axes; the rest receive zero. Bounds may be computed while the model runs."""
    if not node.has(1) or not node.has(2):
        raise ModelError(f"{node.where}: its starts and ends are missing.")
    axes, n = node.constant(3), rank(node.x)
    bounds = [_known(node, i) for i in (1, 2, 4)]
    count = dims(node.input(1))[0]
    if axes is None and count is None:
        raise ModelError(f"{node.where}: how many axes it cuts is not known before the model runs.")
    where = [int(a) % n for a in (axes if axes is not None else range(count or 0))]

    def undo(op: Emitter, r: Value) -> Value:
        for place, axis in enumerate(where):
            start, end, step = (None if b is None else int(b[place]) for b in bounds)
            size = dims(node.x)[axis]
            if start is None or end is None or step is None or size is None:
                if (start, step) != (0, 1) or end is None or end < _ENDLESS:
                    r = _uncut(op, node, op.typed_rank(r, n), axis, place)
            else:
                r = scatter_axis(op, r, axis, np.arange(size)[_python_slice(start, end, step, size)], size)
        return r

    return _single(undo, node)


def _known(node: Operation, index: int) -> npt.NDArray[Any] | None:
    """Bounds or steps, where they are known before the model runs; steps left out are 1."""
    if not node.has(index):
        return np.ones(dims(node.input(1))[0] or 64, np.int64)
    return None if node.input(index).const_value is None else node.constant(index)


def _python_slice(start: int, end: int, step: int, size: int) -> slice:
    """ONNX clamps out-of-range ends as Python does, except that a negative step may run past the first entry."""
    if step < 0 and end < -size:
        return slice(min(start, size - 1) if start >= 0 else start, None, step)
    return slice(start, end, step)


def _uncut(op: Emitter, node: Operation, r: Value, axis: int, place: int) -> Value:
    """A slice whose bounds, or whose axis, only the run knows: the places are cut as the entries were, and say where from."""
    one = op.constant(1, dtype=np.int64)
    size = op.Shape(node.x, start=axis, end=axis + 1)
    places = op.Range(op.constant(0, dtype=np.int64), op.Squeeze(size, op.ints(0)), one)
    start, end, *by = (
        op.Cast(op.Slice(node.input(i), op.ints(place), op.ints(place + 1), op.ints(0)), to=int(ir.DataType.INT64))
        for i in (1, 2, 4)
        if node.has(i)
    )
    kept = op.Slice(places, start, end, op.ints(0), *by)
    before, after = op.Shape(r, start=0, end=axis), op.Shape(r, start=axis + 1)
    zeros = op.Expand(op.constant(0.0, like=r), op.Concat(before, size, after, axis=0))
    column = [1] * rank(node.x)
    column[axis] = -1
    index = op.Expand(op.Reshape(kept, op.ints(*column)), op.Shape(r))
    back = op.ScatterElements(zeros, index, r, axis=axis)
    own = list(r.shape or [None] * rank(node.x))
    back.shape = ir.Shape([*own[:axis], node.x.shape[axis] if node.x.shape is not None else None, *own[axis + 1 :]])
    return back


def scatter_axis(op: Emitter, r: Value, axis: int, sources: npt.NDArray[np.int64], size: int) -> Value:
    """Adjoint of ``x.take(sources, axis)``: entry k of r returns to `sources[k]`; -1 drops it; repeats add up.

    A run is padded, distinct sources are gathered beside a slot of zeros, repeated ones go through a 0/1 matrix.
    """
    n = len(sources)
    if n and np.array_equal(sources, np.arange(sources[0], sources[0] + n)) and sources[0] >= 0:
        if n == size:
            return r
        return _sized(op.pad_axis(r, axis, int(sources[0]), size - n - int(sources[0])), r, axis, size)
    kept = sources[sources >= 0]
    if len(np.unique(kept)) == len(kept):
        back = np.full(size, n)
        back[kept] = np.flatnonzero(sources >= 0)
        padded = r if not np.any(back == n) else op.pad_axis(r, axis, 0, 1)
        return _sized(op.Gather(padded, op.constant(back, dtype=np.int64), axis=axis), r, axis, size)
    matrix = np.zeros((n, size))
    matrix[np.flatnonzero(sources >= 0), kept] = 1.0
    return _sized(apply_along(op, r, op.constant(matrix, like=r), axis), r, axis, size)


def _sized(value: Value, like: Value, axis: int, size: int) -> Value:
    """Note the shape of `like` with another size along one axis."""
    if like.shape is not None:
        value.shape = ir.Shape([size if a == axis else d for a, d in enumerate(like.shape)])
    return value


def apply_along(op: Emitter, x: Value, matrix: Value, axis: int, n: int | None = None) -> Value:
    """X contracted along `axis` with a matrix [size, new size]."""
    n = n if n is not None else rank(x)
    if axis == n - 1:
        return op.MatMul(x, matrix)
    if axis == n - 2:
        return op.MatMul(op.Transpose(matrix, perm=[1, 0]), x)
    perm = [a for a in range(n) if a != axis] + [axis]
    back = [perm.index(a) for a in range(n)]
    return op.Transpose(op.MatMul(op.Transpose(x, perm=perm), matrix), perm=back)


@room("Pad")
def pad(node: Operation) -> Rearrangement:
    """Borders added (or, below zero, cut): a constant border is dropped, a mirrored or repeated one adds up."""
    pads = node.constant(1)
    if pads is None:
        raise ModelError(f"{node.where}: its pads are missing.")
    n = rank(node.x)
    axes = node.constant(3)
    listed = [int(a) % n for a in axes] if axes is not None else list(range(n))
    before = {a: int(pads[i]) for i, a in enumerate(listed)}
    after = {a: int(pads[i + len(listed)]) for i, a in enumerate(listed)}
    mode = node.text("mode", "constant")

    def undo(op: Emitter, r: Value) -> Value:
        for axis in listed:
            if before[axis] == 0 and after[axis] == 0:
                continue
            sources = padded_sources(_size(node, axis), before[axis], after[axis], mode)
            kept = np.flatnonzero(sources >= 0)
            run = len(kept) and np.array_equal(sources[kept], np.arange(sources[kept[0]], sources[kept[0]] + len(kept)))
            if run and kept[-1] - kept[0] + 1 == len(kept):
                # a constant border: cut it off, then put zeros where a negative pad had cut the input
                if len(kept) < len(sources):
                    r = op.Slice(r, op.ints(int(kept[0])), op.ints(int(kept[-1]) + 1), op.ints(axis))
                r = scatter_axis(op, op.typed_rank(r, n), axis, sources[kept], _size(node, axis))
            else:
                r = scatter_axis(op, op.typed_rank(r, n), axis, sources, _size(node, axis))
        return r

    return _single(undo, node, leaks=True)


def padded_sources(size: int, before: int, after: int, mode: str) -> npt.NDArray[np.int64]:
    """Which entry of the axis each padded position shows; -1 for a constant border."""
    places = np.arange(-before, size + after)
    if mode == "edge":
        return np.clip(places, 0, size - 1)
    if mode == "wrap":
        return places % size
    if mode == "reflect":
        if size == 1:
            return np.zeros_like(places)
        period = 2 * (size - 1)
        folded = np.abs(places) % period
        return np.where(folded < size, folded, period - folded)
    return np.where((places >= 0) & (places < size), places, -1)


@room("Expand", sign="inherits")
def expand(node: Operation) -> Rearrangement:
    """Entries repeated by broadcasting add up."""
    return _single(lambda op, r: reduce_like(op, op.typed(r, node.y), node.x), node)


@room("Tile", sign="inherits")
def tile(node: Operation) -> Rearrangement:
    """The whole tensor repeated along axes; the copies add up."""
    repeats = node.constant(1)
    if repeats is None:
        raise ModelError(f"{node.where}: its repeats are missing.")

    def undo(op: Emitter, r: Value) -> Value:
        # every axis apart as (copy, place): the batch keeps its open size, all others are known
        cells: list[int] = []
        for axis, count in enumerate(int(c) for c in repeats):
            size = dims(node.x)[axis]
            cells += [count, size if size is not None else -1]
        copies = op.ints(*range(0, len(cells), 2))
        return op.ReduceSum(op.Reshape(r, op.ints(*cells)), copies, keepdims=0)

    return (
        _single(undo, node) if all(int(c) > 0 for c in repeats) else _single(lambda op, r: zeros_like(op, node.x), node)
    )


def _picked(node: Operation, k: int) -> list[int | None]:
    axis, wide = node.integer("axis", 0) % rank(node.x), rank(node.input(1))
    if k == 1:
        return [axis + a for a in range(wide)]
    return [None if a == axis else a if a < axis else a + wide - 1 for a in range(rank(node.x))]


@room("Gather", sign="inherits", axes=_picked)
def gather(node: Operation) -> Rearrangement:
    """Entries picked by index along an axis; an entry picked twice receives both shares."""
    axis = node.integer("axis", 0) % rank(node.x)
    indices = node.input(1)
    size = dims(node.x)[axis]

    def undo(op: Emitter, r: Value) -> Value:
        picks = indices.const_value
        sizes = dims(indices)
        count = None if None in sizes else math.prod(d or 0 for d in sizes)
        shape = [*dims(node.x)[:axis], count, *dims(node.x)[axis + 1 :]]
        flat = r
        if rank(indices) != 1:
            before, after = op.Shape(r, start=0, end=axis), op.Shape(r, start=axis + rank(indices))
            known = shape.count(None) < 2
            flat = op.Reshape(
                r,
                op.ints(*(-1 if d is None else d for d in shape))
                if known
                else op.Concat(before, op.ints(-1), after, axis=0),
            )
        flat.shape = ir.Shape(shape)
        if picks is not None and size is not None:
            sources = np.asarray(picks.numpy()).reshape(-1).astype(np.int64) % size
            return scatter_axis(op, flat, axis, sources, size)
        return _scatter_by(op, node, flat, axis)

    return _single(undo, node)


def _scatter_by(op: Emitter, node: Operation, r: Value, axis: int) -> Value:
    """Indices known only when the model runs."""
    shape = [1] * rank(node.x)
    shape[axis] = -1
    index = op.Expand(op.Reshape(node.input(1), op.ints(*shape)), op.Shape(r))
    return op.ScatterElements(zeros_like(op, node.x), index, r, axis=axis, reduction="add")


@room("GatherElements", sign="inherits")
def gather_elements(node: Operation) -> Rearrangement:
    """One index per output entry."""
    axis = node.integer("axis", 0)
    return _single(
        lambda op, r: op.ScatterElements(zeros_like(op, node.x), node.input(1), r, axis=axis, reduction="add"), node
    )


@room("GatherND", sign="inherits")
def gather_nd(node: Operation) -> Rearrangement:
    """Slices picked by index tuples, behind `batch_dims` axes that both operands share."""
    shared = node.integer("batch_dims", 0)

    def undo(op: Emitter, r: Value) -> Value:
        if not shared:
            return op.ScatterND(zeros_like(op, node.x), node.input(1), r, reduction="add")
        # the shared axes as one, whose number joins the tuples
        x, indices = (_joined(op, v, shared) for v in (zeros_like(op, node.x), node.input(1)))
        zero, one = (op.constant(v, dtype=np.int64) for v in (0, 1))
        count = op.Squeeze(op.Shape(indices, start=0, end=1), op.ints(0))
        own = op.Reshape(op.Range(zero, count, one), op.ints(-1, *[1] * (rank(node.input(1)) - shared)))
        each = op.Expand(own, op.Concat(op.Shape(indices, start=0, end=-1), op.ints(1), axis=0))
        tuples = op.Concat(each, op.Cast(indices, to=7), axis=-1)
        return op.reshape_like(op.ScatterND(x, tuples, _joined(op, r, shared), reduction="add"), node.x)

    return _single(undo, node)


def _joined(op: Emitter, value: Value, count: int) -> Value:
    """The first `count` axes as one."""
    return op.Reshape(value, op.Concat(op.ints(-1), op.Shape(value, start=count), axis=0)) if count > 1 else value


def _pictures(node: Operation, k: int) -> list[int | None]:
    return [0, None, None, None]


@room("DepthToSpace", sign="inherits", axes=_pictures)
def depth_to_space(node: Operation) -> Rearrangement:
    """Channels laid out as blocks of pixels."""
    block = node.integer("blocksize", 1)
    if node.text("mode", "DCR") == "DCR":
        return _single(lambda op, r: op.SpaceToDepth(r, blocksize=block), node)
    c, h, w = (_size(node, a) for a in (1, 2, 3))

    def undo(op: Emitter, r: Value) -> Value:
        split = op.Reshape(r, op.ints(0, c // block**2, h, block, w, block))
        return op.reshape_like(op.Transpose(split, perm=[0, 1, 3, 5, 2, 4]), node.x)

    return _single(undo, node)


@room("SpaceToDepth", sign="inherits", axes=_pictures)
def space_to_depth(node: Operation) -> Rearrangement:
    """Blocks of pixels laid out as channels."""
    block = node.integer("blocksize", 1)
    return _single(lambda op, r: op.DepthToSpace(r, blocksize=block, mode="DCR"), node)


@room("Where")
def where(node: Operation) -> Rearrangement:
    """Each entry comes from one of two tensors; the condition carries nothing."""

    def undo(op: Emitter, rs: Sequence[Value | None]) -> dict[int, Value]:
        r = rs[0]
        if r is None:
            return {}
        zero = op.constant(0.0, like=r)
        shares = {1: op.Where(node.input(0), r, zero), 2: op.Where(node.input(0), zero, r)}
        return {k: reduce_like(op, op.typed(v, node.y), node.input(k)) for k, v in shares.items() if k in node.active}

    return Rearrangement(undo, leaks=len(node.active) < 2)
