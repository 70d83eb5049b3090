"""What a perturbed pixel becomes, by name."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_explain import InputError
from onnx_explain.metrics.replacement import NAMES, gaussian_kernel, region_mean, replaced, uniform

RNG = np.random.default_rng(1)
X = RNG.normal(size=(3, 2, 7, 5)).astype(np.float32)
BOUNDS = ([-2.0, -1.0], [2.0, 3.0])


@pytest.mark.parametrize("name", NAMES)
def test_every_replacement_keeps_shape_and_dtype_and_is_finite(name) -> None:
    for dtype in (np.float16, np.float32, np.float64):
        out = replaced(X.astype(dtype), name, size=3, bounds=BOUNDS)
        assert out.shape == X.shape
        assert out.dtype == dtype
        assert np.isfinite(out).all()


def test_the_named_values_are_what_they_say() -> None:
    np.testing.assert_array_equal(replaced(X, "zero"), 0)
    np.testing.assert_allclose(replaced(X, "mean")[1, 1], X[1, 1].mean(), rtol=1e-5)
    np.testing.assert_array_equal(replaced(X, "minimum")[2], X[2].min())
    np.testing.assert_array_equal(replaced(X, "black", bounds=BOUNDS)[:, 1], -1.0)
    np.testing.assert_array_equal(replaced(X, "black", bounds=(0.5, 1.0)), 0.5)
    np.testing.assert_array_equal(replaced(X, 0.25), 0.25)
    np.testing.assert_array_equal(replaced(X, np.array([1.0, 2.0]).reshape(2, 1, 1))[:, 1], 2.0)


def test_a_region_becomes_its_own_mean_the_last_ones_being_smaller() -> None:
    out = region_mean(X.astype(np.float64), 3)
    for rows, columns in ((slice(0, 3), slice(0, 3)), (slice(6, 7), slice(3, 5)), (slice(3, 6), slice(3, 5))):
        for c in range(2):
            np.testing.assert_allclose(out[1, c, rows, columns], X[1, c, rows, columns].mean(), rtol=1e-6)


def test_noise_stays_within_its_bounds_and_fills_them() -> None:
    x = np.zeros((2, 2, 60, 60), np.float32)
    out = uniform(x, bounds=BOUNDS)
    for c, (low, high) in enumerate(zip(*BOUNDS)):
        assert low <= out[:, c].min() < low + 0.02
        assert high - 0.02 < out[:, c].max() <= high
        assert abs(out[:, c].mean() - (low + high) / 2) < 0.1


def test_the_noise_of_a_picture_does_not_depend_on_its_batch() -> None:
    whole = uniform(X, bounds=BOUNDS, seed=3, keys=[10, 11, 12])
    alone = uniform(X[1:2], bounds=BOUNDS, seed=3, keys=[11])
    np.testing.assert_array_equal(whole[1], alone[0])
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(whole, uniform(X, bounds=BOUNDS, seed=4, keys=[10, 11, 12]))


def test_rises_kernel_is_nearly_flat_and_sums_to_one() -> None:
    kernel = gaussian_kernel()
    assert kernel.shape == (11, 11)
    assert kernel.sum() == pytest.approx(1.0, abs=1e-12)
    assert 0.0077 < kernel.min() < kernel.max() < 0.0089
    for size, sigma in ((4, 5.0), (11, 0.0), (0, 1.0)):
        with pytest.raises(InputError):
            gaussian_kernel(size, sigma)


@pytest.mark.parametrize(
    "bounds", [(1.0, 0.0), ([0, 0, 0], [1, 1, 1]), (0.0, np.inf), (0.0,), ("a", "b"), 5, "01"], ids=str
)
def test_bounds_that_make_no_sense_are_refused(bounds) -> None:
    with pytest.raises(InputError, match="bounds"):
        replaced(X, "uniform", bounds=bounds)
    with pytest.raises(InputError, match="keys"):
        replaced(X, "uniform", bounds=(0, 1), keys=[1])
