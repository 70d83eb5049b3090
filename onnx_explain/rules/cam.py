"""Class activation maps: a layer's value A weighted by the gradient G of the score there, and laid over the input.

`combine` functions give the layer's relevance R [N, C, *positions], whose sum over the channels is the method's map before
rectification; `spread` makes the input's map of it. Formulas of methods.md §3, each verified against its authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt, prod
from typing import Any, Literal

import onnx_ir as ir

from onnx_explain.errors import MethodError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank, shape_text, spatial
from onnx_explain.operators.layout import channel_axis, position_axes
from onnx_explain.operators.roles import find, zeros_like
from onnx_explain.rules.share import positive, safe_divide

Form = Literal["grad-cam", "grad-cam-plus-plus", "hires-cam", "layer-cam", "xgrad-cam"]
_PLUS_PLUS, _XGRAD = 1e-6, 1e-7  # what the authors add to their denominators


def axes_of(a: Value) -> tuple[int, list[int]]:
    """A layer's channel axis, and the axes of its positions."""
    channel = channel_axis(a) or 1
    return channel, [i for i in range(1, rank(a)) if i != channel]


def class_weights(op: Emitter, a: Value, g: Value) -> Value:
    """α: the gradient's mean over the positions, one number per sample and channel."""
    return op.ReduceMean(g, op.ints(*axes_of(a)[1]), keepdims=1)


def layer_relevance(form: Form) -> Callable[[Emitter, Any], Value]:
    """R of a `Turned`: per channel and position; of tokens [N, T, C] without the class token, which has no place.

    grad-cam (Selvaraju et al. 2017, eq. 1-2): mean(G)·A. hires-cam (Draelos & Carin 2020, eq. 3): G⊙A. layer-cam (Jiang et
    al. 2021, eq. 5-6): [G]₊⊙A. grad-cam-plus-plus (Chattopadhay et al. 2018, eq. 10-19): w·A, w = Σ α⊙[G]₊, α = G² / (2·G² +
    G³·ΣA + 1e-6). xgrad-cam (Fu et al. 2020, eq. 8): w·A, w = Σ G⊙A / (ΣA + 1e-7).
    """

    def combine(op: Emitter, turned: Any) -> Value:
        whole, gradient = turned.activation, turned.target
        classes = _class_tokens(whole)
        a, g = (_without(op, v, classes) for v in (whole, gradient))
        where = op.ints(*axes_of(whole)[1])
        r = op.typed(op.Mul(a, _weights(op, form, a, g, where)), a)
        if not classes:
            return r
        r = op.Pad(r, op.ints(0, classes, 0, 0, 0, 0))
        return op.typed(r, whole)

    return combine


def _weights(op: Emitter, form: Form, a: Value, g: Value, where: Value) -> Value:
    if form == "grad-cam":
        return op.ReduceMean(g, where, keepdims=1)
    if form == "hires-cam":
        return g
    if form == "layer-cam":
        return positive(op, g)
    if form == "xgrad-cam":
        sums = op.Add(op.ReduceSum(a, where, keepdims=1), _XGRAD)
        return safe_divide(op, op.ReduceSum(op.typed(op.Mul(g, a), a), where, keepdims=1), sums)
    square = op.typed(op.Mul(g, g), a)
    cubed = op.Mul(op.Mul(square, g), op.ReduceSum(a, where, keepdims=1))
    # where G is zero so is the numerator
    alpha = safe_divide(op, square, op.typed(op.Add(op.Add(op.Mul(square, 2.0), cubed), _PLUS_PLUS), a))
    return op.ReduceSum(op.typed(op.Mul(alpha, positive(op, g)), a), where, keepdims=1)


# ------------------------------------------------------------------------------------------- tokens


def _class_tokens(a: Value) -> int:
    """How many leading tokens of a layer [N, T, C] stand for no place; MethodError where the rest is no square."""
    channel, _ = axes_of(a)
    if rank(a) < 3:
        raise MethodError(
            f"Layer {a.name!r} has the shape {shape_text(a)} and no positions to map; name a layer [N, C, *positions], "
            "or tokens [N, T, C] (`-O layer=NAME`)."
        )
    if rank(a) != 3 or channel != 2:
        return 0
    tokens = spatial(a, 1)[0]
    classes = next((k for k in (0, 1) if tokens > k and isqrt(tokens - k) ** 2 == tokens - k), None)
    if classes is None:
        raise MethodError(
            f"Layer {a.name!r} holds {tokens} tokens, which are no square grid, with or without a class token; "
            "name a layer of the shape [N, C, *positions]."
        )
    return classes


