"""Where a method looks besides the input itself: on the way from another point, and in noise around it.

Random numbers are counted, not drawn: each depends on (seed, stream, draw, element) alone, never on the sample's place in a
batch, and is made of integer operations that every runtime computes alike.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.ir.emit import Emitter, set_dtype
from onnx_explain.ir.halves import narrowed, widened
from onnx_explain.ir.view import Value, dims, rank
from onnx_explain.operators.samples import FIRST, Held, Place
from onnx_explain.rules.share import over_each

LEVELS = 1 << 16  # of a random number: quantiles of the normal distribution, steps of the uniform one
_MASK = (1 << 32) - 1
_FACTOR = 0x045D9F3B  # below 2³¹: products with 32-bit numbers stay within int64


def between(op: Emitter, start: Value, end: Value, alpha: Value) -> Value:
    """``end + α·(start - end)``: `end` at α = 0. alpha: double [1], or one per entry of axis 0: [N]."""
    wide = [widened(op, v) for v in (start, end)]
    step = op.Cast(alpha, to=int(wide[0].dtype or ir.DataType.FLOAT))
    if rank(start) > 1:
        step = op.Reshape(step, op.ints(-1, *[1] * (rank(start) - 1)))
    point = op.Add(wide[1], op.Mul(step, op.Sub(*wide)))
    return narrowed(op, point, start)


def spread(op: Emitter, x: Value, level: float, place: Place = FIRST) -> Value:
    """``level·(max x - min x)`` per sample: [N, 1, …], or along the axis that has the samples."""
    if rank(x) < 2:
        return narrowed(op, op.Mul(widened(op, x), 0.0), x)
    place, wide = place if isinstance(place, Held) else FIRST, widened(op, x)
    wide = op.Sub(over_each(op, wide, place, "ReduceMax"), over_each(op, wide, place, "ReduceMin"))
    wide = op.Mul(wide, op.constant(level, like=wide))
    return narrowed(op, wide, ir.Value(type=x.type, shape=one_each(x, place)))


def one_each(x: Value, place: Place = FIRST) -> ir.Shape:
    """The shape that holds one number per sample and broadcasts over x."""
    axis = place.axis if isinstance(place, Held) else 0
    return ir.Shape([dims(x)[a] or "N" if a == axis else 1 for a in range(rank(x))])


def normal(op: Emitter, x: Value, draw: Value, *, seed: int, name: str, channel_axis: int | None = 1) -> Value:
    """Standard normal numbers for the elements of one sample of `x`: [1, …], x's dtype. draw: int64 [1].

    Elements are counted channel by channel, so that a picture has the same noise in either layout.
    """
    return _looked_up(op, x, _levels(op, x, draw, seed, name, channel_axis), quantiles())


def uniform(op: Emitter, x: Value, draw: Value, *, seed: int, name: str, channel_axis: int | None = 1) -> Value:
    """Numbers between 0 and 1 for the elements of one sample of `x`: [1, …], x's dtype; else as `normal`."""
    return _looked_up(op, x, _levels(op, x, draw, seed, name, channel_axis), (np.arange(LEVELS) + 0.5) / LEVELS)


def _looked_up(op: Emitter, x: Value, levels: Value, table: npt.NDArray[Any]) -> Value:
    r = op.Gather(op.constant(table, like=x), levels, axis=0)
    set_dtype(r, x.dtype)
    r.shape = ir.Shape([1, *dims(x)[1:]] if rank(x) else [])
    return r


def _levels(op: Emitter, x: Value, draw: Value, seed: int, name: str, channel_axis: int | None) -> Value:
    """A number from 0 to 65535 per element of a sample: int64 [1, …]."""
    drawn = _mixed(op, op.BitwiseAnd(op.Add(draw, stream(seed, name)), op.ints(_MASK)))
    each = _mixed(op, _elements(op, x, channel_axis))
    # the upper half alone is looked at, and the last step of mixing leaves it as it is
    return op.Div(_stirred(op, op.BitwiseXor(each, drawn)), op.ints(LEVELS))


def _elements(op: Emitter, x: Value, channel_axis: int | None) -> Value:
    """The number of each element of a sample, channels first: int64 [1, …]."""
    perm = list(range(rank(x)))
    if channel_axis is not None and 1 < channel_axis < rank(x):
        perm.insert(1, perm.pop(channel_axis))
    sizes = [dims(x)[a] for a in perm[1:]]
    if any(d is None for d in sizes):
        shape = op.Concat(op.ints(1), op.Gather(op.Shape(x), op.ints(*perm[1:]), axis=0), axis=0)
        count = op.Squeeze(op.ReduceProd(shape, keepdims=1), op.ints(0))
    else:
        shape = op.ints(*[1] * bool(perm), *[int(d or 1) for d in sizes])
        count = op.constant(math.prod(d or 1 for d in sizes), dtype=np.int64)
    zero, one = op.constant(0, dtype=np.int64), op.constant(1, dtype=np.int64)
    counted = op.Reshape(op.Range(zero, count, one), shape)
    back = [perm.index(a) for a in range(rank(x))]
    return counted if back == perm == sorted(perm) else op.Transpose(counted, perm=back)


def _stirred(op: Emitter, u: Value) -> Value:
    for _ in range(2):
        u = op.BitwiseXor(u, op.Div(u, op.ints(LEVELS)))
        u = op.BitwiseAnd(op.Mul(u, op.ints(_FACTOR)), op.ints(_MASK))
    return u


def _mixed(op: Emitter, u: Value) -> Value:
    u = _stirred(op, u)
    return op.BitwiseXor(u, op.Div(u, op.ints(LEVELS)))


def mixed(u: int) -> int:
    """A 32-bit number whose bits all depend on all bits of `u`, below 2³²; a one-to-one map."""
    for _ in range(2):
        u = ((u ^ (u >> 16)) * _FACTOR) & _MASK
    return u ^ (u >> 16)


def stream(seed: int, name: str) -> int:
    """Where the draws of one tensor begin: by the seed (any whole number from 0 on) and the tensor's name."""
    u = crc32(name.encode())
    while True:
        u = mixed((u + mixed(seed & _MASK)) & _MASK)
        seed >>= 32
        if not seed:
            return u


@lru_cache(maxsize=1)
def quantiles() -> npt.NDArray[np.float64]:
    """Φ⁻¹((j + ½)/65536): as many standard normal numbers, all equally likely; up to ±4.33."""
    half = [NormalDist().inv_cdf((j + 0.5) / LEVELS) for j in range(LEVELS // 2)]
    table = np.asarray([*half, *(-z for z in reversed(half))])
    table.setflags(write=False)
    return table
