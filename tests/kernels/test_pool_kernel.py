"""The Numba kernels against the float64 oracle, simulated: overlap, dilation, ceil_mode, ties, NaN, both layouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx_explain_kernels import plan as planning
from onnx_explain_kernels.forms import PoolForm
from onnx_explain_kernels.geometry import Pool
from onnx_explain_kernels.plan import LAYOUTS, Layouts, plan_pool
from onnx_explain_kernels.reference import average_forward, max_forward, pool_relevance
from running import guarded, run_flat, stored, unfilled, unstored

pytest.importorskip("numba", reason="numba (extra [test]) is not installed")

POOLS = {
    "2x2": Pool.of(2, 3, (6, 8), (2, 2), strides=(2, 2)),
    "overlap": Pool.of(1, 2, (9, 7), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "stride1": Pool.of(1, 2, (6, 5), (3, 3), pads=(1, 1, 1, 1)),
    "stride_beyond_kernel": Pool.of(1, 3, (7, 10), (2, 1), strides=(3, 4)),
    "pads_differ": Pool.of(1, 2, (7, 6), (3, 2), strides=(2, 1), pads=(1, 0, 0, 1)),
    "ceil": Pool.of(1, 2, (6, 7), (3, 3), strides=(2, 2), pads=(0, 1, 1, 0), ceil_mode=True),
    "dilated": Pool.of(1, 2, (9, 8), (3, 2), strides=(2, 1), pads=(1, 1, 1, 1), dilations=(2, 3)),
    "dilated_ceil": Pool.of(1, 2, (10, 7), (2, 3), strides=(3, 2), pads=(1, 0, 1, 2), dilations=(3, 2), ceil_mode=True),
    "global": Pool.of(2, 3, (5, 7), (5, 7)),
    "one_axis": Pool.of(1, 3, (63,), (4,), strides=(3,), pads=(1, 2)),
    "one_pixel": Pool.of(3, 7, (1, 1), (1, 1)),
}
MAXIMA = [
    PoolForm("max"),
    PoolForm("max", below="x"),
    PoolForm("max", numerator="active"),
    PoolForm("max", shifted=True),
]
AVERAGES = [
    PoolForm("average"),
    PoolForm("average", "ratio", "x"),
    PoolForm("average", "ratio", "x", "x"),
    PoolForm("average", numerator="active", shifted=True),
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator runs idle threads too: blocks of 64 instead of 256."""
    monkeypatch.setattr(planning, "THREADS", 64)


