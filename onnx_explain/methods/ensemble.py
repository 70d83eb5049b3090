"""Methods that average one backward pass over many points: on the way from a baseline, or in noise around the input.

What such a method is lives here, as data; `onnx_explain.ensembles` runs it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import MethodError
from onnx_explain.methods.gradient import gnl_composite
from onnx_explain.methods.registry import Assignment, Composite, Selector, register_method
from onnx_explain.rules import gradient
from onnx_explain.rules.baseline import Baseline, arrays_of, numbers, parse_baseline
from onnx_explain.rules.points import LEVELS, mixed, stream

Array = npt.NDArray[Any]
Quadrature = Literal["gausslegendre", "left", "middle", "right", "trapezoid"]
Points = Literal["path", "noise", "baselines"]
Statistic = Literal["mean", "mean square", "variance"]
_NEWTON = 6  # quadratic from a start that is right to 1/n²; 4 suffice to n = 10 000
_SUNDARARAJAN = "Sundararajan, Taly, Yan: Axiomatic attribution for deep networks, ICML 2017"
_SMILKOV = "Smilkov et al.: SmoothGrad: removing noise by adding noise, 2017"


@dataclass(frozen=True, eq=False)
class Ensemble:
    """A composite's relevance g over `count` points made of the input x.

    points: ``path``: baseline + α·(x - baseline), the α of a quadrature `rule`; relevance is (x - baseline)·∫ g dα.
    ``noise``: x + σ·n, n standard normal, σ = `sigma` or, where that is None, `noise_level`·(max x - min x) per sample;
    relevance is the `statistic` of g (the variance is the biased one). ``baselines``: each point on the way from one row
    of `baselines` [M, …]; relevance is the mean of (x - row)·g.

    tolerance: of a path: halve its worst interval until Σ relevance is the change of the score to this fraction of it.
    noise: given numbers [count, N, …] in place of drawn ones. complete: Σ relevance is meant to be the change of the score.
    """

    composite: Composite
    points: Points
    count: int = 50
    statistic: Statistic = "mean"
    rule: Quadrature = "gausslegendre"
    baseline: Baseline = field(default_factory=Baseline)
    tolerance: float | None = None
    noise_level: float = 0.15
    sigma: float | None = None
    random_seed: int = 0
    baselines: Array | Mapping[str, Array] | None = None
    noise: Array | None = None
    complete: bool = False
    kind: str = "ensemble"

    def quadrature(self) -> tuple[Array, Array]:
        """α_k and their weights, float64 [count]; of points that are no path: zeros, and one over `count`."""
        if self.points == "path":
            return quadrature(self.rule, self.count)
        if self.points == "baselines":
            return self._drawn_alphas(), np.full(self.count, 1 / self.count)
        return np.zeros(self.count), np.full(self.count, 1 / self.count)

    def rows(self, size: int) -> npt.NDArray[np.int64]:
        """Which of `size` baselines each point starts from: int64 [count]; a shuffle of all, then another one, …"""
        begin = stream(self.random_seed, "rows")
        keys = [mixed((begin + i) & 0xFFFFFFFF) for i in range(-(-self.count // size) * size)]
        decks = [sorted(range(size), key=lambda i, d=d: keys[d * size + i]) for d in range(len(keys) // size)]  # type: ignore[misc]
        return np.asarray([row for deck in decks for row in deck][: self.count], np.int64)

    def _drawn_alphas(self) -> Array:
        """One α in each of `count` equal parts of the way, in mixed order: (k + u_k)/count."""
        within, order = stream(self.random_seed, "alphas"), stream(self.random_seed, "order")
        u = [((mixed((within + k) & 0xFFFFFFFF) >> 16) + 0.5) / LEVELS for k in range(self.count)]
        places = sorted(range(self.count), key=lambda k: mixed((order + k) & 0xFFFFFFFF))
        return np.asarray((np.asarray(places) + np.asarray(u)) / self.count)


def quadrature(rule: Quadrature, n: int) -> tuple[Array, Array]:
    """α_k and weights w_k of ∫₀¹ dα, float64 [n] each; Σ w = 1 (methods.md §1). MethodError where n is too small."""
    if rule == "gausslegendre":
        return _gauss_legendre(n)
    k = np.arange(n)
    if rule == "trapezoid":
        if n < 2:
            raise MethodError("The trapezoid rule needs at least 2 steps: both ends of the path.")
        weights = np.full(n, 1 / (n - 1))
        weights[[0, -1]] /= 2
        return k / (n - 1), weights
    shift = {"left": 0.0, "middle": 0.5, "right": 1.0}[rule]
    return (k + shift) / n, np.full(n, 1 / n)


def _gauss_legendre(n: int) -> tuple[Array, Array]:
    """Nodes and weights on [0, 1] by Newton's method: in memory that grows with n, where NumPy's grows with n²."""
    x = np.cos(np.pi * (np.arange(n, 0, -1) - 0.25) / (n + 0.5))
    for _ in range(_NEWTON):
        before, p = np.ones(n), x
        for j in range(2, n + 1):
            before, p = p, ((2 * j - 1) * x * p - (j - 1) * before) / j
        slope = n * (x * p - before) / (x * x - 1)
        x = x - p / slope
    weights = 1 / ((1 - x * x) * slope * slope)
    return (1 + x) / 2, weights / weights.sum()


def _plain_gradient() -> Composite:
    return Composite((Assignment(Selector(), gradient.adjoint, "gradient"),))


def _path(
    composite: Composite, steps: int, rule: Quadrature, baseline: Any, tolerance: Any, *, complete: bool
) -> Ensemble:
    quadrature(rule, steps)
    return Ensemble(
        composite,
        "path",
        steps,
        rule=rule,
        baseline=parse_baseline(baseline),
        tolerance=_positive("tolerance", tolerance),
        complete=complete,
    )


def _noise(statistic: Statistic, samples: int, noise_level: float, sigma: Any, random_seed: int) -> Ensemble:
    if noise_level < 0:
        raise MethodError(f"noise_level must not be negative, not {noise_level!r}.")
    return Ensemble(
        _plain_gradient(),
        "noise",
        samples,
        statistic,
        noise_level=noise_level,
        sigma=_positive("sigma", sigma),
        random_seed=random_seed,
    )


def _positive(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < math.inf:
        raise MethodError(f"{name} must be a number above 0, or none, not {value!r}.")
    return float(value)


@register_method(
    "integrated-gradients",
    "gradient averaged along the straight way from a baseline, times the distance",
    f"{_SUNDARARAJAN}, equation 1",
    seed="one",
    family="path",
    conserves=False,
)
def _integrated_gradients(
    steps: int = 50, rule: Quadrature = "gausslegendre", baseline: Any = "zero", tolerance: float | None = None
) -> Ensemble:
    return _path(_plain_gradient(), steps, rule, baseline, tolerance, complete=True)


@register_method(
    "gnl-ig",
    "integrated gradients whose gradient follows positive paths alone",
    "Kwon, Koo, Cho: Visualizing the decision of CNNs by guided non-linearity, ICPR 2020",
    seed="one",
    family="path",
    conserves=False,
)
def _gnl_ig(
    steps: int = 50,
    rule: Quadrature = "gausslegendre",
    baseline: Any = "zero",
    variant: gradient.Pooling = "path",
) -> Ensemble:
    return _path(gnl_composite(variant=variant), steps, rule, baseline, None, complete=False)


@register_method(
    "smoothgrad",
    "mean gradient in noise around the input",
    _SMILKOV,
    seed="one",
    family="path",
    conserves=False,
)
def _smoothgrad(
    samples: int = 50, noise_level: float = 0.15, sigma: float | None = None, random_seed: int = 0
) -> Ensemble:
    return _noise("mean", samples, noise_level, sigma, random_seed)


@register_method(
    "smoothgrad-squared",
    "mean squared gradient in noise around the input",
    "Hooker et al.: A benchmark for interpretability methods in deep neural networks, NeurIPS 2019",
    seed="one",
    family="path",
    conserves=False,
    signed=False,
)
def _smoothgrad_squared(
    samples: int = 50, noise_level: float = 0.15, sigma: float | None = None, random_seed: int = 0
) -> Ensemble:
    return _noise("mean square", samples, noise_level, sigma, random_seed)


@register_method(
    "vargrad",
    "variance of the gradient in noise around the input",
    "Adebayo et al.: Local explanation methods for deep neural networks lack sensitivity to parameter values, 2018",
    seed="one",
    family="path",
    conserves=False,
    signed=False,
)
def _vargrad(
    samples: int = 50, noise_level: float = 0.15, sigma: float | None = None, random_seed: int = 0
) -> Ensemble:
    return _noise("variance", samples, noise_level, sigma, random_seed)


@register_method(
    "expected-gradients",
    "integrated gradients averaged over a set of baselines, one random point per way",
    "Erion et al.: Improving performance of deep learning models with axiomatic attribution priors and expected gradients, 2021",
    seed="one",
    family="path",
    conserves=False,
)
def _expected_gradients(baselines: Any = None, samples: int = 50, random_seed: int = 0) -> Ensemble:
    if baselines is None:
        raise MethodError(
            "Method 'expected-gradients' needs `baselines`: an array with one baseline per row, of the input's shape, or a "
            ".npy file of one."
        )
    rows = _baseline_set(baselines)
    return Ensemble(_plain_gradient(), "baselines", samples, random_seed=random_seed, baselines=rows, complete=True)


def _baseline_set(given: Any) -> Array | dict[str, Array]:
    if isinstance(given, (str, os.PathLike)):
        given = arrays_of(Path(given))
    if isinstance(given, Mapping):
        return {str(n): numbers(a, f"The set of baselines of input {n!r}") for n, a in given.items()}
    return numbers(given, "The set of baselines")
