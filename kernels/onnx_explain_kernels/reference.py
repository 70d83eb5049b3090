"""What every kernel computes, slowly and in NumPy float64: loops over kernel offsets, one statement per formula.

The same forms, operands and letters as the kernels; tensors are [samples, channels, height, width] here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain_kernels.forms import ConvForm, DenominatorForm, PoolForm
from onnx_explain_kernels.geometry import Conv, Pool

Array = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[Any]]
TINY = 1e-20  # added to RAP's denominators: where they are zero, so is all that their quotients are multiplied by
ROUNDING = float(np.finfo(np.float32).eps)


def stabilised(z: Array, epsilon: float) -> Array:
    """D(z, ε) = z + ε·sgn(z), sgn(0) = 1."""
    return z + np.where(z >= 0, epsilon, -epsilon)


def over(r: Array, z: Array, epsilon: float = 0.0) -> Array:
    """r/D(z, ε), and 0 where that denominator is 0."""
    d = stabilised(z, epsilon)
    live = d != 0
    return np.where(live, r / np.where(live, d, 1.0), 0.0)


def _taps(conv: Conv | Pool) -> Iterator[tuple[tuple[int, int], tuple[Any, Any]]]:
    """Per kernel offset, what all windows hold there: an index into the padded input."""
    for i, j in product(*map(range, conv.kernel)):
        axes = zip((i, j), conv.dilations, conv.strides, conv.out)
        yield (i, j), (..., *(slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, s, o in axes))  # type: ignore[misc]


def _padded(x: npt.NDArray[Any], conv: Conv | Pool, value: float = 0.0) -> npt.NDArray[Any]:
    reach = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(conv.out, conv.strides, conv.dilations, conv.kernel)]
    wide = [(b, max(r - b - s, 0)) for b, r, s in zip(conv.begin, reach, conv.size)]
    return np.pad(x, [(0, 0), (0, 0), *wide], constant_values=value)


def _inside(whole: Array, conv: Conv | Pool) -> Array:
    (top, left), (height, width) = conv.begin, conv.size
    return whole[:, :, top : top + height, left : left + width]


def conv_forward(conv: Conv, x: npt.NDArray[Any], w: npt.NDArray[Any]) -> Array:
    """L_w x: x [N, C, H, W], w [K, C/group, R, S] to [N, K, P, Q]."""
    padded = _padded(np.asarray(x, np.float64), conv)
    parts, filters = np.split(padded, conv.group, axis=1), np.split(np.asarray(w, np.float64), conv.group)
    y = []
    for part, filter_ in zip(parts, filters):
        y.append(sum(np.einsum("nchw,kc->nkhw", part[at], filter_[:, :, i, j]) for (i, j), at in _taps(conv)))
    return np.concatenate(y, axis=1)


def conv_transpose(conv: Conv, s: npt.NDArray[Any], w: npt.NDArray[Any]) -> Array:
    """L_wᵀ s: s [N, K, P, Q], w [K, C/group, R, S] to [N, C, H, W]."""
    shares, filters = (
        np.split(np.asarray(s, np.float64), conv.group, axis=1),
        np.split(np.asarray(w, float), conv.group),
    )
    blank = _padded(np.zeros((conv.samples, conv.channels // conv.group, *conv.size)), conv)
    parts = []
    for share, filter_ in zip(shares, filters):
        whole = np.zeros_like(blank)
        for (i, j), at in _taps(conv):
            whole[at] += np.einsum("nkhw,kc->nchw", share, filter_[:, :, i, j])
        parts.append(_inside(whole, conv))
    return np.concatenate(parts, axis=1)


def quotients(form: ConvForm, given: Arrays, epsilon: float) -> tuple[Array, Array | None]:
    """s and, for two branches, t."""
    r, a, b, z = (np.asarray(given[k], np.float64) if k in given else np.zeros(()) for k in "rabz")
    if form.shifted:
        delta = np.asarray(given["delta"], np.float64).reshape(-1, 1, 1, 1)
        r = r - delta * (r != 0)
    if form.quotient == "given":
        return r, a if form.branch == "dual" else None
    if form.quotient == "ratio":
        s, t = over(r, a, epsilon), over(r, b, epsilon) if form.branch == "dual" else None
        if form.gated:
            s, t = s * (z > 0), t * (z < 0) if t is not None else None
        return s, t
    if form.quotient == "relative_dense":
        return over(r, a), over(r, a + b)
    gain, loss = np.maximum(r, 0), np.minimum(r, 0)
    return over(gain, a), over(r, a + b) + over(loss, b)


def conv_relevance(
    conv: Conv, form: ConvForm, given: Arrays, *, epsilon: float = 0.0, below_epsilon: float = 0.0
) -> dict[str, Array]:
    """One fused pass over a convolution.

    Args:
        conv: the geometry.
        form: what is fused.
        given: `form.operands` by name: r a b z [N, K, P, Q]; delta [N]; w v [K, C/group, R, S]; x d [N, C, H, W];
            low high broadcastable to [N, C]; and `out` [N, C, H, W] where the form accumulates.
        epsilon: ε of the quotient.
        below_epsilon: ε' of the division below.

    Returns:
        ``out`` [N, C, H, W], and with `form.sums` ``sums`` and ``counts`` [N].

    """
    s, t = quotients(form, given, epsilon)
    up = conv_transpose(conv, s, given["w"])
    twin = conv_transpose(conv, s, given["v"]) if form.branch == "twin" else up
    if t is not None:
        up = up + conv_transpose(conv, t, given["v"])
    x = np.asarray(given["x"], np.float64) if "x" in given else np.ones(())
    low, high = (np.asarray(given[k], float)[:, :, None, None] if k in given else x for k in ("low", "high"))
    values = {
        "one": lambda: up,
        "x": lambda: x * up,
        "x+": lambda: np.maximum(x, 0) * up,
        "x-": lambda: np.minimum(x, 0) * up,
        "|x-|": lambda: np.maximum(-x, 0) * up,
        "active": lambda: (x > 0) * up,
        "inside": lambda: ((x > low) & (x < high)) * up,
        "halves": lambda: np.maximum(x, 0) * up + np.minimum(x, 0) * twin,
        "box": lambda: (x - low) * up + (x - high) * twin,
    }
    value: Array = values[form.numerator]()
    if form.accumulate:
        value = value + given["out"]
    if form.below != "none":
        value = over(value, np.asarray(given[form.below], np.float64), below_epsilon)
    found = {"out": value}
    if form.sums:
        found |= {"sums": value.sum((1, 2, 3)), "counts": (value != 0).sum((1, 2, 3)).astype(np.float64)}
    return found


def relative_pair(form: DenominatorForm, first: Array, second: Array, z: Array, bias: Array) -> tuple[Array, Array]:
    """RAP's Z⁺ and Z⁻ from one or two sums; neither falls below what float32 rounds away."""
    total, u = first + TINY, z - bias
    if form.source == "twin":
        return total, second
    if form.source == "x":
        return total, np.maximum(total - u, 4 * ROUNDING * (total + np.abs(bias)))
    u = second if form.source == "magnitudes" else u
    floor = 8 * ROUNDING * total
    return np.maximum((total + u) / 2, floor), np.maximum((total - u) / 2, floor)


