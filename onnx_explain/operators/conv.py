"""Conv and ConvTranspose, and the adjoints of sliding windows that the pools share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from onnx_explain.errors import ModelError, UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, Window, dims, spatial
from onnx_explain.operators.patches import transposed_windows, windows
from onnx_explain.operators.roles import Linear, PerSample, Product, Role, per_channel, room


def _slid_over(node: Operation, k: int) -> list[int | None]:
    """Channels are joined, positions too unless the kernel is one entry long there."""
    x, y, w = dims(node.x), dims(node.y), dims(node.input(1))
    if k != 0:
        return [None] * len(dims(node.input(k)))
    return [0, None, *(a if w[a] == 1 and x[a] == y[a] else None for a in range(2, len(x)))]


@room("Conv", axes=_slid_over)
def conv(node: Operation) -> Role:
    """y[n,o] = Σ w[o,c]·x[n,c] (cross-correlation); a product where the weight is computed from an explained input, too."""
    x, w = node.input(0), node.input(1)
    group = node.integer("group", 1)
    window = Window.of(node, _kernel(node, w), x=x, y=node.y)

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(
            op.Conv(
                x, w, strides=list(window.strides), pads=window.pads, dilations=list(window.dilations), group=group
            ),
            node.y,
        )

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        if w is None:
            raise ModelError(f"{node.where}: has no weight.")
        return op.typed(window_adjoint(op, s, w, window, group), like)

    def per_sample() -> PerSample:
        return windows(window, *_channels(node, x, node.y), group)

    if node.active - {0}:
        return _of_two(node, transpose, per_sample)
    bias = (lambda op: per_channel(op, node.input(2), node.y)) if node.has(2) else None
    return Linear("weighted", forward, transpose, 0, 1, bias, _rescale_first, spatial=True, per_sample=per_sample)


def _of_two(
    node: Operation,
    transpose: Callable[[Emitter, Value, Value | None, Value], Value],
    per_sample: Callable[[], PerSample],
) -> Product:
    """A convolution with a computed weight; its bias stands apart (`ir/apart`)."""
    if node.has(2):
        raise UnsupportedOperator(
            f"{node.where}: its weight or bias is computed, and what it depends on is not known; export it with a separate Add."
        )

    def by_weight(op: Emitter, r: Value) -> Value:
        form = per_sample()
        each = form.transpose_weight(op, form.rows(op, r), node.x)
        total = op.ReduceSum(each, op.ints(0), keepdims=0)
        return op.reshape_like(op.Transpose(total, perm=[0, 2, 1]), node.input(1))

    def vjp(op: Emitter, r: Value, k: int) -> Value:
        return by_weight(op, r) if k == 1 else transpose(op, r, node.input(1), node.x)

    return Product(vjp, (0, 1), elementwise=False)


def _channels(node: Operation, x: Value, y: Value) -> tuple[int, int]:
    """How many channels go in and come out."""
    before, after = dims(x)[1], dims(y)[1]
    if before is None or after is None:
        raise ModelError(
            f"{node.where}: the channels of {x.name!r} and {y.name!r} are not known before the model runs."
        )
    return before, after


def _rescale_first(op: Emitter, w: Value, c: Value) -> Value:
    rank = len(dims(w))
    return op.typed(op.Mul(w, op.Reshape(c, op.ints(-1, *[1] * (rank - 1)))), w)


def _kernel(node: Operation, w: Value) -> list[int]:
    if w.shape is not None:
        return spatial(w)
    kernel = node.ints("kernel_shape")
    if kernel is None:
        raise ModelError(f"{node.where}: the shape of its weight {w.name!r} is not known before the model runs.")
    return kernel


def window_adjoint(op: Emitter, s: Value, w: Value, window: Window, group: int) -> Value:
    """Lᵀs of a convolution with weight w [Co, Ci/group, *kernel]; s [N, Co, *out] to [N, Ci, *size].

    Stride 1 runs as a Conv with the flipped, transposed weight (about twice as fast as ConvTranspose in ONNX Runtime's
    CPU provider), unless so few channels come out that its blocked layout cannot be used (the first layer: 3.3 against
    1.5 ms); other strides as ConvTranspose. `tools/bench_cpu.py` holds the measurement.
    """
    full = [(o - 1) * st + e for o, st, e in zip(window.out, window.strides, window.extent)]
    begin = [e - 1 - b for e, b in zip(window.extent, window.begin)]
    end = [i - f + b + e - 1 for i, f, b, e in zip(window.size, full, window.begin, window.extent)]
    channels = (dims(w)[1] or 1) * group if w.shape is not None else 8
    wide = channels >= 8 or group > 1
    if set(window.strides) == {1} and min(begin + end) >= 0 and wide:
        flipped = flip_spatial(op, swap_channels(op, w, group), window.kernel)
        if w.shape is not None:
            out, wide_in, *kernel = (int(d or 0) for d in dims(w))
            flipped.shape = ir.Shape([wide_in * group, out // group, *kernel])
        return op.Conv(s, flipped, pads=[*begin, *end], dilations=list(window.dilations), group=group)
    after = [f - b - i for f, b, i in zip(full, window.begin, window.size)]
    return op.ConvTranspose(
        s,
        w,
        strides=list(window.strides),
        dilations=list(window.dilations),
        pads=[*window.begin, *(max(a, 0) for a in after)],
        output_padding=[max(-a, 0) for a in after],
        group=group,
    )


def swap_channels(op: Emitter, w: Value, group: int) -> Value:
    """[Co, Ci/g, *k] to [Ci, Co/g, *k]."""
    sizes = [int(d) for d in dims(w) if d is not None]
    rest = list(range(2, len(sizes)))
    if group == 1:
        return op.Transpose(w, perm=[1, 0, *rest])
    co, ci = sizes[0] // group, sizes[1]
    split = op.Reshape(w, op.ints(group, co, ci, *sizes[2:]))
    swapped = op.Transpose(split, perm=[0, 2, 1, *(a + 1 for a in rest)])
    return op.Reshape(swapped, op.ints(group * ci, co, *sizes[2:]))


def flip_spatial(op: Emitter, w: Value, kernel: tuple[int, ...]) -> Value:
    """The kernel mirrored in every spatial axis."""
    axes = [i + 2 for i, k in enumerate(kernel) if k > 1]
    if not axes:
        return w
    n = len(axes)
    return op.Slice(w, op.ints(*[-1] * n), op.ints(*[-(2**31)] * n), op.ints(*axes), op.ints(*[-1] * n))


@room("ConvTranspose", axes=_slid_over)
def conv_transpose(node: Operation) -> Role:
    """The adjoint of a Conv as a forward operator; its own adjoint is that Conv."""
    x, w = node.input(0), node.input(1)
    group = node.integer("group", 1)
    window = transposed_window(node, x, w)

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        keep = ("auto_pad", "dilations", "group", "output_padding", "output_shape", "pads", "strides")
        attributes = {k: v for k, v in node.attributes.items() if k in keep}
        return op.typed(op.ConvTranspose(x, w, **attributes), node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        if w is None:
            raise ModelError(f"{node.where}: has no weight.")
        # output padding beyond the last window is never read: an end pad below zero crops it
        end = [
            (i - 1) * st + e - b - o
            for i, st, e, b, o in zip(spatial(x), window.strides, window.extent, window.begin, window.size)
        ]
        if min(end) < 0:
            n = window.rank
            s = op.Slice(
                s,
                op.ints(*[0] * n),
                op.ints(*(o + min(e, 0) for o, e in zip(window.size, end))),
                op.ints(*range(2, n + 2)),
            )
        return op.typed(
            op.Conv(
                s,
                w,
                strides=list(window.strides),
                dilations=list(window.dilations),
                pads=[*window.begin, *(max(e, 0) for e in end)],
                group=group,
            ),
            like,
        )

    def rescale(op: Emitter, w: Value, c: Value) -> Value:
        sizes = [int(d) for d in dims(w) if d is not None]
        split = op.Reshape(w, op.ints(group, sizes[0] // group, *sizes[1:]))
        scaled = op.Mul(split, op.Reshape(c, op.ints(group, 1, sizes[1], *[1] * (len(sizes) - 2))))
        return op.typed(op.Reshape(scaled, op.ints(*sizes)), w)

    def per_sample() -> PerSample:
        return transposed_windows(window, *_channels(node, x, node.y), group)

    if node.active - {0}:
        return _of_two(node, transpose, per_sample)
    bias = (lambda op: per_channel(op, node.input(2), node.y)) if node.has(2) else None
    return Linear("weighted", forward, transpose, 0, 1, bias, rescale, spatial=True, per_sample=per_sample)


def transposed_window(node: Operation, x: Value, w: Value) -> Window:
    """The geometry as the adjoint Conv sees it: `size` is y's, `out` is x's; pads as ONNX derives them."""
    kernel = _kernel(node, w)
    n = len(kernel)
    window = Window.of(replace(node, attributes={**node.attributes, "auto_pad": "NOTSET"}), kernel, x=node.y, y=x)
    auto = node.text("auto_pad", "NOTSET")
    if "output_shape" not in node.attributes and auto in ("NOTSET", "VALID"):
        return window if auto == "NOTSET" else replace(window, begin=(0,) * n, end=(0,) * n)
    extra = node.ints("output_padding", [0] * n) or [0] * n
    total = [
        max((i - 1) * st + p + e - o, 0)
        for i, st, p, e, o in zip(window.out, window.strides, extra, window.extent, window.size)
    ]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
    return replace(window, begin=begin, end=end)
