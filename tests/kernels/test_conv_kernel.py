"""The Triton kernels against the float64 oracle, interpreted: every form, odd shapes, results filled with NaN before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_explain_kernels import forms
from onnx_explain_kernels import plan as planning
from onnx_explain_kernels.forms import ConvForm
from onnx_explain_kernels.geometry import Conv
from onnx_explain_kernels.plan import TYPES, Layouts, Types, plan_apply, plan_conv, plan_shift
from onnx_explain_kernels.reference import apply_shift, conv_forward, conv_relevance, shift_of_sums
from onnx_explain_kernels.tiles import Tile
from onnx_explain_kernels.weights import pack
from running import guarded, run_flat, stored, triton_interpreter, unfilled, unstored

pytest.importorskip("triton", reason="triton (extra [test]) is not installed")
triton_interpreter()

NCHW, CHAIN = Layouts(), Layouts("nhwc", "nchw", "nhwc")
# name: a convolution; sizes are odd on purpose, and neither tile nor depth divides them
CONVS = {
    "3x3": Conv.of(2, 5, 7, (7, 6), (3, 3), pads=(1, 1, 1, 1)),
    "stride2": Conv.of(2, 4, 6, (9, 8), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "pads_differ": Conv.of(1, 3, 5, (7, 10), (3, 2), strides=(1, 2), pads=(0, 1, 2, 0)),
    "stride_beyond_kernel": Conv.of(1, 4, 3, (10, 7), (1, 2), strides=(3, 4)),
    "one_by_one": Conv.of(2, 20, 18, (3, 5), (1, 1)),
    "one_pixel": Conv.of(3, 7, 63, (1, 1), (1, 1)),
    "63": Conv.of(1, 1, 1, (1, 63), (1, 5), pads=(0, 2, 0, 2)),
    "dilated": Conv.of(1, 3, 4, (11, 9), (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    "dilated_and_strided": Conv.of(1, 3, 4, (11, 9), (3, 3), strides=(2, 3), pads=(2, 1, 2, 1), dilations=(2, 3)),
    "groups": Conv.of(2, 6, 36, (5, 5), (3, 3), pads=(1, 1, 1, 1), group=2),
    "depthwise": Conv.of(2, 7, 7, (6, 7), (3, 3), pads=(1, 1, 1, 1), group=7),
    "depthwise_stride2": Conv.of(1, 17, 34, (7, 8), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1), group=17),
    "depthwise_dilated": Conv.of(1, 5, 5, (9, 9), (3, 3), strides=(2, 2), dilations=(2, 2), group=5),
    "narrow_groups": Conv.of(1, 12, 8, (5, 4), (3, 3), pads=(1, 1, 1, 1), group=4),
    "one_axis": Conv.of(2, 3, 5, (19,), (4,), strides=(2,), pads=(3, 1), dilations=(1,)),
    "dense": Conv.dense(5, 33, 10),
}


def operands(conv: Conv, form: ConvForm, seed: int = 0) -> dict[str, np.ndarray]:
    """Random operands that a form may meet: zeros among inputs and relevance, denominators of the right sign."""
    rng = np.random.default_rng(seed)
    above, below = (conv.samples, conv.filters, *conv.out), (conv.samples, conv.channels, *conv.size)
    x = np.maximum(rng.standard_normal(below), 0)
    if form.numerator not in ("x", "active") or form.accumulate:
        x = rng.standard_normal(below)
    w = rng.standard_normal((conv.filters, conv.channels // conv.group, *conv.kernel))
    found: dict[str, Any] = {
        "r": rng.standard_normal(above) * (rng.random(above) > 0.2),
        "a": rng.standard_normal(above) + 0.5,
        "b": rng.standard_normal(above) - 0.5,
        "z": rng.standard_normal(above) * (rng.random(above) > 0.1),
        "delta": rng.standard_normal(conv.samples),
        "w": w,
        "v": rng.standard_normal(w.shape),
        "x": x,
        "d": rng.standard_normal(below) + 0.5,
        "low": -1 - rng.random((1, conv.channels)),
        "high": 1 + rng.random((1, conv.channels)),
        "out": rng.standard_normal(below),
    }
    if form.quotient.startswith("relative"):
        found["w"], found["v"] = np.maximum(w, 0), np.maximum(-w, 0)
        found["a"], found["b"] = (conv_forward(conv, np.maximum(x, 0), found[k]) for k in "wv")
    kept = {*form.operands, *(["out"] if form.accumulate else [])}
    return {k: np.asarray(v, np.float32) for k, v in found.items() if k in kept}


def run_conv(
    conv: Conv,
    form: ConvForm,
    given: dict[str, np.ndarray],
    *,
    layouts: Layouts = NCHW,
    types: Types = TYPES,
    precision: Any = "ieee",
    bounds: tuple[bool, bool] = (False, True),
    arch: int = 90,
    generic: bool = False,
    epsilon: float = 0.01,
    below_epsilon: float = 0.02,
) -> dict[str, np.ndarray]:
    """The kernel's results, [N, C, H, W] again; the guard behind each must be untouched."""
    plan = plan_conv(
        conv, form, arch=arch, layouts=layouts, types=types, precision=precision, bounds=bounds, generic=generic
    )
    lies = {**dict.fromkeys("rabz", (layouts.r, types.r)), **dict.fromkeys("xd", (layouts.x, types.x))}
    tensors = {}
    for name, array in given.items():
        if name in "wv":
            tensors[name] = pack(array, conv, precision=precision).reshape(-1)
        elif name != "out":
            tensors[name] = stored(array, *lies.get(name, ("nchw", "fp32")))
    tensors = {name: guarded(flat) for name, flat in tensors.items()}
    for name in form.results:
        tensors[name] = unfilled(plan, name)
    if form.accumulate:
        tensors["out"][:-16] = stored(given["out"], layouts.out, types.out)
    run_flat(plan, tensors, epsilon=epsilon, below_epsilon=below_epsilon)
    for name in form.results:
        guard = tensors[name][-16:]
        assert np.all(guard == 0x7FC0) if guard.dtype == np.uint16 else np.all(np.isnan(guard)), name
    shape = (conv.samples, conv.channels, *conv.size)
    found = {"out": unstored(tensors["out"][:-16], shape, layouts.out)}
    if form.sums:
        found |= {k: tensors[k][:-16].reshape(conv.samples, plan.rows) for k in ("sums", "counts")}
    return found


