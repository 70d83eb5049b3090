"""Measures of maps against masks: the papers' formulas, slow, on hand-made and degenerate cases."""

from __future__ import annotations

import math

import metric_oracles as oracle
import numpy as np
import pytest

from onnx_explain import InputError
from onnx_explain.metrics import (
    attribution_localisation,
    is_difficult,
    masks_from_boxes,
    outside_inside_ratio,
    pointing_accuracy,
    pointing_game,
    relevance_mass,
    relevance_rank,
    roc_auc,
    top_k_intersection,
)

BLOB = np.zeros((5, 7), bool)
BLOB[1:4, 2:5] = True


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name: map [5, 7], mask."""
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(5, 7))
    ties = rng.integers(-1, 2, (5, 7)).astype(float)
    speck = np.zeros((5, 7), bool)
    speck[4, 6] = True
    return {
        "signed": (noise, BLOB),
        "ties": (ties, BLOB),
        "positive": (np.abs(noise), BLOB),
        "all-negative": (-np.abs(noise) - 0.1, BLOB),
        "constant": (np.full((5, 7), 0.3), BLOB),
        "zeros": (np.zeros((5, 7)), BLOB),
        "negative-zeros": (np.where(ties > 0, 0.0, -0.0), BLOB),
        "perfect": (BLOB.astype(float), BLOB),
        "inverted": ((~BLOB).astype(float), BLOB),
        "signed-inverted": (np.where(BLOB, -1.0, 1.0), BLOB),
        "empty-mask": (noise, np.zeros((5, 7), bool)),
        "full-mask": (noise, np.ones((5, 7), bool)),
        "one-pixel": (noise, speck),
        "huge": (noise * 1e150, BLOB),
        "tiny": (noise * 1e-150, BLOB),
    }


CASES = cases()
MEASURES = {
    "oir-all": (
        lambda r, m: outside_inside_ratio(r, m, part="all"),
        lambda r, m: oracle.outside_inside(r, m, False),
    ),
    "oir-positive": (outside_inside_ratio, lambda r, m: oracle.outside_inside(r, m, True)),
    "pointing-0": (lambda r, m: pointing_game(r, m, tolerance=0), lambda r, m: oracle.pointing(r, m, 0)),
    "pointing-1.5": (lambda r, m: pointing_game(r, m, tolerance=1.5), lambda r, m: oracle.pointing(r, m, 1.5)),
    "mass": (relevance_mass, lambda r, m: oracle.mass(r, m, lambda v: max(v, 0.0))),
    "mass-absolute": (lambda r, m: relevance_mass(r, m, part="absolute"), lambda r, m: oracle.mass(r, m, abs)),
    "mass-all": (lambda r, m: relevance_mass(r, m, part="all"), lambda r, m: oracle.mass(r, m, float)),
    "localisation": (attribution_localisation, lambda r, m: oracle.mass(r, m, lambda v: max(v, 0.0))),
    "localisation-weighted": (
        lambda r, m: attribution_localisation(r, m, weighted=True),
        lambda r, m: oracle.mass(r, m, lambda v: max(v, 0.0)) * (r.size / m.sum() if m.any() else math.nan),
    ),
    "rank": (relevance_rank, lambda r, m: oracle.top_k(r, m, int(m.sum()))),
    "top-1": (lambda r, m: top_k_intersection(r, m, k=1), lambda r, m: oracle.top_k(r, m, 1)),
    "top-12": (lambda r, m: top_k_intersection(r, m, k=12), lambda r, m: oracle.top_k(r, m, 12)),
    "auc": (roc_auc, oracle.auc),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("case", CASES)
def test_a_measure_is_what_its_paper_says(case: str, measure: str) -> None:
    ours, slow = MEASURES[measure]
    r, m = CASES[case]
    np.testing.assert_allclose(ours(r[None], m[None]), [slow(r, m)], rtol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
def test_samples_of_a_batch_do_not_touch_each_other(measure: str) -> None:
    ours = MEASURES[measure][0]
    maps, masks = (np.stack(parts) for parts in zip(*CASES.values()))
    single = [ours(r[None], m[None])[0] for r, m in CASES.values()]
    together = ours(maps, masks)
    assert together.dtype == np.float64
    np.testing.assert_array_equal(together, single)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", ["empty-mask", "zeros"])
def test_an_empty_mask_or_a_map_of_zeros_is_missing_and_never_a_hit(name: str, measure: str) -> None:
    r, m = CASES[name]
    assert np.isnan(MEASURES[measure][0](r[None], m[None])).all()


@pytest.mark.parametrize("measure", ["pointing-0", "rank", "top-12", "auc"])
def test_a_map_of_one_value_orders_nothing(measure: str) -> None:
    r, m = CASES["constant"]
    assert np.isnan(MEASURES[measure][0](r[None], m[None])).all()


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_comes_of_no_samples(measure: str) -> None:
    assert MEASURES[measure][0](np.zeros((0, 5, 7)), np.zeros((0, 5, 7), bool)).shape == (0,)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_and_its_sample_named(bad: float, measure: str) -> None:
    maps = np.ones((3, 5, 7))
    maps[1, 2, 3] = bad
    with pytest.raises(InputError, match="sample 1"):
        MEASURES[measure][0](maps, np.stack([BLOB] * 3))


@pytest.mark.parametrize(
    ("r", "m", "words"),
    [
        (np.ones((2, 5, 7)), np.ones((2, 7, 5), bool), "resize the masks"),
        (np.ones((2, 5, 7)), np.ones((1, 5, 7), bool), "resize the masks"),
        (np.ones((2, 3, 5, 7)), np.ones((2, 5, 7), bool), "sum the channel axis"),
        (np.ones((5, 7)), np.ones((5, 7), bool), "channels summed"),
        (np.ones((1, 0, 7)), np.ones((1, 0, 7), bool), "maps"),
        (np.ones((1, 5, 7)), np.full((1, 5, 7), 0.5), "bool"),
        (np.ones((1, 5, 7)), np.full((1, 5, 7), 255, np.uint8), "bool"),
        (np.array([["a"]]), np.ones((1, 1), bool), "real numbers"),
        (np.ones((1, 5, 7), complex), np.ones((1, 5, 7), bool), "real numbers"),
        ([[[1.0, 2.0], [1.0]]], np.ones((1, 2, 2), bool), "differ in shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(r, m, words: str) -> None:
    with pytest.raises(InputError, match=words):
        roc_auc(r, m)


def test_masks_may_be_integers_and_maps_half_precision() -> None:
    r, m = CASES["signed"]
    half = r.astype(np.float16)
    np.testing.assert_array_equal(roc_auc(half[None], m[None].astype(np.uint8)), [oracle.auc(half, m)])


def test_no_argument_is_changed() -> None:
    r, m = (a[None].copy() for a in CASES["signed"])
    kept = r.copy(), m.copy()
    for ours, _ in MEASURES.values():
        ours(r, m)
    np.testing.assert_array_equal(r, kept[0])
    np.testing.assert_array_equal(m, kept[1])


@pytest.mark.parametrize("measure", MEASURES)
def test_the_scale_of_a_map_counts_nowhere(measure: str) -> None:
    maps, masks = (np.stack(parts) for parts in zip(*CASES.values()))
    ours = MEASURES[measure][0]
    np.testing.assert_array_equal(ours(maps * 2.0**20, masks), ours(maps, masks))


@pytest.mark.parametrize("measure", ["pointing-0", "pointing-1.5", "rank", "top-12", "auc"])
def test_only_the_order_of_the_pixels_counts_for_a_measure_of_ranks(measure: str) -> None:
    r, m = CASES["signed"]
    ours = MEASURES[measure][0]
    np.testing.assert_array_equal(ours(np.exp(r)[None], m[None]), ours(r[None], m[None]))


def test_relevance_outside_alone_is_the_worst_ratio() -> None:
    r, m = CASES["inverted"]
    assert outside_inside_ratio(r[None], m[None]) == [math.inf]


def test_boxes_grown_by_the_tolerance_are_the_chebyshev_distance() -> None:
    rng = np.random.default_rng(0)
    boxes = [(2, 1, 4, 3), (8, 6, 9, 9)]
    maps = rng.normal(size=(200, 12, 10))
    masks = masks_from_boxes([boxes] * 200, (12, 10))
    for tolerance in (0, 1, 2.5):
        expected = [oracle.pointing_box(r, boxes, tolerance) for r in maps]
        np.testing.assert_array_equal(pointing_game(maps, masks, tolerance=tolerance, distance="chebyshev"), expected)


def test_of_equal_maxima_the_first_in_row_major_order_points() -> None:
    r = np.zeros((1, 3, 3))
    r[0, 0, 2] = r[0, 2, 0] = 1.0
    first, second = np.zeros((2, 1, 3, 3), bool)
    first[0, 0, 2], second[0, 2, 0] = True, True
    assert pointing_game(r, first, tolerance=0) == [1.0]
    assert pointing_game(r, second, tolerance=0) == [0.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": "15"}, "tolerance"),
        ({"tolerance": np.nan}, "tolerance"),
        ({"distance": "euclid"}, "euclidean"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        pointing_game(np.ones((1, 2, 2)), np.ones((1, 2, 2), bool), **options)
    with pytest.raises(InputError, match="positive"):
        relevance_mass(np.ones((1, 2, 2)), np.ones((1, 2, 2), bool), part="postive")  # type: ignore[arg-type]


def test_more_pixels_than_a_map_has_cannot_be_on_top() -> None:
    for k in (0, 36, -1, 2.0, True):
        with pytest.raises(InputError, match="k "):
            top_k_intersection(*(a[None] for a in CASES["signed"]), k=k)  # type: ignore[arg-type]


def test_pointing_accuracy_is_the_mean_over_classes_and_leaves_missing_pairs_out() -> None:
    mean, per_class = pointing_accuracy([1, 1, 0, 1, math.nan, math.nan], [0, 0, 0, 7, 7, 9])
    assert per_class[0] == pytest.approx(2 / 3)
    assert per_class[7] == 1.0
    assert math.isnan(per_class[9])
    assert mean == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(pointing_accuracy([math.nan], [0])[0])
    with pytest.raises(InputError, match="0, 1 or NaN"):
        pointing_accuracy([0.5], [0])
    with pytest.raises(InputError, match="classes"):
        pointing_accuracy([1, 0], [0])
    with pytest.raises(InputError, match="real numbers"):
        pointing_accuracy(["hit"], [0])


def test_difficult_pairs_are_small_and_not_alone() -> None:
    masks = np.zeros((5, 4, 4), bool)
    masks[0, 0, :3] = masks[1, 0, :3] = True
    masks[2, 0, :] = True
    masks[4, :3] = True
    # a quarter is not less than a quarter, and an empty mask is no object
    np.testing.assert_array_equal(is_difficult(masks, [1, 0, 1, 1, 1]), [True, False, False, False, False])
    with pytest.raises(InputError, match="others"):
        is_difficult(masks, [1])


def test_boxes_fill_from_inclusive_to_exclusive() -> None:
    masks = masks_from_boxes([[(1, 0, 3, 2)], [], [(0, 0, 1, 1), (3, 3, 4, 4)]], (4, 4))
    assert masks[0].sum() == 4
    assert masks[0, 0, 1]
    assert not masks[0, 2, 1]
    assert not masks[0, 0, 3]
    assert not masks[1].any()
    assert masks[2].sum() == 2


@pytest.mark.parametrize("box", [(0, 0, 0, 1), (2, 0, 1, 1), (0, 0, 5, 1), (-1, 0, 1, 1), (0, 3, 1, 5)])
def test_an_empty_box_or_one_beyond_the_picture_is_refused(box: tuple) -> None:
    with pytest.raises(InputError, match="sample 1"):
        masks_from_boxes([[(0, 0, 1, 1)], [box]], (4, 4))


def test_boxes_are_whole_and_four() -> None:
    for boxes in ([[0.0, 0.0, 1.0, 1.0]], [[0, 0, 1]], [0, 0, 1, 1], [[0, 0, 1, 1], [0]], [["a", "b", "c", "d"]]):
        with pytest.raises(InputError, match="sample 0"):
            masks_from_boxes([boxes], (4, 4))