def _without(op: Emitter, value: Value, classes: int) -> Value:
    """Without the leading tokens."""
    if not classes:
        return value
    rest = op.Slice(value, op.ints(classes), op.ints(1 << 31), op.ints(1))
    shape = list(value.shape or ())
    kept = ir.Value(type=value.type, shape=ir.Shape([shape[0], spatial(value, 1)[0] - classes, shape[2]]))
    return op.typed(rest, kept)


# ------------------------------------------------------------------------------------------- over the input


def spread(*, relu: bool) -> Callable[[Emitter, Value, Value], Value]:
    """The input's map: R summed over channels (rectified with `relu`), resized linearly (half-pixel), shared evenly by the
    input's channels, so that their sum is the map. An input without such positions beside one that has them gets zeros.
    """

    def lay(op: Emitter, r: Value, x: Value) -> Value:
        channel, positions = axes_of(r)
        classes = _class_tokens(r)
        m = op.ReduceSum(_without(op, r, classes), op.ints(channel), keepdims=0)
        tokens = rank(r) == 3 and channel == 2
        sizes = spatial(r, 1)
        grid = [isqrt(sizes[0] - classes)] * 2 if tokens else [sizes[p - 1] for p in positions]
        m = op.Reshape(positive(op, m) if relu else m, op.ints(0, 1, *grid))
        return over(op, m, x, len(grid))

    return lay


def over(op: Emitter, m: Value, x: Value, count: int, *, cells: int | None = None) -> Value:
    """A map [N, 1, *grid] over an input of any layout; `cells`: how many the map has, where its sum is to be kept."""
    axes = position_axes(x, count)
    if axes is None:
        inner = _reshaped(x, count)
        if inner is not None:
            return op.reshape_like(over(op, m, inner, count, cells=cells), x)
        if any(position_axes(v, count) for v in _inputs(x) if v is not x):
            return zeros_like(op, x)
        raise MethodError(
            f"Input {x.name!r} has the shape {shape_text(x)}: a map of {count} spatial axes cannot be laid over it; "
            "ask for the map at the layer itself (`at` and `layer` the same name)."
        )
    sizes = dims(x)
    known = [sizes[a] for a in axes]
    if any(s is None for s in known):
        spatial(x, min(axes))
    wide = op.Concat(op.Shape(m, start=0, end=2), op.ints(*[s for s in known if s is not None]), axis=0)
    full = op.Resize(m, None, None, wide, mode="linear", coordinate_transformation_mode="half_pixel")
    others = [a for a in range(1, rank(x)) if a not in axes]
    # [N, 1, positions in their order] to the input's axes
    shape = [0] + [1 if a in others else (sizes[a] or 1) for a in range(1, rank(x))]
    wide_by = 1.0 if cells is None else prod(s or 1 for s in known) / cells
    even = op.Div(full, float(prod(sizes[a] or 1 for a in others)) * wide_by)
    laid = op.Reshape(_ordered(op, even, axes), op.ints(*shape))
    return op.typed(op.Expand(laid, op.shape_of(x)), x)


def _ordered(op: Emitter, m: Value, axes: list[int]) -> Value:
    """The positions' axes in the order that the input has them in."""
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    return m if order == list(range(len(axes))) else op.Transpose(m, perm=[0, 1, *(i + 2 for i in order)])


def _reshaped(x: Value, count: int) -> Value | None:
    """What an input without axes of its own is reshaped to at once, where that has them."""
    for node in (u.node for u in x.uses()):
        operation = Operation.of(node, frozenset({0}))
        found = find(operation)
        if found is None or not found.keeps_order or operation.y.shape is None or node.inputs[0] is not x:
            continue
        if count + 1 <= rank(operation.y) <= count + 2 and dims(operation.y)[:1] == dims(x)[:1]:
            return operation.y
    return None


def _inputs(x: Value) -> list[Value]:
    """The model's inputs of floats, where x is one of them."""
    graph = x.graph
    if graph is None or not x.is_graph_input():
        return []
    return [v for v in graph.inputs if v.dtype is not None and v.dtype.is_floating_point() and v.shape is not None]
