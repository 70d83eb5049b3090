"""What a map is like by itself: sparse, complex, complete. Maps [N, H, W] in, float64 [N] out, NaN where undefined."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError
from onnx_explain.metrics.arrays import Floats, finite, pictures, quotient, real, whole
from onnx_explain.metrics.scoring import Score, chosen, scores_of


def sparseness(relevance: npt.ArrayLike) -> Floats:
    """Gini index of |R|: 0 for a map of one value, 1 - 1/size for a single pixel.

    Chalasani et al., "Concise Explanations of Neural Networks using Adversarial Training", ICML 2020; Hurley and Rickard, IEEE
    Trans. Information Theory 55, 2009: G = Σ_i (2i - n - 1) |r|_(i) / (n Σ |r|), |r| ascending, i from 1.
    relevance: [N, ...]. NaN: a map of zeros. Raises InputError.
    """
    r = np.sort(_magnitudes(relevance), axis=1)
    size = r.shape[1]
    return quotient(((2 * np.arange(1, size + 1) - size - 1) * r).sum(1), size * r.sum(1))


def complexity(relevance: npt.ArrayLike) -> Floats:
    """Entropy -Σ p ln p of p = |R| / Σ |R|, in nats: 0 for a single pixel, ln(size) for a map of one value; lower is simpler.

    Bhatt et al., "Evaluating and Aggregating Feature-based Model Explanations", IJCAI 2020. relevance: [N, ...]. NaN: a map of
    zeros. Raises InputError.
    """
    r = _magnitudes(relevance)
    p = quotient(r, np.broadcast_to(r.sum(1, keepdims=True), r.shape))
    terms = np.multiply(p, np.log(p, out=np.zeros_like(p), where=p > 0), out=np.zeros_like(p), where=p > 0)
    return np.where(r.any(1), -terms.sum(1) + 0.0, np.nan)


def completeness(
    score: Score,
    x: npt.ArrayLike,
    *,
    relevance: npt.ArrayLike,
    baseline: npt.ArrayLike | None = 0.0,
    targets: npt.ArrayLike | None = None,
    relative: bool = False,
    batch_size: int = 64,
) -> Floats:
    """How far the relevance is from adding up to what it explains: Σ R - (F(x) - F(x')), signed; 0 is complete.

    Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017, proposition 1; "summation to delta" in DeepLIFT.
    x: [N, C, H, W]; relevance: [N, ...]. baseline: x', a number or an array that broadcasts to x; None compares with F(x) alone,
    as the conservation of LRP does. score: what was explained, commonly the logits. relative: |Σ R - ΔF| / |ΔF| instead, NaN
    where ΔF is 0.

    Forward passes: 2·N, or N without a baseline. Raises InputError.
    """
    pics = pictures(x)
    r = finite(real(relevance, "relevance"), "relevance")
    if r.ndim < 1 or len(r) != len(pics):
        raise InputError(f"relevance must hold one map for each of the {len(pics)} pictures, but has shape {r.shape}.")
    size = whole("batch_size", batch_size)
    scores = scores_of(score, pics, batch_size=size)
    index = chosen(targets, scores)
    rows = np.arange(len(pics))
    difference = scores[rows, index]
    if baseline is not None:
        start = np.broadcast_to(real(baseline, "baseline"), pics.shape).astype(pics.dtype)
        difference = difference - scores_of(score, start, batch_size=size)[rows, index]
    gap = r.sum(tuple(range(1, r.ndim))) - difference
    return quotient(np.abs(gap), np.abs(difference)) if relative else gap


def _magnitudes(relevance: npt.ArrayLike) -> Floats:
    """|R| as [N, size]."""
    r = finite(real(relevance, "relevance"), "relevance")
    if r.ndim < 2 or 0 in r.shape[1:]:
        raise InputError(f"relevance must be maps [N, H, W] or features [N, size], but has shape {r.shape}.")
    return np.abs(r.reshape(len(r), int(np.prod(r.shape[1:]))))
