"""GridSample: pictures read between their pixels, at places that are given or computed.

y[n,c,p] = Σ_t Π_a w_a(t)·x[n,c,index(t)]: per spatial axis a few taps, each with an index, a weight, and the weight's slope by
the coordinate. Linear in the picture; the gradient by the grid comes from the slopes. Taps outside are moved one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod

import numpy as np

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank, spatial
from onnx_explain.operators.roles import Linear, Product, Role, room, zeros_like

_CUBIC = -0.75


@dataclass(frozen=True)
class _Tap:
    """Of one axis: index int64 [N, P], weight [N, P] and its slope by the grid's number (None: zero)."""

    index: Value
    weight: Value
    slope: Value | None


@dataclass(frozen=True)
class _Axis:
    """How one spatial axis of `size` entries is read."""

    size: int
    mode: str
    padding: str
    align: bool

    @property
    def reach(self) -> tuple[float, float]:
        """Where the picture ends, in pixels."""
        return (0.0, self.size - 1.0) if self.align else (-0.5, self.size - 0.5)

    def taps(self, op: Emitter, u: Value) -> list[_Tap]:
        """`u`: the grid's number along this axis, -1..1 from end to end, [N, P]."""
        factor = (self.size - 1) / 2 if self.align else self.size / 2
        place = op.Add(op.Mul(u, factor), (self.size - 1) / 2)
        if self.mode == "nearest":
            place = op.Round(place)
            whole = op.Cast(op.Equal(place, place), to=int(u.dtype or 1))  # one everywhere, in the shape of the places
            return [self._tap(op, place, whole, None)]
        one, low = op.constant(1.0, like=u), op.Floor(place)
        t = op.Sub(place, low)
        if self.mode == "linear":
            scale = op.constant(factor, like=u)
            return [
                self._tap(op, low, op.Sub(one, t), op.Neg(scale)),
                self._tap(op, op.Add(low, 1.0), t, scale),
            ]
        taps = []
        for offset, (value, slope) in zip((-1.0, 0.0, 1.0, 2.0), _keys(op, t, one)):
            taps.append(self._tap(op, op.Add(low, offset), value, op.Mul(slope, factor)))
        return taps

    def _folded(self, op: Emitter, place: Value) -> Value:
        """Reflected at both ends as often as it takes."""
        low, high = self.reach
        way, period = op.Sub(place, low), 2 * (high - low)
        rest = op.Sub(way, op.Mul(op.Floor(op.Div(way, period)), period))
        back = op.Greater(rest, high - low)
        return op.Add(op.Where(back, op.Sub(op.constant(period, like=place), rest), rest), low)

    def _tap(self, op: Emitter, at: Value, weight: Value, slope: Value | None) -> _Tap:
        """A tap at a whole number, which may lie outside still."""
        last = op.constant(self.size - 1.0, like=at)
        if self.padding == "reflection" and self.size > 1:
            at = op.Round(self._folded(op, at))
        kept = op.Clip(at, op.constant(0.0, like=at), last)
        if self.padding == "zeros":
            seen = op.Cast(op.Equal(kept, at), to=int(at.dtype or 1))
            weight, slope = op.Mul(weight, seen), None if slope is None else op.Mul(slope, seen)
        return _Tap(op.Cast(kept, to=7), weight, slope)


def _keys(op: Emitter, t: Value, one: Value) -> list[tuple[Value, Value]]:
    """Keys' kernel at distances 1 + t, t, 1 - t, 2 - t, and its slope by t."""
    a, found = _CUBIC, []
    for distance, sign, inner in (
        (op.Add(t, 1.0), 1.0, False),
        (t, 1.0, True),
        (op.Sub(one, t), -1.0, True),
        (op.Sub(op.Mul(one, 2.0), t), -1.0, False),
    ):
        c3, c2, c1, c0 = (a + 2, -(a + 3), 0.0, 1.0) if inner else (a, -5 * a, 8 * a, -4 * a)
        value = op.Add(op.Mul(op.Add(op.Mul(op.Add(op.Mul(distance, c3), c2), distance), c1), distance), c0)
        slope = op.Add(op.Mul(op.Add(op.Mul(distance, 3 * c3), 2 * c2), distance), c1)
        found.append((value, op.Mul(slope, sign)))
    return found