def check(conv: Conv, form: ConvForm, *, tolerance: float = 2e-5, **options: Any) -> float:
    """Compare with the oracle, relative to the largest value; returns the error."""
    given = operands(conv, form)
    numbers = {"epsilon": options.get("epsilon", 0.01), "below_epsilon": options.get("below_epsilon", 0.02)}
    want = conv_relevance(conv, form, given, **numbers)
    got = run_conv(conv, form, given, **options)
    largest = np.abs(want["out"]).max() or 1.0
    error = float(np.abs(got["out"] - want["out"]).max() / largest)
    assert error <= tolerance, error  # NaN is not <=
    if form.sums:
        np.testing.assert_allclose(got["sums"].sum(1), want["sums"], atol=1e-5 * largest * want["out"].size)
        np.testing.assert_array_equal(got["counts"].sum(1), (got["out"] != 0).sum((1, 2, 3)))
    return error


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16: several row, column and depth tiles on small shapes."""
    monkeypatch.setattr(planning, "conv_tile", lambda *_, **__: Tile(16, 16, 16, 4, 2))
    monkeypatch.setattr(planning, "narrow_tile", lambda *_, **__: Tile(16, 4, 1, 4, 2))


@pytest.mark.parametrize("name", CONVS)
def test_every_geometry_redistributes_as_the_oracle_does(name: str, small_tiles: None) -> None:
    check(CONVS[name], forms.EPSILON)


@pytest.mark.parametrize("name", CONVS)
def test_every_geometry_runs_with_the_tiles_that_are_shipped(name: str) -> None:
    check(CONVS[name], forms.CHAIN, layouts=CHAIN)


@pytest.mark.parametrize("name", ["3x3", "depthwise", "dense"])
@pytest.mark.parametrize("form", forms.NAMED.values(), ids=forms.NAMED)
def test_every_form_redistributes_as_the_oracle_does(form: ConvForm, name: str) -> None:
    # a quotient by what has cancelled, as αβ's are here, amplifies float32 rounding
    check(CONVS[name], form, tolerance=1e-4)


@pytest.mark.parametrize("r", ["nchw", "nhwc"])
@pytest.mark.parametrize("x", ["nchw", "nhwc"])
@pytest.mark.parametrize("out", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["stride2", "one_by_one", "depthwise"])
def test_tensors_may_lie_either_way_in_memory(name: str, r: Any, x: Any, out: Any) -> None:
    check(CONVS[name], forms.CHAIN_FIRST, layouts=Layouts(r, x, out))


@pytest.mark.parametrize("numerator", ["one", "x", "x+", "x-", "|x-|", "active"])
@pytest.mark.parametrize("below", ["none", "x", "d"])
@pytest.mark.parametrize("accumulate", [False, True])
def test_what_comes_behind_the_product_is_fused(numerator: Any, below: Any, accumulate: bool) -> None:
    # with ε' = 0 a division by an input that is exactly zero gives zero
    form = ConvForm("given", numerator=numerator, below=below, accumulate=accumulate)
    groups = Conv.of(2, 6, 36, (5, 5), (1, 1), group=2)  # the end is the same behind one turn as behind nine
    for below_epsilon in (0.02, 0.0):
        check(groups, form, below_epsilon=below_epsilon, tolerance=1e-4)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_a_zero_denominator_gives_nothing_or_counts_as_epsilon(epsilon: float) -> None:
    conv, form = CONVS["3x3"], forms.EPSILON
    given = operands(conv, form)
    given["a"][:, ::2] = 0.0
    given["a"][:, 1] = -0.0
    given["r"][given["a"] == 0] = 3.0
    got = run_conv(conv, form, given, epsilon=epsilon)["out"]
    want = conv_relevance(conv, form, given, epsilon=epsilon)["out"]
    assert (np.abs(want).max() > 1e5) == (epsilon > 0)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("quotient", ["given", "ratio", "relative_dense"])
@pytest.mark.parametrize("name", ["stride2", "dense"])
def test_a_shift_is_applied_while_loading(quotient: Any, name: str) -> None:
    branch: Any = "dual" if quotient == "relative_dense" else "single"
    check(CONVS[name], ConvForm(quotient, branch, shifted=True), tolerance=1e-4)


@pytest.mark.parametrize("bounds", [(False, False), (False, True), (True, False), (True, True)])
def test_the_box_may_differ_per_sample_and_per_channel(bounds: tuple[bool, bool]) -> None:
    conv, form = CONVS["3x3"], forms.BOX_GIVEN
    given = operands(conv, form)
    shape = (conv.samples if bounds[0] else 1, conv.channels if bounds[1] else 1)
    rng = np.random.default_rng(5)
    given |= {"low": -rng.random(shape).astype(np.float32), "high": rng.random(shape).astype(np.float32)}
    want = conv_relevance(conv, form, given)["out"]
    got = run_conv(conv, form, given, bounds=bounds)["out"]
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", ["3x3", "stride2", "groups", "dense"])
@pytest.mark.parametrize("form", [forms.CHAIN, forms.RELATIVE_CHAIN, forms.BOX], ids=["chain", "relative", "box"])
def test_the_shipped_kernels_take_any_shape(name: str, form: ConvForm) -> None:
    check(CONVS[name], form, generic=True, tolerance=1e-4)


# the error that docs/kernels.md gives for each precision, of the largest value
ERRORS = {"ieee": 1e-5, "tf32x3": 1e-5, "tf32": 1e-3, "bf16": 1e-2, "fp16": 1e-3}


@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize("name", ["3x3", "dense"])
def test_the_error_of_a_precision_is_the_documented_one(name: str, precision: str) -> None:
    for form in (forms.CHAIN, forms.EPSILON):
        error = check(
            CONVS[name], form, precision=precision, tolerance=ERRORS[precision], epsilon=0.25, below_epsilon=0.25
        )
        if precision in ("tf32", "bf16"):
            assert error > ERRORS["ieee"], "the operands were not rounded at all"


@pytest.mark.parametrize("form", [forms.GRADIENT, forms.EPSILON, forms.RELATIVE_GIVEN], ids=["given", "ratio", "dual"])
def test_products_in_tf32_are_not_smaller_on_the_average(form: ConvForm) -> None:
    """The matrix unit cuts operands off; were they not rounded before, each layer would lose 7e-4 of all relevance."""
    conv = Conv.dense(16, 16, 64)
    given = {k: np.abs(v) + np.float32(0.1) for k, v in operands(conv, form).items()}
    want = conv_relevance(conv, form, given, epsilon=0.01)["out"].sum()
    got = run_conv(conv, form, given, precision="tf32")["out"].astype(np.float64).sum()
    assert abs(got / want - 1) < 5e-5, got / want - 1


NUMERATORS = [ConvForm("given", numerator=n) for n in ("x", "x+", "x-", "|x-|")]


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
@pytest.mark.parametrize("where", ["r", "x", "w"])
@pytest.mark.parametrize("form", [*NUMERATORS, forms.EPSILON, forms.RELATIVE, forms.HALVES])
def test_a_nan_shows_as_a_nan(form: ConvForm, where: str, precision: str) -> None:
    """Also that of all ones, which a device makes, and whose bits overflow when they are rounded."""
    conv = Conv.dense(3, 4, 5)
    given = operands(conv, form)
    given[where].reshape(-1).view(np.uint32)[1] = 0x7FFFFFFF
    got = run_conv(conv, form, given, precision=precision)["out"]
    row = {"r": (0,), "x": (0, 1), "w": (slice(None), 1)}[where]
    assert np.isnan(got[row]).all()
    assert not np.isnan(got[1:, 0]).any()


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_tensors_may_be_stored_in_16_bits(kind: Any) -> None:
    conv, form, types = CONVS["3x3"], forms.CHAIN, Types(kind, kind, kind)
    check(conv, form, types=types, layouts=CHAIN, precision=kind, tolerance=2e-2, below_epsilon=0.25)


def test_half_precision_saturates_instead_of_overflowing() -> None:
    conv, form = CONVS["one_by_one"], forms.EPSILON
    given = operands(conv, form)
    given["a"][...] = 0.0
    given["r"] *= 1e4
    assert np.isfinite(run_conv(conv, form, given, precision="fp16", epsilon=1e-6)["out"]).all()


def test_a_large_batch_of_small_maps_shares_tiles() -> None:
    conv = Conv.of(9, 3, 4, (7, 7), (3, 3), pads=(1, 1, 1, 1))
    plan = plan_conv(conv, forms.EPSILON, arch=90)
    assert dict(plan.specialisation.constants)["FOLD"] is True
    assert plan.grid[0] == -(-9 * 49 // int(str(dict(plan.specialisation.constants)["BM"]))) < 9
    check(conv, forms.EPSILON)


def test_maps_that_fill_their_tiles_are_not_folded() -> None:
    conv = Conv.of(2, 3, 4, (16, 16), (3, 3), pads=(1, 1, 1, 1))
    assert dict(plan_conv(conv, forms.EPSILON, arch=90).specialisation.constants)["FOLD"] is False
    for form in (forms.EPSILON, forms.RELATIVE_CHAIN):
        check(conv, form, tolerance=1e-4)


def test_the_halves_of_a_signed_input_come_in_one_pass_or_in_two() -> None:
    conv = CONVS["stride2"]
    given = operands(conv, forms.HALVES)
    whole = run_conv(conv, forms.HALVES, given)["out"]
    first = run_conv(conv, ConvForm("ratio", numerator="x+"), {k: given[k] for k in "rawx"})["out"]
    rest = {"r": given["r"], "a": given["a"], "w": given["v"], "x": given["x"], "out": first}
    second = run_conv(conv, ConvForm("ratio", numerator="x-", accumulate=True), rest)["out"]
    np.testing.assert_allclose(second, whole, atol=1e-5 * np.abs(whole).max())


def test_a_chain_of_two_layers_never_holds_relevance_between_them() -> None:
    """conv, Relu, conv with LRP-ε: S of the first layer comes out of the second one's kernel (gpu.md §5)."""
    rng = np.random.default_rng(1)
    first = Conv.of(2, 3, 8, (9, 9), (3, 3), pads=(1, 1, 1, 1))
    second = Conv.of(2, 8, 5, (9, 9), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    x, w1, w2 = (rng.standard_normal(s).astype(np.float32) for s in ((2, 3, 9, 9), (8, 3, 3, 3), (5, 8, 3, 3)))
    z1 = conv_forward(first, x, w1)
    h = np.maximum(z1, 0).astype(np.float32)
    z2 = conv_forward(second, h, w2).astype(np.float32)
    r2 = (z2 * (rng.random(z2.shape) > 0.5)).astype(np.float32)
    r1 = conv_relevance(second, forms.EPSILON, {"r": r2, "a": z2, "w": w2, "x": h}, epsilon=0.01)["out"]
    want = conv_relevance(first, forms.EPSILON, {"r": r1, "a": z1, "w": w1, "x": x}, epsilon=0.01)["out"]

    given = {"r": r2, "a": z2, "w": w2, "x": h}
    s1 = run_conv(second, forms.CHAIN_FIRST, given, layouts=Layouts(out="nhwc"), below_epsilon=0.01)["out"]
    assert (s1[h == 0] == 0).all()
    got = run_conv(first, forms.PRODUCT, {"r": s1, "w": w1, "x": x}, layouts=Layouts(r="nhwc"))["out"]
    np.testing.assert_allclose(got, want, atol=3e-5 * np.abs(want).max())


def relative_layer(conv: Conv, r: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """RAP of one layer in float64, shift included (rap_rsp.md §2.3)."""
    wp, wm = np.maximum(w, 0), np.maximum(-w, 0)
    given = {"r": r, "a": conv_forward(conv, x, wp), "b": conv_forward(conv, x, wm), "w": wp, "v": wm, "x": x}
    found = conv_relevance(conv, forms.RELATIVE, given)
    delta, _ = shift_of_sums(found["sums"], found["counts"], r.sum((1, 2, 3)))
    return apply_shift(found["out"], delta)


def shift(plan_rows: int, found: dict[str, np.ndarray], want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    samples = len(want)
    plan = plan_shift(samples, plan_rows, arch=90)
    delta, kept = unfilled(plan, "delta"), unfilled(plan, "kept")
    tensors = {k: found[k].reshape(-1) for k in ("sums", "counts")}
    run_flat(plan, {**tensors, "want": want.astype(np.float32), "delta": delta, "kept": kept})
    return delta[:samples], kept[:samples]


def test_relative_propagation_through_two_layers_keeps_the_sum_of_each_sample() -> None:
    """The shift of the upper layer is applied while the lower one loads; that of the lower one in a pass of its own."""
    rng = np.random.default_rng(2)
    lower = Conv.of(2, 6, 8, (8, 7), (3, 3), pads=(1, 1, 1, 1))
    upper = Conv.of(2, 8, 5, (8, 7), (3, 3), strides=(2, 1), pads=(1, 1, 1, 1))
    x = np.maximum(rng.standard_normal((2, 6, 8, 7)), 0).astype(np.float32)
    w1, w2 = (rng.standard_normal(s).astype(np.float32) for s in ((8, 6, 3, 3), (5, 8, 3, 3)))
    h = np.maximum(conv_forward(lower, x, w1), 0).astype(np.float32)
    r = rng.standard_normal((2, 5, *upper.out)).astype(np.float32)
    want = relative_layer(lower, relative_layer(upper, r, h, w2), x, w1)

    c, total, delta = r, r.sum((1, 2, 3)), None
    for conv, x_, w in ((upper, h, w2), (lower, x, w1)):
        wp, wm = np.maximum(w, 0), np.maximum(-w, 0)
        given = {"r": c, "a": conv_forward(conv, x_, wp), "b": conv_forward(conv, x_, wm), "w": wp, "v": wm, "x": x_}
        form = forms.RELATIVE if delta is None else forms.RELATIVE_CHAIN
        given |= {} if delta is None else {"delta": delta}
        found = run_conv(conv, form, {k: np.asarray(v, np.float32) for k, v in given.items()})
        delta, total = shift(found["sums"].shape[1], found, total)
        c = found["out"]
    plan = plan_apply(2, c[0].size, arch=90)
    out = unfilled(plan, "out")
    run_flat(plan, {"c": np.ascontiguousarray(c).reshape(-1), "delta": delta, "out": out})
    got = out[: c.size].reshape(c.shape)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    np.testing.assert_allclose(got.sum((1, 2, 3)), r.sum((1, 2, 3)), rtol=1e-4, atol=1e-4)


def test_a_map_of_zeros_has_nothing_to_shift() -> None:
    found = {"sums": np.zeros((2, 3), np.float32), "counts": np.zeros((2, 3), np.float32)}
    delta, kept = shift(3, found, np.array([1.0, -2.0]))
    assert delta.tolist() == [0.0, 0.0]
    assert kept.tolist() == [0.0, 0.0]
