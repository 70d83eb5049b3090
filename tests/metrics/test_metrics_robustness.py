"""Infidelity, max-sensitivity, completeness, sparseness and complexity against loops."""

from __future__ import annotations

import math

import metric_oracles as oracle
import numpy as np
import pytest

from onnx_explain import InputError
from onnx_explain.metrics import (
    ball_perturbations,
    completeness,
    complexity,
    infidelity,
    max_sensitivity,
    noise_perturbations,
    sparseness,
    square_perturbations,
)

RNG = np.random.default_rng(6)
X = RNG.normal(size=(3, 2, 4, 5))
PHI = RNG.normal(size=X.shape)
W = RNG.normal(size=(40, 3))
I = RNG.normal(size=(7, *X.shape)) * 0.3  # noqa: E741 - the paper's letter


def score(x):
    return np.tanh(x.reshape(len(x), -1) @ W)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_infidelity_is_the_mean_squared_gap(batch_size: int, normalise: bool) -> None:
    asked: list[int] = []

    def counted(x):
        asked.append(len(x))
        return score(x)

    targets = [2, 0, 1]
    found = infidelity(
        counted, X, relevance=PHI, perturbations=I, targets=targets, normalise=normalise, batch_size=batch_size
    )
    slow = [
        oracle.infidelity(lambda x, t=t: score(x[None])[0, t], X[n], PHI[n], I[:, n], normalise)
        for n, t in enumerate(targets)
    ]
    np.testing.assert_allclose(found, slow, rtol=1e-10)
    assert sum(asked) == 3 * 8
    assert max(asked) <= batch_size


def test_the_gradient_of_a_linear_score_is_perfectly_faithful() -> None:
    phi = np.broadcast_to(W[:, 1].reshape(X.shape[1:]), X.shape)
    found = infidelity(lambda x: x.reshape(len(x), -1) @ W, X, relevance=phi, perturbations=I, targets=1)
    np.testing.assert_allclose(found, 0, atol=1e-25)
    scaled = infidelity(
        lambda x: x.reshape(len(x), -1) @ W, X, relevance=phi * -7, perturbations=I, targets=1, normalise=True
    )
    np.testing.assert_allclose(scaled, 0, atol=1e-25)


def test_a_map_of_zeros_has_no_best_scale() -> None:
    zeros = np.zeros_like(X)
    assert np.isnan(infidelity(score, X, relevance=zeros, perturbations=I, normalise=True)).all()
    assert np.isfinite(infidelity(score, X, relevance=zeros, perturbations=I)).all()


def explain(x, targets):
    """A relevance with channels that depends on picture and class."""
    return np.sin(x * (targets[:, None, None, None] + 1.0))


@pytest.mark.parametrize("relative", [False, True])
def test_max_sensitivity_is_the_largest_step_of_the_map(relative: bool) -> None:
    targets = np.array([2, 0, 1])
    asked: list[int] = []

    def counted(x, t):
        asked.append(len(x))
        return explain(x, t)

    found = max_sensitivity(counted, X, perturbations=I, targets=targets, relative=relative, batch_size=2)
    phi = explain(X, targets)
    slow = [max(np.linalg.norm((explain(X + d, targets) - phi)[n]) for d in I) for n in range(3)]
    if relative:
        slow = [s / np.linalg.norm(p) for s, p in zip(slow, phi)]
    np.testing.assert_allclose(found, slow, rtol=1e-12)
    assert sum(asked) == 3 * 8
    asked.clear()
    known = max_sensitivity(counted, X, perturbations=I, targets=targets, relevance=phi, relative=relative)
    np.testing.assert_allclose(known, slow, rtol=1e-12)
    assert sum(asked) == 3 * 7


def test_a_constant_explanation_is_not_sensitive_and_one_of_zeros_has_no_relative_value() -> None:
    assert (max_sensitivity(lambda x, t: np.ones((len(x), 4, 5)), X, perturbations=I, targets=0) == 0).all()
    relative = max_sensitivity(lambda x, t: np.zeros((len(x), 4, 5)), X, perturbations=I, targets=0, relative=True)
    assert np.isnan(relative).all()


