"""Linear maps with a weight of their own for every sample: patches in rows and batched matrix products.

Plain ONNX for any batch size, fixed or open; a Conv with group = batch would want the batch fixed. Measured on one layer of
`rules.rsp` in ONNX Runtime's CPU provider, 2 cores, batch 1, in ms (plain convolution; patches with weights; the same with
Conv and a weight per sample; similarities of pixels): 64-64 at 224²: 20, 95, 167, -; 128-128 at 112²: 26, 143, 143, -;
256-256 at 56²: 16, 131, 117, 233; 512-512 at 28²: 16, 178, 179, 29; 512-512 at 14²: 2, 51, 59, 2.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod
from typing import Literal

import numpy as np

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value, Window
from onnx_explain.operators.roles import Gram, PerSample

_LARGEST = 1 << 24  # entries of a similarity matrix per group and sample: 64 MB in float32
_LARGEST_PICK = 1 << 20  # entries of the weight that picks patches: 4 MB in float32
_SLOWER = 1.5  # a multiplication of the similarities costs that much more: they are read and written between


def turned(op: Emitter, rows: Value) -> Value:
    """The last two axes exchanged."""
    return op.Transpose(rows, perm=[0, 1, 3, 2])


def windows(window: Window, channels: int, outputs: int, group: int) -> PerSample:
    """The per-sample form of a convolution of `channels` to `outputs`."""
    inner, positions = channels // group, prod(window.out)
    size, choice = inner * prod(window.kernel), cheapest(window, channels, outputs, group)

    def rows(op: Emitter, r: Value) -> Value:
        return op.Reshape(r, op.ints(0, group, outputs // group, positions))

    def unfold(op: Emitter, x: Value) -> Value:
        return op.Reshape(patches(op, x, window, channels), op.ints(0, group, size, positions))

    def fold(op: Emitter, c: Value, like: Value) -> Value:
        return op.typed(op.Reshape(folded(op, c, window), op.ints(-1, channels, *window.size)), like)

    # the weight is kept as [N, groups, K, M]: the patches, which are larger, are never transposed
    def transpose_weight(op: Emitter, s: Value, x: Value) -> Value:
        return op.MatMul(unfold(op, x), turned(op, s))

    def forward(op: Emitter, x: Value, w: Value) -> Value:
        return op.MatMul(turned(op, w), unfold(op, x))

    def transpose(op: Emitter, s: Value, w: Value, like: Value) -> Value:
        return fold(op, op.MatMul(w, s), like)

    def similarity(op: Emitter, x: Value) -> Value:
        columns = unfold(op, x)
        return op.MatMul(turned(op, columns), columns)

    def spread(op: Emitter, x: Value, m: Value, like: Value) -> Value:
        return fold(op, op.MatMul(unfold(op, x), m), like)

    gram = Gram(similarity, spread) if choice == "patches" else pixels(window, channels, group)
    return PerSample(rows, transpose_weight, forward, transpose, window.kernel, None if choice == "weights" else gram)


Choice = Literal["weights", "patches", "pixels"]


def cheapest(window: Window, channels: int, outputs: int, group: int) -> Choice:
    """Which form takes the fewest multiplications: weights, similarities of patches, or those of pixels (stride 1)."""
    inner, rows, positions = channels // group, outputs // group, prod(window.out)
    size = inner * prod(window.kernel)
    pixel = prod(i + b + e for i, b, e in zip(window.size, window.begin, window.end))
    cost: dict[Choice, float] = {"weights": 6 * positions * size * rows}
    if positions**2 <= _LARGEST:
        cost["patches"] = _SLOWER * positions**2 * (2 * size + 4 * rows)
    if set(window.strides) == {1} and pixel**2 <= _LARGEST:
        cost["pixels"] = _SLOWER * (2 * pixel**2 * inner + 4 * positions**2 * rows)
    return min(cost, key=lambda form: cost[form])


def patches(op: Emitter, x: Value, window: Window, channels: int = 0) -> Value:
    """[N, C, *size] to [N, C, ∏kernel, *out]: what the window sees at each position; beyond the border zero.

    Written once, by a depthwise Conv that picks one entry per channel, where `channels` is given and the window is small:
    slices that are joined afterwards are written twice, on one thread (64 channels at 224²: 13 against 20 ms).
    """
    n, taps = window.rank, prod(window.kernel)
    # a window that never reaches the end needs no padding there
    full = [(o - 1) * s + e - b for o, s, e, b in zip(window.out, window.strides, window.extent, window.begin)]
    end = [max(f - i, 0) for f, i in zip(full, window.size)]
    if taps == 1 and set(window.strides) == {1} and not any((*window.begin, *end)):
        return x
    if channels and taps > 1 and channels * taps**2 <= _LARGEST_PICK:
        picks = op.Expand(op.Unsqueeze(_unit(op, x, taps), op.ints(0)), op.ints(channels, taps, taps))
        strides, dilations = list(window.strides), list(window.dilations)
        return op.Conv(
            x,
            op.Reshape(picks, op.ints(channels * taps, 1, *window.kernel)),
            pads=[*window.begin, *end],
            strides=strides,
            dilations=dilations,
            group=channels,
        )
    if any((*window.begin, *end)):
        x = op.Pad(x, op.ints(0, 0, *window.begin, 0, 0, *end))
    axes, parts = op.ints(*range(2, n + 2)), []
    for offset in product(*map(range, window.kernel)):
        first = [o * d for o, d in zip(offset, window.dilations)]
        last = [f + (p - 1) * s + 1 for f, p, s in zip(first, window.out, window.strides)]
        part = op.Slice(x, op.ints(*first), op.ints(*last), axes, op.ints(*window.strides))
        parts.append(op.Unsqueeze(part, op.ints(2)))
    return op.Concat(*parts, axis=2) if len(parts) > 1 else parts[0]


def _unit(op: Emitter, like: Value, size: int) -> Value:
    """The unit matrix, which the runtime computes on load: the file holds scalars alone."""
    square = op.Expand(op.constant(np.zeros((1, 1)), like=like), op.ints(size, size))
    return op.EyeLike(square)


def folded(op: Emitter, c: Value, window: Window) -> Value:
    """The adjoint of `patches`, to be reshaped to [N, C, *size]: every entry back at the place it was seen at."""
    taps = prod(window.kernel)
    full = [(o - 1) * s + e - b for o, s, e, b in zip(window.out, window.strides, window.extent, window.begin)]
    if taps == 1 and set(window.strides) == {1} and full == list(window.size):
        return c
    # one channel per image, so that no weight grows with the channels: tap i of the window adds to where it looked
    place = op.Reshape(_unit(op, c, taps), op.ints(taps, 1, *window.kernel))
    return op.ConvTranspose(
        op.Reshape(c, op.ints(-1, taps, *window.out)),
        place,
        strides=list(window.strides),
        dilations=list(window.dilations),
        pads=[*window.begin, *(max(f - i, 0) for f, i in zip(full, window.size))],
        output_padding=[max(i - f, 0) for f, i in zip(full, window.size)],
    )


def pixels(window: Window, channels: int, group: int) -> Gram:
    """Similarities of patches as sums of those of pixels, shifted along the diagonal; for stride 1."""
    n = window.rank
    padded = [i + b + e for i, b, e in zip(window.size, window.begin, window.end)]
    total = prod(padded)
    positions, inner = prod(window.out), channels // group

    def laid(op: Emitter, x: Value) -> Value:
        full = op.Pad(x, op.ints(0, 0, *window.begin, 0, 0, *window.end)) if any(window.begin + window.end) else x
        return op.Reshape(full, op.ints(0, group, inner, total))

    def similarity(op: Emitter, x: Value) -> Value:
        flat = laid(op, x)
        g = op.Reshape(op.MatMul(turned(op, flat), flat), op.ints(0, group, *padded, *padded))
        for axis, (k, d, out) in enumerate(zip(window.kernel, window.dilations, window.out)):
            where = op.ints(2 + axis, 2 + axis + n)
            g = _added(
                op, [op.Slice(g, op.ints(i * d, i * d), op.ints(i * d + out, i * d + out), where) for i in range(k)]
            )
        return op.Reshape(g, op.ints(0, group, positions, positions))

    def spread(op: Emitter, x: Value, m: Value, like: Value) -> Value:
        m = op.Reshape(m, op.ints(0, group, *window.out, *window.out))
        for axis, (k, d, out, size) in enumerate(zip(window.kernel, window.dilations, window.out, padded)):
            shifted = []
            for i in range(k):
                before, after = [0] * (2 * n + 2), [0] * (2 * n + 2)
                for a in (2 + axis, 2 + axis + n):
                    before[a], after[a] = i * d, size - out - i * d
                shifted.append(op.Pad(m, op.ints(*before, *after)))
            m = _added(op, shifted)
        mixed = op.MatMul(laid(op, x), op.Reshape(m, op.ints(0, group, total, total)))
        image = op.Reshape(mixed, op.ints(0, channels, *padded))
        if any(window.begin + window.end):
            last = [b + i for b, i in zip(window.begin, window.size)]
            image = op.Slice(image, op.ints(*window.begin), op.ints(*last), op.ints(*range(2, n + 2)))
        return op.typed(image, like)

    return Gram(similarity, spread)


def _added(op: Emitter, parts: list[Value]) -> Value:
    return op.Sum(*parts) if len(parts) > 1 else parts[0]


def transposed_windows(window: Window, channels: int, outputs: int, group: int) -> PerSample:
    """The per-sample form of a transposed convolution: the adjoint's window slides over y (`window.size` is y's)."""
    inner, positions = channels // group, prod(window.size)
    own = prod(window.out)

    def rows(op: Emitter, r: Value) -> Value:
        return op.Reshape(r, op.ints(0, group, outputs // group, positions))

    def seen(op: Emitter, s: Value) -> Value:
        """Rows [N, G, M, P] as what each entry of x reaches: [N, G, M·∏kernel, entries]."""
        image = op.Reshape(s, op.ints(0, -1, *window.size))
        image.shape = None
        return op.Reshape(patches(op, image, window), op.ints(0, group, -1, own))

    def flat(op: Emitter, x: Value) -> Value:
        return op.Reshape(x, op.ints(0, group, inner, own))

    def transpose_weight(op: Emitter, s: Value, x: Value) -> Value:
        return op.MatMul(seen(op, s), turned(op, flat(op, x)))

    def forward(op: Emitter, x: Value, w: Value) -> Value:
        reached = op.MatMul(w, flat(op, x))
        rows_of = op.Shape(reached, start=0, end=1)
        return op.Reshape(folded(op, reached, window), op.Concat(rows_of, op.ints(group, -1, positions), axis=0))

    def transpose(op: Emitter, s: Value, w: Value, like: Value) -> Value:
        return op.typed(op.Reshape(op.MatMul(turned(op, w), seen(op, s)), op.ints(0, channels, *window.out)), like)

    return PerSample(rows, transpose_weight, forward, transpose, window.kernel)


def columns(
    unfold: Callable[[Emitter, Value], Value],
    fold: Callable[[Emitter, Value, Value], Value],
    rows: Callable[[Emitter, Value], Value],
) -> PerSample:
    """The per-sample form of a matrix product: `unfold` gives its columns [N, groups, K, P], `fold` takes them back."""

    def transpose_weight(op: Emitter, s: Value, x: Value) -> Value:
        return op.MatMul(unfold(op, x), turned(op, s))

    def forward(op: Emitter, x: Value, w: Value) -> Value:
        return op.MatMul(turned(op, w), unfold(op, x))

    def transpose(op: Emitter, s: Value, w: Value, like: Value) -> Value:
        return fold(op, op.MatMul(w, s), like)

    return PerSample(rows, transpose_weight, forward, transpose)
