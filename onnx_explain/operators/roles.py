"""The eight roles and the register of rooms: an operator's room says what it *is*, as functions that emit ONNX nodes.

No method, no rule and no relevance bookkeeping lives here. ``x w b y`` are the forward tensors, ``s`` what an adjoint is
applied to, ``r`` relevance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank

Kind = Literal["weighted", "average", "scale", "normalisation"]
Sign = Literal["any", "nonnegative", "inherits", "floored"]


@dataclass(frozen=True)
class Gram:
    """The similarity of the patches that a linear map reads, in place of weights: G = XᵀX of the patches X [N, G, K, P].

    `similarity(op, x)` is [N, groups, P, P]; `spread(op, x, m, like)` is the adjoint of taking patches, applied to X·m.
    """

    similarity: Callable[[Emitter, Value], Value]
    spread: Callable[[Emitter, Value, Value, Value], Value]


@dataclass(frozen=True)
class PerSample:
    """``y = L_w(x)`` with a weight w of its own for every sample, at any batch size, in batched matrix products.

    Outputs are laid out in rows [N, groups, M, P]: `rows(op, r)` lays out a tensor of y's shape, and any number M of rows
    per group may be stacked. `transpose_weight(op, s, x)` is the gradient of ⟨s, L_w x⟩ by w, per sample; `forward(op, x,
    w)` gives rows, `transpose(op, s, w, like)` takes them; x and `like` have the operand's shape. `kernel`: the window,
    empty for a dense map. `gram`: the same without weights, where that is measured to be faster.
    """

    rows: Callable[[Emitter, Value], Value]
    transpose_weight: Callable[[Emitter, Value, Value], Value]
    forward: Callable[[Emitter, Value, Value], Value]
    transpose: Callable[[Emitter, Value, Value, Value], Value]
    kernel: tuple[int, ...] = ()
    gram: Gram | None = None


@dataclass(frozen=True)
class Linear:
    """``y = L_w(x) + b``, linear in x and, where `weight` is given, in w.

    `forward(op, x, w)` is bias-free; `transpose(op, s, w, like)` has the shape of `like`, a tensor of x's shape.
    `kind`: ``weighted`` has a weight whose sign a rule may look at; ``average`` has non-negative coefficients that sum
    what is pooled (pools, means, resizing); ``scale`` multiplies by a constant; ``normalisation`` is an affine map per
    channel. `bias(op)` broadcasts to y. `rescale(op, w, c)` multiplies output channel k of w by ``c[k]``. `spatial`: one
    weight serves many positions. `affine`: of a normalisation with fixed statistics, its factor and offset per channel.
    """

    kind: Kind
    forward: Callable[[Emitter, Value, Value | None], Value]
    transpose: Callable[[Emitter, Value, Value | None, Value], Value]
    data: int = 0
    weight: int | None = None
    bias: Callable[[Emitter], Value] | None = None
    rescale: Callable[[Emitter, Value, Value], Value] | None = None
    channel_axis: int = 1
    spatial: bool = False
    affine: tuple[Callable[[Emitter], Value], Callable[[Emitter], Value]] | None = None
    per_sample: Callable[[], PerSample] | None = None


@dataclass(frozen=True)
class Sum:
    """``y = Σ c_k x_k`` with the operands broadcast; `coefficients` are one number per operand."""

    coefficients: tuple[float, ...]


@dataclass(frozen=True)
class Product:
    """A function linear in each of several active operands: `vjp(op, r, k)` is the adjoint with the others held fixed.

    `numerators`: the operands that carry what is explained (a divisor or an exponent only scales it). `degree`: how many
    factors one operand brings, one number or one per entry of y. `weighs`: the numerator that is known to weigh the others
    only (a recurrence's gate).
    """

    vjp: Callable[[Emitter, Value, int], Value]
    numerators: tuple[int, ...]
    elementwise: bool = True
    degree: int | Callable[[Emitter], Value] = 1
    weighs: int | None = None

    @property
    def kind(self) -> str:
        """``gated`` where one factor is known to weigh the others only, else ``plain``."""
        return "plain" if self.weighs is None else "gated"

    def bearers(self, active: Collection[int]) -> list[int]:
        """The active operands that relevance may be shared among."""
        return [k for k in self.numerators if k in active and k != self.weighs]

    def shared(self, op: Emitter, y: Value, bearers: int) -> Value:
        """What the factors' shares of y sum to: y, once for each factor of each of so many operands."""
        if callable(self.degree):
            return op.typed(op.Mul(y, op.Mul(self.degree(op), float(bearers))), y)
        factors = bearers * self.degree
        return y if factors == 1 else op.typed(op.Mul(y, float(factors)), y)


@dataclass(frozen=True)
class Pointwise:
    """``y_i = f(x_i)``: `derivative(op)` is ``f'(x)``, from x or from y, whichever is cheaper."""

    derivative: Callable[[Emitter], Value]
    data: int = 0
    rectifier: bool = False  # y = max(x, 0): where y > 0, x == y
    guided: bool = False  # cuts off below 0, so guided backprop and DeconvNet treat it as they do a Relu
    through: bool = False  # stands for the identity: rounding


@dataclass(frozen=True)
class Selection:
    """y takes some of x's entries: `route(op, r)` gives each active operand's share, first maximum in row-major order.

    `leaks`: a constant operand may win, and keep what it wins.
    """

    route: Callable[[Emitter, Value], dict[int, Value]]
    leaks: bool = False


@dataclass(frozen=True)
class Rearrangement:
    """y holds entries of x, moved or repeated: `undo(op, rs)` gives each active operand's share (repeats add up).

    `rs` has one entry per output, None where no relevance came. `leaks`: some entries of y are constants or border.
    """

    undo: Callable[[Emitter, Sequence[Value | None]], dict[int, Value]]
    leaks: bool = False


@dataclass(frozen=True)
class Normalization:
    """``y = x·scale(statistics of x) + …``: exact adjoint `vjp(op, r)`; `linear` holds the statistics constant.

    `softmax` marks the one whose relevance rule is its own.
    """

    vjp: Callable[[Emitter, Value], Value]
    linear: Linear | None = None
    softmax: bool = False


@dataclass(frozen=True)
class NoRelevance:
    """Integers, comparisons, constants: relevance stops here by nature."""


Role = Linear | Sum | Product | Pointwise | Selection | Rearrangement | Normalization | NoRelevance


# For each axis of operand k its place in the first result; None where its entries are joined or picked.
Axes = Callable[[Operation, int], Sequence[int | None]]


@dataclass(frozen=True)
class Room:
    """How an operator takes its role, and what is known of it without looking at numbers.

    `sign` of the result: ``nonnegative``; ``inherits`` non-negativity from all float operands; ``floored`` by its second
    operand. `head`: turns scores into probabilities at the end of a model. `keeps_order`: the entries stay in row-major
    order. `inert`: carries no relevance by nature. `axes`: where an operand's axes are in the result, unless they stay or are
    broadcast.
    """

    role: Callable[[Operation], Role]
    sign: Sign = "any"
    head: bool = False
    keeps_order: bool = False
    inert: bool = False
    axes: Axes | None = None


ROOMS: dict[tuple[str, str], Room] = {}


def room(
    *op_types: str,
    sign: Sign = "any",
    domain: str = "",
    head: bool = False,
    keeps_order: bool = False,
    inert: bool = False,
    axes: Axes | None = None,
    replace: bool = False,
) -> Callable[[Callable[[Operation], Role]], Callable[[Operation], Role]]:
    """Register the room of one or more operators; `replace`: in the place of the one there is."""

    def register(function: Callable[[Operation], Role]) -> Callable[[Operation], Role]:
        for op_type in op_types:
            if (domain, op_type) in ROOMS and not replace:
                raise ValueError(f"operator {domain}.{op_type} has two rooms")
            ROOMS[domain, op_type] = Room(function, sign, head, keeps_order, inert, axes)
        return function

    return register


def find(node: Operation) -> Room | None:
    """The room of an operation, or None."""
    return ROOMS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def reduce_like(op: Emitter, value: Value, like: Value) -> Value:
    """The adjoint of broadcasting `like` to `value`'s shape: sum over the axes that were repeated."""
    if value.shape is not None and like.shape is not None and value.shape == like.shape:
        return value
    if value.shape is None or like.shape is None:
        return op.typed(value, like)
    big, small = dims(value), dims(like)
    extra = len(big) - len(small)
    axes = [*range(extra), *(i + extra for i, d in enumerate(small) if d == 1 and big[i + extra] != 1)]
    if not axes:
        return value
    summed = op.ReduceSum(value, op.ints(*axes), keepdims=1)
    return op.reshape_like(summed, like) if extra else op.typed(summed, like)


def zeros_like(op: Emitter, value: Value) -> Value:
    """A tensor of zeros with the shape and dtype of `value`."""
    sizes = dims(value)
    if all(d is not None for d in sizes):
        return op.typed(op.Expand(op.constant(np.zeros((1,) * len(sizes)), like=value), op.shape_of(value)), value)
    return op.typed(op.Expand(op.constant(np.zeros((1,) * rank(value)), like=value), op.Shape(value)), value)


def per_channel(op: Emitter, vector: Value, y: Value, axis: int = 1) -> Value:
    """A vector [C] shaped to broadcast over `y` along `axis`."""
    after = rank(y) - axis - 1
    return vector if after == 0 else op.Reshape(vector, op.ints(-1, *[1] * after))
