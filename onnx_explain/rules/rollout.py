"""Attention rollout: how much of each token a layer's tokens hold, by attention maps alone, and tokens laid over the input.

Abnar & Zuidema, ACL 2020, eq. 1: R = Ã_L ⋯ Ã_1, Ã = ρ·I + (1 - ρ)·Ā with rows that sum to one, ρ = 0.5, Ā a layer's heads as one.
Chefer, Gur & Wolf, ICCV 2021, eq. 5-6: R ← R + Ā·R, Ā = E_heads[(∇A ⊙ A)⁺]. One row of R is wanted, that of the tokens the
score reads, so the products run as row times matrix, from the last layer down. Where the maps are found, and which token comes
from which part of the input, is the affair of `relevance/`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value, rank, spatial
from onnx_explain.rules import cam
from onnx_explain.rules.share import positive, safe_divide

Heads = Literal["mean", "max", "min"]
Step = Callable[[Emitter, Value, Value, Value | None], Value]
Ints = npt.NDArray[np.int64]


def plain(residual: float, heads: Heads) -> Step:
    """r ← (r/s)·(ρ·I + (1 - ρ)·Ā), s the sums of that matrix's rows; `heads`: how Ā is made of a layer's heads."""

    def step(op: Emitter, r: Value, attention: Value, gradient: Value | None) -> Value:
        reduce = {"mean": op.ReduceMean, "max": op.ReduceMax, "min": op.ReduceMin}[heads]
        a = op.Mul(reduce(attention, op.ints(1), keepdims=0), 1.0 - residual)
        rows = op.Add(op.ReduceSum(a, op.ints(2), keepdims=1), residual)
        q = safe_divide(op, r, op.Transpose(rows, perm=[0, 2, 1]))
        return op.Add(op.Mul(q, residual), op.MatMul(q, a))

    return step


def by_gradient(op: Emitter, r: Value, attention: Value, gradient: Value | None) -> Value:
    """r ← r + r·Ā, Ā the heads' mean of what attention and gradient agree on."""
    if gradient is None:
        raise ValueError("a rollout by gradients without one")
    a = op.ReduceMean(positive(op, op.Mul(gradient, attention)), op.ints(1), keepdims=0)
    return op.Add(r, op.MatMul(r, a))


def read_by(op: Emitter, gradient: Value) -> Value:
    """The row to begin with [N, 1, T]: the tokens whose last attention the score depends on, each as much.

    gradient: of the score by what the last attention makes, [N, heads, T, size]. A class token's head reads that one, a mean
    over the tokens all, a language model's score at a position that position.
    """
    most = op.ReduceMax(op.Abs(gradient), op.ints(1, 3), keepdims=0)
    read = op.Cast(op.Greater(most, op.constant(0.0, like=gradient)), to=int(gradient.dtype or 1))
    row = safe_divide(op, read, op.ReduceSum(read, op.ints(1), keepdims=1))
    return op.Unsqueeze(row, op.ints(1))


def over_grid(op: Emitter, r: Value, x: Value, order: Sequence[int], grid: Sequence[int]) -> Value:
    """Tokens' relevance [N, T] over an input: `order[p]` is the token at place p of the grid, or T where there is none.

    The map is resized linearly (half-pixel) and shared evenly by the input's channels, as CAMs are, but keeps its sum.
    """
    m = op.Reshape(op.Gather(_with_none(op, r), op.ints(*order), axis=1), op.ints(0, 1, *grid))
    return cam.over(op, m, x, len(grid), cells=prod(grid))


def over_elements(op: Emitter, r: Value, x: Value, token: Ints, tokens: int) -> Value:
    """Tokens' relevance [N, T] shared evenly by the elements of the input that each is made of.

    token: for every element of one sample the token it goes into, `tokens` where it goes into none.
    """
    counts = np.bincount(token.ravel(), minlength=tokens + 1)[:tokens]
    even = op.Div(r, op.constant(np.maximum(counts, 1), like=r))
    sizes = spatial(x, 1)
    places = token.reshape(sizes)
    whole = 0  # trailing axes that belong to one token each: gathered once and repeated
    while places.ndim and (places == places[..., :1]).all():
        places, whole = places[..., 0], whole + 1
    laid = op.Gather(_with_none(op, even), op.constant(places.ravel(), dtype=np.int64), axis=1)
    laid = op.Reshape(laid, op.ints(0, *places.shape, *[1] * whole))
    return op.typed(op.Expand(laid, op.shape_of(x)) if prod(sizes[places.ndim :]) > 1 else laid, x)


def at_none(op: Emitter, r: Value, tokens: Sequence[int]) -> Value:
    """The relevance of the given tokens, which come from no part of the input: [N, k]."""
    return op.typed_rank(op.Gather(r, op.ints(*tokens), axis=1), 2)


def _with_none(op: Emitter, r: Value) -> Value:
    """[N, T] and a zero behind, for what no token stands for."""
    if rank(op.typed_rank(r, 2)) != 2:
        raise ValueError("tokens' relevance is [N, T]")
    return op.pad_axis(r, 1, 0, 1, n=2)