def operands(pool: Pool, form: PoolForm, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.round(rng.standard_normal((pool.samples, pool.channels, *pool.size)) * 2) / 2  # many ties
    if form.quotient == "ratio":
        x = np.abs(x)
    y = max_forward(pool, x) if form.kind == "max" else average_forward(pool, x)
    r = rng.standard_normal(y.shape) * (rng.random(y.shape) > 0.2)
    found = {"x": x, "y": y, "r": r, "delta": rng.standard_normal(pool.samples)}
    return {k: np.asarray(found[k], np.float32) for k in form.operands}


def run_pool(
    pool: Pool,
    form: PoolForm,
    given: dict[str, np.ndarray],
    *,
    layouts: Layouts = LAYOUTS,
    generic: bool = False,
    epsilon: float = 0.01,
    below_epsilon: float = 0.02,
) -> np.ndarray:
    plan = plan_pool(pool, form, arch=90, layouts=layouts, generic=generic)
    lies = {"x": layouts.x, "y": layouts.r, "r": layouts.r, "delta": "nchw"}
    tensors = {name: guarded(stored(array, lies[name])) for name, array in given.items()}
    tensors["out"] = unfilled(plan, "out")
    run_flat(plan, tensors, epsilon=epsilon, below_epsilon=below_epsilon)
    assert np.isnan(tensors["out"][-16:]).all()
    return unstored(tensors["out"][:-16], (pool.samples, pool.channels, *pool.size), layouts.out)


def check(pool: Pool, form: PoolForm, **options: Any) -> None:
    given = operands(pool, form)
    want = pool_relevance(pool, form, given, epsilon=0.01, below_epsilon=0.02)["out"]
    got = run_pool(pool, form, given, **options)
    np.testing.assert_allclose(got, want, atol=1e-5 * (np.abs(want).max() or 1.0))


@pytest.mark.parametrize("form", MAXIMA, ids=str)
@pytest.mark.parametrize("name", POOLS)
def test_a_maximum_takes_all(name: str, form: PoolForm) -> None:
    check(POOLS[name], form)


@pytest.mark.parametrize("form", AVERAGES, ids=str)
@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize("name", POOLS)
def test_an_average_spreads_by_its_divisor(name: str, include_pad: bool, form: PoolForm) -> None:
    check(replace(POOLS[name], include_pad=include_pad), form)


@pytest.mark.parametrize("form", [MAXIMA[1], AVERAGES[2]], ids=["max", "average"])
@pytest.mark.parametrize(
    "layouts",
    [Layouts(r, x, out) for r in ("nchw", "nhwc") for x in ("nchw", "nhwc") for out in ("nchw", "nhwc")],
    ids=str,
)
def test_a_pool_may_change_the_layout(layouts: Layouts, form: PoolForm) -> None:
    check(POOLS["overlap"], form, layouts=layouts)
    check(Pool.of(1, 35, (3, 4), (2, 2)), form, layouts=layouts)


@pytest.mark.parametrize("form", [MAXIMA[1], AVERAGES[2]], ids=["max", "average"])
@pytest.mark.parametrize("name", ["overlap", "dilated_ceil", "global"])
def test_the_shipped_kernels_take_any_window(name: str, form: PoolForm) -> None:
    check(replace(POOLS[name], include_pad=True), form, generic=True)


@pytest.mark.parametrize("name", ["overlap", "ceil", "dilated"])
def test_of_equal_maxima_the_first_in_row_major_order_wins(name: str) -> None:
    """All entries alike: each window gives everything to its first entry within the picture."""
    pool = POOLS[name]
    x = np.zeros((1, 2, *pool.size), np.float32)
    r = np.ones((1, 2, *pool.out), np.float32)
    got = run_pool(pool, PoolForm("max"), {"x": x, "y": max_forward(pool, x), "r": r})
    want = np.zeros_like(x)
    for p in range(pool.out[0]):
        for q in range(pool.out[1]):
            starts = [(p, 0), (q, 1)]
            at = []
            for i, axis in starts:
                first = i * pool.strides[axis] - pool.begin[axis]
                while first < 0:
                    first += pool.dilations[axis]
                at.append(first)
            want[:, :, at[0], at[1]] += 1
    np.testing.assert_array_equal(got, want)


def test_nothing_is_lost_or_made_by_a_maximum() -> None:
    for pool in POOLS.values():
        given = operands(pool, PoolForm("max"))
        got = run_pool(pool, PoolForm("max"), given)
        np.testing.assert_allclose(got.sum((2, 3)), given["r"].sum((2, 3)), atol=1e-4)


def test_nan_is_no_maximum_and_minus_infinity_may_be() -> None:
    pool = POOLS["2x2"]
    given = operands(pool, PoolForm("max"))
    given["x"][0, 0, :2, :2] = -np.inf
    given["x"][0, 1, 0, 0] = np.nan
    given["y"] = max_forward(pool, given["x"])
    got = run_pool(pool, PoolForm("max"), given)
    np.testing.assert_array_equal(got, np.float32(pool_relevance(pool, PoolForm("max"), given)["out"]))
    assert got[0, 0, 0, 0] == given["r"][0, 0, 0, 0]
    assert not got[0, 1, :2, :2].any()


def test_more_planes_than_a_grid_has_rows_are_walked_through() -> None:
    """The grid is cut to 65 535 rows; here to one, so that the loop over planes must do the rest."""
    pool, form = POOLS["overlap"], PoolForm("max")
    given = operands(pool, form)
    plan = plan_pool(pool, form, arch=90)
    cut = replace(plan, grid=(plan.grid[0], 1, 1))
    tensors = {name: stored(array, "nchw") for name, array in given.items()} | {"out": unfilled(plan, "out")}
    run_flat(cut, tensors)
    want = pool_relevance(pool, form, given)["out"]
    np.testing.assert_allclose(tensors["out"][:-16].reshape(want.shape), want, atol=1e-6)
