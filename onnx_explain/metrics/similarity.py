"""How alike two maps of one picture are, and the sanity checks that need no change of the model: other classes.

Maps [N, H, W]; results float64 [N], NaN where a map has one value alone and so cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError
from onnx_explain.metrics.arrays import (
    Array,
    Floats,
    Ints,
    choice,
    class_indices,
    maps_of,
    mid_ranks,
    number,
    pictures,
    real,
    streams,
    whole,
)
from onnx_explain.metrics.scoring import Explain, explained

Similarity = Literal["spearman", "pearson", "ssim"]


def pearson(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Correlation of the values of two maps, -1…1. NaN: one of them has a single value. Raises InputError."""
    first, second = _both(a, b)
    return _correlation(_flat(first), _flat(second))


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    """Rank correlation of two maps, -1…1; equal values share the mean of their ranks. NaN: one of them has a single value.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, compares maps by it, with and without their signs.
    """
    first, second = _both(a, b)
    return _correlation(mid_ranks(_flat(first)), mid_ranks(_flat(second)))


def ssim(a: npt.ArrayLike, b: npt.ArrayLike, *, window: int = 11, sigma: float = 1.5) -> Floats:
    """Structural similarity of two maps, each divided by its largest |R|: at most 1, which only equal maps reach.

    Wang et al., "Image Quality Assessment", IEEE Trans. Image Processing 13, 2004, eq. 13: Gaussian window of 11 x 11 and σ = 1.5,
    weighted population moments, C₁ = (0.01 L)², C₂ = (0.03 L)², averaged over the windows that lie within the map. L, the range of
    the values, is 2 where a map has negative values (-1…1), else 1. NaN: a map of zeros. A map of one sign
    and its negative come out alike, since both factors change their sign: take ranks where signs matter. Raises InputError:
    maps smaller than the window.
    """
    first, second = _both(a, b)
    if whole("window", window) % 2 == 0 or window > min(first.shape[1:]):
        raise InputError(
            f"window must be odd and at most {min(first.shape[1:])}, the maps' smaller side, not {window}."
        )
    if number("sigma", sigma) <= 0:
        raise InputError(f"sigma must be positive, not {sigma}.")
    reach = np.exp(-0.5 * ((np.arange(window) - window // 2) / sigma) ** 2)
    line = reach / reach.sum()
    p, q = _scaled(first), _scaled(second)
    mean_p, mean_q = _windowed(p, line), _windowed(q, line)
    var_p, var_q = _windowed(p * p, line) - mean_p**2, _windowed(q * q, line) - mean_q**2
    cov = _windowed(p * q, line) - mean_p * mean_q
    extent = np.where(np.minimum(p, q).min((1, 2)) < 0, 2.0, 1.0)[:, None, None]
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    local = (2 * mean_p * mean_q + c1) * (2 * cov + c2) / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
    return np.asarray(local.mean((1, 2)))


_SIMILARITIES: dict[str, Callable[[npt.ArrayLike, npt.ArrayLike], Floats]] = {
    "spearman": spearman,
    "pearson": pearson,
    "ssim": ssim,
}


def similarity(
    a: npt.ArrayLike, b: npt.ArrayLike, *, measure: Similarity = "spearman", absolute: bool = False
) -> Floats:
    """The named similarity of two maps, of their absolute values where asked for. Raises InputError."""
    compare = _SIMILARITIES[choice("similarity", measure, _SIMILARITIES)]
    return compare(np.abs(maps_of(a)), np.abs(maps_of(b))) if absolute else compare(a, b)


def random_logit(
    explain: Explain,
    x: npt.ArrayLike,
    *,
    targets: npt.ArrayLike,
    classes: int,
    measure: Similarity = "ssim",
    absolute: bool = False,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Floats:
    """Similarity of the target's map and that of another class, drawn evenly from the others: lower is more class-sensitive.

    Sixt et al., "When Explanations Lie", ICML 2020 (SSIM). explain(x, targets) -> [B, H, W]; classes: how many the model has.
    Sample n draws from a stream of its own, made of the seed and ``keys[n]`` (default n). Explanations made: 2·N. Raises
    InputError.
    """
    pics = pictures(x)
    index = class_indices(targets, len(pics), whole("classes", classes, 2))
    steps = [int(stream.integers(1, classes)) for stream in streams(len(pics), seed, keys, 3)]
    others = (index + np.array(steps, np.int64)) % classes
    return _of_classes(explain, pics, index, others, measure=measure, absolute=absolute, batch_size=batch_size)


def class_sensitivity(
    explain: Explain,
    x: npt.ArrayLike,
    *,
    scores: npt.ArrayLike,
    measure: Similarity = "pearson",
    absolute: bool = False,
    batch_size: int = 64,
) -> Floats:
    """Similarity of the maps of the most and the least likely class: lower is more class-sensitive.

    Rebuffi et al., "There and Back Again: Revisiting Backpropagation Saliency Methods", CVPR 2020; one reading of the Model
    Sensitivity of RSP (AAAI 2021), whose definition is not known to us. scores: [N, classes]; of equal scores the first. NaN: one
    of the maps has a single value. Explanations made: 2·N. Raises InputError.
    """
    pics = pictures(x)
    s = real(scores, "scores")
    if s.ndim != 2 or len(s) != len(pics) or s.shape[1] < 2 or not np.isfinite(s).all():
        raise InputError(
            f"scores must be finite, [{len(pics)}, classes] of at least 2 classes, but has shape {s.shape}."
        )
    return _of_classes(
        explain, pics, s.argmax(1), s.argmin(1), measure=measure, absolute=absolute, batch_size=batch_size
    )


def _of_classes(
    explain: Explain, x: Array, first: Ints, second: Ints, *, measure: Similarity, absolute: bool, batch_size: int
) -> Floats:
    size = whole("batch_size", batch_size)
    maps = [explained(explain, x, np.asarray(c, np.int64), batch_size=size) for c in (first, second)]
    return similarity(maps[0], maps[1], measure=measure, absolute=absolute)


def _both(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Floats, Floats]:
    first, second = maps_of(a, "the first map"), maps_of(b, "the second map")
    if first.shape != second.shape:
        raise InputError(f"Maps of {first.shape} and {second.shape} cannot be compared; give them the same shape.")
    return first, second


def _flat(r: Floats) -> Floats:
    return np.asarray(r.reshape(len(r), r.shape[1] * r.shape[2]))


def _correlation(a: Floats, b: Floats) -> Floats:
    # a map of one value would leave rounding behind after the mean is taken off
    usable = (np.ptp(a, 1) > 0) & (np.ptp(b, 1) > 0)
    # scaled first, so that squares neither overflow nor vanish
    p, q = (v / np.maximum(np.abs(v).max(1, keepdims=True), np.finfo(np.float64).tiny) for v in (a, b))
    p, q = p - p.mean(1, keepdims=True), q - q.mean(1, keepdims=True)
    size = np.sqrt((p * p).sum(1) * (q * q).sum(1))
    out = np.divide((p * q).sum(1), size, out=np.full(len(a), np.nan), where=usable & (size > 0))
    return np.asarray(np.clip(out, -1.0, 1.0))


def _scaled(r: Floats) -> Floats:
    """R / max |R|; a map of zeros becomes NaN."""
    largest = np.abs(r).max((1, 2), keepdims=True)
    return np.asarray(np.divide(r, largest, out=np.full(r.shape, np.nan), where=largest > 0))


def _windowed(r: Floats, line: Floats) -> Floats:
    """Weighted means over all windows within the map; the window is the outer product of the line with itself."""
    for axis in (1, 2):
        length = r.shape[axis] - len(line) + 1
        r = np.asarray(sum(w * r.take(range(k, k + length), axis) for k, w in enumerate(line)))
    return r
