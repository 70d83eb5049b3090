"""Bootstrap intervals: coverage, missing samples, seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnx_explain import InputError
from onnx_explain.metrics import interval


def test_missing_samples_are_left_out_and_counted() -> None:
    found = interval([1.0, math.nan, 3.0, math.nan])
    assert (found.value, found.count, found.missing) == (2.0, 2, 2)
    assert found.low == 1.0
    assert found.high == 3.0


def test_nothing_and_one_sample_have_no_interval() -> None:
    nothing = interval([math.nan, math.nan])
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)
    assert nothing.missing == 2
    one = interval([0.5, math.nan])
    assert one.value == 0.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = [
        (lambda i: i.low <= 1.0 <= i.high)(interval(rng.exponential(1.0, 80), level=0.9, resamples=300, seed=k))
        for k in range(200)
    ]
    assert 0.83 < np.mean(covered) < 0.96


def test_a_seed_decides_everything() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert interval(values, seed=3) == interval(values, seed=3)
    assert interval(values, seed=3) != interval(values, seed=4)


def test_an_infinite_sample_makes_an_infinite_mean_and_no_nan() -> None:
    found = interval([1.0, 2.0, math.inf])
    assert found.value == math.inf
    assert (found.count, found.infinite) == (3, 1)
    assert found.high == math.inf
    assert not math.isnan(found.low)
    assert interval([1.0, 2.0, math.inf], statistic=lambda v: float(np.median(v))).value == 2.0


def test_values_may_be_rows_of_a_curve() -> None:
    rows = np.random.default_rng(2).random((30, 5))
    rows[3, 2] = math.nan
    found = interval(rows, statistic=lambda r: float(r.mean(0)[-1]))
    assert found.missing == 1
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize("options", [{"level": 1.0}, {"level": 0}, {"level": "0.95"}, {"resamples": 0}, {"seed": -1}])
def test_an_option_that_makes_no_sense_is_refused(options: dict) -> None:
    with pytest.raises(InputError):
        interval([1.0, 2.0], **options)
    with pytest.raises(InputError):
        interval(1.0)