@dataclass(frozen=True)
class _Reading:
    """All taps of a GridSample: every combination of one per axis."""

    node: Operation

    @property
    def sizes(self) -> list[int]:
        return spatial(self.node.x)

    @property
    def flat(self) -> tuple[int, int, int]:
        """[N, C, entries] as Reshape wants it: N is copied."""
        return 0, int(spatial(self.node.x, 1)[0]), prod(self.sizes)

    def axes(self, op: Emitter) -> list[list[_Tap]]:
        node = self.node
        names = {"bilinear": "linear", "bicubic": "cubic"}
        mode, padding = node.text("mode", "linear"), node.text("padding_mode", "zeros")
        align = bool(node.integer("align_corners", 0))
        k = len(self.sizes)
        grid = op.Reshape(node.input(1), op.ints(0, -1, k))
        taps = []
        for a, size in enumerate(self.sizes):  # the grid counts its axes from the last one
            u = op.Gather(grid, op.constant(k - 1 - a, dtype=np.int64), axis=2)
            taps.append(_Axis(size, names.get(mode, mode), padding, align).taps(op, u))
        return taps

    def place(self, op: Emitter, taps: tuple[_Tap, ...]) -> Value:
        """[N, 1, P]: the entry of the flattened picture."""
        total = taps[0].index
        for tap, size in zip(taps[1:], self.sizes[1:]):
            total = op.Add(op.Mul(total, op.constant(size, dtype=np.int64)), tap.index)
        return op.Unsqueeze(total, op.ints(1))

    def by_picture(self, op: Emitter, s: Value) -> Value:
        """Every entry of s back to the pixels it was read from."""
        flat = op.Reshape(s, op.ints(0, self.flat[1], -1))
        places, parts = [], []
        for taps in product(*self.axes(op)):
            weight = reduce(op.Mul, [t.weight for t in taps])
            whole = op.Expand(self.place(op, taps), op.Shape(flat))
            places.append(whole)
            parts.append(op.Mul(flat, op.Unsqueeze(weight, op.ints(1))))
        base = op.Reshape(zeros_like(op, self.node.x), op.ints(*self.flat))
        joined = [op.Concat(*v, axis=2) if len(v) > 1 else v[0] for v in (places, parts)]
        return op.reshape_like(op.ScatterElements(base, *joined, axis=2, reduction="add"), self.node.x)

    def by_grid(self, op: Emitter, r: Value) -> Value:
        """The slope of what is read by the place it is read at."""
        flat, x = op.Reshape(r, op.ints(0, self.flat[1], -1)), op.Reshape(self.node.x, op.ints(*self.flat))
        k = len(self.sizes)
        totals: list[Value | None] = [None] * k
        for taps in product(*self.axes(op)):
            seen = op.GatherElements(x, op.Expand(self.place(op, taps), op.Shape(flat)), axis=2)
            pull = op.ReduceSum(op.Mul(flat, seen), op.ints(1), keepdims=0)
            for a in range(k):
                slope = taps[a].slope
                if slope is None:
                    continue
                share = reduce(op.Mul, [pull, slope, *(t.weight for i, t in enumerate(taps) if i != a)])
                before = totals[a]
                totals[a] = share if before is None else op.Add(before, share)
        if all(t is None for t in totals):
            return zeros_like(op, self.node.input(1))
        ordered = [op.Unsqueeze(t, op.ints(2)) for t in reversed(totals) if t is not None]
        return op.reshape_like(op.Concat(*ordered, axis=2), self.node.input(1))


@room("GridSample", axes=lambda node, k: [0, 1 if k == 0 else None, *[None] * (rank(node.x) - 2)])
def grid_sample(node: Operation) -> Role:
    """Pictures read at the places of a grid; a grid that is explained too only steers, though it has a gradient."""
    reading = _Reading(node)
    if 1 in node.active:
        return Product(
            lambda op, r, k: op.typed((reading.by_picture, reading.by_grid)[k](op, r), node.input(k)), (0,), False
        )

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(op.GridSample(x, node.input(1), **node.attributes), node.y)

    return Linear("average", forward, lambda op, s, w, like: op.typed(reading.by_picture(op, s), like))


@room("AffineGrid")
def affine_grid(node: Operation) -> Linear:
    """Places of a picture's pixels under an affine map, linear in the map: theta·(place, 1)."""
    k = rank(node.x) and (dims(node.x)[1] or 0)

    def grids(op: Emitter, theta: Value) -> Value:
        return op.AffineGrid(theta, node.input(1), align_corners=node.integer("align_corners", 0))

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        identity = op.Expand(op.constant(np.eye(k, k + 1)[None], like=like), op.shape_of(like))
        base = op.Reshape(grids(op, identity), op.ints(0, -1, k))
        ones = op.Add(op.Mul(op.Slice(base, op.ints(0), op.ints(1), op.ints(2)), 0.0), 1.0)
        turned = op.Transpose(op.Reshape(s, op.ints(0, -1, k)), perm=[0, 2, 1])
        return op.typed(op.MatMul(turned, op.Concat(base, ones, axis=2)), like)

    return Linear("average", lambda op, x, w: op.typed(grids(op, x), node.y), transpose)
