"""Similarity of maps, and of the maps of two classes."""

from __future__ import annotations

import metric_oracles as oracle
import numpy as np
import pytest

from onnx_explain import InputError
from onnx_explain.metrics import class_sensitivity, pearson, random_logit, spearman, ssim
from onnx_explain.metrics.similarity import similarity

RNG = np.random.default_rng(2)
A = np.concatenate([RNG.normal(size=(2, 13, 12)), RNG.integers(-1, 2, (1, 13, 12)), RNG.random((2, 13, 12))])
B = np.concatenate([RNG.normal(size=(2, 13, 12)), RNG.integers(-1, 2, (1, 13, 12)), RNG.random((2, 13, 12))])


def test_rank_correlation_shares_the_ranks_of_equal_values() -> None:
    np.testing.assert_allclose(spearman(A, B), [oracle.spearman(a, b) for a, b in zip(A, B)], rtol=1e-10)
    np.testing.assert_allclose(
        pearson(A, B), [oracle.correlation(a.ravel(), b.ravel()) for a, b in zip(A, B)], rtol=1e-10
    )


@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (7, 1.0), (1, 1.5)])
def test_structural_similarity_is_that_of_wang(window: int, sigma: float) -> None:
    expected = [oracle.ssim(a, b, window, sigma) for a, b in zip(A, B)]
    np.testing.assert_allclose(ssim(A, B, window=window, sigma=sigma), expected, rtol=1e-9)


@pytest.mark.parametrize("measure", ["spearman", "pearson", "ssim"])
def test_a_map_is_like_itself_whatever_its_scale(measure) -> None:
    for scale in (1.0, 1e-200, 1e200):
        np.testing.assert_allclose(similarity(A, A * scale, measure=measure), 1.0, rtol=1e-9)


def test_signs_count_unless_they_are_taken_off() -> None:
    np.testing.assert_allclose(spearman(A, -A), -1.0)
    np.testing.assert_allclose(similarity(A, -A, measure="spearman", absolute=True), 1.0)


def test_structural_similarity_cannot_tell_a_map_of_one_sign_from_its_negative() -> None:
    """Its two factors both change their sign: a property of the definition, said in the documentation."""
    positive = RNG.random((1, 13, 12)) + 0.5
    assert ssim(positive, -positive) > 0.9
    assert ssim(A[:1], -A[:1]) < 0


def test_a_map_of_one_value_cannot_be_compared_and_one_of_zeros_neither() -> None:
    flat, zeros = np.full_like(A, 0.1), np.zeros_like(A)
    for b in (flat, zeros):
        assert np.isnan(spearman(A, b)).all()
        assert np.isnan(pearson(A, b)).all()
    assert np.isnan(ssim(A, zeros)).all()
    assert np.isnan(ssim(zeros, zeros)).all()


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="compared"):
        spearman(A, B[:1])
    with pytest.raises(InputError, match="window"):
        ssim(A, B, window=13)
    with pytest.raises(InputError, match="window"):
        ssim(A, B, window=4)
    with pytest.raises(InputError, match="similarity"):
        similarity(A, B, measure="cosine")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="NaN"):
        spearman(np.where(A > 0, A, np.nan), B)


X = RNG.normal(size=(5, 1, 12, 12))


def by_class(x, targets):
    """A map that is the picture, turned by the class: of no two classes alike."""
    return np.stack([np.rot90(p[0], int(t)) for p, t in zip(x, targets)])


def test_random_logit_never_compares_a_class_with_itself_and_draws_all_others() -> None:
    asked: list[int] = []

    def explain(x, targets):
        asked.extend(int(t) for t in targets)
        return by_class(x, targets)

    drawn = set()
    for seed in range(40):
        asked.clear()
        random_logit(explain, X, targets=[0, 1, 2, 3, 1], classes=4, seed=seed)
        first, second = asked[:5], asked[5:]
        assert first == [0, 1, 2, 3, 1]
        assert all(a != b for a, b in zip(first, second))
        drawn.update(zip(first, second))
    assert len(drawn) == 12


def test_the_other_class_of_a_picture_does_not_depend_on_its_batch() -> None:
    whole = random_logit(by_class, X, targets=0, classes=4, keys=[7, 8, 9, 10, 11])
    alone = random_logit(by_class, X[3:4], targets=0, classes=4, keys=[10])
    assert whole[3] == alone[0]


def test_a_map_blind_to_the_class_is_found_out() -> None:
    def blind(x, targets):
        return x[:, 0]

    np.testing.assert_allclose(random_logit(blind, X, targets=0, classes=3), 1.0)
    scores = RNG.normal(size=(5, 4))
    np.testing.assert_allclose(class_sensitivity(blind, X, scores=scores), 1.0)
    expected = [
        oracle.correlation(np.rot90(p[0], int(s.argmax())).ravel(), np.rot90(p[0], int(s.argmin())).ravel())
        for p, s in zip(X, scores)
    ]
    np.testing.assert_allclose(class_sensitivity(by_class, X, scores=scores, batch_size=2), expected, rtol=1e-10)


def test_there_must_be_another_class() -> None:
    with pytest.raises(InputError, match="classes"):
        random_logit(by_class, X, targets=0, classes=1)
    with pytest.raises(InputError, match="scores"):
        class_sensitivity(by_class, X, scores=np.ones((5, 1)))
    with pytest.raises(InputError, match="targets"):
        random_logit(by_class, X, targets=4, classes=4)
    with pytest.raises(InputError, match="explanation"):
        random_logit(lambda x, t: by_class(x, t)[:1], X, targets=0, classes=4)
