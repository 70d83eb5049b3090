"""The oracle beside the kernels, against loops over pixels and against the published rules' golden arrays."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from onnx_explain_kernels import forms
from onnx_explain_kernels.errors import ArgumentError, UnsupportedShape
from onnx_explain_kernels.forms import ConvForm, PoolForm
from onnx_explain_kernels.geometry import Conv, Pool
from onnx_explain_kernels.reference import (
    apply_shift,
    average_forward,
    conv_forward,
    conv_relevance,
    conv_transpose,
    max_forward,
    over,
    pool_relevance,
    shift_of_sums,
)
from onnx_explain_kernels.weights import from_bfloat16, pack, to_bfloat16
from onnx_explain_kernels.workspace import ALIGNMENT, Need, plan_workspace

CONVS = [
    Conv.of(2, 6, 4, (7, 5), (3, 2), strides=(2, 1), pads=(1, 0, 2, 1), dilations=(1, 2), group=2),
    Conv.of(1, 3, 3, (5, 9), (1, 2), strides=(3, 4), group=3),
    Conv.of(2, 2, 5, (8,), (3,), pads=(2, 1), dilations=(2,)),
    Conv.dense(4, 3, 5),
]
POOLS = [
    Pool.of(1, 2, (6, 7), (3, 3), strides=(2, 2), pads=(0, 1, 1, 0), ceil_mode=True),
    Pool.of(2, 1, (9, 8), (3, 2), strides=(2, 1), pads=(1, 1, 1, 1), dilations=(2, 3)),
    Pool.of(1, 1, (5, 5), (2, 2), strides=(3, 3)),
]


def windows(geometry: Conv | Pool) -> list[tuple[int, int, list[tuple[int, int, int, int]]]]:
    """Per output position the entries of the input it reads, with the kernel offset: (p, q, [(i, j, h, w)])."""
    found = []
    for p, q in product(*map(range, geometry.out)):
        read = []
        for i, j in product(*map(range, geometry.kernel)):
            h = p * geometry.strides[0] - geometry.begin[0] + i * geometry.dilations[0]
            w = q * geometry.strides[1] - geometry.begin[1] + j * geometry.dilations[1]
            if 0 <= h < geometry.size[0] and 0 <= w < geometry.size[1]:
                read.append((i, j, h, w))
        found.append((p, q, read))
    return found


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_forward_and_transpose_are_the_loops_over_pixels(conv: Conv) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((conv.samples, conv.channels, *conv.size))
    w = rng.standard_normal((conv.filters, conv.channels // conv.group, *conv.kernel))
    s = rng.standard_normal((conv.samples, conv.filters, *conv.out))
    y, back = np.zeros_like(s), np.zeros_like(x)
    wide, deep = conv.channels // conv.group, conv.filters // conv.group
    for p, q, read in windows(conv):
        for i, j, h, v in read:
            for k in range(conv.filters):
                channels = slice(k // deep * wide, (k // deep + 1) * wide)
                y[:, k, p, q] += x[:, channels, h, v] @ w[k, :, i, j]
                back[:, channels, h, v] += s[:, k, p, q, None] * w[k, :, i, j]
    np.testing.assert_allclose(conv_forward(conv, x, w), y, atol=1e-12)
    np.testing.assert_allclose(conv_transpose(conv, s, w), back, atol=1e-12)
    assert np.vdot(conv_forward(conv, x, w), s) == pytest.approx(np.vdot(x, conv_transpose(conv, s, w)))


@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pools_are_the_loops_over_pixels(pool: Pool, include_pad: bool) -> None:
    pool = Pool(**{**vars(pool), "include_pad": include_pad})
    rng = np.random.default_rng(0)
    x = np.round(rng.standard_normal((pool.samples, pool.channels, *pool.size)) * 2)
    r = rng.standard_normal((pool.samples, pool.channels, *pool.out))
    maxima, means, routed, spread = np.zeros_like(r), np.zeros_like(r), np.zeros_like(x), np.zeros_like(x)
    for p, q, read in windows(pool):
        count = len(read)
        if include_pad:
            count = 0
            for i, j in product(*map(range, pool.kernel)):
                h = p * pool.strides[0] - pool.begin[0] + i * pool.dilations[0]
                w = q * pool.strides[1] - pool.begin[1] + j * pool.dilations[1]
                count += h < pool.size[0] + pool.end[0] and w < pool.size[1] + pool.end[1]
        for n, c in product(range(pool.samples), range(pool.channels)):
            values = [x[n, c, h, w] for _, _, h, w in read]
            maxima[n, c, p, q], means[n, c, p, q] = max(values), sum(values) / count
            _, _, h, w = read[values.index(max(values))]
            routed[n, c, h, w] += r[n, c, p, q]
            for _, _, h, w in read:
                spread[n, c, h, w] += r[n, c, p, q] / count
    np.testing.assert_array_equal(max_forward(pool, x), maxima)
    np.testing.assert_allclose(average_forward(pool, x), means, atol=1e-12)
    np.testing.assert_allclose(pool_relevance(pool, PoolForm("max"), {"x": x, "r": r})["out"], routed, atol=1e-12)
    np.testing.assert_allclose(pool_relevance(pool, PoolForm("average"), {"r": r})["out"], spread, atol=1e-12)


def test_relevance_is_conserved_where_the_rule_says_so() -> None:
    """ε = 0 and no bias: z = L_w x, so that Σ R_in = Σ R_out; αβ with α - β = 1; the box without stabiliser."""
    conv, rng = CONVS[0], np.random.default_rng(3)
    x = rng.random((2, 6, *conv.size))
    w = rng.standard_normal((4, 3, *conv.kernel))
    r = rng.standard_normal((2, 4, *conv.out))
    z, zp, zm = (conv_forward(conv, x, v) for v in (w, np.maximum(w, 0), np.minimum(w, 0)))
    plain = conv_relevance(conv, forms.EPSILON, {"r": r, "a": z, "w": w, "x": x})["out"]
    both = {"r": r, "a": zp, "b": zm, "w": 2 * np.maximum(w, 0), "v": -np.minimum(w, 0), "x": x}
    split = conv_relevance(conv, forms.ALPHA_BETA, both)["out"]
    low, high = np.full((1, 6), -0.5), np.full((1, 6), 1.5)
    corner = conv_forward(conv, np.full_like(x, -0.5), np.maximum(w, 0)) + conv_forward(
        conv, np.full_like(x, 1.5), np.minimum(w, 0)
    )
    boxed = {"r": r, "a": z - corner, "w": np.maximum(w, 0), "v": np.minimum(w, 0), "x": x, "low": low, "high": high}
    for found in (plain, split, conv_relevance(conv, forms.BOX, boxed)["out"]):
        np.testing.assert_allclose(found.sum((1, 2, 3)), r.sum((1, 2, 3)), atol=1e-9)


def test_relative_propagation_is_the_published_one() -> None:
    """Every positive relevance goes through z⁺ and, as |z⁻|/T, through z⁻; negative through z⁻ alone; one shift (§2.3)."""
    conv, rng = CONVS[0], np.random.default_rng(4)
    x = np.maximum(rng.standard_normal((2, 6, *conv.size)), 0)
    w = rng.standard_normal((4, 3, *conv.kernel))
    wp, wm = np.maximum(w, 0), np.maximum(-w, 0)
    r = rng.standard_normal((2, 4, *conv.out))
    a, b = conv_forward(conv, x, wp), conv_forward(conv, x, wm)
    found = conv_relevance(conv, forms.RELATIVE, {"r": r, "a": a, "b": b, "w": wp, "v": wm, "x": x})
    gain, loss = np.maximum(r, 0), np.minimum(r, 0)
    steps = [(over(gain, a), wp), (over(gain, a + b), wm), (over(loss, a + b), wm), (over(loss, b), wm)]
    want = sum(x * conv_transpose(conv, s, v) for s, v in steps)
    np.testing.assert_allclose(found["out"], want, atol=1e-9)
    delta, kept = shift_of_sums(found["sums"], found["counts"], r.sum((1, 2, 3)))
    shifted = apply_shift(found["out"], delta)
    np.testing.assert_allclose(shifted.sum((1, 2, 3)), r.sum((1, 2, 3)), atol=1e-9)
    np.testing.assert_allclose(kept, r.sum((1, 2, 3)))
    assert ((shifted == 0) >= (found["out"] == 0)).all()


def test_the_gated_form_follows_the_sign_of_z() -> None:
    conv, rng = CONVS[3], np.random.default_rng(5)
    given = {k: rng.standard_normal((4, 5, 1, 1)) for k in "rabz"} | {"x": rng.random((4, 3, 1, 1))}
    given |= {k: rng.standard_normal((5, 3, 1, 1)) for k in "wv"}
    found = conv_relevance(conv, ConvForm("ratio", "dual", gated=True), given, epsilon=0.1)["out"]
    s, t = over(given["r"], given["a"], 0.1) * (given["z"] > 0), over(given["r"], given["b"], 0.1) * (given["z"] < 0)
    want = given["x"] * (conv_transpose(conv, s, given["w"]) + conv_transpose(conv, t, given["v"]))
    np.testing.assert_allclose(found, want)


def test_weights_are_packed_with_their_filters_innermost() -> None:
    w = np.arange(6 * 2 * 3 * 4, dtype=np.float32).reshape(6, 2, 3, 4)
    conv = Conv.of(1, 4, 6, (9, 9), (3, 4), group=2)
    wide = Conv.of(1, 4, 60, (9, 9), (3, 4), group=2)  # 30 filters per group: the matrix unit's
    packed = pack(w, conv)
    assert packed.shape == (3, 4, 2, 2, 3)
    for k, c, i, j in np.ndindex(6, 2, 3, 4):
        assert packed[i, j, k // 3, c, k % 3] == w[k, c, i, j]
    np.testing.assert_array_equal(pack(w[:, :, 0, 0], Conv.dense(1, 2, 6))[0, 0, 0], w[:, :, 0, 0].T)
    assert pack(w[:, :, 0], Conv.of(1, 2, 6, (9,), (4,))).shape == (1, 4, 1, 2, 6)
    tall = np.tile(w, (10, 1, 1, 1))
    assert pack(tall * 1e6, wide, precision="fp16").max() == np.float16(65504)
    assert pack(tall, wide, precision="bf16").dtype == np.uint16
    assert pack(w, conv, precision="bf16").dtype == np.float32, "narrow groups are multiplied in float32"
    fine = tall + np.float32(2**-12)  # beside a one, tf32 holds 2⁻¹⁰
    assert pack(fine, wide, precision="tf32")[0, 0, 0, 0, 1] == 24.0
    assert pack(fine, wide, precision="ieee")[0, 0, 0, 0, 1] > 24.0
    fine[0, 0, 0, 1:3] = np.nan, np.inf
    assert np.isnan(pack(fine, wide)[0, 1, 0, 0, 0])
    assert pack(fine, wide)[0, 2, 0, 0, 0] == np.inf
    for wrong in (w[:, :1], w[:5], w[0, 0], w[..., :3]):
        with pytest.raises(UnsupportedShape, match="is not that of"):
            pack(wrong, conv)


def test_bfloat16_rounds_to_nearest_even_and_keeps_nan() -> None:
    values = np.array([1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, np.inf, np.nan, 0.0, -0.0], np.float32)
    got = from_bfloat16(to_bfloat16(values))
    np.testing.assert_array_equal(got[:4], [1.0, -2.5, 1.0, 1 + 2**-6])
    assert np.isinf(got[4]) and np.isinf(got[5]) and np.isnan(got[6])
    assert np.signbit(got[8]) and not np.signbit(got[7])


def test_tensors_that_live_together_do_not_overlap_in_the_workspace() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        firsts = rng.integers(0, 12, 25)
        needs = [
            Need(f"t{k}", int(rng.integers(0, 5000)), int(first), int(first + rng.integers(0, 5)))
            for k, first in enumerate(firsts)
        ]
        plan = plan_workspace(needs)
        for one, other in product(needs, needs):
            together = one.first <= other.last and other.first <= one.last
            if one is not other and together:
                low, high = sorted((one, other), key=lambda n: plan.offsets[n.name])
                assert plan.offsets[low.name] + max(low.size, 1) <= plan.offsets[high.name]
        assert all(offset % ALIGNMENT == 0 for offset in plan.offsets.values())
        assert plan.peak <= plan.size <= 1.5 * plan.peak
        assert max(plan.offsets[n.name] + n.size for n in needs) <= plan.size


def test_a_chain_of_layers_needs_two_buffers() -> None:
    plan = plan_workspace([Need(f"s{k}", 1 << 20, k, k + 1) for k in range(10)])
    assert plan.size == plan.peak == 2 << 20


def test_a_workspace_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ArgumentError, match="read after it is written"):
        plan_workspace([Need("a", 4, 2, 1)])
    with pytest.raises(ArgumentError, match="one name"):
        plan_workspace([Need("a", 4, 1, 1), Need("a", 4, 2, 2)])
    assert plan_workspace([]).size == 0