def conv_denominator(
    conv: Conv, form: DenominatorForm, given: Arrays, *, epsilon: float = 0.0, scale: float = 1.0
) -> dict[str, Array]:
    """One fused pass forward over a convolution.

    Args:
        conv: the geometry.
        form: what is fused.
        given: `form.operands` by name: x [N, C, H, W]; w v [K, C/group, R, S]; bias [K]; z r [N, K, P, Q]; delta [N].
        epsilon: ε of the quotient.
        scale: what r is multiplied by.

    Returns:
        ``out`` [N, K, P, Q], of a pair ``pair`` too, and with `form.accounts` ``lost``.

    """
    x = np.asarray(given["x"], np.float64)
    versions = {"x": x, "x+": np.maximum(x, 0), "x-": np.minimum(x, 0), "|x|": np.abs(x)}
    versions |= {"halves": versions["x+"], "twin": x, "magnitudes": versions["|x|"]}
    first, second = conv_forward(conv, versions[form.source], given["w"]), np.zeros(())
    if form.two_weights:
        second = conv_forward(conv, versions["x-"] if form.source == "halves" else x, given["v"])
    if form.source == "halves":
        first = first + second
    bias = np.asarray(given["bias"], np.float64).reshape(1, -1, 1, 1) if form.biased else np.zeros((1, 1, 1, 1))
    z = np.asarray(given["z"], np.float64) if form.reads_z else np.zeros(())
    if form.end == "sum":
        return {"out": first + bias}
    r = np.asarray(given["r"], np.float64) * scale if form.reads_r else np.zeros(())
    if form.shifted:
        r = apply_shift(r, given["delta"])
    if form.end == "quotient":
        r = r * (z > 0) if form.gate == "positive" else r * (z < 0) if form.gate == "negative" else r
        s = over(r, first + bias, epsilon)
        return {"out": s, "lost": r - s * first} if form.accounts else {"out": s}
    above, below = relative_pair(form, first, second, z, bias)
    if not form.divided:
        return {"out": above, "pair": below}
    gain, loss = np.maximum(r, 0), np.minimum(r, 0)
    return {"out": over(gain, above), "pair": over(r, above + below) + over(loss, below)}


