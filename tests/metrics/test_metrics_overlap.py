"""Maps as segmentations: counts per sample, pooled scores, the two thresholds."""

from __future__ import annotations

import math

import metric_oracles as oracle
import numpy as np
import pytest

from onnx_explain import InputError
from onnx_explain.metrics import SegmentationCounts, interval, segmentation

RNG = np.random.default_rng(5)
MAPS = np.concatenate(
    [
        RNG.normal(size=(4, 6, 5)),
        RNG.integers(-1, 2, (2, 6, 5)),
        -RNG.random((1, 6, 5)) - 0.1,
        np.full((1, 6, 5), 0.5),
        RNG.random((2, 6, 5)),
    ]
)
MASKS = np.concatenate([RNG.random((8, 6, 5)) < 0.4, np.zeros((1, 6, 5), bool), np.ones((1, 6, 5), bool)])
IGNORE = RNG.random(MAPS.shape) < 0.3


@pytest.mark.parametrize("threshold", ["zero", "mean", 0.25])
@pytest.mark.parametrize("ignore", [None, IGNORE], ids=["all", "void"])
def test_counts_are_those_of_a_loop_over_pixels(threshold, ignore) -> None:
    counts = segmentation(MAPS, MASKS, threshold=threshold, ignore=ignore)
    cut = 0.0 if threshold == "zero" else threshold
    slow = [
        oracle.segmentation(r, m, cut, None if ignore is None else ignore[n])
        for n, (r, m) in enumerate(zip(MAPS, MASKS))
    ]
    np.testing.assert_array_equal(counts.rows(), slow)
    tp, tn, fp, fn = np.sum(slow, 0)
    assert counts.miou == pytest.approx((tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2, rel=1e-14)
    assert counts.pixel_accuracy == pytest.approx((tp + tn) / (tp + tn + fp + fn), rel=1e-14)


def test_a_constant_map_and_an_empty_mask_are_missing() -> None:
    counts = segmentation(MAPS, MASKS)
    assert counts.missing == 2
    np.testing.assert_array_equal(np.isnan(counts.iou), [n in (7, 8) for n in range(10)])
    np.testing.assert_array_equal(np.isnan(counts.accuracy), [n in (7, 8) for n in range(10)])


def test_an_all_negative_map_is_all_background_at_zero_but_not_at_its_mean() -> None:
    r, m = MAPS[6:7], MASKS[6:7]
    assert segmentation(r, m).rows()[0, [0, 2]].tolist() == [0, 0]
    assert segmentation(r, m, threshold="mean").rows()[0, [0, 2]].sum() > 0


def test_a_picture_without_background_has_its_foreground_alone() -> None:
    r = np.array([[[1.0, 2.0], [3.0, -1.0]]])
    assert segmentation(r, np.ones((1, 2, 2), bool)).iou == pytest.approx([0.75 / 2])
    assert segmentation(np.abs(r), np.ones((1, 2, 2), bool)).iou == pytest.approx([1.0])


def test_min_max_scaling_before_the_mean_changes_nothing() -> None:
    usable = MAPS[:7]
    low, high = usable.min((1, 2), keepdims=True), usable.max((1, 2), keepdims=True)
    scaled = (usable - low) / (high - low)
    np.testing.assert_array_equal(
        segmentation(usable, MASKS[:7], threshold="mean").rows(),
        segmentation(scaled, MASKS[:7], threshold="mean").rows(),
    )


def test_a_data_set_may_come_in_pieces() -> None:
    whole = segmentation(MAPS, MASKS)
    rows = np.concatenate([segmentation(MAPS[k : k + 3], MASKS[k : k + 3]).rows() for k in range(0, 10, 3)])
    assert SegmentationCounts.of_rows(rows).miou == whole.miou


def test_the_interval_of_a_pooled_score_is_drawn_from_the_counts() -> None:
    rows = segmentation(MAPS, MASKS).rows()
    found = interval(rows, statistic=lambda r: SegmentationCounts.of_rows(r).miou, resamples=200)
    assert found.low <= found.value <= found.high
    assert found.value == segmentation(MAPS, MASKS).miou


def test_a_set_of_missing_samples_has_no_score() -> None:
    counts = segmentation(np.ones((2, 3, 3)), np.ones((2, 3, 3), bool))
    assert math.isnan(counts.miou)
    assert math.isnan(counts.pixel_accuracy)


@pytest.mark.parametrize("threshold", ["otsu", math.nan, math.inf, None, True])
def test_an_unknown_threshold_is_refused(threshold) -> None:
    with pytest.raises(InputError, match="threshold"):
        segmentation(MAPS, MASKS, threshold=threshold)


def test_pixels_without_a_label_must_fit_the_maps() -> None:
    with pytest.raises(InputError, match="ignore"):
        segmentation(MAPS, MASKS, ignore=IGNORE[:1])
