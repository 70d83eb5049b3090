"""Curves of replaced pixels against loops, on odd sizes, ties and short last steps; forward passes counted."""

from __future__ import annotations

import math
from itertools import pairwise

import metric_oracles as oracle
import numpy as np
import pytest

from onnx_explain import InputError
from onnx_explain.metrics import (
    deletion,
    insertion,
    negative_perturbation,
    pixel_flipping,
    region_perturbation,
    softmax,
)
from onnx_explain.metrics.replacement import blur, gaussian_kernel

RNG = np.random.default_rng(8)
X = RNG.normal(size=(3, 2, 7, 5))
MAPS = np.stack([RNG.normal(size=(7, 5)), RNG.integers(-1, 2, (7, 5)), -RNG.random((7, 5))]).astype(float)
W = RNG.normal(size=(2 * 7 * 5, 4))
ORDERS = {"morf": True, "lerf": False}


class Net:
    """Logits of a small network, and what it was asked."""

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.batches.append(x.copy())
        return np.tanh(x.reshape(len(x), -1) @ W) * 3

    @property
    def rows(self) -> int:
        return sum(map(len, self.batches))


def scorer(target: int):
    """The score of one class of one picture, in float64."""
    return lambda x: float(Net()(x[None])[0, target])


TARGETS = Net()(X).argmax(1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_regions_go_in_the_order_of_their_sums(size: int, order: str) -> None:
    fill = RNG.normal(size=X.shape)
    usable = size < 9  # one region of all pixels has no order
    curve = region_perturbation(
        Net(),
        X,
        relevance=MAPS,
        size=size,
        steps=None,
        order=order,
        replacement=fill,  # type: ignore[arg-type]
    )
    for n in range(3):
        if not usable:
            assert np.isnan(curve.scores[n]).all()
            continue
        slow = oracle.region_curve(scorer(TARGETS[n]), X[n], MAPS[n], size, 99, fill[n], ORDERS[order])
        np.testing.assert_allclose(curve.scores[n], slow, rtol=1e-12)
        assert curve.aopc[n] == pytest.approx(oracle.aopc(slow), abs=1e-12)
    assert curve.missing == (0 if usable else 3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("step", [1, 4, 6, 35, 40])
def test_pixels_go_in_the_order_of_their_relevance_the_last_step_being_shorter(step: int, order: str) -> None:
    curve = pixel_flipping(Net(), X, relevance=MAPS, step=step, order=order, replacement="zero")  # type: ignore[arg-type]
    assert curve.scores.shape == (3, math.ceil(35 / step) + 1)
    for n in range(3):
        slow = oracle.pixel_curve(scorer(TARGETS[n]), X[n], MAPS[n], step, np.zeros_like(X[n]), ORDERS[order])
        np.testing.assert_allclose(curve.scores[n], slow, rtol=1e-12)
    np.testing.assert_allclose(curve.fraction[1], np.minimum(np.arange(len(curve.fraction[1])) * step, 35) / 35)


@pytest.mark.parametrize("step", [None, 4, 35])
def test_deletion_and_insertion_are_those_of_rise(step: int | None) -> None:
    at_once = 7 if step is None else step
    removed, added = Net(), Net()
    out = deletion(removed, X, relevance=MAPS, step=step)
    back = insertion(added, X, relevance=MAPS, step=step)
    kernel = gaussian_kernel()
    for n in range(3):
        f = scorer(TARGETS[n])
        slow = oracle.pixel_curve(f, X[n], MAPS[n], at_once, np.zeros_like(X[n]))
        np.testing.assert_allclose(out.scores[n], slow, rtol=1e-12)
        assert out.auc[n] == pytest.approx(oracle.rise_auc(slow), rel=1e-12)
        slow = oracle.pixel_curve(f, oracle.blur(X[n], kernel), MAPS[n], at_once, X[n])
        np.testing.assert_allclose(back.scores[n], slow, rtol=1e-9)
        assert back.auc[n] == pytest.approx(oracle.rise_auc(slow), rel=1e-9)
    np.testing.assert_array_equal(out.targets, TARGETS)
    np.testing.assert_array_equal(back.targets, TARGETS)
    np.testing.assert_allclose(out.scores[:, 0], back.scores[:, -1], rtol=1e-12)
    assert removed.rows == added.rows == 3 * (math.ceil(35 / at_once) + 1)


def test_features_may_go_one_by_one() -> None:
    features = RNG.normal(size=X.shape)
    curve = pixel_flipping(Net(), X, relevance=features, step=9, replacement="zero")
    for n in range(3):
        f, state = scorer(TARGETS[n]), X[n].copy().ravel()
        slow = [f(state.reshape(X[n].shape))]
        places = sorted(range(70), key=lambda k: -features[n].ravel()[k])
        for start in range(0, 70, 9):
            state[places[start : start + 9]] = 0
            slow.append(f(state.reshape(X[n].shape)))
        np.testing.assert_allclose(curve.scores[n], slow, rtol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_the_number_of_forward_passes_is_the_definitions_however_they_are_batched(batch_size: int) -> None:
    net = Net()
    curve = region_perturbation(
        net, X, relevance=MAPS, size=2, steps=5, replacement="mean", batch_size=batch_size, targets=[1, 2, 3]
    )
    assert net.rows == 3 * 6
    assert max(map(len, net.batches)) <= batch_size
    whole = region_perturbation(Net(), X, relevance=MAPS, size=2, steps=5, replacement="mean", targets=[1, 2, 3])
    np.testing.assert_allclose(curve.scores, whole.scores, rtol=1e-12)
    np.testing.assert_array_equal(curve.targets, [1, 2, 3])


def test_equal_relevance_goes_in_row_major_order_either_way() -> None:
    maps = np.zeros((1, 2, 3))
    maps[0, 1, 1] = 1.0
    for order, expected in (("morf", [4, 0, 1, 2, 3, 5]), ("lerf", [0, 1, 2, 3, 5, 4])):
        seen: list[np.ndarray] = []
        pixel_flipping(
            lambda x, seen=seen: seen.extend(x) or np.ones((len(x), 2)),
            np.ones((1, 1, 2, 3)),
            relevance=maps,
            replacement="zero",
            order=order,  # type: ignore[arg-type]
        )
        went = [int(np.flatnonzero(a.ravel() != b.ravel())[0]) for a, b in pairwise(seen)]
        assert went == expected


def test_a_map_without_an_order_is_missing_and_costs_nothing() -> None:
    maps = MAPS.copy()
    maps[1] = 0.25
    for measure in (deletion, insertion, pixel_flipping, region_perturbation):
        net = Net()
        options = {"size": 2, "steps": 3, "replacement": "mean"} if measure is region_perturbation else {}
        curve = measure(net, X, relevance=maps, **options)  # type: ignore[operator]
        assert curve.missing == 1
        assert np.isnan(curve.scores[1]).all()
        assert np.isnan(curve.aopc[1])
        assert np.isnan(curve.auc[1])
        assert curve.targets[1] == -1
        assert net.rows == 2 * curve.scores.shape[1]


def test_the_random_order_needs_no_map_and_is_the_same_for_a_picture_in_any_batch() -> None:
    options = {"size": 2, "steps": None, "order": "random", "replacement": "mean", "seed": 4}
    whole = region_perturbation(Net(), X, relevance=np.zeros_like(MAPS), **options)
    assert whole.missing == 0
    alone = region_perturbation(Net(), X[2:], relevance=MAPS[2:], keys=[2], **options)
    np.testing.assert_allclose(whole.scores[2], alone.scores[0], rtol=1e-12)
    other = region_perturbation(Net(), X, relevance=MAPS, **{**options, "seed": 5})
    assert not np.allclose(whole.scores, other.scores)


def test_a_perfect_map_falls_first_with_morf_and_last_with_lerf() -> None:
    """A linear score whose own contributions are the map: no order has a larger or smaller area."""
    w = RNG.normal(size=(7, 5))
    x = RNG.normal(size=(1, 1, 7, 5))

    def score(pictures):
        return np.stack([(pictures[:, 0] * w).sum((1, 2)), np.zeros(len(pictures))], 1)

    options = {"step": 1, "replacement": "zero", "targets": 0}
    best = pixel_flipping(score, x, relevance=x[:, 0] * w, order="morf", **options).aopc[0]
    worst = pixel_flipping(score, x, relevance=x[:, 0] * w, order="lerf", **options).aopc[0]
    others = [pixel_flipping(score, x, relevance=RNG.normal(size=(1, 7, 5)), **options).aopc[0] for _ in range(20)]
    assert worst < min(others) < max(others) < best


def test_negative_perturbation_counts_the_rightly_classified_alone() -> None:
    labels = TARGETS.copy()
    labels[1] = (labels[1] + 1) % 4
    net = Net()
    fill = RNG.normal(size=X.shape) * 2
    curve = negative_perturbation(net, X, relevance=MAPS, labels=labels, size=2, steps=8, replacement=fill)
    assert net.rows == 3 + 2 * 8
    assert curve.missing == 1
    slow = []
    for n in (0, 2):
        states: list[int] = []
        oracle.region_curve(
            lambda s, states=states: states.append(int(Net()(s[None]).argmax())) or 0.0,
            X[n], MAPS[n], 2, 8, fill[n], descending=False,
        )  # fmt: skip
        correct = [float(s == labels[n]) for s in states]
        np.testing.assert_array_equal(curve.correct[n], correct)
        assert curve.aopc[n] == pytest.approx(sum(1 - c for c in correct) / 9)
        slow.append(correct)
    np.testing.assert_allclose(curve.accuracy, np.mean(slow, 0))
    assert np.isnan(curve.aopc[1])


def test_negative_perturbation_along_a_map_of_one_value_is_missing() -> None:
    maps = MAPS.copy()
    maps[2] = -0.5
    net = Net()
    # 2 does not divide 7 and 5: the sums of the regions differ all the same
    curve = negative_perturbation(net, X, relevance=maps, labels=TARGETS, size=2, steps=3, replacement="mean")
    np.testing.assert_array_equal(np.isnan(curve.aopc), [False, False, True])
    assert net.rows == 3 + 2 * 3


def test_negative_perturbation_of_nothing_right_has_no_accuracy() -> None:
    wrong = (TARGETS + 1) % 4
    curve = negative_perturbation(Net(), X, relevance=MAPS, labels=wrong, size=2, steps=3, replacement="mean")
    assert curve.missing == 3
    assert np.isnan(curve.accuracy).all()


def test_no_pictures_give_an_empty_curve() -> None:
    for measure in (deletion, insertion, pixel_flipping):
        curve = measure(Net(), X[:0], relevance=MAPS[:0])
        assert len(curve.scores) == len(curve.auc) == curve.missing == 0


def test_float32_pictures_stay_float32() -> None:
    net = Net()
    deletion(net, X.astype(np.float32), relevance=MAPS.astype(np.float32))
    assert {b.dtype for b in net.batches} == {np.dtype(np.float32)}


def test_nothing_given_is_changed() -> None:
    kept = X.copy(), MAPS.copy()
    insertion(Net(), X, relevance=MAPS)
    region_perturbation(Net(), X, relevance=MAPS, size=2, steps=2, replacement="region-mean")
    np.testing.assert_array_equal(X, kept[0])
    np.testing.assert_array_equal(MAPS, kept[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 2, "steps": 13}, "only 12 steps"),
        ({"size": 0}, "size"),
        ({"size": 2, "steps": 2, "order": "most"}, "order"),
        ({"size": 2, "steps": 2, "replacement": "uniform"}, "bounds"),
        ({"size": 2, "steps": 2, "replacement": "grey"}, "replacement"),
        ({"size": 2, "steps": 2, "replacement": np.ones((3, 1))}, "does not fit"),
        ({"size": 2, "steps": 2, "replacement": "mean", "targets": 4}, "targets"),
        ({"size": 2, "steps": 2, "replacement": "mean", "targets": [0, 1]}, "targets"),
        ({"size": 2, "steps": 2, "replacement": "mean", "targets": -1}, "targets"),
        ({"size": 2, "steps": 2, "replacement": "mean", "batch_size": 0}, "batch_size"),
        ({"size": 2, "steps": 2, "replacement": "mean", "order": "random", "keys": [1]}, "keys"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        region_perturbation(Net(), X, relevance=MAPS, **options)


@pytest.mark.parametrize(
    ("x", "relevance", "words"),
    [
        (X[0], MAPS, "pictures"),
        (X, MAPS[:2], "relevance"),
        (X, MAPS[:, :6], "relevance"),
        (np.where(X > 2, np.nan, X) * np.array([1, np.nan, 1])[:, None, None, None], MAPS, "sample"),
        (X, np.where(np.isin(MAPS, MAPS[0, 0, 0]), np.nan, MAPS), "sample 0"),
    ],
)
def test_pictures_and_maps_must_fit_and_be_finite(x, relevance, words: str) -> None:
    with pytest.raises(InputError, match=words):
        deletion(Net(), x, relevance=relevance)


@pytest.mark.parametrize(
    "answer", [lambda x: np.ones(len(x)), lambda x: np.ones((1, 4)), lambda x: np.full((len(x), 4), np.nan)]
)
def test_a_score_that_answers_nonsense_is_refused(answer) -> None:
    with pytest.raises(InputError, match="score"):
        deletion(answer, X, relevance=MAPS)


def test_softmax_neither_overflows_nor_loses_its_sum() -> None:
    p = softmax(np.array([[1e4, 0.0, -1e4], [1.0, 2.0, 3.0]]))
    np.testing.assert_allclose(p.sum(1), 1.0)
    np.testing.assert_allclose(p[1], np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum())


def test_blurring_is_a_convolution_with_zeros_beyond_the_border() -> None:
    np.testing.assert_allclose(blur(X)[1], oracle.blur(X[1], gaussian_kernel()), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(blur(X, size=3, sigma=1.0)[0], oracle.blur(X[0], gaussian_kernel(3, 1.0)), atol=1e-12)
