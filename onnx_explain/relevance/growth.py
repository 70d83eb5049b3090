"""Relevance that may outgrow its dtype: kept as r = m·2^e, so that nothing on the way is infinite, nor lost beside it.

PatternNet's patterns are longer than one (a·w = 1, and weights are short): over fifty layers the signal passes float32's
3e38. Powers of two cost no digit. Which rules grow is theirs to say (`Shares.growth`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value
from onnx_explain.operators.samples import Place
from onnx_explain.rules.share import over_each

ROOM = 48.0  # log2 of what relevance may have grown by, before it is scaled down: one layer more still fits
TOP = 120.0  # log2 of the largest that is told


@dataclass(frozen=True)
class Growth:
    """log2 of the bound on what m has grown to since it was last scaled; e, a number of no axes (None: 0)."""

    bound: float = 0.0
    exponent: Value | None = None

    def by(self, growth: float) -> Growth:
        """Behind one more step."""
        return Growth(self.bound + growth, self.exponent)


NONE = Growth()


def aligned(op: Emitter, parts: Sequence[Value], grown: Sequence[Growth]) -> tuple[list[Value], Growth]:
    """The parts about one exponent, the largest."""
    bound = max(g.bound for g in grown) + (math.log2(len(parts)) if any(g.bound for g in grown) else 0.0)
    exponents = {id(g.exponent): g.exponent for g in grown}
    if len(exponents) == 1:
        return list(parts), Growth(bound, grown[0].exponent)
    like = parts[0]
    each = [op.constant(0.0, like=like) if g.exponent is None else g.exponent for g in grown]
    top = op.Max(*{id(e): e for e in each}.values())
    return [op.typed(op.Mul(p, _power(op, op.Sub(e, top))), p) for p, e in zip(parts, each)], Growth(bound, top)


def reduced(op: Emitter, r: Value, grown: Growth) -> tuple[Value, Growth]:
    """The relevance with its largest about 1, where it may have grown far."""
    if grown.bound <= ROOM:
        return r, grown
    e = _log2(op, op.ReduceMax(op.Abs(r), keepdims=0))
    m = op.typed(op.Mul(r, _power(op, op.Neg(e))), r)
    return m, Growth(0.0, e if grown.exponent is None else op.Add(grown.exponent, e))


def restored(op: Emitter, r: Value, grown: Growth, place: Place) -> Value:
    """m·2^e; of a sample (`place`: where they are) beyond the dtype, the direction alone, its largest about 2^120."""
    if grown.exponent is None:
        return r
    largest = over_each(op, op.typed(op.Abs(r), r), place, "ReduceMax")
    e = op.Min(grown.exponent, op.Sub(op.constant(TOP, like=r), _log2(op, largest)))
    half = op.Floor(op.Mul(e, 0.5))  # 2^e itself may be beyond the dtype
    return op.typed(op.Mul(op.Mul(r, _power(op, half)), _power(op, op.Sub(e, half))), r)


def _log2(op: Emitter, v: Value) -> Value:
    """The whole part of log2 of what is not negative; -126 of 0."""
    return op.Floor(op.Mul(op.Log(op.Max(v, op.constant(2.0**-126, like=v))), 1.0 / math.log(2.0)))


def _power(op: Emitter, e: Value) -> Value:
    return op.Pow(op.constant(2.0, like=e), op.Max(e, op.constant(-126.0, like=e)))