def test_perturbations_are_within_their_ball_and_belong_to_their_picture() -> None:
    ball = ball_perturbations(X, radius=0.2, count=50, seed=1)
    assert ball.shape == (50, *X.shape)
    assert 0.19 < np.abs(ball).max() <= 0.2
    np.testing.assert_array_equal(ball[:, 1], ball_perturbations(X[1:2], radius=0.2, count=50, seed=1, keys=[1])[:, 0])
    noise = noise_perturbations(X, sigma=0.5, count=200)
    assert noise.std() == pytest.approx(0.5, rel=0.05)
    square = square_perturbations(X, size=3, count=30)
    for removed in (X - square).reshape(-1, 2, 4, 5):
        assert (removed == 0).sum() == 2 * 9
    places = {tuple(np.argwhere(s[0])[0]) for s in square[:, 0]}
    assert len(places) == 2 * 3, "every corner that fits is drawn"
    with pytest.raises(InputError, match="does not fit"):
        square_perturbations(X, size=5, count=1)
    with pytest.raises(InputError, match="radius"):
        ball_perturbations(X, radius=-0.1, count=1)
    with pytest.raises(InputError, match="sigma"):
        noise_perturbations(X, sigma=math.nan, count=1)
    with pytest.raises(InputError, match="keys"):
        noise_perturbations(X, sigma=1, count=1, keys=[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"perturbations": I[0]}, "perturbations"),
        ({"perturbations": I[:0]}, "K >= 1"),
        ({"perturbations": I * np.nan}, "NaN"),
        ({"relevance": PHI.sum(1)}, "channels not summed"),
        ({"relevance": PHI * np.nan}, "sample"),
        ({"targets": 3}, "targets"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        infidelity(score, X, **{"relevance": PHI, "perturbations": I, **options})


def test_an_explanation_that_changes_its_shape_is_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        max_sensitivity(explain, X, perturbations=I, targets=0, relevance=PHI.sum(1))
    with pytest.raises(InputError, match="NaN"):
        max_sensitivity(lambda x, t: x * np.nan, X, perturbations=I, targets=0)


MAPS = {
    "signed": RNG.normal(size=(4, 5)),
    "ties": RNG.integers(-1, 2, (4, 5)).astype(float),
    "negative": -RNG.random((4, 5)),
    "constant": np.full((4, 5), -0.3),
    "single": np.eye(1, 20, 7).reshape(4, 5),
    "zeros": np.zeros((4, 5)),
    "tiny": RNG.random((4, 5)) * 1e-250,
}


@pytest.mark.parametrize("name", MAPS)
def test_sparseness_and_complexity_are_gini_and_entropy(name: str) -> None:
    r = MAPS[name]
    np.testing.assert_allclose(sparseness(r[None]), [oracle.gini(r)], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(complexity(r[None]), [oracle.entropy(r)], rtol=1e-10, atol=1e-12)


def test_sparseness_and_complexity_have_their_known_ends() -> None:
    assert sparseness(MAPS["single"][None])[0] == pytest.approx(1 - 1 / 20)
    assert complexity(MAPS["single"][None])[0] == 0.0
    assert sparseness(MAPS["constant"][None])[0] == pytest.approx(0.0, abs=1e-12)
    assert complexity(MAPS["constant"][None])[0] == pytest.approx(math.log(20))
    for measure in (sparseness, complexity):
        assert np.isnan(measure(MAPS["zeros"][None])).all()
        with pytest.raises(InputError, match="maps"):
            measure(np.ones(3))


def test_completeness_is_what_is_left_after_the_change_of_the_score() -> None:
    base = RNG.normal(size=X.shape)
    targets = [0, 1, 2]
    f = score(X)[range(3), targets]
    np.testing.assert_allclose(completeness(score, X, relevance=PHI, targets=targets), PHI.sum((1, 2, 3)) - f)
    gap = PHI.sum((1, 2, 3)) - (f - score(base)[range(3), targets])
    np.testing.assert_allclose(completeness(score, X, relevance=PHI, targets=targets, baseline=base), gap)
    shifted = lambda x: score(x) + 3  # noqa: E731
    np.testing.assert_allclose(
        completeness(shifted, X, relevance=PHI, targets=targets, baseline=None), PHI.sum((1, 2, 3)) - f - 3
    )
    relative = completeness(score, X, relevance=PHI.sum(1), targets=targets, baseline=base, relative=True)
    np.testing.assert_allclose(relative, np.abs(gap) / np.abs(f - score(base)[range(3), targets]))


def test_completeness_without_a_change_of_the_score_has_no_relative_value() -> None:
    flat = lambda x: np.ones((len(x), 2))  # noqa: E731
    assert np.isnan(completeness(flat, X, relevance=PHI, relative=True)).all()
    with pytest.raises(InputError, match="relevance"):
        completeness(score, X, relevance=PHI[:1])
