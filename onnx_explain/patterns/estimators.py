"""From sums to patterns, neuron by neuron (methods.md §7.1 and §7.3).

Linear: a = C/(wᵀC). Of a regime r: a_r = N_r/(wᵀN_r) with N_r = E_r[x y] - E_r[x]·E[y], where E[y] is over all patches
(Kindermans et al. 2018, eq. 8). So wᵀa = 1. Where the formula has no meaning the pattern is zero: signal and relevance
end there, and the neuron is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.patterns.statistics import Neurons, Regime

Array = npt.NDArray[Any]
Estimator = Literal["linear", "positive", "negative"]

FINE, DEAD, CONSTANT, ILL_CONDITIONED, NEGATIVE, FEW = range(6)
NAMES = ("fine", "dead", "constant", "ill-conditioned", "negative", "few")
MEANING = {
    "dead": "no patch in the regime: pattern 0",
    "constant": "the output never varies, or the weight is 0: pattern 0",
    "ill-conditioned": "weight and pattern are all but orthogonal: pattern 0",
    "negative": "driven by its bias: wᵀN < 0, kept",
    "few": "fewer than 10 patches in the regime: memorised rather than learned, kept",
}
FEW_PATCHES = 10
# |wᵀN| below this part of ‖w‖‖N‖ is rounding: of float64 activations, of float32 ones
THRESHOLD = {True: 1e-8, False: 1e-5}
_STILL = 1e-6  # a standard deviation of y below this part of its mean is rounding of float32


@dataclass(frozen=True)
class Estimate:
    """Patterns as rows [O, D] (0 where the state forbids), the denominator wᵀN [O], and each neuron's state [O].

    amplification: ‖w‖‖a‖ [O], at least 1 where there is a pattern, because wᵀa = 1; what is large is unstable.
    """

    rows: Array
    denominator: Array
    state: Array
    amplification: Array

    @property
    def zeroed(self) -> Array:
        """[O] True where there is no pattern."""
        return np.isin(self.state, (DEAD, CONSTANT, ILL_CONDITIONED))


def estimate(s: Neurons, which: Estimator, *, exact: bool, least: int = 1, limit: float = 0.0) -> Estimate:
    """The patterns of one estimator. exact: activations were float64. least: patches a regime needs to count.

    limit: the ‖w‖‖a‖ above which a pattern counts as ill-conditioned, and with it every one of wᵀN < 0; 0: none does. (A
    neuron whose bias makes it fire has wᵀN₊ near 0, as in nets with BatchNormalization; its pattern drowns all others.)
    """
    regime: Regime = "all" if which == "linear" else which
    n, _, _, x, xy = s.regime(regime)
    mean = (s.y / np.maximum(s.count, 1.0))[:, None]
    each = 1.0 / np.maximum(n, 1.0)
    rows = (xy - x * mean) * each[:, None]
    w_x, w_xy = _projected(s, regime)
    denominator = (w_xy - w_x * mean[:, 0]) * each
    state = _states(s, n, rows, denominator, least, THRESHOLD[exact], limit)
    zero = (state == DEAD) | (state == CONSTANT) | (state == ILL_CONDITIONED)
    rows /= np.where(zero, 1.0, denominator)[:, None]
    rows[zero] = 0.0
    length = np.sqrt(s.norm) * np.sqrt(np.einsum("od,od->o", rows, rows))
    return Estimate(rows, denominator, state, length)


def _projected(s: Neurons, regime: Regime) -> tuple[Array, Array]:
    if regime == "all":
        return s.w_x, s.w_xy
    if regime == "positive":
        return s.w_x_positive, s.w_xy_positive
    return s.w_x - s.w_x_positive, s.w_xy - s.w_xy_positive


def _states(s: Neurons, n: Array, rows: Array, denominator: Array, least: int, threshold: float, limit: float) -> Array:
    length = np.sqrt(np.einsum("od,od->o", rows, rows))
    mean = s.y / np.maximum(s.count, 1.0)
    variance = np.maximum(s.yy / np.maximum(s.count, 1.0) - mean * mean, 0.0)
    still = (variance <= (_STILL * (mean + s.pivot)) ** 2) | (s.norm == 0)
    ill = np.abs(denominator) <= threshold * np.sqrt(s.norm) * length
    if limit:
        ill |= (denominator < 0) | (np.abs(denominator) * limit < np.sqrt(s.norm) * length)
    conditions = [n < max(least, 1), still, ill | ~np.isfinite(denominator), denominator < 0, n < FEW_PATCHES]
    return np.select(conditions, [DEAD, CONSTANT, ILL_CONDITIONED, NEGATIVE, FEW], FINE)
