"""What a neuron of each weighted operator reads: patches of x, taken tap by tap, so that no data set is ever unfolded.

Σ x·s over all patches is the operator's weight gradient with s in place of the output's gradient (methods.md §7.1): per
kernel tap one product of a strided view of x with s. One position of a convolution is one sample of its neuron, zero
padding included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.view import Operation, Window, dims, spatial
from onnx_explain.operators.conv import transposed_window
from onnx_explain.operators.roles import Linear
from onnx_explain.patterns import Layout

Array = npt.NDArray[Any]
_BLOCK = 1 << 22  # numbers that one block of samples may take
_PIECE = 1 << 24  # numbers that unfolded patches may take


@dataclass(frozen=True)
class Reading:
    """How one operator's neurons read x. layout: of its weight; groups: sets of inputs; scale: a factor beside the weight.

    `blocks(x, y)` cuts a batch into pairs of float64 arrays that fit in memory. `taps(x)` gives, per kernel tap t,
    [G, P, C]: input c of every patch at that tap. `values(y)` is [G, P, O/G]. `taps_count` is T; a patch is [C, T].
    """

    layout: Layout
    groups: int
    scale: float
    taps_count: int
    blocks: Callable[[Array, Array], Iterator[tuple[Array, Array]]]
    taps: Callable[[Array], Iterator[Array]]
    values: Callable[[Array], Array]

    def patches(self, x: Array, positions: int) -> Iterator[tuple[slice, Array]]:
        """The P patches of one block, unfolded piece by piece: which they are, and [G, piece, D]."""
        step = max(1, _PIECE // (self.groups * self.layout.patch))
        for start in range(0, positions, step):
            part = slice(start, start + step)
            found = np.stack([tap[:, part] for tap in self.taps(x)], axis=-1)
            yield part, found.reshape(*found.shape[:2], -1)


def reading(node: Operation, role: Linear) -> Reading:
    """How the neurons of a weighted operator read; UnsupportedOperator where the operator has no entry in READINGS."""
    make = READINGS.get(node.op_type)
    if make is None or role.weight is None:
        raise UnsupportedOperator(
            f"{node.where}: patterns cannot be fitted for this operator; they can for {', '.join(READINGS)}."
        )
    return make(node, role)


# -- sliding windows


def _conv(node: Operation, role: Linear) -> Reading:
    w = node.input(1)
    shape = tuple(d or 1 for d in dims(w))
    window = Window.of(node, spatial(w), x=node.x, y=node.y)
    group = node.integer("group", 1)
    offsets = [tuple(t * d for t, d in zip(tap, window.dilations)) for tap in product(*map(range, window.kernel))]
    reach = [(o - 1) * s + e for o, s, e in zip(window.out, window.strides, window.extent)]
    end = [max(r - i - b, 0) for r, i, b in zip(reach, window.size, window.begin)]

    def padded(x: Array) -> Array:
        return np.pad(x, [(0, 0), (0, 0), *zip(window.begin, end)])

    return _windowed(Layout.plain(shape), group, offsets, window.strides, window.out, padded)


def _conv_transpose(node: Operation, role: Linear) -> Reading:
    """As a convolution of stride 1 over x with zeros between its elements, and the kernel mirrored."""
    w = node.input(1)
    shape = tuple(d or 1 for d in dims(w))
    window = transposed_window(node, node.x, w)
    group = node.integer("group", 1)
    taps = math.prod(window.kernel)
    layout = Layout(shape, (group, shape[0] // group, shape[1], taps), (0, 2, 1, 3), group * shape[1])
    offsets = [
        tuple((k - 1 - t) * d for t, k, d in zip(tap, window.kernel, window.dilations))
        for tap in product(*map(range, window.kernel))
    ]
    length = [o + e - 1 for o, e in zip(window.size, window.extent)]  # `size` is y's, `out` is x's

    def padded(x: Array) -> Array:
        wide = np.zeros((*x.shape[:2], *length))
        for_x, for_wide = [slice(None)] * 2, [slice(None)] * 2
        for n, s, e, b, full in zip(window.out, window.strides, window.extent, window.begin, length):
            first = e - 1 - b
            skip = max(-(first // s), 0) if first < 0 else 0
            kept = [i for i in range(skip, n) if 0 <= first + i * s < full]
            for_x.append(slice(kept[0], kept[-1] + 1) if kept else slice(0))
            for_wide.append(slice(first + kept[0] * s, first + kept[-1] * s + 1, s) if kept else slice(0))
        wide[tuple(for_wide)] = x[tuple(for_x)]
        return wide

    return _windowed(layout, group, offsets, (1,) * window.rank, window.size, padded)


def _windowed(
    layout: Layout,
    group: int,
    offsets: list[tuple[int, ...]],
    strides: tuple[int, ...],
    out: tuple[int, ...],
    padded: Callable[[Array], Array],
) -> Reading:
    positions, each = math.prod(out), layout.neurons // group

    def blocks(x: Array, y: Array) -> Iterator[tuple[Array, Array]]:
        step = max(1, _BLOCK // (positions * (x.shape[1] + 3 * layout.neurons)))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            yield padded(x[part].astype(np.float64)), y[part].astype(np.float64)

    def taps(x: Array) -> Iterator[Array]:
        n, channels = x.shape[0], x.shape[1] // group
        for offset in offsets:
            cut = (slice(o, o + (k - 1) * s + 1, s) for o, k, s in zip(offset, out, strides))
            view = x[(slice(None), slice(None), *cut)]
            grouped = view.reshape(n, group, channels, positions)
            yield np.ascontiguousarray(grouped.transpose(1, 0, 3, 2)).reshape(group, n * positions, channels)

    def values(y: Array) -> Array:
        n = y.shape[0]
        turned = y.reshape(n, group, each, positions).transpose(1, 0, 3, 2)
        return np.ascontiguousarray(turned).reshape(group, n * positions, each)

    return Reading(layout, group, 1.0, len(offsets), blocks, taps, values)


# -- products


def _gemm(node: Operation, role: Linear) -> Reading:
    shape = tuple(d or 1 for d in dims(node.input(role.weight or 0)))
    turned = node.integer("transA" if role.data == 0 else "transB", 0)
    weight_turned = node.integer("transB" if role.data == 0 else "transA", 0)
    # neurons are the columns of B', or the rows of A'
    by_row = bool(weight_turned) if role.data == 0 else not weight_turned
    layout = Layout.plain(shape) if by_row else Layout(shape, shape, (1, 0), shape[1])
    x_turned = bool(turned) if role.data == 0 else not turned

    def blocks(x: Array, y: Array) -> Iterator[tuple[Array, Array]]:
        rows_x, rows_y = (x.T if x_turned else x), (y if role.data == 0 else y.T)
        yield rows_x[None].astype(np.float64), rows_y[None].astype(np.float64)

    return Reading(layout, 1, node.number("alpha", 1.0), 1, blocks, lambda x: iter([x]), lambda y: y)


def _matmul(node: Operation, role: Linear) -> Reading:
    """Leading axes are samples, but where the weight has several matrices: those are groups."""
    left, w, n = role.data == 1, node.input(role.weight or 0), len(dims(node.y))
    shape = tuple(d or 1 for d in dims(w))
    vector = len(shape) == 1
    stack, matrix = (shape[:-2], shape[-2:]) if not vector else ((), (1, *shape) if left else (*shape, 1))
    groups, neurons = math.prod(stack), matrix[0] if left else matrix[1]
    layout = Layout(shape, (groups, *matrix), (0, 1, 2) if left else (0, 2, 1), groups * neurons)
    x_vector = len(dims(node.input(role.data))) == 1

    def arranged(a: Array, lead: tuple[int, ...], missing: bool, turn: bool) -> Array:
        """[G, P, features]."""
        if missing:
            a = a[..., None] if turn else a[..., None, :]
        a = np.swapaxes(a, -1, -2) if turn else a
        a = np.broadcast_to(a, (*lead, *a.shape[-2:]))
        apart = [len(lead) - len(stack) + i for i, d in enumerate(stack) if d > 1]
        front = np.moveaxis(a, apart, range(len(apart)))
        return front.reshape(groups, -1, a.shape[-1]).astype(np.float64)

    def blocks(x: Array, y: Array) -> Iterator[tuple[Array, Array]]:
        if vector:  # y has no axis for the one neuron
            y = y[..., None] if not left else y[..., None, :]
        if x_vector:  # nor one for the one sample
            y = y[..., None, :] if not left else y[..., None]
        lead = y.shape[:-2]
        yield arranged(x, lead, x_vector, left), arranged(y, lead, False, left)

    if n < 1 and not (vector or x_vector):
        raise UnsupportedOperator(f"{node.where}: patterns cannot be fitted for a product without axes.")
    return Reading(layout, groups, 1.0, 1, blocks, lambda x: iter([x]), lambda y: y)


READINGS: dict[str, Callable[[Operation, Linear], Reading]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