def shift_of_sums(sums: Array, counts: Array, want: Array) -> tuple[Array, Array]:
    """RAP's uniform shift per sample, δ = (ΣC - ΣR)⊘nnz(C), and what the shifted map sums to; all [N]."""
    live = counts > 0
    return np.where(live, (sums - want) / np.where(live, counts, 1.0), 0.0), np.where(live, want, sums)


def apply_shift(c: npt.NDArray[Any], delta: npt.NDArray[Any]) -> Array:
    """C - δ[n]·1[C ≠ 0]."""
    c = np.asarray(c, np.float64)
    shifted: Array = c - np.asarray(delta, np.float64).reshape(-1, *[1] * (c.ndim - 1)) * (c != 0)
    return shifted


def max_forward(pool: Pool, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The maximum of each window, in x's own type: [N, C, P, Q]."""
    padded = _padded(x, pool, -np.inf)
    maxima: npt.NDArray[Any] = np.maximum.reduce([padded[at] for _, at in _taps(pool)])
    return maxima


def average_counts(pool: Pool) -> Array:
    """The divisor of each window: [P, Q]."""
    counts = np.ones(pool.out)
    for axis in (0, 1):
        low = -pool.begin[axis] if pool.include_pad else 0
        high = pool.size[axis] + (pool.end[axis] if pool.include_pad else 0)
        starts = np.arange(pool.out[axis]) * pool.strides[axis] - pool.begin[axis]
        taps = starts[:, None] + np.arange(pool.kernel[axis]) * pool.dilations[axis]
        held = ((taps >= low) & (taps < high)).sum(1)
        counts *= np.maximum(held, 1).reshape([-1, 1] if axis == 0 else [1, -1])
    return counts


def average_forward(pool: Pool, x: npt.NDArray[Any]) -> Array:
    """The mean of each window: [N, C, P, Q]."""
    padded = _padded(np.asarray(x, np.float64), pool)
    total: Array = np.add.reduce([padded[at] for _, at in _taps(pool)])
    return total / average_counts(pool)


def pool_relevance(
    pool: Pool, form: PoolForm, given: Arrays, *, epsilon: float = 0.0, below_epsilon: float = 0.0
) -> dict[str, Array]:
    """One fused pass over a pool.

    Args:
        pool: the geometry.
        form: what is fused.
        given: `form.operands` by name: x [N, C, H, W]; y r [N, C, P, Q]; delta [N].
        epsilon: ε of the quotient.
        below_epsilon: ε' of the division below.

    Returns:
        ``out`` [N, C, H, W].

    """
    r = np.asarray(given["r"], np.float64)
    if form.shifted:
        r = apply_shift(r, given["delta"])
    whole = _padded(np.zeros((pool.samples, pool.channels, *pool.size)), pool)
    if form.kind == "max":
        _route(pool, whole, np.asarray(given["x"]), r)
    else:
        s = over(r, np.asarray(given["y"], np.float64), epsilon) if form.quotient == "ratio" else r
        for _, at in _taps(pool):
            whole[at] += s / average_counts(pool)
    value = _inside(whole, pool)
    x = np.asarray(given["x"], np.float64) if "x" in given else np.ones(())
    if form.numerator != "one":
        value = value * (x if form.numerator == "x" else x > 0)
    if form.below == "x":
        value = over(value, x, below_epsilon)
    return {"out": value}


def _route(pool: Pool, whole: Array, x: npt.NDArray[Any], r: Array) -> None:
    """Each window's entry to its first maximum; padding and NaN are no maximum."""
    padded = _padded(x, pool, np.nan)
    best, winner = np.full(r.shape, np.nan), np.full(r.shape, -1)
    poisoned = np.zeros(r.shape, bool)
    inside = _padded(np.ones((1, 1, *pool.size)), pool) > 0
    for number, (_, at) in enumerate(_taps(pool)):
        value = padded[at]
        poisoned |= np.isnan(value) & inside[at]
        better = ~np.isnan(value) & ((winner < 0) | (value > best))
        best, winner = np.where(better, value, best), np.where(better, number, winner)
    for number, (_, at) in enumerate(_taps(pool)):
        whole[at] += np.where((winner == number) & ~poisoned, r, 0.0)
