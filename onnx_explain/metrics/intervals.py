"""From values per sample to a number with its uncertainty: bootstrap confidence intervals, missing samples counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError
from onnx_explain.metrics.arrays import Array, number, real, whole


@dataclass(frozen=True)
class Interval:
    """A statistic and its interval.

    count: samples it rests on; missing: samples that were NaN and took no part; infinite: samples of the count that hold an
    infinite value, which makes a mean infinite too (take the median, or name their number).
    """

    value: float
    low: float
    high: float
    count: int
    missing: int
    infinite: int = 0


def interval(
    values: npt.ArrayLike,
    *,
    statistic: Callable[[Array], float] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic over samples.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3. values: [N] or [N, ...]; a sample with a NaN
    anywhere is missing: left out and counted. statistic: of [n, ...], by default the mean; NaN results are left out of the
    quantiles. Quantiles are drawn values (no interpolation), so that an infinite value stays one.

    No sample left: value, low and high are NaN. One sample: low and high are NaN, as nothing is known of the spread.
    Deterministic in (values, seed). Raises InputError.
    """
    v = real(values, "values")
    if v.ndim < 1 or not 0 < number("level", level) < 1:
        raise InputError(f"interval takes values [N, ...] and a level between 0 and 1, not {v.shape} and {level!r}.")
    kept = v[~np.isnan(v).any(tuple(range(1, v.ndim)))]
    of = _mean if statistic is None else statistic
    missing = len(v) - len(kept)
    if not len(kept):
        return Interval(float("nan"), float("nan"), float("nan"), 0, missing)
    value = float(of(kept))
    infinite = int(np.isinf(kept).any(tuple(range(1, kept.ndim))).sum())
    if len(kept) == 1:
        return Interval(value, float("nan"), float("nan"), 1, missing, infinite)
    stream = np.random.default_rng(whole("seed", seed, 0))
    draws = [float(of(kept[stream.integers(len(kept), size=len(kept))])) for _ in range(whole("resamples", resamples))]
    known = [d for d in draws if not np.isnan(d)]
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(known, ends, method="inverted_cdf") if known else (np.nan, np.nan)
    return Interval(value, float(low), float(high), len(kept), missing, infinite)


def _mean(values: Array) -> float:
    return float(values.mean())
